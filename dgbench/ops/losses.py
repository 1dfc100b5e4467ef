"""Losses of the dual-task framework, each a mean over samples, safe in mixed precision (computed in float32 or wider)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_loss(probabilities: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """Soft Dice loss, first part of Eq. 2: 1 - mean of (2 sum(pY) + eps) / (sum p + sum Y + eps), no squares.

    Args:
        probabilities: (B, C, *spatial) in [0, 1].
        target: (B, C, *spatial) in {0, 1}.
        eps: smoothing, the release's 1e-6 (the paper has none); an empty prediction of an empty target has loss 0.

    Returns:
        Scalar in [0, 1]; sums run over the voxels of each sample and channel, the mean over samples and channels.
    """
    p, y = _wide(probabilities).flatten(2), _wide(target).flatten(2)
    overlap = (2 * (p * y).sum(2) + eps) / (p.sum(2) + y.sum(2) + eps)
    return 1 - overlap.mean()


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice plus binary cross-entropy (Eq. 2), the latter from logits and averaged over all voxels of the batch.

    Args:
        logits: (B, C, *spatial), unbounded.
        target: (B, C, *spatial) in {0, 1}.

    Returns:
        Scalar, non-negative.
    """
    wide = _wide(logits)
    return dice_loss(torch.sigmoid(wide), target) + F.binary_cross_entropy_with_logits(wide, target.to(wide.dtype))


def slice_labels(mask: Tensor, min_voxels: int = 10) -> Tensor:
    """Whether each axial slice shows the target: more than ``min_voxels`` voxels (released framework; C in Eq. 3).

    Args:
        mask: (B, 1, D, H, W), or (B, 1, H, W) for one slice, in {0, 1}.
        min_voxels: largest count that still is a negative slice.

    Returns:
        (B, D) float32 in {0, 1}; D = 1 for a 2D batch.

    Raises:
        ValueError: more than one channel.
    """
    if mask.shape[1] != 1:
        raise ValueError(f"slice_labels takes a mask of one channel, not shape {tuple(mask.shape)}")
    return (_wide(mask).sum((-2, -1)) > min_voxels).flatten(1).float()


def slice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of the slice classifier (the terms L(c, C) of Eq. 3), mean over slices and samples.

    Args:
        logits: (B, D), one per slice.
        labels: (B, D) from :func:`slice_labels`.

    Returns:
        Scalar, non-negative.
    """
    wide = _wide(logits)
    return F.binary_cross_entropy_with_logits(wide, labels.to(wide.dtype))


def distance_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """L1 distance to the signed distance map (Eq. 5), over the samples that have one.

    Args:
        predicted: (B, 1, *spatial) distances.
        target: (B, 1, *spatial) from :func:`dgbench.ops.distance.signed_distance_batch`.
        valid: (B,) bool; the other samples take no part.

    Returns:
        Scalar, non-negative: the mean over voxels and valid samples; 0 (with zero gradient) if there is none.
    """
    per_sample = (_wide(predicted) - _wide(target)).abs().flatten(1).mean(1)
    return torch.where(valid, per_sample, torch.zeros_like(per_sample)).sum() / valid.sum().clamp(min=1)


def consistency_loss(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference of the outputs of two views (one term of Eq. 10); no side is detached.

    Args:
        first: probabilities or distances of view 1, any shape.
        second: the same of view 2.

    Returns:
        Scalar, non-negative.
    """
    return F.mse_loss(_wide(first), _wide(second))


def view_divergence(logits: Sequence[Tensor]) -> Tensor:
    """Mean over views of KL(p_j || p_mean): RandConv's consistency term for any number of views (Xu et al., Eq. 4).

    One channel is read as a Bernoulli probability (sigmoid), several as a categorical one (softmax over channels).

    Args:
        logits: one (B, C, *spatial) tensor per view.

    Returns:
        Scalar in [0, log(number of views)] nats: summed over classes, averaged over voxels, samples and views.
    """
    views = torch.stack([_wide(z) for z in logits])
    if views.shape[2] == 1:
        log_p = torch.cat([F.logsigmoid(views), F.logsigmoid(-views)], dim=2)
    else:
        log_p = F.log_softmax(views, dim=2)
    log_mean = log_p.exp().mean(0, keepdim=True).clamp(min=1e-7).log()
    return (log_p.exp() * (log_p - log_mean)).sum(2).mean()


def _wide(x: Tensor) -> Tensor:
    """At least float32: sums over millions of voxels overflow in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
