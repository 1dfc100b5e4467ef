"""Task conversion: from a signed distance map to a segmentation (dual-task paper, Eq. 6)."""

from typing import Literal, get_args

import torch
from torch import Tensor

Conversion = Literal["hard", "smooth", "release"]

RELEASE_UPPER_THRESHOLD = 0.999999
"""Distances above this pass unchanged through the released framework's two chained thresholds."""


def distance_to_mask(m: Tensor, mode: Conversion, *, k: float = 10.0) -> Tensor:
    """Convert a signed distance map (negative inside) to a foreground map.

    ==========  ========================================================================================================
    mode        value
    ==========  ========================================================================================================
    "hard"      Eq. 6: 1 where m <= 0, else 0. Stays in the graph with a gradient of exactly zero, so a loss on it
                teaches the regression branch nothing.
    "smooth"    sigmoid(-k m), with gradient. An extension, not in the paper; the boundary m = 0 becomes 0.5.
    "release"   what the released framework computes: as "hard", but m itself where m > 0.999999. Voxels predicted as
                far outside thus count as foreground, and only they have a gradient (1).
    ==========  ========================================================================================================

    Args:
        m: signed distances, any shape; in [-1, 1] for a tanh head.
        mode: see above.
        k: steepness of "smooth" per unit of ``m``, positive; without effect in the other modes.

    Returns:
        Foreground map in [0, 1], shape of ``m``.

    Raises:
        ValueError: unknown ``mode`` or ``k`` not positive.
    """
    if mode not in get_args(Conversion):
        raise ValueError(f"task conversion {mode!r} is unknown — use one of {', '.join(get_args(Conversion))}")
    if k <= 0:
        raise ValueError(f"steepness k = {k} must be positive")
    if mode == "smooth":
        return torch.sigmoid(-k * m)
    hard = 1 - torch.sign(m).clamp(min=0)
    return hard if mode == "hard" else torch.where(m > RELEASE_UPPER_THRESHOLD, m, hard)
