"""The folder of a page: replaced as a whole or left as it was, and never at the cost of a file that is not the page's own."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp

from dgbench.atomic import TEMPORARY_PREFIX, make_folder, read_json, unwritable
from dgbench.errors import DgbenchError
from dgbench.frozen import SAFE_NAME

MARKER = "dgbench-page.json"
"""Lists the files of a page; a folder with it may be replaced."""
_MADE_BY = "dgbench leaderboard"


def file_name(text: str) -> str:
    """``text`` itself if it can be a file name on every system, else its harmless characters and a hash that keeps it apart."""
    if SAFE_NAME.fullmatch(text):
        return text
    harmless = "".join(char if char.isascii() and (char.isalnum() or char in "_-.") else "-" for char in text)
    return f"{harmless.strip('.-')[:40] or 'x'}-{sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}"


def check_folder(folder: Path) -> None:
    """Raises DgbenchError unless ``folder`` is absent, empty, or a page that holds nothing else."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise DgbenchError(f"--out {folder}: is a file — name a folder of its own for the page")
    own = _own_files(folder)
    foreign = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path.relative_to(folder).as_posix() not in own
    )
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise DgbenchError(
            f"--out {folder}: holds files that are not of a leaderboard page ({foreign[0]}{more}) — name a new or empty folder"
        )


def _own_files(folder: Path) -> set[str]:
    try:
        listed = read_json(folder / MARKER)
    except DgbenchError:
        return set()
    files = listed.get("files")
    if listed.get("made_by") != _MADE_BY or not isinstance(files, list):
        return set()
    return {MARKER, *(name for name in files if isinstance(name, str))}


class Site:
    """The new page while it is written; ``old`` is the page that it replaces, for files that need not be drawn again."""

    def __init__(self, folder: Path, old: Path) -> None:
        self.folder, self._old = folder, old
        self.files: list[str] = []

    def write(self, name: str, data: str | bytes) -> None:
        """Write one file; ``name`` is relative to the page, with forward slashes."""
        path = self.place(name)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    def place(self, name: str) -> Path:
        """Where the file ``name`` goes; its folder exists and it is listed as one of the page."""
        assert ".." not in PurePosixPath(name).parts
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files.append(name)
        return path

    def reuse(self, name: str) -> bool:
        """Take the file ``name`` from the page before; false where it has none."""
        before = self._old / name
        if not before.is_file() or before.is_symlink():
            return False
        shutil.copyfile(before, self.place(name))
        return True


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Site]:
    """A :class:`Site` beside ``folder`` that takes its place when the block ends without an error.

    Raises:
        DgbenchError: ``folder`` holds foreign files (:func:`check_folder`), or it cannot be written; it is then as it was.
    """
    folder = Path(os.path.realpath(folder))
    check_folder(folder)
    make_folder(folder.parent)
    new: Path | None = None
    try:
        new = Path(mkdtemp(prefix=f"{TEMPORARY_PREFIX}{folder.name}-", dir=folder.parent))
        new.chmod(0o777 & ~_umask())
        site = Site(new, folder)
        yield site
        marker = {"made_by": _MADE_BY, "files": sorted(site.files)}
        (new / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
        check_folder(folder)  # time has passed
        _swap(new, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)


def _swap(new: Path, folder: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    old = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}-{secrets.token_hex(4)}")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        with suppress(OSError):
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
