"""What run folders say: which runs exist, which of them can be counted, and why the others cannot.

A run is counted when it and its evaluation are ``done``, the evaluation is of the run's own weights, and it holds rows for the
view asked for. Everything else stays visible as a record with a reason.
"""

import multiprocessing
import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from dgbench.atomic import read_json
from dgbench.errors import DgbenchError
from dgbench.frozen import one_line
from dgbench.leaderboard.checked_rows import as_frame, read_checked
from dgbench.leaderboard.costs import RunCost, read_run_cost
from dgbench.leaderboard.statistics import BASELINE
from dgbench.leaderboard.thresholds import OFFICIAL_THRESHOLD, TARGET_INFORMED, Rule, choose_threshold
from dgbench.protocol import Protocol
from dgbench.store.cases import OFFICIAL_SETTING
from dgbench.store.folder import IMPORTED, SHARED_METHOD, RunFolder, RunSpec, Status, iter_runs, read_status, run_paths
from dgbench.store.foreign import rows_where
from dgbench.store.keys import diff
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


def start_command(protocol: Protocol, preset: str | None, root: Path, method: str = BASELINE) -> str:
    """The command of a first run of ``protocol``, into ``root`` unless that holds runs already, as the records of others."""
    words = ["dgbench", "run", "--protocol", protocol.word, "--method", method, "--heldout", protocol.heldouts[0]]
    words += ["--preset", preset] if preset else []
    return shlex.join([*words, *place_words(protocol, root)])


def place_words(protocol: Protocol, root: Path) -> tuple[str, ...]:
    """The options of a command that trains: where its data are, and where runs go unless ``root`` holds the records of others."""
    data = ("--data", "DIR") if protocol.kind == "patient" else ()
    return (*data, "--runs", str(root)) if root != Path("runs") and not any(run_paths(root)) else data


def check_root(root: Path, protocol: Protocol) -> None:
    """Raise DgbenchError where ``root`` is no folder that could hold runs of ``protocol``; an empty one could."""
    if not root.exists():
        raise DgbenchError(f"--runs {root}: no such folder — start with: {start_command(protocol, None, root)}")
    if not root.is_dir():
        raise DgbenchError(f"--runs {root}: is a file — name the folder of the runs")
    if (
        root.resolve().name == protocol.name
        and next(iter_runs(root.resolve().parent), None)
        and not any(iter_runs(root))
    ):
        raise DgbenchError(f"--runs {root}: holds the runs of one protocol — name the folder above it")


class _How(BaseModel):
    """How an evaluation judged: the constants of the metrics, where it tells."""

    metrics: dict[str, float] | None = None


class _Evaluated(BaseModel):
    """What an evaluation's ``spec.json`` says about the weights and the cases it is of, and about the meaning of its numbers; ``heldout``
    names patient data as a run that is trained on them does."""

    train_keys: dict[str, str]
    fingerprint: str
    numbers: int
    heldout: dict[str, str] = {}
    how: _How = _How()


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run. ``rows`` are its held-out case rows in the view, at ``threshold``; they are absent exactly where ``reason`` says why.
    ``lesion_free`` are those of the support centers' cases, where the evaluation has them; ``cost`` is what a finished run cost, or why
    that is not known.

    ``centers`` are the identities of the data it depends on by name: centers, folds, or the phantom; ``judged`` names what its evaluation
    is of and what its numbers mean. Runs that give one name of either different identities are not comparable. ``tier`` is that of a
    submitted record; a run folder has none.
    """

    folder: str
    spec: RunSpec
    updated: str
    centers: Mapping[str, str]
    judged: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    rows: "pa.Table | None" = None
    lesion_free: "pa.Table | None" = None
    threshold: float | None = None
    cost: RunCost | str | None = None
    tier: Tier | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Between processes tables travel in Arrow's own format; pickled column by column they would take ten times as long."""
        return {**vars(self), "rows": _packed(self.rows), "lesion_free": _packed(self.lesion_free)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, rows=_unpacked(state["rows"]), lesion_free=_unpacked(state["lesion_free"]))

    @property
    def data(self) -> Mapping[str, str]:
        """All identities by name."""
        return {**self.centers, **self.judged}

    def without_rows(self, reason: str) -> "Record":
        """The same record, not counted, because of ``reason``."""
        return replace(self, rows=None, lesion_free=None, reason=" ".join(reason.split()))


def _packed(table: "pa.Table | None") -> bytes | None:
    import pyarrow as pa

    if table is None:
        return None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _unpacked(packed: bytes | None) -> "pa.Table | None":
    import pyarrow as pa

    return None if packed is None else pa.ipc.open_stream(packed).read_all()


