"""The coarse-to-fine cascade on networks that are told what to answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from dgbench.data.case import Case
from dgbench.data.preparation import native_label, prepare_case
from dgbench.evaluation.job import load_result, save_result
from dgbench.evaluation.metrics import dice
from dgbench.inference.cascade import StageResult, label_roi, run_stage
from dgbench.inference.native import native_mask
from dgbench.inference.predictor import Prediction
from dgbench.inference.roi import Box, whole, widen
from dgbench.protocol import FineRounds, Protocol, ResolvedProtocol, load_protocol
from dgbench.task import Task, Window

SHAPE = (40, 64, 72)
STAGES = ("pancreas-coarse", "pancreas-fine", "tumor-coarse", "tumor-fine")
PANCREAS = Box((12, 20, 24), (24, 40, 52))
TUMOR = Box((14, 26, 30), (20, 34, 40))
ORACLE = Box((20, 40, 10), (34, 60, 40))

# --- cascade ----------------------------------------------------------------------------------------------------------------------


@dataclass
class FakeCase:
    """Its image is the position of each voxel, so that a fake network knows where it looks. Asking for anything of the label fails
    where it is ``forbidden``, else its box is ``labelled``."""

    labelled: Box | None = None
    forbidden: bool = True
    size: tuple[int, ...] = SHAPE

    def image_box(self, low: Sequence[int], high: Sequence[int]) -> NDArray[np.float32]:
        axes = [np.arange(start, stop, dtype=np.float32) for start, stop in zip(low, high, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"))

    def box(self, labels: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        assert not self.forbidden, "the label was read"
        return (self.labelled.lo, self.labelled.hi) if self.labelled else None

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the cascade reached for {name}")


@dataclass
class FakePredictor:
    """Probability 1 in ``found`` (one box per call, the last one for ever), 0 elsewhere; ``seen`` are the ROIs it was shown."""

    found: Sequence[Box | None]
    seen: list[Box] = field(default_factory=list)
    factors: list[int] = field(default_factory=list)

    def __call__(self, roi: NDArray[np.float32]) -> Prediction:
        box = self.found[min(len(self.seen), len(self.found) - 1)]
        step = roi[0, 1, 0, 0] - roi[0, 0, 0, 0]
        assert step == int(step)
        lo = [round(float(roi[axis].min()) - (step - 1) / 2) for axis in range(3)]
        size = [round(length * step) for length in roi.shape[1:]]
        self.seen.append(Box(tuple(lo), tuple(low + length for low, length in zip(lo, size, strict=True))))
        self.factors.append(int(step))
        answer = np.zeros(roi.shape[1:], np.float32)
        if box is not None:
            inside = [(roi[axis] >= box.lo[axis]) & (roi[axis] < box.hi[axis]) for axis in range(3)]
            answer[np.logical_and.reduce(inside)] = 1
        return Prediction(answer[None], False)


@pytest.fixture
def resolved() -> ResolvedProtocol:
    return load_protocol("phantom").resolve("tiny")


def with_inference(resolved: ResolvedProtocol, **changes: Any) -> ResolvedProtocol:
    inference = resolved.protocol.inference.model_copy(update=changes)
    return resolved.model_copy(update={"protocol": resolved.protocol.model_copy(update={"inference": inference})})


def with_rounds(resolved: ResolvedProtocol, seg: int, mask: int = 1) -> ResolvedProtocol:
    return with_inference(resolved, fine_rounds=FineRounds(seg=seg, mask=mask))


def chain(
    case: Any, predictors: dict[str, FakePredictor], resolved: ResolvedProtocol, kind: str
) -> dict[str, StageResult]:
    """All four stages of the `Seg` chain, or the two under test of the `Mask` chain after the shared ones of `Seg`."""
    found: dict[str, StageResult] = {}
    for name in STAGES:
        own = "Seg" if name.startswith("pancreas") else kind
        found[name] = run_stage(case, name, predictors[name], resolved, found, chain=own)  # type: ignore[arg-type]
    return found


def answers(**found: Box | None) -> dict[str, FakePredictor]:
    return {name: FakePredictor([found.get(name.replace("-", "_"))]) for name in STAGES}


def everything(tumor: Box | None = TUMOR) -> dict[str, FakePredictor]:
    return answers(pancreas_coarse=PANCREAS, pancreas_fine=PANCREAS, tumor_coarse=tumor, tumor_fine=tumor)


def box_mask(box: Box, shape: Sequence[int] = SHAPE) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[tuple(map(slice, box.lo, box.hi))] = True
    return mask


def test_the_seg_chain_follows_predictions_and_never_reads_the_label(resolved: ResolvedProtocol) -> None:
    predictors = everything()
    found = chain(FakeCase(forbidden=True), predictors, resolved, "Seg")
    assert [found[name].roi for name in STAGES] == ["whole", "prediction", "prediction", "prediction"]
    np.testing.assert_array_equal(found["tumor-fine"].mask(0.5, 0.5), box_mask(TUMOR))
    assert predictors["pancreas-coarse"].factors == [2], "this stage looks at block means"
    for name in STAGES:
        seen = predictors[name].seen[0]
        multiple = 8 * resolved.protocol.stages[name].downsample
        assert all(length % multiple == 0 for length in seen.size), name
    for name, source in (("pancreas-fine", PANCREAS), ("tumor-coarse", PANCREAS), ("tumor-fine", TUMOR)):
        crop = resolved.preset.stages[name].crop
        expected = widen(source, resolved.margin(name, oracle=False), crop, SHAPE, 8)
        assert predictors[name].seen == [expected], name


def test_the_mask_chain_reads_the_label_for_its_first_stage_only(resolved: ResolvedProtocol) -> None:
    elsewhere = Box((24, 44, 20), (30, 52, 30))
    predictors = everything(tumor=elsewhere)
    case = FakeCase(labelled=ORACLE, forbidden=False)
    found = chain(case, predictors, resolved, "Mask")
    assert [found[name].roi for name in STAGES[2:]] == ["label", "prediction"]
    crop = resolved.preset.stages["tumor-coarse"].crop
    margin = resolved.margin("tumor-coarse", oracle=True)
    assert margin != resolved.margin("tumor-coarse", oracle=False), "the settings differ in margin, too"
    assert predictors["tumor-coarse"].seen == [widen(ORACLE, margin, crop, SHAPE, 8)]
    crop = resolved.preset.stages["tumor-fine"].crop
    expected = widen(elsewhere, resolved.margin("tumor-fine", oracle=True), crop, SHAPE, 8)
    assert predictors["tumor-fine"].seen == [expected], "around the C-Mask prediction, not around the label"


def test_without_a_labelled_structure_the_oracle_looks_everywhere(resolved: ResolvedProtocol) -> None:
    predictors = everything()
    found = chain(FakeCase(labelled=None, forbidden=False), predictors, resolved, "Mask")
    assert found["tumor-coarse"].roi == "whole"
    assert predictors["tumor-coarse"].seen == [whole(SHAPE)]
    assert label_roi(FakeCase(forbidden=False), "tumor-coarse", resolved) == whole(SHAPE)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["Seg", "Mask"])
@pytest.mark.parametrize("coarse", [None, Box((14, 26, 30), (15, 29, 33))], ids=["empty", "nine voxels"])
def test_an_empty_coarse_stage_falls_back_to_its_own_roi_and_says_so(
    resolved: ResolvedProtocol, kind: str, coarse: Box | None
) -> None:
    predictors = everything()
    predictors["tumor-coarse"] = FakePredictor([coarse])
    found = chain(FakeCase(labelled=ORACLE, forbidden=kind == "Seg"), predictors, resolved, kind)
    assert found["tumor-fine"].roi == "fallback:tumor-coarse"
    assert predictors["tumor-fine"].seen == predictors["tumor-coarse"].seen


def test_ten_voxels_are_enough_to_look_around(resolved: ResolvedProtocol) -> None:
    predictors = everything()
    predictors["tumor-coarse"] = FakePredictor([Box((14, 26, 30), (15, 28, 35))])
    assert chain(FakeCase(), predictors, resolved, "Seg")["tumor-fine"].roi == "prediction"


def test_an_empty_pancreas_leads_through_two_fallbacks(resolved: ResolvedProtocol) -> None:
    predictors = answers(tumor_coarse=TUMOR, tumor_fine=TUMOR)
    found = chain(FakeCase(), predictors, resolved, "Seg")
    assert [found[name].roi for name in STAGES] == [
        "whole",
        "fallback:pancreas-coarse",
        "fallback:pancreas-fine",
        "prediction",
    ]
    np.testing.assert_array_equal(found["tumor-fine"].mask(0.5, 0.5), box_mask(TUMOR))


def rounds(
    resolved: ResolvedProtocol, found: Sequence[Box | None], count: int = 4
) -> tuple[FakePredictor, StageResult]:
    predictors = everything(found[0] or TUMOR)
    predictors["tumor-fine"] = FakePredictor(found)
    result = chain(FakeCase(), predictors, with_rounds(resolved, count), "Seg")["tumor-fine"]
    return predictors["tumor-fine"], result


def shifted(box: Box, by: int) -> Box:
    return Box((*box.lo[:2], box.lo[2] + by), (*box.hi[:2], box.hi[2] + by))


def test_the_fine_stage_stops_when_two_rounds_agree(resolved: ResolvedProtocol) -> None:
    predictor, result = rounds(resolved, [TUMOR])
    assert (result.rounds, len(predictor.seen)) == (2, 2), "the second round is the earliest that can agree"
    predictor, result = rounds(resolved, [TUMOR, shifted(TUMOR, 4)])
    assert result.rounds == 3
    np.testing.assert_array_equal(result.mask(0.5, 0.5), box_mask(shifted(TUMOR, 4)))
    predictor, result = rounds(resolved, [shifted(TUMOR, by) for by in (0, 4, 0, 4, 0)])
    assert result.rounds == 4, "rounds that never agree end at the limit"
    assert rounds(resolved, [TUMOR], count=1)[1].rounds == 1


def test_agreement_is_a_dice_of_at_least_the_protocol_s(resolved: ResolvedProtocol) -> None:
    wide = Box((10, 20, 30), (20, 30, 55))  # shifted by 2 of 25: Dice 0.92; by 3: 0.88
    for by, count in ((2, 2), (3, 3)):
        assert rounds(resolved, [wide, shifted(wide, by)])[1].rounds == count


def test_each_round_looks_around_the_one_before_with_the_stage_s_margin(resolved: ResolvedProtocol) -> None:
    second = shifted(TUMOR, 5)
    predictor, _ = rounds(resolved, [TUMOR, second])
    crop, margin = resolved.preset.stages["tumor-fine"].crop, resolved.margin("tumor-fine", oracle=False)
    assert predictor.seen[:3] == [widen(box, margin, crop, SHAPE, 8) for box in (TUMOR, TUMOR, second)]
    predictors = everything()
    predictors["tumor-coarse"], predictors["tumor-fine"] = FakePredictor([None]), FakePredictor([TUMOR])
    chain(FakeCase(), predictors, with_rounds(resolved, 2), "Seg")
    assert predictors["tumor-fine"].seen[1] == widen(TUMOR, margin, crop, SHAPE, 8), "also after a fallback"


def test_a_round_that_finds_too_little_keeps_its_roi(resolved: ResolvedProtocol) -> None:
    speck = Box((14, 26, 30), (18, 30, 35))  # 80 voxels
    predictor, result = rounds(resolved, [TUMOR, shifted(speck, 5), None])
    assert predictor.seen[2] == predictor.seen[1]
    predictor, result = rounds(resolved, [None])
    assert (result.rounds, result.mask(0.5, 0.5).sum()) == (2, 0), "nothing twice is agreement"


def test_only_the_last_stage_is_iterated(resolved: ResolvedProtocol) -> None:
    predictors = everything()
    chain(FakeCase(), predictors, with_rounds(resolved, 3), "Seg")
    assert [len(predictors[name].seen) for name in STAGES] == [1, 1, 1, 2]


def test_each_chain_has_a_limit_of_its_own_and_every_round_its_seconds(resolved: ResolvedProtocol) -> None:
    for kind, limit in (("Seg", 4), ("Mask", 5)):
        predictors = everything()
        predictors["tumor-fine"] = FakePredictor([shifted(TUMOR, 4 * (turn % 2)) for turn in range(9)])
        case = FakeCase(labelled=ORACLE, forbidden=kind == "Seg")
        result = chain(case, predictors, with_rounds(resolved, seg=4, mask=5), kind)["tumor-fine"]
        assert (result.rounds, len(predictors["tumor-fine"].seen)) == (limit, limit)
        assert len(result.seconds) == limit
        assert min(result.seconds) > 0


def test_what_a_network_finds_in_the_padding_does_not_count(resolved: ResolvedProtocol) -> None:
    small = (12, 20, 20)
    predictors = everything()
    real, outside = Box((4, 4, 4), (8, 8, 8)), Box((-20, -20, -20), (40, 0, 40))
    predictors["pancreas-coarse"] = FakePredictor([outside])
    found = chain(FakeCase(size=small), predictors, resolved, "Seg")["pancreas-coarse"]
    assert predictors["pancreas-coarse"].seen[0].size == (16, 32, 32)
    assert found.box == whole(small)
    assert not found.levels.any()
    predictors["pancreas-coarse"] = FakePredictor([real])
    found = chain(FakeCase(size=small), predictors, resolved, "Seg")["pancreas-coarse"]
    np.testing.assert_array_equal(found.mask(0.5, 0.5), box_mask(real, small))


def test_validation_looks_at_a_fixed_margin_around_the_label(resolved: ResolvedProtocol) -> None:
    case: Any = FakeCase(labelled=ORACLE, forbidden=False)
    for name in STAGES[1:]:
        crop = resolved.preset.stages[name].crop
        expected = widen(ORACLE, resolved.margin(name, oracle=True), crop, SHAPE, 8)
        assert label_roi(case, name, resolved) == expected
    assert label_roi(case, "pancreas-coarse", resolved) == Box((-4, 0, -4), (44, 64, 76))


# --- levels and the native grid ---------------------------------------------------------------------------------------------------


def result_of(probability: NDArray[np.floating[Any]], lo: Sequence[int], shape: Sequence[int]) -> StageResult:
    hi = tuple(low + length for low, length in zip(lo, probability.shape, strict=True))
    levels = np.rint(probability * 255).astype(np.uint8)
    return StageResult("tumor-fine", levels, Box(tuple(lo), hi), tuple(shape), "prediction", 1, False)


def test_eight_bits_decide_like_the_probability_to_half_a_level() -> None:
    probability = np.random.default_rng(3).random((20, 20, 20))
    result = result_of(probability, (0, 0, 0), (20, 20, 20))
    np.testing.assert_array_equal(result.filtered(0.5, None), probability >= 0.5)
    for threshold in np.arange(1, 10) / 10:
        sure = abs(probability - threshold) > 0.5 / 255
        np.testing.assert_array_equal(result.filtered(threshold, None)[sure], probability[sure] >= threshold)


def test_a_stored_answer_gives_the_same_masks_at_every_threshold(tmp_path: Path) -> None:
    probability = np.random.default_rng(4).random((8, 16, 8))
    result = result_of(probability, (3, 5, 7), (30, 40, 50))
    save_result(tmp_path / "answer.npz", result)
    again = load_result(tmp_path / "answer.npz")
    for threshold in np.arange(1, 10) / 10:
        np.testing.assert_array_equal(again.mask(threshold, 0.5), result.mask(threshold, 0.5))
    assert (again.box, again.roi, again.rounds, again.windowed) == (result.box, "prediction", 1, False)


def small_protocol(spacing: tuple[float, float, float]) -> Protocol:
    task = Task(spacing=spacing, intensity=Window(low=-100, high=240))
    return load_protocol("phantom").model_copy(update={"task": task})


def write_case(folder: Path, label: NDArray[np.uint8], spacing: Sequence[float], flip: bool) -> Case:
    """A case on disk with an arbitrary origin; with ``flip`` stored head first and back to front."""
    case = Case("MSD", "box", folder / "image.nii.gz", folder / "label.nii.gz")
    for path, array in ((case.image, label.astype(np.int16) * 50), (case.label, label)):
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing([float(step) for step in spacing[::-1]])
        volume.SetOrigin((-120.0, 33.5, 871.25))
        if flip:
            volume.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, -1))
        sitk.WriteImage(volume, str(path))
    return case


def ball(shape: Sequence[int], spacing: Sequence[float], radius: float) -> NDArray[np.uint8]:
    """A ball of ``radius`` mm with a half that is tumor (2), the rest pancreas (1)."""
    axes = np.meshgrid(
        *[(np.arange(n) - n / 2.3) * step for n, step in zip(shape, spacing, strict=True)], indexing="ij"
    )
    inside = sum(axis**2 for axis in axes) < radius**2
    return (inside * np.where(axes[1] > 0, 2, 1)).astype(np.uint8)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("native", "task", "shape"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (60, 70, 80)),
        ((5.0, 0.7, 0.7), (1.5, 0.8, 0.8), (16, 100, 110)),
        ((1.0, 0.9, 1.1), (2.0, 1.5, 1.5), (70, 90, 80)),
        ((2.5, 0.8, 0.8), (1.5, 0.8, 0.8), (30, 90, 100)),
    ],
)
def test_a_perfect_answer_scores_above_95_on_the_native_grid(
    tmp_path: Path,
    native: tuple[float, float, float],
    task: tuple[float, float, float],
    shape: tuple[int, int, int],
    flip: bool,
) -> None:
    protocol = small_protocol(task)
    case = write_case(tmp_path, ball(shape, native, 22.0), native, flip)
    prepared = prepare_case(case, protocol, tmp_path / "cache")
    reference, grid = native_label(case, protocol)
    assert grid == prepared.native
    labelled = prepared.box((2,))
    assert labelled is not None
    box = widen(Box(*labelled), (2, 3, 3), (0, 0, 0), prepared.size, 8)
    perfect = (prepared.label_box(box.lo, box.hi) == 2).astype(np.float32)
    inside = Box(tuple(np.maximum(box.lo, 0)), tuple(np.minimum(box.hi, prepared.size)))
    part = perfect[tuple(slice(a - b, c - b) for a, b, c in zip(inside.lo, box.lo, inside.hi, strict=True))]
    mask = native_mask(prepared, result_of(part, inside.lo, prepared.size), 0.5, 0.5)
    assert mask.shape == grid.size
    assert dice(reference == 2, mask) > 0.95
    assert dice(reference == 1, mask) < 0.1


def soft(label: NDArray[Any]) -> NDArray[np.float64]:
    """A probability that falls slowly across the border of the mask: 0.5 there, 0.1 a voxel."""
    from scipy.ndimage import distance_transform_edt

    signed = distance_transform_edt(label) - distance_transform_edt(~label.astype(bool))
    return np.clip(0.5 + 0.1 * (signed - 0.5 * np.sign(signed)), 0, 1)


@pytest.mark.parametrize(("threshold", "shift"), [(0.2, 3.0), (0.5, 0.0), (0.8, -3.0)])
def test_soft_borders_are_thresholded_after_resampling(tmp_path: Path, threshold: float, shift: float) -> None:
    protocol = small_protocol((2.0, 2.0, 2.0))
    case = write_case(tmp_path, ball((80, 80, 80), (1.0, 1.0, 1.0), 24.0), (1.0, 1.0, 1.0), False)
    prepared = prepare_case(case, protocol, tmp_path / "cache")
    result = result_of(soft(np.asarray(prepared.label) > 0), (0, 0, 0), prepared.size)
    mask = native_mask(prepared, result, threshold, 0.5)
    radius = (3 * mask.sum() / (4 * np.pi)) ** (1 / 3)
    assert abs(radius - (24.0 + 2 * shift)) < 0.6


def test_a_dropped_component_is_gone_on_the_native_grid_too(tmp_path: Path) -> None:
    protocol = small_protocol((2.0, 2.0, 2.0))
    case = write_case(tmp_path, ball((60, 60, 60), (1.0, 1.0, 1.0), 15.0), (1.0, 1.0, 1.0), False)
    prepared = prepare_case(case, protocol, tmp_path / "cache")
    probability = np.zeros(prepared.size)
    probability[10:18, 10:18, 10:18] = 1
    probability[24:27, 24:27, 24:27] = 0.9
    result = result_of(probability, (0, 0, 0), prepared.size)
    cleaned, raw = (native_mask(prepared, result, 0.5, fraction) for fraction in (0.5, None))
    assert cleaned[20:35, 20:35, 20:35].all()
    assert not cleaned[40:].any()
    assert raw[48:54, 48:54, 48:54].any()
