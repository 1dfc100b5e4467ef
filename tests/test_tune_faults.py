"""What can go wrong while a study runs and after it: kills, a full disk, trainings that diverge, settings that do not go together, a
configuration that would be removed, and a tuned row that is taken for the baseline."""

import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pytest
from leaderboard_runs import CENTERS, add_run, cell, only_table, terminal
from leaderboard_runs import compiled as compiled_of
from pydantic import model_validator
from training_fixtures import KillAtWrite, Mini, alone
from tune_studies import invent

from dgbench.errors import DgbenchError, Diverged, Interrupted
from dgbench.info import MethodConfig, MethodInfo, Range
from dgbench.launch.execute import forget
from dgbench.launch.plan import RunRequest, plan_run
from dgbench.launch.ranks import run_ranks
from dgbench.launch.worker import JobDied, JobProcess
from dgbench.method import Method
from dgbench.store.folder import read_status
from dgbench.store.selection import Selection
from dgbench.store.study import BEST, TRIALS, TrialRow, read_trials
from dgbench.training.job import TrainJob
from dgbench.training.loop import train
from dgbench.tuning import study as studies
from dgbench.tuning import trial as trial_module
from dgbench.tuning.study import plan_study, run_study
from dgbench.tuning.trial import pieces_of

N_TRIALS = 3


class PickyConfig(MethodConfig):
    mode: Literal["one", "two", "three"] = "one"
    level: float = 1.0

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {"mode": ("one", "two", "three")}

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.mode != "one":
            raise ValueError(f"mode={self.mode} does not go with the level")
        return self


class Picky(Method[PickyConfig]):
    info = MethodInfo(
        name="picky", target="test_tune_faults:Picky", title="Picky", paper="none", year=2026, config=PickyConfig
    )


def at_once(function: Any, content: Any, *_: Any) -> None:
    """Do a job in this process."""
    function(open_runs(content), lambda *_: None)


def open_runs(job: TrainJob) -> TrainJob:
    """``job`` without the seal on the runs folder, in which the lock of the study has its heartbeat: here both are one process."""
    return replace(job, runs=None)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module, "run_job", at_once)


def request_of(mini: Mini, runs: Path, method: str = "erm") -> RunRequest:
    return RunRequest(
        method=method,
        heldout="GAMMA",
        protocol=str(mini.protocol),
        preset="mini",
        data=mini.data,
        device="cpu",
        threads=1,
        overrides=("preset.stages.organ.draws=4", "preset.stages.lesion.draws=4"),
        runs=runs,
        cache=mini.cache,
    )


def tune(request: RunRequest, trials: int = N_TRIALS) -> Path:
    plan = plan_study(request, trials)
    run_study(plan, trials, lambda _: None)
    return plan.folder


def published(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (TRIALS, BEST)}


@pytest.fixture(scope="module")
def whole(sound: Mini, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_module, "run_job", at_once)
        return tune(request_of(sound, tmp_path_factory.mktemp("whole")))


def failing_in(number: int, error: Exception) -> Any:
    """A way to run jobs in which the ``number``-th job ends with ``error``, half-way."""
    left = number

    def run(function: Any, job: Any, *_: Any) -> None:
        nonlocal left
        left -= 1

        def report(done: int, total: int, text: str = "") -> None:
            if left == 0 and done == 1 and "prepar" not in text:
                raise error

        function(open_runs(job), report)

    return run


