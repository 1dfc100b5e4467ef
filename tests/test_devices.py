"""Two devices in one run: equal to one device that accumulates the same two micro-steps; and what happens when a device dies or hangs."""

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import contract_plugins
import pytest
import torch
from training_fixtures import AfterStep, Mini, differences, outcome, quiet

from dgbench.atomic import read_json, read_jsonl
from dgbench.errors import DgbenchError, Interrupted, NotApplicable
from dgbench.info import MethodInfo
from dgbench.launch.ranks import run_ranks
from dgbench.ops.losses import segmentation_loss
from dgbench.registry import discover
from dgbench.seeds import derive_seed
from dgbench.store.checkpoint_file import load_checkpoint, unflatten_state
from dgbench.testing.accumulation import accumulated, restart_of
from dgbench.training import loop
from dgbench.training.distributed import Ranks
from dgbench.training.job import TrainJob
from dgbench.training.schedule import poly_lr
from dgbench.training.step import TrainingContext, run_step

DEFAULT = ("erm", "saml", "dofe", "contract_plugins:Sam")
"""Plain; fast weights and three optimisers; phases and a memory; two backward passes with a change of the weights between them."""
VARIANTS = {
    "mixstyle": {"mix": "bank"},
    "dart": {"deploy": "ensemble"},
    "dofe": {"pool_update": "frozen"},
    "saml": {"release_split": True},
}
"""Settings beside the defaults that change what is kept or exchanged."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As each rank has: sums in another order differ in their last bits, which Adam's first steps make visible."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return Mini.write(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def erm(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """erm, trained on two devices without interruption."""
    job = mini.job(tmp_path_factory.mktemp("erm"), "erm", devices=2)
    run_ranks(job, quiet)
    return job


def batches(training: loop.StageTraining, size: int) -> Iterator[tuple[int, list[Any]]]:
    """The micro-batches of each step."""
    job = training.job
    streams = [loop._batches(replace(training, ranks=Ranks(rank, size)), 0, job.steps) for rank in range(size)]
    for together in zip(*streams, strict=True):
        yield together[0][0], [batch for _, batch in together]


def one_device(job: TrainJob) -> tuple[dict[str, Any], list[float]]:
    """Train ``job`` in this process, accumulating the micro-steps of its devices: the method's state, and the mean loss of each step."""
    training = loop._build(job, quiet, Ranks())
    method, optimizers = training.method, training.optimizers
    losses = []
    for step, parts in batches(training, job.devices):

        def micro_step(ranks: Ranks, step: int = step, parts: list[Any] = parts) -> float | None:
            torch.manual_seed(derive_seed(job.seed, "step", job.stage, ranks.micro_step(step)))
            context = TrainingContext(
                seed=derive_seed(job.seed, job.stage),
                step=step,
                total_steps=job.steps,
                optimizers=optimizers,
                ranks=ranks,
            )
            found = run_step(method, parts[ranks.rank], context)[2].get("loss")
            return None if found is None else float(found)

        found = [
            loss for loss in accumulated(micro_step, job.devices, restart_of(method, optimizers)) if loss is not None
        ]
        if found:
            losses.append(sum(found) / len(found))
    return method.state_dict(), losses


