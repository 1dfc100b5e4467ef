"""Calls of the command line, for the tests of what it answers."""

from pathlib import Path

import pytest
from training_fixtures import Mini

from dgbench.cli import call


def run_arguments(mini: Mini, runs: Path, **changes: str | None) -> list[str]:
    options: dict[str, str | None] = {"method": "erm", "heldout": "GAMMA", "protocol": str(mini.protocol)}
    options |= {"preset": "mini", "data": str(mini.data), "cache": str(mini.cache), "runs": str(runs), "device": "cpu"}
    options |= {"threads": "1", **changes}
    return ["run", "--no-mlflow", *(f"--{name}={value}" for name, value in options.items() if value is not None)]


def mistake(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line that answers ``arguments``."""
    assert call(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")
