"""Data at the command line: bad ones are one line with exit code 2 for a source, a failed row for a held-out case, a table from ``data
check``; ``data phantom`` draws and never overwrites."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from cli_calls import mistake, run_arguments
from training_fixtures import Mini

from dgbench.cli import call
from dgbench.evaluation.job import UNDEFINABLE


def image_of(mini: Mini, center: str = "BETA") -> Path:
    return mini.data / center / "imagesTr" / "case_01.nii.gz"


def label_of(mini: Mini, center: str = "BETA") -> Path:
    return mini.data / center / "labelsTr" / "case_01.nii.gz"


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    volume = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(volume)))
    changed.SetSpacing(volume.GetSpacing())
    sitk.WriteImage(changed, str(path))


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def with_nan(array: Any) -> Any:
    array = array.astype(np.float32)
    array[3, 4, 5] = np.nan
    return array


def with_seven(array: Any) -> Any:
    array[3, 4, 5] = 7
    return array


def corrupt_check_sum(path: Path) -> None:
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes())))
    content[-8] ^= 1
    path.write_bytes(bytes(content))


FAULTS: dict[str, tuple[Callable[[Mini], object], str]] = {
    "missing label": (lambda mini: label_of(mini).unlink(), "case BETA/case_01: label missing — expected "),
    "other grid": (
        lambda mini: rewrite(label_of(mini), lambda array: array[:-2]),
        "case BETA/case_01: label grid 14×24×24 differs from image 16×24×24",
    ),
    "truncated": (lambda mini: truncate(image_of(mini)), "case BETA/case_01: image"),
    "check sum": (lambda mini: corrupt_check_sum(image_of(mini)), "case BETA/case_01: image"),
    "NaN": (lambda mini: rewrite(image_of(mini), with_nan), "case BETA/case_01: image"),
    "label 7": (
        lambda mini: rewrite(label_of(mini), with_seven),
        "case BETA/case_01: label has the values 7, the protocol allows 0, 1, 2",
    ),
    "empty center": (
        lambda mini: [path.unlink() for path in (mini.data / "BETA" / "imagesTr").iterdir()],
        "center BETA: no .nii.gz images in ",
    ),
    "no center": (lambda mini: shutil.rmtree(mini.data / "BETA"), "has no center 'BETA' — known: ALPHA, GAMMA"),
    "empty folder": (
        lambda mini: [shutil.rmtree(path) for path in mini.data.iterdir()],
        "is empty — it needs one folder per center (ALPHA, BETA, GAMMA)",
    ),
    "no manifest": (
        lambda mini: (mini.data / "BETA" / "dataset.json").unlink(),
        "center BETA: no dataset.json in ",
    ),
    "broken manifest": (
        lambda mini: (mini.data / "BETA" / "dataset.json").write_text("{"),
        "center BETA: dataset.json needs a mapping 'labels'",
    ),
    "manifest of bytes": (
        lambda mini: (mini.data / "BETA" / "dataset.json").write_bytes(b"\xff\xfe"),
        "center BETA: dataset.json needs a mapping 'labels'",
    ),
    "broken center.yaml": (
        lambda mini: (mini.data / "BETA" / "center.yaml").write_text(": [bad"),
        "center BETA: center.yaml: not valid YAML: ",
    ),
    "center.yaml of bytes": (
        lambda mini: (mini.data / "BETA" / "center.yaml").write_bytes(b"\xff\xfe"),
        "center BETA: center.yaml: ",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.usefixtures("inside")
def test_bad_source_data_ends_a_run_with_one_line(
    name: str, mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = FAULTS[name]
    spoil(mini)
    runs = tmp_path / "runs"
    assert call(run_arguments(mini, runs)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *progress, line = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert all(text.startswith("train ") for text in progress)
    statuses = [json.loads(path.read_text()) for path in runs.rglob("status.json")]
    assert all(status["state"] == "failed" and message in status["reason"] for status in statuses)
    assert not list(runs.rglob("*.safetensors"))
    assert not list(runs.rglob(".tmp-*"))


@pytest.mark.usefixtures("inside")
def test_a_bad_held_out_case_is_a_failed_row_and_not_the_end(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pandas as pd

    truncate(image_of(mini, "GAMMA"))
    assert call(run_arguments(mini, tmp_path / "runs")) == 0
    [table] = (tmp_path / "runs").rglob("cases.parquet")
    rows = pd.read_parquet(table)
    failed = rows[rows["failed"]]
    assert set(failed["case"]) == {"GAMMA/case_01"}
    assert failed["reason"].str.startswith("case GAMMA/case_01: image").all()
    assert failed["empty_prediction"].all()
    assert failed["dsc"].isna().all()
    assert (failed["n_lesions_reference"] > 0).all(), "its label can be read: what was to be found counts as missed"
    assert not failed["empty_reference"].any()
    assert {str(rows[name].dtype) for name in UNDEFINABLE} == {"float64"}
    views = ["setting", "checkpoint", "threshold"]
    assert len(failed) == len(rows[rows["case"] == "GAMMA/case_00"][views].drop_duplicates())
    table = " ".join(capsys.readouterr().out.split())
    assert "F-Seg" in table
    assert "failed 1" in table


@pytest.mark.parametrize("name", ["truncated", "label 7", "other grid", "missing label"])
def test_data_check_lists_what_is_wrong_and_ends_with_two(
    name: str, mini: Mini, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    spoil, message = FAULTS[name]
    spoil(mini)
    assert call(["data", "check", str(mini.data), "--protocol", str(mini.protocol), "--format", "json"]) == 2
    report = json.loads(capsys.readouterr().out)
    errors = [finding for finding in report["findings"] if finding["level"] == "error"]
    assert (report["centers"], report["errors"], len(errors)) == (3, 1, 1)
    assert message in errors[0]["message"]
    assert call(["data", "check", str(mini.data), "--protocol", str(mini.protocol)]) == 2
    table = capsys.readouterr().out
    assert message.strip() in table
    assert "cases of 3 centers: 1 errors" in table


def test_data_check_of_sound_data_ends_with_zero(sound: Mini, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["data", "check", str(sound.data), "--protocol", str(sound.protocol)]) == 0
    assert "12 cases of 3 centers: 0 errors" in capsys.readouterr().out


def test_data_check_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is empty" in mistake(capsys, ["data", "check", str(tmp_path)])
    assert "does not exist" in mistake(capsys, ["data", "check", str(tmp_path / "none")])


def test_data_phantom_draws_four_centers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "phantom"
    assert call(["data", "phantom", str(target), "--cases", "1", "--seed", "3", "--shift", "noise=0.5"]) == 0
    assert capsys.readouterr().out == f"4 cases of MSD, RENJI, RMYY, NIH in {target}\n"
    record = json.loads((target / "phantom.json").read_text())
    assert (record["recipe"]["seed"], record["recipe"]["strengths"]["noise"]) == (3, 0.5)
    assert len(list(target.rglob("*.nii.gz"))) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shift", "noise"], "--shift 'noise': expected axis=strength"),
        (["--shift", "nois=1"], "phantom: unknown shift axis 'nois' — did you mean 'noise'?"),
        (["--shift", "noise=-1"], "phantom: strength of axis 'noise' is -1.0, it must be a number ≥ 0"),
        (["--size", "medium"], "unknown --size 'medium'"),
        (["--cases", "0"], "Invalid value for '--cases'"),
    ],
)
def test_a_phantom_that_cannot_be_drawn(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in mistake(capsys, ["data", "phantom", str(tmp_path / "phantom"), *options])
    assert not list(tmp_path.iterdir())


def test_a_phantom_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").write_text("data")
    assert "holds other files" in mistake(capsys, ["data", "phantom", str(tmp_path), "--cases", "1"])
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
