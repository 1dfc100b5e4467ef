"""Faults of the machine around a run: a disk that is really full, a clock that jumps, streams that are closed, folders that cannot be
written, and many writers of which half are killed."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_calls import run_arguments
from training_fixtures import AfterStep, Mini, alone, differences, outcome, quiet

from dgbench.atomic import append_jsonl, read_json, read_jsonl, write_json, write_text
from dgbench.cli import call
from dgbench.errors import DgbenchError, Interrupted
from dgbench.launch import jobs
from dgbench.launch.jobs import Job, do, jobs_of
from dgbench.launch.worker import PRELOADED, PROCESS_LOCK, JobProcess
from dgbench.store.folder import read_status
from dgbench.store.keys import diff
from dgbench.store.lock import FolderLock, LockHeld, process_start, read_owner
from dgbench.training.loop import train

WRITERS = 16
ROWS = 5
MEBIBYTE = 2**20
IN_LITTLE_SPACE = """
import sys
from pathlib import Path
from dgbench.atomic import write_bytes, write_json
from dgbench.errors import DgbenchError
folder = Path(sys.argv[1])
write_json(folder / "kept.json", {"kept": True})
try:
    write_bytes(folder / "large", bytes(4 * 2**20))
except DgbenchError as error:
    print(error)
print(sorted(path.name for path in folder.iterdir()))
(folder / "ballast").write_bytes(bytes(2**19))
(folder / "ballast").unlink()
write_bytes(folder / "large", bytes(2**19))
print((folder / "large").stat().st_size)
"""


@pytest.fixture(scope="module")
def trained(sound: Mini, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nothing disturbs."""
    job = sound.job(tmp_path_factory.mktemp("undisturbed"))
    train(job, quiet)
    return job.folder


def test_a_file_system_without_space(tmp_path: Path) -> None:
    """A file system of one mebibyte, mounted for one process alone."""
    mount = f"mount -t tmpfs -o size=1M none {tmp_path} && exec {sys.executable} -c '{IN_LITTLE_SPACE}' {tmp_path}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
    if shutil.which("unshare") is None or subprocess.run([*command[:-1], "true"], capture_output=True).returncode:
        pytest.skip("this system lets no process mount a file system of its own")
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if "mount:" in answer.stderr:
        pytest.skip(f"no file system can be mounted here: {answer.stderr.strip()}")
    assert answer.returncode == 0, answer.stderr
    line, left, size = answer.stdout.splitlines()
    assert line.startswith(
        f"{tmp_path}/large: cannot be written (No space left on device) — check permissions and free space"
    )
    assert left == "['kept.json']", "nothing half-written"
    assert int(size) == MEBIBYTE // 2


def train_in_small_files(job: Any, limit: int) -> None:
    """What a process of its own does: train ``job`` where no file may be larger than ``limit`` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(
        DgbenchError, match=r"/last-000001\.safetensors: cannot be written \(File too large\) — check"
    ) as error:
        train(job, quiet)
    assert "\n" not in str(error.value)


def test_a_checkpoint_for_which_there_is_no_space(sound: Mini, trained: Path, tmp_path: Path) -> None:
    job = sound.job(tmp_path / "runs")
    assert alone(train_in_small_files, job, 10 * MEBIBYTE) == 0
    assert not list(job.folder.glob("last-*"))
    assert not list(job.folder.glob(".tmp-*"))
    train(job, quiet)
    assert differences(outcome(job.folder), outcome(trained)) == []


def test_a_clock_that_jumps_changes_no_byte(
    sound: Mini, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A year back, ten years on, and to and fro, between the steps and across an interruption; data files come from the future."""
    real, jumps = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: real() + jumps.choice([-1, 0, 10]) * 365 * 86400.0)
    job = sound.job(tmp_path / "runs")
    with FolderLock(job.folder), pytest.raises(Interrupted):
        train(job, AfterStep(3, signal.SIGTERM))
    for path in job.folder.iterdir():
        os.utime(path, (2e9, 2e9))
    with FolderLock(job.folder):
        train(job, quiet)
    assert differences(outcome(job.folder), outcome(trained)) == []
    assert all(row["seconds"] >= 0 for row in read_jsonl(job.folder / "times.jsonl"))


