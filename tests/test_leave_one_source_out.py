"""Tuning by leave-one-source-out: every source center in turn is what a held-out one would be, and the held-out one stays unread."""

import json
import os
import shlex
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from cli_calls import mistake, run_arguments
from training_fixtures import Mini, quiet
from tune_studies import TRIALS, arguments_of, invent, request_of, tune

from dgbench.atomic import read_json, read_jsonl, write_json
from dgbench.cli import call
from dgbench.data.preparation import prepare_case
from dgbench.data.splits import center_of
from dgbench.errors import DgbenchError, HeldOutAccessError, Interrupted
from dgbench.evaluation.job import load_trained
from dgbench.evaluation.left_out import judge_left_out
from dgbench.launch.plan import plan_run, plan_without
from dgbench.launch.worker import JobDied
from dgbench.leaderboard.rows import RowKey, row_labels, tuning_command
from dgbench.store.folder import TunedRef
from dgbench.store.selection import Selection
from dgbench.store.study import LEFT_OUT, StudySpec, read_configuration, read_trials, select
from dgbench.training.loop import train
from dgbench.training.validation import stage_predictor, validate
from dgbench.tuning.study import plan_study
from dgbench.tuning.trial import Watch, pieces_of, values_of

LOSO = Selection.LEAVE_ONE_SOURCE_OUT
SOURCES = ("ALPHA", "BETA", "DELTA")
TRAININGS = [f"{stage} without {source}" for source in SOURCES for stage in ("organ", "lesion")]


@pytest.fixture(scope="module")
def four(sound: Mini, tmp_path_factory: pytest.TempPathFactory) -> Mini:
    """A fourth center, so that three are sources where GAMMA is held out."""
    folder = tmp_path_factory.mktemp("four")
    shutil.copytree(sound.data, folder / "data")
    shutil.copytree(sound.data / "BETA", folder / "data" / "DELTA")
    content = yaml.safe_load(sound.protocol.read_text())
    content["centers"].append("DELTA")
    protocol = folder / "mini.yaml"
    protocol.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return Mini(folder / "data", protocol, folder / "cache")


@pytest.fixture
def study(four: Mini, tmp_path: Path, invented: None) -> Path:
    return tune(request_of(four, tmp_path / "runs"), 4, LOSO)


def test_every_source_is_left_out_once_and_neither_trained_nor_validated_on(four: Mini, tmp_path: Path) -> None:
    run = plan_run(request_of(four, tmp_path / "runs"))
    pieces = pieces_of(run, LOSO)
    assert [piece.name for piece in pieces] == TRAININGS
    keys = {piece.training.key for piece in pieces} | {training.key for training in run.own.training}
    assert len(keys) == len(pieces) + 2
    for piece in pieces:
        source, split = piece.name.rpartition(" ")[2], piece.training.split
        others = [name for name in SOURCES if name != source]
        assert {case.center for case in piece.left_out} == {source}
        assert len(piece.left_out) == 5
        assert split.sources == tuple(others)
        assert (
            {center_of(case) for case in split.train} == {center_of(case) for case in split.validation} == set(others)
        )
        assert {case.center for case in piece.training.cases} == set(others)
        assert split.train == tuple(case for case in run.split.train if center_of(case) != source)


def test_a_trial_is_worth_the_mean_at_the_centers_left_out(study: Path) -> None:
    rows = read_trials(study)
    assert list(rows[0].stages) == TRAININGS
    assert rows[0].value == np.mean([one.best_dsc for one in rows[0].stages.values()])
    assert len(rows[0].validations) == len(TRAININGS)
    assert StudySpec.read(study).selection is LOSO
    assert "leave-one-source-out" in (study / "best.yaml").read_text()
    assert StudySpec.read(study).command.endswith("--trials 4 --selection leave-one-source-out")


