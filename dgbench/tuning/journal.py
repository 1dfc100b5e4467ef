"""The journal of a study: optuna's trials, proposed one at a time and in a way that a restart does not change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgbench.info import Range
from dgbench.seeds import derive_seed
from dgbench.store.study import StageOutcome, StudySpec, TrialRow
from dgbench.tuning.space import Param, Space

if TYPE_CHECKING:
    import optuna

JOURNAL = "journal.jsonl"
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
"""Of optuna, and as they are published."""
Changes = tuple[dict[str, Any], dict[str, float]]
"""What a point of the space changes: settings of the method, overrides of the preset."""


def open_study(folder: Path, spec: StudySpec) -> "optuna.Study":
    """The study of ``folder`` from its journal. The caller holds the folder's lock, so that what a killed process left (its lock, a
    half-written line) can be cleared away."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = folder / JOURNAL
    for left in folder.glob(f"{JOURNAL}.*"):
        left.unlink()
    if journal.is_file():
        data = journal.read_bytes()
        if len(whole := data[: data.rfind(b"\n") + 1]) < len(data):
            with journal.open("r+b") as file:
                file.truncate(len(whole))
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
        study_name=spec.key,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_number(spec, "pruner_startup")),
    )


def next_trial(
    study: "optuna.Study", space: Space, default: dict[str, Param], spec: StudySpec
) -> "tuple[optuna.Trial, dict[str, Param]]":
    """The trial that a killed process left unfinished, else a new one, with its point of the space; the first one is ``default``.

    A point is stored whole, before its trial begins.
    """
    import optuna

    states = optuna.trial.TrialState
    if not study.get_trials(deepcopy=False, states=(states.RUNNING, states.WAITING)):
        study.enqueue_trial(_propose(study, space, default, spec) if study.trials else default)
    running = study.get_trials(deepcopy=False, states=(states.RUNNING,))
    trial = optuna.Trial(study, running[0]._trial_id) if running else study.ask()
    return trial, _suggest(trial, space, default)


def _propose(study: "optuna.Study", space: Space, default: dict[str, Param], spec: StudySpec) -> dict[str, Param]:
    """The next point: a function of the trials so far and the seed of the study, and of no stream that would have to survive."""
    import optuna

    trials = study.trials
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=_number(spec, "sampler_startup"), seed=derive_seed(spec.seed, "tuning", len(trials)) % 2**32
    )
    copy = optuna.create_study(direction="maximize", sampler=sampler)
    copy.add_trials(trials)
    return _suggest(copy.ask(), space, default)


def _suggest(trial: "optuna.Trial", space: Space, default: dict[str, Param]) -> dict[str, Param]:
    params: dict[str, Param] = {}
    for key, domain in space.items():
        if not isinstance(domain, Range):
            params[key] = trial.suggest_categorical(key, [json.dumps(choice) for choice in domain])
        elif isinstance(default[key], int):
            params[key] = trial.suggest_int(key, int(domain.low), int(domain.high), log=domain.log)
        else:
            params[key] = trial.suggest_float(key, domain.low, domain.high, log=domain.log)
    return params


def rows_of(study: "optuna.Study", changes: Callable[[dict[str, Param]], Changes]) -> list[TrialRow]:
    """The finished trials, in their order, as they are published."""
    return [
        TrialRow.model_validate(
            {
                "number": trial.number,
                "state": STATES[trial.state.name],
                "value": trial.value if trial.state.name == "COMPLETE" else None,
                "params": trial.params,
                "config": (changed := changes(trial.params))[0],
                "preset": changed[1],
                "stages": {name: StageOutcome.model_validate(one) for name, one in trial.user_attrs["stages"].items()},
                "validations": [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)],
                "reason": trial.user_attrs.get("reason"),
            }
        )
        for trial in study.trials
        if trial.state.is_finished()
    ]


def _number(spec: StudySpec, name: str) -> int:
    return int(str(spec.search[name]))
