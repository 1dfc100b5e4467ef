"""Real files on the whole path: an MRI set dealt into centers and trained on, and a CT read, prepared and predicted on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dgbench.cli import call
from dgbench.data.case import Case, load_center, load_centers
from dgbench.data.check import check_data
from dgbench.data.importing import split_folder
from dgbench.data.preparation import PreparedCase, native_label, prepare_case, to_native
from dgbench.data.reading import read_image
from dgbench.errors import DgbenchError
from dgbench.inference.cascade import StageResult, run_stage
from dgbench.inference.native import native_mask
from dgbench.method import Setup
from dgbench.nets import Backbone
from dgbench.protocol import ResolvedProtocol, load_protocol
from dgbench.training.validation import stage_predictor
from dgbench_methods.erm.method import ERM

LABELS = {"anterior": 1, "posterior": 2}
PANCREAS_OF_TOTALSEGMENTATOR = 7


def decathlon(folder: Path, names: list[str], dataset: dict[str, object] | None = None) -> Path:
    """A folder in Decathlon style whose files hold their own names."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for name in names:
            (folder / part / f"{name}.nii.gz").write_text(f"{part} {name}")
    if dataset is not None:
        (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


NAMES = [f"scan_{index:03}" for index in range(11)]


class TestSplit:
    def test_every_case_is_in_one_center_with_its_own_files(self, tmp_path: Path) -> None:
        source = decathlon(tmp_path / "Task99", NAMES)
        dealt = split_folder(source, tmp_path / "data", ["A", "B", "C"], labels=LABELS, modality="MRI")
        assert sorted(name for cases in dealt.values() for name in cases) == NAMES
        assert sorted(map(len, dealt.values())) == [3, 4, 4]
        for center, names in dealt.items():
            loaded = load_center(tmp_path / "data" / center)
            assert tuple(case.name for case in loaded.cases) == names
            assert loaded.labels == {"background": 0, **LABELS}
            assert loaded.meta["source"] == "Task99"
            for case in loaded.cases:
                assert case.image.read_text() == f"imagesTr {case.name}"
                assert case.label.read_text() == f"labelsTr {case.name}"
        assert json.loads((tmp_path / "data" / "A" / "dataset.json").read_text())["modality"] == {"0": "MRI"}

    def test_deal_depends_on_names_alone_and_mixes_their_order(self, tmp_path: Path) -> None:
        first = split_folder(decathlon(tmp_path / "one", NAMES), tmp_path / "x", ["A", "B"], labels=LABELS)
        second = split_folder(decathlon(tmp_path / "two", NAMES[::-1]), tmp_path / "y", ["A", "B"], labels=LABELS)
        assert first == second
        assert first["A"] == ("scan_002", "scan_003", "scan_004", "scan_006", "scan_009", "scan_010")

    def test_dataset_json_of_the_source_is_kept_and_labels_replace_it(self, tmp_path: Path) -> None:
        raw = {"labels": {"0": "background", "1": "pancreas", "2": "cancer"}, "modality": {"0": "CT"}, "numTraining": 2}
        source = decathlon(tmp_path / "source", ["a", "b"], raw)
        split_folder(source, tmp_path / "x", ["A", "B"])
        written = json.loads((tmp_path / "x" / "A" / "dataset.json").read_text())
        assert written == {"name": "source, center A", "labels": raw["labels"], "modality": raw["modality"]}
        split_folder(source, tmp_path / "y", ["A", "B"], labels={"tumor": 2})
        assert load_center(tmp_path / "y" / "A").labels == {"background": 0, "tumor": 2}

    def test_links_point_to_the_source(self, tmp_path: Path) -> None:
        source = decathlon(tmp_path / "source", ["a", "b"])
        split_folder(source, tmp_path / "x", ["A", "B"], labels=LABELS, link=True)
        links = list((tmp_path / "x").rglob("*.nii.gz"))
        assert len(links) == 4
        assert all(path.is_symlink() and path.resolve().is_relative_to(source) for path in links)

    def test_hidden_files_of_an_archive_are_no_cases(self, tmp_path: Path) -> None:
        source = decathlon(tmp_path / "source", ["a", "b"])
        (source / "imagesTr" / "._a.nii.gz").write_bytes(b"")
        assert split_folder(source, tmp_path / "x", ["A", "B"], labels=LABELS) == {"A": ("a",), "B": ("b",)}
        shutil.copyfile(source / "imagesTr" / "._a.nii.gz", tmp_path / "x" / "A" / "imagesTr" / "._a.nii.gz")
        assert [case.name for case in load_center(tmp_path / "x" / "A").cases] == ["a"]

    @pytest.mark.parametrize(
        ("change", "arguments", "message"),
        [
            ("", {"centers": ["A"]}, "centers A: name two or more, each once"),
            ("", {"centers": ["A", "A"]}, "centers A, A: name two or more, each once"),
            ("", {"centers": ["A", "../B"]}, "center name '../B' cannot be used"),
            ("", {"centers": ["A", "B", "C"]}, "holds 2 cases, fewer than the 3 centers"),
            ("", {"labels": None}, "no dataset.json that names its labels"),
            ("imagesTr/b.nii.gz", {}, "case b: in labelsTr of .*, but not in imagesTr"),
            ("labelsTr/b.nii.gz", {}, "case b: in imagesTr of .*, but not in labelsTr"),
        ],
    )
    def test_what_cannot_be_split_leaves_nothing_behind(
        self, tmp_path: Path, change: str, arguments: dict[str, object], message: str
    ) -> None:
        source = decathlon(tmp_path / "source", ["a", "b"])
        if change:
            (source / change).unlink()
        before = tree(tmp_path)
        with pytest.raises(DgbenchError, match=message):
            split_folder(source, tmp_path / "data", **{"centers": ["A", "B"], "labels": LABELS, **arguments})  # type: ignore[arg-type]
        assert tree(tmp_path) == before
        assert not (tmp_path / "data").exists()

    def test_a_failure_half_way_leaves_nothing_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = decathlon(tmp_path / "source", NAMES)
        copied: list[str] = []

        def full_disk(origin: Path, target: Path) -> None:
            if len(copied) == 5:
                raise OSError(28, "No space left on device")
            copied.append(Path(origin).name)

        monkeypatch.setattr(shutil, "copyfile", full_disk)
        with pytest.raises(DgbenchError, match=r"cannot write .*data: No space left on device"):
            split_folder(source, tmp_path / "data", ["A", "B"], labels=LABELS)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    def test_a_filled_folder_is_not_touched(self, tmp_path: Path) -> None:
        source = decathlon(tmp_path / "source", ["a", "b"])
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "mine.txt").write_text("mine")
        with pytest.raises(DgbenchError, match="is there already and not empty"):
            split_folder(source, tmp_path / "data", ["A", "B"], labels=LABELS)
        assert tree(tmp_path / "data") == {"mine.txt": b"mine"}

    def test_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = decathlon(tmp_path / "source", ["a", "b"])
        command = ["data", "split", str(source), str(tmp_path / "data"), "--centers", "A, B"]
        assert call(command) == 2
        assert capsys.readouterr().err.startswith("error: ")
        for wrong in ("anterior", "anterior=one", "=1"):
            assert call([*command, "--labels", wrong]) == 2
            assert "expected name=number pairs" in capsys.readouterr().err
        assert call([*command, "--labels", "anterior=1, posterior=2"]) == 0
        assert capsys.readouterr().out == f"2 cases in {tmp_path / 'data'}: A 1, B 1\n"


