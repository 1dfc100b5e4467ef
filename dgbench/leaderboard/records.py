"""What run folders say: which runs exist, which of them can be counted, and why the others cannot.

A run is counted when it and its evaluation are ``done``, the evaluation is of the run's own weights, and it holds rows for the
view asked for. Everything else stays visible as a record with a reason.
"""

import json
import multiprocessing
import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ValidationError

from dgbench.atomic import read_json
from dgbench.errors import DgbenchError
from dgbench.frozen import one_line
from dgbench.leaderboard.checked_rows import as_frame, read_checked, rows_where
from dgbench.leaderboard.costs import RunCost, read_run_cost
from dgbench.leaderboard.statistics import BASELINE
from dgbench.leaderboard.thresholds import OFFICIAL_SETTING, OFFICIAL_THRESHOLD, TARGET_INFORMED, Rule, choose_threshold
from dgbench.protocol import Protocol
from dgbench.store.folder import IMPORTED, SHARED_METHOD, RunFolder, RunSpec, Status, iter_runs, read_status
from dgbench.store.manifest import MANIFEST, Manifest, Tier

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class View:
    """Which of the stored rows a table is made of, and which policy resolves undefined values; ``threshold`` may be a rule that chooses one
    for every run."""

    setting: str = OFFICIAL_SETTING
    threshold: float | Rule = OFFICIAL_THRESHOLD
    checkpoint: str = "source-val"
    policy: str = "default"

    @property
    def official(self) -> bool:
        """Whether this is the view that is ranked (protocol: F-Seg, threshold 0.5, source-val checkpoint, default policy)."""
        return self == OFFICIAL

    @property
    def oracle(self) -> bool:
        """Whether the view is informed by the held-out center: the ROI comes from its label, or the threshold was chosen on it."""
        return self.setting.endswith("-Mask") or self.threshold in TARGET_INFORMED

    @property
    def threshold_text(self) -> str:
        """The threshold or the name of its rule."""
        return self.threshold if isinstance(self.threshold, str) else f"{self.threshold:g}"


OFFICIAL = View()

UNREADABLE = "unreadable"
NO_THRESHOLD = "evaluation holds no threshold"
"""How the reasons begin of runs that are damaged, and of those that hold no rows at the threshold asked for."""

RUNS_PER_PROCESS = 200
"""Runs that are worth a process to read them: it takes about a second to begin, a run some milliseconds."""

RUNS_AT_ONCE = 50
"""Runs that a process is given at a time: what an interruption waits for."""


def check_root(root: Path, protocol: Protocol) -> None:
    """Raise DgbenchError where ``root`` is no folder that could hold runs of ``protocol``; an empty one could."""
    if not root.exists():
        raise DgbenchError(
            f"--runs {root}: no such folder — start with: dgbench run --protocol {protocol.name} --method {BASELINE} "
            f"--heldout {protocol.heldouts[0]}"
        )
    if not root.is_dir():
        raise DgbenchError(f"--runs {root}: is a file — name the folder of the runs")
    if (
        root.resolve().name == protocol.name
        and next(iter_runs(root.resolve().parent), None)
        and not any(iter_runs(root))
    ):
        raise DgbenchError(f"--runs {root}: holds the runs of one protocol — name the folder above it")


