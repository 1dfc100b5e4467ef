"""The style of a feature map: its mean and standard deviation by sample and channel, and giving it another one."""

import torch
from torch import Tensor

from dgbench.ops.select import per_case, where_case


def channel_statistics(x: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean and ``sqrt(variance + eps)`` (variance with N - 1) over the spatial axes.

    Args:
        x: (B, C, *spatial) features, any dtype; at least two voxels.
        eps: added to the variance.

    Returns:
        Two tensors (B, C, 1, ...) that broadcast over ``x``, in float32 (float64 for float64).
    """
    x = x if x.dtype == torch.float64 else x.float()
    dims = tuple(range(2, x.ndim))
    return x.mean(dims, keepdim=True), (x.var(dims, keepdim=True, correction=1) + eps).sqrt()


def restyle(
    x: Tensor, mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor, share: Tensor, *, active: Tensor
) -> Tensor:
    """Features with a mixture of their own style and another (MixStyle: Zhou et al., ICLR 2021, Eqs. 4 to 6).

    Args:
        x: (B, C, *spatial) features.
        mean, std: their style, as :func:`channel_statistics` gives it; it is taken as given, so detach it where no gradient is wanted.
        other_mean, other_std: the other style, of the same shape.
        share: (B,) share of the own style, in [0, 1].
        active: (B,) bool; a sample that is not active stays as it is.

    Returns:
        (B, C, *spatial) of the dtype of ``x``.
    """
    own = per_case(share.to(mean), x)
    mixed = (x - mean) / std * (own * std + (1 - own) * other_std) + own * mean + (1 - own) * other_mean
    return where_case(active, mixed.to(x.dtype), x)
