"""One slice of one case with its masks: what overlay figures are drawn from, without model or volume (protocol.md §2)."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dgbench.atomic import write_bytes
from dgbench.errors import DgbenchError
from dgbench.store.foreign import read_arrays

CT_WINDOW = (-100.0, 240.0)
"""Display window of CT in HU (paper IV.A)."""

Mask = NDArray[np.bool_]
Masks = Literal["reference_pancreas", "reference_tumor", "pancreas", "tumor_coarse", "tumor_fine"]


def slice_file(run: Path, case: str) -> Path:
    """Where the run folder ``run`` keeps the slice of ``case`` (``center/name``)."""
    return run / "figures" / "slices" / f"{case}.npz"


@dataclass(frozen=True, kw_only=True)
class CaseSlice:
    """One slice of one case with its masks, all of shape (H, W).

    ``image`` is in its own units and shown in ``window`` (low, high); ``None`` shows its full range. ``spacing`` is the pixel size
    (y, x) in mm. ``dsc`` in [0, 1] is of the whole volume, for any of the keys ``pancreas``, ``coarse``, ``fine``; a panel without a
    value, or with ``NaN``, says so; ``native`` says whether it was measured on the grid of the scan, as in tables, or on that of the task,
    as early versions did. ``slice_index`` counts from 0.
    """

    case: str
    image: NDArray[Any]
    reference_pancreas: Mask
    reference_tumor: Mask
    pancreas: Mask
    tumor_coarse: Mask
    tumor_fine: Mask
    spacing: tuple[float, float]
    slice_index: int
    n_slices: int
    dsc: Mapping[str, float] = field(default_factory=dict)
    native: bool = True
    window: tuple[float, float] | None = CT_WINDOW

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("image", *get_args(Masks))}
        if self.image.ndim != 2 or len(set(shapes.values())) != 1:
            raise DgbenchError(
                f"overlay of case {self.case}: image and masks must be one (H, W) slice each, got {shapes}"
            )
        if not all(0 < size < np.inf for size in self.spacing):
            raise DgbenchError(
                f"overlay of case {self.case}: spacing {self.spacing} must be two positive lengths in mm"
            )

    @classmethod
    def from_volumes(
        cls,
        case: str,
        image: NDArray[Any],
        masks: Mapping[Masks, NDArray[Any]],
        spacing: Sequence[float],
        *,
        dsc: Mapping[str, float],
        window: tuple[float, float] | None = CT_WINDOW,
    ) -> "CaseSlice":
        """The slice of (D, H, W) volumes that shows most of the lesion.

        That is the axial slice with the largest reference tumor; without one, with the largest predicted tumor (fine, then coarse),
        then pancreas; the middle slice where all masks are empty. ``spacing`` is (z, y, x) in mm.
        """
        order: tuple[Masks, ...] = ("reference_tumor", "tumor_fine", "tumor_coarse", "reference_pancreas", "pancreas")
        areas = (np.count_nonzero(masks[name], axis=(1, 2)) for name in order)
        chosen = next((int(area.argmax()) for area in areas if area.any()), image.shape[0] // 2)
        return cls(
            case=case,
            image=image[chosen],
            **{name: masks[name][chosen] != 0 for name in order},
            spacing=(float(spacing[1]), float(spacing[2])),
            slice_index=chosen,
            n_slices=image.shape[0],
            dsc=dsc,
            window=window,
        )

    def save(self, path: Path) -> None:
        """Write the slice to ``path`` (npz): the image as 8 bits of its window, everything else as it is."""
        low, high = self.window or (float(self.image.min()), float(self.image.max()))
        scaled = (np.asarray(self.image, dtype=np.float64) - low) / (high - low if high > low else 1.0)
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            case=np.array(self.case),
            image=np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8),
            spacing=np.array(self.spacing),
            place=np.array([self.slice_index, self.n_slices]),
            dsc_of=np.array(list(self.dsc), dtype=str),
            dsc=np.array(list(self.dsc.values()), dtype=float),
            native=np.array(self.native),
            **{name: getattr(self, name) for name in get_args(Masks)},
        )
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "CaseSlice":
        """What :meth:`save` wrote; its image is 0..255 and so is its window. Raises DgbenchError when it is missing or damaged."""
        try:
            data = read_arrays(path)
            spacing, place = data["spacing"].tolist(), data["place"].tolist()
            return cls(
                case=str(data["case"]),
                image=data["image"],
                **{name: data[name] for name in get_args(Masks)},
                spacing=(spacing[0], spacing[1]),
                slice_index=place[0],
                n_slices=place[1],
                dsc=dict(zip(data["dsc_of"].tolist(), data["dsc"].tolist(), strict=True)),
                native=bool(data.get("native", False)),
                window=(0.0, 255.0),
            )
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise DgbenchError(
                f"{path}: not a readable slice ({error}) — delete the evaluation and run again"
            ) from error
