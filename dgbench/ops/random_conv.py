"""Random convolution: new local texture, same anatomy (Xu et al., ICLR 2021; Eq. 1 of the dual-task paper)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def convolve_and_mix(x: Tensor, weight: Tensor, bias: Tensor | None = None, alpha: float | Tensor = 1.0) -> Tensor:
    """``alpha * (weight * x + bias) + (1 - alpha) * x`` with zero padding and stride 1 (dual-task paper, Eq. 1).

    Args:
        x: (B, C, *spatial) image.
        weight: (C, C, *kernel) filter with odd kernel sides.
        bias: (C,) or None.
        alpha: share of the convolved image, in [0, 1].

    Returns:
        (B, C, *spatial) image; its range is not bounded, see :func:`dgbench.ops.intensity.rescale`.
    """
    padding = [side // 2 for side in weight.shape[2:]]
    return alpha * _CONV[x.ndim - 2](x, weight, bias, padding=padding) + (1 - alpha) * x


def draw_kernel(
    channels: int, ndim: int, generator: torch.Generator, *, kernel_sizes: Sequence[int], bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Draw a kernel size k uniformly from ``kernel_sizes`` and a filter with weights N(0, 1 / (channels k^ndim)).

    That is the Kaiming-normal initialisation with gain 1 (Xu et al., section 3.1). The bias, as in the released
    dual-task framework, is U(-b, b) with b = (channels k^ndim)^-1/2.

    Args:
        channels: channels in and out.
        ndim: number of spatial axes.
        generator: source of all draws; its device is that of the result.
        kernel_sizes: odd sides k of the cubic filters to choose from.
        bias: whether to draw a bias.

    Returns:
        float32 weight (channels, channels, k, ..., k) and bias (channels,) or None.

    Raises:
        ValueError: no kernel size, or one that is even or not positive.
    """
    if not kernel_sizes or any(k < 1 or k % 2 == 0 for k in kernel_sizes):
        raise ValueError(f"kernel_sizes {tuple(kernel_sizes)} must be odd positive integers, at least one")
    device = generator.device
    k = kernel_sizes[int(torch.randint(len(kernel_sizes), (1,), generator=generator, device=device).item())]
    scale = float(channels * k**ndim) ** -0.5
    weight = torch.randn((channels, channels) + (k,) * ndim, generator=generator, device=device) * scale
    if not bias:
        return weight, None
    return weight, (2 * torch.rand(channels, generator=generator, device=device) - 1) * scale


def random_conv(
    x: Tensor,
    generator: torch.Generator,
    *,
    kernel_sizes: Sequence[int] = (1, 3, 5, 7),
    bias: bool = False,
    mix: bool = True,
    identity_probability: float = 0.0,
    per_sample: bool = False,
) -> Tensor:
    """One random convolution of an image, optionally mixed with it (Xu et al., Alg. 1; dual-task paper, Eq. 1).

    The defaults are the paper's RC_mix. RC_img is ``mix=False, identity_probability=0.5``. The released dual-task
    framework uses ``kernel_sizes=(3, 5, 7), bias=True`` followed by ``rescale(x, "clamp-minmax")``.

    Args:
        x: (B, C, *spatial) image with 1 to 3 spatial axes.
        generator: source of all draws, on any device (one on the CPU draws the same for ``x`` on any device); the
            global generator is never touched.
        kernel_sizes: odd sides of the cubic filter, one drawn uniformly per draw.
        bias: add a random bias.
        mix: mix with alpha ~ U(0, 1); otherwise the convolved image alone.
        identity_probability: chance that ``x`` is returned unchanged.
        per_sample: one draw per sample, in batch order, instead of one for the whole batch.

    Returns:
        (B, C, *spatial) image of the dtype of ``x``; intensities may leave its range.
    """
    if per_sample and len(x) > 1:
        draw = partial(
            random_conv,
            generator=generator,
            kernel_sizes=kernel_sizes,
            bias=bias,
            mix=mix,
            identity_probability=identity_probability,
        )
        return torch.cat([draw(sample[None]) for sample in x])
    channels, ndim = x.shape[1], x.ndim - 2
    weight, offset = draw_kernel(channels, ndim, generator, kernel_sizes=kernel_sizes, bias=bias)
    alpha, chance = torch.rand(2, generator=generator, device=generator.device)
    if chance < identity_probability:
        return x
    offset = None if offset is None else offset.to(x)
    return convolve_and_mix(x, weight.to(x), offset, alpha.to(x) if mix else 1.0)
