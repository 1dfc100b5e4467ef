"""Whatever ends a run, and in whichever phase, the same command finishes it, and what it leaves is equal to the byte (protocol.md §3)."""

import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_calls import run_arguments
from fault_injection import Fault, Victim, program
from training_fixtures import Mini, alone, differences, results

from dgbench.store.folder import RunFolder, iter_runs

PHASES = {
    "status": r"/\.tmp-\w+-(status|spec)\.json$",
    "train": r"/(organ|lesion)/steps\.jsonl$",
    "checkpoint": r"/(organ|lesion)/(\.tmp-\w+-)?(last|best)-\d+\.(safetensors|json)$",
    "evaluate": r"/evaluation/parts/",
    "compile": r"/evaluation/\.tmp-\w+-\w+\.parquet$|/\.tmp-\w+-(cost\.json|overlay\.png)$",
}
"""What is written in each phase of a run, in the order of time."""
VICTIMS: tuple[Victim, ...] = ("job", "parent", "all")


@pytest.fixture(scope="module")
def whole(sound: Mini, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run leaves that nothing disturbs."""
    runs = tmp_path_factory.mktemp("undisturbed")
    code, output = call(sound, runs)
    assert code == 0, output
    return results(the_run(runs))


def the_run(runs: Path) -> RunFolder:
    (run,) = iter_runs(runs)
    return run


def call(mini: Mini, runs: Path, fault: Fault | None = None) -> tuple[int | None, str]:
    """``dgbench run`` in a process of its own; its exit code and all it said. Afterwards none of its processes is left."""
    output = runs.with_name(f"{runs.name}-output.txt")
    code = alone(program, run_arguments(mini, runs), fault, output)
    return code, output.read_text()


def fault_in(runs: Path, phase: str, action: Any, count: int = 1, delay: float = 0.0) -> Fault:
    marker = runs.with_name(f"{runs.name}-struck-{phase}-{count}-{delay}")
    marker.unlink(missing_ok=True)
    return Fault(runs, marker, PHASES[phase], action, count, delay)


@pytest.mark.slow
def test_killed_in_every_phase_and_finished(sound: Mini, whole: dict[str, Any], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    kills: list[tuple[str, Victim]] = [("status", "all"), ("train", "parent"), ("checkpoint", "all")]
    kills += [("evaluate", "parent"), ("compile", "job")]
    for phase, victim in kills:
        fault = fault_in(runs, phase, victim)
        code, output = call(sound, runs, fault)
        assert fault.marker.exists(), phase
        assert code == (0 if victim == "job" else -signal.SIGKILL), (
            output
        )  # a job whose process died is tried once more
    assert "evaluation: the process ended unexpectedly (signal 9" in output
    assert_whole(runs, whole)
    code, output = call(sound, runs)
    assert code == 0, output
    assert "this run is done already" in output


def assert_whole(runs: Path, whole: dict[str, Any]) -> None:
    run = the_run(runs)
    assert run.status.state == "done"
    assert differences(results(run), whole) == []
    assert not [path for path in run.evaluation.rglob(".*") if path.name.startswith(".tmp-")]
    assert not [*runs.rglob(".process"), *runs.rglob(".lock")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10))
def test_fifty_kills_at_random_instants(sound: Mini, whole: dict[str, Any], tmp_path: Path, seed: int) -> None:
    """Five kills for each seed, before or up to a tenth of a second after a write that was drawn, of a job, the program or both."""
    rng = random.Random(seed)
    kills = finished = 0
    while kills < 5:
        runs = tmp_path / str(finished)
        for phase in PHASES:
            delay = rng.choice([0.0, rng.uniform(0, 0.1)])
            fault = fault_in(runs, phase, rng.choice(VICTIMS), rng.randint(1, 2), delay)
            code, output = call(sound, runs, fault)
            assert code in (0, -signal.SIGKILL), output
            assert "Traceback" not in output
            kills += fault.marker.exists()
            if code == 0 or kills == 5:
                break
        code, output = call(sound, runs)
        assert code == 0, output
        assert_whole(runs, whole)
        finished += 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_signal_in_every_phase_ends_with_130_and_the_same_call_goes_on(
    sound: Mini, whole: dict[str, Any], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for number, phase in enumerate(PHASES):
        asked = (signal.SIGTERM, signal.SIGUSR1)[number % 2]
        fault = fault_in(runs, phase, asked)
        code, output = call(sound, runs, fault)
        assert fault.marker.exists(), phase
        assert code == 130, (phase, output)
        assert "Traceback" not in output
        assert output.splitlines()[-1].startswith("interrupted: "), output
        if phase != "status":
            assert the_run(runs).status.state == "interrupted", phase
        assert not list(runs.rglob(".lock")), phase
    code, output = call(sound, runs)
    assert code == 0, output
    assert_whole(runs, whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_full_disk_is_one_line_and_the_same_call_finishes_when_there_is_space(
    sound: Mini, whole: dict[str, Any], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for phase in ("train", "checkpoint", "evaluate", "compile"):
        fault = fault_in(runs, phase, "full")
        code, output = call(sound, runs, fault)
        assert fault.marker.exists(), phase
        assert code == 2, (phase, output)
        assert "Traceback" not in output
        expected = rf"error: {re.escape(str(runs))}/\S+: cannot be written \(No space left on device\) — check"
        assert re.match(expected, output.splitlines()[-1]), output
        run = the_run(runs)
        assert run.status.state == "failed"
        assert "No space left on device" in str(run.status.reason)
        assert not list(runs.rglob("crash.txt"))
    code, output = call(sound, runs)
    assert code == 0, output
    assert_whole(runs, whole)
