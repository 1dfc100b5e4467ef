"""The processes in which jobs run: forked from a server that has imported torch once, one process a job, so that an evaluation never shares
memory with a training, and a crash takes one job only."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import psutil

from dgbench.atomic import DISK_FULL, unwritable
from dgbench.errors import DgbenchError, Diverged, Interrupted
from dgbench.launch.progress import progress
from dgbench.store.lock import FolderLock

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PRELOADED = ["dgbench.training.loop", "dgbench.evaluation.job", "torch._dynamo"]
"""Imported once by the server; optimisers import the last one when they are made, which costs each job more than a second."""
LOG_NAME = "log.txt"
"""What a job said, in its folder: plain lines, appended."""
PROCESS_LOCK = ".process"
"""The lock that a job's process itself holds in its folder: it outlives that of a program that was killed, until the process has saved its
state and ended, so that the next program does not write beside it."""
LOOK_EVERY = 1.0
"""Seconds between two looks at a job: its memory, and whether it was cancelled."""
TELL_EVERY = 0.2
"""Seconds between two messages of a job about its progress."""


class JobDied(DgbenchError):
    """The process of a job ended without a word or ran out of memory; the same job may succeed when it is tried again."""


def once_more(work: Callable[[], None], told: Callable[[str], None]) -> None:
    """Do ``work``, and once more where its process died, of which ``told`` is given a note."""
    try:
        work()
    except JobDied as death:
        told(f"{death} — trying once more")
        work()


class Progress(NamedTuple):
    """How far a job is: units done, units in all, and a short text (the case, the best score)."""

    done: int = 0
    total: int = 0
    text: str = ""

    def __str__(self) -> str:
        return f"{self.done}/{self.total}{f'  {self.text}' if self.text else ''}"


class JobProcess:
    """``function(job, report)`` in a process of its own.

    Args:
        function: module-level, as it is called in another process; it raises DgbenchError or Interrupted, or returns.
        job: picklable.
        title: how messages name the job.
        folder: where its log and, after a fault of our own, its trace (``crash.txt``) are kept.
        cancelled: looked at once a second; when it says so, the job gets SIGTERM.
        environment: set in the process before ``function`` runs (``CUDA_VISIBLE_DEVICES``).
        alone: the job may show bars on the terminal; else it only writes its log.
    """

    def __init__(
        self,
        function: Callable[[Any, Any], None],
        job: Any,
        title: str,
        folder: Path,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        environment: Mapping[str, str] | None = None,
        alone: bool = True,
    ) -> None:
        self.title = title
        self.progress = Progress()
        self.peak_bytes = 0
        self.sent: list[int] = []
        self._cancelled = cancelled
        self._receiver, self._sender = multiprocessing.Pipe(duplex=False)
        self._content = (self._sender, function, job, title, folder, dict(environment or {}), alone)
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(PRELOADED)
        self._process: BaseProcess = server.Process(name=title, target=_child, args=self._content)

    def send(self, number: int) -> None:
        """Send a signal to the process, or as soon as there is one."""
        self.sent.append(number)
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def run(self) -> None:
        """Start the process and wait for its end.

        Raises what the job raised (DgbenchError, Diverged, Interrupted); Interrupted also when it died of a signal from :meth:`send`;
        JobDied when it died otherwise or ran out of memory; for any other failure a DgbenchError that names the file with the trace.
        """
        self._start()
        self._sender.close()
        for number in self.sent:  # those that came before there was a process
            os.kill(self._process.pid or 0, number)
        outcome = self._receive()
        self._process.join()
        if outcome is None and self.sent:
            outcome = "interrupted", f"{self.title}: stopped at once"
        if outcome is None:
            raise JobDied(self._epitaph())
        kind, text = outcome
        if kind == "interrupted":
            raise Interrupted(text)
        if kind == "memory":
            raise JobDied(f"{text} ({self._where()}) — lower preset.width or the crop, or run fewer jobs side by side")
        if kind == "diverged":
            raise Diverged(text)
        if kind == "error":
            raise DgbenchError(text)

    def _start(self) -> None:
        """Start the process, without the server where it cannot be reached any more: it listens in the temporary folder, which systems
        empty of what is some days old."""
        try:
            self._process.start()
        except FileNotFoundError:
            self._process = multiprocessing.get_context("spawn").Process(
                name=self.title, target=_child, args=self._content
            )
            self._process.start()

    def _receive(self) -> tuple[str, str] | None:
        """What the process sends at its end; None when it dies without a word."""
        stopped = False
        looked = 0.0
        while True:
            if (now := time.monotonic()) - looked >= LOOK_EVERY:
                looked = now
                self.peak_bytes = max(self.peak_bytes, _memory(self._process.pid))
                if not stopped and self._cancelled():
                    stopped = True
                    self.send(signal.SIGTERM)
            try:
                if not self._receiver.poll(LOOK_EVERY):
                    continue
                message = self._receiver.recv()
            except EOFError:
                return None
            if isinstance(message, Progress):
                self.progress = message
            else:
                kind, text = message
                return str(kind), str(text)

    def _where(self) -> str:
        return f"at {self.progress}, {self.peak_bytes / 2**30:.1f} GiB in use"

    def _epitaph(self) -> str:
        code = self._process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        hint = (
            " — the system ran out of memory, probably: lower preset.width or the crop, or run fewer jobs side by side"
            if code == -signal.SIGKILL
            else ""
        )
        return f"{self.title}: the process ended unexpectedly ({how}, {self._where()}){hint}"


def run_job(
    function: Callable[[Any, Any], None],
    job: Any,
    title: str,
    folder: Path,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Run ``function(job, report)`` in a process of its own, in the foreground: with bars on a terminal; stop signals are passed on, the
    second Ctrl-C kills the job. Arguments and errors as for :class:`JobProcess`."""
    process = JobProcess(function, job, title, folder, cancelled=cancelled)
    with _passing_on(process):
        process.run()
    if process.sent:  # too late for the job, which is done but for its status; no other is to be started
        name = signal.Signals(process.sent[0]).name
        raise Interrupted(f"{title}: stopped by {name} at its end; the same command goes on from there")


