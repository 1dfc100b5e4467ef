"""The data behind each figure, and what it says in words."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from figure_runs import add_whole, board_of, text_of, write_features, write_slice, write_table
from leaderboard_runs import CENTERS, EMPTY_PREDICTION, EMPTY_REFERENCE, PROTOCOL, add_run, case_row, cell

from dgbench.atomic import append_jsonl
from dgbench.data.phantom import LESION_FREE, PhantomRecipe, case_name, lesion_type
from dgbench.data.phantom.generate import plan_case
from dgbench.errors import DgbenchError
from dgbench.leaderboard.figures import centroids, cost, curves, embedding, failures, overlays
from dgbench.leaderboard.figures.board import NothingToDraw, Options
from dgbench.leaderboard.figures.panels import INSET, _corner, shown_cells
from dgbench.leaderboard.figures.style import EDGE, PALETTE, TONES, looks, pages, wrap
from dgbench.leaderboard.overlay import Field
from dgbench.leaderboard.records import View
from dgbench.store.slices import CaseSlice, slice_file


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


# The front


def brute_force(points: Sequence[cost.Point]) -> set[int]:
    def beaten(point: cost.Point) -> bool:
        return any(
            other.cost <= point.cost and other.dsc >= point.dsc and (other.cost, other.dsc) != (point.cost, point.dsc)
            for other in points
        )

    return {index for index, point in enumerate(points) if not beaten(point)}


@pytest.mark.parametrize("seed", range(30))
def test_the_front_is_what_no_other_point_beats(seed: int) -> None:
    """A coarse grid of values, so that many costs, many DSC and some points are equal."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 6, (rng.integers(1, 25), 2)).astype(float)
    points = [cost.Point(label=str(i), cost=x, dsc=y, sd=None) for i, (x, y) in enumerate(values.tolist())]
    front = cost.pareto_front(points)
    assert {int(point.label) for point in front} == brute_force(points)
    assert [point.cost for point in front] == sorted(point.cost for point in front)


def test_costs_are_of_complete_rows_and_the_others_are_named(tmp_path: Path) -> None:
    write_table(tmp_path)
    add_whole(tmp_path, "saml", "MSD", (0.5, 0.5))
    for center in CENTERS:
        add_whole(tmp_path, "hog", center, (0.4, 0.4), keep=())
    board = board_of(tmp_path)
    points = cost.gather(board.table.rows)
    labels = [{point.label for point in points[name]} for name in cost.AXES]
    assert labels == [{"erm", "randconv"}] * 3
    (erm,) = [point for point in points["parameters"] if point.label == "erm"]
    assert (erm.cost, erm.dsc, erm.sd) == (2.0, pytest.approx(45.0), None)
    assert [point.cost for point in points["training"]] == [1.0, 1.0]
    (note,) = cost.draw(board, Options()).undrawn
    assert "incomplete rows: saml" in note
    assert "training not known: hog" in note


def test_the_range_of_training_times_is_drawn(tmp_path: Path) -> None:
    """The factor is a median over pairs, here of 1, 3 and 5."""
    for place, center in enumerate(CENTERS):
        for method, factor in (("erm", 1), ("randconv", 1 + 2 * place)):
            folder = add_whole(tmp_path, method, center, (0.5,))
            (folder / "tumor-fine" / "times.jsonl").unlink()
            append_jsonl(folder / "tumor-fine" / "times.jsonl", {"step": 20, "steps": 20, "seconds": 2.0 * factor})
    board = board_of(tmp_path)
    found = {point.label: (point.cost, point.bounds) for point in cost.gather(board.table.rows)["training"]}
    assert found == {"erm": (1.0, (1.0, 1.0)), "randconv": (3.0, (1.0, 5.0))}
    (sheet,) = cost.draw(board, Options()).sheets
    assert "median over pairs; bars: the least and the greatest" in " ".join(text_of(sheet).split())
    ends = [bar.get_segments()[0][:, 0].tolist() for bar in sheet.figure.axes[2].collections if bar.get_segments()]
    assert [1.0, 5.0] in ends
    low, high = sheet.figure.axes[2].get_xlim()
    assert low < 1
    assert high > 5


def test_a_row_that_is_a_seed_ahead_makes_no_other_incomplete_where_the_first_seeds_are_drawn(tmp_path: Path) -> None:
    write_table(tmp_path)
    for center in CENTERS:
        add_whole(tmp_path, "erm", center, (0.9, 0.9), seed=1)
    (note,) = cost.draw(board_of(tmp_path), Options()).undrawn
    assert "incomplete rows: randconv" in note
    board = board_of(tmp_path, seeds=1)
    points = cost.gather(board.table.rows)["parameters"]
    assert {point.label: point.dsc for point in points} == pytest.approx({"erm": 45.0, "randconv": 55.0})
    drawing = cost.draw(board, Options())
    assert not drawing.undrawn
    assert "seeds 0 (--seeds 1: runs with later seeds are left out)" in " ".join(text_of(drawing.sheets[0]).split())


