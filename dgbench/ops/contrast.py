"""Gray-value curves of an image: gamma, and contrast about the mean, each with the statistics of its own channels."""

import torch
from torch import Tensor

_NO_SPREAD = 1e-7
"""A smaller range or standard deviation counts as this, as in nnU-Net."""


def gamma_curve(x: Tensor, gamma: float, *, invert: bool = False, retain_statistics: bool = False) -> Tensor:
    """``((x - min) / R)^gamma * R + min`` with the range R = max - min of each sample and channel.

    Args:
        x: (B, C, *spatial) image, any range.
        gamma: positive exponent; 1 is the identity.
        invert: the curve of the negated image, negated back (nnU-Net): it bends at the other end of the range.
        retain_statistics: bring mean and standard deviation (N - 1) of each channel back to what they were (nnU-Net); the minimum and
            the maximum then move.

    Returns:
        (B, C, *spatial); a constant channel stays as it is.
    """
    dims = tuple(range(2, x.ndim))
    source = -x if invert else x
    low = source.amin(dims, keepdim=True)
    extent = source.amax(dims, keepdim=True) - low
    curved = ((source - low) / extent.clamp(min=_NO_SPREAD)).pow(gamma) * extent + low
    if retain_statistics:
        mean, std = _statistics(source)
        new_mean, new_std = _statistics(curved)
        curved = (curved - new_mean) * (std / new_std.clamp(min=_NO_SPREAD)) + mean
    return -curved if invert else curved


def scale_contrast(x: Tensor, factor: float, *, preserve_range: bool = True) -> Tensor:
    """``(x - mean) * factor + mean`` with the mean of each sample and channel (nnU-Net).

    Args:
        x: (B, C, *spatial) image.
        factor: 1 is the identity; more is more contrast.
        preserve_range: clamp to the channel's former minimum and maximum.

    Returns:
        (B, C, *spatial).
    """
    dims = tuple(range(2, x.ndim))
    mean = x.mean(dims, keepdim=True)
    changed = (x - mean) * factor + mean
    if not preserve_range:
        return changed
    return torch.maximum(torch.minimum(changed, x.amax(dims, keepdim=True)), x.amin(dims, keepdim=True))


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    dims = tuple(range(2, x.ndim))
    return x.mean(dims, keepdim=True), x.std(dims, keepdim=True)
