"""Cross-view contrastive learning between tumor and surrounding tissue (dual-task paper, III.C, Eqs. 8 and 9).

:func:`sample_positions` chooses cells of a feature map by the label, :func:`features_at` reads them, :func:`info_nce`
pulls together what has the same label. Features of both views go into one call, which makes cross-view pairs.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Denominator = Literal["release", "paper"]

_NO_DIRECTION = 1e-6
"""Embeddings with a smaller norm count as orthogonal to all; a ReLU projection can return exact zeros."""

_RING_BOX = (10, 20)
"""Smallest and largest in-plane side (voxels) of the box that dilates a lesion to its surroundings."""

_RING_DEPTH_LESS = 3
"""The dilating box is this many voxels shorter along z."""


def info_nce(features: Tensor, labels: Tensor, *, temperature: float, denominator: Denominator) -> Tensor:
    """InfoNCE over all pairs of one label, with cosine similarity s and temperature t.

    ``"release"`` (NT-Xent): mean over ordered pairs (a, p) of -log(e^{s_ap/t} / (e^{s_ap/t} + sum_n e^{s_an/t})), n
    running over the other labels. ``"paper"`` (Eqs. 8 and 9 as written): the denominator holds the negatives only,
    the pairs are i < j with i as the anchor, and the sum is divided by 2 N_C, N_C being the number of these pairs; it
    can be negative.

    Args:
        features: (N, C) embeddings, not necessarily normalised.
        labels: (N,) integers.
        temperature: t > 0; 0.05 in the release.
        denominator: see above.

    Returns:
        Scalar, float32 or wider. Zero, with zero gradient, if there is no pair of one label or no second label.

    Raises:
        ValueError: unknown ``denominator``, temperature not positive, or shapes that do not fit.
    """
    if denominator not in get_args(Denominator):
        raise ValueError(f"denominator {denominator!r} is unknown — use one of {', '.join(get_args(Denominator))}")
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} must be positive")
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"info_nce: features {tuple(features.shape)} and labels {tuple(labels.shape)} do not fit")
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    same = labels[:, None] == labels[None, :]
    pairs = same.triu(1) if denominator == "paper" else same.triu(1) | same.tril(-1)
    if not pairs.any() or same.all():
        return wide.sum() * 0.0
    norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    unit = wide / torch.where(norm > _NO_DIRECTION, norm, torch.ones_like(norm))
    similarity = unit @ unit.T / temperature
    negatives = torch.logsumexp(similarity.masked_fill(same, -torch.inf), dim=1)
    anchor, positive = pairs.nonzero(as_tuple=True)
    score = similarity[anchor, positive]
    if denominator == "paper":
        return (negatives[anchor] - score).mean() / 2
    return (torch.logaddexp(score, negatives[anchor]) - score).mean()


class Positions(NamedTuple):
    """Cells of a feature map, int64 index rows (z, y, x) on the CPU; (y, x) for a 2D map."""

    positive: Tensor
    """(P, ndim) cells in the tumor."""
    negative: Tensor
    """(Q, ndim) cells in the tissue around it."""


def sample_positions(
    mask: Tensor,
    generator: torch.Generator,
    *,
    stride: int = 8,
    positive_min_cells: int = 5,
    negative_min_cells: int = 5,
    release_bug: bool = False,
) -> Positions:
    """Choose feature cells in the tumor and around it, at most one of each per feature slice (released scheme).

    The mask is read on the feature grid by striding. Positives: in each feature slice with enough tumor cells, one
    cell of the 3D (Lee) skeleton. Negatives: in each slice with enough cells of the ring around the tumor (a box
    dilation by 5 to 10 voxels, less the tumor), one cell of the ring's 2D skeleton. Where no slice has enough cells,
    the number asked for is lowered step by step to 1, for either class. Where thinning leaves nothing (a block of
    2×2×2 or 4×4 cells), all cells are candidates.

    Args:
        mask: (D, H, W) zeros and ones, or (H, W), which is treated as one slice.
        generator: source of the draws, on any device; one call per view.
        stride: voxels per feature cell.
        positive_min_cells: tumor cells that a slice needs (10 in the release's pancreas stage).
        negative_min_cells: ring cells that a slice needs.
        release_bug: do as the released code does. Its bound on a negative's column is taken from the depth, and a
            rejected cell becomes the corner (0, 0) of its slice, so that on flat crops nearly all negatives are
            corners. Its positives avoid the last row and column, and nothing replaces an empty skeleton.

    Returns:
        :class:`Positions`; either set may be empty (no tumor cell on the grid; no ring), and then there is nothing to
        contrast.

    Raises:
        ValueError: the mask is not 2D or 3D.
    """
    if mask.ndim not in (2, 3):
        raise ValueError(f"sample_positions takes a (D, H, W) or (H, W) mask, not shape {tuple(mask.shape)}")
    volume = mask.detach() if mask.ndim == 3 else mask.detach()[None]
    cells = (volume[::stride, ::stride, ::stride] > 0).cpu().numpy()
    ring = _dilated_cells(volume, stride, generator) & ~cells
    depth, height, width = cells.shape

    lines = _skeleton(cells, or_all=not release_bug)
    ring_lines = np.stack([_skeleton(plane, or_all=not release_bug) for plane in ring])
    positive_bounds = (height - 1, width - 1) if release_bug else None
    negative_bounds = (height - 1, depth - 1) if release_bug else None
    positive = _one_per_slice(cells, lines, cells, positive_min_cells, positive_bounds, generator)
    negative = _one_per_slice(ring, ring_lines, ~cells, negative_min_cells, negative_bounds, generator)
    skipped = 3 - mask.ndim
    return Positions(positive[:, skipped:], negative[:, skipped:])


def features_at(features: Tensor, positions: Tensor) -> Tensor:
    """Read a feature map at cells.

    Args:
        features: (C, *cells) map of one sample.
        positions: (N, ndim) index rows from :func:`sample_positions`.

    Returns:
        (N, C) embeddings, differentiable.
    """
    flat = torch.from_numpy(np.ravel_multi_index(tuple(positions.cpu().numpy().T), tuple(features.shape[1:])))
    return features.flatten(1)[:, flat.to(features.device)].T


def _dilated_cells(volume: Tensor, stride: int, generator: torch.Generator) -> NDArray[np.bool_]:
    """The dilated mask on the feature grid: a strided box maximum. The box is drawn per call."""
    side = _draw(_RING_BOX[0], _RING_BOX[1] + 1, generator)
    box = (side - _RING_DEPTH_LESS, side, side)
    pooled = F.max_pool3d((volume > 0).float()[None, None], box, stride, [length // 2 for length in box])[0, 0]
    shape = [-(-length // stride) for length in volume.shape]
    return (pooled[: shape[0], : shape[1], : shape[2]] > 0).cpu().numpy()


def _skeleton(cells: NDArray[np.bool_], *, or_all: bool) -> NDArray[np.bool_]:
    """Medial cells of a 2D or 3D mask; ``or_all``: the mask itself where thinning leaves none."""
    from skimage.morphology import skeletonize

    if not cells.any():
        return cells
    lines: NDArray[np.bool_] = skeletonize(cells, method="lee" if cells.ndim == 3 else "zhang") > 0
    return cells if or_all and not lines.any() else lines


def _one_per_slice(
    region: NDArray[np.bool_],
    candidates: NDArray[np.bool_],
    accepted: NDArray[np.bool_],
    min_cells: int,
    bounds: Sequence[int] | None,
    generator: torch.Generator,
) -> Tensor:
    """One random candidate in each slice that has ``min_cells`` of the region, or fewer if no slice yields any: (N, 3).

    With ``bounds`` (rows, columns), a cell at or beyond them becomes the corner; a cell that is not ``accepted`` is
    dropped.
    """
    for enough in range(min_cells, 0, -1):
        chosen = []
        for z in np.flatnonzero(region.sum((1, 2)) >= enough):
            options = np.argwhere(candidates[z])
            if not len(options):
                continue
            row, column = options[_draw(0, len(options), generator)].tolist()
            if bounds is not None and (row >= bounds[0] or column >= bounds[1]):
                row, column = 0, 0
            if accepted[z, row, column]:
                chosen.append((int(z), row, column))
        if chosen:
            return torch.tensor(chosen)
    return torch.empty((0, 3), dtype=torch.int64)


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    """A uniform integer in [low, high)."""
    return int(torch.randint(low, high, (1,), generator=generator, device=generator.device).item())