class TestShippedProtocols:
    def test_margins_are_the_voxels_of_the_paper(self) -> None:
        resolved = load_protocol("pancreas-tumor").resolve("paper")
        margins = {
            name: (resolved.margin(name, oracle=False), resolved.margin(name, oracle=True))
            for name in resolved.protocol.stages
        }
        assert margins == {
            "pancreas-coarse": ((0, 0, 0), (0, 0, 0)),
            "pancreas-fine": ((5, 25, 25), (5, 25, 25)),
            "tumor-coarse": ((8, 30, 30), (5, 25, 25)),
            "tumor-fine": ((5, 25, 25), (5, 25, 25)),
        }

    def test_paper_preset_trains_as_long_as_the_paper(self) -> None:
        resolved = load_protocol("pancreas-tumor").resolve("paper")
        cases = (281 + 160, 281 + 153, 160 + 153)
        assert (
            resolved.preset.stages["tumor-coarse"].draws
            == resolved.preset.stages["tumor-fine"].draws
            == 800 * sum(cases) // 3
        )
        assert resolved.preset.stages["pancreas-fine"].draws == 150 * (sum(cases) // 3 + 82)
        assert [resolved.cases_per_step(stage) for stage in resolved.protocol.stages] == [3, 3, 2, 2]
        assert {budget.lr for budget in resolved.preset.stages.values()} == {1e-4}
        assert [resolved.preset.stages[stage].crop for stage in ("tumor-coarse", "tumor-fine")] == [
            (64, 224, 224),
            (32, 128, 128),
        ]

    def test_only_paper_and_bench_of_patient_data_are_ranked(self) -> None:
        ranked = {
            (name, preset)
            for name in ("pancreas-tumor", "hippocampus")
            for preset, content in load_protocol(name).presets.items()
            if content.ranked
        }
        assert ranked == {("pancreas-tumor", "paper"), ("pancreas-tumor", "bench")}


@pytest.fixture
def hippocampus(real_data: Path, tmp_path: Path) -> Path:
    split_folder(
        real_data / "hippocampus", tmp_path / "data", ["A", "B", "C"], labels=LABELS, modality="MRI", link=True
    )
    return tmp_path / "data"


def test_hippocampus_passes_the_check(hippocampus: Path) -> None:
    report = check_data(hippocampus, load_protocol("hippocampus"))
    assert (report.centers, report.cases, report.rows()) == (3, 24, [])


def test_hippocampus_crops_hold_the_structures(hippocampus: Path, tmp_path: Path) -> None:
    """The comment in the protocol says so; the network then sees the whole structure."""
    protocol = load_protocol("hippocampus")
    crops = protocol.presets["demo"].stages
    for center in load_centers(hippocampus, protocol).values():
        for case in center.cases:
            prepared = prepare_case(case, protocol, tmp_path / "cache")
            for stage, labels, factor in (
                ("pancreas-coarse", (1, 2), 2),
                ("pancreas-fine", (1, 2), 1),
                ("tumor-fine", (2,), 1),
            ):
                box = prepared.box(labels)
                assert box is not None
                assert all(high - low <= side * factor for low, high, side in zip(*box, crops[stage].crop, strict=True))


@pytest.mark.slow
def test_hippocampus_runs_through_the_cascade(
    hippocampus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pandas as pd

    code = call(
        [
            *("run", "--protocol", "hippocampus", "--data", str(hippocampus), "--heldout", "A", "--method", "erm"),
            *("--preset", "tiny", "--threads", "1", "--device", "cpu", "--no-mlflow"),
            *("--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")),
        ]
    )
    assert code == 0
    assert "Patient data" in capsys.readouterr().out
    (folder,) = (tmp_path / "runs" / "hippocampus" / "A" / "erm").iterdir()
    assert (folder / "figures" / "overlay.png").read_bytes()[:4] == b"\x89PNG"
    rows = pd.read_parquet(folder / "evaluation" / "cases.parquet")
    held = rows[rows["role"] == "held-out"]
    assert set(held["case"]) == {case.id for case in load_center(hippocampus / "A").cases}
    assert set(held["setting"]) == {"C-Seg", "F-Seg", "C-Mask", "F-Mask"}
    assert not rows["failed"].any()
    assert rows["dsc"].between(0, 1).all()
    assert (held["volume_reference_mm3"] > 0).all()


@pytest.fixture
def ct_case(real_data: Path, tmp_path: Path) -> Case:
    """The TotalSegmentator CT as a case: its pancreas is the pancreas, and the half of it further back stands for a tumor."""
    source = real_data / "totalsegmentator_ct"
    center = tmp_path / "MSD"
    (center / "imagesTr").mkdir(parents=True)
    (center / "labelsTr").mkdir()
    shutil.copyfile(source / "example_ct_sm.nii.gz", center / "imagesTr" / "ct.nii.gz")
    stored = sitk.ReadImage(str(source / "example_seg.nii.gz"))
    pancreas = sitk.GetArrayFromImage(stored) == PANCREAS_OF_TOTALSEGMENTATOR
    label = pancreas.astype(np.uint8)
    middle = int(np.median(np.argwhere(pancreas)[:, 1]))
    label[:, middle:][pancreas[:, middle:]] = 2
    written = sitk.GetImageFromArray(label)
    written.CopyInformation(stored)
    sitk.WriteImage(written, str(center / "labelsTr" / "ct.nii.gz"))
    (center / "dataset.json").write_text(
        json.dumps({"name": "CT", "labels": {"pancreas": 1, "tumor": 2}, "modality": {"0": "CT"}})
    )
    return load_center(center).cases[0]


class Untrained(ERM):
    """Initial weights; what they answer to most, a thousandth of the image, is what is found."""

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.logits(image)
        return torch.sigmoid(logits - torch.quantile(logits, 0.999))


def predict(
    prepared: PreparedCase, stage: str, resolved: ResolvedProtocol, found: dict[str, StageResult], chain: str
) -> StageResult:
    """The answer of an untrained network to ``stage``."""

    def build_backbone() -> Backbone:
        return Backbone(width=resolved.preset.width, upsample=resolved.protocol.upsample)

    torch.manual_seed(0)
    method = Untrained(ERM.info.configure(), Setup(resolved.protocol.task, stage, False, 2, 1, build_backbone))
    predictor = stage_predictor(method, stage, resolved, torch.device("cpu"), "fp32", tta=False)
    return run_stage(prepared, stage, predictor, resolved, found, chain=chain)


@pytest.mark.parametrize("chain", [pytest.param("Seg", marks=pytest.mark.slow), "Mask"])
def test_ct_is_read_prepared_and_predicted_on(ct_case: Case, tmp_path: Path, chain: str) -> None:
    torch.set_num_threads(1)
    resolved = load_protocol("pancreas-tumor").resolve("demo")
    protocol = resolved.protocol
    prepared = prepare_case(ct_case, protocol, tmp_path / "cache")
    assert prepared.native.size == (30, 101, 122)
    assert prepared.native.spacing == pytest.approx((3.0, 3.0, 3.0))
    assert prepared.spacing == (1.5, 0.8, 0.8)
    image, _ = read_image(ct_case, protocol.task)
    back, _ = to_native(prepared, prepared.image_box((0, 0, 0), prepared.size)[0], (0, 0, 0))
    difference = back * 340 - 100 - np.clip(image, -100, 240)  # in HU, after two linear interpolations
    assert np.abs(difference).mean() < 3
    assert np.corrcoef(back.ravel(), np.clip(image, -100, 240).ravel())[0, 1] > 0.99
    reference, grid = native_label(ct_case, protocol)
    assert grid == prepared.native
    assert np.bincount(reference.ravel())[1:].sum() == 644
    found: dict[str, StageResult] = {}
    for stage in protocol.stages:
        if chain == "Mask" and protocol.stages[stage].recipe is not None:
            continue
        found[stage] = predict(prepared, stage, resolved, found, chain)
        mask = native_mask(prepared, found[stage], 0.5, protocol.inference.component_fraction)
        assert mask.shape == image.shape == reference.shape
        assert mask.dtype == np.bool_
    if chain == "Mask":
        assert found["tumor-coarse"].roi == "label"
