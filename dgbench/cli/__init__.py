"""The command line: parse, call, render. Importing it imports no torch, monai, mlflow, optuna or pandas."""

import os
import sys
from typing import Any

from dgbench.errors import DgbenchError, Interrupted

INTERRUPTED = 130


def main() -> None:
    """Entry point ``dgbench``: errors are one line on stderr with exit code 2, an interruption ends with 130."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    sys.exit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    import typer

    from dgbench.cli.app import app

    usage_error: Any = typer.BadParameter.__mro__[2]  # ClickException, of whichever click this typer brings
    try:
        code = app(arguments, standalone_mode=False, prog_name="dgbench")
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return 2
