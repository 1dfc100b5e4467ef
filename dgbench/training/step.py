"""One step of training: what a method gets (the :class:`dgbench.method.StepContext`), the protocol's optimiser, and the
order of things."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from dgbench.errors import DgbenchError
from dgbench.method import Batch, Method, Phase
from dgbench.ops.precision import mixed_precision
from dgbench.seeds import derive_seed
from dgbench.training.distributed import Ranks
from dgbench.training.schedule import poly_lr


@dataclass
class TrainingContext:
    """Counter-based randomness, precision, optimiser calls and exchanges of one step, on one of the run's devices."""

    seed: int = 0
    step: int = 0
    total_steps: int = 1
    phase: str = "train"
    optimizers: Sequence[Optimizer] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    ranks: Ranks = field(default_factory=Ranks)

    def generator(self, *axes: str | int) -> torch.Generator:
        """See :class:`dgbench.method.StepContext`."""
        return torch.Generator(self.device).manual_seed(
            derive_seed(self.seed, "method", *axes, self.ranks.micro_step(self.step))
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """See :class:`dgbench.method.StepContext`."""
        return mixed_precision(self.device, self.precision)

    def backward(self, loss: Tensor, optimizer: Optimizer | None = None) -> None:
        """See :class:`dgbench.method.StepContext`."""
        optimizers = self._chosen(optimizer)
        for chosen in optimizers:
            chosen.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.ranks.average_gradients(
            parameter for chosen in optimizers for group in chosen.param_groups for parameter in group["params"]
        )

    def step_optimizer(self, optimizer: Optimizer | None = None) -> None:
        """See :class:`dgbench.method.StepContext`."""
        for chosen in self._chosen(optimizer):
            chosen.step()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """See :class:`dgbench.method.StepContext`."""
        return self.ranks.total(tensor)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """See :class:`dgbench.method.StepContext`."""
        return self.ranks.stack(tensor).flatten(0, 1)

    def _chosen(self, optimizer: Optimizer | None) -> Sequence[Optimizer]:
        return self.optimizers if optimizer is None else (optimizer,)


@dataclass(frozen=True)
class AdamMaker:
    """Adam with L2 weight decay, as the paper trains (dual-task sheet §4)."""

    lr: float
    weight_decay: float

    def __call__(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], *, lr_factor: float = 1.0
    ) -> Optimizer:
        return Adam(parameters, lr=self.lr * lr_factor, weight_decay=self.weight_decay)


def phase_ends(phases: Sequence[Phase], total_steps: int, method: str) -> list[int]:
    """The step after the last one of each phase; DgbenchError, naming ``method``, where the shares do not sum to 1."""
    shares = [phase.share for phase in phases]
    if not shares or abs(sum(shares) - 1) > 1e-9 or min(shares) < 0:
        named = ", ".join(f"{phase.name} {phase.share:g}" for phase in phases) or "none"
        raise DgbenchError(
            f"method {method}: the shares of its phases ({named}) sum to {sum(shares):g} — they must sum to 1"
        )
    ends = [round(total_steps * sum(shares[: index + 1])) for index in range(len(shares))]
    ends[-1] = total_steps
    return ends


def run_step(method: Method[Any], batch: Batch, context: TrainingContext) -> tuple[str, float, dict[str, Tensor]]:
    """Do step ``context.step`` of the method's phases: learning rates of ``context.optimizers``, the update or the look, the end of the
    phase. Dropout draws from torch's global generator: seed it before.

    Returns:
        The phase's name, the learning-rate factor and the detached losses (none in a phase that does not learn).
    """
    phases = method.phases()
    ends = phase_ends(phases, context.total_steps, method.info.name)
    index = next(i for i, end in enumerate(ends) if context.step < end)
    phase = phases[index]
    context.phase = phase.name
    factor = poly_lr(context.step, context.total_steps)
    for optimizer in context.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    losses: Mapping[str, Tensor] = {}
    if phase.learns:
        method.train()
        losses = method.train_step(batch, context)
    else:
        method.eval()
        with torch.no_grad(), context.autocast():
            method.observe(batch, context)
    method.on_step_end(context)
    if context.step + 1 == ends[index]:
        method.on_phase_end(phase.name)
    return phase.name, factor, {name: value.detach() for name, value in losses.items()}
