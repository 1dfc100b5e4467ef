"""Preparing a case: resampled to the task's spacing, scaled to [0, 1], kept under the hash of what it was made from, opened memory-mapped.

A prepared case is a folder ``cache/prepared/<key>`` with ``image.npy`` (uint16, value · 65535), ``label.npy`` (uint8) and
``geometry.json``. The key covers the bytes of image and label, the task and :data:`VERSION`; the folder appears complete or not at all.
"""

import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from dgbench.atomic import sync_file, unwritable
from dgbench.data import guard, resampling
from dgbench.data.case import Case
from dgbench.data.fingerprint import content_hash
from dgbench.data.reading import Grid, read_case, read_label
from dgbench.errors import DgbenchError
from dgbench.protocol import Protocol
from dgbench.task import Percentile, Window

VERSION = 1
FULL_SCALE = 65535

Index = tuple[int, ...]


class OnCase(Interface):
    """Told after each case: its id, how many are done, how many there are."""

    def __call__(self, case_id: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class PreparedCase:
    """A case on the task's grid. It holds paths and numbers only, so it is cheap to send to a worker; files are mapped when asked for.

    ``size`` (D,H,W) or (H,W) and ``spacing`` (mm) are those of the task grid, whose first voxel center is that of the ``native`` grid.
    ``boxes`` gives first and one-past-last index of each label value that occurs.
    """

    case: Case
    folder: Path
    size: Index
    spacing: tuple[float, ...]
    native: Grid
    boxes: dict[int, tuple[Index, Index]]

    @property
    def image(self) -> "np.memmap[Any, np.dtype[np.uint16]]":
        """The image (C, *size), uint16: value · 65535, memory-mapped. Raises HeldOutAccessError when a guard forbids the case."""
        return self._map("image.npy", np.dtype(np.uint16), (1, *self.size))

    @property
    def label(self) -> "np.memmap[Any, np.dtype[np.uint8]]":
        """The label map (size), uint8, memory-mapped. Raises HeldOutAccessError when a guard forbids the case."""
        return self._map("label.npy", np.dtype(np.uint8), self.size)

    def image_box(self, low: Sequence[int], high: Sequence[int]) -> NDArray[np.float32]:
        """The image in the box [low, high), float32 (C, *box) in [0, 1]; zero outside of the volume."""
        box = _cut(self.image, low, high).astype(np.float32)
        box /= np.float32(FULL_SCALE)
        return box

    def label_box(self, low: Sequence[int], high: Sequence[int]) -> NDArray[np.uint8]:
        """The label map in the box [low, high), uint8 (box); background outside of the volume."""
        return _cut(self.label, low, high)

    def box(self, labels: Collection[int]) -> tuple[Index, Index] | None:
        """First and one-past-last index of the smallest box around all voxels of ``labels``; None when there are none."""
        boxes = [self.boxes[value] for value in labels if value in self.boxes]
        if not boxes:
            return None
        lows, highs = zip(*boxes, strict=True)
        return tuple(map(min, zip(*lows, strict=True))), tuple(map(max, zip(*highs, strict=True)))

    def _map(self, name: str, dtype: np.dtype[Any], shape: Index) -> "np.memmap[Any, Any]":
        guard.check(self.case)
        path = self.folder / name
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DgbenchError(_damaged(self.case, self.folder, f"{name}: {error}")) from None
        if not isinstance(array, np.memmap) or (array.dtype, array.shape) != (dtype, shape):
            raise DgbenchError(_damaged(self.case, self.folder, f"{name} is not {dtype} of shape {shape}"))
        return array


def prepared_root(cache: Path) -> Path:
    """The folder of all prepared cases in ``cache``."""
    return cache / "prepared"


def prepare_case(case: Case, protocol: Protocol, cache: Path) -> PreparedCase:
    """Read, check, resample and scale ``case`` into ``cache``, or open what an earlier call left there.

    Intensities are interpolated linearly, then clipped and scaled by ``protocol.task.intensity`` (percentiles are those of the native
    image); labels see :func:`dgbench.data.resampling.labels`. Safe for many processes at once. Raises DgbenchError for a bad case, an
    image whose percentiles coincide or a cache that cannot be written; HeldOutAccessError when a guard forbids the case.
    """
    guard.check(case)
    folder = _folder(case, protocol, cache)
    if not folder.is_dir():
        _prepare(case, protocol, folder)
    return _open(case, folder)


def prepare_cases(
    cases: Iterable[Case], protocol: Protocol, cache: Path, on_case: OnCase | None = None
) -> dict[str, PreparedCase]:
    """:func:`prepare_case` for each of ``cases``, by case id; ``on_case`` is told after each. A bad case raises its DgbenchError."""
    chosen = list(cases)
    prepared = {}
    for done, case in enumerate(chosen, 1):
        prepared[case.id] = prepare_case(case, protocol, cache)
        if on_case is not None:
            on_case(case.id, done, len(chosen))
    return prepared


def native_label(case: Case, protocol: Protocol) -> tuple[NDArray[np.uint8], Grid]:
    """The reference label map as the center drew it, uint8 on the native grid (LPS order): what predictions are measured against."""
    return read_label(case, protocol.task, tuple(protocol.labels.values()))


def to_native(
    prepared: PreparedCase, probabilities: NDArray[np.floating[Any]], low: Sequence[int]
) -> tuple[NDArray[np.float32], Index]:
    """A box of probabilities on the task grid, interpolated linearly on the native grid.

    ``probabilities`` (D,H,W) or (H,W) starts at index ``low`` of the task grid and may reach beyond the volume. Returns the box of native
    voxels whose centers lie in it (half a task voxel around its outermost centers; to the end of the volume where it reaches the end),
    float32, and its first native index.
    """
    ranges = []
    for start, length, size, step, native_size, native_step in zip(
        low,
        probabilities.shape,
        prepared.size,
        prepared.spacing,
        prepared.native.size,
        prepared.native.spacing,
        strict=True,
    ):
        first = max(0, math.ceil((start - 0.5) * step / native_step))
        end = start + length
        last = native_size if end >= size else min(native_size, math.ceil((end - 0.5) * step / native_step))
        ranges.append((first, max(first, last)))
    at = [
        np.arange(first, last) * (native_step / step) - start
        for (first, last), start, step, native_step in zip(
            ranges, low, prepared.spacing, prepared.native.spacing, strict=True
        )
    ]
    return resampling.linear(probabilities, at), tuple(first for first, _ in ranges)


def scale(image: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Clip to [low, high] and map linearly to [0, 1], in place."""
    np.clip(image, low, high, out=image)
    image -= np.float32(low)
    image /= np.float32(high - low)
    return image


def intensity_range(image: NDArray[np.float32], intensity: Window | Percentile, what: str) -> tuple[float, float]:
    """What of ``image`` becomes 0 and 1. Raises DgbenchError when its percentiles coincide."""
    if isinstance(intensity, Window):
        return intensity.low, intensity.high
    low, high = map(float, np.percentile(image, (intensity.low, intensity.high)))
    if low == high:
        raise DgbenchError(
            f"{what} is constant: its {intensity.low:g} and {intensity.high:g} percentiles are both {low:g} — remove the case"
        )
    return low, high


def _folder(case: Case, protocol: Protocol, cache: Path) -> Path:
    made_from = {
        "image": content_hash(case.image, cache),
        "label": content_hash(case.label, cache),
        "task": protocol.task.model_dump(mode="json", exclude={"out_channels"}),
        "labels": sorted(protocol.labels.values()),
        "version": VERSION,
    }
    return prepared_root(cache) / hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:40]


def _prepare(case: Case, protocol: Protocol, folder: Path) -> None:
    volumes = read_case(case, protocol.task, tuple(protocol.labels.values()))
    task, native = protocol.task, volumes.grid
    low, high = intensity_range(volumes.image, task.intensity, f"case {case.id}: image {case.image}")
    size = resampling.grid_size(native.size, native.spacing, task.spacing)
    at = resampling.coordinates(size, task.spacing, native.spacing)
    image = scale(resampling.linear(volumes.image, at), low, high)
    image *= FULL_SCALE
    label = resampling.labels(volumes.label, at)
    boxes = {value: resampling.bounding_box(label == value) for value in sorted(set(protocol.labels.values()))}
    geometry = {
        "size": size,
        "spacing": task.spacing,
        "native": asdict(native),
        "boxes": {str(value): box for value, box in boxes.items() if box is not None},
    }
    _write(folder, np.rint(image, out=image).astype(np.uint16)[None], label, geometry)


def _write(folder: Path, image: NDArray[np.uint16], label: NDArray[np.uint8], geometry: dict[str, Any]) -> None:
    """Write the folder under another name, then rename it; where another process was faster, its folder stays."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        try:
            np.save(temporary / "image.npy", image)
            np.save(temporary / "label.npy", label)
            (temporary / "geometry.json").write_text(json.dumps(geometry), encoding="utf-8")
            for path in temporary.iterdir():
                sync_file(path)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if not folder.is_dir():
            raise unwritable(folder.parent, error) from None


def _open(case: Case, folder: Path) -> PreparedCase:
    try:
        geometry = json.loads((folder / "geometry.json").read_bytes())
        native = Grid(**{name: tuple(values) for name, values in geometry["native"].items()})
        boxes = {int(value): (tuple(low), tuple(high)) for value, (low, high) in geometry["boxes"].items()}
        return PreparedCase(case, folder, tuple(geometry["size"]), tuple(geometry["spacing"]), native, boxes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DgbenchError(_damaged(case, folder, f"geometry.json: {error!r}")) from None


def _damaged(case: Case, folder: Path, problem: str) -> str:
    return f"case {case.id}: its prepared folder {folder} is damaged ({problem}) — delete it"


def _cut(array: NDArray[Any], low: Sequence[int], high: Sequence[int]) -> NDArray[Any]:
    """A copy of the box [low, high) of the last axes of ``array``, zero where it lies outside."""
    sizes = array.shape[array.ndim - len(low) :]
    channels = array.shape[: array.ndim - len(low)]
    box = np.zeros((*channels, *(stop - start for start, stop in zip(low, high, strict=True))), array.dtype)
    inner: list[Any] = [...]
    outer: list[Any] = [...]
    for start, stop, size in zip(low, high, sizes, strict=True):
        first, last = max(start, 0), min(stop, size)
        if first >= last:
            return box
        inner.append(slice(first, last))
        outer.append(slice(first - start, last - start))
    box[tuple(outer)] = array[tuple(inner)]
    return box
