"""Case metrics against their definitions, closed forms, MedPy, MONAI and real masks."""

import json
import math
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from dgbench.errors import DgbenchError
from dgbench.evaluation.metrics import CaseMetrics, bounding_box, case_metrics, dice

SPACING = (1.5, 0.8, 0.7)
TOLERANCE = 1.65  # mm; no distance on these grids comes within rounding of it
Mask = NDArray[np.bool_]


def measure(reference: NDArray[Any], prediction: NDArray[Any], spacing: tuple[float, ...] = SPACING) -> CaseMetrics:
    return case_metrics(reference, prediction, spacing, nsd_tolerance_mm=TOLERANCE)


def box(shape: tuple[int, ...], *sides: tuple[int, int]) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def blobs(seed: int, shape: tuple[int, ...], share: float = 0.3) -> Mask:
    """Smooth random shapes that cover ``share`` of the grid, border included."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2)
    return np.asarray(noise > np.quantile(noise, 1 - share))


def pairs() -> list[tuple[str, Mask, Mask, tuple[float, ...]]]:
    rng = np.random.default_rng(7)
    shape = (9, 13, 11)
    return [
        *((f"blobs{seed}", blobs(seed, shape), blobs(seed + 50, shape, 0.1), SPACING) for seed in range(4)),
        ("overlapping", blobs(1, shape), blobs(1, shape, 0.2), (3.0, 0.5, 0.6)),
        ("noise", rng.random(shape) < 0.4, rng.random(shape) < 0.05, SPACING),
        ("single voxels", box(shape, (0, 1), (0, 1), (0, 1)), box(shape, (8, 9), (12, 13), (10, 11)), SPACING),
        ("one voxel in a blob", box(shape, (4, 5), (6, 7), (5, 6)), blobs(3, shape), SPACING),
        ("whole grid", np.ones(shape, dtype=bool), blobs(2, shape), SPACING),
        ("two axes", blobs(5, (17, 23)), blobs(6, (17, 23)), (0.9, 2.1)),
        ("one axis", np.array([0, 1, 1, 1, 0, 1], bool), np.array([1, 1, 0, 0, 0, 1], bool), (0.4,)),
    ]


@pytest.fixture(params=pairs(), ids=lambda pair: pair[0])
def pair(request: pytest.FixtureRequest) -> tuple[Mask, Mask, tuple[float, ...]]:
    return request.param[1:]


def surface_by_hand(mask: Mask, spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Surface voxels, one at a time: a face neighbour is background or lies beyond the border."""
    points = []
    for voxel in np.argwhere(mask):
        for axis, step in ((axis, step) for axis in range(mask.ndim) for step in (-1, 1)):
            neighbour = voxel.copy()
            neighbour[axis] += step
            if not 0 <= neighbour[axis] < mask.shape[axis] or not mask[tuple(neighbour)]:
                points.append(voxel * np.array(spacing))
                break
    return np.array(points)


def test_every_metric_equals_its_definition(pair: tuple[Mask, Mask, tuple[float, ...]]) -> None:
    reference, prediction, spacing = pair
    r, p = surface_by_hand(reference, spacing), surface_by_hand(prediction, spacing)
    between = np.linalg.norm(r[:, None] - p[None], axis=-1)
    from_r, from_p = between.min(axis=1), between.min(axis=0)
    pooled = np.concatenate([from_r, from_p])
    centers = [np.argwhere(mask).mean(axis=0) * spacing for mask in (reference, prediction)]
    got = measure(reference, prediction, spacing)
    expected = {
        "dsc": 2 * (reference & prediction).sum() / (reference.sum() + prediction.sum()),
        "nsd": ((from_r <= TOLERANCE).sum() + (from_p <= TOLERANCE).sum()) / (len(r) + len(p)),
        "assd": pooled.mean(),
        "assd_two_means": (from_r.mean() + from_p.mean()) / 2,
        "hd95": np.percentile(pooled, 95),
        "hd95_max": max(np.percentile(from_r, 95), np.percentile(from_p, 95)),
        "centroid_mm": np.linalg.norm(centers[0] - centers[1]),
        "volume_reference_mm3": reference.sum() * math.prod(spacing),
        "volume_prediction_mm3": prediction.sum() * math.prod(spacing),
    }
    assert {name: getattr(got, name) for name in expected} == pytest.approx(expected, abs=1e-10, rel=1e-12)


def test_medpy_gives_the_same_numbers(pair: tuple[Mask, Mask, tuple[float, ...]]) -> None:
    from medpy.metric import binary

    reference, prediction, spacing = pair
    got = measure(reference, prediction, spacing)
    directed = [binary.asd(a, b, spacing) for a, b in ((reference, prediction), (prediction, reference))]
    assert got.dsc == pytest.approx(binary.dc(prediction, reference), abs=1e-10)
    assert got.assd == pytest.approx(binary.assd(prediction, reference, spacing), abs=1e-10)
    assert got.hd95 == pytest.approx(binary.hd95(prediction, reference, spacing), abs=1e-10)
    assert got.assd_two_means == pytest.approx(np.mean(directed), abs=1e-10)


