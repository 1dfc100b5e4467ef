"""The complete contract of a method: each shape of method trains, resumes exactly from any step, and is evaluated from its checkpoints."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import contract_plugins
import pytest
import torch
from training_fixtures import BRIGHTNESS, AfterStep, Crash, Mini, differences, outcome, quiet

from dgbench.atomic import read_jsonl
from dgbench.data.preparation import prepare_case
from dgbench.errors import DgbenchError, Interrupted
from dgbench.evaluation.cost import count_cost
from dgbench.evaluation.job import load_trained
from dgbench.evaluation.run_cost import meta_method
from dgbench.inference.cascade import label_roi, predict_box
from dgbench.method import Method
from dgbench.store.checkpoint_file import load_checkpoint, unflatten_state
from dgbench.training import loop
from dgbench.training.job import TrainJob
from dgbench.training.loop import train
from dgbench.training.validation import stage_predictor

SHAPES = ("Saml", "Dart", "Dofe", "Swad", "Sam")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return Mini.write(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def trained(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainJob]:
    """Each shape, and erm as Diverging is while it does not diverge, trained without interruption."""
    runs = tmp_path_factory.mktemp("runs")
    jobs = {name: mini.job(runs, f"contract_plugins:{name}") for name in (*SHAPES, "Diverging")}
    for job in jobs.values():
        train(job, quiet)
    return jobs


def steps_of(job: TrainJob) -> list[dict[str, Any]]:
    return read_jsonl(job.folder / "steps.jsonl")


def state_of(job: TrainJob) -> dict[str, Any]:
    """The method's final state, as the checkpoint holds it."""
    last = load_checkpoint(job.folder / "last")
    state: dict[str, Any] = unflatten_state(last.tensors, last.meta["state"])["method"]
    return state


def elsewhere(job: TrainJob, tmp_path: Path) -> TrainJob:
    """The same job in an empty folder."""
    return replace(job, folder=tmp_path / job.stage)


@pytest.mark.parametrize("name", SHAPES)
def test_stopped_and_killed_in_turn_it_ends_like_an_uninterrupted_run(
    trained: dict[str, TrainJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It goes on after steps 2 (stopped), 4 (killed at 5), 6 (stopped) and 6 (killed at 7); dofe's phases end after steps 2, 5 and 8."""
    job = elsewhere(trained[name], tmp_path)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)  # the log is ahead of the checkpoints
    starts = []
    for step, asked in ((1, signal.SIGUSR1), (5, None), (5, signal.SIGTERM), (7, None)):
        with pytest.raises(Interrupted if asked else Crash):
            train(job, AfterStep(step, asked))
        starts.append(load_checkpoint(job.folder / "last").meta["step"])
    assert starts == [2, 4, 6, 6]
    train(job, quiet)
    assert differences(outcome(trained[name].folder), outcome(job.folder)) == []


@pytest.mark.parametrize("checkpoint", ["source-val", "last-step"])
@pytest.mark.parametrize("name", SHAPES)
def test_evaluation_predicts_probabilities_from_its_checkpoints(
    trained: dict[str, TrainJob], name: str, checkpoint: str
) -> None:
    job = trained[name]
    method = load_trained(job, checkpoint, CPU)
    predictor = stage_predictor(method, job.stage, job.resolved, CPU, job.precision, tta=True)
    case = prepare_case(job.cases[0], job.resolved.protocol, job.cache)
    probability, _ = predict_box(case, label_roi(case, job.stage, job.resolved), predictor, factor=1)
    assert probability.min() >= 0
    assert probability.max() <= 1
    assert probability.std() > 0


def test_deploying_leaves_one_network_also_where_it_is_only_counted(trained: dict[str, TrainJob]) -> None:
    def predict(model: Any, image: torch.Tensor) -> object:
        return model.predict(image)

    products = {}
    for name in SHAPES:
        job = trained[name]
        method = meta_method(job.info, job.config, job.resolved, job.stage, len(job.split.sources))
        method.deploy()
        products[name] = count_cost(method, (1, 1, 8, 16, 16), convention="macs", call=predict).gflops
    assert set(products.values()) == {products["Sam"]}


def test_saml_moves_its_backbone_and_its_head_with_an_optimiser_each(trained: dict[str, TrainJob]) -> None:
    job = trained["Saml"]
    last = load_checkpoint(job.folder / "last")
    adam, sgd = unflatten_state(last.tensors, last.meta["state"])["optimizers"]
    assert {"exp_avg", "exp_avg_sq", "step"} == set(adam["state"][0])
    assert {"momentum_buffer"} == set(sgd["state"][0])
    factor = steps_of(job)[-1]["lr_factor"]
    assert sgd["param_groups"][0]["lr"] == pytest.approx(0.1 * factor)
    assert adam["param_groups"][0]["lr"] == pytest.approx(3e-3 * factor)
    shapes = [row["shape"] for row in steps_of(job)]
    assert len(set(shapes)) == len(shapes)


def test_dart_averages_its_branches_and_keeps_one(trained: dict[str, TrainJob]) -> None:
    job = trained["Dart"]
    state = state_of(job)
    branches = [[value for name, value in state.items() if name.startswith(f"branches.{i}.")] for i in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*branches, strict=True))  # the last step ended with an average
    deployed = load_trained(job, "last-step", CPU)
    assert not any("branches" in name for name, _ in deployed.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(deployed.backbone.parameters(), branches[0], strict=True))
    assert {row["domains"] for row in steps_of(job)} <= {0.0, 0.5, 1.0}


