"""One trial: training the method's own stages with one configuration, watched from outside so that a hopeless one is stopped.

A trial's value after its j-th validation is the sum over stages of the best source validation so far, divided by the number of stages: a
stage that has not begun counts as zero for every trial alike. Where a source center is left out in turn, the trainings take the place of
the stages, and a training that is judged there that of a validation. Whether a trial is pruned follows from these rows and the finished
trials alone; when the process is stopped does not matter.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgbench.atomic import read_json, read_jsonl
from dgbench.data.case import Case
from dgbench.data.splits import center_of
from dgbench.errors import Interrupted
from dgbench.launch.adopt import adopt
from dgbench.launch.jobs import Job, Say, do, is_trained
from dgbench.launch.plan import FolderPlan, RunPlan, plan_without
from dgbench.launch.worker import once_more, run_job
from dgbench.store.selection import Selection
from dgbench.store.study import LEFT_OUT, StageOutcome, without_source
from dgbench.training.job import TrainJob
from dgbench.training.selection import center_mean, validation_steps

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Piece:
    """One training of a trial; ``left_out`` are the cases of the source center that it goes without and is judged on, if any."""

    name: str
    part: FolderPlan
    training: TrainJob
    left_out: tuple[Case, ...] = ()

    @property
    def n_values(self) -> int:
        """How often it tells how good it is."""
        if self.left_out:
            return 1
        return len(validation_steps(self.training.steps, self.training.resolved.preset.validations))

    @property
    def dsc(self) -> float | None:
        """What the finished training is worth, in [0, 1]; None where it is not judged yet."""
        if not self.left_out:
            return float(read_json(self.training.folder / "result.json")["best_dsc"])
        path = self.training.folder / LEFT_OUT
        told = read_json(path) if path.is_file() else {}
        return float(told["dsc"]) if told.get("key") == self.training.key else None


def pieces_of(run: RunPlan, selection: Selection) -> tuple[Piece, ...]:
    """The trainings of a trial, one after another: the method's own stages, or those without each source center in turn.

    Raises DgbenchError where one of them cannot be planned.
    """
    if selection is Selection.SOURCE_VAL:
        return tuple(Piece(training.stage, run.own, training) for training in run.own.training)
    sources = [name for name in run.split.sources if name not in run.split.support]
    return tuple(
        Piece(without_source(training.stage, source), part, training, run.centers[source].cases)
        for source in sources
        for part in (plan_without(run, source),)
        for training in part.training
    )


class Watch:
    """What of a trial's values the study was told, and whether the pruner gave the trial up (``pruned``)."""

    def __init__(self, trial: "optuna.Trial", pieces: tuple[Piece, ...]) -> None:
        self.trial = trial
        self.pieces = pieces
        self.pruned = False
        self._told = 0
        self._n_values = sum(piece.n_values for piece in pieces)

    def look(self) -> bool:
        """Tell the study what is new; whether the trial is given up."""
        values = [] if self.pruned else values_of(self.pieces)
        known = self.trial.storage.get_trial(
            self.trial._trial_id
        ).intermediate_values  # told by a process that was killed
        for step in range(self._told, len(values)):
            if step not in known:
                self.trial.report(values[step], step)
            self._told = step + 1
            asked_before = step < max(known, default=-1)
            if not asked_before and step + 1 < self._n_values and self.trial.should_prune():
                self.pruned = True
                break
        return self.pruned

    def outcomes(self) -> dict[str, StageOutcome]:
        """What each finished training reached."""
        found = {}
        for piece in self.pieces:
            training = piece.training
            if is_trained(training) and (dsc := piece.dsc) is not None:
                step = read_json(training.folder / "result.json")["best_step"]
                found[piece.name] = StageOutcome(key=training.key, best_step=step, best_dsc=dsc)
        return found


def values_of(pieces: tuple[Piece, ...]) -> list[float]:
    """The values of a trial after each of its validations, or judged trainings, so far."""
    values: list[float] = []
    done = 0.0
    for piece in pieces:
        scores = _left_out_scores(piece) if piece.left_out else _validation_scores(piece.training)
        best = 0.0
        for score in scores:
            best = max(best, score) if score == score else best
            values.append((done + best) / len(pieces))
        if len(scores) < piece.n_values:
            return values
        done += best
    return values


def _left_out_scores(piece: Piece) -> list[float]:
    return [] if (dsc := piece.dsc) is None else [dsc]


def _validation_scores(training: TrainJob) -> list[float]:
    """The source validations of a training so far, in their order."""
    log = training.folder / "validation.jsonl"
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in read_jsonl(log) if log.is_file() else ():
        steps.setdefault(row["step"], []).append(row)
    scores = []
    for rows in steps.values():
        if len(rows) < len(training.split.validation):
            break  # the rest is being written
        dsc = [nan if row["dsc"] is None else float(row["dsc"]) for row in rows]
        scores.append(center_mean(dsc, [center_of(row["case"]) for row in rows]))
    return scores


def train_trial(run: RunPlan, runs: Path, watch: Watch, say: Say) -> None:
    """Do the trainings of a trial one after another, here, until the last or until the trial is given up. What another run in ``runs`` has
    trained under the same key is taken over.

    Raises:
        Interrupted: somebody asked to stop.
    """
    for piece in watch.pieces:
        training = replace(piece.training, runs=runs)
        twin = runs / training.folder.relative_to(run.request.runs)
        job = Job(run, piece.part, training)
        adopt(job, twin)

        def watched(
            function: Callable[[Any, Any], None], content: Any, title: str, folder: Path, cancelled: Callable[[], bool]
        ) -> None:
            run_job(function, content, title, folder, lambda: watch.look() or cancelled())

        if piece.left_out:
            say(piece.name)
        try:
            do(job, watched, say)
        except Interrupted:
            if not watch.pruned:  # it was not the pruner that asked: somebody did
                raise
        if piece.left_out and piece.dsc is None:
            _judge(piece, training, say)
        if watch.look():
            return


def _judge(piece: Piece, training: TrainJob, say: Say) -> None:
    """Judge ``training`` at the center that it went without, in a process of its own; one that dies is started once more, as a training
    is."""
    content = (training, piece.left_out)
    once_more(lambda: run_job(_judge_job, content, piece.name, training.folder, lambda: False), say)


def _judge_job(content: tuple[TrainJob, tuple[Case, ...]], report: Any) -> None:
    from dgbench.evaluation.left_out import judge_left_out

    judge_left_out(*content, report)
