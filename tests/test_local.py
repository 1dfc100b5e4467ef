"""Many jobs on one machine: what they need is done before, slots are never overfull, a failure takes nobody with it but those that need it,
and what comes out is what one run after another gives."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_fixtures import Mini, differences, outcome

from dgbench.errors import DgbenchError, Interrupted
from dgbench.launch import jobs, local
from dgbench.launch.execute import execute
from dgbench.launch.graph import Graph, build_graph, find_job
from dgbench.launch.jobs import Job, do, jobs_of
from dgbench.launch.local import Outcome, Slot, run_graph, slots_for
from dgbench.launch.worker import JobDied, JobProcess, Progress
from dgbench.store.folder import read_status
from dgbench.store.lock import FolderLock, LockHeld


class Silent:
    """A board that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def show(self, ended: int, total: int, running: Sequence[tuple[str, Progress]]) -> None:
        """Nothing."""


@dataclass
class Stage:
    """Jobs that only take their time: what is done when, by whom, and how full the machine was."""

    behaviour: dict[str, Callable[[], None]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    running: int = 0
    fullest: int = 0
    lost: list[str] = field(default_factory=list)

    def do(self, job: Any, run: Any, say: Any, *, wait: float) -> bool:
        assert wait == 0
        self.events.append(f"start {job.id}")
        self.running += 1
        self.fullest = max(self.fullest, self.running)
        try:
            time.sleep(0.02)
            self.behaviour.get(job.id, lambda: None)()
        finally:
            self.running -= 1
        self.events.append(f"end {job.id}")
        return True

    def graph(self, needs: dict[str, tuple[str, ...]], devices: int = 1) -> Graph:
        plan = SimpleNamespace(request=SimpleNamespace(devices=devices))
        made: dict[str, Any] = {
            name: SimpleNamespace(id=name, needs=tuple(wanted), plan=plan, part=None, folder=Path(name))
            for name, wanted in needs.items()
        }
        return Graph((), made)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage()
    monkeypatch.setattr(local, "do", made.do)
    monkeypatch.setattr(local, "give_up", lambda job, reason: made.lost.append(job.id))
    monkeypatch.setattr(local, "is_cancelled", lambda part: False)
    monkeypatch.setattr("dgbench.launch.graph.is_done", lambda job: False)
    return made


def fail() -> None:
    raise DgbenchError("no luck")


DIAMOND = {"a": (), "b": (), "c": ("a",), "d": ("b", "c"), "e": ()}


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_every_job_once_after_what_it_needs_and_no_more_at_once_than_there_are_slots(stage: Stage, slots: int) -> None:
    ended: list[str] = []
    result = run_graph(stage.graph(DIAMOND), [Slot()] * slots, Silent(), lambda job: ended.append(job.id))
    assert result == Outcome(done=set(DIAMOND), worked=set(DIAMOND))
    assert sorted(ended) == sorted(DIAMOND)
    assert stage.fullest == slots
    for name, needs in DIAMOND.items():
        assert stage.events.count(f"start {name}") == 1
        for need in needs:
            assert stage.events.index(f"end {need}") < stage.events.index(f"start {name}")


def test_one_slot_keeps_the_order_in_which_the_runs_were_asked_for(stage: Stage) -> None:
    run_graph(stage.graph(DIAMOND), [Slot()], Silent())
    assert [event for event in stage.events if event.startswith("start")] == [f"start {name}" for name in "abcde"]


def test_a_failure_takes_those_that_need_it_with_it_and_no_others(stage: Stage) -> None:
    stage.behaviour["a"] = fail
    result = run_graph(stage.graph(DIAMOND), [Slot()] * 2, Silent())
    assert result.done == {"b", "e"}
    assert result.failed == {"a": "no luck", "c": "needs a: no luck", "d": "needs c: needs a: no luck"}
    assert sorted(stage.lost) == ["c", "d"]


def test_a_job_that_another_process_holds_is_asked_for_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "ASK_AGAIN", 0.1)
    answers = [LockHeld("a: another process (process 1) is working on it — wait")] * 2

    def held() -> None:
        if answers:
            raise answers.pop()

    stage.behaviour["a"] = held
    board = Silent()
    assert run_graph(stage.graph(DIAMOND), [Slot()], board).done == set(DIAMOND)
    assert stage.events.count("start a") == 3
    assert board.said.count("a: another process (process 1) is working on it") == 1
    assert stage.events.index("end b") < stage.events.index("end a"), "nobody waits for it without need"


