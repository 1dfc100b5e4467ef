"""One owner per folder: a lock file that names a process and that its owner keeps fresh.

On one machine the lock belongs to a *process*, not to a time span: it is stale once that process is dead, however the clock jumps and
however
long the process was asleep. The owner is known by process id, boot and start time, so that a reused process id is not mistaken for it.
From another machine (folders on a shared disk) only the heartbeat can be seen: the modification time of the file, compared with that of
a file
touched now in the same folder, so that one clock, the file server's, decides; before such a lock is taken over its heartbeat is also
watched for a while, so that a jump of that clock steals nothing.
"""

import hashlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from dgbench.atomic import TEMPORARY_PREFIX, make_folder, unwritable
from dgbench.errors import DgbenchError

LOCK_NAME = ".lock"
STALE_AFTER = 120.0
"""Seconds without a heartbeat after which the lock of another machine counts as abandoned."""
POLL = 0.1
"""Seconds between two looks at a lock that is waited for."""
HIDDEN = -1.0
"""Start of a process that exists but may not be looked at."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. ``host`` is a hash (no names are stored); ``start`` is the start of the process, in a unit of the platform."""

    pid: int
    host: str
    boot: str
    start: float
    token: str

    @classmethod
    def this_process(cls) -> Self:
        """This process, with a fresh token, so that two locks of one process are told apart."""
        start = process_start(os.getpid())
        assert start is not None, "this process runs"
        return cls(os.getpid(), host_id(), boot_id(), start, secrets.token_hex(8))

    @property
    def is_local(self) -> bool:
        """The owner runs, or ran, on this machine (and in this container)."""
        return self.host == host_id()

    @property
    def is_alive(self) -> bool:
        """The owner, known to be local, still runs."""
        return self.boot == boot_id() and process_start(self.pid) in (self.start, HIDDEN)

    def __str__(self) -> str:
        return f"process {self.pid}" if self.is_local else f"process {self.pid} on another machine"


class LockHeld(DgbenchError):
    """Another process has the lock and did not give it back in time."""


class FolderLock:
    """Exclusive ownership of ``folder`` as a context manager; re-entering it, from any thread, waits or fails like another process.

    Args:
        folder: created if missing; the lock is its file ``name``.
        wait: seconds to wait for another owner; 0 fails at once, ``math.inf`` waits for ever.
        on_wait: called once with a sentence about the owner when waiting begins.
        stale_after: seconds without a heartbeat after which the lock of another machine is abandoned.

    Raises:
        LockHeld: on entering, the folder is held by another process (named).
        DgbenchError: it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = LOCK_NAME,
        wait: float = 0.0,
        on_wait: Callable[[str], None] | None = None,
        stale_after: float = STALE_AFTER,
    ) -> None:
        self.folder = folder
        self.path = folder / name
        self._wait = wait
        self._on_wait = on_wait
        self._stale_after = stale_after
        self._owner: Owner | None = None
        self._stop = threading.Event()
        self._heartbeat: threading.Thread | None = None

    def __enter__(self) -> Self:
        make_folder(self.folder)
        owner = Owner.this_process()
        deadline = time.monotonic() + self._wait
        waiting = False
        while not _try_acquire(self.path, owner, self._stale_after):
            holder = read_owner(self.path)
            sentence = f"{self.folder}: another process ({holder or 'unknown'}) is working on it"
            if time.monotonic() >= deadline:
                raise LockHeld(f"{sentence} — wait until it has finished, or stop it")
            if not waiting and self._on_wait is not None:
                self._on_wait(sentence)
            waiting = True
            time.sleep(POLL)
        self._owner = owner
        self._stop.clear()
        self._heartbeat = threading.Thread(target=self._beat, name="folder-lock", daemon=True)
        self._heartbeat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        owner, self._owner = self._owner, None
        if owner is None or owner.pid != os.getpid():
            return  # a forked child leaves the lock to its parent
        self._stop.set()
        if self._heartbeat is not None:
            self._heartbeat.join()
        if read_owner(self.path) == owner:
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise a DgbenchError if the lock is no longer ours, after a sleep so long that another machine took it over; to be called
        before a write that must not be doubled."""
        if self._owner is None or read_owner(self.path) != self._owner:
            raise DgbenchError(
                f"{self.folder}: the lock was lost to another process — nothing more is written, run again"
            )

    def _beat(self) -> None:
        while not self._stop.wait(self._stale_after / 12):
            if read_owner(self.path) not in (self._owner, None):
                return  # lost: another owner's heartbeat must not be kept alive
            with suppress(OSError):  # a file server that is away for a moment; the next beat tries again
                os.utime(self.path)


