"""Throwaway methods of the shape of published ones: what they need of the contract, and nothing of their science."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from dgbench.info import MethodConfig, MethodInfo, Need
from dgbench.method import Batch, MakeOptimizer, Method, Phase, Sampling, Setup, StepContext, ValidationRow
from dgbench.ops.losses import segmentation_loss


class RateConfig(MethodConfig):
    """One key, so that there is something to misspell."""

    rate: float = 0.01


def plugin(cls: str, *needs: Need, config: type[MethodConfig] = MethodConfig) -> MethodInfo:
    """The entry of a class of this module."""
    return MethodInfo(
        name=cls.lower(),
        target=f"contract_plugins:{cls}",
        title=cls,
        paper="none",
        year=2026,
        config=config,
        needs=frozenset(needs),
    )


class Saml(Method[RateConfig]):
    """Fast weights: an inner gradient step through the backbone on some centers, the outer loss on another; a second optimiser, of the
    method's own making, for an auxiliary head; one case per center."""

    info = plugin("Saml", "domain-batch", config=RateConfig)

    def __init__(self, config: RateConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.shape_head = nn.Conv3d(setup.task.out_channels, 2, 1)

    def sampling(self, step: int, total_steps: int) -> Sampling:
        return "per-center"

    def configure_optimizers(self, make: MakeOptimizer) -> Sequence[Optimizer]:
        return make(self.backbone.parameters()), torch.optim.SGD(self.shape_head.parameters(), lr=0.1, momentum=0.9)

    def train_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        assert sorted(batch.domain.tolist()) == list(range(self.setup.n_sources))
        drawn = torch.randint(self.setup.n_sources, (), generator=ctx.generator("meta-test"))
        test = batch.domain == drawn
        weights = dict(self.backbone.named_parameters())
        with ctx.autocast():
            inner = segmentation_loss(self.backbone(batch.image[~test]), batch.label[~test])
            gradients = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            pairs = zip(weights.items(), gradients, strict=True)
            fast = {name: weight - self.config.rate * gradient for (name, weight), gradient in pairs}
            logits = functional_call(self.backbone, fast, (batch.image[test],))
            outer = segmentation_loss(logits, batch.label[test])
            shape = self.shape_head(logits.detach()).square().mean()
        backbone, head = ctx.optimizers
        ctx.backward(inner + outer, backbone)
        ctx.step_optimizer(backbone)
        ctx.backward(shape, head)
        ctx.step_optimizer(head)
        return {"loss": (inner + outer).detach(), "inner": inner.detach(), "shape": shape.detach()}


class Dart(Method[MethodConfig]):
    """One branch per source, each with its own mixture of the centers; in the second half the branches are replaced by their average now
    and then; one average is kept at inference."""

    info = plugin("Dart", "domain-batch")

    def __init__(self, config: MethodConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.branches = nn.ModuleList(setup.build_backbone() for _ in range(setup.n_sources))

    def sampling(self, step: int, total_steps: int) -> Sampling:
        own, n = 0.5 + 0.5 * step / total_steps, self.setup.n_sources
        return [[own if domain == slot % n else (1 - own) / (n - 1) for domain in range(n)] for slot in range(n)]

    def configure_optimizers(self, make: MakeOptimizer) -> Sequence[Optimizer]:
        return [make(branch.parameters()) for branch in self.branches]

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        parts = [
            segmentation_loss(branch(batch.image[slot : slot + 1]), batch.label[slot : slot + 1])
            for slot, branch in enumerate(self.branches)
        ]
        return {"loss": torch.stack(parts).sum(), "domains": batch.domain.float().mean()}

    @torch.no_grad()
    def on_step_end(self, ctx: StepContext) -> None:
        if 2 * (ctx.step + 1) >= ctx.total_steps and ctx.step % 2:
            for copies in self._copies():
                mean = torch.stack(copies).mean(0)
                for copy in copies:
                    copy.copy_(mean)

    @torch.no_grad()
    def deploy(self) -> None:
        for kept, copies in zip(self.backbone.parameters(), self._copies(), strict=True):
            kept.copy_(torch.stack(copies).mean(0))
        del self.branches

    def predict(self, image: Tensor) -> Tensor:
        networks = self.branches if hasattr(self, "branches") else [self.backbone]
        return torch.stack([torch.sigmoid(network(image)) for network in networks]).mean(0)

    def _copies(self) -> list[tuple[Tensor, ...]]:
        return list(zip(*(branch.parameters() for branch in self.branches), strict=True))


class Dofe(Method[MethodConfig]):
    """Three phases, the second of which only watches: it fills a memory of one prototype per center, which the third trains with."""

    info = plugin("Dofe", "domain-batch")
    memory: Tensor
    seen: Tensor

    def __init__(self, config: MethodConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        channels = self.backbone.channels["layer4"]
        self.register_buffer("memory", torch.zeros(setup.n_sources, channels))
        self.register_buffer("seen", torch.zeros(setup.n_sources, dtype=torch.int64))
        self.gate = nn.Linear(channels, setup.n_sources)

    def phases(self) -> Sequence[Phase]:
        return Phase("pretrain", 0.25), Phase("prototypes", 0.375, learns=False), Phase("finetune", 0.375)

    def observe(self, batch: Batch, ctx: StepContext) -> None:
        assert not self.training
        assert not torch.is_grad_enabled()
        codes = self._codes(batch.image)
        self.memory.index_add_(0, batch.domain, codes)
        self.seen.index_add_(0, batch.domain, torch.ones_like(batch.domain))

    def on_phase_end(self, phase: str) -> None:
        if phase == "prototypes":
            self.memory.div_(self.seen.clamp(min=1)[:, None])

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        loss = segmentation_loss(self.logits(batch.image), batch.label)
        if ctx.phase == "pretrain":
            return {"loss": loss}
        codes = self._codes(batch.image)
        pull = (self.gate(codes).softmax(1) @ self.memory - codes).square().mean()
        return {"loss": loss + 0.1 * pull, "pull": pull.detach()}

    def _codes(self, image: Tensor) -> Tensor:
        return self.backbone.features(image).encoder.mean(dim=(2, 3, 4))


class Swad(Method[MethodConfig]):
    """Averages weights from the first validation on, keeps a list of validation scores outside of the tensors, and deploys the
    average."""

    info = plugin("Swad")
    count: Tensor

    def __init__(self, config: MethodConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.average = setup.build_backbone().requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.scores: list[float] = []

    def on_validation(self, rows: Sequence[ValidationRow], step: int) -> None:
        assert {row.domain for row in rows} == set(range(self.setup.n_sources))
        self.scores += [row.dsc for row in rows]

    def on_step_end(self, ctx: StepContext) -> None:
        if self.scores:
            self.count += 1
            for mean, new in zip(self.average.parameters(), self.backbone.parameters(), strict=True):
                mean.lerp_(new.detach(), 1 / int(self.count))

    def get_extra_state(self) -> dict[str, Any]:
        return {"scores": self.scores}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.scores = list(state["scores"])

    @torch.no_grad()
    def deploy(self) -> None:
        for weight, mean in zip(self.backbone.parameters(), self.average.parameters(), strict=True):
            weight.copy_(torch.where(self.count > 0, mean, weight))
        del self.average


class Sam(Method[RateConfig]):
    """The gradient is taken at the worst point nearby: two backward passes per update, weights restored between them."""

    info = plugin("Sam", config=RateConfig)

    def train_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        first = self._loss(batch, ctx)
        weights = [parameter for parameter in self.parameters() if parameter.grad is not None]
        kept = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            norm = torch.stack([weight.grad.norm() for weight in weights if weight.grad is not None]).norm()
            for weight in weights:
                weight.add_(self.config.rate * weight.grad / norm)
        second = self._loss(batch, ctx)
        with torch.no_grad():
            for weight, old in zip(weights, kept, strict=True):
                weight.copy_(old)
        ctx.step_optimizer()
        return {"loss": first, "sharpness": second - first}

    def _loss(self, batch: Batch, ctx: StepContext) -> Tensor:
        with ctx.autocast():
            loss = self.training_step(batch, ctx)["loss"]
        ctx.backward(loss)
        return loss.detach()


class Donor(Method[MethodConfig]):
    """Logs which center each case and its donor come from, as their brightness tells."""

    info = plugin("Donor", "donor")

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        assert batch.donor is not None
        assert batch.donor.shape == batch.image.shape
        losses = dict(super().training_step(batch, ctx))
        for slot in range(len(batch.image)):
            losses |= {f"domain {slot}": batch.domain[slot].float(), f"donor {slot}": batch.donor[slot].mean()}
        return losses


class FrailConfig(MethodConfig):
    """What the second device does in step ``at``: send itself a signal, or read a file."""

    at: int | None = None
    number: int = 0
    file: str | None = None


class Frail(Method[FrailConfig]):
    """Trains as erm, and fails on the second device alone."""

    info = plugin("Frail", config=FrailConfig)

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        if ctx.ranks.rank == 1 and ctx.step == self.config.at:  # type: ignore[attr-defined]
            if self.config.number:
                os.kill(os.getpid(), self.config.number)
            if self.config.file is not None:
                Path(self.config.file).read_bytes()
        return super().training_step(batch, ctx)


class Undivided(Method[MethodConfig]):
    """Says that it cannot be split."""

    info = replace(plugin("Undivided"), one_device="its statistics are of the whole batch")


class Diverging(Method[MethodConfig]):
    """From step ``at`` on, its loss, or with ``gradient`` only the gradient of its loss, is NaN."""

    info = plugin("Diverging")
    at: ClassVar[int | None] = None
    gradient: ClassVar[bool] = False

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        loss = super().training_step(batch, ctx)["loss"]
        if self.at is not None and ctx.step >= self.at:
            bias = self.backbone.head.bias
            loss = loss + (torch.sqrt(bias - bias.detach()).sum() if self.gradient else float("nan"))
        return {"loss": loss}


class Unbalanced(Method[MethodConfig]):
    """Phases that leave a tenth of the budget unused."""

    info = plugin("Unbalanced")

    def phases(self) -> Sequence[Phase]:
        return Phase("pretrain", 0.4), Phase("train", 0.5)


class Unobservant(Method[MethodConfig]):
    """A phase that does not learn, and nothing to do in it."""

    info = plugin("Unobservant")

    def phases(self) -> Sequence[Phase]:
        return Phase("look", 0.5, learns=False), Phase("train", 0.5)


class Mixture(Method[MethodConfig]):
    """Draws by ``table``, right or wrong."""

    info = plugin("Mixture")
    table: ClassVar[Any] = "pooled"

    def sampling(self, step: int, total_steps: int) -> Sampling:
        sampling: Sampling = self.table
        return sampling
