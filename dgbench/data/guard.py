"""The held-out center is unreadable while training (architecture.md §3, rule 1).

A training process installs a guard with its allow-list of case ids. Every reader of this package asks :func:`check` before it opens a case;
an audit hook of the interpreter refuses whatever opens a file of a guarded-out case through Python, and SimpleITK, which opens files
itself, is asked for the names it is given. What is left is a program that a method starts, or another library that opens files in C.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from dgbench.data.case import Case, Center
from dgbench.errors import HeldOutAccessError


@dataclass(frozen=True)
class ReadGuard:
    """``allowed`` case ids, and the files and folders (absolute paths, links as given and resolved) that nothing may open. Of what lies
    below ``sealed`` folders, only the folders ``kept`` may be opened."""

    allowed: frozenset[str]
    files: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()
    sealed: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()

    @classmethod
    def over(cls, allowed: Iterable[str], centers: Iterable[Center]) -> "ReadGuard":
        """Allow the case ids ``allowed``; of ``centers``, forbid the whole folder where no case is allowed, else single files."""
        ids = frozenset(allowed)
        files: set[str] = set()
        folders: set[str] = set()
        for center in centers:
            forbidden = [case for case in center.cases if case.id not in ids]
            for case in forbidden:
                files.update(_spellings(case.image) | _spellings(case.label))
            if len(forbidden) == len(center.cases):
                folders.update(_spellings(center.folder))
        return cls(ids, frozenset(files), frozenset(folders))

    def forbids(self, path: str) -> bool:
        """Whether ``path`` is a forbidden file or lies below a forbidden folder, also by way of links."""
        return any(
            name in self.files
            or _below(name, self.folders)
            or (_below(name, self.sealed) and not _below(name, self.kept))
            for name in _spellings(path)
        )


_active: ReadGuard | None = None


def install(guard: ReadGuard | None) -> None:
    """Put this process, and every worker it forks from now on, under ``guard``; None lifts it. A spawned worker installs its own."""
    global _active
    _hook_interpreter()
    _active = guard


@contextmanager
def guarding(allowed: Iterable[str], centers: Iterable[Center]) -> Iterator[ReadGuard]:
    """Run the body under ``ReadGuard.over(allowed, centers)``, then restore the guard that was active before."""
    before = _active
    guard = ReadGuard.over(allowed, centers)
    install(guard)
    try:
        yield guard
    finally:
        install(before)


def seal(root: Path, keep: Iterable[Path]) -> None:
    """From now on the active guard forbids whatever lies below ``root`` too, but for the folders ``keep``; nothing without a guard. For
    what an earlier evaluation left of the held-out center, prepared cases and pictures, which is as unreadable as its scans."""
    global _active
    if _active is not None:
        kept = frozenset(name for folder in keep for name in _spellings(folder))
        _active = replace(_active, sealed=_active.sealed | _spellings(root), kept=_active.kept | kept)


def check(case: Case) -> None:
    """Raise HeldOutAccessError if a guard is active and ``case`` is not on its allow-list. To be called before a case is opened."""
    if _active is not None and case.id not in _active.allowed:
        raise HeldOutAccessError(f"case {case.id}: not on the allow-list of this training — it must not be read here")


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise HeldOutAccessError if a guard is active and forbids ``path``."""
    if _active is not None and _active.forbids(os.fspath(path)):
        raise HeldOutAccessError(f"{os.fspath(path)}: belongs to a case outside the allow-list of this training")


def _below(name: str, folders: Iterable[str]) -> bool:
    return any(name == folder or name.startswith(folder + os.sep) for folder in folders)


def _spellings(path: str | os.PathLike[str]) -> set[str]:
    return {os.path.abspath(path), os.path.realpath(path)}


@cache
def _hook_interpreter() -> None:
    sys.addaudithook(_audit)
    for reader, setter in ((sitk.ImageFileReader, "SetFileName"), (sitk.ImageSeriesReader, "SetFileNames")):
        setattr(reader, setter, _asking_first(getattr(reader, setter)))


def _asking_first(setter: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """The method of a SimpleITK reader that takes a file's name, or several; ``ReadImage`` goes through it too."""

    def ask(reader: Any, names: Any) -> None:
        for name in [names] if isinstance(names, str | os.PathLike) else names:
            check_path(name)
        setter(reader, names)

    return ask


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hooks stay for the life of the interpreter: this one asks the active guard, and does nothing without one."""
    if event == "open" and _active is not None and isinstance(arguments[0], str | bytes | os.PathLike):
        check_path(os.fsdecode(arguments[0]))
