"""Studies whose trainings are invented, and the command that begins one."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli_calls import run_arguments
from training_fixtures import Mini

from dgbench.atomic import append_jsonl, write_json
from dgbench.errors import Interrupted
from dgbench.launch.plan import RunRequest
from dgbench.store.selection import Selection
from dgbench.store.study import LEFT_OUT
from dgbench.training.job import TrainJob
from dgbench.training.selection import validation_steps
from dgbench.tuning.study import plan_study, run_study

TRIALS = 10
PROGRAM = str(Path(sys.executable).with_name("dgbench"))


def request_of(mini: Mini, runs: Path, **changes: Any) -> RunRequest:
    return replace(mini.plan(runs).request, method="mixstyle", **changes)


def tune(request: RunRequest, trials: int = TRIALS, selection: Selection = Selection.SOURCE_VAL) -> Path:
    """The folder of the study of ``request``, done."""
    plan = plan_study(request, trials, selection)
    run_study(plan, trials, lambda text: None)
    return plan.folder


def quality(job: TrainJob, best: float = 2) -> float:
    """An invented source-validation DSC: best at ``best`` times the learning rate, and the fine stage is the harder one."""
    base = job.resolved.protocol.presets["mini"].stages[job.stage].lr
    off = math.log(job.resolved.preset.stages[job.stage].lr / base / best)
    return math.exp(-off * off) * (0.9 if job.stage == "organ" else 0.6)


def invent(function: Any, content: Any, title: str, folder: Path, cancelled: Callable[[], bool]) -> None:
    """What a training leaves, without training; and what one is worth at the source center that it went without: best at half the learning
    rate."""
    if isinstance(content, tuple):
        job, cases = content
        write_json(
            folder / LEFT_OUT,
            {"key": job.key, "dsc": quality(job, best=0.5) / 2, "cases": {case.id: 0 for case in cases}},
        )
        return
    job: TrainJob = content
    log = folder / "validation.jsonl"
    log.unlink(missing_ok=True)
    steps = sorted(validation_steps(job.steps, job.resolved.preset.validations))
    for step in steps:
        score = quality(job) * step / job.steps
        rows = [{"step": step, "case": case, "dsc": score} for case in job.split.validation]
        append_jsonl(log, *rows)
        if cancelled():
            raise Interrupted("stopped")
    write_json(folder / "result.json", {"best_step": steps[-1], "best_dsc": quality(job)})


def arguments_of(mini: Mini, runs: Path, trials: int = 3, *more: str) -> list[str]:
    command = run_arguments(mini, runs, method="mixstyle")
    return ["tune", *command[1:], f"--trials={trials}", *more]
