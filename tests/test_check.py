"""`data check` sees every case in one pass, however many are broken, and tells errors from warnings."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dgbench.data.case import load_center
from dgbench.data.check import Finding, Report, check_center, check_data
from dgbench.errors import DgbenchError
from dgbench.protocol import Protocol, load_protocol
from dgbench.task import Percentile

SIZE = (6, 12, 14)
CASES = 4


def scan(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(60, 20, SIZE).astype(np.int16) - 1000 * (np.ogrid[:6, :12, :14][1] < 2)


def mask(seed: int = 0) -> np.ndarray:
    label = np.zeros(SIZE, np.uint8)
    label[1:5, 4:9, 3 : 8 + seed % 5] = 1
    label[2:4, 5:7, 4 : 6 + seed % 2] = 2
    return label


def save(path: Path, array: np.ndarray, spacing=(2.5, 0.8, 0.8), origin=(0, 0, 0)) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(step) for step in spacing[::-1]])
    image.SetOrigin(origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def image_of(data: Path, case: str) -> Path:
    center, name = case.split("/")
    return data / center / "imagesTr" / f"{name}.nii.gz"


def label_of(data: Path, case: str) -> Path:
    center, name = case.split("/")
    return data / center / "labelsTr" / f"{name}.nii.gz"


def write_manifest(folder: Path, **labels: int) -> None:
    (folder / "dataset.json").write_text(json.dumps({"name": folder.name, "labels": {"background": 0, **labels}}))


@pytest.fixture
def protocol() -> Protocol:
    return load_protocol("phantom")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three sound centers of four cases."""
    for number, center in enumerate(("MSD", "RENJI", "RMYY")):
        for index in range(CASES):
            seed = 5 * number + index
            label = mask()
            label[1, 9, index : index + 4 + number] = 1
            save(image_of(tmp_path, f"{center}/{index}"), scan(seed))
            save(label_of(tmp_path, f"{center}/{index}"), label)
        write_manifest(tmp_path / center, pancreas=1, tumor=2)
    return tmp_path


def only(report: Report) -> Finding:
    assert len(report.findings) == 1, report.rows()
    return report.findings[0]


def test_sound_data_has_no_findings(data: Path, protocol: Protocol) -> None:
    told: list[tuple[str, int, int]] = []
    report = check_data(data, protocol, lambda *args: told.append(args))
    assert report == Report((), 3, 12)
    assert told[0] == ("MSD/0", 1, 12)
    assert told[-1] == ("RMYY/3", 12, 12)
    assert check_data(data) == report


def flat(value: float) -> Callable[[Path], None]:
    return lambda data: save(image_of(data, "RENJI/1"), np.full(SIZE, value, np.int16))


def relabel(array: np.ndarray) -> Callable[[Path], None]:
    return lambda data: save(label_of(data, "RENJI/1"), array.astype(np.uint8))


def copy(source: str, target: str, where: Callable[[Path, str], Path]) -> Callable[[Path], None]:
    return lambda data: where(data, target).write_bytes(where(data, source).read_bytes())


