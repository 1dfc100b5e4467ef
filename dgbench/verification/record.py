"""One record: whose files are as they were submitted, whose keys follow from what it says, and whose budget is the protocol's."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dgbench import __version__
from dgbench.atomic import read_json, read_jsonl
from dgbench.data.preparation import VERSION as PREPARATION
from dgbench.data.splits import center_of
from dgbench.errors import DgbenchError
from dgbench.evaluation.imported import imported_key
from dgbench.evaluation.metrics import NUMBERS
from dgbench.frozen import one_line
from dgbench.info import MethodInfo
from dgbench.launch.plan import judged_how, phantom_recipe, run_key
from dgbench.launch.settings import tuned_protocol
from dgbench.protocol import Protocol, ResolvedProtocol
from dgbench.registry import discover
from dgbench.store.folder import SHARED_METHOD, RunSpec, StageRef, read_status
from dgbench.store.keys import diff, key_of
from dgbench.store.manifest import files_of
from dgbench.store.record import KEPT_OF_STAGE, record_files
from dgbench.store.study import BEST, STUDY, TUNING, read_configuration
from dgbench.training.job import RECIPE, protocol_reference
from dgbench.training.selection import center_mean, validation_steps
from dgbench.yaml_text import parse_value

KEYED_WITHOUT_NUMBERS = 3
"""Evaluations up to this version state ``numbers``, but were keyed before that field existed."""
SELECTED_EXACTLY = 1e-9
IDENTITY = (*("recipe", "stage", "steps", "preparation", "protocol", "method", "seed", "data", "split", "environment"),)
"""What a training states beside its key; where a step holds more cases of one center than of another, ``surplus`` too."""


@dataclass(frozen=True)
class Record:
    """A record on disk: a folder below ``root`` in the place that its spec names, or one of its reproductions."""

    root: Path
    path: Path
    spec: RunSpec

    @property
    def shared(self) -> bool:
        """Whether it is of the stages that all methods of a split share."""
        return self.spec.method.name == SHARED_METHOD

    @property
    def own(self) -> dict[str, StageRef]:
        """The stages that the run trained itself."""
        home = self.spec.folder(Path()).as_posix()
        return {name: stage for name, stage in self.spec.stages.items() if stage.folder == f"{home}/{name}"}

    def stage(self, name: str) -> Path:
        """The folder of a stage: inside the record, or in that of the shared stages."""
        return self.path / name if name in self.own else self.root / self.spec.stages[name].folder


def check_record(record: Record, protocol: Protocol) -> ResolvedProtocol:
    """Everything but the rows; the resolved protocol of the record.

    Raises:
        DgbenchError: what does not hold, in one line that names the file.
    """
    _check_complete(record)
    resolved = _check_protocol(record, protocol)
    if not record.spec.method.imported:
        _check_method(record)
    stages = {name: _check_stage(record, name, resolved) for name in record.spec.stages}
    if record.spec.method.imported:
        _check_imported_key(record)
    else:
        keys = {name: str(identity["key"]) for name, identity in stages.items()}
        shared = {name: key for name, key in keys.items() if name not in record.own}
        key = run_key(resolved, {name: keys[name] for name in record.own}, shared, record.spec.tuned)
        _equal(record.path / "spec.json", "key", record.spec.key, key, "what follows from the keys of its stages")
    _check_evaluation(record, resolved)
    return resolved


def _check_imported_key(record: Record) -> None:
    spec = record.spec
    stated = read_json(record.path / "evaluation" / "spec.json")
    evaluation = {field: value for field, value in stated.items() if field != "key"}
    key = imported_key(spec.method.name, spec.heldout, spec.seed, spec.protocol.content, evaluation)
    _equal(record.path / "spec.json", "key", spec.key, key, "what follows from its evaluation")


def source_cases(record: Record, stage: str, *parts: str) -> tuple[str, ...]:
    """The cases of a stage, as its training states them; ``parts`` are train or validation."""
    split = read_json(record.stage(stage) / "spec.json")["split"]
    return tuple(case for part in parts for case in split[part])


def _check_complete(record: Record) -> None:
    wanted = record_files(record.spec, record.own)
    if extra := sorted(set(files_of(record.path)) - set(wanted)):
        raise DgbenchError(f"{record.path / extra[0]}: is no part of a record — remove it, and submit the run again")
    for path in [
        *(record.path / name for name in wanted),
        *(record.stage(stage) / name for stage in record.spec.stages for name in KEPT_OF_STAGE),
    ]:
        if not path.is_file():
            raise DgbenchError(f"{path}: no such file — a record is complete; submit the run again")
        if path.name == "status.json" and (state := read_status(path.parent).state) != "done":
            raise DgbenchError(f"{path}: {state} — only finished runs are records")


def _check_protocol(record: Record, protocol: Protocol) -> ResolvedProtocol:
    """Version, content and standing of the protocol, who was held out and who trained."""
    spec, path = record.spec, record.path / "spec.json"
    ours, theirs = (".".join(version.split(".")[:2]) for version in (__version__, spec.dgbench))
    if (theirs, spec.protocol.version) != (ours, protocol.version):
        raise DgbenchError(
            f"{path}: dgbench {spec.dgbench}, protocol version {spec.protocol.version}; this is dgbench {__version__} with version "
            f"{protocol.version} — verify it with the version that made it"
        )
    if spec.protocol.modified or spec.protocol.preset not in protocol.presets:
        raise DgbenchError(
            f"{path}: preset {spec.protocol.preset} {'was modified' if spec.protocol.modified else 'is unknown'} — records are of a "
            f"preset of the protocol as it is ({', '.join(protocol.presets)})"
        )
    resolved = _resolve(record, protocol)
    expected = protocol_reference(resolved)
    if not spec.protocol.converged:  # shown later: a record does not claim it
        expected = expected.model_copy(update={"converged": False})
    _same(path, "protocol", spec.protocol.model_dump(), expected.model_dump(), f"protocol {protocol.name}")
    if spec.heldout not in protocol.heldouts:
        what = "fold" if protocol.folds else "center"
        raise DgbenchError(f"{path}: heldout {spec.heldout!r} is no {what} of protocol {protocol.name}")
    own = [name for name, stage in protocol.stages.items() if (stage.recipe is not None) == record.shared]
    stages = [*(() if record.shared else protocol.shared_stages), *own]
    if spec.method.imported:
        stages = []
    _same(path, "stages", list(spec.stages), stages, f"protocol {protocol.name}")
    _same(path, "own stages", list(record.own), [] if spec.method.imported else own, f"protocol {protocol.name}")
    own_center = protocol.center_of(spec.heldout)
    others = [name for name in protocol.centers if (name == own_center) == bool(protocol.folds)]
    others = [] if spec.method.imported else others
    sources = [name for name in spec.sources if name not in spec.support]
    _same(path, "sources", sorted(sources), sorted(others), f"protocol {protocol.name}")
    if not set(spec.support) <= set(protocol.support_centers) & set(spec.sources):
        raise DgbenchError(
            f"{path}: support {', '.join(spec.support)}: not support centers of protocol {protocol.name}"
        )
    if resolved.preset.phantom is not None and (stages or "phantom" in spec.data.centers):
        from dgbench.data.phantom import fingerprint

        if list(spec.data.centers) != ["phantom"]:
            named = ", ".join(spec.data.centers) or "nothing"
            raise DgbenchError(
                f"{path}: data.centers names {named}, a record of preset {spec.protocol.preset} is of its phantom — run it without --data"
            )
        recipe = fingerprint(phantom_recipe(resolved.preset.phantom))
        _equal(
            path, "data.centers.phantom", spec.data.centers["phantom"], recipe, f"the phantom of {spec.protocol.preset}"
        )
    return resolved


def _resolve(record: Record, protocol: Protocol) -> ResolvedProtocol:
    """The preset of the record, with what its study chose if it is tuned: the study is there, selects this, and is of this run."""
    spec, folder = record.spec, record.path / TUNING
    if spec.tuned is None:
        return protocol.resolve(spec.protocol.preset)
    chosen = read_configuration(folder / BEST, spec.method.name, spec.heldout)
    if chosen.tuned is None or chosen.study is None:
        raise DgbenchError(f"{folder / BEST}: names no study, though the run is tuned — submit the run again")
    study, path = chosen.study, folder / STUDY
    claim = study.reference(chosen.tuned.trials)
    _same(record.path / "spec.json", "tuned", spec.tuned.model_dump(), claim.model_dump(), f"the study in {folder}")
    for what in ("protocol", "heldout", "sources", "data"):
        found, wanted = study.model_dump(mode="json")[what], spec.model_dump(mode="json")[what]
        if what == "protocol":
            found["converged"] = wanted["converged"]
        _same(path, what, found, wanted, "the run")
    config = {**study.method.config, **{key: parse_value(text) for key, text in chosen.config.items()}}
    _same(record.path / "spec.json", "method.config", spec.method.config, config, f"the study in {folder}")
    return tuned_protocol(protocol, spec.protocol.preset, chosen.preset, study)


def _check_stage(record: Record, name: str, resolved: ResolvedProtocol) -> dict[str, Any]:
    """The training of one stage: its key from what it states, what it states from the protocol, its budget, its selection."""
    spec, folder = record.spec, record.stage(name)
    path = folder / "spec.json"
    stated = read_json(path)
    identity = {field: value for field, value in stated.items() if field != "key"}
    _equal(path, "key", stated.get("key"), key_of(identity), "what follows from its other fields")
    _equal(
        record.path / "spec.json",
        f"stages.{name}.key",
        spec.stages[name].key,
        stated["key"],
        f"the training in {folder}",
    )
    try:
        method, split = identity["method"], identity["split"]
        of_method = name in record.own and not record.shared
        factor = spec.method.draws_factor if of_method else 1
        devices = spec.environment.devices
        steps = resolved.steps(name, factor, devices)
        _same(path, "fields", sorted({*identity} - {"surplus"}), sorted(IDENTITY), "a training of this version")
        turns = resolved.cases_per_step(name) % max(1, len(split["sources"]))
        for what, value in (
            ("recipe", RECIPE),
            ("preparation", PREPARATION),
            ("surplus", "in turn" if turns else None),
        ):
            _equal(path, what, identity.get(what), value, "this version")
        _equal(path, "stage", identity["stage"], name, "the name of its folder")
        _same(path, "protocol", identity["protocol"], resolved.identity(name), f"protocol {spec.protocol.name}")
        _equal(path, "seed", identity["seed"], spec.seed, "the run")
        _same(path, "environment", identity["environment"], spec.environment.model_dump(), "the run")
        if of_method:
            run = spec.method
            _same(
                path,
                "method",
                {field: method[field] for field in ("name", "version", "config")},
                {"name": run.name, "version": run.version, "config": run.config},
                "the run",
            )
        else:
            _equal(
                path, "method.name", method["name"], resolved.protocol.stages[name].recipe, "the recipe of the stage"
            )
        _equal(path, "steps", identity["steps"], steps, f"the budget of preset {spec.protocol.preset}")
        if (phantom := spec.data.centers.get("phantom")) is not None:
            _equal(path, "data", identity["data"], phantom, "the phantom of the run")
        heldout = [case for case in (*split["train"], *split["validation"]) if case.startswith(f"{spec.heldout}/")]
        if heldout or spec.heldout in split["sources"]:
            raise DgbenchError(f"{path}: {(heldout or [spec.heldout])[0]} of the held-out center was trained on")
        _check_result(folder, steps, steps * devices * resolved.cases_per_step(name), split["validation"], resolved)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DgbenchError(
            f"{folder}: a field is missing or of another kind ({error}) — submit the run again"
        ) from None
    return stated


def _check_method(record: Record) -> None:
    """Where the method is known here, the record is of no later version of it, and of this one with its draws and a configuration that it
    takes: a row that it does not have could take the place of the baseline."""
    said, path = record.spec.method, record.path / "spec.json"
    info = discover().get(said.name)
    if not isinstance(info, MethodInfo):
        return
    if said.version > info.version:
        raise DgbenchError(
            f"{path}: method.version is {said.version}, {info.name} has version {info.version} here — install the one that was run"
        )
    if said.version == info.version:
        try:
            whole = info.config.model_validate({**info.defaults, **said.config}).model_dump(mode="json")
        except ValidationError as error:
            raise DgbenchError(f"{path}: method.config: {one_line(error)}") from None
        _same(path, "method.config", said.config, whole, f"a configuration of method {info.name}")
        _equal(path, "method.draws_factor", said.draws_factor, info.draws_factor, f"method {info.name}")


def _check_result(folder: Path, steps: int, draws: int, validated: list[str], resolved: ResolvedProtocol) -> None:
    """Steps and draws are the budget, and the selected step is the best of the stored validations."""
    path, log, clock = folder / "result.json", folder / "validation.jsonl", folder / "times.jsonl"
    result = read_json(path)
    budget = f"the budget of preset {resolved.preset_name}"
    _equal(path, "steps", result["steps"], steps, budget)
    _equal(path, "draws", result["draws"], draws, budget)
    times = read_jsonl(clock)
    _equal(clock, "steps", sum(row["steps"] for row in times), steps, budget)
    for row in times:
        if not (row["steps"] > 0 and 0 <= row["seconds"] < math.inf):
            raise DgbenchError(f"{clock}: {row['steps']} steps in {row['seconds']} s — submit the run again")
    if not any(row["seconds"] for row in times):
        raise DgbenchError(f"{clock}: no step took any time — submit the run again")
    rows = read_jsonl(log)
    expected = [
        (step, case) for step in sorted(validation_steps(steps, resolved.preset.validations)) for case in validated
    ]
    found = [(row["step"], row["case"]) for row in rows]
    if sorted(found) != sorted(expected):
        missing = sorted(set(expected) - set(found))
        what = f"no validation of {missing[0][1]} at step {missing[0][0]}" if missing else "validations too many"
        raise DgbenchError(f"{log}: {len(found)} rows, expected {len(expected)}: {what} — submit the run again")
    for row in rows:
        if row["center"] != center_of(row["case"]):
            raise DgbenchError(
                f"{log}: center of {row['case']} at step {row['step']} is {row['center']} — submit the run again"
            )
    best, best_step = -math.inf, None
    for step in dict.fromkeys(row["step"] for row in rows):
        here = [row for row in rows if row["step"] == step]
        scores = [math.nan if row["dsc"] is None else row["dsc"] for row in here]
        if any(not 0 <= score <= 1 for score in scores if not math.isnan(score)):
            raise DgbenchError(f"{log}: a DSC at step {step} is outside of 0 to 1")
        mean = center_mean(scores, [row["center"] for row in here])
        if mean > best:
            best, best_step = mean, step
    _equal(path, "best_step", result["best_step"], best_step, "the best of validation.jsonl")
    if abs(result["best_dsc"] - best) > SELECTED_EXACTLY:
        raise DgbenchError(f"{path}: best_dsc is {result['best_dsc']:.6f}, validation.jsonl gives {best:.6f}")


def _check_evaluation(record: Record, resolved: ResolvedProtocol) -> None:
    """The evaluation is of the run's own weights, made as the protocol says, and its key follows from what it states."""
    path = record.path / "evaluation" / "spec.json"
    stated = read_json(path)
    identity = {field: value for field, value in stated.items() if field != "key"}
    version = identity.get("version", 0)
    if not (isinstance(version, int) and isinstance(identity.get("content"), str)):
        raise DgbenchError(f"{path}: version or content is of another kind — submit the run again")
    early = not record.spec.method.imported and version <= KEYED_WITHOUT_NUMBERS
    keyed = {field: value for field, value in identity.items() if not (early and field == "numbers")}
    _equal(path, "key", stated.get("key"), key_of(keyed), "what follows from its other fields")
    trained = {name: stage.key for name, stage in record.spec.stages.items()}
    _same(path, "train_keys", identity.get("train_keys"), trained, "the run")
    _equal(path, "numbers", identity.get("numbers"), NUMBERS, "the meaning of numbers in this version")
    how = (
        {"metrics": resolved.protocol.metrics.model_dump(mode="json")}
        if record.spec.method.imported
        else judged_how(resolved)
    )
    _same(path, "how", identity.get("how"), how, f"protocol {resolved.protocol.name}")
    if "phantom" in record.spec.data.centers:
        identity_of_data = record.spec.data.centers["phantom"]
        _equal(path, "fingerprint", identity.get("fingerprint"), identity_of_data, "the phantom of the run")


def _equal(path: Path, what: str, found: Any, expected: Any, source: str) -> None:
    if found != expected:
        raise DgbenchError(f"{path}: {what} is {_short(found)}, {source} gives {_short(expected)}")


def _same(path: Path, what: str, found: Any, expected: Any, source: str) -> None:
    if lines := diff({what: expected}, {what: found}):
        raise DgbenchError(f"{path}: differs from {source}: {lines[0]}")


def _short(value: Any) -> str:
    return value[:8] if isinstance(value, str) and len(value) == 64 else str(value)
