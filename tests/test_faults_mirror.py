"""Many processes mirror the same runs at once, and half of them are killed: nothing is lost, nothing is there twice."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fake_runs import fake_run, fake_spec

from dgbench.atomic import append_jsonl
from dgbench.store.folder import iter_runs
from dgbench.store.mlflow_mirror import mirrored, sync

WRITERS, VICTIMS, RUNS = 16, 8, 25
WRITE = """
import json, os, pathlib, random, signal, sys, time
from dgbench.store.lock import read_owner
from dgbench.store.mlflow_mirror import _client_class, sync

root, writers, victims, rng = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), random.Random(int(sys.argv[4]))
_client_class()
alive = []
for _ in range(writers):
    pid = os.fork()
    if pid == 0:
        sync(root)
        os._exit(0)
    alive.append(pid)
killed = []
while len(killed) < victims:
    owner = read_owner(root / ".mlflow" / ".lock")
    if owner is None or owner.pid not in alive:
        assert any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in alive), "all ended"
        time.sleep(0.005)
        continue
    database, lock = root / "mlflow.db", root / ".mlflow" / ".lock"
    if len(killed) > 1:  # the database is made once in peace; then owners die while they write
        written = database.stat().st_mtime_ns if database.exists() else None
        while read_owner(lock) == owner and (written is None or database.stat().st_mtime_ns == written):
            written = written or (database.stat().st_mtime_ns if database.exists() else None)
            time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.25))
    if read_owner(lock) == owner:
        os.kill(owner.pid, signal.SIGKILL)
        alive.remove(owner.pid)
        killed.append(owner.pid)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (*killed, *alive)]))
"""


def shown(root: Path) -> Counter[str]:
    """How often the mirror shows each folder."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    found = [
        run for experiment in client.search_experiments() for run in client.search_runs([experiment.experiment_id])
    ]
    return Counter(run.data.tags["dgbench.folder"] for run in found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_sixteen_processes_mirror_while_half_of_them_are_killed(tmp_path: Path, seed: int) -> None:
    for number in range(RUNS):
        run = fake_run(tmp_path, fake_spec(seed=number))
        append_jsonl(
            run.stage_folder("tumor-fine") / "steps.jsonl", *({"step": i, "loss": 1 / i} for i in range(4, 500))
        )
    command = [sys.executable, "-c", WRITE, str(tmp_path), str(WRITERS), str(VICTIMS), str(seed)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == [-9] * VICTIMS + [0] * (WRITERS - VICTIMS)
    everything = {run.relative for run in iter_runs(tmp_path)}
    assert shown(tmp_path) == dict.fromkeys(everything, 1)
    report = sync(tmp_path)
    assert (report.created, report.replaced, report.unchanged) == (0, 0, RUNS)
    assert all(mirrored(run.path) for run in iter_runs(tmp_path))
    assert {path.name for path in (tmp_path / ".mlflow").iterdir()} == {"mirrored.json"}
