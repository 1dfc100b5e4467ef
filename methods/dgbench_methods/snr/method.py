"""SNR: instance normalisation of early features, a gated return of what it removed, and the ranking of entropies that trains it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.method import Batch, Method, Setup, StepContext
from dgbench.nets import point_conv
from dgbench.ops.losses import segmentation_loss
from dgbench.ops.precision import full_precision
from dgbench_methods.snr import INFO, SNRConfig

STAGES = ("layer0", "layer1", "layer2", "layer3")


class Kept(NamedTuple):
    """Of one module in a training step: F+, IN(F) and F-, and the mean gate."""

    versions: tuple[Tensor, Tensor, Tensor]
    gate: Tensor


class Restitution(nn.Module):
    """One SNR module on ``channels`` channels: ``F+ = IN(F) + a R`` with ``R = F - IN(F)`` and a gate ``a`` in (0, 1) for each channel."""

    def __init__(self, ndim: int, channels: int, reduction: int) -> None:
        super().__init__()
        norm: type[nn.Module] = nn.InstanceNorm2d if ndim == 2 else nn.InstanceNorm3d
        hidden = max(1, channels // reduction)
        self.norm = norm(channels, affine=True)
        self.squeeze = point_conv(ndim, channels, hidden)
        self.excite = point_conv(ndim, hidden, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, *spatial) float32 -> normalised features, and the gate (B, C, 1, ...) that the residual opens; float32 under any
        autocast."""
        with full_precision(x):
            normalised = self.norm(x)
            pooled = (x - normalised).mean(tuple(range(2, x.ndim)), keepdim=True)
            return normalised, torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))


def restore(features: Tensor, normalised: Tensor, gate: Tensor) -> Tensor:
    """``IN(F) + gate R``: a gate of 1 gives F and a gate of 0 gives IN(F), exactly. F+ is that of the gate, F- that of one minus it."""
    return torch.lerp(normalised, features, gate)


def voxel_entropy(logits: Tensor) -> Tensor:
    """Mean over voxels and channels of the entropy (nats, at most log 2) of the Bernoulli probability of each logit: (B,)."""
    wide = logits.float()
    return (F.softplus(wide) - wide * torch.sigmoid(wide)).flatten(1).mean(1)


def restitution_loss(plus: Tensor, normalised: Tensor, minus: Tensor) -> Tensor:
    """softplus(H(F+) - H(IN F)) + softplus(H(IN F) - H(F-)), mean over cases, of entropies (B,) in nats (TMM 2022, dual restitution)."""
    return (F.softplus(plus - normalised) + F.softplus(normalised - minus)).mean()


class SNR(Method[SNRConfig]):
    """See the card."""

    info = INFO

    def __init__(self, config: SNRConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        ndim, channels = self.backbone.ndim, [self.backbone.channels[stage] for stage in STAGES[: config.points]]
        self.points = nn.ModuleList(Restitution(ndim, width, config.reduction) for width in channels)
        out = setup.task.out_channels
        self.heads = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, width), nn.ReLU(), point_conv(ndim, width, out))
            for width in channels
            if config.restitution
        )
        self.kept: list[Kept] | None = None
        if config.site == "normalised":
            for index, down in enumerate((self.backbone.down1, self.backbone.down2, self.backbone.down3)):
                if index < config.points:
                    down[1].register_forward_hook(lambda _, __, output, index=index: self.apply_module(index, output))

    def apply_module(self, index: int, x: Tensor) -> Tensor:
        """F+ of module ``index``; in a training step the three versions are kept for the loss."""
        wide = x.float()
        normalised, gate = self.points[index](wide)
        plus = restore(wide, normalised, gate)
        if self.kept is not None:
            self.kept.append(Kept((plus, normalised, restore(wide, normalised, 1 - gate)), gate.detach().mean()))
        return plus.to(x.dtype)

    def tap(self, stage: str, x: Tensor) -> Tensor:
        """F+ where a module stands on the output of ``stage`` (and so in its skip connection), else ``x``."""
        if self.config.site == "output" and stage in STAGES[: self.config.points]:
            return self.apply_module(STAGES.index(stage), x)
        return x

    def logits(self, image: Tensor) -> Tensor:
        """Segmentation logits through the modules."""
        answer: Tensor = self.backbone(image, self.tap)
        return answer

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Segmentation loss, and where ``restitution`` is on, the ranking of entropies at each point and the last head's own loss."""
        config = self.config
        batch = self.augment(batch, ctx)
        self.kept = []
        try:
            logits, kept = self.logits(batch.image), self.kept
        finally:
            self.kept = None
        seg = segmentation_loss(logits, batch.label)
        gates = {f"gate {index}": one.gate for index, one in enumerate(kept)}
        if not config.restitution:
            return {"loss": seg, **gates}
        heads: list[Any] = list(self.heads)
        with full_precision(batch.image):
            ranks = [
                restitution_loss(*(voxel_entropy(head(version)) for version in one.versions))
                for head, one in zip(heads, kept, strict=True)
            ]
            last = heads[-1](kept[-1].versions[0])
        rank = torch.stack(ranks).sum()
        share = F.interpolate(batch.label, last.shape[2:], mode="area")
        auxiliary = F.binary_cross_entropy_with_logits(last, share)
        loss = seg + config.restitution_weight * rank + config.auxiliary_weight * auxiliary
        logged = {"seg": seg.detach(), "rank": rank.detach(), "auxiliary": auxiliary.detach()}
        return {"loss": loss, **logged, **gates}

    def deploy(self) -> None:
        """The heads of the entropies go; the modules stay."""
        del self.heads
