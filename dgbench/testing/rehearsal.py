"""A method trained for a few steps on small synthetic cases, as the harness trains it."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgbench.data.sampling import check_sampling, draw_cases
from dgbench.info import MethodConfig, MethodInfo
from dgbench.method import Batch, Method, Setup, ValidationRow
from dgbench.nets import Backbone
from dgbench.seeds import derive_seed
from dgbench.store.checkpoint_file import flatten_state
from dgbench.task import Task, Window
from dgbench.training.build import build_method
from dgbench.training.distributed import Ranks
from dgbench.training.step import AdamMaker, TrainingContext, run_step

STEPS = 12
"""Steps of a rehearsal: enough for phases of a tenth of the budget."""
CASES_PER_CENTER = 3
SIDES = {2: (32, 32), 3: (16, 16, 16)}
CPU = torch.device("cpu")
ALONE = Ranks()


class Problem(AssertionError):
    """What a method does not keep of the contract, in one line."""


@dataclass
class State:
    """A method in training, at the start of ``step``."""

    method: Method[Any]
    optimizers: list[Any]
    step: int
    losses: list[dict[str, float]]


def small_setup(n_sources: int = 2, ndim: int = 3, width: int = 8, total_steps: int = STEPS, **task: Any) -> Setup:
    """A fine tumor stage with a backbone of ``width``; ``task`` replaces settings of :class:`dgbench.protocol.Task`, such as channels."""
    described = Task(ndim=ndim, spacing=(1.5, 0.8, 0.8)[-ndim:], intensity=Window(low=-100, high=240), **task)
    options = {
        "ndim": ndim,
        "width": width,
        "in_channels": described.in_channels,
        "out_channels": described.out_channels,
    }
    return Setup(
        described, "tumor-fine", True, n_sources, total_steps, lambda **changes: Backbone(**{**options, **changes})
    )


class Rehearsal:
    """A method on synthetic cases of a small task: ``n_sources`` centers of different brightness, a bright ball as the lesion, one case
    per center and step as in every protocol. Width 8, fp32, CPU, the harness's own steps, sampling and optimiser."""

    def __init__(
        self, info: MethodInfo, config: MethodConfig | None = None, *, n_sources: int = 2, ndim: int = 3
    ) -> None:
        self.info, self.config = info, config or info.configure()
        self.n_sources, self.ndim = n_sources, ndim

    def setup(self) -> Setup:
        """The stage that is rehearsed."""
        return small_setup(self.n_sources, self.ndim)

    def start(self, seed: int = 0) -> State:
        """The method with fresh weights, and its optimisers."""
        setup = self.setup()
        torch.manual_seed(derive_seed(seed, "initialisation", setup.stage))  # as building does
        with _globals_kept("building"):
            method = build_method(self.info, self.config, setup, seed, CPU)
        return State(method, list(method.configure_optimizers(AdamMaker(1e-2, 0.0))), 0, [])

    def batch(self, method: Method[Any], step: int, ranks: Ranks) -> Batch:
        """The cases of ``step`` on one of the devices, drawn as the method's ``sampling`` wants it."""
        sampling = method.sampling(step, STEPS)
        check_sampling(sampling, self.n_sources, self.n_sources, f"sampling() at step {step}")
        domains = [domain for domain in range(self.n_sources) for _ in range(CASES_PER_CENTER)]
        drawn = draw_cases(0, ranks.micro_step(step), self.n_sources, domains, sampling)
        images, labels = zip(*(self.case(index, domains[index]) for index in drawn), strict=True)
        donors = None
        if "donor" in self.info.needs:
            others = [(index + CASES_PER_CENTER) % len(domains) for index in drawn]
            donors = torch.stack([self.case(index, domains[index])[0] for index in others])
        return Batch(
            torch.stack(images), torch.stack(labels), torch.tensor([domains[index] for index in drawn]), donors
        )

    def case(self, index: int, domain: int) -> tuple[Tensor, Tensor]:
        """Image in [0, 1] and label of one case, (1, *spatial) each."""
        rng = np.random.default_rng(index)
        sides = SIDES[self.ndim]
        grid = np.indices(sides) - np.array([rng.integers(side // 4, 3 * side // 4) for side in sides]).reshape(
            -1, *[1] * self.ndim
        )
        ball = (grid**2).sum(0) < 30
        image = 0.2 + 0.1 * domain + 0.3 * ball + 0.05 * rng.standard_normal(sides)
        return torch.from_numpy(image[None].clip(0, 1)).float(), torch.from_numpy(ball[None]).float()

    def advance(self, state: State, until: int = STEPS, precision: str = "fp32") -> State:
        """Train on until ``until`` steps are done, in ``precision`` (fp32 or bf16); validations are reported at half and at the end."""
        while state.step < until:
            state.losses.append(self.step(state, precision))
            state.step += 1
            if state.step in (STEPS // 2, STEPS):
                rows = [ValidationRow(domain, 0.1 * state.step / STEPS) for domain in range(self.n_sources)]
                state.method.on_validation(rows, state.step)
        return state

    def step(self, state: State, precision: str = "fp32", ranks: Ranks = ALONE) -> dict[str, float]:
        """Do the step that ``state`` is at, as one of several devices where ``ranks`` says so; its losses."""
        step = state.step
        batch = self.batch(state.method, step, ranks)
        context = TrainingContext(
            seed=1, step=step, total_steps=STEPS, optimizers=state.optimizers, precision=precision, ranks=ranks
        )
        torch.manual_seed(derive_seed(0, "step", ranks.micro_step(step)))
        with _globals_kept(f"step {step}"):
            _, _, losses = run_step(state.method, batch, context)
        if losses and "loss" not in losses:
            raise Problem(f"training_step gives {', '.join(losses)} — `loss` is missing")
        return {name: float(value) for name, value in losses.items()}

    @cached_property
    def trained(self) -> State:
        """The method after all steps."""
        return self.advance(self.start())

    def deployed(self) -> Method[Any]:
        """The trained method as it predicts."""
        method = self.start().method
        method.load_state_dict(fresh(self.trained)["method"])
        method.deploy()
        return method.eval()


def fresh(state: State) -> dict[str, Any]:
    """What a checkpoint would keep of ``state``, copied."""
    return deepcopy(
        {"method": state.method.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in state.optimizers]}
    )


def differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that differ between two kept states, in any bit."""
    (one, structure), (other, other_structure) = flatten_state(left), flatten_state(right)
    names = sorted(
        name
        for name in one.keys() | other.keys()
        if name not in one or name not in other or not _same(one[name], other[name])
    )
    return names or ([] if structure == other_structure else ["values that are no tensors"])


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())


@contextmanager
def _globals_kept(where: str) -> Iterator[None]:
    """Problem where the block reseeds torch's global generator or touches those of numpy or Python."""
    before = _globals()
    yield
    touched = [name for name, state in _globals().items() if state != before[name]]
    if touched:
        raise Problem(
            f"{where}: the global generator of {touched[0]} was used or reseeded — draw from ctx.generator(...)"
        )


def _globals() -> dict[str, object]:
    """What tells a reseeding; torch's state itself moves with dropout and initialisation, which is the harness's own."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 — it is looked at because methods must not use it
    return {"torch": torch.initial_seed(), "random": random.getstate(), "numpy": str(numpy_state)}
