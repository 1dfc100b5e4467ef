"""Imported prediction sets: judged like every prediction, checked like every file, and kept apart from what was trained here."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from cli_calls import mistake
from prediction_sets import SPACING, cube, of_arrays
from training_fixtures import Mini

from dgbench.cli import call
from dgbench.errors import DgbenchError
from dgbench.evaluation.imported import PredictedCase
from dgbench.evaluation.metrics import case_metrics
from dgbench.store.folder import iter_runs


def masks(folder: Path, mini: Mini) -> Path:
    """The labels of GAMMA, moved by one voxel, as predictions."""
    folder.mkdir()
    for path in sorted((mini.data / "GAMMA" / "labelsTr").iterdir()):
        rewrite(path, folder / path.name, lambda label: np.roll(label, 1, axis=2))
    return folder


def rewrite(source: Path, target: Path, change: Callable[[Any], Any], spacing: tuple[float, ...] | None = None) -> None:
    image = sitk.ReadImage(str(source))
    written = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    if written.GetSize() == image.GetSize():
        written.CopyInformation(image)
    if spacing is not None:
        written.SetSpacing(spacing)
    sitk.WriteImage(written, str(target))


def arguments(mini: Mini, folder: Path, runs: Path, **changes: str) -> list[str]:
    options = {"name": "closed", "heldout": "GAMMA", "protocol": str(mini.protocol), "preset": "mini"}
    options |= {"data": str(mini.data), "cache": str(mini.cache), "runs": str(runs), **changes}
    return ["import-predictions", str(folder), *(f"--{key}={value}" for key, value in options.items())]


def test_masks_become_a_finished_run(sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, runs = masks(tmp_path / "masks", sound), tmp_path / "runs"
    assert call(arguments(sound, folder, runs)) == 0
    (run,) = iter_runs(runs)
    assert (run.spec.method.name, run.spec.method.imported, run.spec.stages) == ("closed", True, {})
    assert run.status.state == "done"
    assert str(tmp_path) not in (run.path / "spec.json").read_text()
    rows = run.cases()
    assert set(rows["checkpoint"]) == {"imported"}
    assert list(rows["case"]) == ["GAMMA/case_00", "GAMMA/case_01"]
    reference = sitk.GetArrayFromImage(sitk.ReadImage(str(sound.data / "GAMMA" / "labelsTr" / "case_01.nii.gz"))) == 2
    expected = case_metrics(reference, np.roll(reference, 1, axis=2), SPACING, nsd_tolerance_mm=2.0)
    for name in ("dsc", "nsd", "assd", "hd95", "centroid_mm", "volume_prediction_mm3"):
        assert rows[name][1] == pytest.approx(getattr(expected, name))
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    assert call(arguments(sound, folder, runs)) == 0  # again: found
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before
    capsys.readouterr()
    assert call(["leaderboard", f"--protocol={sound.protocol}", f"--runs={runs}"]) == 0
    assert "Imported prediction sets" in capsys.readouterr().out


def test_a_set_stands_in_the_table_of_the_runs(sound: Mini, tmp_path: Path) -> None:
    """The identity of protocol, data and evaluated cases is that of a run of a method."""
    from dgbench.launch.jobs import evaluation_identity

    runs = tmp_path / "runs"
    assert call(arguments(sound, masks(tmp_path / "masks", sound), runs)) == 0
    (run,) = iter_runs(runs)
    plan = sound.plan(runs)
    identity = evaluation_identity(plan, plan.own)
    assert run.spec.protocol == plan.own.spec.protocol
    assert run.spec.data.centers == {**plan.own.spec.data.centers, **identity["heldout"]}
    stored = json.loads((run.evaluation / "spec.json").read_text())
    assert {key: stored[key] for key in ("numbers", "fingerprint", "content")} == {
        key: identity[key] for key in ("numbers", "fingerprint", "content")
    }


def test_other_masks_and_seeds_are_other_runs(sound: Mini, tmp_path: Path) -> None:
    folder, runs = masks(tmp_path / "masks", sound), tmp_path / "runs"
    assert call(arguments(sound, folder, runs)) == 0
    assert call(arguments(sound, folder, runs, seed="1")) == 0
    path = folder / "case_00.nii.gz"
    rewrite(path, path, lambda label: np.roll(label, 1, axis=1))
    assert call(arguments(sound, folder, runs)) == 0
    assert len(list(iter_runs(runs))) == 3


def test_binary_masks_need_their_value_named(sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, runs = tmp_path / "binary", tmp_path / "runs"
    folder.mkdir()
    for path in (sound.data / "GAMMA" / "labelsTr").iterdir():
        rewrite(path, folder / path.name, lambda label: (label == 2).astype(np.uint8))
    text = mistake(capsys, arguments(sound, folder, runs))
    assert text.startswith("no mask holds value 2, they hold value 1 — say which values are meant with --target")
    assert not list(iter_runs(runs))
    assert call(arguments(sound, folder, runs, target="1")) == 0
    capsys.readouterr()
    (run,) = iter_runs(runs)
    assert (run.cases()["dsc"] == 1).all()
    for wrong in ("one", "0", "1,,2", "256"):
        assert "expected label values from 1 to 255" in mistake(capsys, arguments(sound, folder, runs, target=wrong))


def spoil(folder: Path, kind: str) -> None:
    path = folder / "case_01.nii.gz"
    match kind:
        case "missing":
            path.unlink()
        case "extra":
            shutil.copyfile(path, folder / "case_77.nii.gz")
        case "size":
            rewrite(path, path, lambda label: label[:-1])
        case "spacing":
            rewrite(path, path, lambda label: label, spacing=(1.0, 1.0, 2.5))
        case "value":
            rewrite(path, path, lambda label: np.where(label == 2, 7, label).astype(np.uint8))
        case "soft":
            rewrite(path, path, lambda label: (label * 0.3).astype(np.float32))
        case "nan":
            rewrite(path, path, lambda label: np.where(label == 2, np.nan, label).astype(np.float32))
        case "truncated":
            path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no mask for 1 of 2 cases of GAMMA: case_01.nii.gz — every held-out case needs one"),
        ("extra", "1 files belong to no case of GAMMA: case_77.nii.gz"),
        ("size", "grid 15×24×24 differs from reference 16×24×24 — resample the mask onto its scan"),
        ("spacing", "grid spacing 2.5×1×1 mm differs from reference 2×1×1 mm"),
        ("value", "case GAMMA/case_01: prediction has the values 7, the protocol allows 0, 1, 2"),
        ("soft", "case GAMMA/case_01: prediction has values that are not whole numbers"),
        ("nan", "NaN or infinite voxels"),
        ("truncated", "is truncated"),
    ],
)
def test_a_bad_folder_is_refused_and_nothing_written(
    sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    folder, runs = masks(tmp_path / "masks", sound), tmp_path / "runs"
    spoil(folder, kind)
    assert message in mistake(capsys, arguments(sound, folder, runs))
    assert not list(runs.rglob("*.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "erm"}, "--name erm: is a method of this benchmark"),
        ({"name": "ERM"}, "--name ERM: is a method of this benchmark"),
        ({"name": "a/b"}, "--name 'a/b' cannot be used"),
        ({"heldout": "DELTA"}, "unknown held-out center 'DELTA'"),
        ({"preset": "none"}, "unknown preset 'none'"),
    ],
)
def test_a_wrong_name_is_refused(
    sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    folder = masks(tmp_path / "masks", sound)
    assert message in mistake(capsys, arguments(sound, folder, tmp_path / "runs", **changes))
    assert "no such folder" in mistake(capsys, arguments(sound, tmp_path / "none", tmp_path / "runs"))


def test_arrays_become_a_run(tmp_path: Path) -> None:
    run = of_arrays(tmp_path, cube("MSD/b", 2), cube("MSD/a"))
    rows = run.cases()
    assert list(rows["case"]) == ["MSD/a", "MSD/b"]
    assert list(rows["dsc"]) == [1.0, 0.5]
    assert of_arrays(tmp_path, cube("MSD/a"), cube("MSD/b", 2)).path == run.path  # the order does not matter
    assert of_arrays(tmp_path, cube("MSD/a"), cube("MSD/b", 1)).path != run.path


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([], "no case of MSD"),
        ([cube("RENJI/a")], "case RENJI/a: is not of the held-out center"),
        ([cube("a")], "case a: is not of the held-out center"),
        ([cube("MSD/../../a")], "case MSD/../../a: is not of the held-out center"),
        (
            [("MSD/a", np.ones((2, 2)), np.ones((2, 2)), (1.0, 1.0))],
            "case MSD/a: masks of 2 axes — protocol phantom has 3",
        ),
        ([cube("MSD/a"), cube("MSD/a")], "case MSD/a: comes twice"),
        (
            [("MSD/a", *(2 * part for part in (np.ones((2, 2, 2)), np.ones((2, 2, 2)))), SPACING)],
            "case MSD/a: .*other than 0 and 1",
        ),
        ([("MSD/a", np.ones((2, 2, 2)), np.ones((2, 2, 3)), SPACING)], "case MSD/a: masks: shapes"),
        ([("MSD/a", np.ones((2, 2, 2)), np.ones((2, 2, 2)), (1.0, 1.0))], "case MSD/a: spacing"),
    ],
)
def test_wrong_arrays_are_refused_and_nothing_written(tmp_path: Path, cases: list[PredictedCase], message: str) -> None:
    with pytest.raises(DgbenchError, match=message):
        of_arrays(tmp_path, *cases)
    assert not list(tmp_path.iterdir())


def test_a_set_is_mirrored(tmp_path: Path) -> None:
    from dgbench.store.snapshot import take_snapshot

    shot = take_snapshot(of_arrays(tmp_path, cube("MSD/a", 1)))
    assert any(point.name == "held-out/MSD/F-Seg/imported/dsc" for point in shot.points)


def test_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parent.parent / "docs" / "submitting.md"
    (code,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {})
    (run,) = iter_runs(tmp_path / "runs")
    assert list(run.cases()["dsc"]) == [0.75]
    assert run.spec.command == (
        "dgbench import-predictions FOLDER --name mine --heldout RENJI --protocol pancreas-tumor --preset bench --data DIR --seed 0"
    )
