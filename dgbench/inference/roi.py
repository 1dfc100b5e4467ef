"""Boxes: where a stage looks. All in voxels of the task grid, axes (D,H,W), ``hi`` exclusive."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dgbench.data import resampling

ScalarT = TypeVar("ScalarT", bound=np.generic)


@dataclass(frozen=True)
class Box:
    """A half-open box; it may reach outside the volume, where images are zero."""

    lo: tuple[int, ...]
    hi: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return tuple(high - low for low, high in zip(self.lo, self.hi, strict=True))


def whole(shape: Sequence[int]) -> Box:
    """The box of a volume."""
    return Box((0,) * len(shape), tuple(shape))


def bounding_box(mask: NDArray[np.bool_]) -> Box | None:
    """The smallest box around the true voxels, or None where there are none."""
    found = resampling.bounding_box(mask)
    return None if found is None else Box(*found)


def widen(box: Box, margin: Sequence[int], minimum: Sequence[int], shape: Sequence[int], multiple: int) -> Box:
    """``box`` with ``margin`` voxels on every side, at least ``minimum`` long, rounded up to a multiple (extra split half below, rest
    above), moved inside the volume where it fits and centered on it (reaching into padding) where it does not.

    The release clamps instead, which can break the multiple (dual-task sheet §7.3); padding cannot.
    """
    lo, hi = [], []
    for low, high, side, least, extent in zip(box.lo, box.hi, margin, minimum, shape, strict=True):
        length = -(-max(high - low + 2 * side, least) // multiple) * multiple
        start = low - (length - (high - low)) // 2
        start = min(max(start, 0), extent - length) if length <= extent else (extent - length) // 2
        lo.append(start)
        hi.append(start + length)
    return Box(tuple(lo), tuple(hi))


def paste(part: NDArray[ScalarT], box: Box, shape: Sequence[int]) -> NDArray[ScalarT]:
    """An array of ``shape``, zero but for ``part`` at ``box`` (what lies outside the volume is dropped)."""
    full = np.zeros(tuple(shape), dtype=part.dtype)
    inside = clip(box, shape)
    full[tuple(map(slice, inside.lo, inside.hi))] = cut(part, box, inside)
    return full


def clip(box: Box, shape: Sequence[int]) -> Box:
    """What of ``box`` lies inside a volume of ``shape``; it must meet the volume."""
    return Box(
        tuple(max(low, 0) for low in box.lo),
        tuple(min(high, extent) for high, extent in zip(box.hi, shape, strict=True)),
    )


def cut(part: NDArray[ScalarT], box: Box, inner: Box) -> NDArray[ScalarT]:
    """The view of ``part``, an array over ``box``, that covers ``inner``."""
    return part[tuple(slice(lo - at, hi - at) for at, lo, hi in zip(box.lo, inner.lo, inner.hi, strict=True))]


def keep_components(mask: NDArray[np.bool_], fraction: float | None) -> NDArray[np.bool_]:
    """The fully connected components larger than ``fraction`` of the largest one (errata 2); everything with None or an empty mask."""
    if fraction is None or not mask.any():
        return mask
    labelled, _ = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    sizes = np.bincount(labelled.ravel())
    sizes[0] = 0
    kept: NDArray[np.bool_] = (sizes > fraction * sizes.max())[labelled]
    return kept
