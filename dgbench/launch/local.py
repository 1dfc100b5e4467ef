"""Many jobs on one machine: one slot per GPU (or per share of it), or per job that runs side by side on the CPU.

A job is started when what it needs is done and a slot is free, in the order in which the runs were asked for. The state of the work lives
in the folders: another scheduler on the same runs folder sees what is done and whose lock is held, and a killed one loses nothing.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from dgbench.errors import DgbenchError, Interrupted
from dgbench.launch.graph import Graph
from dgbench.launch.jobs import Job, do, give_up, is_cancelled
from dgbench.launch.machine import visible_gpus
from dgbench.launch.worker import STOP_SIGNALS, JobProcess, Progress
from dgbench.store.lock import LockHeld

LOOK_EVERY = 0.25
"""Seconds between two looks at the jobs when none of them says anything."""
ASK_AGAIN = 5.0
"""Seconds until a job that another process holds is looked at again."""


@dataclass(frozen=True)
class Slot:
    """Room for one job: a GPU (its index, or its UUID), or None for the CPU."""

    gpu: str | None = None


class Board(Protocol):
    """Who is told what happens."""

    def say(self, text: str) -> None:
        """One line."""
        ...

    def show(self, ended: int, total: int, running: Sequence[tuple[str, Progress]]) -> None:
        """How it stands, several times a second."""
        ...


@dataclass
class _Attempt:
    """A job in a slot."""

    job: Job
    slots: tuple[Slot, ...]
    process: JobProcess | None = None
    worked: bool = False
    error: BaseException | None = None
    thread: threading.Thread | None = None


@dataclass
class Outcome:
    """How the jobs of a graph ended: ids of those done (``worked``: by this call), and reasons of those that are not."""

    done: set[str] = field(default_factory=set)
    worked: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    cancelled: dict[str, str] = field(default_factory=dict)


def run_graph(
    graph: Graph, slots: Sequence[Slot], board: Board, ended: Callable[[Job], None] = lambda job: None
) -> Outcome:
    """Do all jobs of ``graph`` that are not done.

    A job that failed takes those that need it with it, with the reason, and no others.
    ``ended`` is called, in the calling thread, after each job that is done. The first stop signal asks running jobs to save their state and
    starts no others, the second Ctrl-C kills them; then Interrupted is raised.
    """
    return _Scheduler(graph, slots, board, ended).run()


class _Scheduler:
    def __init__(self, graph: Graph, slots: Sequence[Slot], board: Board, ended: Callable[[Job], None]) -> None:
        self.graph = graph
        self.free = list(slots)
        self.board = board
        self.ended = ended
        self.outcome = Outcome(done=graph.done())
        self.waiting = [job for job in graph.jobs.values() if job.id not in self.outcome.done]
        self.running: list[_Attempt] = []
        self.not_before: dict[str, float] = {}
        self.signals: list[int] = []
        self.news = threading.Event()

    def run(self) -> Outcome:
        with self._on_signals():
            while True:
                self._collect()
                if not self.signals:
                    self._start()
                if not self.running and (self.signals or not self.waiting):
                    break
                shown = [(attempt.job.id, attempt.process.progress) for attempt in self.running if attempt.process]
                ended = len(self.graph.jobs) - len(self.waiting) - len(self.running)
                self.board.show(ended, len(self.graph.jobs), shown)
                self.news.wait(LOOK_EVERY)
                self.news.clear()
        if self.signals:
            name = signal.Signals(self.signals[0]).name
            done = len(self.outcome.done)
            raise Interrupted(
                f"{name}: {done} of {len(self.graph.jobs)} jobs are done; the same command goes on from there"
            )
        return self.outcome

    def _start(self) -> None:
        """Start what can be started. A job that finds no room keeps the others behind it waiting, or a large one would never start."""
        for job in list(self.waiting):
            if not self._ready(job) or time.monotonic() < self.not_before.get(job.id, 0.0):
                continue
            slots = self._room_for(job)
            if slots is None:
                return
            self.waiting.remove(job)
            for slot in slots:
                self.free.remove(slot)
            attempt = _Attempt(job, slots)
            self.running.append(attempt)
            attempt.thread = threading.Thread(target=self._work, args=(attempt,), name=job.id, daemon=True)
            attempt.thread.start()

    def _ready(self, job: Job) -> bool:
        """Whether what ``job`` needs is done; where it has failed, ``job`` has failed too."""
        for need in job.needs:
            reason = self.outcome.failed.get(need) or self.outcome.cancelled.get(need)
            if reason is not None:
                self._lose(job, f"needs {need}: {reason}", cancelled=need in self.outcome.cancelled)
                return False
        return self.outcome.done.issuperset(job.needs)

    def _lose(self, job: Job, reason: str, *, cancelled: bool) -> None:
        self.waiting.remove(job)
        (self.outcome.cancelled if cancelled else self.outcome.failed)[job.id] = reason
        if not cancelled:
            give_up(job, reason)

    def _room_for(self, job: Job) -> tuple[Slot, ...] | None:
        """Free slots on as many GPUs as the job has devices; one slot on the CPU."""
        wanted = job.plan.request.devices if any(slot.gpu is not None for slot in self.free) else 1
        distinct = list(dict.fromkeys(self.free))
        return tuple(distinct[:wanted]) if len(distinct) >= wanted else None

    def _work(self, attempt: _Attempt) -> None:
        """In a thread of its own: do the job and keep how it ended."""
        gpus = [slot.gpu for slot in attempt.slots if slot.gpu is not None]
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}

        def run(function: Any, content: Any, title: str, folder: Any, cancelled: Callable[[], bool]) -> None:
            process = JobProcess(
                function, content, title, folder, cancelled=cancelled, environment=environment, alone=False
            )
            attempt.process = process
            for number in self.signals:
                process.send(number)
            process.run()

        job = attempt.job
        try:
            attempt.worked = do(job, run, lambda text: self.board.say(f"{job.id}: {text}"), wait=0.0)
        except BaseException as error:  # handed to the main thread, which knows what to do with it
            attempt.error = error
        self.news.set()

    def _collect(self) -> None:
        for attempt in [one for one in self.running if one.thread is not None and not one.thread.is_alive()]:
            self.running.remove(attempt)
            self.free.extend(attempt.slots)
            self._settle(attempt.job, attempt.error, worked=attempt.worked)

    def _settle(self, job: Job, error: BaseException | None, *, worked: bool) -> None:
        if error is None:
            self.outcome.done.add(job.id)
            if worked:
                self.outcome.worked.add(job.id)
                self.board.say(f"[{len(self.outcome.done)}/{len(self.graph.jobs)}] {job.id}: done")
            self.ended(job)
        elif isinstance(error, LockHeld):
            if job.id not in self.not_before:
                self.board.say(str(error).partition(" — ")[0])
            self.not_before[job.id] = time.monotonic() + ASK_AGAIN
            self._wait_again(job)
        elif isinstance(error, Interrupted):
            if is_cancelled(job.part):
                self.board.say(f"{job.id}: cancelled")
                self.outcome.cancelled[job.id] = "cancelled"
            elif not self.signals:  # somebody sent the job a signal
                self.outcome.failed[job.id] = str(error)
        elif isinstance(error, DgbenchError):
            self.board.say(f"{job.id}: failed: {error}")
            self.outcome.failed[job.id] = str(error)
        else:
            raise error

    def _wait_again(self, job: Job) -> None:
        """Back to its place in the order."""
        order = {name: index for index, name in enumerate(self.graph.jobs)}
        self.waiting.append(job)
        self.waiting.sort(key=lambda one: order[one.id])

    @contextmanager
    def _on_signals(self) -> Iterator[None]:
        def stop(number: int, _frame: FrameType | None) -> None:
            kill = number == signal.SIGINT and number in self.signals
            self.signals.append(number)
            for attempt in list(self.running):
                if attempt.process is not None:
                    attempt.process.send(signal.SIGKILL if kill else number)
            self.news.set()

        previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def slots_for(graph: Graph, *, gpus: str | None, jobs_per_gpu: int, jobs: int) -> list[Slot]:
    """The room on this machine: ``jobs_per_gpu`` slots on each of ``gpus`` (separated by commas; None: all that are visible), or ``jobs``
    on the CPU where the runs compute there.

    Raises DgbenchError for GPUs that are not there or too few for one run, and where a setting is for the other kind of device.
    """
    computing = {plan.own.spec.environment.device for plan in graph.plans}
    if "cuda" not in computing:
        if gpus is not None or jobs_per_gpu != 1:
            raise DgbenchError("--gpus and --jobs-per-gpu are for runs on GPUs, these compute on the CPU — use --jobs")
        return [Slot()] * jobs
    if jobs != 1:
        raise DgbenchError("--jobs is for runs on the CPU, these compute on GPUs — use --jobs-per-gpu")
    visible = visible_gpus()
    chosen = visible if gpus is None else list(dict.fromkeys(filter(None, (word.strip() for word in gpus.split(",")))))
    if unknown := [gpu for gpu in chosen if gpu not in visible]:
        raise DgbenchError(f"--gpus: no GPU {', '.join(unknown)} — visible: {', '.join(visible) or 'none'}")
    wanted = max((plan.request.devices for plan in graph.plans), default=1)
    if len(chosen) < wanted:
        raise DgbenchError(f"--devices {wanted}: a run needs {wanted} GPUs, --gpus gives {len(chosen)}")
    return [Slot(gpu) for _ in range(jobs_per_gpu) for gpu in chosen]
