"""The data behind each figure, and what it says in words."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from figure_runs import add_whole, board_of, text_of, write_features, write_table
from leaderboard_runs import CENTERS, EMPTY_PREDICTION, EMPTY_REFERENCE, PROTOCOL, case_row, cell

from dgbench.atomic import append_jsonl
from dgbench.errors import DgbenchError
from dgbench.leaderboard.figures import centroids, cost, curves, embedding
from dgbench.leaderboard.figures.board import NothingToDraw, Options
from dgbench.leaderboard.figures.style import EDGE, PALETTE, TONES, looks, pages, wrap


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
    assert "seed 0 (--seeds 1: runs with later seeds are left out)" in " ".join(text_of(drawing.sheets[0]).split())


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