def test_metrics_do_not_depend_on_the_order_of_the_masks_or_axes(pair: tuple[Mask, Mask, tuple[float, ...]]) -> None:
    reference, prediction, spacing = pair
    symmetric = ("dsc", "nsd", "assd", "assd_two_means", "hd95", "hd95_max", "centroid_mm")
    got = measure(reference, prediction, spacing)
    swapped = measure(prediction, reference, spacing)
    turned = measure(reference.T, prediction.T, spacing[::-1])
    for name in symmetric:
        assert getattr(swapped, name) == pytest.approx(getattr(got, name), abs=1e-10)
    assert asdict(turned) == pytest.approx(asdict(got), abs=1e-10)


def test_two_planes_lie_one_distance_apart() -> None:
    shape = (12, 6, 5)
    got = measure(box(shape, (2, 3), (0, 6), (0, 5)), box(shape, (7, 8), (0, 6), (0, 5)))
    for value in (got.assd, got.assd_two_means, got.hd95, got.hd95_max, got.centroid_mm):
        assert value == pytest.approx(5 * 1.5)
    assert (got.dsc, got.nsd) == (0.0, 0.0)


def test_a_longer_bar_has_closed_form_distances() -> None:
    # Bars of 10 and 14 voxels along the last axis (0.7 mm): four voxels overhang by 0.7, 1.4, 2.1 and 2.8 mm.
    got = measure(box((3, 3, 20), (1, 2), (1, 2), (2, 12)), box((3, 3, 20), (1, 2), (1, 2), (2, 16)))
    assert got.dsc == pytest.approx(20 / 24)
    assert got.assd == pytest.approx(7.0 / 24)
    assert got.assd_two_means == pytest.approx(7.0 / 14 / 2)
    assert got.nsd == pytest.approx(22 / 24)
    assert got.hd95 == pytest.approx(np.interp(0.95 * 23, [20, 21, 22, 23], [0.7, 1.4, 2.1, 2.8]))
    assert got.hd95_max == pytest.approx(np.interp(0.95 * 13, [12, 13], [2.1, 2.8]))
    assert got.centroid_mm == pytest.approx(2 * 0.7)


def test_nested_boxes_have_closed_form_distances() -> None:
    # 5×5×5 in 7×7×7 at 2 mm: a shell voxel is 1 (face), √2 (edge) or √3 (corner) voxels away, an inner one is 1.
    got = measure(box((9, 9, 9), (2, 7), (2, 7), (2, 7)), box((9, 9, 9), (1, 8), (1, 8), (1, 8)), (2.0, 2.0, 2.0))
    inner, faces, edges, corners = 98, 6 * 25, 12 * 5, 8
    outer_sum = faces + edges * math.sqrt(2) + corners * math.sqrt(3)
    assert got.assd == pytest.approx(2 * (inner + outer_sum) / (inner + faces + edges + corners))
    assert got.assd_two_means == pytest.approx(2 * (1 + outer_sum / (faces + edges + corners)) / 2)
    assert got.centroid_mm == pytest.approx(0)


def test_equal_masks_are_perfect() -> None:
    mask = blobs(0, (9, 13, 11))
    got = measure(mask, mask)
    assert (got.dsc, got.nsd, got.assd, got.hd95, got.hd95_max, got.centroid_mm) == (1, 1, 0, 0, 0, 0)
    assert (got.n_lesions_found, got.n_false_positive) == (got.n_lesions_reference, 0)


def test_the_image_border_is_surface() -> None:
    # A full grid against its central voxel: the surface is the border, one voxel away in every direction.
    got = measure(np.ones((3, 3, 3), bool), box((3, 3, 3), (1, 2), (1, 2), (1, 2)), (1.0, 1.0, 1.0))
    shell = 6 + 12 * math.sqrt(2) + 8 * math.sqrt(3)
    assert got.assd == pytest.approx((shell + 1) / 27)


def test_tolerance_includes_a_whole_number_of_voxels_despite_rounding() -> None:
    assert 3 * 0.8 > 2.4  # the rounding that would lose the voxel
    reference, prediction = box((1, 8, 1), (0, 1), (0, 1), (0, 1)), box((1, 8, 1), (0, 1), (3, 4), (0, 1))
    assert case_metrics(reference, prediction, SPACING, nsd_tolerance_mm=2.4).nsd == 1.0
    assert case_metrics(reference, prediction, SPACING, nsd_tolerance_mm=2.39).nsd == 0.0