def test_the_two_selections_are_two_studies_and_may_choose_differently(
    four: Mini, tmp_path: Path, invented: None
) -> None:
    """Source validation is best at twice the learning rate, the centers left out at half of it."""
    request = request_of(four, tmp_path / "runs")
    folders = [tune(request, TRIALS, selection) for selection in Selection]
    assert folders[0] != folders[1]
    factors = [select(read_trials(folder), TRIALS).params["lr_factor"] for folder in folders]
    assert float(str(factors[0])) > 1.4
    assert float(str(factors[1])) < 0.8


def test_a_trial_is_given_up_between_trainings_only(four: Mini, tmp_path: Path, invented: None) -> None:
    rows = read_trials(tune(request_of(four, tmp_path / "runs"), 12, LOSO))
    pruned = [row for row in rows if row.state == "pruned"]
    assert pruned
    assert all(0 < len(row.validations) < len(TRAININGS) for row in pruned)


def test_a_study_stopped_before_a_training_is_judged_goes_on(
    four: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invented: None
) -> None:
    whole = tune(request_of(four, tmp_path / "whole"), 3, LOSO)
    judged = 0

    def stopping(function: Any, content: Any, *others: Any) -> None:
        nonlocal judged
        judged += isinstance(content, tuple)
        if judged in (2, 9) and isinstance(content, tuple):
            raise Interrupted("stopped")
        invent(function, content, *others)

    monkeypatch.setattr("dgbench.tuning.trial.run_job", stopping)
    for _ in range(2):
        with pytest.raises(Interrupted):
            tune(request_of(four, tmp_path / "runs"), 3, LOSO)
    again = tune(request_of(four, tmp_path / "runs"), 3, LOSO)
    assert again.name == whole.name
    assert (again / "trials.jsonl").read_bytes() == (whole / "trials.jsonl").read_bytes()
    assert (again / "best.yaml").read_bytes() == (whole / "best.yaml").read_bytes()


def test_a_judgement_of_another_training_does_not_count(four: Mini, tmp_path: Path) -> None:
    piece = pieces_of(plan_run(request_of(four, tmp_path / "runs")), LOSO)[0]
    write_json(piece.training.folder / LEFT_OUT, {"key": "0" * 64, "dsc": 0.9, "cases": {}})
    assert piece.dsc is None
    assert values_of((piece,)) == []
    write_json(piece.training.folder / LEFT_OUT, {"key": piece.training.key, "dsc": 0.9, "cases": {}})
    assert values_of((piece,)) == [0.9]