def tune_and_die(request: RunRequest, kill: KillAtWrite, folder: Path) -> None:
    trial_module.run_job = at_once
    kill.arm(folder)
    tune(request)


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_ends_as_if_it_never_was(
    sound: Mini, whole: Path, tmp_path: Path
) -> None:
    request = request_of(sound, tmp_path / "runs")
    folder = plan_study(request, N_TRIALS).folder
    deaths = 0
    for writes in (2, 5, 11, 29, 43, 67, 71, 10_000):
        code = alone(tune_and_die, request, KillAtWrite(writes), folder)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
    assert code == 0
    assert deaths >= 5
    assert published(folder) == published(whole)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_full_disk_ends_the_study_and_is_no_trial(
    sound: Mini, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(sound, tmp_path)
    monkeypatch.setattr(trial_module, "run_job", failing_in(4, DgbenchError("no space left on device")))
    with pytest.raises(DgbenchError, match="no space left"):
        tune(request)
    folder = plan_study(request, N_TRIALS).folder
    assert read_status(folder).state == "failed"
    assert [row.state for row in read_trials(folder)] == ["complete"]
    monkeypatch.setattr(trial_module, "run_job", at_once)
    tune(request)
    assert published(folder) == published(whole)


@pytest.mark.parametrize("error", [Diverged("loss is nan"), JobDied("killed")], ids=["diverged", "out of memory"])
def test_settings_that_cannot_be_trained_with_are_a_failed_trial_beside_those_that_count(
    sound: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: DgbenchError
) -> None:
    calls = 0

    def run(function: Any, job: Any, *_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls in (3, 4):  # a job that died is tried twice
            raise error
        invent(function, job, "", job.folder, lambda: False)

    monkeypatch.setattr(trial_module, "run_job", run)
    rows = read_trials(tune(request_of(sound, tmp_path), 2))
    assert {row.state for row in rows[1:-1]} == {"failed"}
    assert rows[1].reason is not None
    assert str(error) in rows[1].reason
    assert [row.state for row in (rows[0], rows[-1])] == ["complete", "complete"]


def test_settings_that_do_not_go_together_are_a_failed_trial(
    sound: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "run_job", invent)
    rows = read_trials(tune(request_of(sound, tmp_path, "test_tune_faults:Picky"), 3))
    unfit = [row for row in rows if row.params["mode"] != '"one"']
    assert unfit, "the search tried another mode"
    assert {row.state for row in unfit} == {"failed"}
    assert all("does not go with" in str(row.reason) for row in unfit)
    assert sum(row.counts for row in rows) == 3


def test_a_process_says_that_its_training_diverged(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="lesion: loss is nan"):
        JobProcess(diverge, None, "lesion", tmp_path, alone=False).run()


def diverge(content: None, report: Any) -> None:
    raise Diverged("lesion: loss is nan")


def test_a_training_diverges_with_that_error(mini: Mini, tmp_path: Path) -> None:
    job = mini.job(tmp_path, **{"stages.lesion.lr": 1e30})
    with pytest.raises(Diverged, match="lower the learning rate"):
        train(job, lambda *_: None)


def test_devices_that_diverge_say_the_same(mini: Mini, tmp_path: Path) -> None:
    job = mini.job(tmp_path, devices=2, **{"stages.lesion.lr": 1e30})
    with pytest.raises(Diverged, match="lower the learning rate"):
        run_ranks(job, lambda *_: None)


def test_only_the_selected_trial_keeps_its_weights(whole: Path) -> None:
    rows = read_trials(whole)
    best = max((row for row in rows if row.value is not None), key=lambda row: row.value or 0.0)
    weights = {path.parent for path in whole.glob("trials/*/*/*/seed*/*/*.safetensors")}
    assert {path.parent for path in weights} == {trial_folder(whole, best)}
    for row in rows:
        assert (trial_folder(whole, row) / "lesion" / "validation.jsonl").is_file()


def trial_folder(folder: Path, row: TrialRow) -> Path:
    """Where the stages of a trial were trained."""
    (found,) = [
        path.parents[1]
        for path in folder.glob("trials/*/*/*/seed*/organ/spec.json")
        if row.stages["organ"].key in path.read_text()
    ]
    return found


def test_a_stop_that_the_pruner_did_not_ask_for_stops_the_study(
    sound: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the last validation would have ended the trial."""

    run = plan_run(request_of(sound, tmp_path))

    class Hopeless:
        pieces = pieces_of(run, Selection.SOURCE_VAL)
        pruned = False

        def look(self) -> bool:
            self.pruned = True
            return True

    def stopped(*_: Any) -> None:
        raise Interrupted("Ctrl-C")

    monkeypatch.setattr(trial_module, "do", stopped)
    watch: Any = Hopeless()
    with pytest.raises(Interrupted):
        trial_module.train_trial(run, tmp_path, watch, lambda _: None)


def test_fresh_never_removes_the_configuration_that_it_is_given(sound: Mini, tmp_path: Path) -> None:
    plan = plan_run(request_of(sound, tmp_path))
    kept = plan.own.folder / "tuning" / BEST
    kept.parent.mkdir(parents=True)
    kept.write_text("config: {}\n")
    again = plan_run(RunRequest(**{**vars(plan.request), "config": kept}))
    with pytest.raises(DgbenchError, match="--fresh would remove --config"):
        forget(again)
    assert kept.is_file()


def test_too_many_failures_in_a_row_end_the_study(sound: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A space of which nothing can be trained must not be searched for ever."""
    monkeypatch.setattr(studies, "FAILURES_IN_A_ROW", 2)

    def run(function: Any, job: Any, *_: Any) -> None:
        if "tune" in str(job.folder) and not default(job):
            raise Diverged("loss is nan")
        invent(function, job, "", job.folder, lambda: False)

    def default(job: Any) -> bool:
        return bool(job.resolved.preset.stages[job.stage].lr == 3e-3)

    monkeypatch.setattr(trial_module, "run_job", run)
    with pytest.raises(DgbenchError, match="failed one after another"):
        tune(request_of(sound, tmp_path))


def test_a_tuned_erm_is_compared_with_the_default_one(tmp_path: Path) -> None:
    tuned = {"trials": 50, "study": "ab" * 32}
    for center in CENTERS:
        add_run(tmp_path, "erm", center, cases=cell(center, 0.4, 0.5))
        add_run(tmp_path, "erm", center, cases=cell(center, 0.6, 0.7), tuned=tuned)
        add_run(tmp_path, "randconv", center, cases=cell(center, 0.5, 0.6))
    table = only_table(tmp_path)
    assert table.statistics is not None
    differences = {label: one.overall.mean for label, one in table.statistics.comparisons.items()}
    assert differences == pytest.approx({"erm (tuned(50))": 0.2, "randconv": 0.1})
    assert [row.label for row in table.rows if row.is_baseline] == ["erm (default)"]
    assert [row.rank for row in table.rows] == [1, 2, 3], "a tuned row of a ranked preset is ranked"
    assert terminal(compiled_of(tmp_path)).count("baseline") == 1


def test_the_configurations_of_a_tuned_row_may_differ_between_centers(tmp_path: Path) -> None:
    for number, center in enumerate(CENTERS):
        tuned = {"trials": 50, "study": f"a{number}" * 32}
        add_run(tmp_path, "mixstyle", center, cases=cell(center, 0.6), tuned=tuned, config={"p": 0.1 * number})
    (row,) = only_table(tmp_path).rows
    assert row.complete
    assert row.config == {"p": "tuned"}
