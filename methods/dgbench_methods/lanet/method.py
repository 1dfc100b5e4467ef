"""LA-Net, reconstructed: an edge branch whose features are let into the segmentation decoder by gates."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dgbench.method import Batch, Method, Setup, StepContext
from dgbench.nets import ResBlock, point_conv
from dgbench.ops.losses import segmentation_loss
from dgbench.ops.shape import contour, dilate, erode
from dgbench_methods.lanet import INFO, LANetConfig

LEVELS = ("up3", "up2", "up1")
SKIPS = {"up3": "layer2", "up2": "layer1", "up1": "layer0"}


class Gate(nn.Module):
    """Cross-attention of one level: ``s + a · W g`` with ``a = sigmoid(V [s, g])``, one value per voxel and channel."""

    def __init__(self, ndim: int, channels: int) -> None:
        super().__init__()
        self.attend = point_conv(ndim, 2 * channels, channels)
        self.bring = point_conv(ndim, channels, channels)

    def forward(self, segmentation: Tensor, edge: Tensor) -> Tensor:
        """Both (B, C, *spatial)."""
        opened = torch.sigmoid(self.attend(torch.cat([segmentation, edge], 1)))
        let_in: Tensor = opened * self.bring(edge)
        return segmentation + let_in


class FullBranch(nn.Module):
    """An edge decoder like the segmentation's, and a gate at each of its levels."""

    def __init__(self, ndim: int, channels: Mapping[str, int], out: int) -> None:
        super().__init__()
        inputs = [channels[level] for level in ("fusion", *LEVELS[:-1])]
        self.blocks = nn.ModuleDict(
            {level: ResBlock(ndim, cin, channels[level]) for level, cin in zip(LEVELS, inputs, strict=True)}
        )
        self.gates = nn.ModuleDict({level: Gate(ndim, channels[level]) for level in LEVELS})
        self.head = point_conv(ndim, channels["up1"], out)


class LiteBranch(nn.Module):
    """A thin edge stem on the last decoder feature, whose gate strengthens that feature voxel by voxel."""

    def __init__(self, ndim: int, width: int, thin: int, out: int) -> None:
        super().__init__()
        conv: type[nn.Module] = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.stem = conv(width, thin, 3, padding=1, bias=False)
        self.gate = point_conv(ndim, thin, 1)
        self.head = point_conv(ndim, thin, out)


class LANet(Method[LANetConfig]):
    """See the card."""

    info = INFO

    def __init__(self, config: LANetConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        net, out = self.backbone, setup.task.out_channels
        self.branch: Any
        if config.size == "full":
            self.branch = FullBranch(net.ndim, net.channels, out)
        else:
            self.branch = LiteBranch(net.ndim, net.width, config.edge_channels, out)

    def run(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the segmentation, and the edge branch's last features."""
        branch = self.branch
        kept: dict[str, Tensor] = {}
        edge = image  # replaced as the decoder goes

        def beside(stage: str, x: Tensor) -> Tensor:
            """The whole edge decoder: a block of its own at each level, let into the segmentation's by the gate."""
            nonlocal edge
            if stage == "fusion":
                edge = x
            if stage not in LEVELS:
                kept[stage] = x
                return x
            edge = branch.blocks[stage](self.backbone.upsample(edge) + kept[SKIPS[stage]])
            gated: Tensor = branch.gates[stage](x, edge)
            return gated

        def after(stage: str, x: Tensor) -> Tensor:
            """The thin branch on the last decoder feature, which is strengthened where the gate opens."""
            nonlocal edge
            if stage != LEVELS[-1]:
                return x
            edge = branch.stem(x)
            return x + torch.sigmoid(branch.gate(edge)) * x

        decoder = self.backbone.features(image, beside if self.config.size == "full" else after).decoder
        return self.backbone.head(decoder), edge

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the segmentation and of its edge."""
        logits, edge = self.run(image)
        return logits, self.branch.head(edge)

    def logits(self, image: Tensor) -> Tensor:
        """Segmentation logits; the edge branch takes part, its head does not."""
        return self.run(image)[0]

    def edge_of(self, label: Tensor) -> Tensor:
        """The edge of a label (B, C, *spatial) as float: its own outer voxels, or those and the ones around them (``band``)."""
        if self.config.edge == "inner":
            return contour(label).to(label.dtype)
        return (dilate(label) & ~erode(label)).to(label.dtype)

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Dice and cross-entropy of the segmentation, and of the edge."""
        batch = self.augment(batch, ctx)
        logits, edge_logits = self(batch.image)
        seg = segmentation_loss(logits, batch.label)
        edge = segmentation_loss(edge_logits, self.edge_of(batch.label))
        return {"loss": seg + self.config.edge_weight * edge, "seg": seg.detach(), "edge": edge.detach()}

    def deploy(self) -> None:
        """The edge head goes, and :meth:`forward` with it."""
        del self.branch.head
