"""How a run takes what a study selected: the file it is given, the row that it belongs to, and its record."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_calls import mistake, run_arguments
from training_fixtures import Mini
from tune_studies import TRIALS, request_of, tune

from dgbench.atomic import read_json, read_jsonl, write_json
from dgbench.cli import call
from dgbench.errors import DgbenchError
from dgbench.launch.adopt import take_over_trials
from dgbench.launch.jobs import is_trained
from dgbench.launch.plan import plan_run
from dgbench.launch.settings import assign_configs
from dgbench.leaderboard.rows import RowKey, row_labels, tuning_command
from dgbench.store.folder import RunSpec, TunedRef
from dgbench.store.lock import FolderLock
from dgbench.store.study import KEPT_OF_STUDY, read_trials, select


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
    assert tuning_command(
        "dgbench run --method m --heldout A --config x/best.yaml --seed 3 --threads 1",
        "B",
        TunedRef(trials=7, study="0" * 64),
    ) == ("dgbench tune --method m --threads 1 --heldout B --seed 3 --trials 7")
    assert "tuned" not in plain.dump()


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


def test_a_sweep_takes_for_each_cell_the_file_that_names_it(tmp_path: Path) -> None:
    def written(name: str, **content: Any) -> Path:
        (tmp_path / name).write_text(yaml.safe_dump(content), encoding="utf-8")
        return tmp_path / name

    cells = [("erm", "A"), ("erm", "B"), ("mixstyle", "A")]
    both, erm_b = written("a.yaml", heldout="A"), written("b.yaml", method="erm", heldout="B")
    assert assign_configs([], cells) == dict.fromkeys(cells)
    assert list(assign_configs([both, erm_b], cells).values()) == [both, erm_b, both]
    everywhere = written("c.yaml")
    assert set(assign_configs([everywhere], cells).values()) == {everywhere}
    for files, message in (
        ([both], "--config: no file is for method erm with B held out — each cell of a sweep takes one"),
        ([both, erm_b, everywhere], f"--config: {both} and {everywhere} are for method erm with A held out"),
        (
            [both, erm_b, other := written("d.yaml", method="dofe")],
            f"--config {other}: is for a method or center that this",
        ),
        ([written("e.yaml", heldouts="A")], "--config .*e.yaml: heldouts"),
    ):
        with pytest.raises(DgbenchError, match=message):
            assign_configs(files, cells)


def test_a_tuned_sweep_is_of_tuned_runs_and_takes_over_the_trainings_of_the_trial(
    sound: Mini, tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("organ", "lesion"):  # invented trainings have no weights, without which nothing is taken over
        for folder in (study / "trials").glob(f"*/*/*/seed*/{stage}"):
            (folder / "best-1.safetensors").touch()
    begun: list[Any] = []
    monkeypatch.setattr("dgbench.cli.sweep.launch", lambda graph, *_, **__: begun.append(graph))
    command = [word for word in run_arguments(sound, tmp_path / "runs", method="mixstyle") if "no-mlflow" not in word]
    assert call(["sweep", *command[1:], "--seeds=2", f"--config={study / 'best.yaml'}"]) == 0
    (graph,) = begun
    first, second = (plan.own for plan in graph.plans)
    assert [part.spec.tuned.trials for part in (first, second)] == [TRIALS, TRIALS]
    assert {job.stage for job in first.training if is_trained(job)} == {"organ", "lesion"}
    assert not any(is_trained(job) for job in second.training)
    again = plan_run(request_of(sound, tmp_path / "others", config=study / "best.yaml"))
    with FolderLock(again.own.training[0].folder):  # another sweep is at it: this one goes on with the rest
        take_over_trials(again)
    assert [is_trained(job) for job in again.own.training] == [False, True]
    missing = mistake(capsys, ["plan", *command[1:], "--heldout=ALPHA", f"--config={study / 'best.yaml'}"])
    assert missing.startswith("--config: no file is for method mixstyle with ALPHA held out")
