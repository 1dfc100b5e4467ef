"""A tuning study on disk, and the configuration that it selects: ``<protocol>/<heldout>/<method>/tune-<key8>/`` below a runs folder.

``study.json`` says what is searched and how, ``trials.jsonl`` what came of every trial, ``best.yaml`` what is selected; the last is a pure
function of the other two, so that a run that was made from it carries all three and anybody can select again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import Field, JsonValue, ValidationError

from dgbench.atomic import read_json, read_jsonl, write_bytes, write_json, write_text
from dgbench.errors import DgbenchError
from dgbench.frozen import Frozen, one_line
from dgbench.protocol import Protocol
from dgbench.store.folder import DataRef, Environment, Key, MethodRef, ProtocolRef, TunedRef
from dgbench.store.keys import key_of
from dgbench.store.selection import Selection
from dgbench.yaml_text import parse_value, read_yaml

STUDY, TRIALS, BEST = "study.json", "trials.jsonl", "best.yaml"
KEPT_OF_STUDY = (STUDY, TRIALS, BEST)
"""What a run that was made from a study keeps of it, in its folder ``tuning``."""
TUNING = "tuning"
TUNED_OF_STAGE = ("lr", "weight_decay", "augmentation")
"""Settings of a stage that a study may choose without taking the rank of a run."""
VALUE_EXACTLY = 1e-12
OBJECTIVES: Mapping[Selection, str] = {
    Selection.SOURCE_VAL: "mean over the method's stages of the best source-validation DSC (equal-weight mean over source centers, label "
    "ROI)",
    Selection.LEAVE_ONE_SOURCE_OUT: "mean over the method's stages and the source centers of the DSC at that center (all its cases, label "
    "ROI) of a training without it, at the checkpoint that source validation selects",
}
"""What a study maximises; part of its key."""
LEFT_OUT = "left-out.json"
"""Beside the results of a training without one source center: what it is worth there."""


class StudySpec(Frozen):
    """``study.json``. ``method`` and ``protocol`` are those of the run without tuning, ``stages`` its train keys; ``settings`` are the
    ``--set`` texts that fixed something; ``search`` says how trials are proposed and pruned."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    dgbench: str
    key: Key
    protocol: ProtocolRef
    heldout: str
    sources: tuple[str, ...]
    support: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0)]
    method: MethodRef
    settings: tuple[str, ...] = ()
    stages: dict[str, Key]
    space: dict[str, dict[str, JsonValue]]
    objective: str
    search: dict[str, JsonValue]
    data: DataRef
    environment: Environment
    command: str

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The study in ``folder``. Raises DgbenchError where it is missing, damaged, or not what its key was computed from."""
        path = folder / STUDY
        if not path.is_file():
            raise DgbenchError(f"{path}: no such file — a tuned configuration lies beside the study that selected it")
        try:
            spec = cls.model_validate(read_json(path))
        except ValidationError as error:
            raise DgbenchError(f"{path}: {one_line(error)} — damaged or foreign, tune again") from None
        if spec.key != study_key(spec.stages, spec.space, spec.objective, spec.search):
            raise DgbenchError(f"{path}: its key does not follow from what it says — changed by hand, tune again")
        if spec.objective not in OBJECTIVES.values():
            raise DgbenchError(
                f"{path}: unknown objective ({spec.objective}) — of another version of dgbench, tune again"
            )
        return spec

    @property
    def selection(self) -> Selection:
        """By what the study selects."""
        return next(name for name, text in OBJECTIVES.items() if text == self.objective)

    @property
    def trainings(self) -> tuple[str, ...]:
        """The names of the trainings of every trial."""
        if self.selection is Selection.SOURCE_VAL:
            return tuple(self.stages)
        sources = [name for name in self.sources if name not in self.support]
        return tuple(without_source(stage, source) for source in sources for stage in self.stages)

    def write(self, folder: Path) -> None:
        """Write it into ``folder``."""
        write_json(folder / STUDY, self.model_dump(mode="json", by_alias=True))

    @property
    def method_settings(self) -> tuple[str, ...]:
        """Of the settings that were fixed, those of the method."""
        return tuple(sorted(text for text in self.settings if not text.startswith("preset.")))

    def reference(self, trials: int) -> TunedRef:
        """How a run names the study that chose its configuration among ``trials`` trials."""
        return TunedRef(trials=trials, study=self.key, settings=self.method_settings, selection=self.selection)


def without_source(stage: str, source: str) -> str:
    """What the training of ``stage`` without the center ``source`` is called."""
    return f"{stage} without {source}"


def study_key(stages: Mapping[str, str], space: Mapping[str, Any], objective: str, search: Mapping[str, Any]) -> str:
    """The key of a study: the train keys of the run without tuning hold protocol, data, machine, method and seed. The number of trials is
    not part of it, so that a study can be continued."""
    return key_of({"stages": dict(stages), "space": dict(space), "objective": objective, "search": dict(search)})


class StageOutcome(Frozen):
    """What one training of a trial reached: its key, the selected step, and its best source validation (DSC in [0, 1]); of a training
    without one source center, the DSC there."""

    key: Key
    best_step: int
    best_dsc: float


class TrialRow(Frozen):
    """One line of ``trials.jsonl``. ``params`` is the point of the space; ``config`` and ``preset`` are what it changes; ``validations``
    are the values that pruning looked at; ``reason`` says why a trial failed."""

    number: Annotated[int, Field(ge=0)]
    state: Literal["complete", "pruned", "failed"]
    value: float | None
    params: dict[str, JsonValue]
    config: dict[str, JsonValue]
    preset: dict[str, float]
    stages: dict[str, StageOutcome]
    validations: tuple[float, ...]
    reason: str | None = None

    @property
    def counts(self) -> bool:
        """Whether the trial is one of those that a method is given."""
        return self.state != "failed"


def read_trials(folder: Path) -> list[TrialRow]:
    """The trials of a study in their order. Raises DgbenchError where they are missing, damaged, or a value is not that of its stages."""
    path = folder / TRIALS
    if not path.is_file():
        raise DgbenchError(f"{path}: no such file — all trials are published with a tuned configuration")
    try:
        rows = [TrialRow.model_validate(row) for row in read_jsonl(path)]
    except ValidationError as error:
        raise DgbenchError(f"{path}: {one_line(error)} — damaged or foreign, tune again") from None
    for row in rows:
        if row.state == "complete" and (row.value is None or abs(row.value - objective(row.stages)) > VALUE_EXACTLY):
            raise DgbenchError(f"{path}: the value of trial {row.number} is not the mean of its stages — tune again")
    if [row.number for row in rows] != list(range(len(rows))):
        raise DgbenchError(f"{path}: trials are missing or out of order — all of them are published, tune again")
    return rows


def write_trials(folder: Path, rows: Sequence[TrialRow]) -> None:
    """Write ``trials.jsonl``."""
    write_text(folder / TRIALS, "".join(f"{row.model_dump_json()}\n" for row in rows))


def objective(stages: Mapping[str, StageOutcome]) -> float:
    """The mean over the trainings of a trial of what each reached; NaN without any."""
    return fmean(stage.best_dsc for stage in stages.values()) if stages else float("nan")


def counted(rows: Sequence[TrialRow]) -> int:
    """How many trials of a study count: all but those that failed."""
    return sum(row.counts for row in rows)


def select(rows: Sequence[TrialRow], trials: int) -> TrialRow:
    """The complete trial with the highest value among the first ``trials`` that count; of equal ones the first.

    Raises:
        DgbenchError: there are fewer, or none of them is complete.
    """
    first = [row for row in rows if row.counts][:trials]
    complete = [row for row in first if row.state == "complete" and row.value is not None]
    if len(first) < trials or not complete:
        raise DgbenchError(
            f"{len(first)} of {trials} trials are done, {len(complete)} of them complete — go on with the same command"
        )
    return max(complete, key=lambda row: (row.value or 0.0, -row.number))


class TunedClaim(Frozen):
    """What a configuration says of the study that selected it."""

    trials: Annotated[int, Field(ge=1)]
    study: Key


class RunConfig(Frozen):
    """The file of ``dgbench run --config``: settings of the method (``config``) and of the preset (``preset``, dotted paths). One that a
    study selected says so under ``tuned``, for which method and held-out center."""

    method: str | None = None
    heldout: str | None = None
    tuned: TunedClaim | None = None
    config: dict[str, JsonValue] = Field(default_factory=dict)
    preset: dict[str, JsonValue] = Field(default_factory=dict)


class Configuration(NamedTuple):
    """A configuration file as texts in the form of ``--set``, and the study behind it, if any."""

    config: dict[str, str]
    preset: dict[str, str]
    tuned: TunedClaim | None
    study: StudySpec | None


def read_run_config(path: Path) -> RunConfig:
    """What ``path`` says, of whatever run. Raises DgbenchError where it cannot be read or holds an unknown key."""
    try:
        return RunConfig.model_validate(read_yaml(path, "--config") or {})
    except ValidationError as error:
        raise DgbenchError(f"--config {path}: {one_line(error)}") from None


def read_configuration(path: Path, method: str, heldout: str) -> Configuration:
    """The configuration in ``path`` for a run of ``method`` with ``heldout``.

    Raises:
        DgbenchError: the file cannot be read or holds an unknown key; it is for another method or held-out center; or it claims to be tuned
            and is not what the study beside it selects.
    """
    found = read_run_config(path)
    for what, wanted, stated in (("method", method, found.method), ("held-out center", heldout, found.heldout)):
        if stated is not None and stated != wanted:
            raise DgbenchError(f"--config {path}: is for {what} {stated}, not {wanted} — tune for {wanted} too")
    study = None
    if found.tuned is not None:
        study = StudySpec.read(path.parent)
        trials = read_trials(path.parent)
        for row in trials:
            if row.state == "complete" and (lacking := set(study.trainings) ^ set(row.stages)):
                raise DgbenchError(
                    f"{path.parent / TRIALS}: trial {row.number} lacks a training, or has one too many ({sorted(lacking)[0]}) — tune again"
                )
        chosen = select(trials, found.tuned.trials)
        told = (found.tuned.study, found.method, found.heldout, dict(found.config), dict(found.preset))
        if told != selection(study, chosen):
            raise DgbenchError(
                f"--config {path}: is not what the study beside it selects — remove `tuned` from a file that was changed by hand"
            )
    config, preset = ({key: json.dumps(value) for key, value in part.items()} for part in (found.config, found.preset))
    return Configuration(config, preset, found.tuned, study)


def selection(study: StudySpec, chosen: TrialRow) -> tuple[str, str, str, dict[str, Any], dict[str, Any]]:
    """What the configuration of a trial must say: study, method, held-out center, settings of the method and of the preset. Settings that
    were fixed for the whole study are part of it."""
    fixed_config: dict[str, Any] = {}
    fixed_preset: dict[str, Any] = {}
    for text in study.settings:
        key, _, value = text.partition("=")
        if key.startswith("preset."):
            fixed_preset[key.removeprefix("preset.")] = parse_value(value)
        else:
            fixed_config[key] = parse_value(value)
    config, preset = {**fixed_config, **chosen.config}, {**fixed_preset, **chosen.preset}
    return study.key, study.method.name, study.heldout, config, preset


def write_selection(folder: Path, study: StudySpec, trials: int) -> TrialRow:
    """Write ``best.yaml`` for the first ``trials`` trials that count, and return the one that it holds."""
    chosen = select(read_trials(folder), trials)
    key, method, heldout, config, preset = selection(study, chosen)
    content = {
        "method": method,
        "heldout": heldout,
        "tuned": {"trials": trials, "study": key},
        "config": config,
        "preset": preset,
    }
    head = f"# Trial {chosen.number}, selected by {study.selection} (DSC {100 * (chosen.value or 0.0):.2f}) by `dgbench tune`.\n"
    write_text(folder / BEST, head + yaml.safe_dump(content, sort_keys=False))
    return chosen


def keep_study(source: Path, run: Path) -> Path:
    """Copy what a run keeps of the study that selected the configuration ``source`` into its folder; the copy of the configuration."""
    target = run / TUNING / BEST
    if source.absolute() != target.absolute():
        for name in KEPT_OF_STUDY:
            write_bytes(run / TUNING / name, (source if name == BEST else source.parent / name).read_bytes())
    return target


def own_stages(protocol: Protocol) -> tuple[str, ...]:
    """The stages that the method under test trains, in the order of inference."""
    return tuple(name for name in protocol.stages if name not in protocol.shared_stages)


def tunable(protocol: Protocol) -> frozenset[str]:
    """Dotted paths below a preset that a study may choose."""
    return frozenset(f"stages.{stage}.{name}" for stage in own_stages(protocol) for name in TUNED_OF_STAGE)


def iter_studies(root: Path) -> Iterator[Path]:
    """The folders of all studies below a runs folder, in the order of their paths."""
    return (path.parent for path in sorted(root.glob(f"*/*/*/tune-*/{STUDY}")))
