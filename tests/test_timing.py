"""Timing: methods take turns, the first rounds do not count, and every row says on what machine it was measured."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_calls import mistake
from training_fixtures import Mini

from dgbench.atomic import read_json, write_json
from dgbench.cli import call
from dgbench.cli.cost import _print_times
from dgbench.cli.options import ListFormat
from dgbench.data import sampling
from dgbench.errors import DgbenchError
from dgbench.evaluation import timing
from dgbench.evaluation.timing import WARM_UP, Quartiles, StageSeconds, measure_memory, synthetic_batch, time_stage
from dgbench.launch import environment
from dgbench.launch import timing as command
from dgbench.launch.machine import Machine
from dgbench.launch.timing import BUSY, _summary, time_methods, timed_cases
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

        def answer(self, case: Any) -> float:
            answered.append((self.name, case))
            return 0.25 * case

    answered: list[tuple[str, int]] = []
    monkeypatch.setattr(timing, "_Subject", Subject)
    methods = {name: (find_method(name), find_method(name).configure()) for name in ("erm", "saml")}
    options: dict[str, Any] = {"device": CPU, "precision": "fp32", "repeats": 3, "report": quiet}
    found = time_stage(methods, TINY, "tumor-fine", 2, **options, cases=[1, 2, 3])
    assert order == ["erm", "saml"] * (WARM_UP + 3)
    assert answered == [(name, case) for case in (1, 2, 3, 3, 1, 2) for name in ("erm", "saml")], "each once before"
    assert found["erm"] == StageSeconds((1.0,) * 3, (3.0,) * 3, (0.5,) * 3, (0.75, 0.25, 0.5))
    assert found["saml"].training_step == (2.0,) * 3


def test_a_method_takes_the_sum_of_its_stages_in_every_turn() -> None:
    stages = {
        "coarse": StageSeconds((1.0, 2.0, 3.0), (1.0,), (1.0,), ()),
        "fine": StageSeconds((3.0, 2.0, 1.0), (1.0,), (2.0,), ()),
    }
    summary = _summary(stages)
    assert summary["step_ms"] == asdict(Quartiles(4000.0, 4000.0, 4000.0, 3)), "not of the sums of quartiles"
    assert summary["prediction_ms"]["median"] == 3000.0
    assert summary["case_ms"] is None, "no case was given"
    assert summary["stages"]["fine"]["prediction"]["median"] == 2000.0


@pytest.mark.parametrize("method", ["dofe", "saml", "mixstyle"])
def test_a_step_and_a_prediction_take_time_and_memory(tmp_path: Path, method: str) -> None:
    """Phases, a step of one's own and statistics over the batch are run as in training."""
    info = find_method(method)
    options: dict[str, Any] = {"device": CPU, "precision": "fp32", "repeats": 1, "report": quiet}
    (folder := tmp_path / "cases").mkdir()
    cases = timing.synthetic_cases(TINY, "tumor-fine", 2, folder)[:1]
    (found,) = time_stage({method: (info, info.configure())}, TINY, "tumor-fine", 2, **options, cases=cases).values()
    for seconds in (found.training_step, found.loaded_step, found.prediction, found.case):
        assert len(seconds) == 1
        assert seconds[0] > 0
    target = tmp_path / "memory.json"
    content = (info, info.configure(), TINY, "tumor-fine", 2, "cpu", "fp32", torch.get_num_threads(), target)
    measure_memory(content, quiet)
    assert read_json(target)["peak_mib"] >= 0


