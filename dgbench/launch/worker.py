"""The processes in which jobs run: forked from a server that has imported torch once, one process a job, so that an evaluation never shares
memory with a training, and a crash takes one job only."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from dgbench.errors import DgbenchError, Interrupted
from dgbench.launch.progress import progress

Outcome = tuple[str, str]
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PRELOADED = ["dgbench.training.loop", "dgbench.evaluation.job", "torch._dynamo"]
"""Imported once by the server; optimisers import the last one when they are made, which costs each job more than a second."""


def run_job(function: Callable[[Any, Any], None], job: Any, title: str, crash_file: Path) -> None:
    """Run ``function(job, report)`` in a process of its own and wait for it.

    A stop signal is passed on; the second Ctrl-C kills the job. Raises what the job raised (DgbenchError, Interrupted), Interrupted also
    when it died of that signal; for any other failure a DgbenchError that names ``crash_file``, where the trace is.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(name=title, target=_child, args=(sender, function, job, title, str(crash_file)))
    with _passing_on(process) as signals:
        process.start()
        sender.close()
        for number in signals:  # those that came before there was a process
            os.kill(process.pid or 0, number)
        outcome = _receive(receiver)
        process.join()
    if outcome is None and signals:
        outcome = "interrupted", f"{title}: stopped at once"
    if outcome is None:
        reason = (
            f"signal {-process.exitcode}"
            if process.exitcode and process.exitcode < 0
            else f"exit status {process.exitcode}"
        )
        hint = (
            " — the system ran out of memory, probably: lower preset.width or the crop"
            if process.exitcode == -signal.SIGKILL
            else ""
        )
        raise DgbenchError(f"{title}: the process ended unexpectedly ({reason}){hint}")
    kind, text = outcome
    if kind == "interrupted":
        raise Interrupted(text)
    if kind == "error":
        raise DgbenchError(text)


@contextmanager
def _passing_on(process: Any) -> Iterator[list[int]]:
    """Hand every stop signal to ``process`` while the block runs, a second Ctrl-C as SIGKILL; gives the list of what was sent."""
    sent: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        sent.append(signal.SIGKILL if number == signal.SIGINT and number in sent else number)
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, sent[-1])

    previous = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield sent
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _receive(receiver: Connection) -> Outcome | None:
    """What the process sends at its end; None when it dies without a word."""
    try:
        kind, text = receiver.recv()
    except EOFError:
        return None
    return str(kind), str(text)


def _stop_with_parent() -> None:
    """A job whose parent died saves its state and stops."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _child(sender: Connection, function: Callable[[Any, Any], None], job: Any, title: str, crash_file: str) -> None:
    os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the parent alone, which passes it on once
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    outcome = _outcome(function, job, title, Path(crash_file))
    with suppress(BrokenPipeError):  # the parent died: nobody is told, the folder says how far the job came
        sender.send(outcome)


def _outcome(function: Callable[[Any, Any], None], job: Any, title: str, crash_file: Path) -> Outcome:
    try:
        with progress(title) as report:
            function(job, report)
    except Interrupted as stop:
        return "interrupted", str(stop)
    except DgbenchError as error:
        return "error", str(error)
    except KeyboardInterrupt:
        return "interrupted", f"{title}: stopped at once"
    except Exception as error:
        crash_file.parent.mkdir(parents=True, exist_ok=True)
        crash_file.write_text(traceback.format_exc(), encoding="utf-8")
        return "error", f"{title}: {type(error).__name__}: {' '.join(str(error).split())} (trace in {crash_file})"
    return "done", ""
