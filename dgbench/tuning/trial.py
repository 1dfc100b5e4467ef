"""One trial: training the method's own stages with one configuration, watched from outside so that a hopeless one is stopped.

A trial's value after its j-th validation is the sum over stages of the best source validation so far, divided by the number of stages: a
stage that has not begun counts as zero for every trial alike. Whether a trial is pruned follows from these rows and the finished trials
alone; when the process is stopped does not matter.
"""

from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgbench.atomic import read_json, read_jsonl
from dgbench.data.splits import center_of
from dgbench.errors import Interrupted
from dgbench.launch.adopt import adopt
from dgbench.launch.jobs import Job, Say, do, is_trained
from dgbench.launch.plan import RunPlan
from dgbench.launch.worker import run_job
from dgbench.store.study import StageOutcome, objective
from dgbench.training.job import TrainJob
from dgbench.training.selection import center_mean, validation_steps

if TYPE_CHECKING:
    import optuna


class Watch:
    """What of a trial's validations the study was told, and whether the pruner gave the trial up (``pruned``)."""

    def __init__(self, trial: "optuna.Trial", run: RunPlan) -> None:
        self.trial = trial
        self.jobs = run.own.training
        self.pruned = False
        self._told = 0

    def look(self) -> bool:
        """Tell the study what is new; whether the trial is given up."""
        values = [] if self.pruned else validations(self.jobs)
        known = self.trial.storage.get_trial(
            self.trial._trial_id
        ).intermediate_values  # told by a process that was killed
        for step in range(self._told, len(values)):
            if step not in known:
                self.trial.report(values[step], step)
            self._told = step + 1
            asked_before = step < max(known, default=-1)
            if not asked_before and step + 1 < n_validations(self.jobs) and self.trial.should_prune():
                self.pruned = True
                break
        return self.pruned

    def outcomes(self) -> dict[str, StageOutcome]:
        """What each finished training reached."""
        found = {}
        for job in self.jobs:
            if is_trained(job):
                result = read_json(job.folder / "result.json")
                found[job.stage] = StageOutcome(key=job.key, best_step=result["best_step"], best_dsc=result["best_dsc"])
        return found

    @property
    def value(self) -> float:
        """The objective of a complete trial."""
        return objective(self.outcomes())


def n_validations(jobs: tuple[TrainJob, ...]) -> int:
    """How often a trial is validated."""
    return sum(len(validation_steps(job.steps, job.resolved.preset.validations)) for job in jobs)


def validations(jobs: tuple[TrainJob, ...]) -> list[float]:
    """The values of a trial after each of its validations so far."""
    values: list[float] = []
    done = 0.0
    for job in jobs:
        best = 0.0
        log = job.folder / "validation.jsonl"
        steps: dict[int, list[dict[str, Any]]] = {}
        for row in read_jsonl(log) if log.is_file() else ():
            steps.setdefault(row["step"], []).append(row)
        for rows in steps.values():
            if len(rows) < len(job.split.validation):
                return values  # the rest is being written
            scores = [nan if row["dsc"] is None else float(row["dsc"]) for row in rows]
            mean = center_mean(scores, [center_of(row["case"]) for row in rows])
            best = max(best, mean) if mean == mean else best
            values.append((done + best) / len(jobs))
        if len(steps) < len(validation_steps(job.steps, job.resolved.preset.validations)):
            return values
        done += best
    return values


def train_trial(run: RunPlan, runs: Path, watch: Watch, say: Say) -> None:
    """Train the stages of a trial one after another, here, until the last or until the trial is given up. What another run in ``runs`` has
    trained under the same key is taken over.

    Raises:
        Interrupted: somebody asked to stop.
    """
    own = replace(run.own, training=tuple(replace(training, runs=runs) for training in run.own.training))
    for training in own.training:
        twin = runs / training.folder.relative_to(run.request.runs)
        job = Job(run, own, training)
        adopt(job, twin)

        def watched(
            function: Callable[[Any, Any], None], content: Any, title: str, folder: Path, cancelled: Callable[[], bool]
        ) -> None:
            run_job(function, content, title, folder, lambda: watch.look() or cancelled())

        try:
            do(job, watched, say)
        except Interrupted:
            if not watch.look():
                raise
        if watch.look():
            return
