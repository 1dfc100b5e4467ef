"""Histograms of oriented gradients (Dalal and Triggs, CVPR 2005), as scikit-image defines them."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-5


def cell_histograms(image: Tensor, cell: int, orientations: int = 9) -> Tensor:
    """Mean gradient magnitude by unsigned orientation in cells of ``cell`` x ``cell`` pixels.

    Gradients are differences of the two neighbours (not halved), 0 at the border; of several channels the one with the largest
    magnitude counts, pixel by pixel. Bin i holds orientations from ``180 i / orientations`` degrees (0: values change along the last axis).

    Args:
        image: (N, C, H, W); pixels beyond the last whole cell are left out.
        cell: side of a cell.
        orientations: number of bins.

    Returns:
        (N, orientations, H // cell, W // cell).
    """
    rows, columns = torch.zeros_like(image), torch.zeros_like(image)
    rows[..., 1:-1, :] = image[..., 2:, :] - image[..., :-2, :]
    columns[..., 1:-1] = image[..., 2:] - image[..., :-2]
    magnitude = torch.hypot(rows, columns)
    if image.shape[1] > 1:
        strongest = magnitude.argmax(1, keepdim=True)
        rows, columns, magnitude = (part.gather(1, strongest) for part in (rows, columns, magnitude))
    angle = torch.rad2deg(torch.atan2(rows, columns)) % 180
    # no upper end: in float32 the remainder of a small negative angle is 180
    edges = [*(180 / orientations * i for i in range(orientations)), math.inf]
    bins = torch.cat([magnitude * ((angle >= low) & (angle < high)) for low, high in pairwise(edges)], 1)
    return F.avg_pool2d(bins, cell)


def normalise(blocks: Tensor, norm: str = "L2-Hys") -> Tensor:
    """Each vector along axis 1 divided by its length: ``L1``, ``L2``, or ``L2-Hys`` (clipped at 0.2 and divided again)."""
    if norm == "L1":
        return blocks / (blocks.abs().sum(1, keepdim=True) + _EPS)
    scaled = blocks / (blocks.square().sum(1, keepdim=True) + _EPS**2).sqrt()
    if norm == "L2":
        return scaled
    clipped = scaled.clamp(max=0.2)
    return clipped / (clipped.square().sum(1, keepdim=True) + _EPS**2).sqrt()


def blocks_of(cells: Tensor) -> Tensor:
    """Blocks of 2 x 2 neighbouring cells, normalised by L2-Hys.

    Args:
        cells: (N, orientations, h, w).

    Returns:
        (N, 4 * orientations, h - 1, w - 1); the four cells row by row, each with its orientations, as scikit-image orders them.
    """
    h, w = cells.shape[2:]
    four = [cells[:, :, i : h - 1 + i, j : w - 1 + j] for i in (0, 1) for j in (0, 1)]
    return normalise(torch.cat(four, 1))


def hog_vector(image: Tensor, *, cell: int = 16, orientations: int = 9, size: tuple[int, int] = (128, 64)) -> Tensor:
    """The descriptor of whole images: resized (bilinear) to ``size``, blocks row by row, each with its 2 x 2 cells.

    Args:
        image: (N, C, H, W).
        cell: side of a cell.
        orientations: number of bins.
        size: height and width of the resized image.

    Returns:
        (N, length): 756 for cells of 16 and 9 orientations, 3780 for cells of 8.
    """
    resized = image
    if tuple(image.shape[2:]) != size:
        resized = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
    return blocks_of(cell_histograms(resized, cell, orientations)).permute(0, 2, 3, 1).flatten(1)


def hog_length(cell: int, orientations: int, size: tuple[int, int] = (128, 64)) -> int:
    """Length of :func:`hog_vector`."""
    return math.prod(side // cell - 1 for side in size) * 4 * orientations


def hog_map(image: Tensor, *, cell: int = 8, orientations: int = 9) -> Tensor:
    """The normalised block that begins at each cell, in the plane of the last two axes, averaged over ``cell`` slices of a volume.

    The last row and column of cells are repeated, so that every cell has a block.

    Args:
        image: (B, C, H, W) or (B, C, D, H, W), every side a multiple of ``cell``.
        cell: side of a cell, also through slices.
        orientations: number of bins.

    Returns:
        (B, 4 * orientations, *(spatial / cell)).
    """
    if image.ndim == 4:
        cells = cell_histograms(image, cell, orientations)
        return blocks_of(F.pad(cells, (0, 1, 0, 1), mode="replicate"))
    batch, _, depth = image.shape[:3]
    flat = hog_map(image.transpose(1, 2).flatten(0, 1), cell=cell, orientations=orientations)
    return flat.view(batch, depth // cell, cell, *flat.shape[1:]).mean(2).transpose(1, 2)