def assert_close(job: TrainJob, state: dict[str, Any], losses: list[float]) -> None:
    """What ``job`` left agrees with ``state`` and ``losses`` within 1e-5."""
    checkpoint = load_checkpoint(job.folder / "last")
    trained = unflatten_state(checkpoint.tensors, checkpoint.meta["state"])["method"]
    assert trained.keys() == state.keys()
    worst = {
        name: float((value - trained[name]).abs().max())
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    assert {name: difference for name, difference in worst.items() if not difference <= 1e-5} == {}
    logged = [row["loss"] for row in read_jsonl(job.folder / "steps.jsonl") if "loss" in row]
    assert logged == pytest.approx(losses, abs=1e-5)


def two_devices_equal_one(mini: Mini, runs: Path, method: str, settings: dict[str, Any]) -> None:
    job = mini.job(runs, method, devices=2)
    job = replace(job, config=job.info.config.model_validate({**job.info.defaults, **settings}))
    run_ranks(job, quiet)
    assert_close(job, *one_device(job))


@pytest.mark.parametrize("method", DEFAULT)
def test_two_devices_equal_one_that_accumulates(mini: Mini, tmp_path: Path, method: str) -> None:
    two_devices_equal_one(mini, tmp_path, method, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [name for name, info in discover().items() if isinstance(info, MethodInfo) and name not in DEFAULT]
)
def test_every_method_is_the_same_on_two_devices(mini: Mini, tmp_path: Path, method: str) -> None:
    two_devices_equal_one(mini, tmp_path, method, {})


@pytest.mark.slow
@pytest.mark.parametrize("method", VARIANTS)
def test_every_way_of_exchanging_is_the_same_on_two_devices(mini: Mini, tmp_path: Path, method: str) -> None:
    two_devices_equal_one(mini, tmp_path, method, VARIANTS[method])


def test_plain_accumulation_of_gradients_gives_the_same(erm: TrainJob) -> None:
    """The textbook's loop, without any of the harness's steps."""
    training = loop._build(erm, quiet, Ranks())
    (optimizer,) = training.optimizers
    method, losses = training.method.train(), []
    for step, parts in batches(training, 2):
        optimizer.param_groups[0]["lr"] = 3e-3 * poly_lr(step, erm.steps)
        optimizer.zero_grad()
        losses.append(0.0)
        for rank, part in enumerate(parts):
            torch.manual_seed(derive_seed(erm.seed, "step", erm.stage, 2 * step + rank))
            loss = segmentation_loss(method.backbone(part.image), part.label) / 2
            loss.backward()  # type: ignore[no-untyped-call]
            losses[-1] += float(loss.detach())
        optimizer.step()
    assert_close(erm, method.state_dict(), losses)


def test_two_devices_draw_what_one_draws_in_half_as_many_steps(mini: Mini, erm: TrainJob, tmp_path: Path) -> None:
    single = mini.job(tmp_path, "erm")
    assert (single.steps, erm.steps) == (8, 4)
    assert read_json(erm.folder / "result.json")["draws"] == single.steps * single.cases_per_step == 16
    assert [row["step"] for row in read_jsonl(erm.folder / "steps.jsonl")] == [1, 2, 3, 4]
    drawn = [part.domain.tolist() for _, parts in batches(loop._build(erm, quiet, Ranks()), 2) for part in parts]
    alone = [part.domain.tolist() for _, (part,) in batches(loop._build(single, quiet, Ranks()), 1)]
    assert drawn == alone


def test_two_devices_are_another_key_and_one_device_is_as_ever(mini: Mini, tmp_path: Path) -> None:
    one, two = (mini.plan(tmp_path, "erm", devices=devices).own for devices in (1, 2))
    assert two.spec.environment.devices == 2
    assert one.spec.key != two.spec.key
    assert one.training[0].identity["environment"]["devices"] == 1
    patient = replace(mini.plan(tmp_path, "erm", devices=2).request, rank_timeout=7.0)
    assert loop_key(mini, patient) == two.spec.key


def loop_key(mini: Mini, request: Any) -> str:
    from dgbench.launch.plan import plan_run

    return plan_run(request).own.spec.key


def test_a_method_that_cannot_be_split_says_so_before_anything_starts(mini: Mini, tmp_path: Path) -> None:
    mini.plan(tmp_path, "contract_plugins:Undivided")
    with pytest.raises(
        NotApplicable, match=r"^method undivided runs on one device: its statistics are of the whole batch$"
    ):
        mini.plan(tmp_path, "contract_plugins:Undivided", devices=2)
    assert not list(tmp_path.iterdir())


def test_state_that_drifts_apart_never_reaches_a_checkpoint(mini: Mini, tmp_path: Path) -> None:
    """A memory of the batches of one device only."""
    job = mini.job(tmp_path, "contract_plugins:Dofe", devices=2)
    with pytest.raises(
        DgbenchError,
        match=r"^lesion: after step 2 the state of method dofe differs between devices \(memory, seen\) — gradients",
    ):
        run_ranks(job, quiet)
    assert not list(job.folder.glob("last-*"))


def test_a_memory_of_validations_is_the_same_on_every_device(mini: Mini, tmp_path: Path) -> None:
    job = mini.job(tmp_path, "contract_plugins:Swad", devices=2)
    run_ranks(job, quiet)
    checkpoint = load_checkpoint(job.folder / "last")
    state = unflatten_state(checkpoint.tensors, checkpoint.meta["state"])["method"]
    assert len(state["_extra_state"]["scores"]) == 2 * len(job.split.validation)


def frail(job: TrainJob, **settings: Any) -> TrainJob:
    return replace(job, config=contract_plugins.FrailConfig(**settings))


@pytest.fixture(scope="module")
def hale(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """The frail method without a failure, saved in every step."""
    job = mini.job(tmp_path_factory.mktemp("hale"), "contract_plugins:Frail", devices=2, checkpoint_every=1)
    run_ranks(job, quiet)
    return job


def copy_of(job: TrainJob, runs: Path) -> TrainJob:
    """The same training in another folder, untouched."""
    return replace(job, folder=runs / "lesion", runs=runs)


def test_a_dead_rank_ends_the_run_with_its_name_and_the_run_goes_on_from_there(hale: TrainJob, tmp_path: Path) -> None:
    job = copy_of(hale, tmp_path)
    with pytest.raises(
        DgbenchError,
        match=r"^lesion, rank 1 of 2: the process ended unexpectedly \(signal 9, out of memory, probably\); the same command goes on",
    ):
        run_ranks(frail(job, at=2, number=signal.SIGKILL), quiet)
    assert load_checkpoint(job.folder / "last").meta["step"] in (1, 2)  # rank 0 may still have been at the second
    run_ranks(job, quiet)
    assert differences(outcome(job.folder), outcome(hale.folder)) == []


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_with_its_name(hale: TrainJob, tmp_path: Path) -> None:
    job = replace(copy_of(hale, tmp_path), rank_timeout=10.0)
    with pytest.raises(DgbenchError, match=r"^lesion, rank 1 of 2: no answer for 10 s — .*--rank-timeout$"):
        run_ranks(frail(job, at=2, number=signal.SIGSTOP), quiet)
    assert load_checkpoint(job.folder / "last").meta["step"] in (1, 2)  # rank 0 may still have been at the second


def test_the_held_out_center_is_unreadable_on_every_device(hale: TrainJob, tmp_path: Path) -> None:
    target = next(center for center in hale.centers if center.name == "GAMMA").cases[0].image
    with pytest.raises(DgbenchError, match=f"^{re.escape(str(target))}: belongs to a case outside the allow-list"):
        run_ranks(frail(copy_of(hale, tmp_path), at=1, file=str(target)), quiet)


def test_a_signal_stops_all_after_the_same_step_and_the_run_ends_as_if_there_had_been_none(
    erm: TrainJob, tmp_path: Path
) -> None:
    job = copy_of(erm, tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"^lesion: stopped by SIGTERM after step \d of 4; the same command goes on"):
        run_ranks(job, AfterStep(1, signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before
    assert load_checkpoint(job.folder / "last").meta["step"] < 4
    run_ranks(job, quiet)
    assert differences(outcome(job.folder), outcome(erm.folder)) == []


def test_ranks_that_exchange_nothing_are_left_alone() -> None:
    value, tensor = {"a": 1}, torch.ones(2, requires_grad=True)
    alone = Ranks()
    assert alone.gather(value) == [value]
    assert alone.gather(value)[0] is value
    assert alone.total(tensor) is tensor
    with pytest.raises(DgbenchError, match="no gradient between devices"):
        Ranks(0, 2, lambda sum_of: sum_of).total(tensor)


def test_a_gradient_that_only_one_device_has_counts_and_one_that_none_has_stays_away() -> None:
    here, there, nowhere = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))

    def micro_step(ranks: Ranks) -> list[Any]:
        for parameter in (here, there, nowhere):
            parameter.grad = None
        (here if ranks.rank == 0 else there).grad = torch.tensor([2.0, 4.0])
        ranks.average_gradients([here, there, nowhere, here])
        return [None if parameter.grad is None else parameter.grad.tolist() for parameter in (here, there, nowhere)]

    assert accumulated(micro_step, 2, lambda: None) == [[[1.0, 2.0], [1.0, 2.0], None]] * 2


def test_no_process_is_left_behind(erm: TrainJob) -> None:
    import multiprocessing

    assert [child for child in multiprocessing.active_children() if "rank" in child.name] == []
    assert os.getpid() > 0
