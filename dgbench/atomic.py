"""Files that are either complete or absent: written beside their place, flushed to the disk, then renamed over it.

Row logs (``*.jsonl``) are the exception: they are appended to, one whole row per write, and a row that a crash cut short is recognised
by its missing newline and dropped.
"""

import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from dgbench.errors import DgbenchError

TEMPORARY_PREFIX = ".tmp-"
"""First letters of the name of a file that is still being written; what a killed process leaves behind."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system answers when a disk, the user's share of it, or a file may not grow."""


def make_folder(folder: Path) -> Path:
    """``folder``, created with its parents where missing; a DgbenchError if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def unwritable(path: Path, error: OSError) -> DgbenchError:
    """The one-line error for a path that cannot be written."""
    return DgbenchError(
        f"{path}: cannot be written ({error.strerror or error}) — check permissions and free space, or choose another folder"
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``, with its suffix, that takes the place of ``path`` when the block ends without an error.

    For writers that want a file name (Parquet, figures)::

        with replacing(folder / "cases.parquet") as temporary:
            frame.to_parquet(temporary)

    Raises:
        DgbenchError: the folder cannot be created or written, or the disk is full; ``path`` is then as it was.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left below ``folder``; to be called by whoever is alone in it."""
    for path in folder.rglob(f"{TEMPORARY_PREFIX}????????-*"):
        with suppress(OSError):  # it harms nobody where it cannot be removed
            path.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``, atomically; see :func:`replacing` for the errors."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8, newlines as they are), atomically; see :func:`replacing` for the errors."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON, atomically; keys keep their order, floats are exact.

    Raises:
        DgbenchError: as :func:`replacing`, or ``value`` holds what JSON does not have (NaN and infinity among them: write None).
    """
    write_text(path, _dump(path, value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        DgbenchError: no such file, half-written or damaged JSON, or a value other than an object.
    """
    try:
        value = _load(_read(path))
    except ValueError as error:
        raise DgbenchError(
            f"{path}: not readable as JSON ({error}) — half-written or foreign, remove it and run again"
        ) from error
    if not isinstance(value, dict):
        raise DgbenchError(f"{path}: expected a JSON object, found {type(value).__name__} — not a file of dgbench")
    return value


def append_jsonl(path: Path, *rows: Mapping[str, Any]) -> None:
    """Append ``rows`` to a row log, one JSON object per line, in a single write.

    The rows survive the death of the process at once, a power cut only after :func:`sync_file`.

    Raises:
        DgbenchError: the file cannot be written, or a row holds what JSON does not have (NaN and infinity among them: write None).
    """
    data = "".join(_dump(path, dict(row)) + "\n" for row in rows).encode()
    make_folder(path.parent)
    try:
        with path.open("ab", buffering=0) as file:
            written = file.write(data)
    except OSError as error:
        raise unwritable(path, error) from error
    if written != len(data):
        raise unwritable(path, OSError(f"{written} of {len(data)} bytes written"))


def read_jsonl(path: Path, until_step: int | None = None) -> list[dict[str, Any]]:
    """The rows of a log, in order; with ``until_step`` only those whose ``step`` is at most that. A half-written last row is left out.

    Raises:
        DgbenchError: no such file, a damaged row before the last, or a row without a ``step`` where one is asked for.
    """
    rows = [row for _, row in _rows(path)]
    return rows if until_step is None else [row for row in rows if _number(path, row, "step") <= until_step]


def truncate_jsonl(path: Path, last: int, key: str = "step") -> int:
    """Drop the rows whose ``key`` is above ``last`` and a half-written last row; the rest keeps its bytes. A missing log has no rows.

    Returns:
        Number of rows kept.

    Raises:
        DgbenchError: as :func:`read_jsonl`, or the file cannot be written.
    """
    if not path.exists():
        return 0
    kept = [line for line, row in _rows(path) if _number(path, row, key) <= last]
    data = b"".join(kept)
    if len(data) != path.stat().st_size:
        write_bytes(path, data)
    return len(kept)


def sync_file(path: Path) -> None:
    """Flush a file to the disk, so that it outlives a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DgbenchError(f"{path}: no such file") from error
    except OSError as error:
        raise DgbenchError(f"{path}: cannot be read ({error.strerror or error})") from error


def _dump(path: Path, value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DgbenchError(f"{path}: cannot be written as JSON ({error})") from error


def _load(data: bytes) -> Any:
    """Strict JSON in UTF-8; ValueError otherwise (UnicodeDecodeError is one)."""
    try:
        return _STRICT.decode(data.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant)


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Complete lines of a log with their parsed rows."""
    *lines, _ = _read(path).split(b"\n")  # what follows the last newline is a write that was cut short
    for number, (line, row) in enumerate(zip(lines, _parsed(path, lines), strict=True), start=1):
        if not isinstance(row, dict):
            raise DgbenchError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        yield line + b"\n", row


def _parsed(path: Path, lines: list[bytes]) -> Iterable[Any]:
    """The values of all lines: parsed at once, which takes a third of the time, or one by one where that does not give one for each."""
    try:
        rows = _load(b"[" + b",".join(lines) + b"]")
    except ValueError:
        rows = []
    return rows if len(rows) == len(lines) else (_one(path, number, line) for number, line in enumerate(lines, start=1))


def _one(path: Path, number: int, line: bytes) -> Any:
    try:
        return _load(line)
    except ValueError as error:
        raise DgbenchError(f"{path}, line {number}: damaged row ({error}) — remove the folder and run again") from error


def _number(path: Path, row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    if not isinstance(value, int | float):
        raise DgbenchError(f"{path}: a row has no number {key!r} — not a log of steps")
    return value
