"""How sharp an image is: Gaussian blur, sharpening, and simulated low resolution.

The filters are sums of shifted slices, not convolutions of a network: they stay in float32 under mixed precision and are the same
on every run of a device.
"""

from collections.abc import Sequence
from math import exp

import torch
from torch import Tensor
from torch.nn import functional as F

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def gaussian_weights(sigma: float, truncate: float = 4.0) -> list[float]:
    """Samples of a Gaussian at whole voxels up to ``int(truncate * sigma + 0.5)`` on each side, with sum 1; ``[1]`` for sigma 0."""
    radius = int(truncate * sigma + 0.5)
    values = [exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)] if radius else [1.0]
    return [value / sum(values) for value in values]


def filter_axis(x: Tensor, weights: Sequence[float], axis: int) -> Tensor:
    """Correlate one axis with ``weights`` where they lie inside: the axis becomes ``len(weights) - 1`` voxels shorter."""
    length = x.shape[axis] - len(weights) + 1
    total = weights[0] * x.narrow(axis, 0, length)
    for first, weight in enumerate(weights[1:], start=1):
        total = total.add(x.narrow(axis, first, length), alpha=weight)
    return total


def gaussian_blur(x: Tensor, sigma: float | Sequence[float], truncate: float = 4.0) -> Tensor:
    """Gaussian blur, mirrored at the border with the border voxel repeated (``reflect`` of scipy).

    Args:
        x: (B, C, *spatial) image.
        sigma: standard deviation in voxels, one or one per axis; 0 leaves an axis as it is.
        truncate: the filter ends at this many standard deviations.

    Returns:
        (B, C, *spatial) of the dtype of ``x``. The mean is kept, up to rounding.

    Raises:
        ValueError: a negative sigma, or not one per axis.
    """
    ndim = x.ndim - 2
    sigmas = [float(sigma)] * ndim if isinstance(sigma, int | float) else list(sigma)
    if len(sigmas) != ndim or min(sigmas) < 0:
        raise ValueError(f"sigma {sigma} must be one number, or one for each of {ndim} axes, and not negative")
    for axis, deviation in enumerate(sigmas, start=2):
        weights = gaussian_weights(deviation, truncate)
        radius, side = len(weights) // 2, x.shape[axis]
        if radius:
            position = torch.arange(-radius, side + radius, device=x.device) % (2 * side)
            mirrored = torch.minimum(position, 2 * side - 1 - position)
            x = filter_axis(x.index_select(axis, mirrored), weights, axis)
    return x


def sharpen(x: Tensor, sigma: float, second_sigma: float, amount: float) -> Tensor:
    """``g + amount * (g - blur(g, second_sigma))`` with ``g = blur(x, sigma)`` (BigAug: Zhang et al., TMI 2020).

    Args:
        x: (B, C, *spatial) image.
        sigma: blur of the base image, voxels.
        second_sigma: blur that is subtracted, voxels.
        amount: weight of the difference; 10 to 30 in BigAug, which leaves the range of ``x`` by far.

    Returns:
        (B, C, *spatial); the mean is kept.
    """
    base = gaussian_blur(x, sigma)
    return base + amount * (base - gaussian_blur(base, second_sigma))


def low_resolution(x: Tensor, factors: Sequence[float]) -> Tensor:
    """Sample the image on a coarser grid (nearest voxel) and bring it back (linear), as nnU-Net simulates low resolution.

    Args:
        x: (B, C, *spatial) image.
        factors: share of the voxels kept on each axis, in (0, 1]; 1 on all axes returns the image itself.

    Returns:
        (B, C, *spatial).

    Raises:
        ValueError: not one factor per axis.
    """
    shape = x.shape[2:]
    coarse = [max(1, round(side * factor)) for side, factor in zip(shape, factors, strict=True)]
    if coarse == list(shape):
        return x
    small = F.interpolate(x, size=coarse, mode="nearest-exact")
    return F.interpolate(small, size=list(shape), mode=_LINEAR[len(shape)], align_corners=False)
