"""The contract of a method: the one file that a contributor reads.

A method is the only thing that differs between two rows of a leaderboard. It receives source batches and returns losses; it receives an
image and returns probabilities. It never learns which center it faces. Backbone, loader, budget, optimiser, schedule, precision, selection,
cascade and metrics belong to the harness. Everything a method remembers lives in its ``state_dict`` (buffers, or ``get_extra_state``),
so that a run resumes exactly. On several devices each has a copy of the method and batches of its own, and all copies must stay equal:
gradients are averaged by ``ctx.backward``, what else a method keeps of its batches goes through ``ctx.all_reduce`` or ``ctx.all_gather``.

Override as little as possible: an augmentation method overrides :meth:`Method.augment`; a feature method gives the backbone a tap in
:meth:`Method.logits`; a multi-task method overrides :meth:`Method.training_step`; meta-learning overrides :meth:`Method.train_step`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dgbench.errors import DgbenchError
from dgbench.info import MethodConfig, MethodInfo
from dgbench.nets import Backbone
from dgbench.ops.losses import segmentation_loss
from dgbench.task import Task

ConfigT = TypeVar("ConfigT", bound=MethodConfig)
Sampling = Literal["pooled", "per-center"] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class Batch:
    """One step's source cases.

    ``image`` (B, C, *spatial) float32 in [0, 1] before augmentation noise; ``label`` (B, 1, *spatial) float32 in {0, 1}; ``domain`` (B,)
    int64 in 0..n_sources-1; ``donor`` like ``image``, another source case per sample, only for methods that declare the need "donor".
    """

    image: Tensor
    label: Tensor
    domain: Tensor
    donor: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``."""
        donor = None if self.donor is None else self.donor.to(device, non_blocking=True)
        image, label = self.image.to(device, non_blocking=True), self.label.to(device, non_blocking=True)
        return Batch(image, label, self.domain.to(device, non_blocking=True), donor)

    def with_image(self, image: Tensor) -> "Batch":
        """The batch with another image."""
        return replace(self, image=image)


@dataclass(frozen=True)
class Setup:
    """What a method may know when it is built: the task, which stage it trains, how many source centers and steps there are."""

    task: Task
    stage: str
    is_fine: bool
    n_sources: int
    total_steps: int
    build_backbone: Callable[..., Backbone]


@dataclass(frozen=True)
class Phase:
    """A part of the budget: ``share`` of all steps (shares sum to 1). In a phase that does not learn, :meth:`Method.observe` sees each
    batch in evaluation mode without gradients (a prototype pass); its draws count like any other."""

    name: str
    share: float
    learns: bool = True


@dataclass(frozen=True)
class ValidationRow:
    """One source-validation case: domain index and Dice (0..1) at threshold 0.5 on the label ROI."""

    domain: int
    dsc: float


class StepContext(Protocol):
    """What the harness offers during one step."""

    step: int
    total_steps: int
    phase: str
    optimizers: Sequence[Optimizer]

    def generator(self, *axes: str | int) -> torch.Generator:
        """A fresh generator on the step's device, seeded from (run seed, axes, micro-step: the step, or with several devices the
        step and the device); draw from it, never from the global one."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the run; wrap every forward pass in it when overriding ``train_step``."""
        ...

    def backward(self, loss: Tensor, optimizer: Optimizer | None = None) -> None:
        """Clear the gradients of ``optimizer`` (default: all), backpropagate, average gradients over devices."""
        ...

    def step_optimizer(self, optimizer: Optimizer | None = None) -> None:
        """Step ``optimizer`` (default: all)."""
        ...

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over devices (itself on one device), on every device the same; no gradient passes."""
        ...

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors (N, ...) of all devices, which have one shape, in one (devices * N, ...); no gradient passes."""
        ...


class MakeOptimizer(Protocol):
    """The harness's optimiser (Adam with the protocol's learning rate and weight decay) over given parameters."""

    def __call__(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], *, lr_factor: float = 1.0
    ) -> Optimizer: ...


class Method(nn.Module, Generic[ConfigT]):
    """Base of every method; used as it is, it is empirical risk minimisation on the protocol's augmentation."""

    info: ClassVar[MethodInfo]

    def __init__(self, config: ConfigT, setup: Setup) -> None:
        super().__init__()
        self.config = config
        self.setup = setup
        self.backbone = setup.build_backbone()

    # --- training -----------------------------------------------------------------------------------------------------------------

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        """Change images (and labels) on the device, after the protocol's augmentation. Training only."""
        return batch

    def logits(self, image: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, out_channels, *spatial)."""
        answer: Tensor = self.backbone(image)
        return answer

    def forward(self, image: Tensor) -> Any:
        """Every head of the training network; the `table-vi` cost counts this pass. Override where there is more than ``logits``."""
        return self.logits(image)

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Losses of one step; must hold the scalar ``loss``, the rest is logged."""
        batch = self.augment(batch, ctx)
        return {"loss": segmentation_loss(self.logits(batch.image), batch.label)}

    def train_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """One whole update. Override for closures, several optimisers or fast weights; returns what is logged, with ``loss``."""
        with ctx.autocast():
            losses = self.training_step(batch, ctx)
        ctx.backward(losses["loss"])
        ctx.step_optimizer()
        return losses

    def observe(self, batch: Batch, ctx: StepContext) -> None:
        """See one source batch in a phase that does not learn (evaluation mode, no gradients). Meant to be missing here: a method
        without such a phase never comes here, and one that declares it without defining this is told so in one line."""
        raise DgbenchError(
            f"method {self.info.name}: a phase that does not learn needs observe() — define it in {type(self).__name__}"
        )

    def phases(self) -> Sequence[Phase]:
        """How the budget is spent, in order."""
        return (Phase("train", 1.0),)

    def sampling(self, step: int, total_steps: int) -> Sampling:
        """How the cases of a step are drawn: pooled over all source cases, one per center, or for each draw of the step its
        probabilities over the centers. A pure function of the step (batches are prepared ahead)."""
        return "pooled"

    def param_groups(self) -> Iterable[nn.Parameter] | Iterable[dict[str, Any]]:
        """Parameters (or groups) that the default optimiser trains."""
        return self.parameters()

    def configure_optimizers(self, make: MakeOptimizer) -> Sequence[Optimizer]:
        """One or several optimisers; the harness sets their learning rates by its schedule."""
        return (make(self.param_groups()),)

    def on_step_end(self, ctx: StepContext) -> None:
        """After every step: weight averaging, schedules of the method's own."""

    def on_phase_end(self, phase: str) -> None:
        """After the last step of ``phase``."""

    def on_validation(self, rows: Sequence[ValidationRow], step: int) -> None:
        """After each source validation."""

    # --- inference ----------------------------------------------------------------------------------------------------------------

    def deploy(self) -> None:
        """Keep what inference needs (averaged weights, an ensemble, no training heads). Called once, before prediction and costing; for
        costing it runs on the ``meta`` device, so it must not branch on values (use ``torch.where``)."""

    def begin_case(self, roi: Tensor) -> None:
        """Before a case's ROI (1, C, *spatial) is predicted: codes that are global to the ROI are computed here."""

    def end_case(self) -> None:
        """After a case: state of that case is dropped here."""

    def predict(self, image: Tensor) -> Tensor:
        """(B, C, *spatial) in [0, 1] -> probabilities (B, out_channels, *spatial). No center, no label."""
        return torch.sigmoid(self.logits(image))
