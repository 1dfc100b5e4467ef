"""`dgbench tune`: what it prints, what stops it, its script for Slurm, and what a study with trainings opens."""

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_calls import mistake
from test_guard import HELDOUT, noise_center
from training_fixtures import Mini
from tune_studies import PROGRAM, arguments_of, invent

from dgbench.cli import call
from dgbench.errors import Interrupted
from dgbench.store.folder import read_status
from dgbench.store.study import read_trials


def test_the_command_ends_with_the_best_and_what_to_run(
    sound: Mini, tmp_path: Path, invented: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(arguments_of(sound, tmp_path / "runs")) == 0
    out, err = capsys.readouterr()
    assert "3 trials: 3 complete, 0 pruned; trial" in out
    assert "trial 2, 3 of 3: source-val DSC" in err
    run = next(line for line in out.splitlines() if line.startswith("run it"))
    (best,) = (tmp_path / "runs").glob("mini/GAMMA/mixstyle/tune-*/best.yaml")
    assert f"--config {best}" in run
    assert not list((tmp_path / "runs").glob("mini/GAMMA/*/seed*")), "trials are no runs of the leaderboard"


def test_ctrl_c_ends_with_130_and_the_same_call_goes_on(
    sound: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = 0

    def stopped(*arguments: Any) -> None:
        nonlocal started
        started += 1
        if started == 4:
            raise Interrupted("lesion: stopped by SIGINT")
        invent(*arguments)

    monkeypatch.setattr("dgbench.tuning.trial.run_job", stopped)
    assert call(arguments_of(sound, tmp_path / "runs")) == 130
    (folder,) = (tmp_path / "runs").glob("mini/GAMMA/mixstyle/tune-*")
    assert read_status(folder).state == "interrupted"
    assert call(arguments_of(sound, tmp_path / "runs")) == 0
    assert started == 7, "three trials of two stages, one of which was begun twice"


def test_mistakes_are_one_line_and_a_dry_run_writes_nothing(
    sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert "--trials" in mistake(capsys, arguments_of(sound, runs, 0))
    outside = mistake(capsys, arguments_of(sound, runs, 2, "--set=preset.weight_decay=0.5"))
    assert outside.startswith("weight_decay=0.5 lies outside of what is searched (1e-06 to 0.01, log)")
    assert call(arguments_of(sound, runs, 2, "--dry-run", "--set=alpha=0.3")) == 0
    out = capsys.readouterr().out
    assert "lr_factor" in out
    assert "alpha" not in out
    assert not runs.exists()


def test_the_script_of_a_study_does_that_study_on_a_node(
    sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, invented: None
) -> None:
    queue = tmp_path / "queue"
    queue.touch()
    for name, text in {"sbatch": "echo 7", "squeue": f"cat {queue}"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    runs = tmp_path / "runs"
    submitting = [*arguments_of(sound, runs, 2, "--set=alpha=0.3"), "--launcher=slurm", "--rank-timeout=30"]
    assert call(submitting) == 0
    (script,) = runs.glob("mini/GAMMA/mixstyle/tune-*/slurm/study.sh")
    folder = script.parents[1]
    assert capsys.readouterr().out == f"7  {folder}\n"
    assert read_status(folder).state == "queued"
    queue.write_text("7|PENDING\n")
    assert call(submitting) == 0
    assert capsys.readouterr().out == f"7  {folder}  pending already\n"
    (line,) = [line for line in script.read_text().splitlines() if line.endswith("&")]
    program, *words = shlex.split(line.removesuffix("&"))
    assert program == PROGRAM
    monkeypatch.chdir(tmp_path / "runs")  # nothing in it depends on where it is called
    assert call(words) == 0
    assert len(read_trials(folder)) == 2
    capsys.readouterr()
    assert call(["status", "--format", "json", "--runs", str(runs), str(folder)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["run"], row["state"], row["trained"]) == (folder.relative_to(runs).as_posix(), "done", "2 trials")
    assert call(["logs", "--runs", str(runs), folder.relative_to(runs).as_posix()]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "source-val DSC" in line]
    assert [line.partition("trial ")[2][0] for line in lines] == ["0", "1"]
    assert all(line.startswith("study | ") for line in lines)
    assert "no run or study of that name" in mistake(capsys, ["status", "--runs", str(runs), "nothing"])


SPY = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from dgbench.cli import call
from dgbench.tuning import trial
trial.run_job = lambda function, job, *_: function(job, lambda *_: None)
code = call(json.loads(sys.argv[1]))
print(json.dumps([code, opened]))
"""


def trained(mini: Mini, runs: Path) -> tuple[list[str], str]:
    """The files that a study of two trials opened, trainings and all, and its trials."""
    arguments = [word for word in arguments_of(mini, runs, 2) if "--launcher" not in word]
    answer = subprocess.run(
        [sys.executable, "-c", SPY, json.dumps(arguments)], capture_output=True, text=True, check=True, timeout=280
    )
    code, opened = json.loads(answer.stdout.splitlines()[-1])
    assert code == 0, answer.stderr
    (folder,) = runs.glob("mini/GAMMA/mixstyle/tune-*")
    return opened, (folder / "trials.jsonl").read_text()


@pytest.mark.slow
def test_a_study_opens_no_image_of_the_held_out_center_and_noise_there_changes_nothing(
    sound: Mini, tmp_path: Path
) -> None:
    opened, trials = trained(sound, tmp_path / "runs")
    assert len({path for path in opened if path.startswith(f"{sound.data}/ALPHA/imagesTr")}) >= 5
    assert not [
        path
        for path in opened
        if path.startswith((f"{sound.data}/{HELDOUT}/imagesTr", f"{sound.data}/{HELDOUT}/labelsTr"))
    ]
    noisy = Mini(tmp_path / "data", sound.protocol, tmp_path / "cache")
    shutil.copytree(sound.data, noisy.data)
    noise_center(noisy.data / HELDOUT)
    assert trained(noisy, tmp_path / "noisy")[1] == trials


@pytest.mark.slow
def test_sigkill_in_the_middle_changes_no_trial(sound: Mini, tmp_path: Path) -> None:
    undisturbed = [PROGRAM, *arguments_of(sound, tmp_path / "whole")]
    subprocess.run(undisturbed, capture_output=True, check=True, timeout=280)
    killed = [PROGRAM, *arguments_of(sound, tmp_path / "killed")]
    process = subprocess.Popen(killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        logs = list((tmp_path / "killed").glob("mini/GAMMA/mixstyle/tune-*/trials/*/*/*/*/organ/validation.jsonl"))
        if len(logs) >= 2:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").glob("mini/GAMMA/mixstyle/tune-*/best.yaml"))
    subprocess.run(killed, capture_output=True, check=True, timeout=280)
    names = ("trials.jsonl", "best.yaml")
    for name in names:
        (whole,), (again,) = (
            (tmp_path / kind).glob(f"mini/GAMMA/mixstyle/tune-*/{name}") for kind in ("whole", "killed")
        )
        assert again.read_bytes() == whole.read_bytes()