class _Evaluated(BaseModel):
    """What an evaluation's ``spec.json`` says about the weights and the cases it is of, and about the meaning of its numbers."""

    train_keys: dict[str, str]
    fingerprint: str
    numbers: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run. ``rows`` are its held-out case rows in the view, at ``threshold``; they are absent exactly where ``reason`` says why.
    ``lesion_free`` are those of the support centers' cases, where the evaluation has them; ``cost`` is what a finished run cost, or why
    that is not known.

    ``data`` names the data it depends on: runs that give one name different identities are not comparable. ``tier`` is that of a submitted
    record; a run folder has none.
    """

    folder: str
    spec: RunSpec
    updated: str
    data: Mapping[str, str]
    reason: str | None = None
    rows: "pa.Table | None" = None
    lesion_free: "pa.Table | None" = None
    threshold: float | None = None
    cost: RunCost | str | None = None
    tier: Tier | None = None

    def without_rows(self, reason: str) -> "Record":
        """The same record, not counted, because of ``reason``."""
        return replace(self, rows=None, lesion_free=None, reason=" ".join(reason.split()))


def read_records(
    root: Path, protocol: Protocol, view: View, keep: Callable[[RunSpec], bool], processes: int = 1
) -> tuple[list[Record], dict[str, str]]:
    """The runs of methods of ``protocol`` under ``root`` that ``keep`` wants, and why each other folder there cannot be read.

    The shared pancreas runs are rows in the settings of their own stages alone. Imported prediction sets have one mask per case: they stand
    in every view of the official setting and in no other. Rows keep :data:`dgbench.leaderboard.policies.RAW_COLUMNS`.

    At most ``processes`` read side by side, none with less than :data:`RUNS_PER_PROCESS` runs; they are spawned, so that a script that
    asks for more than one needs the usual ``if __name__ == "__main__"``.
    """
    problems: dict[str, str] = {}

    def note(path: Path, error: DgbenchError) -> None:
        folder = path.relative_to(root)
        if folder.parts[0] == protocol.name:
            problems[folder.as_posix()] = _below(root, error)

    shared = view.setting in [protocol.stages[stage].code for stage in protocol.shared_stages]
    specs = ((run, run.spec) for run in iter_runs(root, note))
    runs = [
        run
        for run, spec in specs
        if spec.protocol.name == protocol.name and (spec.method.name == SHARED_METHOD) == shared and keep(spec)
        if not spec.method.imported or view.setting == OFFICIAL.setting
    ]
    one_mask = replace(OFFICIAL, checkpoint=IMPORTED)
    read = partial(_record, protocol=protocol)
    views = [one_mask if run.spec.method.imported else view for run in runs]
    processes = min(processes, len(runs) // RUNS_PER_PROCESS)
    if processes < 2:
        return list(map(read, runs, views)), problems
    context = multiprocessing.get_context("spawn")
    ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is this process's to tell
    with ProcessPoolExecutor(processes, context, signal.signal, ignore) as pool:
        return list(pool.map(read, runs, views, chunksize=RUNS_AT_ONCE)), problems


def _record(run: RunFolder, view: View, protocol: Protocol) -> Record:
    spec = run.spec
    record = Record(folder=run.relative, spec=spec, updated="", data=dict(spec.data.centers))
    try:
        if (run.path / MANIFEST).is_file():
            manifest = Manifest.read(run.path)
            try:
                manifest.check(run.path)
            except DgbenchError as error:
                return record.without_rows(f"refused: {_below(run.root, error)}")
            record = replace(record, tier=manifest.tier)
        status = run.status
        record = replace(record, updated=status.updated or "")
        if status.state != "done":
            progress = f", {run.trained():.0%} trained" if status.state in ("running", "interrupted") else ""
            return record.without_rows(_state(status, progress))
        if not (run.evaluation / "status.json").exists():
            return record.without_rows("evaluation missing")
        evaluation = read_status(run.evaluation)
        if evaluation.state != "done":
            return record.without_rows(f"evaluation {_state(evaluation)}")
        evaluated = _Evaluated.model_validate(read_json(run.evaluation / "spec.json"))
        trained = {stage: reference.key for stage, reference in spec.stages.items()}
        other = sorted(stage for stage, key in evaluated.train_keys.items() if trained.get(stage) != key)
        if other:
            return record.without_rows(f"evaluation is of other weights: {', '.join(other)}")
        evaluation_data = {f"evaluated {spec.heldout}": evaluated.fingerprint, "numbers": str(evaluated.numbers)}
        record = replace(record, data={**record.data, **evaluation_data})
        cases = read_checked(run.evaluation)
        return _select(replace(record, cost=_cost(run, cases)), cases, view, protocol)
    except DgbenchError as error:
        told = _below(run.root, error)
        return record.without_rows(f"{UNREADABLE}: {told}" if told.startswith(run.relative) else told)
    except ValidationError as error:
        return record.without_rows(f"{UNREADABLE}: evaluation/spec.json: {one_line(error)}")


def _cost(run: RunFolder, cases: "pa.Table") -> RunCost | str | None:
    """A cost that cannot be read leaves the accuracy of the run as it is, and is told."""
    try:
        return read_run_cost(run, cases)
    except DgbenchError as error:
        return _below(run.root, error)


def _state(status: Status, progress: str = "") -> str:
    state = f"{status.state}{progress}"
    return f"{state}: {status.reason}" if status.reason else state


def _below(root: Path, error: DgbenchError) -> str:
    """The message with paths relative to the runs root, so that a table can be shared."""
    return str(error).replace(f"{root}/", "")


def _select(record: Record, cases: "pa.Table", view: View, protocol: Protocol) -> Record:
    """The record with its held-out rows in ``view``, or with the reason why it has none."""
    import numpy as np
    import pyarrow as pa

    threshold = view.threshold
    if isinstance(threshold, str):
        where = {"setting": view.setting, "checkpoint": view.checkpoint}
        center = protocol.center_of(record.spec.heldout)
        threshold = choose_threshold(threshold, as_frame(cases), **where, heldout=center, protocol=protocol)
    wanted = {"setting": view.setting, "checkpoint": view.checkpoint, "threshold": threshold}
    chosen, free = rows_where(cases, "role", "held-out"), rows_where(cases, "role", "lesion-free")
    matches = {
        "setting": rows_where(cases, "setting", view.setting),
        "checkpoint": rows_where(cases, "checkpoint", view.checkpoint),
        "threshold": np.abs(cases["threshold"].to_numpy() - threshold) < 1e-6,
    }
    for column, match in matches.items():
        before, chosen = chosen, chosen & match
        free = free & match
        if not chosen.any():
            values = cases[column].filter(pa.array(before)).unique().to_pylist()
            known = ", ".join(map(str, sorted(values))) or "no held-out rows"
            return record.without_rows(f"evaluation holds no {column} {wanted[column]} (stored: {known})")
    rows = cases.filter(pa.array(chosen))
    if len(rows["case"].unique()) < len(rows):
        ((twice, _),) = Counter(rows["case"].to_pylist()).most_common(1)
        return record.without_rows(f"evaluation holds case {twice} more than once")
    if len(stages := rows["stage"].unique()) > 1:
        named = ", ".join(sorted(stages.to_pylist()))
        return record.without_rows(f"evaluation holds rows of several stages in setting {view.setting} ({named})")
    lesion_free = cases.filter(pa.array(free)) if free.any() else None
    return replace(record, rows=rows, lesion_free=lesion_free, threshold=threshold)


def comparable_groups(records: list[Record]) -> list[list[Record]]:
    """Records split so that no group holds two identities of the same data. Those that name data of which there are several identities
    come first, newest first, each in the first group it fits; each of the others, which fit everywhere, in the largest group.

    A phantom's fingerprint names its recipe and is the same for every split. That of patient data covers the sources of one split only,
    since nothing may read the held-out center before evaluation: it can differ between splits of the same data.
    """
    identities: dict[str, set[str]] = {}
    for record in records:
        for name, identity in record.data.items():
            identities.setdefault(name, set()).add(identity)
    groups: list[tuple[dict[str, str], list[Record]]] = []
    undisputed: list[Record] = []
    for record in sorted(records, key=lambda record: (record.updated, record.folder), reverse=True):
        if all(len(identities[name]) == 1 for name in record.data):
            undisputed.append(record)
            continue
        for data, members in groups:
            if all(data.get(name, identity) == identity for name, identity in record.data.items()):
                data.update(record.data)
                members.append(record)
                break
        else:
            groups.append((dict(record.data), [record]))
    found = [members for _, members in groups] or [[]]
    max(found, key=len).extend(undisputed)
    return [members for members in found if members]


def refuse_partial(records: list[Record]) -> list[Record]:
    """The records, those without all cases that another run of the same held-out center was evaluated on no longer counted."""
    import pyarrow as pa

    names: dict[str, list[pa.Array]] = {}
    for record in records:
        if record.rows is not None:
            names.setdefault(record.spec.heldout, []).extend(record.rows["case"].cast(pa.string()).chunks)
    known = {heldout: len(pa.chunked_array(cases, pa.string()).unique()) for heldout, cases in names.items()}
    checked = []
    for record in records:
        expected = known.get(record.spec.heldout, 0)
        partial = record.rows is not None and len(record.rows) < expected
        cases = 0 if record.rows is None else len(record.rows)
        checked.append(record.without_rows(f"evaluated {cases} of {expected} cases") if partial else record)
    return checked


def retarget(command: str, heldout: str, seed: int) -> str:
    """A run's command line with another held-out center and seed."""
    words: list[str] = []
    skip = False
    for word in _words(command):
        option, _, value = word.partition("=")
        if skip or option in ("--heldout", "--seed"):
            skip = not skip and not value
            continue
        words.append(word)
    return shlex.join([*words, "--heldout", heldout, "--seed", str(seed)])


