"""Looking after many runs on the command line: plan, sweep, status, logs, cancel, retry, single jobs; and what goes to Slurm."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from cli_calls import mistake
from training_fixtures import Mini

from dgbench.cli import INTERRUPTED, call
from dgbench.launch.jobs import CANCELLED, jobs_of, prepare_folder
from dgbench.launch.overview import chosen_runs, state_of
from dgbench.launch.slurm import SlurmConfig, script_of
from dgbench.store.folder import read_status, write_status
from dgbench.store.lock import FolderLock


def options(mini: Mini, runs: Path, *more: str) -> list[str]:
    places = {"protocol": mini.protocol, "data": mini.data, "cache": mini.cache, "runs": runs}
    fixed = ["--preset", "mini", "--device", "cpu", "--threads", "1"]
    return [*fixed, *(f"--{name}={value}" for name, value in places.items()), *more]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mini, Path]:
    """A sweep of erm on two centers."""
    mini = Mini.write(tmp_path_factory.mktemp("mini"))
    runs = tmp_path_factory.mktemp("runs")
    arguments = ["sweep", "--method", "erm", "--heldout", "GAMMA,BETA", "--no-mlflow", *options(mini, runs)]
    assert call(arguments) == 0
    return mini, runs


def rows(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> list[dict[str, Any]]:
    assert call([*arguments, "--format", "json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_plan_tells_what_is_done_missing_shared_and_what_it_costs(
    swept: tuple[Mini, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    mini, runs = swept
    arguments = ["plan", "--method", "erm,randconv", "--heldout", "GAMMA", "--seeds", "2", *options(mini, runs)]
    before = sorted(runs.rglob("*"))
    found = rows(capsys, arguments)
    assert [(row["method"], row["seed"], row["state"], row["jobs"], row["done"]) for row in found] == [
        ("erm", 0, "done", 3, 3),
        ("randconv", 0, "missing", 3, 0),
        ("erm", 1, "missing", 3, 0),
        ("randconv", 1, "missing", 3, 0),
    ]
    assert found[0]["seconds_left"] == 0
    assert found[2]["seconds_left"] > 0, "seed 1 of erm costs what seed 0 took"
    assert found[1]["seconds_left"] is None
    jobs = rows(capsys, [*arguments, "--jobs"])
    assert len(jobs) == 12
    assert {row["runs"] for row in jobs} == {1}
    assert {row["state"] for row in jobs if "/erm/seed0" in row["job"]} == {"done"}
    assert call(arguments) == 0
    out = capsys.readouterr().out
    assert "4 runs, 12 jobs: 3 done, 9 missing; 0 are shared" in out
    assert "6 of a kind that has not been run here yet" in out
    assert sorted(runs.rglob("*")) == before, "a plan writes nothing"


def test_sweep_reports_each_run_and_the_second_call_does_nothing(
    swept: tuple[Mini, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    mini, runs = swept
    arguments = ["sweep", "--method", "erm", "--heldout", "GAMMA,BETA", "--no-mlflow", *options(mini, runs)]
    assert call(arguments) == 0
    assert "2 of 2 runs are done: 0 jobs now, 6 earlier" in capsys.readouterr().err


def test_status_and_logs(swept: tuple[Mini, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, runs = swept
    found = rows(capsys, ["status", "--runs", str(runs)])
    assert [(row["run"].split("/")[1], row["state"], row["trained"]) for row in found] == [
        ("BETA", "done", "100%"),
        ("GAMMA", "done", "100%"),
    ]
    assert [row["run"] for row in rows(capsys, ["status", "mini/BETA", "--runs", str(runs)])] == [found[0]["run"]]
    assert call(["logs", found[0]["run"], "--runs", str(runs), "-f"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert list(dict.fromkeys(line.partition(" | ")[0] for line in lines)) == ["organ", "lesion", "evaluation"]
    assert "train organ with erm: 8 steps of 2 cases" in lines[0]
    assert lines[-1].startswith("evaluation | evaluation: ")
    assert "2 runs lie below it — name one of them" in mistake(capsys, ["logs", "mini", "--runs", str(runs)])
    assert "no run or study of that name" in mistake(capsys, ["status", "nothing", "--runs", str(runs)])


def test_states_of_runs_that_are_not_done(swept: tuple[Mini, Path], tmp_path: Path) -> None:
    mini, _ = swept
    job = jobs_of(mini.plan(tmp_path))[0]
    prepare_folder(job)
    (run,) = chosen_runs(tmp_path, [])
    assert state_of(run)[0] == "queued"
    write_status(run.path, "running")
    assert state_of(run)[0] == "waiting"
    job.folder.mkdir()
    write_status(job.folder, "running")
    assert state_of(run) == ("lost", "its process is gone; the same command goes on")
    with FolderLock(job.folder):
        assert state_of(run)[0] == "running"
    assert state_of(run, in_queue="pending") == ("queued", "in the queue of Slurm: pending")
    write_status(run.path, "failed", "no luck")
    assert state_of(run, in_queue="pending") == ("failed", "no luck")
    (run.path / CANCELLED).write_text("{}")
    assert state_of(run)[0] == "cancelled"


def test_cancel_keeps_a_run_from_being_started_and_retry_starts_it(
    swept: tuple[Mini, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mini, done = swept
    plan = mini.plan(tmp_path)
    prepare_folder(jobs_of(plan)[0])
    name = plan.own.folder.relative_to(tmp_path).as_posix()
    assert call(["cancel", name, "--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{name}: cancelled\n"
    arguments = ["sweep", "--method", "erm", "--heldout", "GAMMA", "--no-mlflow", *options(mini, tmp_path)]
    assert call(arguments) == 2
    said = capsys.readouterr().err
    assert "0 of 1 runs are done" in said
    assert "cancelled" in said
    assert call(["run", *arguments[1:]]) == INTERRUPTED
    assert f"dgbench retry {plan.own.folder}" in capsys.readouterr().err
    assert call(["retry", name, "--runs", str(tmp_path), "--no-mlflow"]) == 0
    assert read_status(plan.own.folder).state == "done"
    assert call(["cancel", str(done / "mini" / "BETA"), "--runs", str(done)]) == 0
    assert "is done already" in capsys.readouterr().out
    assert not list(done.rglob(CANCELLED))


def test_a_failed_run_is_told_with_its_command_and_the_others_are_done(
    swept: tuple[Mini, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    mini, runs = swept
    methods = "broken_plugins:Diverging,erm"
    arguments = ["sweep", "--method", methods, "--heldout", "GAMMA", "--no-mlflow", *options(mini, runs)]
    assert call(arguments) == 2
    err = capsys.readouterr().err
    assert "1 of 2 runs are done: 0 jobs now, 3 earlier" in err
    command = "dgbench run --method broken_plugins:Diverging --heldout GAMMA"
    assert re.search(rf"failed: organ: extra is inf.*\n  {command}", err)
    assert err.splitlines()[-1].startswith(f"error: 1 of 2 runs are not done; first: {command}")
    states = {row["run"].split("/")[2]: row for row in rows(capsys, ["status", "mini/GAMMA", "--runs", str(runs)])}
    assert states["erm"]["state"] == "done"
    assert (states["diverging"]["state"], states["diverging"]["trained"]) == ("failed", "0%")
    assert "evaluation" not in states["diverging"]["now"]
    assert "extra is inf at step 1" in states["diverging"]["reason"]
    assert call(["retry", states["diverging"]["run"], "--runs", str(runs), "--no-mlflow"]) == 2
    assert "0 of 1 runs are done: 0 jobs now, 0 earlier" in capsys.readouterr().err


def test_a_single_job(swept: tuple[Mini, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mini, _ = swept
    organ, lesion, evaluation = jobs_of(mini.plan(tmp_path))
    prepare_folder(organ)
    where = ["--runs", str(tmp_path), "--no-mlflow"]
    line = mistake(capsys, ["job", "exec", evaluation.id, *where])
    assert line == f"{evaluation.id}: needs {organ.id}, {lesion.id}, not done yet — do them first"
    for job in (organ, lesion, evaluation):
        assert call(["job", "exec", job.id, *where]) == 0
    assert read_status(evaluation.part.folder).state == "done"
    capsys.readouterr()
    assert call(["job", "exec", organ.id, *where]) == 0
    assert "done already" in capsys.readouterr().err
    assert "names no job" in mistake(capsys, ["job", "exec", "organ", *where])


def test_the_script_of_a_job_is_plain(swept: tuple[Mini, Path], tmp_path: Path) -> None:
    mini, _ = swept
    job = jobs_of(mini.plan(tmp_path))[0]
    config = SlurmConfig(
        partition="long", account="lab", time="2-12:00:00", prefix="apptainer exec a.sif", command="dgbench",
        setup=("module load cuda",), options=("--exclusive",),
    )  # fmt: skip
    text = script_of(job, config, mirrored=False)
    assert text.startswith("#!/bin/bash\n#SBATCH --job-name=erm-GAMMA-0-organ\n")
    for line in (
        f"#SBATCH --output={job.part.folder}/slurm/organ.log",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:USR1@120",
        "#SBATCH --time=2-12:00:00",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --partition=long",
        "#SBATCH --account=lab",
        "#SBATCH --exclusive",
        "module load cuda",
        f"apptainer exec a.sif dgbench job exec {job.id} --runs {tmp_path} --no-mlflow &",
    ):
        assert f"\n{line}\n" in text
    assert "gres" not in text
    assert "qos" not in text


def test_a_wrong_slurm_configuration_is_one_line(
    swept: tuple[Mini, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mini, _ = swept
    path = tmp_path / "slurm.yaml"
    arguments = ["sweep", "--method", "erm", "--heldout", "GAMMA", "--launcher", "slurm", "--no-mlflow"]
    arguments += [*options(mini, tmp_path / "runs"), "--slurm", str(path)]
    for text, reason in (("time: soon", "time"), ("partitions: long", "partitions"), ("- a", "valid")):
        path.write_text(text)
        assert reason in mistake(capsys, arguments)
    path.write_text("partition: long")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (
        mistake(capsys, arguments)
        == "squeue: no such command — --launcher slurm needs a machine that can submit to Slurm"
    )


SBATCH = """#!/bin/sh
echo "$@" >> {log}
wc -l < {log}
"""


def test_what_is_done_or_queued_is_not_submitted_again(
    swept: tuple[Mini, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mini, _ = swept
    log, queue, killed = (tmp_path / name for name in ("log", "queue", "killed"))
    queue.touch()
    for name, text in {
        "sbatch": SBATCH.format(log=log),
        "squeue": f"#!/bin/sh\ncat {queue}\n",
        "scancel": f'#!/bin/sh\necho "$@" >> {killed}\n',
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    arguments = ["sweep", "--method", "erm", "--heldout", "GAMMA", "--no-mlflow", "--launcher", "slurm"]
    arguments += options(mini, runs)
    organ, lesion, evaluation = jobs_of(mini.plan(runs))
    assert call(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"1  {organ.id}",
        f"2  {lesion.id}",
        f"3  {evaluation.id}  after  1  2",
    ]
    calls = log.read_text().splitlines()
    assert calls[2].startswith("--parsable --dependency=afterok:1:2 --kill-on-invalid-dep=yes ")
    assert Path(calls[0].split()[-1]).read_text().startswith("#!/bin/bash\n")
    assert rows(capsys, ["status", "--runs", str(runs)])[0]["state"] == "queued"
    queue.write_text("1|RUNNING\n3|PENDING\n")  # the second has left the queue, and is not done
    assert call(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"1  {organ.id}  running already",
        f"4  {lesion.id}",
        f"3  {evaluation.id}  pending already",
    ]
    name = organ.part.folder.relative_to(runs).as_posix()
    assert call(["cancel", name, "--runs", str(runs)]) == 0
    assert capsys.readouterr().out == f"{name}: cancelled, Slurm jobs 1, 3\n"
    assert killed.read_text().splitlines() == ["--signal=TERM --batch --state=RUNNING 1 3", "--state=PENDING 1 3"]
    assert call(arguments) == 0
    assert capsys.readouterr().out == "", "a cancelled run is not submitted"
