"""Signed distance maps of binary masks: the regression target of the dual-task paper (Eq. 4)."""

from collections.abc import Sequence

import edt
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def signed_distance(
    mask: NDArray[np.generic] | Tensor, *, normalise: bool, spacing: Sequence[float] | None = None
) -> tuple[Tensor, bool]:
    """Signed Euclidean distance to the boundary of a mask, negative inside and positive outside (Eq. 4).

    ``normalise=False`` is Eq. 4: the distance to the nearest voxel of the other class, so that the two sides of a
    face are at -1 and +1. ``normalise=True`` is the released framework's target: inside and outside are divided by
    their own largest distance within the crop, and inner boundary voxels (those with a face neighbour outside) are 0.
    In both, ``{map <= 0}`` is the mask wherever the map is valid.

    Args:
        mask: 2D or 3D array of zeros and ones, any dtype.
        normalise: scale to [-1, 1] as above.
        spacing: voxel size per axis in mm for a distance in mm; None for a distance in voxels (paper and release).

    Returns:
        The float32 map, shape of ``mask`` and on its device, and ``valid``: False, with a map of zeros, where no
        target exists. That is an empty or a full mask and, if normalised, also a lesion without interior (one or two
        voxels thin).

    Raises:
        ValueError: the mask is not binary, or not 2D or 3D, or ``spacing`` does not fit it.
    """
    device = mask.device if isinstance(mask, Tensor) else torch.device("cpu")
    values = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask
    inside = np.ascontiguousarray(values != 0)
    if values.ndim not in (2, 3) or not np.array_equal(inside, values):
        raise ValueError(f"signed_distance takes a 2D or 3D mask of zeros and ones; shape {values.shape} is not one")
    if spacing is not None and len(spacing) != values.ndim:
        raise ValueError(f"spacing {tuple(spacing)} has {len(spacing)} values for a mask with {values.ndim} axes")
    distance, valid = _signed(inside, tuple(spacing or (1.0,) * values.ndim), normalise)
    return torch.from_numpy(distance).to(device), valid


def signed_distance_batch(
    mask: Tensor, *, normalise: bool, spacing: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`signed_distance` of each sample of a batch.

    Args:
        mask: (B, 1, *spatial) zeros and ones.
        normalise: see :func:`signed_distance`.
        spacing: see :func:`signed_distance`.

    Returns:
        float32 maps (B, 1, *spatial) and ``valid`` (B,) bool, both on the device of ``mask``.

    Raises:
        ValueError: more than one channel, or as :func:`signed_distance`.
    """
    if mask.shape[1] != 1:
        raise ValueError(f"signed_distance_batch takes (B, 1, *spatial), not {tuple(mask.shape)}")
    maps, valid = zip(*(signed_distance(m[0], normalise=normalise, spacing=spacing) for m in mask.cpu()), strict=True)
    return torch.stack(maps)[:, None].to(mask.device), torch.tensor(valid, device=mask.device)


def _signed(inside: NDArray[np.bool_], spacing: tuple[float, ...], normalise: bool) -> tuple[NDArray[np.float32], bool]:
    members = np.flatnonzero(inside)
    if members.size in (0, inside.size):  # one label only: there is no boundary, and edt would answer inf
        return np.zeros(inside.shape, np.float32), False
    labels = inside.view(np.uint8) + np.uint8(1)  # both classes are objects: one call measures both sides
    signed: NDArray[np.float32] = edt.edt(labels, anisotropy=spacing)
    flat = signed.reshape(-1)
    depth = -flat[members]
    if normalise:
        flat[members] = 0.0
        flat /= flat.max()
        depth /= -depth.min()
        depth[_inner_boundary(inside, members)] = 0.0
        if not depth.any():  # no interior: every voxel of the mask is boundary
            return np.zeros(inside.shape, np.float32), False
    flat[members] = depth
    return signed, True


def _inner_boundary(inside: NDArray[np.bool_], members: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which of the mask's voxels (flat indices) have a face neighbour outside; the border of the array is none."""
    flat = inside.reshape(-1)
    boundary = np.zeros(members.size, np.bool_)
    step = 1
    for length in reversed(inside.shape):
        position = members // step % length
        boundary |= (position > 0) & ~flat[np.maximum(members - step, 0)]
        boundary |= (position < length - 1) & ~flat[np.minimum(members + step, flat.size - 1)]
        step *= length
    return boundary
