"""Tone operations of the AutoAugment family on images in [0, 1]: solarize, posterize, equalize."""

import torch
from torch import Tensor


def solarize(x: Tensor, threshold: float) -> Tensor:
    """``1 - x`` where ``x`` (any shape, in [0, 1]) is at least ``threshold``, else ``x``."""
    return torch.where(x < threshold, x, 1 - x)


def posterize(x: Tensor, bits: int) -> Tensor:
    """``x`` (any shape, in [0, 1]) with ``2 ** bits`` gray values: each rounded down to the start of its part of the range."""
    levels = 1 << bits
    return (x.clamp(0, 1) * levels).floor().clamp(max=levels - 1) / levels


def equalize(x: Tensor, bins: int = 256) -> Tensor:
    """Histogram equalisation of each sample and channel: a gray value becomes the share of voxels in lower bins, scaled to [0, 1].

    Args:
        x: (B, C, *spatial) in [0, 1].
        bins: bins of equal width.

    Returns:
        (B, C, *spatial) float32 in [0, 1], monotone in ``x``; a constant channel stays as it is.
    """
    rows = x.float().flatten(2).flatten(0, 1)
    index = (rows.clamp(0, 1) * bins).long().clamp(max=bins - 1)
    changed = []
    for row, place in zip(rows, index, strict=True):
        counts = torch.bincount(place, minlength=bins)
        below = counts.cumsum(0) - counts
        top = below[place.max()]
        changed.append(row if top == 0 else below[place].to(row.dtype) / top)
    return torch.stack(changed).view(x.shape)