def test_empty_masks_are_flagged_and_undefined_values_are_nan() -> None:
    empty, mask = np.zeros((4, 5, 6), np.uint8), box((4, 5, 6), (1, 3), (1, 3), (2, 5)).astype(np.uint8)
    distances = ("assd", "assd_two_means", "hd95", "hd95_max", "centroid_mm")
    both, no_prediction, no_reference = measure(empty, empty), measure(mask, empty), measure(empty, mask)
    for got in (both, no_prediction, no_reference):
        assert all(math.isnan(getattr(got, name)) for name in distances)
    assert math.isnan(both.dsc)
    assert math.isnan(both.nsd)
    assert (no_prediction.dsc, no_prediction.nsd, no_reference.dsc, no_reference.nsd) == (0, 0, 0, 0)
    assert (both.empty_reference, both.empty_prediction) == (True, True)
    assert (no_prediction.empty_reference, no_prediction.empty_prediction) == (False, True)
    assert (no_reference.empty_reference, no_reference.empty_prediction) == (True, False)
    assert (no_prediction.n_lesions_reference, no_prediction.n_lesions_found, no_prediction.n_false_positive) == (
        1,
        0,
        0,
    )
    assert (no_reference.n_lesions_reference, no_reference.n_lesions_found, no_reference.n_false_positive) == (0, 0, 1)
    assert no_reference.volume_prediction_mm3 == pytest.approx(12 * math.prod(SPACING))


def test_lesions_touch_by_corners(pair: tuple[Mask, Mask, tuple[float, ...]]) -> None:
    reference, prediction, spacing = pair
    everywhere = np.ones((3,) * reference.ndim)
    got = measure(reference, reference, spacing)
    assert got.n_lesions_reference == ndimage.label(reference, everywhere)[1]
    nothing = measure(np.zeros_like(prediction), prediction, spacing)
    assert nothing.n_false_positive == ndimage.label(prediction, everywhere)[1]


def test_detection_equals_its_definition(pair: tuple[Mask, Mask, tuple[float, ...]]) -> None:
    reference, prediction, spacing = pair
    everywhere = np.ones((3,) * reference.ndim)
    lesions, n_lesions = ndimage.label(reference, everywhere)
    candidates, n_candidates = ndimage.label(prediction, everywhere)
    for threshold in (0.01, 0.1, 0.25, 0.5, 1.0):
        found = 0
        matched: set[int] = set()
        for lesion in (lesions == index for index in range(1, n_lesions + 1)):
            touching = set(candidates[lesion].tolist()) - {0}
            union = lesion | np.isin(candidates, list(touching))
            if (lesion & prediction).sum() / union.sum() >= threshold:
                found += 1
                matched |= touching
        got = case_metrics(reference, prediction, spacing, nsd_tolerance_mm=1, detection_overlap=threshold)
        assert (got.n_lesions_found, got.n_false_positive) == (found, n_candidates - len(matched))


def test_detection_threshold_is_inclusive_and_a_missed_lesion_leaves_a_false_positive() -> None:
    shape = (5, 5, 20)
    reference = box(shape, (0, 2), (0, 2), (0, 4)) | box(shape, (3, 5), (3, 5), (10, 12))
    prediction = box(shape, (0, 2), (0, 2), (2, 6)) | box(shape, (0, 1), (4, 5), (19, 20))
    # First lesion: 8 shared of 24 voxels; second lesion missed; the far voxel is a false positive at any threshold.
    found = case_metrics(reference, prediction, SPACING, nsd_tolerance_mm=1, detection_overlap=8 / 24)
    missed = case_metrics(reference, prediction, SPACING, nsd_tolerance_mm=1, detection_overlap=0.34)
    assert (found.n_lesions_reference, found.n_lesions_found, found.n_false_positive) == (2, 1, 1)
    assert (missed.n_lesions_reference, missed.n_lesions_found, missed.n_false_positive) == (2, 0, 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, bool])
def test_any_dtype_and_memory_layout_will_do(dtype: type) -> None:
    reference, prediction = blobs(1, (9, 13, 11)), blobs(2, (9, 13, 11))
    wide = np.zeros((18, 13, 22), dtype=dtype)
    wide[::2, :, ::2] = prediction
    assert measure(np.asfortranarray(reference.astype(dtype)), wide[::2, :, ::2]) == measure(reference, prediction)


def test_inputs_are_left_alone() -> None:
    reference, prediction = blobs(1, (9, 13, 11)), blobs(2, (9, 13, 11))
    before = reference.copy(), prediction.copy()
    measure(reference, prediction)
    assert np.array_equal(reference, before[0])
    assert np.array_equal(prediction, before[1])


