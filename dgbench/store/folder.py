"""Run folders: ``<protocol>/<heldout>/<method>/seed<k>-<key8>/`` under a runs root; the truth from which everything else is made.

``spec.json`` says what the run is and is written first; ``status.json`` says how it stands and is written last. Its stages and its
evaluation have
folders with files of the same names inside it; shared stages (``_pancreas``) are runs of their own that other runs point to.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, SerializerFunctionWrapHandler, ValidationError, model_serializer

from dgbench.atomic import make_folder, read_json, replacing, write_json
from dgbench.errors import DgbenchError, suggest
from dgbench.frozen import Frozen, check_name
from dgbench.store import keys
from dgbench.store.cases import read_cases
from dgbench.store.selection import Selection

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
"""Version of the files of a run folder."""
SHARED_METHOD = "_pancreas"
"""The method folder of the stages that all methods of a split share."""
IMPORTED = "imported"
"""The checkpoint of the rows of an imported prediction set, which has none."""
_RUN_NAME = re.compile(r"seed(\d+)-([0-9a-f]{8})")
_log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "interrupted"]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _inside_root(folder: str) -> str:
    path = PurePosixPath(folder)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{folder!r} is not a folder below the runs root")
    return folder


class ProtocolRef(Frozen):
    """The protocol of a run; ``modified`` when its preset was overridden, and then never ``ranked``; ``converged`` when doubling the
    draws of erm was shown to change its held-out DSC by less than 2 points (protocol.md §1). ``content`` is a hash over all that the
    unmodified preset and the harness put into a number: only runs that agree in it are comparable."""

    name: str
    version: int
    content: Key
    kind: Literal["phantom", "patient"]
    preset: str
    ranked: bool
    modified: bool
    converged: bool = False

    @property
    def stamps(self) -> tuple[str, ...]:
        """What must be said beside every number of this run; nothing for a converged run of a ranked preset."""
        if self.modified:
            return (f"modified {self.preset}, not ranked",)
        if not self.ranked:
            return (f"{self.preset}, not ranked",)
        return () if self.converged else ("unconverged",)


class MethodRef(Frozen):
    """The method of a run with its complete configuration. ``draws_factor`` multiplied the protocol's budget: a control row, never
    ranked, where it is not 1. ``imported``: a system that was not trained under the protocol, of which only masks are known; such a run
    has no stages."""

    name: str
    version: int
    title: str
    config: dict[str, JsonValue]
    draws_factor: Annotated[int, Field(ge=1)] = 1
    imported: bool = False


class StageRef(Frozen):
    """One stage job: its train key and its folder, relative to the runs root, with forward slashes."""

    key: Key
    folder: Annotated[str, AfterValidator(_inside_root)]


class DataRef(Frozen):
    """Identity of the source data: of each source center, so that a change of one shows wherever it was a source; ``phantom`` names the
    recipe of a phantom, which is the same on every machine while its bytes are not (protocol.md §4)."""

    centers: dict[str, str]


class Environment(Frozen):
    """What else the numbers depend on: device class, precision, threads, torch Major.Minor, number of devices."""

    device: str
    precision: str
    threads: int
    torch: str
    devices: int = 1

    @property
    def stamps(self) -> tuple[str, ...]:
        """What must be said beside every number of a run that was made so; nothing on one device."""
        return (f"{self.devices} devices: steps of {self.devices}× the cases",) if self.devices > 1 else ()


class TunedRef(Frozen):
    """The study that chose the configuration of a run on source centers: how many trials it had, its key, what of the method was set by
    hand and not searched (``key=value``), and by what it selected."""

    trials: Annotated[int, Field(ge=1)]
    study: Key
    settings: tuple[str, ...] = ()
    selection: Selection = Selection.SOURCE_VAL

    @property
    def words(self) -> str:
        """The number of trials, and the selection where it is not the usual one."""
        usual = self.selection is Selection.SOURCE_VAL
        return str(self.trials) if usual else f"{self.trials}, {self.selection}"

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The usual selection is left out: it is part of keys, and came later than they."""
        values: dict[str, Any] = handler(self)
        if self.selection is Selection.SOURCE_VAL:
            values.pop("selection", None)
        return values


