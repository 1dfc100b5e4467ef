"""Separable linear resampling between grids that share axes and first voxel center (the convention of ITK's resampling).

Voxel ``i`` of a grid with spacing ``s`` lies ``i·s`` mm from the first center, so output index ``o`` of spacing ``t`` is found at input
index ``o·t/s``. Beyond the last center its value holds, so that the last slice is never blank. No anti-aliasing is applied.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Coordinates = Sequence[NDArray[np.float64]]

NUDGE = 1e-4


def grid_size(size: Sequence[int], spacing: Sequence[float], new: Sequence[float]) -> tuple[int, ...]:
    """Voxels per axis of a grid of ``new`` spacing over the extent ``size · spacing``: rounded to the nearest (halves up), at least one."""
    return tuple(max(1, math.floor(n * old / step + 0.5)) for n, old, step in zip(size, spacing, new, strict=True))


def coordinates(size: Sequence[int], spacing: Sequence[float], old: Sequence[float]) -> list[NDArray[np.float64]]:
    """Per axis, where the voxel centers of a grid (``size``, ``spacing``) lie in the index space of a grid with spacing ``old``."""
    return [
        np.arange(n, dtype=np.float64) * np.float64(step / before)
        for n, step, before in zip(size, spacing, old, strict=True)
    ]


def linear(array: NDArray[Any], at: Coordinates) -> NDArray[np.float32]:
    """``array`` (D,H,W) or (H,W), of any real type, at the outer product of the index ``at`` of each axis; float32, clamped at the borders.

    Works plane by plane, so that memory beyond the result is a few planes.
    """
    if array.ndim == 2:
        stack = linear(array[None], [np.zeros(1), *at])
        return stack.reshape(stack.shape[1:])
    planes, rows, columns = (_weights(where, n) for where, n in zip(at, array.shape, strict=True))
    result = np.empty([len(where) for where in at], np.float32)
    for index, (low, high, weight) in enumerate(zip(*planes, strict=True)):
        plane = array[low].astype(np.float32, copy=False)
        if weight:
            plane = _blend(plane, array[high].astype(np.float32, copy=False), weight)
        plane = _blend(plane[rows[0]], plane[rows[1]], rows[2][:, None])
        result[index] = _blend(plane.take(columns[0], axis=1), plane.take(columns[1], axis=1), columns[2])
    return result


def labels(array: NDArray[np.uint8], at: Coordinates) -> NDArray[np.uint8]:
    """A label map (D,H,W) or (H,W) at the outer product of ``at``: the label with the largest linearly interpolated membership.

    Unlike the nearest voxel this keeps surfaces free of staircases when slices are thick. Halfway between two voxels the one of lower index
    decides (all positions are moved by :data:`NUDGE` voxels), so that structures neither grow nor shrink where spacings are multiples of
    each other. Convex structures lose a few percent where voxels shrink much. Only the surroundings of labelled voxels are computed.
    """
    result = np.zeros([len(where) for where in at], np.uint8)
    box = bounding_box(array > 0)
    if box is None:
        return result
    near = [(max(low - 1, 0), min(high + 1, n)) for low, high, n in zip(*box, array.shape, strict=True)]
    inside = [_range(where, low, high, n) for where, (low, high), n in zip(at, near, array.shape, strict=True)]
    crop = array[tuple(slice(low, high) for low, high in near)]
    local = [where[part] - (low + NUDGE) for where, part, (low, _) in zip(at, inside, near, strict=True)]
    region = result[tuple(inside)]
    best = np.zeros(region.shape, np.float32)
    background = np.ones(region.shape, np.float32)
    for value in np.flatnonzero(np.bincount(crop[crop > 0])):
        membership = linear(crop == value, local)
        background -= membership
        wins = (membership > 0) & (membership >= best)
        region[wins] = value
        best[wins] = membership[wins]
    region[background > best] = 0
    return result


def bounding_box(mask: NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """First and one-past-last index per axis of the nonzero voxels of ``mask``; None without any."""
    low, high = [], []
    rest = mask
    for _ in range(mask.ndim):
        hits = np.flatnonzero(rest.any(axis=tuple(range(1, rest.ndim))))
        if hits.size == 0:
            return None
        low.append(int(hits[0]))
        high.append(int(hits[-1]) + 1)
        rest = np.asarray(rest[low[-1] : high[-1]].any(axis=0))
    return tuple(low), tuple(high)


def _weights(at: NDArray[np.float64], n: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Lower neighbour, upper neighbour and the weight of the upper one, for each index ``at`` on an axis of ``n`` voxels."""
    clamped = np.clip(at, 0, n - 1)
    low = np.floor(clamped).astype(np.intp)
    return low, np.minimum(low + 1, n - 1), (clamped - low).astype(np.float32)


def _blend(low: NDArray[np.float32], high: NDArray[np.float32], weight: Any) -> NDArray[np.float32]:
    """low + weight · (high − low)."""
    mixed: NDArray[np.float32] = high - low
    mixed *= weight
    mixed += low
    return mixed


def _range(at: NDArray[np.float64], low: int, high: int, n: int) -> slice:
    """The indices of ``at`` (increasing) that fall in [low, high-1], and those past the last voxel where the range reaches it."""
    stop = np.inf if high == n else high - 1
    inside = np.flatnonzero((at >= low) & (at <= stop))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)
