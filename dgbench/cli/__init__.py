"""The command line: parse, call, render. Importing it imports no torch, monai, mlflow, optuna or pandas."""

import errno
import os
import signal
import sys
from types import FrameType
from typing import Any

from dgbench.atomic import DISK_FULL
from dgbench.errors import DgbenchError, Interrupted

INTERRUPTED = 130
TRACE = "DGBENCH_TRACE"
"""Environment variable: set to 1, a fault of our own ends with its trace instead of one line."""


def main() -> None:
    """Entry point ``dgbench``: errors are one line on stderr with exit code 2, an interruption ends with 130. The trace of a fault of our
    own is kept in a file that the line names."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    _open_streams()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop)
    sys.exit(call(sys.argv[1:]))


def _open_streams() -> None:
    """Where the caller closed a standard stream (``>&-``), what is said goes nowhere, and no file takes its number: a library that prints
    would write into it."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def _stop(number: int, _frame: FrameType | None) -> None:
    """A request to stop while no job is running (one that runs has handlers of its own, which let it save its state)."""
    raise Interrupted(f"stopped by {signal.Signals(number).name}; the same command goes on from there")


def call(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    import typer

    from dgbench.cli.app import app

    usage_error: Any = typer.BadParameter.__mro__[2]  # ClickException, of whichever click this typer brings
    try:
        _check_empty(arguments)
        code = app(arguments, standalone_mode=False, prog_name="dgbench")
        sys.stdout.flush()  # here a reader that has gone, or a full disk, can still be answered
        if code == INTERRUPTED:  # how typer answers Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return int(stop.exit_code)
    except usage_error as error:
        message: str = error.format_message()
        if message.startswith("Usage:"):  # a command group called without a command
            sys.stderr.write(f"{message}\n")
            return 2
        return _fail(f"{message.rstrip('.')} — see `dgbench --help`")
    except (typer.Abort, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except Interrupted as stop:
        sys.stderr.write(f"interrupted: {stop}\n")
        return INTERRUPTED
    except DgbenchError as error:
        return _fail(str(error))
    except BrokenPipeError:
        return _unheard()
    except SystemExit as stop:
        if not isinstance(stop.__context__, BrokenPipeError):  # rich's answer to a reader that has gone
            raise
        return _unheard()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            _unheard()
            return _fail(
                f"{error.filename or 'output'}: cannot be written ({error.strerror}) — make room and call again"
            )
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _fail(
                f"{str(error.filename)[:60]}…: cannot be a path here ({error.strerror}) — choose a shorter one"
            )
        if os.environ.get(TRACE) == "1":
            raise
        return _fail(f"unexpected {type(error).__name__}: {error} ({_keep_trace(arguments)}); please report it")


def _check_empty(arguments: list[str]) -> None:
    """Raise DgbenchError for an argument without text, as an unset variable of a shell gives: as a path it would be the current folder."""
    for before, word in zip(["dgbench", *arguments], arguments, strict=False):
        option, equals, value = word.partition("=")
        bare = option.startswith("-") and equals and not value.strip()
        if bare or not word.strip():
            raise DgbenchError(f"after {word if bare else before}: an empty text — is a variable of the shell unset?")


def _keep_trace(arguments: list[str]) -> str:
    """Write the trace of the current exception where it stays, and say where that is."""
    import shlex
    import tempfile
    import traceback

    from dgbench import __version__

    text = f"dgbench {__version__}: {shlex.join(['dgbench', *arguments])}\n{traceback.format_exc()}"
    try:
        descriptor, path = tempfile.mkstemp(prefix="dgbench-trace-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as problem:
        return f"its trace cannot be kept: {problem}; {TRACE}=1 shows it"
    return f"trace in {path}"


def _unheard() -> int:
    """Nothing more is said on stdout: its reader has gone (``| head``), which is no mistake, or its disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return 2
