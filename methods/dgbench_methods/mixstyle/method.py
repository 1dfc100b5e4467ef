"""MixStyle (Zhou et al., ICLR 2021): styles of early features mixed between source cases. README.md says what is adapted."""

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor

from dgbench.method import Batch, Method, Sampling, Setup, StepContext
from dgbench.ops.losses import segmentation_loss
from dgbench.ops.style import channel_statistics, restyle
from dgbench_methods.mixstyle import INFO, MixStyleConfig


class MixStyle(Method[MixStyleConfig]):
    """Mixes in training only; prediction is that of erm. A bank of styles, where one is asked for, is kept in buffers."""

    info = INFO
    stored: Tensor
    """Styles stored so far of each center (n_sources,), counted beyond the size of the bank."""

    def __init__(self, config: MixStyleConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        if config.mix == "bank":
            for layer in config.layers:
                size = (setup.n_sources, config.bank_size, 2, self.backbone.channels[layer])
                self.register_buffer(f"bank_{layer}", torch.zeros(size))
            self.register_buffer("stored", torch.zeros(setup.n_sources, dtype=torch.int64))

    def sampling(self, step: int, total_steps: int) -> Sampling:
        """One case of every center where the partner in the batch must come from another center."""
        return "per-center" if self.config.mix == "crossdomain" else "pooled"

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """The segmentation loss of the mixed features."""

        def tap(layer: str, x: Tensor) -> Tensor:
            return self.mix(layer, x, batch.domain, ctx) if layer in self.config.layers else x

        loss = segmentation_loss(self.backbone(batch.image, tap), batch.label)
        if self.config.mix == "bank":
            self.stored += torch.bincount(ctx.all_gather(batch.domain), minlength=self.setup.n_sources)
        return {"loss": loss}

    def mix(self, layer: str, x: Tensor, domain: Tensor, ctx: StepContext) -> Tensor:
        """Features (B, C, *spatial) of the centers ``domain`` (B,) with mixed style, or ``x`` itself in ``1 - p`` of the calls."""
        rng = np.random.default_rng(ctx.generator("style", layer).initial_seed())
        fires = rng.random() < self.config.p
        share = torch.from_numpy(rng.beta(self.config.alpha, self.config.alpha, len(x))).to(x.device)
        mean, std = (value.detach() for value in channel_statistics(x, self.config.eps))
        if self.config.mix == "bank":
            other_mean, other_std, found = self._from_bank(layer, mean, std, domain, rng, ctx)
        else:
            partner = self.partners(domain, rng).to(x.device)
            other_mean, other_std, found = mean[partner], std[partner], torch.ones_like(domain, dtype=torch.bool)
        return restyle(x, mean, std, other_mean, other_std, share, active=found) if fires else x

    def partners(self, domain: Tensor, rng: np.random.Generator) -> Tensor:
        """(B,) index of each sample's partner: a permutation of the batch (random), or a sample of another center, and the
        sample itself where the batch holds no other (crossdomain)."""
        if self.config.mix == "random":
            return torch.from_numpy(rng.permutation(len(domain)))
        domains = domain.cpu().numpy()
        chosen = []
        for index, own in enumerate(domains):
            others = np.flatnonzero(domains != own)
            chosen.append(int(rng.choice(others)) if len(others) else index)
        return torch.tensor(chosen)

    def _from_bank(
        self, layer: str, mean: Tensor, std: Tensor, domain: Tensor, rng: np.random.Generator, ctx: StepContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A stored style of another center for each sample, and whether there was one; the samples' own styles are stored, those of all
        devices."""
        bank, size = cast(Tensor, getattr(self, f"bank_{layer}")), self.config.bank_size
        counts = self.stored.tolist()
        other_mean, other_std, found = mean.clone(), std.clone(), torch.zeros_like(domain, dtype=torch.bool)
        for index, own in enumerate(domain.tolist()):
            filled = [center for center, count in enumerate(counts) if center != own and count]
            if not filled:
                continue
            center = int(rng.choice(filled))
            style = bank[center, int(rng.integers(min(counts[center], size)))]
            other_mean[index], other_std[index] = (value.view_as(mean[index]) for value in style)
            found[index] = True
        styles = ctx.all_gather(torch.stack([mean.flatten(1), std.flatten(1)], 1))
        for own, style in zip(ctx.all_gather(domain).tolist(), styles, strict=True):
            bank[own, counts[own] % size] = style
            counts[own] += 1
        return other_mean, other_std, found
