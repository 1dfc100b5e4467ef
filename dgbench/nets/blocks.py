"""Building blocks of the shared network: weight-standardised convolutions and pre-activation residual blocks."""

import torch
from torch import Tensor, nn

from dgbench.nets.cpu import cpu_conv3d

GROUPS = 8


def standardise(weight: Tensor) -> Tensor:
    """Weight standardisation (Qiao et al. 2019): zero mean, unit unbiased variance per output channel, no gain.

    ``weight`` is (out, in, *kernel) with at least two elements per output channel; the result has the same shape.
    """
    variance, mean = torch.var_mean(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
    return (weight - mean) * torch.rsqrt(variance + 1e-12)


class WSConv2d(nn.Conv2d):
    """Bias-free 2D convolution with standardised weights; stride 1 keeps the grid, stride 2 halves even sides."""

    def __init__(self, cin: int, cout: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(cin, cout, kernel, stride=stride, padding=padding, dilation=dilation, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(B, cin, H, W) to (B, cout, H', W')."""
        out: Tensor = self._conv_forward(input, standardise(self.weight), None)
        return out


class WSConv3d(nn.Conv3d):
    """Bias-free 3D convolution with standardised weights; stride 1 keeps the grid, stride 2 halves even sides."""

    def __init__(self, cin: int, cout: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(cin, cout, kernel, stride=stride, padding=padding, dilation=dilation, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(B, cin, D, H, W) to (B, cout, D', H', W')."""
        weight = standardise(self.weight)
        if input.device.type == "cpu":
            return cpu_conv3d(input, weight, stride=self.stride[0], dilation=self.dilation[0])
        out: Tensor = self._conv_forward(input, weight, None)
        return out


def ws_conv(ndim: int, cin: int, cout: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> nn.Module:
    """The weight-standardised convolution for 2 or 3 dimensions."""
    return (WSConv2d if ndim == 2 else WSConv3d)(cin, cout, kernel, stride=stride, dilation=dilation)


def point_conv(ndim: int, cin: int, cout: int) -> nn.Module:
    """Ordinary 1×1 convolution with bias, as the heads use it."""
    return (nn.Conv2d if ndim == 2 else nn.Conv3d)(cin, cout, 1)


def norm_relu(channels: int) -> nn.Sequential:
    """GroupNorm(8, eps 1e-5, affine) and ReLU; ``channels`` is a multiple of 8."""
    return nn.Sequential(nn.GroupNorm(GROUPS, channels, eps=1e-5), nn.ReLU(inplace=True))


def norm_relu_conv(
    ndim: int, cin: int, cout: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Pre-activation convolution GN-ReLU-Conv."""
    return nn.Sequential(*norm_relu(cin), ws_conv(ndim, cin, cout, kernel, stride=stride, dilation=dilation))


class ResBlock(nn.Module):
    """Pre-activation residual block: two GN-ReLU-Conv3, shortcut identity or GN-ReLU-Conv1 where the width changes."""

    def __init__(self, ndim: int, cin: int, cout: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *norm_relu_conv(ndim, cin, cout, dilation=dilation),
            *norm_relu_conv(ndim, cout, cout, dilation=dilation),
        )
        self.shortcut = nn.Identity() if cin == cout else norm_relu_conv(ndim, cin, cout, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, cin, *spatial) to (B, cout, *spatial)."""
        out: Tensor = self.body(x) + self.shortcut(x)
        return out