@contextmanager
def _passing_on(process: JobProcess) -> Iterator[None]:
    """Hand every stop signal to ``process`` while the block runs, a second Ctrl-C as SIGKILL."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        process.send(signal.SIGKILL if number == signal.SIGINT and number in process.sent else number)

    previous = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _memory(pid: int | None) -> int:
    """Bytes that a process and its children hold in memory; 0 for one that has ended."""
    try:
        process = psutil.Process(pid)
        return sum(int(one.memory_info().rss) for one in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def _stop_with_parent() -> None:
    """A job whose parent died saves its state and stops."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _child(
    sender: Connection,
    function: Callable[[Any, Any], None],
    job: Any,
    title: str,
    folder: Path,
    environment: dict[str, str],
    alone: bool,
) -> None:
    os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the parent alone, which passes it on once
    os.environ.update(environment)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    outcome = _outcome(sender, function, job, title, folder, alone)
    with suppress(BrokenPipeError):  # the parent died: nobody is told, the folder says how far the job came
        sender.send(outcome)


def _outcome(
    sender: Connection, function: Callable[[Any, Any], None], job: Any, title: str, folder: Path, alone: bool
) -> tuple[str, str]:
    def work() -> None:
        if not alone:
            _print_into(folder / LOG_NAME)
        with (
            FolderLock(folder, name=PROCESS_LOCK),
            progress(title, log=folder / LOG_NAME, show=alone) as show,
        ):
            function(job, _telling(sender, show))

    return outcome_of(work, title, folder)


def outcome_of(work: Callable[[], None], title: str, folder: Path) -> tuple[str, str]:
    """Do ``work`` and tell how it ended: "done", "interrupted", "diverged", "error" or "memory", and a line; a fault of our own
    leaves its trace in ``folder``."""
    try:
        work()
    except Interrupted as stop:
        return "interrupted", str(stop)
    except Diverged as error:
        return "diverged", str(error)
    except DgbenchError as error:
        return "error", str(error)
    except KeyboardInterrupt:
        return "interrupted", f"{title}: stopped at once"
    except Exception as error:
        line = f"{title}: {type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported here
            return "memory", line
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return "error", str(unwritable(Path(error.filename or folder), error))
        crash_file = folder / "crash.txt"
        crash_file.parent.mkdir(parents=True, exist_ok=True)
        crash_file.write_text(traceback.format_exc(), encoding="utf-8")
        return "error", f"{line} (trace in {crash_file})"
    return "done", ""


def _print_into(log: Path) -> None:
    """What this process prints from now on, warnings of libraries too, goes to the end of ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _telling(sender: Connection, show: Callable[..., None]) -> Callable[..., None]:
    """``show``, which also tells the parent, not more often than it wants to know."""
    told = 0.0

    def report(done: int, total: int, text: str = "") -> None:
        nonlocal told
        show(done, total, text)
        if (now := time.monotonic()) - told >= TELL_EVERY:
            told = now
            with suppress(BrokenPipeError):  # the parent died: the job is asked to stop on another way
                sender.send(Progress(done, total, text))

    return report
