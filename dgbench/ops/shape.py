"""Shape of a structure: how compact a probability map is, the contour of a mask, and the tissue around it.

Masks are (B, C, *spatial) in 2D or 3D; neighbours are those across a face (4 in 2D, 6 in 3D).
"""

from math import pi

import torch
from torch import Tensor


def boundary_size(p: Tensor, ndim: int, eps: float = 1e-8) -> Tensor:
    """Perimeter (``ndim`` 2) or surface (3): the sum of sqrt(sum of squared differences to the previous voxels + eps) over the voxels that
    have a previous voxel on every axis (Liu et al., MICCAI 2020; their release takes the previous voxels too).

    Args:
        p: (..., *spatial) probabilities, the last ``ndim`` axes spatial.
        ndim: 2 or 3.
        eps: keeps the gradient finite; every voxel without any change adds its root, 1e-4.

    Returns:
        (...), in voxel faces, float32 or wider. For a binary structure it is above its smooth size: a digital disc by 17 %.
    """
    wide = p.to(torch.promote_types(p.dtype, torch.float32))
    axes = tuple(range(-ndim, 0))
    base = _without(wide, axes, last=())
    squares = [(base - _without(wide, axes, last=(axis,))).square() for axis in axes]
    return (torch.stack(squares).sum(0) + eps).sqrt().sum(axes)


def isoperimetric_ratio(p: Tensor, ndim: int, *, eps: float = 1e-8, min_size: float = 1.0) -> Tensor:
    """P² / (4πA) of each plane (``ndim`` 2), or S³ / (36πV²) of each volume (3): 1 for a smooth disc or ball, more for any other shape.

    The first is the compactness of SAML (Liu et al., MICCAI 2020) without its factor 1e-4; the second its counterpart in 3D.

    Args:
        p: (..., *spatial) probabilities, the last ``ndim`` axes spatial.
        ndim: 2 or 3.
        eps: see :func:`boundary_size`.
        min_size: a structure whose probabilities sum to less has ratio 0 and gets no gradient.

    Returns:
        (...), float32 or wider.

    Raises:
        ValueError: ``ndim`` is neither 2 nor 3.
    """
    if ndim not in (2, 3):
        raise ValueError(f"isoperimetric_ratio takes 2 or 3 spatial axes, not {ndim}")
    wide = p.to(torch.promote_types(p.dtype, torch.float32))
    size = wide.sum(tuple(range(-ndim, 0)))
    present = size >= min_size
    divisor = torch.where(present, size, torch.ones_like(size))
    boundary = boundary_size(wide, ndim, eps)
    ratio = boundary**2 / (4 * pi * divisor) if ndim == 2 else boundary**3 / (36 * pi * divisor**2)
    return torch.where(present, ratio, torch.zeros_like(ratio))


def dilate(mask: Tensor, steps: int = 1) -> Tensor:
    """The mask grown by ``steps`` face neighbours: (B, C, *spatial), any dtype with 0 as background, to bool."""
    grown = mask > 0
    for _ in range(steps):
        before = grown.clone()
        for axis in range(2, mask.ndim):
            length = mask.shape[axis] - 1
            grown.narrow(axis, 1, length).logical_or_(before.narrow(axis, 0, length))
            grown.narrow(axis, 0, length).logical_or_(before.narrow(axis, 1, length))
    return grown


def erode(mask: Tensor, steps: int = 1) -> Tensor:
    """The mask less ``steps`` layers of voxels with a face neighbour outside, (B, C, *spatial) to bool. The edge of the array takes nothing
    away: where a crop cuts a structure is not its boundary."""
    return ~dilate(mask <= 0, steps)


def contour(mask: Tensor) -> Tensor:
    """Voxels of the mask with a face neighbour outside: (B, C, *spatial) to bool."""
    return (mask > 0) & ~erode(mask)


def surroundings(mask: Tensor, steps: int = 5) -> Tensor:
    """Voxels outside of the mask, at most ``steps`` face neighbours away: (B, C, *spatial) to bool."""
    return dilate(mask, steps) & (mask <= 0)


def mean_inside(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of a feature map inside masks.

    Args:
        features: (B, C, *spatial).
        masks: (B, M, *spatial), 0 or 1.

    Returns:
        (B, M, C), float32 or wider; zeros for an empty mask.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2)
    inside = masks.to(wide.dtype).flatten(2)
    return inside @ wide.mT / inside.sum(2, keepdim=True).clamp(min=1)


def _without(x: Tensor, axes: tuple[int, ...], *, last: tuple[int, ...]) -> Tensor:
    """``x`` one voxel shorter on each of ``axes``: without its last voxel on those in ``last``, without its first on the others."""
    for axis in axes:
        x = x.narrow(axis, 0 if axis in last else 1, x.shape[axis] - 1)
    return x