ONE_FAULT: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "empty label": (relabel(mask() * 0), "RENJI/1", "warning", "label is empty: no voxel of any structure"),
    "no tumor": (relabel(mask() > 0), "RENJI/1", "warning", "no voxel of label 'tumor' (2)"),
    "no pancreas": (relabel(2 * (mask() == 2)), "RENJI/1", "warning", "no voxel of label 'pancreas' (1)"),
    "constant image": (flat(50), "RENJI/1", "warning", "image is constant (50)"),
    "8 bit": (
        lambda data: save(image_of(data, "RENJI/1"), scan(99).clip(0, 255)),
        "RENJI/1",
        "warning",
        "look like 8 bit, not HU — the window is [-100, 240]",
    ),
    "label flipped under an equal affine": (
        lambda data: save(label_of(data, "RENJI/1"), np.roll(mask(), -4, axis=1)),
        "RENJI/1",
        "warning",
        "40% of the labelled voxels are outside of the window [-100, 240]",
    ),
    "duplicate within a center": (
        copy("RENJI/0", "RENJI/1", image_of),
        "RENJI/1",
        "warning",
        "image is identical to that of case RENJI/0",
    ),
    "duplicate across centers": (
        copy("MSD/3", "RENJI/1", image_of),
        "RENJI/1",
        "warning",
        "image is identical to that of case MSD/3",
    ),
    "label of another case": (
        copy("RENJI/2", "RENJI/1", label_of),
        "RENJI/2",
        "warning",
        "label is identical to that of case RENJI/1",
    ),
    "spacing outlier": (
        lambda data: [
            save(where(data, "RENJI/1"), array, (25, 0.8, 0.8))
            for where, array in ((image_of, scan(77)), (label_of, mask(3)))
        ],
        "RENJI/1",
        "warning",
        "spacing 25×0.8×0.8 mm is unlike its center's median 2.5×0.8×0.8 mm",
    ),
    "a center in another unit": (
        lambda data: [
            save(
                where(data, f"RENJI/{index}"),
                sitk.GetArrayFromImage(sitk.ReadImage(str(where(data, f"RENJI/{index}")))),
                (40, 12, 12),
            )
            for index in range(CASES)
            for where in (image_of, label_of)
        ],
        "-",
        "warning",
        "median spacings of the centers are too far apart (MSD 2.5×0.8×0.8, RENJI 40×12×12, RMYY 2.5×0.8×0.8 mm)",
    ),
    "orphan label": (
        lambda data: save(label_of(data, "RENJI/9"), mask(4)),
        "RENJI/9",
        "warning",
        "orphan label — no image",
    ),
    "A.nii beside A.nii.gz": (
        lambda data: save(image_of(data, "RENJI/1").with_suffix(""), scan(5)),
        "RENJI/1",
        "warning",
        "1.nii.gz lies beside it — remove one",
    ),
    "A.nii alone": (
        lambda data: save(data / "RENJI" / "imagesTr" / "7.nii", scan(5)),
        "RENJI/7",
        "warning",
        "is ignored: only .nii.gz counts",
    ),
    "missing label": (
        lambda data: save(image_of(data, "RENJI/9"), scan(88)),
        "RENJI/9",
        "error",
        "case RENJI/9: label missing — expected",
    ),
    "label 7": (
        relabel(mask() + 5 * (mask() == 2)),
        "RENJI/1",
        "error",
        "has the values 7, the protocol allows 0, 1, 2",
    ),
    "other grid": (
        lambda data: save(label_of(data, "RENJI/1"), mask(), origin=(0, 0, 50)),
        "RENJI/1",
        "error",
        "differs from image (0, 0, 0) by 50.0 mm",
    ),
    "truncated": (
        lambda data: image_of(data, "RENJI/1").write_bytes(image_of(data, "RENJI/1").read_bytes()[:-9]),
        "RENJI/1",
        "error",
        "is truncated",
    ),
    "no dataset.json": (
        lambda data: (data / "RENJI" / "dataset.json").unlink(),
        "RENJI",
        "error",
        "no dataset.json in",
    ),
    "broken center.yaml": (
        lambda data: (data / "RENJI" / "center.yaml").write_text(": [bad"),
        "RENJI",
        "error",
        "center RENJI: center.yaml: not valid YAML: ",
    ),
    "center.yaml of bytes": (
        lambda data: (data / "RENJI" / "center.yaml").write_bytes(b"\xff\xfe"),
        "RENJI",
        "error",
        "center.yaml is not text in UTF-8",
    ),
    "other meaning of a label": (
        lambda data: write_manifest(data / "RENJI", pancreas=2, tumor=1),
        "RENJI",
        "error",
        "gives label 'pancreas' the value 2, protocol phantom expects 1",
    ),
    "a name with a space": (
        lambda data: [where(data, "RENJI/1").rename(where(data, "RENJI/a b")) for where in (image_of, label_of)],
        "RENJI/a b",
        "error",
        "case name 'a b' cannot be used",
    ),
    "a center of no protocol": (lambda data: (data / "Extra").mkdir(), "Extra", "warning", "not in protocol phantom"),
}


