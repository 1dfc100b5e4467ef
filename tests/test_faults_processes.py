"""Processes that are lost or asked to stop at once: the cause is named, nothing hangs, and the same call goes on."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import Mini, differences, outcome, quiet

from dgbench.errors import DgbenchError, Interrupted
from dgbench.launch.execute import execute
from dgbench.launch.worker import run_job
from dgbench.store.folder import read_status
from dgbench.training import loop
from dgbench.training.interrupt import stop_requests
from dgbench.training.loop import train


def test_a_killed_loader_worker_is_named_and_the_same_training_goes_on(
    sound: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = sound.job(tmp_path / "killed", "erm", workers=1)
    here, load = os.getpid(), loop.CropDataset.__getitem__

    def die(dataset: Any, step: int) -> Any:
        if step == 7 and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(dataset, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop.CropDataset, "__getitem__", die)
        with pytest.raises(
            DgbenchError, match=r"^lesion: a loader worker was killed \(DataLoader worker .*Killed"
        ) as error:
            train(job, quiet)
    assert "lower preset.workers" in str(error.value)
    assert "\n" not in str(error.value)
    assert multiprocessing.active_children() == []
    assert list(job.folder.glob("last-*.json")), "the state before it is kept"
    train(job, quiet)
    undisturbed = sound.job(tmp_path / "undisturbed", "erm", workers=1)
    train(undisturbed, quiet)
    assert differences(outcome(job.folder), outcome(undisturbed.folder)) == []


def hang(marker: Path, report: Any) -> None:
    """A job whose step takes a minute and that only looks for stop requests between two steps."""
    with stop_requests() as stop:
        marker.touch()
        time.sleep(60)
        raise Interrupted(f"saved after {stop.signal_name}")


def test_the_second_ctrl_c_ends_a_job_at_once(tmp_path: Path) -> None:
    """The first one asks for a checkpoint, which a step that hangs never reaches."""
    marker = tmp_path / "running"

    def press_twice() -> None:
        while not marker.exists():
            time.sleep(0.02)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    fingers = threading.Thread(target=press_twice)
    fingers.start()
    try:
        with pytest.raises(Interrupted, match=r"^stage: stopped at once$"):
            run_job(hang, marker, "stage", tmp_path)
    finally:
        fingers.join()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_run_stopped_by_two_ctrl_c_goes_on_to_the_same_bytes(sound: Mini, tmp_path: Path) -> None:
    plan = sound.plan(tmp_path / "stopped")
    organ = plan.own.training[0]

    def press_twice() -> None:
        while not list(organ.folder.glob("last-*.json")):
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    fingers = threading.Thread(target=press_twice)
    fingers.start()
    try:
        with pytest.raises(Interrupted):
            execute(plan, fresh=False, say=lambda _: None)
    finally:
        fingers.join()
    assert read_status(plan.own.folder).state == "interrupted"
    assert not list(plan.own.folder.rglob(".lock"))
    assert execute(plan, fresh=False, say=lambda _: None)
    undisturbed = sound.job(tmp_path / "undisturbed").folder.parent
    for job in (*sound.plan(tmp_path / "undisturbed").own.training,):
        train(job, quiet)
        assert differences(outcome(plan.own.folder / job.stage), outcome(undisturbed / job.stage)) == []