def test_a_run_on_two_devices_gets_two_gpus_and_one_on_one_the_rest(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, str]] = []
    monkeypatch.setattr(
        local,
        "JobProcess",
        lambda *_, environment, **__: (
            given.append(environment) or SimpleNamespace(run=lambda: None, progress=Progress())
        ),
    )
    monkeypatch.setattr(
        local,
        "do",
        lambda job, run, say, wait: run(None, None, "title", Path(), lambda: False) or time.sleep(0.02) or True,
    )
    slots = [Slot("0"), Slot("1"), Slot("0"), Slot("1")]
    run_graph(stage.graph({"a": (), "b": (), "c": ()}, devices=2), slots, Silent())
    assert given == [{"CUDA_VISIBLE_DEVICES": "0,1"}] * 3
    given.clear()
    run_graph(stage.graph({"a": (), "b": (), "c": ()}), slots[:2], Silent())
    assert given == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": "0"}]


def test_after_a_signal_nothing_new_is_started(stage: Stage) -> None:
    stage.behaviour["a"] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"^SIGTERM: 1 of 5 jobs are done; the same command goes on from there$"):
        run_graph(stage.graph(DIAMOND), [Slot()], Silent())
    assert [event for event in stage.events if event.startswith("start")] == ["start a"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return Mini.write(tmp_path_factory.mktemp("mini"))


@pytest.mark.slow
def test_two_at_once_give_the_bytes_of_one_after_another(shared: Mini, tmp_path: Path) -> None:
    names = ("erm", "randconv")
    alone = [shared.plan(tmp_path / "alone", name) for name in names]
    for plan in alone:
        execute(plan, fresh=False, say=lambda _: None)
    together = [shared.plan(tmp_path / "together", name) for name in names]
    graph = build_graph([plan.request for plan in together])
    board = Silent()
    result = run_graph(graph, [Slot()] * 2, board)
    assert result.done == result.worked == set(graph.jobs)
    assert len(graph.jobs) == 6
    for one, other in zip(alone, together, strict=True):
        for left, right in zip(one.own.training, other.own.training, strict=True):
            assert differences(outcome(left.folder), outcome(right.folder)) == []
        rows = [plan.own.folder / "evaluation" / "cases.parquet" for plan in (one, other)]
        assert rows[0].read_bytes() == rows[1].read_bytes()
        assert read_status(other.own.folder).state == "done"
    again = run_graph(graph, [Slot()] * 2, Silent())
    assert (again.done, again.worked) == (set(graph.jobs), set())
    assert any("train organ with randconv" in line for line in board.said)
    log = (together[0].own.folder / "evaluation" / "log.txt").read_text()
    assert "evaluate organ, lesion on" in log
    assert "evaluation: 6/6" in log


def test_any_process_can_find_a_job_by_its_name(shared: Mini, tmp_path: Path) -> None:
    plan = shared.plan(tmp_path)
    job = jobs_of(plan)[1]
    jobs.prepare_folder(job)
    found = find_job(tmp_path, job.id)
    assert found.training is not None
    assert job.training is not None
    assert (found.id, found.training.key, found.needs) == (job.id, job.training.key, ())
    assert find_job(tmp_path, f"{job.id.rpartition('/')[0]}/evaluation").needs == tuple(
        one.id for one in jobs_of(plan)[:2]
    )
    for wrong, reason in (
        ("mini/GAMMA/erm/lesion", "names no job"),
        ("../../GAMMA/erm/seed0-00000000/lesion", "names no job"),
        ("mini/GAMMA/erm/seed0-00000000/lesion", "no such file — start the run with"),
        (f"{job.id}x", "the code, the data or the kind of machine changed"),
    ):
        with pytest.raises(DgbenchError, match=reason):
            find_job(tmp_path, wrong)


def first_jobs(mini: Mini, runs: Path) -> Job:
    return jobs_of(mini.plan(runs))[0]


def test_a_job_whose_process_died_is_tried_once_more_with_a_note(shared: Mini, tmp_path: Path) -> None:
    for deaths, state in ((1, "done"), (2, "failed")):
        job = first_jobs(shared, tmp_path / state)
        left = [JobDied("organ: the process ended unexpectedly (signal 9)")] * deaths

        def run(*_: Any, left: list[JobDied] = left, job: Job = job) -> None:
            if left:
                (job.folder / ".tmp-0a1b2c3d-cases.parquet").touch()
                raise left.pop()

        said: list[str] = []
        if state == "done":
            assert do(job, run, said.append)
        else:
            with pytest.raises(JobDied, match="signal 9"):
                do(job, run, said.append)
        assert read_status(job.folder).state == state
        assert bool(list(job.folder.glob(".tmp-*"))) == (state == "failed"), (
            "what a dead process left goes with the next"
        )
        note = "the process ended unexpectedly (signal 9) — trying once more"
        assert any(note in line for line in said)
        assert note in (job.folder / "log.txt").read_text()


def test_nobody_waits_for_a_job_that_is_done(shared: Mini, tmp_path: Path) -> None:
    job = first_jobs(shared, tmp_path)
    assert do(job, lambda *_: None, lambda _: None)
    with FolderLock(job.folder):
        assert not do(job, fail_to_run, lambda _: None, wait=0.0)
    other = jobs_of(shared.plan(tmp_path))[1]
    with FolderLock(other.folder), pytest.raises(LockHeld, match="is working on it"):
        do(other, fail_to_run, lambda _: None, wait=0.0)


def fail_to_run(*_: Any) -> None:
    raise AssertionError("it was started")


def test_a_cancelled_run_is_not_started(shared: Mini, tmp_path: Path) -> None:
    job = first_jobs(shared, tmp_path)
    job.part.folder.mkdir(parents=True)
    (job.part.folder / jobs.CANCELLED).write_text("{}")
    with pytest.raises(Interrupted, match="was cancelled — `dgbench retry"):
        do(job, fail_to_run, lambda _: None)
    graph = build_graph([job.plan.request])
    result = run_graph(graph, [Slot()], Silent())
    assert result.done == set()
    assert set(result.cancelled) == set(graph.jobs)


def report_and(end: str, report: Any) -> None:
    """What the processes of the next tests do."""
    report(3, 8, "ALPHA/case_02")
    time.sleep(0.1)
    if end == "memory":
        raise MemoryError("cannot allocate")
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "wait":
        threading.Event().wait(60)
    sys.stdout.write("a word on stdout\n")
    sys.stdout.write(f"{os.environ['CUDA_VISIBLE_DEVICES']}\n")


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (
            "memory",
            r"^stage: MemoryError: cannot allocate \(at 3/8  ALPHA/case_02, \d+\.\d GiB in use\) — lower preset",
        ),
        ("killed", r"^stage: the process ended unexpectedly \(signal 9, at 3/8  ALPHA/case_02, \d+\.\d GiB in use\)"),
    ],
)
def test_a_dead_process_is_named_with_its_case_and_memory(tmp_path: Path, end: str, line: str) -> None:
    with pytest.raises(JobDied, match=line):
        JobProcess(report_and, end, "stage", tmp_path, alone=False).run()