def read_records(
    root: Path, protocol: Protocol, views: Sequence[View], keep: Callable[[RunSpec], bool], processes: int = 1
) -> tuple[list[list[Record]], dict[str, str]]:
    """In each of ``views``, the runs of methods of ``protocol`` under ``root`` that ``keep`` wants, each run read once; and why each other
    folder there cannot be read.

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

    one_mask = replace(OFFICIAL, checkpoint=IMPORTED)
    places: list[list[int]] = []

    def asked() -> Iterator[tuple[RunFolder, list[View]]]:
        """The runs that are wanted, each with the views that it stands in, whose places are kept."""
        for run in iter_runs(root, note):
            spec = run.spec
            if spec.protocol.name == protocol.name and keep(spec):
                shown = [place for place, view in enumerate(views) if _stands_in(spec, view, protocol)]
                if shown:
                    places.append(shown)
                    yield run, [one_mask if spec.method.imported else views[place] for place in shown]

    read = partial(_record, protocol=protocol)
    processes = min(processes, sum(1 for _ in run_paths(root)) // RUNS_PER_PROCESS)
    if processes < 2:
        found = [read(asking) for asking in asked()]
    else:
        context = multiprocessing.get_context("spawn")
        ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is this process's to tell
        with ProcessPoolExecutor(processes, context, signal.signal, ignore) as pool:
            found = list(pool.map(read, asked(), chunksize=RUNS_AT_ONCE))  # those listed are read, others still listed
    records: list[list[Record]] = [[] for _ in views]
    for shown, ones in zip(places, found, strict=True):
        for place, record in zip(shown, ones, strict=True):
            records[place].append(record)
    return records, problems


def _stands_in(spec: RunSpec, view: View, protocol: Protocol) -> bool:
    shared = view.setting in [protocol.stages[stage].code for stage in protocol.shared_stages]
    return (spec.method.name == SHARED_METHOD) == shared and (
        not spec.method.imported or view.setting == OFFICIAL.setting
    )


def _record(asked: tuple[RunFolder, Sequence[View]], protocol: Protocol) -> list[Record]:
    """The run in each of the views."""
    run, views = asked
    spec = run.spec
    record = Record(folder=run.relative, spec=spec, updated="", centers=dict(spec.data.centers))
    try:
        if (run.path / MANIFEST).is_file():
            manifest = Manifest.read(run.path)
            try:
                manifest.check(run.path)
            except DgbenchError as error:
                raise _NotCounted(f"refused: {_below(run.root, error)}") from error
            record = replace(record, tier=manifest.tier)
        status = run.status
        record = replace(record, updated=status.updated or "")
        if status.state != "done":
            progress = f", {run.trained():.0%} trained" if status.state in ("running", "interrupted") else ""
            raise _NotCounted(_state(status, progress))
        if not (run.evaluation / "status.json").exists():
            raise _NotCounted("evaluation missing")
        evaluation = read_status(run.evaluation)
        if evaluation.state != "done":
            raise _NotCounted(f"evaluation {_state(evaluation)}")
        evaluated = _Evaluated.model_validate(read_json(run.evaluation / "spec.json"))
        trained = {stage: reference.key for stage, reference in spec.stages.items()}
        other = sorted(stage for stage, key in evaluated.train_keys.items() if trained.get(stage) != key)
        if other:
            raise _NotCounted(f"evaluation is of other weights: {', '.join(other)}")
        constants = protocol.metrics.model_dump(mode="json")
        if evaluated.how.metrics is not None and (changes := diff(evaluated.how.metrics, constants)):
            raise _NotCounted(
                f"judged with other constants than protocol {protocol.name} has here ({'; '.join(changes)}) — the same command judges it "
                "anew"
            )
        judged = {f"evaluated {spec.heldout}": evaluated.fingerprint, "meaning of numbers": str(evaluated.numbers)}
        record = replace(record, centers={**record.centers, **evaluated.heldout}, judged=judged)
        cases = read_checked(run.evaluation)
        record = replace(record, cost=_cost(run, cases))
    except _NotCounted as reason:
        return [record.without_rows(str(reason))] * len(views)
    except DgbenchError as error:
        return [record.without_rows(_told(run, error))] * len(views)
    except ValidationError as error:
        return [record.without_rows(f"{UNREADABLE}: evaluation/spec.json: {one_line(error)}")] * len(views)
    return [_in_view(run, record, cases, view, protocol) for view in views]


class _NotCounted(Exception):
    """Why a run is not counted."""


def _in_view(run: RunFolder, record: Record, cases: "pa.Table", view: View, protocol: Protocol) -> Record:
    try:
        return _select(record, cases, view, protocol)
    except DgbenchError as error:
        return record.without_rows(_told(run, error))


def _told(run: RunFolder, error: DgbenchError) -> str:
    told = _below(run.root, error)
    return f"{UNREADABLE}: {told}" if told.startswith(run.relative) else told


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

    A phantom's fingerprint names its recipe and is the same for every split. Patient data are named center by center: the sources by the
    training, the held-out one by the evaluation, since nothing may read it before; any of them can differ between splits.
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
