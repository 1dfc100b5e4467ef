"""Figures that show cases: which are chosen and counted, what their panels say, and where the enlarged lesion lies."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from figure_runs import add_whole, board_of, text_of, write_slice
from leaderboard_runs import CENTERS, add_run, case_row

from dgbench.data.phantom import LESION_FREE, PhantomRecipe, case_name, lesion_type
from dgbench.data.phantom.generate import plan_case
from dgbench.leaderboard.figures import embedding, failures, overlays
from dgbench.leaderboard.figures.board import NothingToDraw, Options
from dgbench.leaderboard.figures.panels import INSET, _corner, shown_cells
from dgbench.leaderboard.overlay import Field, exemplary
from dgbench.leaderboard.records import View
from dgbench.store.slices import CaseSlice, slice_file


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_panels_say_whose_network_they_show_where_seeds_differ(tmp_path: Path) -> None:
    add_whole(tmp_path, "erm", "MSD", (0.3, 0.9), keep=())
    for seed, method in ((1, "erm"), (0, "randconv")):
        add_whole(tmp_path, method, "MSD", (0.3, 0.9), seed=seed)
    board = board_of(tmp_path)
    for draw in (overlays.draw, failures.draw):
        words = text_of(draw(board, Options(limit=0.5)).sheets[-1])
        assert words.count("DSC 30.0, seed 1") == words.count("DSC 30.0, seed 0") == 1
    words = text_of(embedding.draw(board, Options()).sheets[0])
    assert words.count("MSD, seed 1\n") == words.count("MSD, seed 0\n") == 1
    alone = board_of(tmp_path, seeds=1)
    assert "DSC 30.0, seed" not in text_of(overlays.draw(alone, Options()).sheets[0])
    assert "MSD, seed" not in text_of(embedding.draw(alone, Options()).sheets[0])


# Overlays


@pytest.mark.parametrize(
    ("dsc", "chosen"),
    [
        ((0.3, 0.9, 0.1, 0.5, 0.7), ["best b", "median d", "worst c"]),
        ((0.5, 0.5, 0.5), ["best a", "median b", "worst c"]),  # of equal ones the first
        ((0.2, 0.8), ["best b", "worst a"]),
        ((0.2,), ["best a"]),
        ((), []),
    ],
)
def test_best_median_and_worst(dsc: Sequence[float], chosen: list[str]) -> None:
    scores = pd.Series(dict(zip("abcde", dsc, strict=False)), dtype="float64")
    assert [f"{rank} {case}" for rank, case in exemplary(scores).items()] == chosen


def test_cases_are_chosen_by_the_mean_over_rows_or_by_one_row(tmp_path: Path) -> None:
    """erm has two seeds, which together weigh as much as the one of randconv."""
    for seed in (0, 1):
        add_whole(tmp_path, "erm", "MSD", (0.0, 0.2 + 0.2 * seed), seed=seed)
    add_whole(tmp_path, "randconv", "MSD", (0.8, 0.1))
    board = board_of(tmp_path)
    assert overlays.case_dsc(board, "MSD", None).to_list() == pytest.approx([0.4, 0.2])
    assert overlays.case_dsc(board, "MSD", "erm").to_list() == pytest.approx([0.0, 0.3])
    assert overlays.case_dsc(board, "RENJI", None).empty


def test_a_case_without_a_slice_is_not_chosen_and_is_counted(tmp_path: Path) -> None:
    for center in CENTERS[:2]:
        add_whole(tmp_path, "erm", center, (0.1, 0.5, 0.3, 0.9))
    board = board_of(tmp_path)
    best = "MSD/MSD_0003"
    slice_file(board.of("erm", "MSD")[0].run.path, best).unlink()
    shown, without = shown_cells(board)
    choices, unseen = overlays.choose(board, shown, None)
    assert without == []
    assert unseen == 1
    assert [choice.case for choice in choices] == [
        *("MSD/MSD_0001", "MSD/MSD_0002", "MSD/MSD_0000"),
        *("RENJI/RENJI_0003", "RENJI/RENJI_0002", "RENJI/RENJI_0000"),
    ]
    drawing = overlays.draw(board, Options())
    assert any("1 cases could not be chosen" in note for note in drawing.undrawn)


def test_overlays_show_a_column_per_method_and_go_on_with_a_page(tmp_path: Path) -> None:
    for method in ("erm", "randconv", "saml", "hog", "dam", "dart"):
        add_whole(tmp_path, method, "MSD", (0.3, 0.9))
    drawing = overlays.draw(board_of(tmp_path), Options())
    titles = [[axis.get_title() for axis in sheet.figure.axes[:4]] for sheet in drawing.sheets]
    assert titles == [["whole slice", "dam", "dart", "erm"], ["whole slice", "hog", "randconv", "saml"]]
    assert [sheet.figure.texts[0].get_text()[-8:] for sheet in drawing.sheets] == ["(1 of 2)", "(2 of 2)"]
    assert "MSD, best\nMSD_0001\nmean DSC over rows 90.0" in [
        axis.get_ylabel() for axis in drawing.sheets[0].figure.axes
    ]
    assert "DSC 90.0" in text_of(drawing.sheets[0])
    assert "intensities −100 to 240 (CT: HU)" in " ".join(text_of(drawing.sheets[0]).split())


@pytest.mark.parametrize(
    "view", [View(checkpoint="last-step"), View(setting="C-Seg"), View(threshold=0.4), View(threshold="source-tuned")]
)
def test_numbers_of_another_view_are_not_put_on_pictures_of_the_official_one(view: View, tmp_path: Path) -> None:
    """Slices hold the masks at threshold 0.5 of the source-val checkpoint."""
    others = ({}, {"checkpoint": "last-step"}, {"setting": "C-Seg", "stage": "tumor-coarse"}, {"threshold": 0.4})
    cases = [case_row("MSD", 0, 0.1, **other) for other in others]
    cases.append(case_row("RENJI", 0, 0.1, role="source-val"))
    folder = add_run(tmp_path, "erm", "MSD", cases=cases)
    write_slice(folder, "MSD/MSD_0000")
    board = board_of(tmp_path, view=view)
    why = "pictures are kept of the official view only: setting F-Seg, threshold 0.5, checkpoint source-val"
    with pytest.raises(NothingToDraw, match=why):
        overlays.draw(board, Options())
    drawing = failures.draw(board, Options())
    assert len(drawing.sheets) == 1
    assert drawing.undrawn == [f"no gallery: {why}"]
    official = board_of(tmp_path, view=View(policy="paper"))
    assert len(failures.draw(official, Options()).sheets) == 2
    assert "DSC 10.0" in text_of(overlays.draw(official, Options()).sheets[0])


# Failures


def by_index(case: str) -> str:
    return "PDA" if int(case[-1]) < 2 else "PNET"


def test_failures_are_counted_by_lesion_type(tmp_path: Path) -> None:
    """At the limit is not below it."""
    for seed, dsc in enumerate(((0.1, 0.2, 0.0, 0.9), (0.1, 0.1, 0.0, 0.1))):
        add_whole(tmp_path, "erm", "MSD", dsc, seed=seed)
    found = failures.shares(board_of(tmp_path), Options(limit=0.2, lesion_type=by_index))
    assert [(share.lesion, share.failed, share.n) for share in found] == [("PDA", 3, 4), ("PNET", 3, 4)]


def test_the_gallery_holds_the_worst_of_each_type_first(tmp_path: Path) -> None:
    add_whole(tmp_path, "erm", "MSD", (0.05, 0.06, 0.15, 0.9))
    for center in ("RENJI", "RMYY"):
        add_whole(tmp_path, "erm", center, (0.01, 0.02, 0.9, 0.9))
    board = board_of(tmp_path)
    shown, _ = shown_cells(board)
    cases, unseen = failures.hardest(board, shown, Options(limit=0.2, lesion_type=by_index))
    assert unseen == 0
    assert [case for _, case, _ in cases] == [
        *("MSD/MSD_0000", "MSD/MSD_0002"),  # not MSD_0001: a worse one of its type is there
        *("RENJI/RENJI_0000", "RENJI/RENJI_0001", "RMYY/RMYY_0000", "RMYY/RMYY_0001"),
    ]
    drawing = failures.draw(board, Options(limit=0.2, lesion_type=by_index))
    assert len(drawing.sheets) == 2
    assert any("lesion: PNET" in axis.get_ylabel() for axis in drawing.sheets[1].figure.axes)
    none = failures.draw(board, Options(limit=0.005))
    assert len(none.sheets) == 1
    assert any("no case with slices has a DSC below 0.5" in note for note in none.undrawn)
    assert "lesion type unknown" in text_of(none.sheets[0])


def test_a_case_that_failed_has_no_picture_and_is_counted(tmp_path: Path) -> None:
    folder = add_whole(tmp_path, "erm", "MSD", (0.0, 0.1))
    slice_file(folder, "MSD/MSD_0000").unlink()
    drawing = failures.draw(board_of(tmp_path), Options())
    note = "1 cases below the limit cannot be in the gallery: a method keeps no slice of them (a failed case has none)"
    assert drawing.undrawn == [note]
    assert all(note in " ".join(text_of(sheet).split()) for sheet in drawing.sheets)
    assert len([axis for axis in drawing.sheets[1].figure.axes if "MSD_0001" in axis.get_ylabel()]) == 1


def test_lesion_types_are_those_of_the_phantom() -> None:
    recipe = PhantomRecipe(size="tiny", cases=8)
    told, drawn = [], []
    for center, index in itertools.product(recipe.counts(), range(8)):
        told.append(lesion_type(recipe, f"{center}/{case_name(center, index)}"))
        lesion = plan_case(recipe, center, index).lesion
        drawn.append(None if lesion is None else f"{lesion.kind}, stent" if lesion.stent else lesion.kind)
    assert told == drawn
    assert {"PDA", "PDA, stent", "IPMN", "PNET", None} <= set(told)
    (free,) = LESION_FREE
    foreign = (f"{free}/{free}_0001", "MSD/MSD_0009", "MSD/MSD_0000", "MSD/a", "MSD", "Elsewhere/Elsewhere_0001")
    assert [lesion_type(recipe, case) for case in foreign] == [None] * len(foreign)


# Panels


def test_the_enlarged_lesion_hides_as_little_as_it_can() -> None:
    """Lesion in the upper right, so that the inset would go to the lower left, where the prediction is."""
    nothing = np.zeros((100, 100), bool)
    lesion, wrong = nothing.copy(), nothing.copy()
    lesion[35:40, 60:65] = True
    wrong[80:95, 5:20] = True
    masks = dict.fromkeys(("reference_pancreas", "pancreas", "tumor_coarse"), nothing)
    view, zoom = Field(50, 50, 100), Field(37.5, 62.5, 10)
    for predicted, low in ((nothing, 0.015), (wrong, 1 - INSET - 0.015)):
        case = CaseSlice(
            case="c/1",
            image=np.zeros((100, 100)),
            **masks,
            reference_tumor=lesion,
            tumor_fine=predicted,
            spacing=(1, 1),
            slice_index=0,
            n_slices=1,
        )
        assert _corner(view, zoom, case)[0] == low