@pytest.mark.usefixtures("inside")
def test_another_training_in_the_folder_is_refused_with_what_differs(
    sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    plan = sound.plan(runs)
    organ = plan.own.training[0]
    stored = {"key": "0" * 64, **organ.identity, "seed": 7, "extra": None}
    write_json(organ.folder / "spec.json", stored)
    text = mistake_in_the_last_line(capsys, run_arguments(sound, runs))
    assert text.startswith(f"{organ.folder}: holds another training (extra: null → absent; key: ")
    assert "; seed: 7 → 0)" in text
    assert text.endswith("— move it away or use --fresh")
    assert diff(read_json(organ.folder / "spec.json"), stored) == [], "what was there is kept"
    assert not list(organ.folder.glob("last-*"))


def mistake_in_the_last_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert call(arguments) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return str(line.removeprefix("error: "))


@pytest.mark.usefixtures("inside")
def test_read_only_data_is_enough(mini: Mini, trained: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in mini.data.rglob("*")}
    for path in [mini.data, *before]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        job = mini.job(tmp_path / "runs")
        train(job, quiet)
    finally:
        for path in [mini.data, *before]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert differences(outcome(job.folder), outcome(trained)) == []
    assert {path: path.stat().st_mtime_ns for path in mini.data.rglob("*")} == before, "nothing was written there"


@pytest.mark.parametrize("closed", ["| head -n 1", ">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams(sound: Mini, tmp_path: Path, closed: str) -> None:
    """Nobody listens to the end, or at all: no trace, and the exit code is that of the command."""
    program = f"{sys.executable} -c 'from dgbench.cli import main; main()' protocols show mini"
    shown = "" if ">&-" in closed and not closed.startswith("2") else "name: phantom"
    command = program.replace("show mini", "show phantom") + " " + closed
    answer = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    assert answer.stdout.startswith(shown)
    assert bool(answer.stdout) == bool(shown)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_a_mistake_with_closed_streams_is_still_code_two(closed: str) -> None:
    program = f"{sys.executable} -c 'from dgbench.cli import main; main()' protocols show none {closed}"
    answer = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert len(answer.stderr.splitlines()) == (1 if closed == ">&-" else 0)


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """A library that prints to descriptor 1 must not write into a file of ours."""
    code = (
        "import os, sys\n"
        "from dgbench.cli import _open_streams\n"
        "_open_streams()\n"
        f"file = open({str(tmp_path / 'ours')!r}, 'w')\n"
        "os.write(1, b'noise')\n"
        "print('noise')\n"
        "assert file.fileno() > 2\n"
    )
    answer = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$0" >&- <&-', code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "ours").read_text() == ""


def slow_rows(job: Any, report: Any) -> None:
    """A job that adds a row to its log now and then, from where the log ends; asked to stop, it needs a while."""
    signal.signal(signal.SIGTERM, lambda *_: time.sleep(1))
    for step in range(len(read_rows(job)) + 1, ROWS + 1):
        append_jsonl(job / "rows.jsonl", {"step": step, "pid": os.getpid()})
        time.sleep(0.2)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "rows.jsonl"
    return read_jsonl(path) if path.exists() else []


def own_a_slow_job(folder: Path) -> None:
    """What a process of its own does: hold the lock of ``folder`` and run a job in it."""
    with FolderLock(folder):
        JobProcess(slow_rows, folder, "slow", folder).run()


def test_nobody_writes_beside_the_process_of_a_killed_program(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    program = context.Process(target=own_a_slow_job, args=(tmp_path,))
    program.start()
    wait_until(lambda: len(read_rows(tmp_path)) >= 2)
    program.kill()
    program.join()
    with FolderLock(tmp_path), pytest.raises(LockHeld, match="is working on it"):  # the program is dead, its job is not
        FolderLock(tmp_path, name=PROCESS_LOCK).__enter__()
    with FolderLock(tmp_path, name=PROCESS_LOCK, wait=60):
        assert len({row["pid"] for row in read_rows(tmp_path)}) == 1
        assert [row["step"] for row in read_rows(tmp_path)] == list(range(1, ROWS + 1))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def write_rows(function: Any, content: Any, title: str, folder: Path, cancelled: Any) -> None:
    """In place of a training: rows 1 to ROWS in the job's log, then a result, going on where a killed writer stopped."""
    inside = folder / f"inside-{os.getpid()}"
    inside.touch()
    assert [path for path in folder.glob("inside-*") if is_alive(path)] == [inside], "two writers at once"
    for step in range(len(read_rows(folder)) + 1, ROWS + 1):
        append_jsonl(folder / "rows.jsonl", {"step": step, "folder": folder.name})
        time.sleep(0.01)
    write_text(folder / "result.json", "{}")
    inside.unlink()


def is_alive(marker: Path) -> bool:
    """Whether the process that made it still runs; one that was killed and that nobody has asked about yet does not."""
    return process_start(int(marker.name.rpartition("-")[2])) is not None


def write_all(work: list[Job], seed: int) -> None:
    """What one of many writers does: every job that nobody has done yet, in an order of its own."""
    order = list(work)
    random.Random(seed).shuffle(order)
    for job in order:
        do(job, write_rows, lambda _: None)


def test_sixteen_writers_half_of_them_killed_lose_and_double_nothing(sound: Mini, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    plans = [sound.plan(runs, seed=seed) for seed in range(8)]
    work = [job for plan in plans for job in jobs_of(plan) if job.training is not None]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    writers = [context.Process(target=write_all, args=(work, seed)) for seed in range(WRITERS)]
    for writer in writers:
        writer.start()
    for number, victim in enumerate(writers[: WRITERS // 2], 1):  # each when there are some rows more
        wait_until(lambda needed=5 * number: sum(len(read_rows(job.folder)) for job in work) >= needed)  # type: ignore[misc]
        victim.kill()
    for writer in writers:
        writer.join()
    codes = [writer.exitcode for writer in writers]
    assert codes[WRITERS // 2 :] == [0] * (WRITERS // 2)
    assert codes.count(-signal.SIGKILL) >= WRITERS // 4, "some may have been done before"
    for job in work:
        assert read_rows(job.folder) == [{"step": step, "folder": job.folder.name} for step in range(1, ROWS + 1)]
        assert read_status(job.folder).state == "done"
        assert jobs.stored_key(job.folder) == job.training.key  # type: ignore[union-attr]
        locks = [
            read_owner(path) for path in job.folder.glob(".*")
        ]  # of writers killed when they had written the result
        assert all(owner is not None and not owner.is_alive for owner in locks), "neither live locks nor leftovers"
