"""Records of runs: finished run folders without weights, predictions and pictures, small enough to be committed and shared.

``record.json`` names every file of a record with its sha256, a hash over these, and the record's tier. A second record of the same key,
made in another environment, is kept inside the first, under ``reproductions/``, and can raise its tier.
"""

import hashlib
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from dgbench.atomic import TEMPORARY_PREFIX, make_folder, read_json, unwritable, write_json
from dgbench.errors import DgbenchError
from dgbench.protocol import Frozen, one_line
from dgbench.store.folder import Key, RunFolder, read_status
from dgbench.store.keys import key_of

MANIFEST = "record.json"
REPRODUCTIONS = "reproductions"
KEPT = ("spec.json", "status.json", "env.json", "cost.json")
KEPT_OF_EVALUATION = ("spec.json", "status.json", "cases.parquet", "times.parquet")
KEPT_OF_STAGE = ("spec.json", "status.json", "result.json", "validation.jsonl", "times.jsonl")

Tier = Literal["experimental", "reproduced", "verified"]


class Manifest(Frozen):
    """``record.json``: the sha256 of every other file of the record by its path, and of the canonical JSON of ``files``."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    tier: Tier
    sha256: Key
    files: dict[str, Key]

    @classmethod
    def of(cls, folder: Path, tier: Tier) -> Self:
        """The manifest of the record in ``folder`` as it is."""
        files = {name: _sha256(folder / name) for name in files_of(folder)}
        return cls.model_validate({"schema": 1, "tier": tier, "sha256": key_of(files), "files": files})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest in ``folder``. Raises DgbenchError where it is missing or damaged."""
        path = folder / MANIFEST
        if not path.is_file():
            raise DgbenchError(f"{path}: no such file — write the record with `dgbench submit`")
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise DgbenchError(f"{path}: {one_line(error)} — submit the run again") from None

    def write(self, folder: Path) -> None:
        """Write it into ``folder``."""
        write_json(folder / MANIFEST, self.model_dump(mode="json", by_alias=True))

    def check(self, folder: Path) -> None:
        """Raise DgbenchError for a file of ``folder`` that is missing, not listed or not as it was, or a list that is not as it was."""
        present = set(files_of(folder))
        if missing := sorted(self.files.keys() - present):
            raise DgbenchError(f"{folder / missing[0]}: missing, though {MANIFEST} lists it — submit the run again")
        if extra := sorted(present - self.files.keys()):
            raise DgbenchError(f"{folder / extra[0]}: not listed in {MANIFEST} — remove it, or submit the run again")
        for name, digest in self.files.items():
            if (found := _sha256(folder / name)) != digest:
                raise DgbenchError(
                    f"{folder / name}: sha256 {found[:8]}, {MANIFEST} says {digest[:8]} — the file was changed after it was submitted"
                )
        if (found := key_of(self.files)) != self.sha256:
            raise DgbenchError(f"{folder / MANIFEST}: its files give sha256 {found[:8]}, it says {self.sha256[:8]}")


def files_of(folder: Path) -> list[str]:
    """The files of a record but its manifest and its reproductions, sorted, with forward slashes."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if path.parts[0] not in (MANIFEST, REPRODUCTIONS))


def environment_of(folder: Path) -> dict[str, Any]:
    """Where a record was made, as its ``env.json`` tells: system, processor, memory, versions of Python and packages; empty without one."""
    path = folder / "env.json"
    told = read_json(path) if path.is_file() else {}
    return {name: value for name, value in told.items() if name not in ("dgbench", "executable")}


def write_record(run: RunFolder, root: Path) -> Path:
    """Write the record of a finished, evaluated run below ``root`` and return its folder.

    It takes the place of an older record of the same key that was made in the same environment; beside one of another environment it
    becomes a reproduction of that. The tier is what the reproductions then support (:func:`dgbench.store.tiers.supported_tier`). A record
    can be compiled and read like its run, but not trained on or evaluated. Its command names no folder of this machine.

    Raises:
        DgbenchError: the run is not done or its preset was modified, or ``root`` cannot be written.
    """
    from dgbench.store.tiers import supported_tier

    for folder in (run.path, run.evaluation):
        status = read_status(folder)
        if status.state != "done":
            raise DgbenchError(f"{folder} is {status.state} — only finished runs become records")
    if run.spec.protocol.modified:
        raise DgbenchError(f"{run.path}: its preset was modified — only runs of a preset as it is become records")
    record = target = root / run.relative
    environment = environment_of(run.path)
    if (record / "spec.json").is_file() and environment_of(record) != environment:
        target = record / REPRODUCTIONS / key_of(environment)[:8]
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=root) as temporary:
            new = Path(temporary) / target.name
            for name in _files(run):
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.path / name, new / name)
            write_json(new / "spec.json", {**run.spec.dump(), "command": _portable(run.spec.command)})
            if (target / REPRODUCTIONS).is_dir():
                shutil.copytree(target / REPRODUCTIONS, new / REPRODUCTIONS)
            Manifest.of(new, supported_tier(new)).write(new)
            if target.exists():
                target.rename(Path(temporary) / "older")
            new.rename(target)
    except OSError as error:
        raise unwritable(target, error) from error
    if target != record:
        Manifest.of(record, supported_tier(record)).write(record)
    return target


def with_shared(runs: Iterable[RunFolder], everything: Iterable[RunFolder]) -> list[RunFolder]:
    """``runs`` and the runs of the stages that they share, each once; ``everything`` is all that there is."""
    chosen = list(runs)
    wanted = {stage.folder.rpartition("/")[0] for run in chosen for stage in run.spec.stages.values()}
    known = {run.relative for run in chosen}
    return [*chosen, *(run for run in everything if run.relative in wanted and run.relative not in known)]


def _files(run: RunFolder) -> Iterator[str]:
    wanted = [*KEPT, *(f"evaluation/{name}" for name in KEPT_OF_EVALUATION)]
    wanted += [f"{stage}/{name}" for stage in run.own_stages for name in KEPT_OF_STAGE]
    yield from (name for name in wanted if (run.path / name).is_file())


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DgbenchError(f"{path}: cannot be read ({error.strerror or error})") from error


def _portable(command: str) -> str:
    """The command without ``--runs`` and ``--data``, which name folders of one machine."""
    words = iter(shlex.split(command))
    kept: list[str] = []
    for word in words:
        option, equals, _ = word.partition("=")
        if option in ("--runs", "--data"):
            if not equals:
                next(words)
            continue
        kept.append(word)
    return shlex.join(kept)
