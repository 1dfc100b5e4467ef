"""DoFE: a pool with one prototype per source center, a code that mixes them, and a gate that adds the mixture to the encoder's features."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.method import Batch, Method, Phase, Sampling, Setup, StepContext
from dgbench.nets import point_conv
from dgbench.ops.losses import segmentation_loss
from dgbench.ops.precision import full_precision
from dgbench_methods.dofe import INFO, DoFEConfig

STAGE = "layer4"
GROUPS = 8
IMAGES_PER_UPDATE = 8
"""Images of a center that the publication averages for one update of its prototype."""


def soft_domain_label(domain: Tensor, n_sources: int, generator: torch.Generator) -> Tensor:
    """(B, n_sources) rows with sum 1: 0.8 to 1 for the true center (B,), the rest split at random over the others."""
    true = 0.8 + 0.2 * torch.rand(len(domain), 1, generator=generator, device=domain.device)
    others = torch.rand(len(domain), n_sources, generator=generator, device=domain.device) + 1e-6
    others.scatter_(1, domain[:, None], 0.0)
    others = others / others.sum(1, keepdim=True) * (1 - true)
    return others.scatter(1, domain[:, None], true)


class DoFE(Method[DoFEConfig]):
    """See the card."""

    info = INFO
    pool: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, config: DoFEConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        ndim, width, n = self.backbone.ndim, self.backbone.channels[STAGE], setup.n_sources
        conv: type[nn.Module] = nn.Conv2d if ndim == 2 else nn.Conv3d
        code_width = width // 2 if config.reduce else width
        self.norm = nn.GroupNorm(GROUPS, width, affine=False)
        self.gate = conv(width, width, 1, bias=False)
        self.reduced = conv(width, code_width, 1, bias=False) if config.reduce else nn.Identity()
        self.code = nn.Sequential(nn.GroupNorm(1, code_width), nn.ReLU(), point_conv(ndim, code_width, n))
        self.register_buffer("pool", torch.zeros(n, width))
        self.register_buffer("sums", torch.zeros(n, width))
        self.register_buffer("counts", torch.zeros(n))

    def phases(self) -> Sequence[Phase]:
        """The plain backbone, a look at the prototypes, then all together."""
        config = self.config
        rest = 1 - config.pretrain - config.prototypes
        return (
            Phase("pretrain", config.pretrain),
            Phase("prototypes", config.prototypes, learns=False),
            Phase("train", rest),
        )

    def sampling(self, step: int, total_steps: int) -> Sampling:
        """One case of every center, so that every prototype is kept up."""
        return "per-center"

    def enrich(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encoder features (B, C, *spatial) -> enriched features, the code's logits (B, n_sources), and each case's mean normalised feature
        (B, C), from which prototypes are made."""
        normalised = self.norm(features.float())
        pooled = self.reduced(features).float().amax(tuple(range(2, features.ndim)), keepdim=True)
        with full_precision(features):
            code = self.code(pooled).flatten(1)
            mixture = (torch.softmax(code, 1) @ self.pool).view(*features.shape[:2], *[1] * (features.ndim - 2))
        enriched = features + (torch.tanh(self.gate(normalised)) * mixture).to(features.dtype)
        return enriched, code, normalised.mean(tuple(range(2, features.ndim)))

    def run(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segmentation logits, the code's logits and the cases' mean features."""
        found: list[Tensor] = []

        def tap(stage: str, x: Tensor) -> Tensor:
            if stage != STAGE:
                return x
            enriched, *rest = self.enrich(x)
            found.extend(rest)
            return enriched

        logits = self.backbone(image, tap)
        code, mean = found
        return logits, code, mean

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Segmentation logits and the code's."""
        logits, code, _ = self.run(image)
        return logits, code

    def logits(self, image: Tensor) -> Tensor:
        """Segmentation logits; those of the plain backbone as long as the pool is empty."""
        return self.run(image)[0]

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Segmentation alone before the pool is filled; then the code's loss too, and the pool's update."""
        batch = self.augment(batch, ctx)
        if ctx.phase == "pretrain":
            return {"loss": segmentation_loss(self.backbone(batch.image), batch.label)}
        logits, code, mean = self.run(batch.image)
        target = soft_domain_label(batch.domain, self.setup.n_sources, ctx.generator("soft domain label"))
        seg = segmentation_loss(logits, batch.label)
        told = F.mse_loss(torch.softmax(code, 1), target)
        if self.config.pool_update == "ema":
            self.update(mean, batch.domain, ctx)
        return {"loss": seg + self.config.code_weight * told, "seg": seg.detach(), "code": told.detach()}

    def observe(self, batch: Batch, ctx: StepContext) -> None:
        """Sum up each center's mean features."""
        sums, counts = self.by_center(self.run(batch.image)[2], batch.domain, ctx)
        self.sums += sums
        self.counts += counts

    def on_phase_end(self, phase: str) -> None:
        """The prototypes become the means of what was seen; a center that was not seen keeps an empty one."""
        if phase == "prototypes":
            self.pool = self.sums / self.counts.clamp(min=1)[:, None]

    @torch.no_grad()
    def update(self, mean: Tensor, domain: Tensor, ctx: StepContext) -> None:
        """``mu = l mu + (1 - l) mean`` for the centers in the batch; with ``lambda_mode=image``, l is ``momentum`` to the power n / 8 for n
        images of the center."""
        sums, counts = self.by_center(mean, domain, ctx)
        power = counts / IMAGES_PER_UPDATE if self.config.lambda_mode == "image" else torch.ones_like(counts)
        kept = (self.config.momentum**power)[:, None]
        moved = kept * self.pool + (1 - kept) * sums / counts.clamp(min=1)[:, None]
        # not in place: the step's gradient still needs the old one
        self.pool = torch.where(counts[:, None] > 0, moved, self.pool)

    def by_center(self, mean: Tensor, domain: Tensor, ctx: StepContext) -> tuple[Tensor, Tensor]:
        """Sums (n_sources, C) and numbers (n_sources,) of cases by center, over all devices; in float32."""
        member = F.one_hot(domain, self.setup.n_sources).to(mean.dtype)
        with full_precision(mean):
            return ctx.all_reduce(member.T @ mean), ctx.all_reduce(member.sum(0))
