"""Triplet losses: embeddings of one label closer to each other than to those of another, by a margin."""

import torch
from torch import Tensor


def semi_hard_triplet_loss(features: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    """Mean over ordered pairs (a, p) of one label of max(0, margin + d_ap - d_an), with squared Euclidean distance d and a semi-hard
    negative n (Schroff et al., CVPR 2015, section 3.2, in the form that takes every positive pair of the batch).

    n is the nearest of another label that is farther from a than p; where none is farther, it is the farthest of another label.

    Args:
        features: (N, C) embeddings, not normalised.
        labels: (N,) integers.
        margin: in units of d, positive.

    Returns:
        Scalar, float32 or wider. Zero, with zero gradient, if there is no pair of one label or no second label.

    Raises:
        ValueError: margin not positive, or shapes that do not fit.
    """
    if margin <= 0:
        raise ValueError(f"margin {margin} must be positive")
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"triplet loss: features {tuple(features.shape)} and labels {tuple(labels.shape)} do not fit")
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    same = labels[:, None] == labels[None, :]
    pairs = same.triu(1) | same.tril(-1)
    if not pairs.any() or same.all():
        return wide.sum() * 0.0
    distance = (wide[:, None] - wide[None, :]).square().sum(2)
    to_anchor = distance[:, None, :].expand(-1, len(labels), -1)  # (a, p, n)
    farther = ~same[:, None, :] & (to_anchor > distance[:, :, None])
    nearest = to_anchor.masked_fill(~farther, torch.inf).amin(2)
    farthest = distance.masked_fill(same, -torch.inf).amax(1, keepdim=True)
    negative = torch.where(farther.any(2), nearest, farthest)
    return (margin + distance - negative)[pairs].clamp(min=0).mean()
