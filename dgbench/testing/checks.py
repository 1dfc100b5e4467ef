"""The checks of the conformance suite: each raises a Problem, one line, where a method breaks its promise."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dgbench.errors import DgbenchError
from dgbench.evaluation.cost import count_cost
from dgbench.method import Method
from dgbench.ops.precision import mixed_precision as run_precision
from dgbench.registry import card
from dgbench.store.checkpoint_file import flatten_state, unflatten_state
from dgbench.testing.accumulation import accumulated, restart_of
from dgbench.testing.rehearsal import CASES_PER_CENTER, SIDES, STEPS, Problem, Rehearsal, differing, fresh
from dgbench.training.build import build_method
from dgbench.training.distributed import Ranks
from dgbench.training.step import phase_ends

Check = Callable[[Rehearsal], None]

CUTS = (4, 9)
"""Steps after which a rehearsal is interrupted and goes on from its state."""
CARD_SECTIONS = ("## What is computed", "## Configuration", "## Choices")


def builds(rehearsal: Rehearsal) -> None:
    """The class is built, for each number of dimensions it declares, and carries the entry that names it."""
    for ndim in sorted(rehearsal.info.dims):
        other = Rehearsal(rehearsal.info, rehearsal.config, ndim=ndim)
        state = other.start()
        if not isinstance(state.method, Method):
            raise Problem(f"{rehearsal.info.target} is no dgbench.method.Method")
        if not state.optimizers or not any(parameter.requires_grad for parameter in state.method.parameters()):
            raise Problem("nothing to train: no optimiser or no parameter that requires a gradient")
        if ndim != rehearsal.ndim:
            other.advance(state, 2)


def finite_losses(rehearsal: Rehearsal) -> None:
    """Every step gives finite scalar losses."""
    _finite(rehearsal.trained.losses)


def mixed_precision(rehearsal: Rehearsal) -> None:
    """Training and prediction in bf16, in which the ranked presets compute, work and stay finite."""
    state = rehearsal.advance(rehearsal.start(), precision="bf16")
    _finite(state.losses)
    state.method.deploy()
    with run_precision(torch.device("cpu"), "bf16"):
        answer = _predict(state.method.eval(), rehearsal.case(0, 0)[0][None])
    if not answer.isfinite().all():
        raise Problem("predict gives values in bf16 that are not finite")


def _finite(steps: list[dict[str, float]]) -> None:
    for step, losses in enumerate(steps):
        broken = [name for name, value in losses.items() if not np.isfinite(value)]
        if broken:
            raise Problem(f"step {step}: {', '.join(broken)} is {losses[broken[0]]}")
    if not any(steps):
        raise Problem("no step of any phase learns")


def gradients_reach_the_backbone(rehearsal: Rehearsal) -> None:
    """Training moves every weight of the backbone."""
    before = dict(rehearsal.start().method.backbone.named_parameters())
    after = dict(rehearsal.trained.method.backbone.named_parameters())
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    if still:
        raise Problem(f"{len(still)} of {len(before)} weights of the backbone never move: {', '.join(still[:3])}")


def output_shape(rehearsal: Rehearsal) -> None:
    """Prediction gives probabilities of the input's grid."""
    method, image = rehearsal.deployed(), rehearsal.case(0, 0)[0][None]
    answer = _predict(method, image)
    wanted = (1, method.setup.task.out_channels, *image.shape[2:])
    if tuple(answer.shape) != wanted:
        raise Problem(f"predict gives {tuple(answer.shape)} for {tuple(image.shape)}, {wanted} is expected")
    if not (answer.min() >= 0 and answer.max() <= 1):
        raise Problem(f"predict gives values from {answer.min():.3g} to {answer.max():.3g}, probabilities are expected")


def deterministic(rehearsal: Rehearsal) -> None:
    """Two trainings with one seed are equal to the bit."""
    again = rehearsal.advance(rehearsal.start())
    first = rehearsal.trained
    step = next((i for i, (a, b) in enumerate(zip(first.losses, again.losses, strict=True)) if a != b), None)
    names = differing(fresh(first), fresh(again))
    if step is not None or names:
        where = f"losses of step {step}" if step is not None else f"the state ({', '.join(names[:3])})"
        raise Problem(f"two trainings with one seed differ in {where}")


def evaluation_is_repeatable(rehearsal: Rehearsal) -> None:
    """A prediction depends on the case alone: not on what is beside it in the batch, not on what was predicted before; and it changes
    nothing."""
    method = rehearsal.deployed()
    one, other = (rehearsal.case(index, domain)[0][None] for index, domain in ((0, 0), (CASES_PER_CENTER, 1)))
    before = deepcopy(method.state_dict())
    alone = _predict(method, one)
    method.begin_case(one)
    with torch.no_grad():
        beside = method.predict(torch.cat([one, other]))[:1]
    method.end_case()
    if not torch.allclose(alone, beside, atol=1e-5):
        raise Problem(f"a batch mate changes the prediction by up to {(alone - beside).abs().max():.2g}")
    _predict(method, other)
    if not torch.equal(alone, _predict(method, one)):
        raise Problem("the same case predicted again gives another answer")
    names = differing(before, method.state_dict())
    if names:
        raise Problem(f"prediction changes the state: {', '.join(names[:3])}")


