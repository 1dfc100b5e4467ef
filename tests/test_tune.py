"""Tuning: what is searched, what a trial may read, what a restart changes (nothing), what is selected, and how a run takes it."""

import json
import math
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import yaml
from cli_calls import mistake, run_arguments
from test_guard import HELDOUT, noise_center
from training_fixtures import Mini

from dgbench.atomic import append_jsonl, read_json, read_jsonl, write_json
from dgbench.cli import call
from dgbench.data.augmentation import strengthened
from dgbench.errors import DgbenchError, Diverged, Interrupted
from dgbench.launch.plan import RunRequest, plan_run
from dgbench.leaderboard.records import RowKey, row_labels, tuning_command
from dgbench.protocol import Augmentation, load_protocol
from dgbench.registry import discover, find_method
from dgbench.store.folder import RunSpec, read_status
from dgbench.store.study import KEPT_OF_STUDY, read_trials, select
from dgbench.training.job import TrainJob
from dgbench.training.selection import validation_steps
from dgbench.tuning import study as study_module
from dgbench.tuning.space import HARNESS, default_params, settings_of, space_of
from dgbench.tuning.study import plan_study, run_study

TRIALS = 10
LEADERBOARDS = Path(__file__).parent.parent / "leaderboards"
PROGRAM = str(Path(sys.executable).with_name("dgbench"))


def request_of(mini: Mini, runs: Path, **changes: Any) -> RunRequest:
    return replace(mini.plan(runs).request, method="mixstyle", **changes)


def tune(request: RunRequest, trials: int = TRIALS) -> Path:
    """The folder of the study of ``request``, done."""
    plan = plan_study(request, trials)
    run_study(plan, trials, lambda text: None)
    return plan.folder


def quality(job: TrainJob) -> float:
    """An invented source-validation DSC: best at twice the learning rate, and the fine stage is the harder one."""
    base = job.resolved.protocol.presets["mini"].stages[job.stage].lr
    off = math.log(job.resolved.preset.stages[job.stage].lr / base / 2)
    return math.exp(-off * off) * (0.9 if job.stage == "organ" else 0.6)


def invent(function: Any, job: TrainJob, title: str, folder: Path, cancelled: Callable[[], bool]) -> None:
    """What a training leaves, without training."""
    log = folder / "validation.jsonl"
    log.unlink(missing_ok=True)
    steps = sorted(validation_steps(job.steps, job.resolved.preset.validations))
    for step in steps:
        score = quality(job) * step / job.steps
        rows = [{"step": step, "case": case, "dsc": score} for case in job.split.validation]
        append_jsonl(log, *rows)
        if cancelled():
            raise Interrupted("stopped")
    write_json(folder / "result.json", {"best_step": steps[-1], "best_dsc": quality(job)})


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgbench.tuning.trial.run_job", invent)