class RunSpec(Frozen):
    """``spec.json`` of a run. ``tuned`` enters no key: the values that a study chose do."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    dgbench: Annotated[str, Field(pattern=r"^\d+\.\d+(\.[0-9A-Za-z.+]+)?$")]
    key: Key
    protocol: ProtocolRef
    heldout: str
    sources: tuple[str, ...]
    support: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0)]
    method: MethodRef
    stages: dict[str, StageRef]
    data: DataRef
    environment: Environment
    command: str
    tuned: TunedRef | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The spec in ``folder``; a DgbenchError says which field is wrong, or that another schema wrote it."""
        path = folder / "spec.json"
        values = read_json(path)
        if values.get("schema") != SCHEMA:
            raise DgbenchError(
                f"{path}: schema {values.get('schema')!r} of dgbench {values.get('dgbench', 'unknown')}, this version reads schema {SCHEMA}"
                " — use the version that wrote it, or run again"
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DgbenchError(
                f"{path}: {place}: {first['msg']} — damaged or foreign, remove the folder and run again"
            ) from error

    def dump(self) -> dict[str, Any]:
        """The JSON object of ``spec.json``."""
        values = self.model_dump(mode="json", by_alias=True)
        return values if self.tuned is not None else {name: value for name, value in values.items() if name != "tuned"}

    def folder(self, root: Path) -> Path:
        """Where this run lives under ``root``."""
        return run_folder(root, self.protocol.name, self.heldout, self.method.name, self.seed, self.key)


class Status(Frozen):
    """``status.json`` of a run, a stage or an evaluation; ``updated`` is ISO time in UTC."""

    state: State
    reason: str | None = None
    updated: str | None = None


def read_status(folder: Path) -> Status:
    """How ``folder`` stands; ``queued`` if nothing has been said yet.

    Raises:
        DgbenchError: ``status.json`` is damaged or foreign.
    """
    path = folder / "status.json"
    if not path.exists():
        return Status(state="queued")
    try:
        return Status.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise DgbenchError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']} — damaged or foreign, remove it"
        ) from error


def write_status(folder: Path, state: State, reason: str | None = None) -> Status:
    """Say how ``folder`` stands, atomically; ``reason`` becomes one line."""
    line = None if reason is None else " ".join(reason.split())
    status = Status(state=state, reason=line, updated=datetime.now(UTC).isoformat(timespec="seconds"))
    write_json(folder / "status.json", status.model_dump())
    return status


def run_folder(root: Path, protocol: str, heldout: str, method: str, seed: int, key: str) -> Path:
    """``root/<protocol>/<heldout>/<method>/seed<seed>-<first 8 digits of key>``.

    Raises:
        DgbenchError: a name that cannot be a folder name, or a ``key`` that is none.
    """
    check_name(protocol, "protocol")
    check_name(heldout, "center")
    if method != SHARED_METHOD:
        check_name(method, "method")
    name = f"seed{seed}-{key[:8]}"
    if _RUN_NAME.fullmatch(name) is None:
        raise DgbenchError(f"seed {seed!r} with key {key!r} cannot name a run folder")
    return root / protocol / heldout / method / name


