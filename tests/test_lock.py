"""One owner per folder: exclusion, death of the owner, other machines, clock jumps."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dgbench.errors import DgbenchError
from dgbench.store import lock as lock_module
from dgbench.store.lock import FolderLock, Owner, process_start, read_owner

HOLD = """
import pathlib, sys, time
from dgbench.store.lock import FolderLock
with FolderLock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
COUNT = """
import math, pathlib, sys, time
from dgbench.store.lock import FolderLock
folder = pathlib.Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with FolderLock(folder, wait=math.inf):
        inside = folder / "inside"
        inside.touch(exist_ok=False)                 # fails if another process is inside
        value = int((folder / "count").read_text())
        time.sleep(0.002)
        (folder / "count").write_text(str(value + 1))
        inside.unlink()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of ``folder``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def leave_lock(folder: Path, owner: Owner, age: float = 0.0) -> None:
    """A lock file as ``owner`` would have left it, without a heartbeat for ``age`` seconds."""
    (folder / ".lock").write_text(json.dumps(asdict(owner)))
    then = time.time() - age
    os.utime(folder / ".lock", (then, then))


def elsewhere() -> Owner:
    return replace(Owner.this_process(), host="another", token="x")


def test_held_and_released(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with FolderLock(folder) as lock:
        owner = read_owner(folder / ".lock")
        assert owner is not None
        assert owner.pid == os.getpid()
        lock.check()
    assert list(folder.iterdir()) == []
    with pytest.raises(DgbenchError, match="lost"):
        lock.check()
    with FolderLock(folder):
        pass


def test_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), FolderLock(tmp_path):
        _ = 1 // 0
    assert list(tmp_path.iterdir()) == []


def test_a_second_lock_of_the_same_process_is_refused(tmp_path: Path) -> None:
    with (
        FolderLock(tmp_path),
        pytest.raises(
            DgbenchError, match=rf"{tmp_path.name}: another process \(process {os.getpid()}\) is working on it"
        ),
        FolderLock(tmp_path),
    ):
        pass


def test_no_names_are_stored(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        text = (tmp_path / ".lock").read_text()
    assert os.uname().nodename not in text
    assert set(json.loads(text)) == {"pid", "host", "boot", "start", "token"}


def test_a_live_owner_keeps_the_lock_and_a_killed_one_loses_it(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    try:
        os.utime(tmp_path / ".lock", (1, 1))  # as after a clock jump of decades: the process lives, that decides
        with pytest.raises(DgbenchError, match=f"process {holder.pid}"), FolderLock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 5
        while process_start(holder.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        with FolderLock(tmp_path):  # not reaped yet: a zombie is dead
            owner = read_owner(tmp_path / ".lock")
            assert owner is not None
            assert owner.pid == os.getpid()
        assert list(tmp_path.iterdir()) == []
    finally:
        end(holder)


def test_a_reused_process_id_is_not_the_owner(tmp_path: Path) -> None:
    me = Owner.this_process()
    for dead in (replace(me, start=me.start - 1), replace(me, boot="an earlier boot")):
        leave_lock(tmp_path, dead)
        with FolderLock(tmp_path):
            pass
    leave_lock(tmp_path, replace(me, token="other"))
    with pytest.raises(DgbenchError), FolderLock(tmp_path):
        pass


def test_another_user_s_hidden_process_counts_as_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, sig: int) -> None:
        raise PermissionError

    gone = 2**22 + 1  # above the largest process id
    leave_lock(tmp_path, replace(Owner.this_process(), pid=gone))
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refuse)
        with pytest.raises(DgbenchError):
            FolderLock(tmp_path).__enter__()
    with FolderLock(tmp_path):
        pass


def test_another_machine_owns_the_lock_while_its_heart_beats(tmp_path: Path) -> None:
    leave_lock(tmp_path, elsewhere(), age=1.0)
    with pytest.raises(DgbenchError, match="on another machine"), FolderLock(tmp_path, stale_after=30):
        pass
    leave_lock(tmp_path, elsewhere(), age=31.0)
    start = time.monotonic()
    with FolderLock(tmp_path, stale_after=30 / 100):
        assert time.monotonic() - start >= 0.3 / 4  # it was watched before it was taken


@pytest.mark.parametrize("age", [10_000.0, -10_000.0])
def test_a_clock_jump_does_not_steal_a_beating_lock(tmp_path: Path, age: float) -> None:
    leave_lock(tmp_path, elsewhere(), age)
    stop = threading.Event()

    def beat() -> None:
        step = 0
        while not stop.wait(0.03):
            step += 1
            os.utime(tmp_path / ".lock", (1, time.time() - age + step))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(DgbenchError), FolderLock(tmp_path, stale_after=1.2):
            pass
    finally:
        stop.set()
        thread.join()
    with FolderLock(tmp_path, stale_after=0.4):  # no beat any more: taken, also with a stamp from the future
        pass


def test_an_unfinished_lock_file_is_waited_for_and_then_taken(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(b'{"pid": 1')
    with pytest.raises(DgbenchError, match="unknown"), FolderLock(tmp_path):
        pass
    with FolderLock(tmp_path, stale_after=0.2, wait=5):
        pass


def test_the_heart_beats(tmp_path: Path) -> None:
    with FolderLock(tmp_path, stale_after=0.24):
        os.utime(tmp_path / ".lock", (1, 1))
        time.sleep(0.2)
        assert (tmp_path / ".lock").stat().st_mtime > 1


def test_a_lost_lock_is_noticed_and_left_to_its_new_owner(tmp_path: Path) -> None:
    with FolderLock(tmp_path, stale_after=0.24) as lock:
        leave_lock(tmp_path, elsewhere())
        os.utime(tmp_path / ".lock", (1, 1))
        with pytest.raises(DgbenchError, match="lost to another process"):
            lock.check()
        time.sleep(0.1)
        assert (tmp_path / ".lock").stat().st_mtime == 1  # its heartbeat is not ours
    owner = read_owner(tmp_path / ".lock")
    assert owner is not None
    assert owner.host == "another"


def test_waiting_calls_back_once_and_then_gets_the_lock(tmp_path: Path) -> None:
    said: list[str] = []
    first = FolderLock(tmp_path)
    first.__enter__()
    timer = threading.Timer(0.4, first.__exit__, (None, None, None))
    timer.start()
    with FolderLock(tmp_path, wait=10, on_wait=said.append):
        assert len(said) == 1
        assert f"another process (process {os.getpid()}) is working on it" in said[0]
    timer.join()


def test_waiting_ends(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        start = time.monotonic()
        with pytest.raises(DgbenchError), FolderLock(tmp_path, wait=0.3):
            pass
        assert 0.3 <= time.monotonic() - start < 2


def test_a_forked_child_does_not_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = FolderLock(tmp_path)
    lock.__enter__()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        lock.__exit__(None, None, None)
    assert read_owner(tmp_path / ".lock") is not None
    lock._stop.set()


def test_a_late_taker_does_not_take_a_fresh_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the verdict and the takeover another process takes the stale lock over: the late one must stand back."""
    me = Owner.this_process()
    leave_lock(tmp_path, replace(me, start=me.start - 1, token="dead"))
    judge = lock_module._is_stale
    fresh = replace(me, token="fresh")

    def judge_then_lose(path: Path, seen: bytes, stale_after: float) -> bool:
        verdict = judge(path, seen, stale_after)
        if path.name == ".lock" and b"dead" in seen:
            leave_lock(tmp_path, fresh)
        return verdict

    monkeypatch.setattr(lock_module, "_is_stale", judge_then_lose)
    with pytest.raises(DgbenchError), FolderLock(tmp_path):
        pass
    assert read_owner(tmp_path / ".lock") == fresh
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_taker_that_died_in_the_takeover_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    me = Owner.this_process()
    dead = replace(me, start=me.start - 1, token="dead")
    leave_lock(tmp_path, dead)
    right = f".lock-{hashlib.sha256((tmp_path / '.lock').read_bytes()).hexdigest()[:12]}"
    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        FolderLock(tmp_path).__enter__()
    monkeypatch.undo()
    for path in tmp_path.glob(".tmp-*"):
        path.unlink()
    (tmp_path / right).write_text(json.dumps(asdict(replace(dead, token="dead taker"))))
    with FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def count(folder: Path, processes: int, rounds: int) -> None:
    """Many processes count in turn, each inside the lock; the first owner is dead when they start."""
    (folder / "count").write_text("0")
    me = Owner.this_process()
    leave_lock(folder, replace(me, start=me.start - 1, token="dead"))
    running = [subprocess.Popen([sys.executable, "-c", COUNT, str(folder), str(rounds)]) for _ in range(processes)]
    assert [process.wait() for process in running] == [0] * processes
    assert int((folder / "count").read_text()) == processes * rounds
    assert [path.name for path in folder.iterdir()] == ["count"]


def test_processes_take_turns(tmp_path: Path) -> None:
    count(tmp_path, processes=4, rounds=5)


@pytest.mark.slow
def test_sixteen_processes_take_turns_while_owners_are_killed(tmp_path: Path) -> None:
    victims = [
        subprocess.Popen([sys.executable, "-c", COUNT.replace("inside.", "0 and inside."), str(tmp_path), "100000"])
        for _ in range(4)
    ]
    time.sleep(1)
    for victim in victims:
        time.sleep(0.2)
        end(victim)  # type: ignore[arg-type]
    for path in tmp_path.glob(".tmp-*"):
        path.unlink()
    count(tmp_path, processes=16, rounds=20)