@pytest.fixture(scope="module")
def whole(sound: Mini, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of an invented study."""
    runs = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dgbench.tuning.trial.run_job", invent)
        tune(request_of(sound, runs))
    return runs


@pytest.fixture
def study(whole: Path, tmp_path: Path, invented: None) -> Path:
    """The folder of an invented study, in a runs folder ``runs`` that a test may change."""
    shutil.copytree(whole, tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("mini/GAMMA/mixstyle/tune-*")
    return folder


# --- what is searched -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(discover()))
def test_every_method_as_it_is_lies_in_its_space(name: str) -> None:
    info = find_method(name)
    resolved = load_protocol("phantom").resolve("bench")
    space = space_of(info, {})
    assert set(HARNESS) <= set(space)
    default = default_params(space, info.configure(), resolved)
    assert settings_of(default, space, default, resolved) == ({}, {})
    for key, domain in space.items():
        for value in () if not isinstance(domain, tuple) else domain:
            info.configure({key: json.dumps(value)})


def test_a_point_changes_the_methods_own_stages_only() -> None:
    info, resolved = find_method("mixstyle"), load_protocol("phantom").resolve("bench")
    space = space_of(info, {"alpha": "0.2"})
    assert "alpha" not in space
    default = default_params(space, info.configure(), resolved)
    point = {**default, "lr_factor": 0.5, "augmentation": 0.123456, "layers": '["layer0"]'}
    config, preset = settings_of(point, space, default, resolved)
    assert config == {"layers": ["layer0"]}
    assert preset == {
        "stages.tumor-coarse.lr": 0.005,
        "stages.tumor-fine.lr": 0.005,
        "stages.tumor-coarse.augmentation": 0.1235,
        "stages.tumor-fine.augmentation": 0.1235,
    }
    plain = resolved.protocol.resolve("bench")
    tuned = resolved.protocol.resolve("bench", {key: json.dumps(value) for key, value in preset.items()})
    assert tuned.identity("pancreas-fine") == plain.identity("pancreas-fine")
    assert tuned.identity("tumor-fine") != plain.identity("tumor-fine")


def test_settings_that_came_later_change_no_key_of_a_committed_record() -> None:
    folders = sorted(LEADERBOARDS.glob("phantom/*/*/seed*/*/result.json"))
    assert folders
    resolved = load_protocol("phantom").resolve("bench")
    for path in folders:
        stated = read_json(path.parent / "spec.json")
        assert resolved.identity(path.parent.name) == stated["protocol"]
    by_hand = load_protocol("phantom").resolve("bench", {"stages.tumor-fine.augmentation": "1.5"})
    assert by_hand.modified
    assert by_hand.identity("tumor-fine")["preset"]["stages"]["tumor-fine"]["augmentation"] == 1.5


def test_strength_of_the_augmentation() -> None:
    plain = Augmentation(rotation_degrees=15, noise_sd=0.1)
    assert strengthened(plain, 1.0) is plain
    assert strengthened(plain, 0.0) == plain.model_copy(update={"rotation_degrees": 0.0, "noise_sd": 0.0})
    assert strengthened(plain, 20.0).rotation_degrees == 180
    assert strengthened(plain, 2.0).noise_sd == pytest.approx(0.2)


# --- the study --------------------------------------------------------------------------------------------------------------------


def test_the_best_complete_trial_is_selected(study: Path) -> None:
    rows = read_trials(study)
    assert sum(row.counts for row in rows) == TRIALS == len(rows)
    assert (rows[0].config, rows[0].preset) == ({}, {})
    complete = [row for row in rows if row.state == "complete"]
    best = select(rows, TRIALS)
    assert best.value == max(row.value or 0 for row in complete) > (rows[0].value or 1)
    content = yaml.safe_load((study / "best.yaml").read_text())
    assert content["preset"] == best.preset
    assert content["tuned"]["trials"] == TRIALS
    assert read_status(study).state == "done"


def test_equal_seeds_give_equal_trials_and_others_do_not(sound: Mini, tmp_path: Path, study: Path) -> None:
    again = tune(request_of(sound, tmp_path / "again"))
    assert again.name == study.name
    for name in ("trials.jsonl", "best.yaml"):
        assert (again / name).read_bytes() == (study / name).read_bytes()
    other = tune(request_of(sound, tmp_path / "other", seed=1), 3)
    assert [row.params for row in read_trials(other)[1:]] != [row.params for row in read_trials(study)[1:3]]


def test_pruning_follows_from_the_rows_alone(
    sound: Mini, tmp_path: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_trials(study)
    pruned = [row for row in rows if row.state == "pruned"]
    assert pruned
    for row in rows:
        earlier = [other.validations for other in rows[: row.number] if other.state == "complete"]
        for step, value in enumerate(row.validations[:3]):  # the fourth is the end
            hopeless = len(earlier) >= 5 and value < median(values[step] for values in earlier)
            assert hopeless == (row.state == "pruned" and step == len(row.validations) - 1)

    def late(*arguments: Any) -> None:
        """A training that had ended before the signal came."""
        invent(*arguments[:-1], lambda: False)

    monkeypatch.setattr("dgbench.tuning.trial.run_job", late)
    again = tune(request_of(sound, tmp_path / "late"))
    assert (again / "trials.jsonl").read_bytes() == (study / "trials.jsonl").read_bytes()


@pytest.mark.parametrize("moment", [3, 24, 61])
def test_a_killed_study_does_what_it_would_have_done(
    sound: Mini, tmp_path: Path, study: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The end comes before the ``moment``-th line is added to the journal of trials."""
    from optuna.storages.journal import JournalFileBackend

    class Killed(BaseException):
        pass

    left, append = moment, JournalFileBackend.append_logs

    def dying(self: Any, logs: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        append(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", dying)
    request = request_of(sound, tmp_path / "killed")
    with pytest.raises(Killed):
        tune(request)
    with (plan_study(request, TRIALS).folder / "journal.jsonl").open("ab") as file:
        file.write(b'{"half a line')
    again = tune(request)
    assert (again / "trials.jsonl").read_bytes() == (study / "trials.jsonl").read_bytes()


def test_more_trials_go_further_and_fewer_select_among_the_first(sound: Mini, tmp_path: Path, study: Path) -> None:
    before = read_trials(study)
    request = request_of(sound, tmp_path / "runs")
    tune(request, TRIALS + 2)
    assert read_trials(study)[:TRIALS] == before
    assert len(read_trials(study)) == TRIALS + 2
    tune(request, 1)
    assert yaml.safe_load((study / "best.yaml").read_text())["preset"] == {}


def test_failed_trials_are_published_and_do_not_count(
    sound: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fragile(function: Any, job: TrainJob, *rest: Any) -> None:
        if job.stage == "lesion" and job.resolved.preset.stages["lesion"].lr != 3.0e-3:
            raise Diverged("the loss is not finite")
        invent(function, job, *rest)

    monkeypatch.setattr("dgbench.tuning.trial.run_job", fragile)
    monkeypatch.setattr(study_module, "FAILURES_IN_A_ROW", 3)
    request = request_of(sound, tmp_path / "runs")
    with pytest.raises(DgbenchError, match="trials 1 to 3 failed one after another; the last: the loss is not finite"):
        tune(request, 3)
    folder = plan_study(request, 3).folder
    assert [row.state for row in read_trials(folder)] == ["complete", "failed", "failed", "failed"]
    assert read_trials(folder)[1].reason == "the loss is not finite"
    monkeypatch.setattr(study_module, "FAILURES_IN_A_ROW", 4)
    monkeypatch.setattr("dgbench.tuning.trial.run_job", invent)
    rows = read_trials(tune(request, 3))
    assert [row.state for row in rows] == ["complete", "failed", "failed", "failed", "complete", "complete"]
    with pytest.raises(DgbenchError, match="3 of 4 trials are done"):
        select(rows, 4)


def test_a_method_that_fails_as_it_is_stops_the_study(
    sound: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise DgbenchError("no memory")

    request = request_of(sound, tmp_path / "runs")
    monkeypatch.setattr("dgbench.tuning.trial.run_job", broken)
    with pytest.raises(DgbenchError, match="no memory"):
        tune(request, 2)
    assert read_status(plan_study(request, 2).folder).state == "failed"
    monkeypatch.setattr("dgbench.tuning.trial.run_job", invent)
    assert [row.state for row in read_trials(tune(request, 2))] == ["complete", "complete"]


def test_what_is_trained_already_is_not_trained_again(sound: Mini, tmp_path: Path, invented: None) -> None:
    request = request_of(sound, tmp_path / "runs")
    plan = plan_run(request)
    for job in plan.own.training:  # the run without tuning, trained to another score
        write_json(job.folder / "spec.json", {"key": job.key, **job.identity})
        steps = sorted(validation_steps(job.steps, 2))
        for step in steps:
            append_jsonl(
                job.folder / "validation.jsonl",
                *({"step": step, "case": case, "dsc": 0.123} for case in job.split.validation),
            )
        write_json(job.folder / "result.json", {"best_step": steps[0], "best_dsc": 0.123})
        write_json(job.folder / "status.json", {"state": "done"})
    assert [row.value for row in read_trials(tune(request, 1))] == [0.123]


# --- a run with what was selected -------------------------------------------------------------------------------------------------


def test_a_run_takes_the_configuration_and_is_not_modified(sound: Mini, tmp_path: Path, study: Path) -> None:
    request = request_of(sound, tmp_path / "runs", config=study / "best.yaml")
    plan, plain = plan_run(request), plan_run(replace(request, config=None))
    best = select(read_trials(study), TRIALS)
    assert plan.own.spec.tuned is not None
    assert (plan.own.spec.tuned.trials, plan.own.spec.tuned.settings) == (TRIALS, ())
    assert not plan.own.spec.protocol.modified
    assert plan.own.spec.protocol == plain.own.spec.protocol
    assert {job.stage: job.key for job in plan.own.training} == {name: one.key for name, one in best.stages.items()}
    by_hand = replace(
        request, config=None, overrides=tuple(f"preset.{key}={value}" for key, value in best.preset.items())
    )
    assert plan_run(by_hand).own.spec.protocol.modified
    assert plan_run(replace(request, overrides=("preset.workers=1",))).own.spec.tuned is not None
    for text in ("p=0.123", "preset.stages.lesion.lr=0.004"):
        changed = plan_run(replace(request, overrides=(text,)))
        assert changed.own.spec.tuned is None
        assert changed.own.spec.protocol.modified
        if text.startswith("p="):
            assert changed.own.spec.method.config["p"] == 0.123
    assert plan_run(replace(request, seed=5)).own.spec.tuned == plan.own.spec.tuned


def test_a_tuned_run_of_a_ranked_preset_is_ranked(sound: Mini, tmp_path: Path, study: Path) -> None:
    content = yaml.safe_load(sound.protocol.read_text())
    content["presets"]["mini"]["ranked"] = True
    (tmp_path / "ranked.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    request = request_of(sound, tmp_path / "runs", protocol=str(tmp_path / "ranked.yaml"), config=study / "best.yaml")
    assert plan_run(request).own.spec.protocol.ranked
    preset = select(read_trials(study), TRIALS).preset
    by_hand = replace(request, config=None, overrides=tuple(f"preset.{key}={value}" for key, value in preset.items()))
    assert not plan_run(by_hand).own.spec.protocol.ranked


def test_a_study_on_other_data_is_refused(mini: Mini, sound: Mini, tmp_path: Path, study: Path) -> None:
    shutil.copy(mini.data / "ALPHA/imagesTr/case_00.nii.gz", mini.data / "ALPHA/imagesTr/case_01.nii.gz")
    with pytest.raises(DgbenchError, match=r"was tuned on other data \(ALPHA: "):
        plan_run(request_of(mini, tmp_path / "runs", config=study / "best.yaml"))


def test_a_tuned_run_that_changes_nothing_is_another_run(sound: Mini, tmp_path: Path, invented: None) -> None:
    request = request_of(sound, tmp_path / "runs")
    folder = tune(request, 1)
    tuned, plain = plan_run(replace(request, config=folder / "best.yaml")), plan_run(request)
    assert [job.key for job in tuned.own.training] == [job.key for job in plain.own.training]
    assert tuned.own.folder != plain.own.folder


def test_the_file_must_be_what_the_study_selects(
    sound: Mini, tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = study / "best.yaml"
    arguments = run_arguments(sound, tmp_path / "runs", method="mixstyle", config=str(best), preset="mini")
    good = yaml.safe_load(best.read_text())

    def answer(**changes: Any) -> str:
        best.write_text(yaml.safe_dump({**good, **changes}))
        return mistake(capsys, [*arguments, "--dry-run"])

    assert "is not what the study beside it selects" in answer(preset={"stages.organ.lr": 0.5})
    assert "is not what the study beside it selects" in answer(config={"p": 0.5})
    assert f"{TRIALS} of 500 trials are done" in answer(tuned={**good["tuned"], "trials": 500})
    assert "is for method erm, not mixstyle" in answer(method="erm")
    assert "is for held-out center ALPHA, not GAMMA — tune for GAMMA too" in answer(heldout="ALPHA")
    assert "colour: Extra inputs are not permitted" in answer(colour="red")
    assert "method 'mixstyle' has no such key" in answer(tuned=None, config={"q": 1})
    assert "unknown key 'widht'" in answer(tuned=None, preset={"widht": 8})
    (study / "trials.jsonl").unlink()
    assert "trials.jsonl: no such file — all trials are published" in answer()
    write_json(study / "study.json", {**read_json(study / "study.json"), "objective": "held-out DSC"})
    assert "its key does not follow from what it says" in answer()
    best.unlink()
    assert "cannot be read" in mistake(capsys, [*arguments, "--dry-run"])


def test_a_changed_value_of_a_trial_is_noticed(study: Path) -> None:
    rows = read_jsonl(study / "trials.jsonl")
    rows[0]["value"] += 0.1
    (study / "trials.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DgbenchError, match="the value of trial 0 is not the mean of its stages"):
        read_trials(study)


def test_rows_of_a_leaderboard_are_default_or_tuned(sound: Mini, tmp_path: Path, study: Path) -> None:
    request = request_of(sound, tmp_path / "runs")
    tuned = plan_run(replace(request, config=study / "best.yaml")).own.spec
    plain = plan_run(request).own.spec
    elsewhere = RunSpec.model_validate({**tuned.dump(), "method": {**tuned.dump()["method"], "config": {"p": 0.3}}})
    assert RowKey.of(elsewhere) == RowKey.of(tuned) != RowKey.of(plain)
    labels = row_labels([RowKey.of(tuned), RowKey.of(plain)])
    assert sorted(labels.values()) == ["mixstyle (default)", f"mixstyle (tuned({TRIALS}))"]
    assert row_labels([RowKey.of(plain)]) == {RowKey.of(plain): "mixstyle"}
    assert tuning_command("dgbench run --method m --heldout A --config x/best.yaml --seed 3 --threads 1", "B", 7) == (
        "dgbench tune --method m --threads 1 --heldout B --seed 3 --trials 7"
    )
    assert "tuned" not in plain.dump()


# --- the command ------------------------------------------------------------------------------------------------------------------


def arguments_of(mini: Mini, runs: Path, trials: int = 3, *more: str) -> list[str]:
    command = run_arguments(mini, runs, method="mixstyle")
    return ["tune", *command[1:], f"--trials={trials}", *more]


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


# --- with trainings ---------------------------------------------------------------------------------------------------------------

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


@pytest.mark.slow
def test_a_tuned_run_is_submitted_with_its_study_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, records = tmp_path / "runs", tmp_path / "records"
    options = ["--method=mixstyle", "--heldout=RENJI", "--preset=tiny", "--device=cpu", "--threads=1", "--no-mlflow"]
    options += [f"--runs={runs}", f"--cache={tmp_path / 'cache'}"]
    assert call(["tune", *options, "--trials=2"]) == 0
    (best,) = runs.glob("phantom/RENJI/mixstyle/tune-*/best.yaml")
    assert call(["run", *options, f"--config={best}"]) == 0
    (run,) = runs.glob("phantom/RENJI/mixstyle/seed*")
    chosen = select(read_trials(best.parent), 2)
    (trial,) = (
        path.parent
        for path in best.parent.glob("trials/*/*/*/seed*/tumor-fine/spec.json")
        if read_json(path)["key"] == chosen.stages["tumor-fine"].key
    )
    assert (run / "tumor-fine" / "times.jsonl").read_bytes() == (trial / "times.jsonl").read_bytes(), "taken over"
    assert call(["submit", str(runs), f"--to={records}", "--preset=tiny"]) == 0
    (record,) = records.glob("phantom/RENJI/mixstyle/seed*")
    assert {path.name for path in (record / "tuning").iterdir()} == set(KEPT_OF_STUDY)
    command = read_json(record / "spec.json")["command"]
    assert f"--config {record.relative_to(records)}/tuning/best.yaml" in command
    capsys.readouterr()
    assert call(["verify", str(records)]) == 0
    assert call(["mlflow", "sync", f"--runs={runs}"]) == 0
    assert "5 runs added" not in capsys.readouterr().err
    text = (record / "tuning" / "trials.jsonl").read_text()
    (record / "tuning" / "trials.jsonl").write_text(text.replace('"number":1', '"number":7'))
    assert call(["verify", str(records)]) == 2
