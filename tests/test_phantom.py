"""The phantom: determinism, exchangeability at strength 0, invariance of the anatomy, geometry, labels, atomic writing.

``python tests/test_phantom.py`` rewrites ``tests/data/phantom_statistics.json`` after an intended change of the generator
(raise ``GENERATOR_VERSION`` with it).
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from scipy.stats import ks_2samp

from dgbench.data.phantom import (
    AXES,
    CENTERS,
    LESION_FREE,
    PhantomCase,
    PhantomRecipe,
    annotation_ceiling,
    case_name,
    draw_case,
    fingerprint,
    generate,
    write_phantom,
)
from dgbench.data.phantom.appearance import draw_style, noise_slices
from dgbench.data.phantom.generate import draw_grid, plan_case
from dgbench.data.phantom.lesions import choose_kind
from dgbench.data.phantom.recipe import draw_axis, stream
from dgbench.data.phantom.shapes import Box, draw_field, ellipsoid, tube
from dgbench.errors import DgbenchError

TUMOR_CENTERS = [center for center in CENTERS if center not in LESION_FREE]
NEUTRAL = dict.fromkeys(AXES, 0.0)
STATISTICS = Path(__file__).parent / "data" / "phantom_statistics.json"
GOLDEN = "1dd9c1222333acb384fe133088be2c15042c5772e46dcab1b052ae315a3522e2"


def statistics(case: PhantomCase) -> dict[str, float]:
    body = case.image > -300
    return {
        "body_mean": float(case.image[body].mean()),
        "body_sd": float(case.image[body].std()),
        "body_share": float(body.mean()),
        "pancreas_hu": float(case.image[case.label == 1].mean()),
        "tumor_hu": float(case.image[case.label == 2].mean()) if case.meta["lesion"] else 0.0,
        "pancreas_ml": float(case.meta["pancreas_ml"]),
        "tumor_ml": float(case.meta["tumor_ml"]),
        "true_tumor_ml": float(case.meta["true_tumor_ml"]),
    }


def all_statistics() -> dict[str, dict[str, float]]:
    recipe = PhantomRecipe()
    return {case_name(center, k): statistics(draw_case(recipe, center, k)) for k, center in enumerate(CENTERS)}


# --- recipe and axes -------------------------------------------------------------------------------------------------


def test_fingerprint_is_pinned_and_sees_every_field() -> None:
    base = PhantomRecipe(size="small", cases=3, seed=1, strengths={"contrast": 0.5})
    assert fingerprint(base) == GOLDEN, (
        "the generator's tables or recipe changed: raise GENERATOR_VERSION, then this value"
    )
    others = [
        PhantomRecipe(size="full", cases=3, seed=1, strengths={"contrast": 0.5}),
        PhantomRecipe(cases=4, seed=1, strengths={"contrast": 0.5}),
        PhantomRecipe(cases={"MSD": 3}, seed=1, strengths={"contrast": 0.5}),
        PhantomRecipe(cases=3, seed=2, strengths={"contrast": 0.5}),
        PhantomRecipe(cases=3, seed=1, strengths={"contrast": 0.6}),
    ]
    assert len({fingerprint(recipe) for recipe in [base, *others]}) == 6
    spelled_out = PhantomRecipe(
        cases=dict.fromkeys(CENTERS, 3), seed=1, strengths=dict.fromkeys(AXES, 1.0) | {"contrast": 0.5}
    )
    assert fingerprint(spelled_out) == fingerprint(base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strengths": {"contrst": 1.0}}, "did you mean 'contrast'"),
        ({"strengths": {"noise": -0.1}}, "must be a number ≥ 0"),
        ({"strengths": {"noise": float("nan")}}, "must be a number ≥ 0"),
        ({"cases": {"RENJ": 2}}, "did you mean 'RENJI'"),
        ({"cases": 0}, "at least 1"),
        ({"cases": {}}, "at least 1"),
        ({"seed": -1}, "negative"),
        ({"size": "smal"}, "did you mean 'small'"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DgbenchError, match=message) as caught:
        PhantomRecipe(**change)
    assert "\n" not in str(caught.value)


def test_unknown_center_and_negative_index_are_refused() -> None:
    with pytest.raises(DgbenchError, match="did you mean 'RMYY'"):
        draw_case(PhantomRecipe(), "RMY", 0)
    with pytest.raises(DgbenchError, match="negative"):
        draw_case(PhantomRecipe(), "RMYY", -1)


def test_every_axis_says_what_supports_it() -> None:
    for axis in AXES.values():
        assert axis.support in {"Table I", "section IV.I", "section V.D", "assumed"}
        assert axis.kind in {"appearance", "content", "annotation"}
        assert axis.note
        for center, spans in axis.centers.items():
            assert center in CENTERS
            assert set(spans) <= set(axis.common)


@pytest.mark.parametrize("name", AXES)
def test_centers_are_exchangeable_at_strength_zero_and_differ_at_one(name: str) -> None:
    axis = AXES[name]
    uniforms = dict.fromkeys(axis.common, 0.3)
    assert all(axis.draw(center, 0.0, uniforms) == axis.draw("MSD", 0.0, uniforms) for center in CENTERS)
    halves = [axis.draw("RENJI", strength, uniforms) for strength in (0.0, 0.5, 1.0)]
    assert all(halves[1][key] == pytest.approx((halves[0][key] + halves[2][key]) / 2) for key in axis.common)

    neutral, shifted = PhantomRecipe(strengths=NEUTRAL), PhantomRecipe(strengths=NEUTRAL | {name: 1.0})
    seen = {
        (label, center): [draw_axis(recipe, center, index, name) for index in range(150)]
        for label, recipe in (("neutral", neutral), ("shifted", shifted))
        for center in TUMOR_CENTERS
    }
    assert seen["neutral", "MSD"] != seen["neutral", "RENJI"] or name == "annotation"
    for key in axis.common:
        first, second = ([row[key] for row in seen["neutral", center]] for center in ("MSD", "RENJI"))
        assert ks_2samp(first, second, method="asymp").pvalue > 1e-3
    smallest = min(
        ks_2samp([r[key] for r in seen["shifted", a]], [r[key] for r in seen["shifted", b]], method="asymp").pvalue
        for key in axis.common
        for a, b in (("MSD", "RENJI"), ("RENJI", "RMYY"))
    )
    assert smallest < 1e-6


def test_lesion_mix_follows_the_counts_of_section_iv_i() -> None:
    shares = draw_axis(PhantomRecipe(), "MSD", 0, "lesion")
    mix = Counter(choose_kind((k + 0.5) / 281, shares) for k in range(281))
    assert mix == {("PDA", True): 74, ("IPMN", False): 65, ("PNET", False): 36, ("PDA", False): 106}
    others = draw_axis(PhantomRecipe(), "RENJI", 0, "lesion")
    assert {choose_kind(u, others) for u in np.linspace(0, 0.999, 50)} == {("PDA", False)}


def test_small_grids_and_table_one() -> None:
    for size, cases in (("small", 40), ("full", 40)):
        recipe = PhantomRecipe(size=size)  # type: ignore[arg-type]
        for center, (low, high) in {"MSD": (0.7, 7.5), "RENJI": (0.59, 1.25), "RMYY": (1.5, 5.0)}.items():
            a, b = recipe.spec().thickness_map
            grids = [draw_grid(recipe, center, index) for index in range(cases)]
            assert all(a + b * low - 1e-3 <= grid.spacing[0] <= a + b * high + 1e-3 for grid in grids)
            assert len({grid.origin for grid in grids}) == cases
            if size == "full":
                assert {grid.shape[1:] for grid in grids} == {(512, 512)}


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_sphere_and_straight_tube_are_exact_distances() -> None:
    z, y, x = (np.linspace(-12, 12, 25, dtype=np.float32) for _ in range(3))
    norm = np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2)
    sphere = ellipsoid((0, 0, 0), (6, 6, 6))(z, y, x)
    np.testing.assert_allclose(sphere, norm - 6, atol=1e-4)
    rod = tube(np.array([[-30.0, 0, 0], [30.0, 0, 0]]), np.array([5.0, 5.0]))(z, y, x)
    radial = np.broadcast_to(np.sqrt(y[:, None] ** 2 + x[None, :] ** 2) - 5, rod.shape)
    near = radial < 7.5
    np.testing.assert_allclose(rod[near], radial[near], atol=1e-4)


def test_random_field_has_unit_variance_and_needs_no_whole_grid() -> None:
    field = draw_field(stream(PhantomRecipe(), "MSD", 0, "test"), Box((0, 0, 0), (90, 90, 90)), 3.0)
    axis = np.arange(0, 90, 1.3, dtype=np.float32)
    values = field(axis, axis, axis)
    assert abs(values.mean()) < 0.02
    assert values.std() == pytest.approx(1.0, abs=0.03)
    np.testing.assert_array_equal(field(axis[5:9], axis[20:33], axis[1:7]), values[5:9, 20:33, 1:7])


# --- cases -----------------------------------------------------------------------------------------------------------


def test_a_case_is_determined_by_recipe_center_and_index() -> None:
    recipe = PhantomRecipe(seed=4)
    first = draw_case(recipe, "RMYY", 2)
    draw_case(recipe, "RMYY", 1)
    again = draw_case(PhantomRecipe(seed=4, cases=77), "RMYY", 2)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert first.meta == again.meta
    assert first.origin == again.origin
    others = [draw_case(recipe, "RMYY", 3), draw_case(recipe, "RENJI", 2), draw_case(PhantomRecipe(seed=5), "RMYY", 2)]
    assert all(not np.array_equal(first.image, other.image) for other in others)


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw_case(PhantomRecipe(), "MSD", 1)
    monkeypatch.setattr(generate, "_SLAB_VOXELS", 60_000)
    cut = draw_case(PhantomRecipe(), "MSD", 1)
    np.testing.assert_array_equal(whole.image, cut.image)
    np.testing.assert_array_equal(whole.label, cut.label)


def test_anatomy_and_noise_do_not_depend_on_the_strengths() -> None:
    neutral = PhantomRecipe(strengths=NEUTRAL)
    base = draw_case(neutral, "RENJI", 0)
    for name, axis in AXES.items():
        recipe = PhantomRecipe(strengths=NEUTRAL | {name: 1.0})
        ours, theirs = plan_case(recipe, "RENJI", 0), plan_case(neutral, "RENJI", 0)
        np.testing.assert_array_equal(ours.anatomy.line, theirs.anatomy.line)
        np.testing.assert_array_equal(ours.texture.coefficients, theirs.texture.coefficients)
        if name in {"thickness", "lesion"}:
            continue
        case = draw_case(recipe, "RENJI", 0)
        np.testing.assert_array_equal(case.true_label, base.true_label)
        assert np.array_equal(case.image, base.image) == (axis.kind == "annotation")
        assert np.array_equal(case.label, base.label) == (axis.kind == "appearance")


def test_calibration_is_one_affine_map_of_the_same_noisy_image() -> None:
    base = draw_case(PhantomRecipe(strengths=NEUTRAL | {"calibration": 0.0}), "RMYY", 0)
    moved = draw_case(PhantomRecipe(strengths=NEUTRAL | {"calibration": 1.0}), "RMYY", 0)
    before, after = (
        draw_axis(PhantomRecipe(strengths=NEUTRAL | {"calibration": s}), "RMYY", 0, "calibration") for s in (0.0, 1.0)
    )
    tissue = base.image > -500
    true_hu = (base.image[tissue] - before["offset"]) / before["scale"]
    np.testing.assert_allclose(moved.image[tissue], true_hu * after["scale"] + after["offset"], atol=1.01)


def test_noise_has_the_stated_level_grain_and_slice_correlation() -> None:
    recipe = PhantomRecipe()
    style = draw_style(recipe, "RMYY", 0)
    noise = noise_slices(recipe, "RMYY", 0, style, 0, (40, 96, 96), 2.5)
    assert noise.std() == pytest.approx(style.noise_sd, rel=0.03)
    inner = noise[:, 10:-10, 10:-10]
    lag = float((inner[:, :, 1:] * inner[:, :, :-1]).mean() / inner.var())
    assert lag == pytest.approx(np.exp(-(2.5**2) / (4 * style.grain**2)), abs=0.03)
    assert float((inner[1:] * inner[:-1]).mean() / inner.var()) == pytest.approx(0.25 / 1.0625, abs=0.03)
    np.testing.assert_array_equal(noise[7:9], noise_slices(recipe, "RMYY", 0, style, 7, (2, 96, 96), 2.5))


@pytest.mark.parametrize("center", CENTERS)
def test_cases_are_complete_and_lesions_visible(center: str) -> None:
    recipe = PhantomRecipe()
    for index in range(3):
        case = draw_case(recipe, center, index)
        assert case.image.dtype == np.int16
        assert case.label.dtype == case.true_label.dtype == np.uint8
        assert case.image.shape == case.label.shape == case.true_label.shape
        assert case.image.min() >= -1024
        assert set(np.unique(case.label)) == ({0, 1} if center in LESION_FREE else {0, 1, 2})
        edges = [
            case.label[0],
            case.label[-1],
            case.label[:, 0],
            case.label[:, -1],
            case.label[:, :, 0],
            case.label[:, :, -1],
        ]
        assert not any(edge.any() for edge in edges)
        assert 30 < case.meta["pancreas_ml"] < 220
        if center in LESION_FREE:
            assert case.meta["lesion"] is None
            np.testing.assert_array_equal(case.label, case.true_label)
            continue
        ball = np.pi / 6 * case.meta["diameter_mm"] ** 3 / 1000
        assert 0.6 < case.meta["true_tumor_ml"] / ball < 1.7
        contrast = case.image[case.true_label == 2].mean() - case.image[case.true_label == 1].mean()
        assert case.meta["stent"] or abs(contrast) > max(12.0, 0.7 * case.meta["noise_sd"])
        assert case.meta["stent"] or (contrast > 0) == (case.meta["lesion"] == "PNET")


def test_annotation_styles_shrink_and_grow_the_lesion() -> None:
    plain = PhantomRecipe(strengths={"annotation": 0.0})
    assert annotation_ceiling(plain, "RENJI", 2) == 1.0
    drawn = PhantomRecipe()
    for center, sign in (("RENJI", 1), ("RMYY", -1)):
        cases = [draw_case(drawn, center, index) for index in range(3)]
        assert all(sign * (case.meta["tumor_ml"] - case.meta["true_tumor_ml"]) > 0 for case in cases)
        assert 0.6 < annotation_ceiling(drawn, center, 3) < 0.93
    extreme = draw_case(PhantomRecipe(strengths={"annotation": 6.0}), "RMYY", 0)
    assert (extreme.label == 2).any()


def test_voxel_statistics_match_the_stored_ones() -> None:
    stored = json.loads(STATISTICS.read_text())
    found = all_statistics()
    assert found.keys() == stored.keys()
    for name, values in stored.items():
        for key, value in values.items():
            assert found[name][key] == pytest.approx(value, rel=0.003, abs=0.15), (name, key)


@pytest.mark.slow
def test_full_size_case() -> None:
    case = draw_case(PhantomRecipe(size="full"), "MSD", 1)
    assert case.image.shape[1:] == (512, 512)
    assert case.image.shape[0] >= 37
    assert set(np.unique(case.label)) == {0, 1, 2}


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("phantom") / "data"
    seen: list[tuple[str, int]] = []
    write_phantom(RECIPE, directory, on_case=lambda center, index: seen.append((center, index)))
    assert seen == [("MSD", 0), ("MSD", 1), ("NIH", 0)]
    return directory


RECIPE = PhantomRecipe(cases={"NIH": 1, "MSD": 2}, seed=9)


def test_written_volumes_keep_voxels_and_geometry(folder: Path) -> None:
    for index in range(2):
        case = draw_case(RECIPE, "MSD", index)
        for sub, voxels in (("imagesTr", case.image), ("labelsTr", case.label), ("labelsTrue", case.true_label)):
            image = sitk.ReadImage(str(folder / "MSD" / sub / f"{case_name('MSD', index)}.nii.gz"))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels)
            assert sitk.GetArrayViewFromImage(image).dtype == voxels.dtype
            np.testing.assert_allclose(image.GetSpacing()[::-1], case.spacing, rtol=1e-5)
            np.testing.assert_allclose(image.GetOrigin()[::-1], case.origin, rtol=1e-5, atol=1e-3)
            np.testing.assert_allclose(image.GetDirection(), case.direction, atol=1e-6)


def test_written_folder_follows_the_msd_convention(folder: Path) -> None:
    dataset = json.loads((folder / "MSD" / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "pancreas": 1, "tumor": 2}
    assert dataset["numTraining"] == len(dataset["training"]) == 2
    assert all((folder / "MSD" / entry[key]).is_file() for entry in dataset["training"] for key in ("image", "label"))
    about = {center: yaml.safe_load((folder / center / "center.yaml").read_text()) for center in ("MSD", "NIH")}
    assert (about["MSD"]["has_tumor"], about["NIH"]["has_tumor"]) == (True, False)
    assert all(info["phantom"] is True and info["fingerprint"] == fingerprint(RECIPE) for info in about.values())
    record = json.loads((folder / "phantom.json").read_text())
    assert record["recipe"] == RECIPE.describe()
    assert record["cases"]["MSD_0002"] == draw_case(RECIPE, "MSD", 1).meta
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_same_phantom_is_written_once(folder: Path) -> None:
    write_phantom(RECIPE, folder, on_case=lambda center, index: pytest.fail("written again"))
    with pytest.raises(DgbenchError, match="another phantom"):
        write_phantom(PhantomRecipe(cases=1, seed=9), folder)


def test_foreign_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(DgbenchError, match=r"no phantom\.json"):
        write_phantom(RECIPE, foreign)
    with pytest.raises(DgbenchError, match="is a file"):
        write_phantom(RECIPE, foreign / "thesis.txt")
    (foreign / "phantom.json").write_text("{")
    with pytest.raises(DgbenchError, match="not readable"):
        write_phantom(RECIPE, foreign)
    record = {"fingerprint": fingerprint(RECIPE), "cases": {"MSD_0001": {"center": "MSD"}}}
    (foreign / "phantom.json").write_text(json.dumps(record))
    with pytest.raises(DgbenchError, match="missing"):
        write_phantom(RECIPE, foreign)
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(center: str, index: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(RECIPE, tmp_path / "data", on_case=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DgbenchError, match="cannot write"):
        write_phantom(RECIPE, tmp_path / "file" / "data")


if __name__ == "__main__":
    STATISTICS.write_text(json.dumps(all_statistics(), indent=1) + "\n")
