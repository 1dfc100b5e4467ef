"""A study: one process asks for a point of the search space, trains the method's own stages with it, and tells what source validation said.

Nothing of the held-out center is opened: a trial is training alone, under the guard of every training, and its objective is what training
itself stores, or what a training is worth at the source center that it went without. The state is a journal of optuna (JSON, nothing is
unpickled) and ordinary run folders below the study's. What is proposed is a function of the journal and of (seed, trial, key), so that a
study that was killed goes on with what it would have done.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgbench import __version__
from dgbench.errors import DgbenchError, Diverged, Interrupted
from dgbench.info import MethodConfig, MethodInfo
from dgbench.launch.jobs import Say, log_lines, stored_key
from dgbench.launch.plan import RunPlan, RunRequest, plan_run, resolve_request
from dgbench.launch.settings import split_overrides
from dgbench.launch.worker import JobDied
from dgbench.protocol import Protocol, ResolvedProtocol
from dgbench.store.folder import write_status
from dgbench.store.lock import FolderLock
from dgbench.store.selection import Selection
from dgbench.store.study import (
    OBJECTIVES,
    StageOutcome,
    StudySpec,
    TrialRow,
    counted,
    objective,
    select,
    study_key,
    write_selection,
    write_trials,
)
from dgbench.tuning.journal import next_trial, open_study, rows_of
from dgbench.tuning.space import Param, Space, default_params, plain, settings_of, space_of
from dgbench.tuning.trial import Watch, pieces_of, train_trial

if TYPE_CHECKING:
    import optuna

SEARCH: dict[str, Any] = {"version": 1, "sampler": "tpe", "sampler_startup": 8, "pruner": "median", "pruner_startup": 5}
"""How trials are proposed (drawn at random until ``sampler_startup`` are finished) and pruned (none before ``pruner_startup`` are)."""
SOURCES_TO_LEAVE_ONE_OUT = 3
"""With fewer, a training without one of them would know a single center (protocol.md §8)."""
FAILURES_IN_A_ROW = 10
"""So many failed trials one after another are no bad luck: the study stops."""


@dataclass(frozen=True)
class StudyPlan:
    """A study before anything of it runs: what the run without tuning would be (``run``), and what is searched around it."""

    request: RunRequest
    run: RunPlan
    resolved: ResolvedProtocol
    info: MethodInfo
    config: MethodConfig
    space: Space
    default: dict[str, Param]
    spec: StudySpec
    folder: Path

    @property
    def trials(self) -> Path:
        """The runs folder of the trials."""
        return self.folder / "trials"

    def changes(self, params: dict[str, Param]) -> tuple[dict[str, Any], dict[str, float]]:
        """What a point of the space changes: settings of the method, overrides of the preset."""
        return settings_of(params, self.space, self.default, self.resolved)

    def trial_request(self, params: dict[str, Param]) -> RunRequest:
        """The run that a point of the space stands for."""
        config, preset = self.changes(params)
        texts = [f"{key}={json.dumps(value)}" for key, value in config.items()]
        texts += [f"preset.{key}={json.dumps(value)}" for key, value in preset.items()]
        return replace(self.request, overrides=(*self.request.overrides, *texts), runs=self.trials)


def resolve_study(
    request: RunRequest, selection: Selection = Selection.SOURCE_VAL
) -> tuple[ResolvedProtocol, MethodInfo, MethodConfig, Space, dict[str, Param]]:
    """What a study of ``request`` would search, all validated, before anything is read or written; ``request.overrides`` fix keys.

    Raises DgbenchError also where there are too few source centers to leave one out.
    """
    resolved, info, config = resolve_request(request)
    if selection is Selection.LEAVE_ONE_SOURCE_OUT:
        _check_sources(resolved.protocol, request.heldout)
    fixed = split_overrides(request.overrides)[1]
    space = space_of(info, fixed)
    return resolved, info, config, space, default_params(space, config, resolved)


def _check_sources(protocol: Protocol, heldout: str) -> None:
    own = protocol.center_of(heldout)
    sources = (own,) if protocol.folds else tuple(name for name in protocol.centers if name != own)
    if len(sources) < SOURCES_TO_LEAVE_ONE_OUT:
        raise DgbenchError(
            f"--selection {Selection.LEAVE_ONE_SOURCE_OUT} needs {SOURCES_TO_LEAVE_ONE_OUT} source centers or more; with {heldout} held "
            f"out, protocol {protocol.name} has {', '.join(sources)} — use --selection {Selection.SOURCE_VAL}"
        )


def plan_study(request: RunRequest, trials: int, selection: Selection = Selection.SOURCE_VAL) -> StudyPlan:
    """The study of ``request``; the data folder must exist. Only source files are read, to fingerprint them."""
    resolved, info, config, space, default = resolve_study(request, selection)
    run = plan_run(request)
    pieces_of(run, selection)  # that every training of a trial can be planned is known before the first
    own = run.own.spec
    stages = {job.stage: job.key for job in run.own.training}
    search = {**SEARCH, "optuna": ".".join(version("optuna").split(".")[:2])}
    key = study_key(stages, plain(space), OBJECTIVES[selection], search)
    spec = StudySpec.model_validate(
        {
            "schema": 1,
            "dgbench": __version__,
            "key": key,
            "settings": sorted(request.overrides),
            "stages": stages,
            "space": plain(space),
            "objective": OBJECTIVES[selection],
            "search": search,
            "command": f"{request.command('tune')} --trials {trials}{selection.option}",
            **own.model_dump(
                mode="json",
                include={"protocol", "heldout", "sources", "support", "seed", "method", "data", "environment"},
            ),
        }
    )
    return StudyPlan(
        request, run, resolved, info, config, space, default, spec, run.own.folder.parent / f"tune-{key[:8]}"
    )


def run_study(plan: StudyPlan, trials: int, say: Say) -> TrialRow:
    """Do what is missing of the first ``trials`` trials (complete and pruned ones count) and select; the selected trial.

    Raises:
        DgbenchError: the trial without changes failed, or several in a row did; or another process works on the study.
        Interrupted: a trial was asked to stop and saved its state.
    """

    def told(text: str) -> None:
        log_lines(plan.folder, [text])
        say(text)

    with FolderLock(plan.folder):
        if not (plan.folder / "study.json").exists():
            plan.spec.write(plan.folder)
        write_status(plan.folder, "running")
        try:
            study = open_study(plan.folder, plan.spec)
            while counted(rows := _publish(plan, study)) < trials:
                _refuse_failures(rows)
                _do_trial(plan, study, told)
                rows = _publish(plan, study)
                _drop_weights(plan, rows)
                told(_line(rows, trials, plan.spec.selection))
            chosen = write_selection(plan.folder, plan.spec, trials)
        except (Interrupted, KeyboardInterrupt) as stop:
            write_status(plan.folder, "interrupted", str(stop) or "Ctrl-C")
            raise
        except DgbenchError as error:
            write_status(plan.folder, "failed", str(error))
            raise
        write_status(plan.folder, "done")
        return chosen


def _publish(plan: StudyPlan, study: "optuna.Study") -> list[TrialRow]:
    rows = rows_of(study, plan.changes)
    write_trials(plan.folder, rows)
    return rows


def _do_trial(plan: StudyPlan, study: "optuna.Study", say: Say) -> None:
    """One trial to its end: complete, pruned, or failed."""
    from optuna.trial import TrialState

    trial, params = next_trial(study, plan.space, plan.default, plan.spec)
    request = plan.trial_request(params)
    if (reason := _unfit(plan.info, request)) is not None:
        _tell(study, trial, TrialState.FAIL, {}, reason)
        return
    run = plan_run(request)
    watch = Watch(trial, pieces_of(run, plan.spec.selection))
    state = TrialState.COMPLETE
    try:
        train_trial(run, plan.request.runs, watch, say)
    except (Diverged, JobDied) as error:  # what fails for another reason ends the study, which then goes on from there
        if trial.number == 0:  # the method as it is: a search around it would be of no use
            raise
        state, reason = TrialState.FAIL, str(error)
    if watch.pruned:
        state, reason = TrialState.PRUNED, None
    # how far a trial came that was given up depends on when it was stopped
    _tell(study, trial, state, {} if watch.pruned else watch.outcomes(), reason)


def _unfit(info: MethodInfo, request: RunRequest) -> str | None:
    """Why the settings of a trial are no configuration of the method (two of them may not go together); None where they are one."""
    try:
        info.configure(split_overrides(request.overrides)[1])
    except DgbenchError as error:
        return str(error)
    return None


def _tell(
    study: "optuna.Study",
    trial: "optuna.Trial",
    state: "optuna.trial.TrialState",
    stages: Mapping[str, StageOutcome],
    reason: str | None,
) -> None:
    trial.set_user_attr("stages", {name: stage.model_dump() for name, stage in stages.items()})
    trial.set_user_attr("reason", reason)
    study.tell(trial, objective(stages) if state.name == "COMPLETE" else None, state=state)


def _drop_weights(plan: StudyPlan, rows: Sequence[TrialRow]) -> None:
    """Of all trials only the best one so far keeps its checkpoints, for a tuned run to take over; logs and results stay. No run is one of
    the trainings without a source center."""
    best = select(rows, counted(rows))
    kept = {stage.key for stage in best.stages.values() if plan.spec.selection is Selection.SOURCE_VAL}
    for weights in plan.trials.glob("*/*/*/seed*/*/*.safetensors"):
        if stored_key(weights.parent) not in kept:
            weights.unlink()


def _refuse_failures(rows: list[TrialRow]) -> None:
    last = rows[-FAILURES_IN_A_ROW:]
    if len(last) == FAILURES_IN_A_ROW and not any(row.counts for row in last):
        raise DgbenchError(
            f"trials {last[0].number} to {last[-1].number} failed one after another; the last: {last[-1].reason} — mend this, then tune "
            "in another runs folder"
        )


def _line(rows: list[TrialRow], trials: int, selection: Selection) -> str:
    """How the last trial ended, and which is the best so far."""
    last = rows[-1]
    how = {
        "complete": f"{selection} DSC {100 * (last.value or 0.0):.1f}",
        "pruned": f"pruned after {len(last.validations)} validations",
        "failed": f"failed: {last.reason}",
    }[last.state]
    best = select(rows, counted(rows))
    return f"trial {last.number}, {counted(rows)} of {trials}: {how}; best {100 * (best.value or 0.0):.1f} (trial {best.number})"