def resumes_exactly(rehearsal: Rehearsal) -> None:
    """A training cut in the middle and continued from its state ends as the uninterrupted one."""
    wanted = fresh(rehearsal.trained)
    for cut in CUTS:
        state = rehearsal.advance(rehearsal.start(), cut)
        try:
            tensors, structure = flatten_state(fresh(state))
            content = unflatten_state(tensors, structure)
        except (DgbenchError, TypeError) as error:
            raise Problem(f"the state cannot be saved: {error}") from error
        resumed = rehearsal.start(seed=1)
        resumed.method.load_state_dict(content["method"])
        for optimizer, saved in zip(resumed.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        resumed.step = cut
        names = differing(wanted, fresh(rehearsal.advance(resumed)))
        if names:
            raise Problem(f"resumed after step {cut}, {len(names)} tensors of the state differ: {', '.join(names[:3])}")


def two_devices(rehearsal: Rehearsal) -> None:
    """Two devices, as one that accumulates their micro-steps does their work, end a step in the same state: the first two of each
    phase, and the last. Not asked of a method that says that it runs on one device only."""
    if rehearsal.info.one_device is not None:
        return
    state = rehearsal.start()
    starts = [0, *phase_ends(state.method.phases(), STEPS, rehearsal.info.name)]
    looked_at = {step for start in starts for step in (start, start + 1)} | {STEPS - 1}

    def micro_step(ranks: Ranks) -> dict[str, Any]:
        rehearsal.step(state, ranks=ranks)
        return fresh(state)

    for step in sorted(looked_at & set(range(STEPS))):
        rehearsal.advance(state, step)
        one, other = accumulated(micro_step, 2, restart_of(state.method, state.optimizers))
        names = differing(one, other)
        if names:
            raise Problem(
                f"after step {step} two devices differ in {', '.join(names[:3])} — average gradients by ctx.backward, "
                "and sum what is kept of a batch by ctx.all_reduce"
            )
        state.step += 1


def leaves_global_generators(rehearsal: Rehearsal) -> None:
    """No construction and no step reseeds torch's global generator or uses those of numpy and Python."""
    rehearsal.advance(rehearsal.start(), 2)


def opens_no_file(rehearsal: Rehearsal) -> None:
    """Training and prediction open no file: a method sees cases through its batches alone."""
    method = rehearsal.deployed()  # what is imported on first use is imported now
    with _opened() as paths:
        rehearsal.advance(rehearsal.start())
        _predict(method, rehearsal.case(0, 0)[0][None])
    if paths:
        raise Problem(f"opens {paths[0]}")


def three_source_centers(rehearsal: Rehearsal) -> None:
    """The method trains with three source centers too."""
    finite_losses(Rehearsal(rehearsal.info, rehearsal.config, n_sources=3))


def countable(rehearsal: Rehearsal) -> None:
    """Parameters and operations can be counted on the ``meta`` device, as trained and as deployed."""
    method = build_method(rehearsal.info, rehearsal.config, rehearsal.setup(), 0, torch.device("meta"))
    shape = (1, 1, *SIDES[rehearsal.ndim])
    count_cost(method, shape, convention="table-vi")
    method.deploy()
    if count_cost(method, shape, convention="macs", call=_predict_any).gflops <= 0:
        raise Problem("prediction costs nothing")


def card_is_complete(rehearsal: Rehearsal) -> None:
    """The card has its sections and explains every setting."""
    text = card(rehearsal.info)
    if text is None:
        raise Problem("no card: write README.md beside the plugin's __init__.py")
    lacking = [section for section in CARD_SECTIONS if section not in text]
    if lacking:
        raise Problem(f"the card lacks the section {', '.join(lacking)}")
    unexplained = [key for key in rehearsal.info.config.model_fields if f"`{key}`" not in text]
    if unexplained:
        raise Problem(f"the card does not explain `{'`, `'.join(unexplained)}`")


def _predict(method: Method[Any], image: Tensor) -> Tensor:
    method.begin_case(image)
    with torch.no_grad():
        answer = method.predict(image)
    method.end_case()
    return answer


def _predict_any(method: Any, image: Tensor) -> Tensor:
    return _predict(method, image)


class _Watch:
    """What Python's audit hook, which cannot be removed, tells while a list is set."""

    paths: ClassVar[list[str] | None] = None
    installed: ClassVar[bool] = False

    @classmethod
    def audit(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if cls.paths is not None and event == "open" and isinstance(arguments[0], str | bytes):
            path = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode(errors="replace")
            if not path.endswith((".py", ".pyc", ".so")):
                cls.paths.append(path)


@contextmanager
def _opened() -> Iterator[list[str]]:
    """The paths opened inside the block, source files of modules left out."""
    if not _Watch.installed:
        sys.addaudithook(_Watch.audit)
        _Watch.installed = True
    paths: list[str] = []
    _Watch.paths = paths
    try:
        yield paths
    finally:
        _Watch.paths = None


CHECKS: tuple[Check, ...] = (
    builds,
    leaves_global_generators,
    finite_losses,
    mixed_precision,
    gradients_reach_the_backbone,
    output_shape,
    deterministic,
    evaluation_is_repeatable,
    resumes_exactly,
    two_devices,
    opens_no_file,
    three_source_centers,
    countable,
    card_is_complete,
)