# Curves


def test_a_curve_is_the_mean_over_centers_of_the_means_over_cases(tmp_path: Path) -> None:
    folder = add_whole(tmp_path, "erm", "MSD", (0.5,), keep=())
    rows = [("RENJI", 0.2), ("RENJI", 0.4), ("RENJI", None), ("RMYY", 0.9)]
    append_jsonl(
        folder / "tumor-fine" / "validation.jsonl",
        *({"step": 5, "case": f"{center}/{i}", "center": center, "dsc": dsc} for i, (center, dsc) in enumerate(rows)),
    )
    (one,) = board_of(tmp_path).cells
    curve = curves.read_curve(one, "tumor-fine")
    assert curve is not None
    assert curve.steps.tolist() == [5]
    assert curve.dsc.tolist() == pytest.approx([60.0])


def test_a_mean_curve_needs_every_seed_and_uses_common_steps() -> None:
    def curve(seed: int, *points: tuple[int, float]) -> curves.Curve:
        steps, dsc = zip(*points, strict=True)
        return curves.Curve("erm", "MSD", "tumor-fine", seed, np.array(steps), np.array(dsc))

    both = [curve(0, (10, 20.0), (20, 40.0)), curve(1, (10, 40.0), (15, 1.0), (20, 60.0))]
    assert curves.mean_curve(both, (0, 1, 2)) is None
    mean = curves.mean_curve(both, (0, 1))
    assert mean is not None
    assert [values.tolist() for values in mean] == [[10, 20], [30.0, 50.0]]


@pytest.mark.parametrize(
    "change", [{"dsc": "0,25"}, {"dsc": 10**400}, {"step": [5]}, {"step": "five"}, {"step": 10**30}, {"center": {}}]
)
def test_a_damaged_validation_log_is_named(change: dict[str, object], tmp_path: Path) -> None:
    folder = add_whole(tmp_path, "erm", "MSD", (0.5,), keep=())
    row = {"step": 5, "case": "RENJI/a", "center": "RENJI", "dsc": 0.5}
    append_jsonl(folder / "tumor-fine" / "validation.jsonl", {**row, **change})
    with pytest.raises(DgbenchError, match=r"validation\.jsonl: not a readable log .* run again"):
        curves.draw(board_of(tmp_path), Options())


# Centroid distances


def test_distances_are_those_of_detected_cases_and_the_rest_is_counted(tmp_path: Path) -> None:
    cases = [
        *cell("MSD", 0.4, 0.8),
        case_row("MSD", 7, 0.0, **EMPTY_PREDICTION),
        case_row("MSD", 8, float("nan"), **EMPTY_REFERENCE),
        case_row("MSD", 9, float("nan"), failed=True, **{**EMPTY_PREDICTION, "empty_prediction": None}),
    ]
    add_whole(tmp_path, "erm", "MSD", (), cases=cases)
    board = board_of(tmp_path)
    found = centroids.gather(board)["erm", "MSD"]
    assert sorted(found.mm) == pytest.approx([1.0, 3.0])
    assert (found.n, found.empty, found.failed, found.seeds) == (4, 2, 1, (0,))
    assert found.note == "median 2.0; empty 2/4 (1 failed)"
    assert PROTOCOL.metrics.hd95_constant_mm not in found.mm
    assert "not plotted" in text_of(centroids.draw(board, Options()).sheets[0])


def test_nothing_but_empty_predictions_has_no_distance(tmp_path: Path) -> None:
    add_whole(tmp_path, "erm", "MSD", (), cases=[case_row("MSD", 1, 0.0, **EMPTY_PREDICTION)])
    with pytest.raises(NothingToDraw, match="no prediction of any run holds a voxel"):
        centroids.draw(board_of(tmp_path), Options())


# Embedding


def test_perplexity_is_capped_for_few_cases() -> None:
    assert embedding.perplexity_for(1000) == 30
    assert embedding.perplexity_for(16) == 5
    assert embedding.perplexity_for(embedding.LEAST) < embedding.LEAST


def test_silhouette_against_its_definition() -> None:
    """Points 0, 1 and 10: a = 1, b = 10 and 9; the single one counts 0."""
    points, names = np.array([[0.0], [1.0], [10.0]]), np.array(["a", "a", "b"])
    assert embedding.silhouette(points, names) == pytest.approx(((10 - 1) / 10 + (9 - 1) / 9 + 0) / 3)
    assert embedding.silhouette(points, np.array(["a", "a", "a"])) is None
    assert embedding.silhouette(points, np.array(["a", "b", "c"])) is None


