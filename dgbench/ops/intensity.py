"""Bringing perturbed intensities back to a known range, sample by sample."""

from typing import Literal, get_args

import torch
from torch import Tensor

Rescale = Literal["none", "clamp", "minmax", "clamp-minmax"]
"""What follows a perturbation: nothing, a clamp to [0, 1], a per-sample min-max to [0, 1], or both in that order."""


def min_max_rescale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Map each sample linearly onto [0, 1] by its own minimum and maximum (over channels and voxels).

    Args:
        x: (B, C, *spatial) image, any finite range.

    Returns:
        The image in [0, 1], same shape, and ``degenerate`` (B,) bool: True where a sample is constant or not
        finite, so that no such map exists. It comes back as zeros; the caller decides what replaces it.
    """
    dims = tuple(range(1, x.ndim))
    low = x.amin(dims, keepdim=True)
    extent = x.amax(dims, keepdim=True) - low
    usable = torch.isfinite(extent) & (extent > 0)
    scaled = (x - low) / torch.where(usable, extent, torch.ones_like(extent))
    return torch.where(usable, scaled, torch.zeros_like(scaled)), ~usable.flatten()


def rescale(x: Tensor, mode: Rescale) -> tuple[Tensor, Tensor]:
    """Bring an image back to range after a perturbation (the released dual-task framework uses ``"clamp-minmax"``).

    Args:
        x: (B, C, *spatial) image.
        mode: see :data:`Rescale`.

    Returns:
        The image and ``degenerate`` (B,) bool as in :func:`min_max_rescale`; all False without a min-max.

    Raises:
        ValueError: unknown ``mode``.
    """
    if mode not in get_args(Rescale):
        raise ValueError(f"rescale mode {mode!r} is unknown — use one of {', '.join(get_args(Rescale))}")
    if mode in ("clamp", "clamp-minmax"):
        x = x.clamp(0.0, 1.0)
    if mode in ("minmax", "clamp-minmax"):
        return min_max_rescale(x)
    return x, torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
