"""Timing: methods take turns, the first rounds do not count, and every row says on what machine it was measured."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_calls import mistake

from dgbench.atomic import read_json
from dgbench.cli import call
from dgbench.data import sampling
from dgbench.evaluation import timing
from dgbench.evaluation.timing import WARM_UP, Quartiles, measure_memory, synthetic_batch, time_stage
from dgbench.protocol import load_protocol
from dgbench.registry import find_method

TINY = load_protocol("phantom").resolve("tiny")
CPU = torch.device("cpu")


def quiet(done: int, total: int, text: str = "") -> None:
    pass


def test_quartiles_are_milliseconds() -> None:
    assert Quartiles.of([0.001, 0.002, 0.003, 0.004, 0.1]) == Quartiles(3.0, 2.0, 4.0, 5)


def test_the_batch_is_one_step_of_the_stage_with_a_lesion_in_every_case() -> None:
    batch = synthetic_batch(find_method("erm"), TINY, "tumor-coarse", 2)
    crop = TINY.preset.stages["tumor-coarse"].crop
    assert batch.image.shape == batch.label.shape == (2, 1, *crop)
    assert batch.domain.tolist() == [0, 1]
    assert batch.donor is None
    assert set(batch.label.unique().tolist()) == {0.0, 1.0}
    assert batch.label.flatten(1).any(1).all()
    again = synthetic_batch(find_method("erm"), TINY, "tumor-coarse", 2)
    assert torch.equal(batch.image, again.image)


def test_methods_take_turns_and_the_first_rounds_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Subject:
        def __init__(self, info: Any, *_: Any) -> None:
            self.name, self.calls = info.name, 0

        def train(self) -> float:
            order.append(self.name)
            self.calls += 1
            return 100.0 if self.calls <= WARM_UP else 2.0 if self.name == "saml" else 1.0

        def train_loaded(self, cases: Any, repeats: int) -> list[float]:
            assert [case.case.center for case in cases] == ["0", "1", "0", "1"]
            return [3.0] * repeats

        def predict(self) -> float:
            return 0.5

    monkeypatch.setattr(timing, "_Subject", Subject)
    methods = {name: (find_method(name), find_method(name).configure()) for name in ("erm", "saml")}
    options: dict[str, Any] = {"device": CPU, "precision": "fp32", "repeats": 3, "report": quiet}
    found = time_stage(methods, TINY, "tumor-fine", 2, **options)
    assert order == ["erm", "saml"] * (WARM_UP + 3)
    assert found["erm"].training_step == Quartiles(1000.0, 1000.0, 1000.0, 3)
    assert found["saml"].training_step.median == 2000.0
    assert found["erm"].prediction == Quartiles(500.0, 500.0, 500.0, 3)
    assert found["saml"].loaded_step == Quartiles(3000.0, 3000.0, 3000.0, 3)


@pytest.mark.parametrize("method", ["dofe", "saml", "mixstyle"])
def test_a_step_and_a_prediction_take_time_and_memory(tmp_path: Path, method: str) -> None:
    """Phases, a step of one's own and statistics over the batch are run as in training."""
    info = find_method(method)
    options: dict[str, Any] = {"device": CPU, "precision": "fp32", "repeats": 1, "report": quiet}
    (found,) = time_stage({method: (info, info.configure())}, TINY, "tumor-fine", 2, **options).values()
    assert found.training_step.median > 0
    assert found.loaded_step.median > 0
    assert found.prediction.median > 0
    target = tmp_path / "memory.json"
    content = (info, info.configure(), TINY, "tumor-fine", 2, "cpu", "fp32", torch.get_num_threads(), target)
    measure_memory(content, quiet)
    assert read_json(target)["peak_mib"] >= 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_with_the_loader_waits_for_its_crops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int
) -> None:
    """A loader that sleeps makes every counted step as slow as its sleep, shared by its workers."""
    nap = 0.3
    read = sampling.read_crop

    def slow(*arguments: Any) -> Any:
        time.sleep(nap / 2)  # a step holds two cases
        return read(*arguments)

    monkeypatch.setattr(sampling, "read_crop", slow)
    resolved = load_protocol("phantom").resolve("tiny", {"workers": str(workers)})
    subject = timing._Subject(
        find_method("erm"), find_method("erm").configure(), resolved, "tumor-fine", 2, CPU, "fp32"
    )
    cases = timing.synthetic_cases(resolved, "tumor-fine", 2, tmp_path)
    subject.train()
    found = subject.train_loaded(cases, 3)
    assert len(found) == 3
    assert np.median(found) > 0.9 * nap / max(1, workers)


def test_the_loader_finds_the_block_of_every_random_case(tmp_path: Path) -> None:
    for stage, settings in TINY.protocol.stages.items():
        (folder := tmp_path / stage).mkdir()
        cases = timing.synthetic_cases(TINY, stage, 2, folder)
        dataset = sampling.CropDataset(
            cases=cases,
            domains=[0, 1, 0, 1],
            stage=settings,
            crop=TINY.preset.stages[stage].crop,
            k=2,
            seed=0,
            augmentation=TINY.protocol.augmentation,
            plan=["per-center"],
            donors=True,
        )
        batch = dataset[0]
        assert batch["domain"].tolist() == [0, 1]
        assert batch["label"].flatten(1).any(1).all(), "a crop without a lesion trains on nothing"
        assert batch["donor"].shape == batch["image"].shape == (2, 1, *TINY.preset.stages[stage].crop)


@pytest.mark.slow
def test_the_command_says_what_was_measured_where(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cost", "--method", "erm,dualtask", "--time", "--protocol", "phantom", "--preset", "tiny"]
    assert call([*words, "--repeats", "2", "--device", "cpu", "--threads", "1", "--format", "json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert {"device", "precision", "threads", "torch", "dgbench"} <= set(measured["machine"])
    assert measured["machine"]["threads"] == 1
    erm, dualtask = measured["methods"]
    assert dualtask["step_ms"] > erm["step_ms"], "two views against one"
    assert erm["loaded_step_ms"] == sum(one["loaded_step"]["median"] for one in erm["stages"].values())
    assert measured["machine"]["workers"] == 0
    assert set(erm["stages"]) == {"tumor-coarse", "tumor-fine"}
    assert erm["peak_mib"] > 1


def test_what_counts_and_what_measures_are_not_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    count = ["cost", "--method", "erm"]
    assert mistake(capsys, [*count, "--repeats", "5"]) == "--repeats 5: of measurements — add --time"
    assert mistake(capsys, [*count, "--time", "--convention", "macs"]).startswith(
        "--convention macs: counts operations"
    )


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, ["cost", "--method", "erm", "--time", "--device", "tpu"])
    assert line == "unknown device 'tpu' — known: cpu, cuda"
