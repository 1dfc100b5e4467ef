"""Overlay figures, read back pixel by pixel: what is drawn, where, with which geometry, and what an empty mask says."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from dgbench.errors import DgbenchError
from dgbench.leaderboard.overlay import COLOURS, COLUMNS, DPI, draw_overlays
from dgbench.store.slices import CaseSlice, Masks

EMPTY = np.zeros((60, 50), dtype=bool)
LEFT, TOP, PANEL, GAP = 0.32, 0.74, 1.75, 0.04
"""Layout of the figure in inches."""


def box(rows: slice, columns: slice, shape: tuple[int, int] = (60, 50)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    mask[rows, columns] = True
    return mask


def case_slice(**changes: Any) -> CaseSlice:
    values: dict[str, Any] = {
        "case": "RENJI/RENJI_0001",
        "image": np.full((60, 50), 40.0),
        "reference_pancreas": EMPTY,
        "reference_tumor": EMPTY,
        "pancreas": EMPTY,
        "tumor_coarse": EMPTY,
        "tumor_fine": EMPTY,
        "spacing": (1.0, 2.0),
        "slice_index": 3,
        "n_slices": 9,
    }
    return CaseSlice(**{**values, **changes})


def drawn(path: Path, *cases: CaseSlice, title: str = "") -> NDArray[np.float64]:
    draw_overlays(cases, path, kind="phantom", title=title)
    return np.asarray(imread(path)[..., :3], dtype=np.float64)


def panel(image: NDArray[np.float64], column: str, row: int = 0) -> NDArray[np.float64]:
    left = round((LEFT + COLUMNS.index(column) * (PANEL + GAP)) * DPI)
    top = round((TOP + row * (PANEL + GAP)) * DPI)
    side = round(PANEL * DPI)
    return image[top : top + side, left : left + side]


def where(image: NDArray[np.float64], name: str) -> NDArray[np.bool_]:
    colour = [int(COLOURS[name][start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return np.asarray(np.abs(image - colour).max(axis=-1) < 0.02)


def present(image: NDArray[np.float64]) -> dict[str, set[str]]:
    return {column: {name for name in COLOURS if where(panel(image, column), name).any()} for column in COLUMNS}


def test_each_panel_shows_its_contours(tmp_path: Path) -> None:
    """The masks are apart, so that no contour hides another."""
    case = case_slice(
        reference_pancreas=box(slice(4, 14), slice(4, 14)),
        reference_tumor=box(slice(20, 32), slice(20, 30)),
        pancreas=box(slice(40, 50), slice(4, 14)),
        tumor_coarse=box(slice(22, 30), slice(28, 34)),
        tumor_fine=box(slice(17, 29), slice(18, 27)),
    )
    assert present(drawn(tmp_path / "apart.png", case)) == {
        "Image": set(),
        "Reference": {"reference pancreas", "reference tumor"},
        "Pancreas": {"reference pancreas", "predicted pancreas"},
        "Tumor coarse": {"reference tumor", "coarse tumor"},
        "Tumor fine": {"reference tumor", "fine tumor"},
        "Lesion": {"reference tumor", "coarse tumor", "fine tumor"},
    }


def test_empty_masks_draw_nothing_and_raise_no_warning(tmp_path: Path) -> None:
    image = drawn(tmp_path / "empty.png", case_slice())
    assert all(not names for names in present(image).values())
    assert where(image, "fine tumor").any()  # the legend


@pytest.mark.parametrize(("rows", "columns"), [(slice(20, 40), slice(20, 30)), (slice(0, 20), slice(0, 10))])
def test_aspect_follows_the_spacing(tmp_path: Path, rows: slice, columns: slice) -> None:
    """20 × 10 pixels of 1 × 2 mm are a square, also where the mask touches the border of the slice."""
    image = drawn(tmp_path / "square.png", case_slice(reference_tumor=box(rows, columns)))
    for column in ("Reference", "Tumor fine", "Lesion"):
        y, x = np.nonzero(where(panel(image, column), "reference tumor"))
        assert np.ptp(y) == pytest.approx(np.ptp(x), abs=3)
        assert np.ptp(y) > 50
        sides = (x <= x.min() + 3, x >= x.max() - 3, y <= y.min() + 3, y >= y.max() - 3)
        assert all(side.sum() > np.ptp(y) / 2 for side in sides)  # closed on every side


def test_scale_bar_and_field_are_in_millimetres(tmp_path: Path) -> None:
    """A 20 mm lesion with a margin of 14 mm fills 20/48 of the lesion panel; the bar there is 10 mm long."""
    image = drawn(tmp_path / "bar.png", case_slice(reference_tumor=box(slice(20, 40), slice(20, 30))))
    lesion = panel(image, "Lesion")
    side = lesion.shape[1]
    y, _ = np.nonzero(where(lesion, "reference tumor"))
    assert np.ptp(y) / side == pytest.approx(20 / 48, abs=0.03)
    bar = (lesion[round(0.9 * side) :].min(axis=-1) > 0.98).sum(axis=1).max()
    assert bar / side == pytest.approx(10 / 48, abs=0.02)


def test_intensities_are_windowed(tmp_path: Path) -> None:
    image = np.full((60, 50), -500.0)
    image[:, 25:] = 240.0
    image[30:, :25] = 70.0
    shown = panel(drawn(tmp_path / "window.png", case_slice(image=image)), "Image")
    side = shown.shape[0]
    levels = [float(shown[round(y * side), round(x * side)].mean()) for y, x in ((0.35, 0.2), (0.35, 0.8), (0.65, 0.2))]
    assert levels == pytest.approx([0.0, 1.0, 0.5], abs=0.02)


def test_the_same_cases_give_the_same_bytes(tmp_path: Path) -> None:
    case = case_slice(reference_tumor=box(slice(20, 40), slice(20, 30)), dsc={"fine": 0.5, "coarse": float("nan")})
    for name in ("one.png", "two.png"):
        draw_overlays([case], tmp_path / name, kind="patient", title="erm with $ and _")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_from_volumes_takes_the_largest_lesion() -> None:
    shape = (6, 60, 50)
    masks = {name: np.zeros(shape, dtype=np.uint8) for name in get_args(Masks)}
    image = np.arange(6.0)[:, None, None] * np.ones(shape)

    def chosen() -> CaseSlice:
        return CaseSlice.from_volumes("a/b", image, masks, (4.0, 1.0, 2.0), dsc={})

    assert chosen().slice_index == 3
    masks["reference_pancreas"][1, :5, :5] = 1
    assert chosen().slice_index == 1
    masks["tumor_fine"][5, :2, :2] = 1
    assert chosen().slice_index == 5
    masks["reference_tumor"][2, :2, :2] = 1
    masks["reference_tumor"][4, :3, :3] = 1
    case = chosen()
    assert (case.slice_index, case.n_slices, case.spacing) == (4, 6, (1.0, 2.0))
    assert case.image[0, 0] == 4
    assert case.reference_tumor.sum() == 9


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DgbenchError, match="no case to draw"):
        draw_overlays([], tmp_path / "none.png", kind="phantom")
    with pytest.raises(DgbenchError, match=r"one \(H, W\) slice each"):
        case_slice(tumor_fine=EMPTY[1:])
    with pytest.raises(DgbenchError, match="two positive lengths in mm"):
        case_slice(spacing=(1.0, 0.0))
    (tmp_path / "file").write_text("")
    with pytest.raises(DgbenchError, match="cannot be written"):
        draw_overlays([case_slice()], tmp_path / "file" / "overlay.png", kind="phantom")


def test_a_saved_slice_comes_back(tmp_path: Path) -> None:
    case = case_slice(
        image=np.linspace(-100, 240, 60 * 50).reshape(60, 50).astype(np.float32),
        reference_tumor=box(slice(20, 40), slice(20, 30)),
        dsc={"fine": 0.5, "coarse": float("nan")},
    )
    case.save(tmp_path / "RENJI" / "case.npz")
    back = CaseSlice.load(tmp_path / "RENJI" / "case.npz")
    assert (back.case, back.spacing, back.slice_index, back.n_slices) == (
        case.case,
        case.spacing,
        case.slice_index,
        case.n_slices,
    )
    np.testing.assert_array_equal(back.reference_tumor, case.reference_tumor)
    np.testing.assert_allclose(back.image / 255 * 340 - 100, case.image, atol=0.51 * 340 / 255)
    assert back.dsc["fine"] == 0.5
    assert np.isnan(back.dsc["coarse"])
    assert back.native
    early = {name: array for name, array in np.load(tmp_path / "RENJI" / "case.npz").items() if name != "native"}
    np.savez(tmp_path / "early.npz", **early)
    assert not CaseSlice.load(tmp_path / "early.npz").native, "it was on the task grid before this was stored"


def test_a_damaged_slice_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "case.npz").write_bytes(b"PK not a zip")
    with pytest.raises(DgbenchError, match=r"case\.npz: not a readable slice"):
        CaseSlice.load(tmp_path / "case.npz")
