"""Erasing axis-aligned boxes of an image (Cutout: DeVries and Taylor, 2017)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def box_mask(shape: Sequence[int], centers: Tensor, edges: Sequence[int]) -> Tensor:
    """Where boxes lie: on each axis the voxels ``center - edge // 2`` to ``center + edge // 2 - 1``, cut off at the border.

    Half the edge is rounded down, as in the released code: an odd edge of 15 erases 14 voxels.

    Args:
        shape: spatial sides.
        centers: (n, ndim) integer voxel positions.
        edges: edge of the boxes on each axis, in voxels.

    Returns:
        (*shape) bool on the device of ``centers``: True inside any box.
    """
    inside = torch.ones((len(centers), *shape), dtype=torch.bool, device=centers.device)
    for axis, (side, edge) in enumerate(zip(shape, edges, strict=True)):
        position = torch.arange(side, device=centers.device)
        first = (centers[:, axis] - edge // 2)[:, None]
        along = (position >= first) & (position < first + 2 * (edge // 2))
        inside &= along.view(len(centers), *[side if a == axis else 1 for a in range(len(shape))])
    return inside.any(dim=0)