def test_bad_input_is_refused_in_one_line() -> None:
    mask = box((3, 4, 5), (1, 2), (1, 2), (1, 2))
    nan = np.where(mask, np.nan, 0.0)
    calls: list[tuple[str, tuple[Any, ...], dict[str, float]]] = [
        ("3×4×5 and 3×4×4", (mask, mask[..., :4], SPACING), {}),
        ("spacing", (mask, mask, (1.0, 1.0)), {}),
        ("spacing", (mask, mask, (1.0, 0.0, 1.0)), {}),
        ("spacing", (mask, mask, (1.0, math.nan, 1.0)), {}),
        ("reference: the mask holds values", (mask * 2, mask, SPACING), {}),
        ("prediction: the mask holds values", (mask, mask * 0.5, SPACING), {}),
        ("prediction: the mask holds values", (mask, nan, SPACING), {}),
        ("prediction: the mask holds values", (mask, -mask.astype(np.int16), SPACING), {}),
        ("nsd_tolerance_mm", (mask, mask, SPACING), {"nsd_tolerance_mm": -1.0}),
        ("detection_overlap", (mask, mask, SPACING), {"detection_overlap": 0.0}),
    ]
    for message, arguments, options in calls:
        with pytest.raises(DgbenchError, match=message) as error:
            case_metrics(*arguments, **{"nsd_tolerance_mm": 1.0, **options})
        assert "\n" not in str(error.value)


def test_dice_helper_agrees_with_the_case_metrics() -> None:
    reference, prediction = blobs(1, (9, 13, 11)), blobs(2, (9, 13, 11))
    assert dice(reference, prediction) == measure(reference, prediction).dsc
    assert dice(reference * 3, prediction) == dice(reference, prediction)
    assert dice(reference, np.zeros_like(reference)) == 0
    assert math.isnan(dice(np.zeros_like(reference), np.zeros_like(reference)))
    with pytest.raises(DgbenchError, match="differ"):
        dice(reference, prediction[1:])


def test_bounding_box_is_tight() -> None:
    mask = box((7, 8, 9), (2, 4), (0, 3), (5, 9))
    assert bounding_box(mask) == (slice(2, 4), slice(0, 3), slice(5, 9))
    assert bounding_box(np.zeros((3, 4))) is None


def real_masks(folder: Path, case: dict[str, Any], network: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    packed = np.load(folder / f"{case['case']}.npz")
    size = math.prod(case["roi"])
    reference, prediction = (
        np.unpackbits(packed[key])[:size].reshape(case["roi"]) for key in ("gt", f"pred__{network}")
    )
    return reference, prediction


def test_real_masks_give_the_published_dice(real_data: Path) -> None:
    folder = real_data / "msd_pancreas_masks"
    index = json.loads((folder / "index.json").read_text())
    compared = 0
    for case in index["cases"]:
        for network in index["methods"]:
            reference, prediction = real_masks(folder, case, network)
            assert dice(reference, prediction) == pytest.approx(index["dice"][network][case["case"]], abs=1e-6)
            compared += 1
    assert compared == 12 * 33


def test_real_masks_give_the_distances_of_medpy(real_data: Path) -> None:
    from medpy.metric import binary

    folder = real_data / "msd_pancreas_masks"
    index = json.loads((folder / "index.json").read_text())
    for case in index["cases"][::4]:
        reference, prediction = real_masks(folder, case, "DiceCE")
        spacing = tuple(case["spacing"])
        got = measure(reference, prediction, spacing)
        assert got.dsc == pytest.approx(index["dice"]["DiceCE"][case["case"]], abs=1e-6)
        assert got.assd == pytest.approx(binary.assd(prediction, reference, spacing), abs=1e-10)
        assert got.hd95 == pytest.approx(binary.hd95(prediction, reference, spacing), abs=1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")
def test_monai_gives_the_same_maximum_of_directed_percentiles_and_surface_dice() -> None:
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    for _, reference, prediction, spacing in pairs()[:6]:
        got = measure(reference, prediction, spacing)
        ours = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
        hd95 = compute_hausdorff_distance(*ours, include_background=True, percentile=95, spacing=spacing)
        nsd = compute_surface_dice(*ours, class_thresholds=[TOLERANCE], include_background=True, spacing=spacing)
        assert got.hd95_max == pytest.approx(hd95.item(), abs=1e-5)
        assert got.nsd == pytest.approx(nsd.item(), abs=1e-6)


@pytest.mark.parametrize("far_apart", [False, True])
def test_memory_stays_below_100_mb_on_a_full_scan(far_apart: bool) -> None:
    shape = (120, 512, 512)
    reference = box(shape, (40, 80), (200, 300), (150, 330))
    prediction = box(shape, (42, 85), (195, 290), (160, 340))
    if far_apart:
        prediction |= box(shape, (0, 2), (0, 2), (0, 2)) | box(shape, (118, 120), (510, 512), (510, 512))
    tracemalloc.start()
    try:
        measure(reference, prediction)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100e6
