"""Exact resume: however a training is ended and however often, what it leaves when it is done is equal to the byte (protocol.md §3)."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from training_fixtures import AfterStep, KillAfterStep, KillAtWrite, Mini, alone, differences, life, outcome, quiet

from dgbench.atomic import read_json, read_jsonl
from dgbench.errors import DgbenchError, HeldOutAccessError, Interrupted
from dgbench.evaluation.job import load_trained
from dgbench.launch.execute import execute
from dgbench.store.checkpoint_file import load_checkpoint
from dgbench.store.folder import read_status
from dgbench.training import loop
from dgbench.training.job import RECIPE, TrainJob
from dgbench.training.loop import train

GOLDEN_RECIPE = 1
GOLDEN_LOSSES = (3.726805, 2.068596, 1.350895)
"""The first losses of erm on the mini protocol with seed 0, written down when the recipe was GOLDEN_RECIPE."""


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return Mini.write(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def whole(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainJob]:
    """erm and randconv, trained without interruption in this process, without loader workers."""
    runs = tmp_path_factory.mktemp("runs")
    jobs = {method: mini.job(runs, method) for method in ("erm", "randconv")}
    for job in jobs.values():
        train(job, quiet)
    return jobs


def assert_equal(job: TrainJob, reference: TrainJob) -> None:
    assert job.key == reference.key
    assert differences(outcome(job.folder), outcome(reference.folder)) == []


def kill_at_random_instants(job: TrainJob, deaths: int, seed: int) -> None:
    """Train ``job`` through ``deaths`` kills, each up to a few steps after a step that was drawn, then to its end."""
    rng = random.Random(seed)
    for step in sorted(rng.sample(range(1, job.steps), deaths)):
        assert life(job, KillAfterStep(step, rng.uniform(0, 0.15))) == -signal.SIGKILL
        assert not (job.folder / "result.json").exists() or step > job.steps - 4
    assert life(job, None) == 0


@pytest.mark.parametrize(("method", "workers"), [("erm", 0), ("randconv", 2)])
def test_killed_at_random_instants(
    mini: Mini, whole: dict[str, TrainJob], tmp_path: Path, method: str, workers: int
) -> None:
    job = mini.job(tmp_path, method, workers=workers)
    kill_at_random_instants(job, deaths=5, seed=workers)
    assert_equal(job, whole[method])


@pytest.mark.slow
@pytest.mark.parametrize("repeat", range(2))
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", ["erm", "randconv"])
def test_killed_at_thirty_random_instants(
    mini: Mini, whole: dict[str, TrainJob], tmp_path: Path, method: str, workers: int, repeat: int
) -> None:
    for part in range(3):
        job = mini.job(tmp_path / str(part), method, workers=workers)
        kill_at_random_instants(job, deaths=5, seed=1000 + 100 * repeat + 10 * part + workers)
        assert_equal(job, whole[method])


def test_killed_between_two_writes(mini: Mini, whole: dict[str, TrainJob], tmp_path: Path) -> None:
    job = mini.job(tmp_path, "erm")
    rng = random.Random(0)
    for count in (rng.randrange(1, 30) for _ in range(4)):
        assert life(job, KillAtWrite(count)) in (-signal.SIGKILL, 0)
    assert life(job, None) == 0
    assert_equal(job, whole["erm"])


@pytest.mark.slow
def test_killed_before_every_write_of_a_run(mini: Mini, whole: dict[str, TrainJob], tmp_path: Path) -> None:
    count, killed = 0, True
    while killed:
        count += 1
        job = mini.job(tmp_path / str(count), "erm")
        killed = life(job, KillAtWrite(count)) == -signal.SIGKILL
        assert life(job, None) == 0
        assert_equal(job, whole["erm"])
    assert count > 20


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_after_the_step_with_everything_saved(
    mini: Mini, whole: dict[str, TrainJob], tmp_path: Path, asked: signal.Signals
) -> None:
    job = mini.job(tmp_path, "erm")
    before = signal.getsignal(asked)
    with pytest.raises(
        Interrupted, match=f"^lesion: stopped by {asked.name} after step 3 of 8; the same command goes on"
    ):
        train(job, AfterStep(2, asked))
    assert signal.getsignal(asked) is before
    assert load_checkpoint(job.folder / "last").meta["step"] == 3
    assert [row["step"] for row in read_jsonl(job.folder / "steps.jsonl")] == [1, 2, 3]
    train(job, quiet)
    assert_equal(job, whole["erm"])


def test_a_signal_in_the_last_step_changes_nothing(mini: Mini, whole: dict[str, TrainJob], tmp_path: Path) -> None:
    job = mini.job(tmp_path, "erm")
    train(job, AfterStep(job.steps - 1, signal.SIGTERM))
    assert_equal(job, whole["erm"])


@dataclass
class LateRequest:
    """A stop request that arrives right after the loop has looked for one ``looks`` times."""

    looks: int

    @property
    def signal_name(self) -> str | None:
        self.looks -= 1
        return "SIGTERM" if self.looks < 0 else None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@pytest.mark.parametrize("looks", range(1, 5))
def test_wherever_in_a_step_a_signal_falls_no_log_row_is_lost(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    job = mini.job(tmp_path, "erm")

    @contextmanager
    def request() -> Iterator[LateRequest]:
        yield LateRequest(looks)

    monkeypatch.setattr(loop, "stop_requests", request)
    with pytest.raises(Interrupted):
        train(job, quiet)
    saved = load_checkpoint(job.folder / "last").meta["step"]
    assert [row["step"] for row in read_jsonl(job.folder / "steps.jsonl")] == list(range(1, saved + 1))


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_flipped_bit_in_the_newest_checkpoint_costs_the_steps_since_the_one_before(
    mini: Mini, whole: dict[str, TrainJob], tmp_path: Path, suffix: str
) -> None:
    job = mini.job(tmp_path, "erm", checkpoint_every=2)
    job = replace(job, key=whole["erm"].key)  # fewer checkpoints would be another key; the numbers are the same
    with pytest.raises(Interrupted):
        train(job, AfterStep(4, signal.SIGTERM))
    newest = flip_bit(job.folder, "last", suffix)
    told: list[str] = []
    train(job, lambda done, total, text="": told.append(text))
    (line,) = (text for text in told if text.startswith("going on from"))
    assert newest.name in line
    assert re.search("the checksum does not match|not readable as JSON", line)
    assert "\n" not in line
    assert_equal(job, whole["erm"])


def test_without_an_intact_checkpoint_nothing_is_trained(mini: Mini, tmp_path: Path) -> None:
    job = mini.job(tmp_path, "erm", checkpoint_every=2)
    with pytest.raises(Interrupted):
        train(job, AfterStep(2, signal.SIGTERM))
    for path in job.folder.glob("last-*.json"):
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DgbenchError, match=r"no intact checkpoint is left, remove the folder and run again$") as caught:
        train(job, quiet)
    assert "\n" not in str(caught.value)


def test_a_damaged_selected_checkpoint_is_not_replaced_by_one_that_was_not_selected(
    whole: dict[str, TrainJob], tmp_path: Path
) -> None:
    job = replace(whole["randconv"], folder=tmp_path / "copy")
    shutil.copytree(whole["randconv"].folder, job.folder)
    assert len(list(job.folder.glob("best-*.safetensors"))) == 2
    load_trained(job, "source-val", torch.device("cpu"))
    flip_bit(job.folder, "best", "safetensors")
    with pytest.raises(DgbenchError, match=r"best-000002.*the checksum does not match.* — delete .* and run again$"):
        load_trained(job, "source-val", torch.device("cpu"))


def test_a_checkpoint_of_another_run_is_refused(mini: Mini, whole: dict[str, TrainJob]) -> None:
    other = mini.job(whole["erm"].folder.parent, "erm", seed=1)
    before = outcome(whole["erm"].folder)
    with pytest.raises(
        DgbenchError, match=rf"belongs to another run \({whole['erm'].key[:8]}, not {other.key[:8]}\)"
    ) as e:
        train(replace(other, folder=whole["erm"].folder), quiet)
    assert "\n" not in str(e.value)
    assert differences(outcome(whole["erm"].folder), before) == []


def test_a_log_that_lost_rows_is_not_gone_on_with(mini: Mini, tmp_path: Path) -> None:
    job = mini.job(tmp_path, "erm")
    with pytest.raises(Interrupted):
        train(job, AfterStep(2, signal.SIGTERM))
    log = job.folder / "steps.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(DgbenchError, match=r"steps.jsonl: 2 of 3 rows are left — use --fresh to start over$"):
        train(job, quiet)


def test_the_number_of_loader_workers_changes_nothing(mini: Mini, whole: dict[str, TrainJob], tmp_path: Path) -> None:
    job = mini.job(tmp_path, "erm", workers=2)
    train(job, quiet)
    assert_equal(job, whole["erm"])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_loader_is_one_line_with_and_without_workers(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def refuse(*_: object) -> None:
        raise DgbenchError("case ALPHA/case_00: unreadable: truly")

    monkeypatch.setattr(loop.CropDataset, "__getitem__", refuse)
    with pytest.raises(DgbenchError, match=r"^case ALPHA/case_00: unreadable: truly$"):
        train(mini.job(tmp_path, "erm", workers=workers), quiet)
    assert multiprocessing.active_children() == []


def test_loader_workers_end_with_the_training_that_is_stopped(mini: Mini, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(mini.job(tmp_path, "erm", workers=2), AfterStep(1, signal.SIGTERM))
    assert multiprocessing.active_children() == []


def open_heldout_in_the_loader(job: TrainJob) -> None:
    """What a process of its own does: train ``job`` with a loader that opens an image of the held-out center."""
    target = next(center for center in job.centers if center.name == "GAMMA").cases[0].image

    def peek(*_: object) -> None:
        target.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.CropDataset, "__getitem__", peek)
        with pytest.raises(HeldOutAccessError, match=f"^{re.escape(str(target))}"):
            train(job, quiet)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_held_out_center_is_unreadable_for_the_loader_of_a_job(mini: Mini, tmp_path: Path, workers: int) -> None:
    assert alone(open_heldout_in_the_loader, mini.job(tmp_path, "erm", workers=workers)) == 0


def test_an_interrupted_run_says_so_and_the_same_call_finishes_it(mini: Mini, tmp_path: Path) -> None:
    """The whole way: a signal to the process that waits reaches the one that trains; its state is saved, and the next call goes on."""
    settings = {"stages.organ.draws": 40, "stages.lesion.draws": 2, "validations": 1, "checkpoints": "[source-val]"}
    plan = mini.plan(tmp_path / "stopped", "erm", **settings)
    organ = plan.own.training[0]
    guard = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    watcher = threading.Thread(target=terminate_when, args=(organ.folder / "last-000001.json",))
    try:
        watcher.start()
        with pytest.raises(Interrupted, match=r"^organ: stopped by SIGTERM after step \d+ of 20"):
            execute(plan, fresh=False, say=lambda _: None)
    finally:
        watcher.join()
        signal.signal(signal.SIGTERM, guard)
    assert [read_status(folder).state for folder in (plan.own.folder, organ.folder)] == ["interrupted"] * 2
    assert "the same command goes on" in str(read_status(plan.own.folder).reason)
    step = load_checkpoint(organ.folder / "last").meta["step"]
    assert 4 < step < 20
    assert execute(plan, fresh=False, say=lambda _: None)
    assert read_status(plan.own.folder).state == "done"
    undisturbed = mini.plan(tmp_path / "undisturbed", "erm", **settings).own.training[0]
    train(undisturbed, quiet)
    assert_equal(organ, undisturbed)


def terminate_when(path: Path) -> None:
    """SIGTERM to this process as soon as ``path`` is there."""
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def flip_bit(folder: Path, name: str, suffix: str) -> Path:
    """Flip one bit in the middle of the newest file of a checkpoint."""
    newest = max(folder.glob(f"{name}-*.{suffix}"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))
    return newest


def test_the_numerics_are_those_of_the_recipe(whole: dict[str, TrainJob]) -> None:
    losses = [row["loss"] for row in read_jsonl(whole["erm"].folder / "steps.jsonl")][: len(GOLDEN_LOSSES)]
    assert read_json(whole["erm"].folder / "result.json")["steps"] == whole["erm"].steps
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-3), (
        "the first losses of erm changed: if the change is meant, raise RECIPE in dgbench/training/job.py, so that no old result "
        f"is taken for a new one, and write {losses} and the new recipe here"
    )
    assert RECIPE == GOLDEN_RECIPE, f"RECIPE was raised to {RECIPE}: write {losses} and the new recipe here"