def is_held(folder: Path) -> bool:
    """Whether somebody works in ``folder``, as far as one look can tell: its owner runs on this machine, or gave a sign of life."""
    path = folder / LOCK_NAME
    owner, modified = read_owner(path), _modified(path)
    if owner is None or modified is None:
        return False
    return owner.is_alive if owner.is_local else abs(time.time() - modified) < STALE_AFTER


def read_owner(path: Path) -> Owner | None:
    """Who holds the lock file ``path``; None if there is no such file, or if its writer has not finished, or never will."""
    try:
        return Owner(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def process_start(pid: int) -> float | None:
    """When a process started, comparable between processes of one boot; None if it does not run (a zombie does not), :data:`HIDDEN` if
    the system shows users their own processes only and this is another's.

    On Linux in clock ticks since the boot, which no change of the clock touches.
    """
    if platform.system() == "Linux":
        try:
            # pid (name) state ppid … starttime is field 22; the name may hold spaces and brackets
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return HIDDEN if _belongs_to_another_user(pid) else None
        return None if fields[0] in "ZX" else float(fields[19])
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def _belongs_to_another_user(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


@cache
def host_id() -> str:
    """A hash that tells this machine, or this container, from others; process ids mean the same wherever it is equal."""
    parts = [platform.node(), _first_line("/etc/machine-id")]
    with suppress(OSError):  # a container has process ids of its own
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


@cache
def boot_id() -> str:
    """Differs between two boots of one machine; empty where the system does not tell."""
    return _first_line("/proc/sys/kernel/random/boot_id")


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _try_acquire(path: Path, owner: Owner, stale_after: float) -> bool:
    """Create the lock file, or take over a stale one; False if it is held.

    A stale lock is taken over by whoever holds the lock named after its content: two takers that judged the same lock cannot both win,
    and a taker that comes late sees under that second lock that the content has changed. The second lock may itself be left behind by a
    dead taker, and is then taken over in the same way.
    """
    if _create(path, owner):
        return True
    seen = _content(path)
    if seen is None or not _is_stale(path, seen, stale_after):
        return False
    right = path.with_name(f"{path.name}-{hashlib.sha256(seen).hexdigest()[:12]}")
    if not _try_acquire(right, owner, stale_after):
        return False
    try:
        if _content(path) != seen:
            return False
        fresh = path.with_name(f"{TEMPORARY_PREFIX}{owner.token}")
        if not _create(fresh, owner):
            return False
        os.replace(fresh, path)
        return True
    finally:
        right.unlink(missing_ok=True)


def _create(path: Path, owner: Owner) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        raise unwritable(path, error) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(asdict(owner)).encode())
    return True


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _is_stale(path: Path, seen: bytes, stale_after: float) -> bool:
    """The owner is dead (same machine), or it gives no sign of life (another machine, or a file that was never completed)."""
    owner = read_owner(path)
    if owner is not None and owner.is_local:
        return not owner.is_alive
    before = _modified(path)
    if before is None or abs(_file_server_time(path.parent) - before) < stale_after:
        return False
    time.sleep(stale_after / 4)  # three heartbeats: the clock may have jumped since the last
    return _modified(path) == before and _content(path) == seen


def _modified(path: Path) -> float | None:
    try:
        with path.open("rb") as file:  # opening makes a network file system ask its server
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _file_server_time(folder: Path) -> float:
    """Now, by the clock that stamps the files of ``folder``."""
    probe = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError as error:
        raise unwritable(probe, error) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
