"""What data a number was computed from: content hashes of files, cached so that an unchanged file is read once."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG

from dgbench.atomic import write_bytes
from dgbench.data import guard
from dgbench.data.case import Case, Center
from dgbench.errors import DgbenchError


def content_hash(path: Path, cache: Path) -> str:
    """SHA-256 (hex) of the bytes of ``path``, kept in ``cache/hashes`` under its path, size and modification time.

    Safe for many processes at once: one small file per path, replaced atomically. Raises DgbenchError when ``path`` cannot be read or
    ``cache`` not be written, HeldOutAccessError when a guard forbids ``path`` (also where the hash is already known).
    """
    guard.check_path(path)
    place = os.path.abspath(path)
    record = cache / "hashes" / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"
    known = _load(record)
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):  # a device or a pipe would never end
            raise DgbenchError(f"{path} is not a regular file")
        key = {"path": place, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if known is not None and {name: known.get(name) for name in key} == key:
            return str(known["sha256"])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DgbenchError(f"{path} cannot be read: {error.strerror}") from None
    write_bytes(record, json.dumps({**key, "sha256": digest}).encode())
    return digest


def set_fingerprint(cases: Iterable[Case], cache: Path) -> str:
    """SHA-256 (hex) over ids, images and labels of ``cases``; their order does not matter, where they lie neither."""
    lines = sorted(f"{case.id} {content_hash(case.image, cache)} {content_hash(case.label, cache)}" for case in cases)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def center_fingerprint(center: Center, cache: Path) -> str:
    """The fingerprint of all cases of ``center``."""
    return set_fingerprint(center.cases, cache)


def _load(record: Path) -> dict[str, object] | None:
    """A stored hash; None when there is none. A record that cannot be read or understood counts as none: the file is then hashed again."""
    try:
        content = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("sha256"), str) else None