def tuning_command(command: str, heldout: str, trials: int) -> str:
    """The command that tunes for another held-out center what a run with ``command`` was tuned for."""
    words = _words(command)
    if "--config" in words:
        place = words.index("--config")
        del words[place : place + 2]
    seed = words[words.index("--seed") + 1] if "--seed" in words[:-1] else "0"
    tune = ["tune" if word == "run" else word for word in words]
    return f"{retarget(shlex.join(tune), heldout, int(seed) if seed.isdigit() else 0)} --trials {trials}"


def _words(command: str) -> list[str]:
    """The words of a command line; of one that a hand spoiled (an open quote), what stands between spaces."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def preset_overrides(command: str) -> tuple[str, ...]:
    """The ``--set preset.…`` assignments of a run's command line, sorted: what a modified preset was changed to."""
    words = _words(command)
    assignments = [value for option, value in pairwise(words) if option == "--set"]
    assignments += [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    return tuple(sorted(value for value in assignments if value.startswith("preset.")))


class RowKey(NamedTuple):
    """What makes two runs seeds or centers of the same row; ``config`` as JSON. A tuned row has a configuration for each center, which its
    studies chose; what makes it one is how many trials they had, and what they were not to search."""

    method: str
    version: int
    config: str
    modified: bool
    overrides: tuple[str, ...]
    imported: bool
    tuned: int | None = None
    devices: int = 1

    @property
    def is_baseline(self) -> bool:
        """Whether other rows are compared with this one: the baseline as the protocol has it, neither modified nor tuned."""
        return self.method == BASELINE and not self.modified and self.tuned is None

    @classmethod
    def of(cls, spec: RunSpec) -> "RowKey":
        """The row that a run belongs to."""
        devices = max(1, spec.environment.devices)  # an imported set was made on none that is known
        if spec.tuned is not None and not spec.protocol.modified:
            settings = spec.tuned.settings
            return cls(spec.method.name, spec.method.version, "{}", False, settings, False, spec.tuned.trials, devices)
        modified = spec.protocol.modified
        overrides = preset_overrides(spec.command) if modified else ()
        config = json.dumps(spec.method.config, sort_keys=True)
        imported = spec.method.imported
        return cls(spec.method.name, spec.method.version, config, modified, overrides, imported, None, devices)


def row_labels(rows: Iterable[RowKey]) -> dict[RowKey, str]:
    """The method's name, and whatever tells its rows in this table apart: version, configuration, preset overrides. Where a row of the
    method is tuned, that row says ``tuned(trials)`` and the method as it is ``default``; several
    devices are always named."""
    keys = list(rows)
    labels = {}
    for key in keys:
        siblings = [other for other in keys if other.method == key.method]
        configs = [json.loads(other.config) for other in siblings if other.tuned is None]
        parts = [f"v{key.version}"] if len({other.version for other in siblings}) > 1 else []
        parts += [
            f"{option}={value}"
            for option, value in json.loads(key.config).items()
            if any(config.get(option) != value for config in configs)
        ]
        parts += key.overrides
        if key.tuned is not None:
            parts.insert(0, f"tuned({key.tuned})")
        elif not parts and any(other.tuned is not None for other in siblings):
            parts = ["default"]
        parts += [f"{key.devices} devices"] if key.devices > 1 else []
        labels[key] = f"{key.method} ({', '.join(parts)})" if parts else key.method
    return labels
