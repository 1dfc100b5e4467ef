"""Sweeps on a real Slurm: a controller and two nodes on this machine (``cluster.sh``). Run with ``--slurm``; needs slurm-wlm and munge."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_fixtures import Mini, differences, outcome

from dgbench.launch.jobs import Job, jobs_of, prepare_folder
from dgbench.launch.plan import RunPlan, RunRequest, plan_run
from dgbench.launch.slurm import SlurmConfig, script_of, submitted_as
from dgbench.store.folder import read_status
from dgbench.store.study import KEPT_OF_STUDY, STUDY

CLUSTER = Path(__file__).with_name("cluster.sh")
ROOT = Path(__file__).parents[2]
DGBENCH = Path(sys.executable).with_name("dgbench")
PATIENCE = 180.0

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Cluster:
    """The cluster whose files are in ``folder``; ``hurried``: until when a job is not to be hurried again."""

    folder: Path
    hurried: dict[str, float] = field(default_factory=dict)

    def control(self, *words: str) -> None:
        subprocess.run([str(CLUSTER), words[0], str(self.folder), *words[1:]], check=True, timeout=90)

    def ask(self, *words: str) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def state(self, number: str) -> str:
        """In the words of Slurm."""
        shown = self.ask("scontrol", "show", "job", number)
        return next(word.partition("=")[2] for word in shown.split() if word.startswith("JobState="))

    def hurry(self) -> None:
        """Start what was queued again soon: Slurm would hold it for two minutes, and refuses it in the second in which it ended."""
        for line in self.ask("squeue", "--noheader", "--format=%i %r").splitlines():
            number, reason = line.split()
            if reason == "BeginTime" and time.monotonic() > self.hurried.get(number, 0.0):
                self.ask("scontrol", "update", f"JobId={number}", "StartTime=now+4")
                self.hurried[number] = time.monotonic() + 10

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster for all tests of this module."""
    if not request.config.getoption("--slurm"):
        pytest.skip("needs --slurm, and slurm-wlm and munge (make slurm)")
    if missing := [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]:
        pytest.fail(f"{', '.join(missing)}: not installed — apt-get install --no-install-recommends slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="dgbench-slurm-"))
    folder.chmod(0o755)
    made = Cluster(folder)
    paths = [str(ROOT), str(ROOT / "methods"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PYTHONPATH", ":".join(paths))
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        try:
            made.control("start")
            yield made
        finally:
            made.control("stop")
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return Mini.write(tmp_path_factory.mktemp("mini"))


def wait(
    what: str, true: Callable[[], Any], seconds: float = PATIENCE, meanwhile: Callable[[], None] = lambda: None
) -> None:
    """Until ``true()``, doing ``meanwhile()``; a failure names ``what``."""
    deadline = time.monotonic() + seconds
    while not true():
        meanwhile()
        if time.monotonic() > deadline:
            pytest.fail(
                f"waited {seconds:.0f} s for {what}: {subprocess.run(['squeue'], capture_output=True, text=True).stdout}"
            )
        time.sleep(0.3)


def dgbench(*words: str) -> str:
    made = subprocess.run([str(DGBENCH), *words], capture_output=True, text=True, timeout=PATIENCE)
    assert made.returncode == 0, made.stderr
    return made.stdout


def arguments(mini: Mini, runs: Path, method: str = "erm", **preset: int) -> list[str]:
    places = {"protocol": mini.protocol, "data": mini.data, "cache": mini.cache, "runs": runs}
    fixed = ["--method", method, "--heldout", "GAMMA", "--preset", "mini", "--device", "cpu", "--threads", "1"]
    settings = [word for key, value in preset.items() for word in ("--set", f"preset.{key.replace('__', '.')}={value}")]
    return [*fixed, *(f"--{name}={value}" for name, value in places.items()), "--no-mlflow", *settings]


def submit(mini: Mini, runs: Path, method: str = "erm", **preset: int) -> list[Job]:
    """Submit a run and give its jobs; the script of a job asks for little, as two small nodes are all there is."""
    config = runs.parent / "slurm.yaml"
    config.write_text("time: '30'\nmemory: 900M\n")
    dgbench("sweep", *arguments(mini, runs, method, **preset), "--launcher", "slurm", "--slurm", str(config))
    return list(jobs_of(plan_of(mini, runs, method, **preset)))


def plan_of(mini: Mini, runs: Path, method: str = "erm", **preset: int) -> RunPlan:
    return mini.plan(runs, method, **{key.replace("__", "."): value for key, value in preset.items()})


def number_of(job: Job) -> str:
    number = submitted_as(job.part.folder, job.title)
    assert number is not None
    return number


def assert_as_if_alone(jobs: list[Job], mini: Mini, runs: Path, **preset: int) -> None:
    """The bytes of an uninterrupted run on this machine."""
    dgbench("run", *arguments(mini, runs, **preset))
    for job, other in zip(jobs, jobs_of(plan_of(mini, runs, **preset)), strict=True):
        assert job.id == other.id
        if job.training is not None:
            assert differences(outcome(job.folder), outcome(other.folder)) == []
        else:
            assert (job.folder / "cases.parquet").read_bytes() == (other.folder / "cases.parquet").read_bytes()


LONG = {"stages__organ__draws": 600, "checkpoint_every": 300}
"""Three hundred steps, and no checkpoint before the end unless one is asked for."""


def steps(job: Job) -> int:
    log = job.folder / "steps.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def test_a_small_sweep_of_the_phantom_end_to_end(cluster: Cluster, tmp_path: Path) -> None:
    """Two methods on one center, shared stages once, equal to the same sweep on this machine."""
    both = ["--method", "erm,randconv", "--heldout", "RENJI", "--preset", "tiny", "--threads", "1", "--no-mlflow"]
    cache = ["--cache", str(tmp_path / "cache")]
    config = tmp_path / "slurm.yaml"
    config.write_text("time: '30'\nmemory: 900M\n")
    there = ["--runs", str(tmp_path / "slurm"), "--launcher", "slurm", "--slurm", str(config)]
    lines = dgbench("sweep", *both, *cache, *there).splitlines()
    assert len(lines) == 9
    wait("all jobs to end", lambda: not cluster.ask("squeue", "--noheader"))
    dgbench("sweep", *both, *cache, "--runs", str(tmp_path / "local"))
    compared = 0
    for method in ("erm", "randconv"):
        request = RunRequest(method, "RENJI", preset="tiny", threads=1, cache=tmp_path / "cache")
        plans = [plan_run(replace(request, runs=tmp_path / name)) for name in ("slurm", "local")]
        for left, right in zip(*(jobs_of(plan) for plan in plans), strict=True):
            compared += 1
            if left.training is not None:
                assert differences(outcome(left.folder), outcome(right.folder)) == []
            else:
                tables = [(job.folder / "cases.parquet").read_bytes() for job in (left, right)]
                assert tables[0] == tables[1]
        assert read_status(plans[0].own.folder).state == "done"
    assert compared == 12
    assert dgbench("sweep", *both, *cache, *there) == "", "nothing is left to submit"


def stub(folder: Path, text: str) -> str:
    path = folder / "stub.sh"
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


def with_gpus(job: Job, devices: int) -> Job:
    """The same job as if it computed on GPUs."""
    spec = job.part.spec
    environment = spec.environment.model_copy(update={"device": "cuda", "devices": devices})
    part = replace(job.part, spec=spec.model_copy(update={"environment": environment}))
    return replace(job, part=part, plan=replace(job.plan, request=replace(job.plan.request, devices=devices)))


def test_jobs_are_packed_and_a_run_on_two_gpus_gets_two(cluster: Cluster, mini: Mini, tmp_path: Path) -> None:
    log = tmp_path / "log"
    config = SlurmConfig(
        time="5", memory="100M", command=stub(tmp_path, f'echo "$CUDA_VISIBLE_DEVICES" >> {log}; sleep 6')
    )
    job = jobs_of(mini.plan(tmp_path / "runs"))[0]
    prepare_folder(job)
    (job.part.folder / "slurm").mkdir()
    numbers = []
    for index, devices in enumerate((2, 1, 1)):
        path = tmp_path / f"{index}.sh"
        path.write_text(script_of(with_gpus(job, devices), config, mirrored=False))
        numbers.append(cluster.ask("sbatch", "--parsable", str(path)))
    wait(
        "three jobs at once on four GPUs", lambda: [cluster.state(number) for number in numbers] == ["RUNNING"] * 3, 30
    )
    wait("all to start", lambda: log.is_file() and len(log.read_text().split()) == 3, 30)
    given = sorted(log.read_text().split())
    assert "0,1" in given
    assert [len(word.split(",")) for word in given].count(1) == 2
    cluster.ask("scancel", *numbers)


def test_a_job_that_is_told_to_stop_is_queued_again_and_ends_as_if_alone(
    cluster: Cluster, mini: Mini, tmp_path: Path
) -> None:
    jobs = submit(mini, tmp_path / "runs", **LONG)
    organ, number = jobs[0], number_of(jobs[0])
    wait("some steps", lambda: steps(organ) > 40)
    cluster.ask("scancel", "--signal=USR1", "--batch", number)
    wait("it to be queued again", lambda: cluster.state(number) == "PENDING")
    assert list(organ.folder.glob("last-*.json")), "its state was saved"
    reached = steps(organ)
    assert reached < 300
    assert "stopped by SIGUSR1" in str(read_status(organ.folder).reason)
    wait("the run to be done", lambda: read_status(organ.part.folder).state == "done", meanwhile=cluster.hurry)
    assert_as_if_alone(jobs, mini, tmp_path / "alone", **LONG)


def test_a_study_that_is_told_to_stop_is_queued_again_and_proposes_the_same(
    cluster: Cluster, mini: Mini, tmp_path: Path
) -> None:
    config = tmp_path / "slurm.yaml"
    config.write_text("time: '30'\nmemory: 900M\n")
    there, alone = (
        ["tune", *arguments(mini, tmp_path / name, "mixstyle", **LONG), "--trials", "2"] for name in ("slurm", "alone")
    )
    (line,) = dgbench(*there, "--launcher", "slurm", "--slurm", str(config)).splitlines()
    number, _, folder = line.partition("  ")
    wait(
        "some steps", lambda: any(log.read_bytes().count(b"\n") > 40 for log in Path(folder).rglob("organ/steps.jsonl"))
    )
    cluster.ask("scancel", "--signal=USR1", "--batch", number)
    wait("it to be queued again", lambda: cluster.state(number) == "PENDING")
    assert read_status(Path(folder)).state == "interrupted"
    wait("the study to be done", lambda: read_status(Path(folder)).state == "done", meanwhile=cluster.hurry)
    dgbench(*alone)
    for name in KEPT_OF_STUDY:
        (other,) = (tmp_path / "alone").glob(f"*/*/*/tune-*/{name}")
        mine, its = (Path(folder) / name).read_text(), other.read_text()
        if name == STUDY:
            mine, its = (json.dumps({**json.loads(text), "command": ""}) for text in (mine, its))
        assert mine == its, name


def test_a_job_whose_node_fails_runs_again_elsewhere(cluster: Cluster, mini: Mini, tmp_path: Path) -> None:
    jobs = submit(mini, tmp_path / "runs", **{**LONG, "checkpoint_every": 50})
    organ, number = jobs[0], number_of(jobs[0])
    wait("some steps", lambda: steps(organ) > 60)
    node = cluster.ask("squeue", "--noheader", "--format=%N", f"--jobs={number}")
    steppers = [process for process in psutil.process_iter(["name", "cmdline"]) if process.info["name"] == "slurmstepd"]
    on_node = [one for one in steppers if f"[{number}." in " ".join(one.info["cmdline"])]
    assert on_node
    os.kill(cluster.pid(f"slurmd-{node}"), signal.SIGKILL)
    for stepper in on_node:  # with the machine, everything on it is gone
        for process in (stepper, *stepper.children(recursive=True)):
            process.kill()
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("SLURM_JOB_ID") == number:
            process.kill()
    cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    wait("it to be queued again", lambda: cluster.state(number) == "PENDING", 90)
    wait("it to run elsewhere", lambda: cluster.state(number) in ("RUNNING", "COMPLETED"), meanwhile=cluster.hurry)
    assert cluster.ask("squeue", "--noheader", "--format=%N", f"--jobs={number}") != node
    wait("the run to be done", lambda: read_status(organ.part.folder).state == "done", meanwhile=cluster.hurry)
    cluster.control("node", node[-1])
    wait("the node to be back", lambda: cluster.ask("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", 60)
    assert_as_if_alone(jobs, mini, tmp_path / "alone", **{**LONG, "checkpoint_every": 50})


def test_a_failed_parent_cancels_its_children_with_the_reason(cluster: Cluster, mini: Mini, tmp_path: Path) -> None:
    jobs = submit(mini, tmp_path / "runs", "broken_plugins:Diverging")
    numbers = [number_of(job) for job in jobs]
    wait("all to leave the queue", lambda: not cluster.ask("squeue", "--noheader"))
    assert [cluster.state(number) for number in numbers] == ["FAILED", "FAILED", "CANCELLED"]
    status = read_status(jobs[0].part.folder)
    assert status.state == "failed"
    assert "extra is inf at step 1" in str(status.reason)
    assert "failed: organ: extra is inf" in (jobs[0].folder / "log.txt").read_text()


def test_a_restart_of_the_controller_changes_nothing(cluster: Cluster, mini: Mini, tmp_path: Path) -> None:
    """Also where Slurm lost the end of a job that was done: it runs it once more, and that finds it done."""
    jobs = submit(mini, tmp_path / "runs", **LONG)
    organ = jobs[0]
    wait("some steps", lambda: steps(organ) > 20)
    os.kill(cluster.pid("slurmctld"), signal.SIGKILL)
    time.sleep(2)
    cluster.control("controller")
    wait("the run to be done", lambda: read_status(organ.part.folder).state == "done", meanwhile=cluster.hurry)
    assert_as_if_alone(jobs, mini, tmp_path / "alone", **LONG)