@dataclass(frozen=True)
class RunFolder:
    """One run on disk. ``spec`` was read once, everything else is read when asked for."""

    root: Path
    path: Path
    spec: RunSpec

    @property
    def relative(self) -> str:
        """The folder relative to the runs root, with forward slashes; the name of the run everywhere outside."""
        return self.path.relative_to(self.root).as_posix()

    @property
    def status(self) -> Status:
        """How the run stands."""
        return read_status(self.path)

    @property
    def evaluation(self) -> Path:
        """The folder of the evaluation."""
        return self.path / "evaluation"

    @property
    def own_stages(self) -> tuple[str, ...]:
        """Stages that this run trains itself, in the order of inference."""
        return tuple(name for name in self.spec.stages if self.path in self.stage_folder(name).parents)

    @property
    def is_record(self) -> bool:
        """The run without weights and figures: what is archived and shared."""
        return not any(next(self.path.glob(pattern), None) for pattern in ("*/*.safetensors", "figures/*"))

    def trained(self) -> float:
        """Share of the training of the run's own stages that is done, in [0, 1]; every stage counts the same."""
        shares = []
        for stage in self.own_stages:
            folder = self.stage_folder(stage)
            log, spec = folder / "steps.jsonl", folder / "spec.json"
            if read_status(folder).state == "done":
                shares.append(1.0)
            else:
                steps = read_json(spec).get("steps") if log.is_file() and spec.is_file() else None
                known = isinstance(steps, int) and steps > 0
                shares.append(min(1.0, log.read_bytes().count(b"\n") / steps) if steps and known else 0.0)
        return fmean(shares) if shares else 0.0

    def stage_folder(self, name: str) -> Path:
        """The folder of a stage, which lies in another run if the stage is shared."""
        if name not in self.spec.stages:
            raise DgbenchError(f"{self.path}: the run has no stage {name!r}{suggest(name, self.spec.stages)}")
        return self.root / self.spec.stages[name].folder

    def cases(self) -> "pd.DataFrame":
        """The raw rows of the evaluation; see :func:`read_cases`."""
        return read_cases(self.evaluation)


def open_run(root: Path, spec: RunSpec) -> RunFolder:
    """The folder of ``spec``, created with its ``spec.json`` if there is none; the same call again finds it.

    Raises:
        DgbenchError: the folder cannot be written, or holds a spec that differs in anything that matters; the differences are listed.
    """
    path = spec.folder(root)
    if not (path / "spec.json").exists():
        write_json(path / "spec.json", spec.dump())
    stored = RunSpec.read(path)
    if lines := keys.diff(_essence(stored), _essence(spec)):
        raise DgbenchError(
            f"{path}: holds another run ({'; '.join(lines)}) — use another runs folder, or remove this one"
        )
    return RunFolder(root, path, stored)


def _essence(spec: RunSpec) -> dict[str, Any]:
    """The spec without what may differ between two calls for the same run."""
    return spec.model_dump(mode="json", by_alias=True, exclude={"command": True, "dgbench": True, "method": {"title"}})


def read_run(root: Path, path: Path) -> RunFolder:
    """The run in ``path``, a folder four levels below ``root``.

    Raises:
        DgbenchError: no or damaged ``spec.json`` (half-written), or one that belongs to another place (moved by hand, or tampered with).
    """
    spec = RunSpec.read(path)
    expected = spec.folder(root)
    if os.path.abspath(expected) != os.path.abspath(path):
        raise DgbenchError(f"{path}: its spec.json belongs to {expected} — moved or changed by hand")
    return RunFolder(root, expected, spec)


def run_paths(root: Path) -> Iterator[Path]:
    """What is named like a run under ``root``, in any order."""
    return (path for path in root.glob("*/*/*/seed*") if _RUN_NAME.fullmatch(path.name))


def iter_runs(root: Path, on_problem: Callable[[Path, DgbenchError], None] | None = None) -> Iterator[RunFolder]:
    """All runs under ``root`` in the order of their paths; none if there is no such folder.

    Folders that are not named like runs are not ours and passed over. A folder that is, but cannot be read (half-written, damaged,
    moved), is reported to ``on_problem``, by default to the log as a warning.
    """
    report = on_problem or _warn
    for path in sorted(run_paths(root)):
        if not path.is_dir():
            continue
        try:
            run = read_run(root, path)
        except DgbenchError as error:
            report(path, error)
        else:
            yield run


def probe_writable(root: Path) -> None:
    """Create ``root`` and a small file in it, so that a run that could not store anything stops before it starts.

    Raises:
        DgbenchError: one line that says why ``root`` cannot be written.
    """
    make_folder(root)
    probe = root / ".writable"
    with replacing(probe) as temporary:
        temporary.write_bytes(b"probe")
    probe.unlink(missing_ok=True)


def _warn(_: Path, error: DgbenchError) -> None:
    _log.warning("%s", error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
