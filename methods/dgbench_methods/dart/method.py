"""DART: one branch per mixture of the source centers, each with its optimiser, united at intervals."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from dgbench.method import Batch, MakeOptimizer, Method, Sampling, Setup, StepContext
from dgbench.nets import Backbone
from dgbench.ops.averaging import mean_state, unite
from dgbench.ops.losses import segmentation_loss
from dgbench_methods.dart import INFO, DARTConfig


def mixtures(kind: str, n_sources: int) -> list[list[float]]:
    """The weight of every center for each branch. ``published``: a branch per center, which weighs its own twice as much as each other, and
    one that weighs all alike; ``own-center``: a branch per center that sees no other."""
    if kind == "own-center":
        return [[float(center == own) for center in range(n_sources)] for own in range(n_sources)]
    part = 1 / (n_sources + 1)
    rows = [[part * (1 + (center == own)) for center in range(n_sources)] for own in range(n_sources)]
    return [*rows, [1 / n_sources] * n_sources]


class DART(Method[DARTConfig]):
    """See the card."""

    info = INFO

    def __init__(self, config: DARTConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        kind = config.mixtures or ("own-center" if config.deploy == "ensemble" else "published")
        self.mixtures = mixtures(kind, setup.n_sources)
        self.others = nn.ModuleList(deepcopy(self.backbone) for _ in self.mixtures[1:])
        self.interval = max(1, round(config.interval * setup.total_steps))

    @property
    def branches(self) -> list[Backbone]:
        """All networks, the first one is ``backbone``."""
        others: list[Any] = list(self.others)
        return [self.backbone, *others]

    def sampling(self, step: int, total_steps: int) -> Sampling:
        """One case of every center: a branch weighs them by its mixture."""
        return "per-center"

    def configure_optimizers(self, make: MakeOptimizer) -> Sequence[Optimizer]:
        """One for each branch."""
        return tuple(make(branch.parameters()) for branch in self.branches)

    def branch_loss(self, branch: nn.Module, weights: Sequence[float], batch: Batch) -> Tensor:
        """The expected loss of ``branch`` over its mixture; all centers alike are one batch."""
        if len(set(weights)) == 1:
            return segmentation_loss(branch(batch.image), batch.label)
        parts = []
        for center, weight in enumerate(weights):
            mine = batch.domain == center
            if weight and bool(mine.any()):
                parts.append(weight * segmentation_loss(branch(batch.image[mine]), batch.label[mine]))
        return torch.stack(parts).sum()

    def train_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """One update of every branch on the same cases."""
        batch = self.augment(batch, ctx)
        losses = []
        for branch, weights, optimizer in zip(self.branches, self.mixtures, ctx.optimizers, strict=True):
            with ctx.autocast():
                loss = self.branch_loss(branch, weights, batch)
            ctx.backward(loss, optimizer)
            ctx.step_optimizer(optimizer)
            losses.append(loss.detach())
        return {"loss": torch.stack(losses).mean(), **{f"branch {i}": loss for i, loss in enumerate(losses)}}

    def on_step_end(self, ctx: StepContext) -> None:
        """Unite the branches after every interval, unless they are to stay different."""
        if self.config.deploy == "weights" and (ctx.step + 1) % self.interval == 0:
            unite(self.branches)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits of every branch."""
        return [branch(image) for branch in self.branches]

    def predict(self, image: Tensor) -> Tensor:
        """The averaged network, or the mean probability of all branches."""
        branches = self.branches
        if self.config.deploy == "ensemble":
            return torch.stack([torch.sigmoid(branch(image)) for branch in branches]).mean(0)
        if len(branches) == 1:
            return torch.sigmoid(self.backbone(image))
        return torch.sigmoid(functional_call(self.backbone, mean_state(branches), (image,)))

    def deploy(self) -> None:
        """One network with the mean weights (``weights``), or all (``ensemble``)."""
        if self.config.deploy == "weights":
            self.backbone.load_state_dict(mean_state(self.branches))
            self.others = nn.ModuleList()
