"""The 3D convolution on CPUs: the same sums, routed around two slow kernels of PyTorch (``benchmarks/conv_step.py``) and a wrong one."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.ops.precision import rounds_products

ONEDNN_LIMIT = 20_480
"""PyTorch takes a single fp32 sample of at most this C·D·H away from oneDNN, to a kernel several times slower."""
NARROW = 16
"""With fewer channels oneDNN's blocked layout is mostly padding and its weight gradient slow; channels-last is not."""


def cpu_conv3d(x: Tensor, weight: Tensor, *, stride: int, dilation: int) -> Tensor:
    """Bias-free 3D convolution of (B, in, D, H, W), cubic odd kernel, "same" padding: (B, out, D', H', W').

    Equal to ``F.conv3d`` up to the rounding of sums, derivatives of any order included; the result is contiguous.
    """
    if _wrong_in_bf16(x, stride, dilation):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):
            return cpu_conv3d(x.float(), weight.float(), stride=stride, dilation=dilation).to(dtype)
    padding = dilation * (weight.shape[2] // 2)
    narrow = min(weight.shape[:2]) < NARROW
    if narrow:
        x = _to_channels_last(x)
    if _leaves_onednn(x):
        out = _conv_by_halves(x, weight, stride, dilation, padding)
    else:
        out = F.conv3d(x, weight, None, stride, padding, dilation)
    return _to_contiguous(out) if narrow else out


def _wrong_in_bf16(x: Tensor, stride: int, dilation: int) -> bool:
    """With two planes, stride and dilation 1, oneDNN's bfloat16 weight gradient reads memory that nobody wrote (PyTorch 2.13, AVX512-BF16;
    all other depths up to 8 agree with fp32): such a layer is small, and computed in fp32."""
    lower = torch.is_autocast_enabled("cpu") or x.dtype == torch.bfloat16
    return lower and x.shape[2] == 2 and stride == dilation == 1


def _leaves_onednn(x: Tensor) -> bool:
    small = x.shape[0] == 1 and x[0, :, :, :, 0].numel() <= ONEDNN_LIMIT
    fp32 = rounds_products() if torch.is_autocast_enabled("cpu") else x.dtype == torch.float32
    return small and fp32


def _conv_by_halves(x: Tensor, weight: Tensor, stride: int, dilation: int, padding: int) -> Tensor:
    """One sample as a batch of two: the halves of its output along z, each from the input planes it needs."""
    x = F.pad(x, (0, 0, 0, 0, padding, padding))
    reach = dilation * (weight.shape[2] - 1) + 1
    planes = (x.shape[2] - reach) // stride + 1
    half = (planes + 1) // 2
    size = (half - 1) * stride + reach
    halves = torch.cat((x.narrow(2, 0, size), x.narrow(2, (planes - half) * stride, size)))
    out = F.conv3d(halves, weight, None, stride, (0, padding, padding), dilation)
    return torch.cat((out[:1], out[1:, :, 2 * half - planes :]), 2)


class _Relayout(torch.autograd.Function):
    """Change of memory format whose gradient comes back in the format of the input, as its producer wants it."""

    @staticmethod
    def forward(x: Tensor, to: torch.memory_format, back: torch.memory_format) -> Tensor:
        return x.clone(memory_format=to)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.to, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _apply(gradient, ctx.back, ctx.to), None, None


def _apply(x: Tensor, to: torch.memory_format, back: torch.memory_format) -> Tensor:
    out: Tensor = _Relayout.apply(x, to, back)  # type: ignore[no-untyped-call]
    return out


def _to_channels_last(x: Tensor) -> Tensor:
    return _apply(x, torch.channels_last_3d, torch.contiguous_format)


def _to_contiguous(x: Tensor) -> Tensor:
    return _apply(x, torch.contiguous_format, torch.channels_last_3d)