def test_an_embedding_is_of_the_judged_stage_standardised_and_repeats(tmp_path: Path) -> None:
    folder = add_whole(tmp_path, "erm", "MSD", (0.1, 0.2, 0.3))
    path = folder / "evaluation" / "features.parquet"
    rows = pd.read_parquet(path)
    other = [rows.head(2).assign(**{name: "other"}) for name in ("stage", "checkpoint", "role", "tissue")]
    broken = rows.head(1).assign(features=[np.array([np.nan, 0, 0, 1])])
    pd.concat([rows, *other, broken]).to_parquet(path)
    (one,) = board_of(tmp_path).cells
    first, second = embedding.embed(one), embedding.embed(one)
    assert isinstance(first, embedding.Embedding)
    assert isinstance(second, embedding.Embedding)
    assert first.place.shape == (18, 2)
    assert first.skipped == 1
    np.testing.assert_array_equal(first.place, second.place)
    np.testing.assert_allclose(first.features.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(first.features.std(axis=0), [1, 1, 1, 0], atol=1e-12)  # a constant channel
    score = embedding.silhouette(first.features[:, :1], first.tissue)
    assert score is not None
    assert score > 0.7


def test_what_has_no_embedding_says_why(tmp_path: Path) -> None:
    few = add_whole(tmp_path, "erm", "MSD", (0.1,), keep=())
    write_features(few, "MSD", ["MSD/MSD_0000"], stage="tumor-coarse")
    add_whole(tmp_path, "randconv", "MSD", (0.1,), keep=())
    whole = add_whole(tmp_path, "saml", "MSD", (0.1,))
    found, notes = embedding.gather(board_of(tmp_path))
    assert list(found) == [("saml", "MSD")]
    assert any("hold fewer than 6 pooled features of tumor-fine" in note and "erm MSD 0" in note for note in notes)
    assert any("lack features.parquet" in note and "randconv MSD 0" in note for note in notes)
    (whole / "evaluation" / "features.parquet").write_bytes(b"PAR1 not a table")
    with pytest.raises(DgbenchError, match=r"features\.parquet: not readable features .* evaluate again"):
        embedding.gather(board_of(tmp_path))


def test_features_that_do_not_differ_make_no_map_and_stop_no_other_figure(tmp_path: Path) -> None:
    for method, value in (("erm", 1.0), ("randconv", 1e308)):
        folder = add_whole(tmp_path, method, "MSD", (0.1, 0.2), keep=())
        features = [np.full(4, value), np.full(4, value), np.full(4, -value if value > 1 else value)]
        write_features(folder, "MSD", ["MSD/MSD_0000"])
        path = folder / "evaluation" / "features.parquet"
        rows = pd.read_parquet(path)
        rows.assign(features=[features[index % 3] for index in range(len(rows))]).to_parquet(path)
    found, (note,) = embedding.gather(board_of(tmp_path))
    assert not found
    assert note == "not drawn, all 2 runs hold pooled features of tumor-fine that do not differ"


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


def test_points_of_held_out_cases_are_large_also_where_they_are_of_a_source_center(tmp_path: Path) -> None:
    folder = add_whole(tmp_path, "erm", "MSD", (0.1, 0.2), keep=("features",))
    path = folder / "evaluation" / "features.parquet"
    pd.read_parquet(path).assign(center="MSD").to_parquet(path)
    (sheet,) = embedding.draw(board_of(tmp_path), Options()).sheets
    sizes: dict[float, int] = {}
    for points in (points for axis in sheet.figure.axes for points in axis.collections):
        (size,) = points.get_sizes()
        sizes[size] = sizes.get(size, 0) + len(points.get_offsets())
    assert sizes == {15: 4, 8: 12}, "two tissues of two held-out and of six source-validation cases"


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
    found = overlays.exemplary(scores, "MSD")
    assert [f"{choice.rank} {choice.case}" for choice in found] == chosen
    assert all(choice.dsc == scores[choice.case] for choice in found)


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


# The sheet


def test_looks_differ_and_pages_are_even() -> None:
    names = [str(index) for index in range(63)]
    assert len({(look.colour, look.marker) for look in looks(names).values()}) == 63
    assert sorted(PALETTE) == sorted(TONES)
    assert [list(part) for part in pages(names[:6], 5)] == [["0", "1", "2"], ["3", "4", "5"]]
    assert pages(names[:5], 5) == [names[:5]]


def test_lines_are_broken_where_they_leave_the_sheet() -> None:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    line = "WWWW mmmm " * 30
    parts = wrap([line, "short"], 5.0, 7.0)
    assert " ".join(parts).split() == [*line.split(), "short"]
    font = FontProperties(family="DejaVu Sans", size=7.0)
    widths = [TextToPath().get_text_width_height_descent(part, font, ismath=False)[0] for part in parts]
    assert max(widths) <= 72 * (5.0 - 2 * EDGE)
    assert len(parts) < 30


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