def test_dofe_learns_in_two_phases_and_only_watches_between_them(trained: dict[str, TrainJob], tmp_path: Path) -> None:
    job = trained["Dofe"]
    rows = steps_of(job)
    assert [row["phase"] for row in rows] == ["pretrain"] * 2 + ["prototypes"] * 3 + ["finetune"] * 3
    assert ["loss" in row for row in rows] == [True] * 2 + [False] * 3 + [True] * 3
    assert int(state_of(job)["seen"].sum()) == 3 * 2  # every draw of the watching phase, once
    stopped = elsewhere(job, tmp_path)
    states = []
    for step in (1, 4):
        with pytest.raises(Interrupted):
            train(stopped, AfterStep(step, signal.SIGUSR1))
        states.append(state_of(stopped))
    before, after = states
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"memory", "seen"}
    assert torch.equal(after["memory"], state_of(job)["memory"])


def test_swad_averages_from_the_first_validation_and_deploys_the_average(trained: dict[str, TrainJob]) -> None:
    job = trained["Swad"]
    state = state_of(job)
    assert int(state["count"]) == job.steps // 2  # on_step_end precedes the validation of its step
    scores = [row["dsc"] for row in read_jsonl(job.folder / "validation.jsonl")]
    assert state["_extra_state"] == {"scores": scores}
    deployed = load_trained(job, "last-step", CPU)
    for name, weight in deployed.backbone.state_dict().items():
        assert torch.equal(weight, state[f"average.{name}"])
        assert not torch.equal(weight, state[f"backbone.{name}"])


def test_sam_starts_where_erm_does_and_goes_another_way(trained: dict[str, TrainJob]) -> None:
    sam, erm = steps_of(trained["Sam"]), steps_of(trained["Diverging"])
    assert all(row["sharpness"] != 0 for row in sam)
    assert sam[0]["loss"] == erm[0]["loss"]
    assert all(a["loss"] != b["loss"] for a, b in zip(sam[1:], erm[1:], strict=True))


def test_a_donor_is_a_case_of_another_center(mini: Mini, tmp_path: Path) -> None:
    job = mini.job(tmp_path, "contract_plugins:Donor")
    train(job, quiet)
    middle = (BRIGHTNESS["ALPHA"] + BRIGHTNESS["BETA"]) / 2
    pairs = [
        (int(row[f"domain {slot}"]), int(row[f"donor {slot}"] > middle)) for row in steps_of(job) for slot in (0, 1)
    ]
    assert set(pairs) == {(0, 1), (1, 0)}