@pytest.mark.parametrize("fault", ONE_FAULT)
def test_each_fault_gives_its_finding(data: Path, protocol: Protocol, fault: str) -> None:
    change, case, level, message = ONE_FAULT[fault]
    change(data)
    report = check_data(data, protocol)
    finding = next(each for each in report.findings if message in each.message)
    assert (finding.case, finding.level) == (case, level)
    assert (report.errors > 0) == (level == "error")
    if fault != "other meaning of a label":
        assert only(report) == finding


def test_percentile_intensities_are_not_judged_as_hu(data: Path, protocol: Protocol) -> None:
    save(image_of(data, "RENJI/1"), scan(99).clip(0, 255))
    task = protocol.task.model_copy(update={"intensity": Percentile()})
    assert check_data(data, protocol.model_copy(update={"task": task})).findings == ()


def test_support_center_needs_no_tumor(data: Path, protocol: Protocol) -> None:
    for index in range(CASES):
        save(image_of(data, f"NIH/{index}"), scan(50 + index))
        label = (mask() > 0).astype(np.uint8)
        label[5, 9, : index + 3] = 1
        save(label_of(data, f"NIH/{index}"), label)
    write_manifest(data / "NIH", pancreas=1)
    assert check_data(data, protocol) == Report((), 4, 16)


def test_one_pass_sees_all_broken_cases_and_centers(data: Path, protocol: Protocol) -> None:
    image_of(data, "MSD/0").write_bytes(b"")
    image_of(data, "MSD/1").write_bytes(b"<html>")
    label_of(data, "MSD/1").write_bytes(b"<html>")
    label_of(data, "MSD/2").unlink()
    (data / "RENJI" / "dataset.json").write_text("{")
    save(label_of(data, "RENJI/3"), mask() * 9)
    for path in (data / "RMYY").rglob("*"):
        if path.is_file():
            path.unlink()
    report = check_data(data, protocol)
    errors = [finding.case for finding in report.findings if finding.level == "error"]
    assert sorted(errors) == ["MSD/0", "MSD/1", "MSD/1", "MSD/2", "RENJI", "RENJI/3", "RMYY"]
    assert report.errors == len(errors)
    assert report.cases == 7
    assert [finding.level for finding in report.findings] == ["error"] * 7 + ["warning"] * 2
    assert {finding.message for finding in report.findings if finding.level == "warning"} == {
        f"center {name}: {n} cases, fewer than 4: it gives none for source validation"
        for name, n in (("MSD", 3), ("RMYY", 0))
    }
    assert report.rows()[0].keys() == {"case", "level", "message"}
    assert all("\n" not in row["message"] for row in report.rows())
    assert json.loads(report.to_json())["errors"] == 7


def test_missing_center_and_missing_folder(data: Path, protocol: Protocol, tmp_path: Path) -> None:
    (data / "RENJI").rename(data / "<script>")
    report = check_data(data, protocol)
    assert {(finding.case, finding.level) for finding in report.findings} == {
        ("RENJI", "error"),
        ("<script>", "warning"),
    }
    without = check_data(data)
    assert "center name '<script>' cannot be used" in only(without).message
    assert without.cases == 12
    with pytest.raises(DgbenchError, match="does not exist"):
        check_data(tmp_path / "nowhere")
    (tmp_path / "void").mkdir()
    with pytest.raises(DgbenchError, match="is empty"):
        check_data(tmp_path / "void")


def test_one_center(data: Path, protocol: Protocol) -> None:
    copy("RENJI/0", "RENJI/1", image_of)(data)
    save(label_of(data, "RENJI/3"), mask() * 9)
    findings = check_center(load_center(data / "RENJI"), protocol)
    assert [(finding.case, finding.level) for finding in findings] == [("RENJI/3", "error"), ("RENJI/1", "warning")]


def test_real_center(real_data: Path, tmp_path: Path, protocol: Protocol) -> None:
    center = tmp_path / "MSD"
    center.mkdir()
    for part in ("imagesTr", "labelsTr"):
        (center / part).symlink_to(real_data / "hippocampus" / part)
    write_manifest(center, anterior=1, posterior=2)
    assert check_data(tmp_path) == Report((), 1, 24)
    assert any("look like 8 bit" in finding.message for finding in check_center(load_center(center), protocol))