def test_what_a_job_prints_is_in_its_log_and_its_gpu_is_set_in_its_process_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    JobProcess(report_and, "", "stage", tmp_path, environment={"CUDA_VISIBLE_DEVICES": "7"}, alone=False).run()
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "log.txt").read_text().splitlines() == ["a word on stdout", "7"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_job_that_is_cancelled_while_it_runs_stops(tmp_path: Path) -> None:
    process = JobProcess(
        report_and, "wait", "stage", tmp_path, cancelled=lambda: process.progress.done == 3, alone=False
    )
    with pytest.raises(Interrupted, match="stage: stopped at once"):
        process.run()
    assert process.sent == [signal.SIGTERM]


def test_a_job_starts_though_the_temporary_folder_was_emptied(tmp_path: Path) -> None:
    def work() -> None:
        JobProcess(report_and, "", "stage", tmp_path, environment={"CUDA_VISIBLE_DEVICES": "7"}, alone=False).run()

    work()
    socket = Path(forkserver._forkserver._forkserver_address)  # type: ignore[attr-defined]
    aside = socket.rename(tmp_path / "aside")
    try:
        work()
    finally:
        aside.rename(socket)
    work()
    assert (tmp_path / "log.txt").read_text().splitlines() == ["a word on stdout", "7"] * 3


def test_slots_on_the_cpu_and_on_gpus(shared: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = build_graph([shared.plan(tmp_path).request])
    assert slots_for(graph, gpus=None, jobs_per_gpu=1, jobs=3) == [Slot()] * 3
    with pytest.raises(DgbenchError, match="these compute on the CPU — use --jobs"):
        slots_for(graph, gpus="0", jobs_per_gpu=1, jobs=1)
    plan = SimpleNamespace(
        own=SimpleNamespace(spec=SimpleNamespace(environment=SimpleNamespace(device="cuda"))),
        request=SimpleNamespace(devices=2),
    )
    on_gpus: Any = SimpleNamespace(plans=(plan,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert slots_for(on_gpus, gpus=None, jobs_per_gpu=1, jobs=1) == [Slot("4"), Slot("5"), Slot("6")]
    assert slots_for(on_gpus, gpus="4, 6", jobs_per_gpu=2, jobs=1) == [Slot("4"), Slot("6")] * 2
    for arguments, line in (
        ({"gpus": "0", "jobs_per_gpu": 1, "jobs": 1}, r"--gpus: no GPU 0 — visible: 4, 5, 6"),
        ({"gpus": "4", "jobs_per_gpu": 2, "jobs": 1}, r"--devices 2: a run needs 2 GPUs, --gpus gives 1"),
        ({"gpus": None, "jobs_per_gpu": 1, "jobs": 2}, r"these compute on GPUs — use --jobs-per-gpu"),
    ):
        with pytest.raises(DgbenchError, match=line):
            slots_for(on_gpus, **arguments)  # type: ignore[arg-type]