def test_an_unknown_configuration_key_is_refused_with_a_suggestion(mini: Mini, tmp_path: Path) -> None:
    info = contract_plugins.Saml.info
    with pytest.raises(DgbenchError, match="method 'saml' has no such key — did you mean 'rate'"):
        info.configure({"rat": "0.1"})
    with pytest.raises(DgbenchError, match=r"method 'saml': rate: .*number"):
        info.configure({"rate": "fast"})


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line_and_the_last_good_checkpoint_goes_on(
    trained: dict[str, TrainJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = elsewhere(trained["Diverging"], tmp_path)
    monkeypatch.setattr(contract_plugins.Diverging, "at", 5)
    with pytest.raises(DgbenchError) as caught:
        train(job, quiet)
    assert str(caught.value) == (
        "lesion: loss is nan at step 6 — lower the learning rate (--set preset.stages.lesion.lr=…); the last good state is kept"
    )
    assert load_checkpoint(job.folder / "last").meta["step"] == 4
    assert not (job.folder / "result.json").exists()
    monkeypatch.setattr(contract_plugins.Diverging, "at", None)
    train(job, quiet)
    assert differences(outcome(trained["Diverging"].folder), outcome(job.folder)) == []


def test_weights_that_are_not_finite_are_neither_validated_nor_saved(
    trained: dict[str, TrainJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = elsewhere(trained["Diverging"], tmp_path)
    monkeypatch.setattr(contract_plugins.Diverging, "gradient", True)
    monkeypatch.setattr(contract_plugins.Diverging, "at", job.steps - 1)  # the last loss is finite, its gradient is not
    with pytest.raises(DgbenchError, match=r"lesion: a weight is not finite after step 8 — .*; the last good state is"):
        train(job, quiet)
    assert load_checkpoint(job.folder / "last").meta["step"] == 4
    assert {row["step"] for row in read_jsonl(job.folder / "validation.jsonl")} == {4}
    assert not (job.folder / "result.json").exists()


def test_a_run_that_diverges_at_once_says_that_nothing_was_saved(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract_plugins.Diverging, "at", 0)
    with pytest.raises(DgbenchError, match=r"lesion: loss is nan at step 1 — .*; no state was saved yet"):
        train(mini.job(tmp_path, "contract_plugins:Diverging"), quiet)


def test_phases_that_do_not_use_the_whole_budget_are_refused(mini: Mini, tmp_path: Path) -> None:
    with pytest.raises(
        DgbenchError, match=r"method unbalanced: .*\(pretrain 0\.4, train 0\.5\) sum to 0\.9 — they must sum to 1"
    ):
        train(mini.job(tmp_path, "contract_plugins:Unbalanced"), quiet)


def test_a_phase_that_does_not_learn_needs_something_to_observe(mini: Mini, tmp_path: Path) -> None:
    with pytest.raises(DgbenchError, match=r"method unobservant: .* needs observe\(\) — define it in Unobservant$"):
        train(mini.job(tmp_path, "contract_plugins:Unobservant"), quiet)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ([[0.5, 0.5]], "has 1 rows of probabilities, a step draws 2 cases"),
        ([[0.5, 0.5], [1.0]], "row 1 is .* — give 2 probabilities"),
        ([[0.5, 0.5], [0.5, -0.5]], "row 1 is"),
        ([[0.0, 0.0], [0.5, 0.5]], "row 0 is"),
        ([[float("nan"), 1.0], [0.5, 0.5]], "row 0 is"),
        ("per-centre", "did you mean 'per-center'"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sampling_that_cannot_be_drawn_is_refused_before_the_first_step(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Any, problem: str, workers: int
) -> None:
    monkeypatch.setattr(contract_plugins.Mixture, "table", table)
    job = mini.job(tmp_path, "contract_plugins:Mixture", workers=workers)
    with pytest.raises(DgbenchError, match=f"^lesion: method mixture: sampling\\(\\) at step 0.*{problem}"):
        train(job, quiet)
    assert not (job.folder / "steps.jsonl").exists()


def test_every_shape_is_a_method_with_an_entry() -> None:
    for name in SHAPES:
        cls = getattr(contract_plugins, name)
        assert issubclass(cls, Method)
        assert cls.info.target == f"contract_plugins:{name}"
