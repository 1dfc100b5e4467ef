"""Tuning: what is searched, what a restart changes (nothing), and what is selected."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import yaml
from training_fixtures import Mini
from tune_studies import TRIALS, invent, request_of, tune

from dgbench.atomic import append_jsonl, read_json, write_json
from dgbench.data.augmentation import strengthened
from dgbench.errors import DgbenchError, Diverged
from dgbench.launch.plan import plan_run
from dgbench.protocol import Augmentation, load_protocol
from dgbench.registry import discover, find_method
from dgbench.store.folder import read_status
from dgbench.store.study import read_trials, select
from dgbench.training.job import TrainJob
from dgbench.training.selection import validation_steps
from dgbench.tuning import study as study_module
from dgbench.tuning.space import HARNESS, default_params, settings_of, space_of
from dgbench.tuning.study import plan_study

LEADERBOARDS = Path(__file__).parent.parent / "leaderboards"


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
