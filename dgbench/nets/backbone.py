"""The backbone every method shares: a residual U-Net with weight standardisation (dual-task paper, Fig. 2)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from dgbench.errors import DgbenchError, suggest
from dgbench.nets.blocks import GROUPS, ResBlock, norm_relu, norm_relu_conv, point_conv, ws_conv
from dgbench.nets.upsample import UPSAMPLE

Tap = Callable[[str, Tensor], Tensor]
"""Called with the name of a stage and its output (B, C, *spatial); what it returns goes on through the network."""


@dataclass(frozen=True)
class Features:
    """What the heads of a method read.

    ``encoder`` is the output of layer4, (B, 8·width, *(spatial / 8)); ``decoder`` the last decoder feature at full
    resolution, (B, width, *spatial). The segmentation logits are ``backbone.head(features.decoder)``.
    """

    encoder: Tensor
    decoder: Tensor


class Backbone(nn.Module):
    """Residual U-Net of the paper's release: five encoder stages, the last one dilated, skips joined by sums.

    ``ndim`` is 2 or 3; ``width`` the channels at full resolution (32 in the paper, any multiple of 8); ``upsample`` is
    "trilinear" (multilinear in ``ndim`` axes, paper) or "nearest" (release). With one input and one output channel at
    width 32 in 3D it has 18,957,825 parameters. Raises :class:`DgbenchError` for any other setting.
    """

    TAPS: ClassVar[tuple[str, ...]] = (
        "stem",
        "layer0",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "fusion",
        "up3",
        "up2",
        "up1",
    )
    stride: ClassVar[int] = 8

    def __init__(
        self,
        *,
        ndim: int = 3,
        in_channels: int = 1,
        out_channels: int = 1,
        width: int = 32,
        upsample: str = "trilinear",
    ) -> None:
        super().__init__()
        if ndim not in (2, 3):
            raise DgbenchError(f"backbone: ndim is {ndim} — choose 2 or 3")
        if width < GROUPS or width % GROUPS:
            raise DgbenchError(f"backbone: width is {width} — choose a positive multiple of {GROUPS} (group norm)")
        if min(in_channels, out_channels) < 1:
            raise DgbenchError(f"backbone: {in_channels} input and {out_channels} output channels — both must be ≥ 1")
        if upsample not in UPSAMPLE:
            raise DgbenchError(f"backbone: unknown upsample {upsample!r}{suggest(upsample, UPSAMPLE)}")
        self.ndim, self.in_channels, self.out_channels, self.width = ndim, in_channels, out_channels, width
        self.upsample = UPSAMPLE[upsample]
        """Doubles every side of (B, C, *spatial)."""
        w, w2, w4, w8 = width, 2 * width, 4 * width, 8 * width
        self.channels: Mapping[str, int] = dict(zip(self.TAPS, (w, w, w2, w4, w8, w8, w4, w2, w, w), strict=True))
        """Channels of the tensor at each tap."""
        self.listener: Callable[[Features], None] | None = None
        """Told what :meth:`features` returns; for looking at a trained network, not for training it."""
        self.stem = ws_conv(ndim, in_channels, w, 3)
        self.layer0 = ResBlock(ndim, w, w)
        self.down1 = norm_relu_conv(ndim, w, w2, stride=2)
        self.layer1 = _pair(ndim, w2)
        self.down2 = norm_relu_conv(ndim, w2, w4, stride=2)
        self.layer2 = _pair(ndim, w4)
        self.down3 = norm_relu_conv(ndim, w4, w8, stride=2)
        self.layer3 = _pair(ndim, w8)
        self.layer4 = _pair(ndim, w8, dilation=2)
        dropout = nn.Dropout2d(0.1) if ndim == 2 else nn.Dropout3d(0.1)
        self.fusion = nn.Sequential(*norm_relu(w8), dropout, ws_conv(ndim, w8, w4, 3))
        self.up3 = ResBlock(ndim, w4, w2)
        self.up2 = ResBlock(ndim, w2, w)
        self.up1 = ResBlock(ndim, w, w)
        self.head = point_conv(ndim, w, out_channels)

    def features(self, x: Tensor, tap: Tap | None = None) -> Features:
        """Encoder and decoder features of (B, in_channels, *spatial), every spatial side a multiple of ``stride``.

        ``tap`` is called after each stage of ``TAPS``, in that order; the tensor it returns replaces the stage's
        output, also where a skip connection or ``Features`` reads it. Raises :class:`DgbenchError` on a wrong shape.
        """
        self._check(x)
        tap = tap or _no_tap
        skip1 = tap("layer0", self.layer0(tap("stem", self.stem(x))))
        skip2 = tap("layer1", self.layer1(self.down1(skip1)))
        skip3 = tap("layer2", self.layer2(self.down2(skip2)))
        encoder = tap("layer4", self.layer4(tap("layer3", self.layer3(self.down3(skip3)))))
        up3 = tap("up3", self.up3(self.upsample(tap("fusion", self.fusion(encoder))) + skip3))
        up2 = tap("up2", self.up2(self.upsample(up3) + skip2))
        decoder = tap("up1", self.up1(self.upsample(up2) + skip1))
        features = Features(encoder, decoder)
        if self.listener is not None:
            self.listener(features)
        return features

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        """Segmentation logits (B, out_channels, *spatial) of (B, in_channels, *spatial); see :meth:`features`."""
        logits: Tensor = self.head(self.features(x, tap).decoder)
        return logits

    def _check(self, x: Tensor) -> None:
        if x.ndim != self.ndim + 2 or x.shape[1] != self.in_channels:
            axes = "D, H, W" if self.ndim == 3 else "H, W"
            raise DgbenchError(f"backbone: input is {tuple(x.shape)} — give (batch, {self.in_channels}, {axes})")
        if any(side == 0 or side % self.stride for side in x.shape[2:]):
            sides = "×".join(map(str, x.shape[2:]))
            raise DgbenchError(f"backbone: input grid {sides} — every side must be a multiple of {self.stride}; pad it")


def _pair(ndim: int, channels: int, *, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(ndim, channels, channels, dilation=dilation) for _ in range(2)))


def _no_tap(name: str, x: Tensor) -> Tensor:
    return x