def test_a_real_training_is_judged_on_the_cases_left_out_and_can_open_no_other(
    four: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(four, tmp_path / "runs")
    piece = pieces_of(plan_run(request), LOSO)[-1]
    train(piece.training, quiet)
    validated = read_jsonl(piece.training.folder / "validation.jsonl")
    assert {row["center"] for row in validated} == {"ALPHA", "BETA"}
    judge_left_out(piece.training, piece.left_out, lambda done, total: None)
    told = read_json(piece.training.folder / LEFT_OUT)
    assert list(told["cases"]) == [case.id for case in piece.left_out]
    assert told["dsc"] == np.mean(list(told["cases"].values()))
    assert 0 < told["dsc"] < 1
    training, last = piece.training, piece.left_out[-1]
    method = load_trained(training, "source-val", torch.device("cpu"))
    predictor = stage_predictor(method, "lesion", training.resolved, torch.device("cpu"), training.precision, tta=False)
    alone = prepare_case(last, training.resolved.protocol, training.cache)
    assert validate([alone], "lesion", predictor, training.resolved) == [told["cases"][last.id]]
    held_out = plan_run(request).centers["GAMMA"].cases[0]
    another = tmp_path / "runs" / "mini" / "GAMMA" / "erm" / "seed0-12345678" / "evaluation"
    write_json(another / "spec.json", {})
    for forbidden in (
        held_out.image,
        prepare_case(held_out, training.resolved.protocol, training.cache).folder / "image.npy",
        another / "spec.json",
    ):
        assert forbidden.is_file()

        def peek(*arguments: Any, path: Path = forbidden) -> list[float]:
            path.read_bytes()
            return validate(*arguments)

        monkeypatch.setattr("dgbench.evaluation.left_out.validate", peek)
        with pytest.raises(HeldOutAccessError):
            judge_left_out(replace(training, runs=tmp_path / "runs"), piece.left_out, lambda done, total: None)


def test_a_judge_that_dies_is_started_once_more(
    four: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invented: None
) -> None:
    whole = tune(request_of(four, tmp_path / "whole"), 2, LOSO)
    deaths = iter((True, False, False, True))

    def dying(function: Any, content: Any, *others: Any) -> None:
        if isinstance(content, tuple) and next(deaths, False):
            raise JobDied("killed")
        invent(function, content, *others)

    monkeypatch.setattr("dgbench.tuning.trial.run_job", dying)
    again = tune(request_of(four, tmp_path / "runs"), 2, LOSO)
    assert (again / "trials.jsonl").read_bytes() == (whole / "trials.jsonl").read_bytes()
    assert "killed — trying once more" in (again / "log.txt").read_text()


def test_support_centers_are_no_sources_to_leave_out(four: Mini, tmp_path: Path, invented: None) -> None:
    """They help every training, where a stage wants them."""
    content = yaml.safe_load(four.protocol.read_text())
    content |= {"centers": ["ALPHA", "BETA", "DELTA", "GAMMA"], "support_centers": ["HELP"]}
    content["stages"]["lesion"]["support_centers"] = True
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    shutil.copytree(four.data, tmp_path / "data")
    shutil.copytree(four.data / "BETA", tmp_path / "data" / "HELP")
    request = request_of(Mini(tmp_path / "data", tmp_path / "mini.yaml", tmp_path / "cache"), tmp_path / "runs")
    for piece in pieces_of(plan_run(request), LOSO):
        assert ("HELP" in piece.training.split.sources) == piece.name.startswith("lesion")
    study = tune(request, 2, LOSO)
    assert sorted(StudySpec.read(study).trainings) == sorted(read_trials(study)[0].stages) == sorted(TRAININGS)
    assert read_configuration(study / "best.yaml", "mixstyle", "GAMMA").tuned is not None


def test_the_outcome_names_the_step_that_source_validation_selected(four: Mini, tmp_path: Path, invented: None) -> None:
    run = plan_run(request_of(four, tmp_path / "runs"))
    pieces = pieces_of(run, LOSO)
    training = pieces[0].training
    write_json(training.folder / "spec.json", {"key": training.key})
    write_json(training.folder / "status.json", {"state": "done"})
    write_json(training.folder / "result.json", {"best_step": 4, "best_dsc": 0.7})
    watch = Watch(cast("Any", None), pieces)
    assert watch.outcomes() == {}
    write_json(training.folder / LEFT_OUT, {"key": training.key, "dsc": 0.3, "cases": {}})
    (found,) = watch.outcomes().values()
    assert (found.best_step, found.best_dsc) == (4, 0.3)


def test_a_run_says_by_what_it_was_tuned_and_rows_are_told_apart(four: Mini, tmp_path: Path, study: Path) -> None:
    request = request_of(four, tmp_path / "runs", config=study / "best.yaml")
    spec = plan_run(request).own.spec
    assert spec.tuned is not None
    assert spec.tuned.selection is LOSO
    assert spec.dump()["tuned"]["selection"] == "leave-one-source-out"
    plain = spec.model_copy(update={"tuned": spec.tuned.model_copy(update={"selection": Selection.SOURCE_VAL})})
    labels = row_labels([RowKey.of(spec), RowKey.of(plain)])
    assert list(labels.values()) == ["mixstyle (tuned(4, leave-one-source-out))", "mixstyle (tuned(4))"]
    assert tuning_command("dgbench run --method m --heldout A", "B", spec.tuned) == (
        "dgbench tune --method m --heldout B --seed 0 --trials 4 --selection leave-one-source-out"
    )


def test_the_usual_selection_is_in_no_key() -> None:
    assert set(TunedRef(trials=2, study="0" * 64).model_dump(mode="json")) == {"trials", "study", "settings"}


def test_a_trial_that_lacks_a_center_is_refused(study: Path) -> None:
    """Who drops the center at which a setting fails would select another one."""
    lines = [json.loads(line) for line in (study / "trials.jsonl").read_text().splitlines()]
    del lines[0]["stages"]["lesion without DELTA"]
    lines[0]["value"] = float(np.mean([one["best_dsc"] for one in lines[0]["stages"].values()]))
    (study / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DgbenchError, match=r"trial 0 lacks a training, or has one too many \(lesion without DELTA\)"):
        read_configuration(study / "best.yaml", "mixstyle", "GAMMA")


def test_two_sources_are_too_few(sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, arguments_of(sound, tmp_path / "runs", 2, "--selection=leave-one-source-out"))
    assert line == (
        "--selection leave-one-source-out needs 3 source centers or more; with GAMMA held out, protocol mini has ALPHA, BETA — use "
        "--selection source-val"
    )
    assert not (tmp_path / "runs").exists()


def test_a_source_whose_absence_leaves_no_validation_is_named(four: Mini, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(four.data, data)
    for name in ("ALPHA", "BETA"):
        for kind in ("imagesTr", "labelsTr"):
            for path in sorted((data / name / kind).iterdir())[3:]:
                path.unlink()
    small = Mini(data, four.protocol, tmp_path / "cache")
    with pytest.raises(DgbenchError, match="loco-GAMMA: without DELTA no source center has 4 cases or more"):
        plan_study(request_of(small, tmp_path / "runs"), 2, LOSO)
    assert plan_without(plan_run(request_of(small, tmp_path / "runs")), "ALPHA").training


def test_the_command_offers_it(four: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], invented: None) -> None:
    arguments = arguments_of(four, tmp_path / "runs", 2, "--selection=leave-one-source-out")
    assert call([*arguments, "--dry-run"]) == 0
    assert "2 trials, selected by leave-one-source-out" in capsys.readouterr().out
    assert call([*arguments, "--no-mlflow"]) == 0
    out = capsys.readouterr().out
    assert "lesion without DELTA" in out
    assert "DSC in points: leave-one-source-out" in out


def test_a_study_on_a_node_selects_as_it_was_asked_to(
    four: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invented: None
) -> None:
    for name, text in {"sbatch": "echo 7", "squeue": "true"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    arguments = arguments_of(four, tmp_path / "runs", 2, "--selection=leave-one-source-out", "--launcher=slurm")
    assert call(arguments) == 0
    (script,) = (tmp_path / "runs").glob("mini/GAMMA/mixstyle/tune-*/slurm/study.sh")
    (line,) = [line for line in script.read_text().splitlines() if line.endswith("&")]
    assert call(shlex.split(line.removesuffix("&"))[1:]) == 0
    assert [row.state for row in read_trials(script.parents[1])] == ["complete", "complete"]


@pytest.mark.slow
def test_a_run_that_was_tuned_so_is_submitted_verified_and_mirrored(
    four: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, study: Path
) -> None:
    runs, records = tmp_path / "runs", tmp_path / "records"
    command = run_arguments(four, runs, method="mixstyle", config=str(study / "best.yaml"))
    assert call(command) == 0
    (run,) = runs.glob("mini/GAMMA/mixstyle/seed*")
    naming = [f"--protocol={four.protocol}"]
    assert call(["submit", str(run), f"--to={records}", "--preset=mini", *naming]) == 0
    assert call(["verify", str(records), *naming]) == 0
    assert call(["mlflow", "sync", f"--runs={runs}"]) == 0
    capsys.readouterr()
    (trials,) = records.glob("mini/GAMMA/mixstyle/seed*/tuning/trials.jsonl")
    trials.write_text(trials.read_text().replace("lesion without DELTA", "lesion without GAMMA"))
    assert call(["verify", str(records), *naming]) == 2
