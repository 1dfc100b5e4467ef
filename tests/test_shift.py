"""Shift response: what is drawn and judged at each strength, what is kept, what is said; one tiny run tried through the command line."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from cli_calls import mistake
from leaderboard_runs import spec_of

from dgbench.atomic import read_json, write_json
from dgbench.cli import call
from dgbench.data.phantom import AXES, annotation_ceiling
from dgbench.data.preparation import native_label
from dgbench.data.reading import read_image
from dgbench.errors import Interrupted
from dgbench.launch import shift
from dgbench.launch.plan import RunPlan, RunRequest
from dgbench.protocol import load_protocol, protocol_folder
from dgbench.store.folder import read_status, write_status

RESOLVED = load_protocol(shift.NEUTRAL).resolve("tiny")
JOBS = ("dgbench.launch.shift.run_job", "dgbench.launch.execute.run_job")


def here(function: Any, job: Any, *_: Any) -> None:
    function(job, lambda *_: None)


@dataclass(frozen=True)
class Tried:
    """A runs folder with the tiny run of erm, held-out RENJI, that was trained and tried at noise 0 and 1 by the first call."""

    folder: Path
    out: str

    def arguments(self, *extra: str, strengths: str = "0,1", axis: str = "noise") -> list[str]:
        chosen = ["--method", "erm", "--axis", axis, "--strengths", strengths, "--heldout", "RENJI", "--preset", "tiny"]
        places = [f"--{name}={self.folder / name}" for name in ("runs", "cache", "out")]
        return ["shift", *chosen, "--cases", "2", "--device", "cpu", "--threads", "1", *places, *extra]

    @property
    def plan(self) -> RunPlan:
        request = RunRequest("erm", "RENJI", protocol=shift.NEUTRAL, preset="tiny", device="cpu", threads=1)
        return shift.require_run(replace(request, runs=self.folder / "runs", cache=self.folder / "cache"))

    def files(self) -> dict[str, int]:
        paths = [path for path in (self.folder / "runs").rglob("*") if path.is_file() and path.name != ".lock"]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    blank = Tried(tmp_path_factory.mktemp("shift"), "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        for name in JOBS:
            patch.setattr(name, here)
        with pytest.MonkeyPatch.context() as inner:
            lines: list[str] = []
            inner.setattr("dgbench.cli.shift.typer.echo", lambda text, err=False: lines.append("" if err else text))
            assert call(blank.arguments("--train", "--format", "json")) == 0
        yield Tried(blank.folder, "".join(lines))


def no_job(*_: Any) -> None:
    raise AssertionError("a job was started")


def test_the_neutral_protocol_is_the_phantom_at_one_low_strength() -> None:
    plain, neutral = (
        yaml.safe_load((protocol_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("phantom", shift.NEUTRAL)
    )
    assert neutral.pop("name") == shift.NEUTRAL
    assert neutral.pop("title") != plain["title"]
    for preset in neutral["presets"].values():
        strengths = preset["phantom"].pop("shift")
        assert set(strengths) == set(AXES), "every axis is named"
        assert len(set(strengths.values())) == 1
        assert 0 < min(strengths.values()) <= 0.5
        assert preset.pop("ranked") is False
    for preset in plain["presets"].values():
        del preset["ranked"]
    del plain["name"], plain["title"]
    assert neutral == plain


def test_the_first_call_trains_judges_and_draws(tried: Tried) -> None:
    content = json.loads(tried.out)
    assert content["data"].startswith("PHANTOM DATA")
    assert (content["axis"], content["neutral"], content["strengths"]) == ("noise", 0.25, [0, 0.25, 1])
    assert content["cases"] == {"RENJI": 2}
    (method,) = content["methods"]
    assert method["method"] == "erm"
    assert method["change"][1] == 0
    assert method["interval"] is None, "one seed permits none"
    assert Path(content["figure"]).name == "shift-noise.png"
    assert Path(content["figure"]).read_bytes().startswith(b"\x89PNG")
    for part in tried.plan.folders:
        for strength in ("0", "1"):
            assert read_status(part.folder / "shift" / "noise" / strength).state == "done"
        assert not (part.folder / "shift" / "noise" / "0.25").exists(), (
            "training's strength is the run's own evaluation"
        )


def test_a_point_at_the_strength_of_training_repeats_the_runs_own_evaluation(
    tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tried.plan
    own = shift.draw_shifted(plan, "noise", 0.25, 2)
    assert own.identity == plan.identity
    expected = shift.point_cases(plan, own)
    assert sorted(expected["case"]) == ["RENJI/RENJI_0001", "RENJI/RENJI_0002"]
    assert expected["dsc"].nunique() == 2
    monkeypatch.setattr(shift, "neutral_strength", lambda *_: -1.0)
    monkeypatch.setattr("dgbench.launch.shift.run_job", here)
    anew = shift.draw_shifted(plan, "noise", 0.25, 2)
    assert anew.identity != plan.identity, "drawn again, without the other centers"
    assert shift.evaluate_point(plan, anew, lambda _: None)
    pd.testing.assert_frame_equal(shift.point_cases(plan, anew), expected)


def test_the_same_patients_at_every_strength_of_an_appearance_axis(tried: Tried) -> None:
    quiet, loud = (shift.draw_shifted(tried.plan, "noise", strength, 2).cases for strength in (0.0, 1.0))
    for one, other in zip(quiet, loud, strict=True):
        assert one.id == other.id
        for folder in ("labelsTr", "labelsTrue"):
            told = [replace(case, label=case.label.parents[1] / folder / case.label.name) for case in (one, other)]
            labels = [native_label(case, RESOLVED.protocol) for case in told]
            assert (labels[0][0] == labels[1][0]).all()
            assert labels[0][1] == labels[1][1]
        images = [read_image(case, RESOLVED.protocol.task)[0] for case in (one, other)]
        assert np.abs(images[0] - images[1]).mean() > 1


def test_the_ceiling_is_that_of_the_recipe(tried: Tried) -> None:
    plan = tried.plan
    shifted = shift.draw_shifted(plan, "noise", 1.0, 2)
    recipe = shift.shifted_recipe(RESOLVED, "RENJI", "noise", 1.0, 2)
    assert {name: recipe.strength(name) for name in AXES} == {**dict.fromkeys(AXES, 0.25), "noise": 1.0}
    ceiling = shift.annotation_ceiling(plan, shifted)
    assert np.mean(list(ceiling.values())) == pytest.approx(annotation_ceiling(recipe, "RENJI", 2))
    assert 0.5 < min(ceiling.values()) < 1


def test_the_same_call_again_starts_nothing(
    tried: Tried, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in JOBS:
        monkeypatch.setattr(name, no_job)
    before = tried.files()
    assert call(tried.arguments()) == 0
    out, err = capsys.readouterr()
    assert out.startswith("PHANTOM DATA")
    assert "0.25 (training)" in out
    assert "every point is there already" in err
    assert tried.files() == before


def test_another_list_only_adds_and_a_changed_key_is_judged_anew(
    tried: Tried, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, point = tried.files(), tried.plan.own.folder / "shift" / "noise" / "0.5"
    monkeypatch.setattr("dgbench.launch.shift.run_job", here)
    assert call(tried.arguments(strengths="1,0.5")) == 0
    after = tried.files()
    assert {name: after[name] for name in before} == before
    assert {name.split("shift/")[1].split("/")[1] for name in set(after) - set(before)} == {"0.5"}
    assert not any(line.startswith(" 0 ") for line in capsys.readouterr().out.splitlines())
    rows = (point / "cases.parquet").read_bytes()
    write_json(point / "spec.json", {**read_json(point / "spec.json"), "key": "0" * 64})
    (point / "left.txt").write_text("of another model")
    assert call(tried.arguments(strengths="1,0.5")) == 0
    assert not (point / "left.txt").exists()
    assert (point / "cases.parquet").read_bytes() == rows


def test_a_stopped_point_goes_on_after_its_last_case(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tried.plan
    shifted = shift.draw_shifted(plan, "noise", 1.5, 2)
    point = plan.own.folder / shifted.place

    def stopped(function: Any, job: Any, *_: Any) -> None:
        def report(done: int, _total: int, _text: str = "") -> None:
            if done == 1 and job[0][0].stage == "tumor-coarse":
                raise Interrupted("evaluation: stopped")

        function(job, report)

    monkeypatch.setattr("dgbench.launch.shift.run_job", stopped)
    with pytest.raises(Interrupted):
        shift.evaluate_point(plan, shifted, lambda _: None)
    assert read_status(point).state == "interrupted"
    (part,) = (point / "parts").rglob("*.json")
    made = part.stat().st_mtime_ns
    touched: list[int] = []

    def watched(function: Any, job: Any, *_: Any) -> None:
        function(job, lambda *_: touched.append(part.stat().st_mtime_ns))

    monkeypatch.setattr("dgbench.launch.shift.run_job", watched)
    assert shift.evaluate_point(plan, shifted, lambda _: None)
    assert touched == [made, made]
    assert len(shift.point_cases(plan, shifted)) == 2
    assert not shift.evaluate_point(plan, shifted, lambda _: None)


def test_the_annotation_axis_changes_the_reference_alone(
    tried: Tried, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dgbench.launch.shift.run_job", here)
    assert call(tried.arguments("--format", "json", axis="annotation", strengths="0")) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["ceiling"]["mean"][0] == 1
    assert content["ceiling"]["mean"][1] < 1
    assert any("not the image" in note for note in content["notes"])
    own, point = (
        shift.point_cases(tried.plan, shift.draw_shifted(tried.plan, "annotation", s, 2)) for s in (0.25, 0.0)
    )
    assert (own["volume_prediction_mm3"] == point["volume_prediction_mm3"]).all()
    assert (own["volume_reference_mm3"] != point["volume_reference_mm3"]).all()


def test_a_missing_run_is_named_with_its_command(tried: Tried, capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, tried.arguments("--method", "randconv"))
    command = "dgbench run --method randconv --heldout RENJI --protocol phantom-neutral --preset tiny --device cpu --threads 1"
    assert line.startswith("no finished run of randconv, held-out RENJI, seed 0 — make it with: ")
    assert command in line
    assert f"--runs {tried.folder / 'runs'}" in line
    other = mistake(capsys, tried.arguments("--threads", "2"))
    assert "is another: environment.threads: 1 → 2" in other


def test_a_stopped_run_is_told_from_none(tried: Tried, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tried.plan.own.folder
    write_status(folder, "interrupted", "Ctrl-C")
    line = mistake(capsys, tried.arguments())
    write_status(folder, "done")
    assert f"({folder} is interrupted) — make it with: dgbench run" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": "nois"}, "--axis: unknown shift axis 'nois' — did you mean 'noise'?"),
        ({"strengths": "0,x"}, "--strengths: 'x' is not a number"),
        ({"strengths": "-1"}, "--strengths: -1 — a strength lies from 0 to 10"),
        ({"strengths": "nan"}, "--strengths: nan — a strength lies"),
        ({"strengths": "0.12345"}, "at most three decimals"),
        ({"strengths": " , "}, "--strengths: none is named"),
        ({"method": "ern"}, "unknown method 'ern' — did you mean 'erm'?"),
        ({"method": ","}, "no method or no held-out center is named"),
        ({"heldout": "RENJ"}, "unknown held-out center 'RENJ'"),
        ({"preset": "tin"}, "unknown preset 'tin'"),
        ({"seed": "-1"}, "--seed -1"),
        ({"seed": "1", "seeds": "2"}, "--seed names one seed and --seeds how many"),
    ],
)
def test_mistakes_are_one_line(
    change: Mapping[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "method": "erm",
        "axis": "noise",
        "runs": str(tmp_path / "runs"),
        "cache": str(tmp_path / "cache"),
        **change,
    }
    assert message in mistake(capsys, ["shift", *(f"--{name}={value}" for name, value in options.items())])
    assert not (tmp_path / "cache").exists()


def test_the_heading_says_of_a_control_row_that_it_is_one() -> None:
    def plan(method: str, factor: int) -> Any:
        spec = spec_of(method, "MSD", 0, draws_factor=factor, protocol={"ranked": False})
        return SimpleNamespace(own=SimpleNamespace(spec=spec), request=SimpleNamespace(overrides=("preset.width=16",)))

    _, words = shift._heading([plan("erm", 1), plan("erm_long", 3)])
    assert words == "bench, not ranked; control row with 3× the draws, not ranked: erm_long; preset.width=16"


def test_strengths_are_sorted_and_named_once() -> None:
    assert shift.read_strengths("1, 0.5,1.0,-0,0") == (0, 0.5, 1)
    assert str(shift.read_strengths("-0")) == "(0.0,)"