def test_memory_is_the_most_of_several_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first step has neither the moments of Adam nor gradients of a step before."""
    peaks = [10, 50, 60, 75, 90]

    class Subject:
        def __init__(self, *_: Any) -> None:
            self.steps = 0

        def train(self) -> None:
            peaks.pop(0)

    monkeypatch.setattr(timing, "_Subject", Subject)
    monkeypatch.setattr(timing, "_resident_peak", lambda: peaks[0] * 2**20)
    info = find_method("erm")
    threads = torch.get_num_threads()
    measure_memory((info, info.configure(), TINY, "tumor-fine", 2, "cpu", "fp32", threads, tmp_path / "m"), quiet)
    assert read_json(tmp_path / "m")["peak_mib"] == 75 - 10


def test_crops_are_augmented_and_passes_counted_as_the_preset_and_protocol_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    resolved = load_protocol("phantom").resolve("tiny", {"stages.tumor-fine.augmentation": "0.5"})
    limits = resolved.protocol.inference.fine_rounds.model_copy(update={"seg": 3})
    inference = resolved.protocol.inference.model_copy(update={"fine_rounds": limits})
    protocol = resolved.protocol.model_copy(update={"inference": inference})
    resolved = resolved.model_copy(update={"protocol": protocol})
    info = find_method("erm")
    subject = timing._Subject(info, info.configure(), resolved, "tumor-fine", 2, CPU, "fp32")
    cases = timing.synthetic_cases(resolved, "tumor-fine", 2, tmp_path)
    angles, passes = [], []

    def drawn(rng: Any, augmentation: Any, ndim: int) -> None:
        angles.append(augmentation.rotation_degrees)

    monkeypatch.setattr(sampling, "draw_rotation", drawn)
    monkeypatch.setattr(timing, "predict_box", lambda *_: passes.append(1))
    subject.train_loaded(cases, 1)
    assert set(angles) == {0.5 * protocol.augmentation.rotation_degrees}
    subject.answer(cases[0])
    assert len(passes) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_with_the_loader_waits_for_its_crops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int
) -> None:
    """A loader that sleeps makes every counted step as slow as its sleep, shared by its workers."""
    nap = 0.5
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
    assert np.median(found) > 0.6 * nap / max(1, workers), (
        "workers that got ahead of a late step may be faster for once"
    )


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
def test_the_command_says_what_was_measured_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cost", "--method", "erm,dualtask", "--time", "--protocol", "phantom", "--preset", "tiny"]
    words += [f"--cache={tmp_path}"]
    assert call([*words, "--repeats", "2", "--device", "cpu", "--threads", "1", "--format", "json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert {"device", "precision", "threads", "torch", "dgbench"} <= set(measured["machine"])
    assert measured["machine"]["threads"] == 1
    erm, dualtask = measured["methods"]
    assert dualtask["step_ms"]["median"] > erm["step_ms"]["median"], "two views against one"
    assert measured["cases"] == ["MSD/MSD_0001", "RENJI/RENJI_0001", "RMYY/RMYY_0001"]
    assert erm["case_ms"]["n"] == 2
    assert measured["machine"]["workers"] == 0
    assert set(erm["stages"]) == {"tumor-coarse", "tumor-fine"}
    assert erm["peak_mib"] > 1


def test_a_case_of_every_center_is_timed_and_patients_must_be_given(mini: Mini, tmp_path: Path) -> None:
    patients = load_protocol(str(mini.protocol)).resolve("mini")
    assert timed_cases(patients, None, tmp_path) == []
    assert [case.id for case in timed_cases(patients, mini.data, tmp_path)] == [
        f"{center}/case_00" for center in ("ALPHA", "BETA", "GAMMA")
    ]
    with pytest.raises(DgbenchError, match="is not a phantom, protocol 'phantom' is for a phantom"):
        timed_cases(TINY, mini.data, tmp_path)


def test_times_of_a_busy_machine_are_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    stages = {"fine": StageSeconds((0.1, 0.2), (0.3, 0.3), (0.4, 0.4), (1.0, 2.0))}
    row = {"method": "erm", **_summary(stages), "peak_mib": 7.0}
    machine = {"device": "a processor", "driver": None}
    measured = {"machine": machine, "cases": ["MSD/MSD_0000"], "methods": [row]}
    for busy, said in ((0.1, False), (6.0, True)):
        _print_times({**measured, "busy_cores": busy}, TINY, ListFormat.table)
        out, err = capsys.readouterr()
        assert ("6.0 cores were in use before the measurement: these times are" in err) is said
        assert "1.50 [1.25, 1.75]" in out
        assert "(MSD/MSD_0000 in turns, so that the quartiles are the spread of cases)" in out
        assert out.endswith(f"device a processor; {busy} cores were in use before the measurement\n")
    gpu = {"device": "a GPU", "driver": "1.0"}
    _print_times({**measured, "machine": gpu, "busy_cores": 0.1}, TINY, ListFormat.table)
    assert capsys.readouterr().out.endswith("the measurement; the GPU was not checked for other jobs\n")
    for ndim, tta, flips in ((3, True, "8 flips"), (2, True, "4 flips"), (3, False, "no flips")):
        task = TINY.protocol.task.model_copy(update={"ndim": ndim})
        protocol = TINY.protocol.model_copy(update={"task": task})
        preset = TINY.preset.model_copy(update={"tta": tta})
        changed = TINY.model_copy(update={"protocol": protocol, "preset": preset})
        _print_times({**measured, "busy_cores": 0.1}, changed, ListFormat.table)
        assert f"one crop of each stage, {flips};" in capsys.readouterr().out


def test_a_few_busy_cores_of_many_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of 64 are 9.4 % of the processor."""

    def written(job: Any, content: tuple[Any, ...], *_: Any) -> None:
        write_json(content[-1], {"device": "a processor", "driver": None, "methods": {}})

    monkeypatch.setattr(command, "run_job", written)
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 64)
    for percent, busy in ((9.4, True), (0.1, False)):
        monkeypatch.setattr("psutil.cpu_percent", lambda interval, percent=percent: percent)
        measured = time_methods({}, TINY, 2, Machine("cpu", "fp32", 1, "2.13"), 1)
        assert measured["busy_cores"] == pytest.approx(0.64 * percent)
        assert (measured["busy_cores"] >= BUSY) is busy


def test_a_run_folder_says_what_the_driver_tells_of_its_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for told, found in (
        ("echo 'NVIDIA H200, 550.54'; echo 'NVIDIA H200, 550.54'", ("NVIDIA H200", "550.54")),
        ("echo 'NVIDIA H200, 550.54'; echo 'NVIDIA A100, 550.54'", ("NVIDIA A100, NVIDIA H200", "550.54")),
        ("echo 'No devices were found'", (None, None)),
        ("echo 'NVIDIA H200, 550.54'; exit 9", (None, None)),
    ):
        program.write_text(f"#!/bin/sh\n{told}\n")
        program.chmod(0o755)
        environment._gpu.cache_clear()
        described = environment.environment()
        assert (described.get("gpu"), described.get("driver")) == found
        assert ("gpu" in described) is (found[0] is not None), "records without a GPU stay as they were"
    environment._gpu.cache_clear()


def test_what_counts_and_what_measures_are_not_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    count = ["cost", "--method", "erm"]
    assert mistake(capsys, [*count, "--repeats", "5"]) == "--repeats 5: of measurements — add --time"
    assert mistake(capsys, [*count, "--time", "--convention", "macs"]).startswith(
        "--convention macs: counts operations"
    )
    assert mistake(capsys, [*count, "--data", "x"]) == "--data x: cases to time inference on — add --time"


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, ["cost", "--method", "erm", "--time", "--device", "tpu"])
    assert line == "unknown device 'tpu' — known: cpu, cuda"
