"""``record.json``: what a record consists of, each file with its sha256, one hash over these, and its tier."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from dgbench.atomic import read_json, write_json
from dgbench.errors import DgbenchError
from dgbench.frozen import Frozen, one_line
from dgbench.store.folder import Key
from dgbench.store.keys import key_of

MANIFEST = "record.json"
REPRODUCTIONS = "reproductions"
"""The folder of second records of the same key inside a record."""

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
        """Raise DgbenchError for a file of ``folder`` that is missing, not listed, a link or not as it was, or a list that is not."""
        if links := sorted(path for path in folder.rglob("*") if path.is_symlink()):
            raise DgbenchError(f"{links[0]}: is a link — a record holds its files themselves, submit the run again")
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


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DgbenchError(f"{path}: cannot be read ({error.strerror or error})") from error
