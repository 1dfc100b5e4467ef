"""What all figures stand on: the runs of one table, its stamps, what is missing and what is left out, in words on every sheet."""

from importlib import import_module
from pathlib import Path

import pytest
from figure_runs import add_whole, board_of, text_of, write_table
from leaderboard_runs import CENTERS, EMPTY_REFERENCE, PROTOCOL, add_run, case_row, row_of
from prediction_sets import SAME, cube, of_arrays

from dgbench.errors import DgbenchError
from dgbench.leaderboard.figures import FIGURES, centroids, curves
from dgbench.leaderboard.figures.board import Options
from dgbench.leaderboard.figures.board import board_of as part_of
from dgbench.leaderboard.records import View
from dgbench.training.job import protocol_reference


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_every_figure_says_first_what_its_data_is_and_how_it_stands(tmp_path: Path) -> None:
    write_table(tmp_path, seeds=3, protocol={"converged": False})
    board = board_of(tmp_path)
    for name in FIGURES:
        drawing = import_module(f"dgbench.leaderboard.figures.{name}").draw(board, Options())
        for sheet in drawing.sheets:
            first, second, *rest = [text.get_text() for text in sheet.figure.texts]
            assert first.startswith("PHANTOM DATA — not patient data · ")
            assert second.startswith(
                "protocol phantom version 1 (c0ffee00), preset bench, setting F-Seg, threshold 0.5"
            )
            assert "unconverged" in rest


def test_stamps_name_the_rows_they_hold_for(tmp_path: Path) -> None:
    write_table(tmp_path)
    smoke = "smoke: one or two seeds show that methods run"
    assert board_of(tmp_path).stamps() == [smoke]
    for center in CENTERS:
        add_whole(tmp_path, "erm_long", center, (0.1, 0.1), draws_factor=3)
    assert board_of(tmp_path).stamps() == [f"control row with 3× the draws, not ranked: erm_long; {smoke}"]


def test_stamps_are_those_of_the_rows(tmp_path: Path) -> None:
    """Of all runs of a row, not of its first: here the second seed and one center."""
    for center in CENTERS:
        for seed in (0, 1):
            add_whole(tmp_path, "erm", center, (0.1,), seed=seed, protocol={"converged": seed == 0})
            precision = {"precision": "bf16" if center == "MSD" else "fp32"}
            tuned = {"trials": 10, "study": "a" * 64}
            add_whole(tmp_path, "hog", center, (0.1,), seed=seed, tuned=tuned, environment=precision)
    board = board_of(tmp_path)
    (line,) = board.stamps()
    for row in board.table.rows:
        assert row.stamps
        for stamp in row.stamps:
            assert f"{stamp}: {row.label}" in line
    assert "mixed devices: cpu bf16, cpu fp32: hog" in line
    assert "tuned on source validation, 10 trials for each center: hog" in line


def test_how_few_seeds_there_are_is_said_of_every_table_and_row(tmp_path: Path) -> None:
    smoke = "smoke: one or two seeds show that methods run"
    write_table(tmp_path / "demo", protocol={"preset": "demo", "ranked": False})
    assert board_of(tmp_path / "demo").stamps() == [f"demo, not ranked; {smoke}"]
    write_table(tmp_path / "three", seeds=3)
    assert board_of(tmp_path / "three").stamps() == []
    for center in CENTERS:
        add_whole(tmp_path / "three", "saml", center, (0.1, 0.1))
    assert board_of(tmp_path / "three").stamps() == ["one or two seeds, smoke: saml"]


def test_imported_sets_are_not_drawn_and_are_named(tmp_path: Path) -> None:
    reference = protocol_reference(PROTOCOL.resolve("bench")).model_dump()
    for center in CENTERS:
        of_arrays(tmp_path, cube(f"{center}/{center}_0000", 4), heldout=center, **SAME)
    with pytest.raises(DgbenchError, match="no finished run of protocol phantom"):
        board_of(tmp_path)
    for center in CENTERS:
        add_whole(tmp_path, "erm", center, (0.1,), protocol=reference, evaluated="these")
    board = board_of(tmp_path)
    assert [row.label for row in board.table.rows] == board.labels == ["erm"]
    for name in ("failures", "centroids", "curves", "cost", "overlays"):
        drawing = import_module(f"dgbench.leaderboard.figures.{name}").draw(board, Options())
        assert not any("closed" in note for note in drawing.undrawn)
        words = text_of(drawing.sheets[0]).splitlines()
        assert [line for line in words if "closed" in line] == ["imported prediction sets are not drawn: closed"]


@pytest.mark.parametrize(
    ("view", "threshold", "words"),
    [
        (View(setting="F-Mask"), 0.5, "oracle ROI: the held-out label places the crop."),
        (View(threshold="oracle"), 0.4, "oracle threshold: chosen on the held-out center."),
        (View(threshold="source-tuned"), 0.6, None),
    ],
)
def test_cells_hold_the_rows_of_the_view_and_the_heading_calls_an_oracle_one(
    view: View, threshold: float, words: str | None, tmp_path: Path
) -> None:
    cases = [
        case_row(center, 0, dsc, role=role, threshold=at, setting=view.setting)
        for center, role, best in (("MSD", "held-out", 0.4), ("RENJI", "source-val", 0.6))
        for at in (0.4, 0.5, 0.6)
        for dsc in [0.8 if at == best else 0.3]
    ]
    add_run(tmp_path, "erm", "MSD", cases=cases)
    board = board_of(tmp_path, view=view)
    (one,) = board.cells
    assert one.cases["threshold"].to_list() == [threshold]
    heading = board.heading("title")
    assert f"setting {view.setting}, threshold {view.threshold_text}, checkpoint source-val" in heading[1]
    assert [line for line in heading[2:] if "oracle" in line] == ([words] if words else [])


def test_missing_runs_are_named(tmp_path: Path) -> None:
    for seed in range(4):
        add_whole(tmp_path, "erm", "MSD", (0.5,), seed=seed)
    add_run(tmp_path, "erm", "RENJI", 0, state="failed", reason="out of memory")
    board = board_of(tmp_path)
    (line,) = board.missing("never averaged over")
    assert line.startswith("missing runs (8), never averaged over: erm RENJI seed 0 (failed: out of memory); ")
    assert line.endswith("and 2 more (`dgbench leaderboard` lists all)")
    assert "erm RENJI seed 0 (failed: out of memory)" in " ".join(
        text_of(curves.draw(board, Options()).sheets[0]).split()
    )
    assert "failed" in text_of(centroids.draw(board, Options()).sheets[0])


def test_what_is_made_of_the_seeds_that_are_there_is_said(tmp_path: Path) -> None:
    for center in CENTERS:
        for seed in range(3 if center == "MSD" else 2):
            add_whole(tmp_path, "erm", center, (0.1, 0.8), seed=seed)
    board = board_of(tmp_path)
    treated = {
        "centroids": "the finished ones are pooled",
        "failures": "the finished ones are pooled",
        "overlays": "cases are chosen without them",
        "embedding": "their networks have no panel",
        "curves": "never averaged over",
    }
    for name, words in treated.items():
        text = text_of(import_module(f"dgbench.leaderboard.figures.{name}").draw(board, Options()).sheets[0])
        assert f"missing runs (2), {words}: erm RENJI seed 2" in " ".join(text.split()), name
        if name in ("centroids", "failures"):
            assert text.count("2 of 3 seeds") == 2


def test_a_case_that_failed_before_its_reference_was_read_counts_as_in_the_table(tmp_path: Path) -> None:
    """What it holds is told by another run: no lesion, or three."""
    measures = ("nsd", "assd", "assd_two_means", "hd95", "hd95_max", "centroid_mm")
    nothing = float("nan")
    unread = {"failed": True, **dict.fromkeys(measures, nothing), "n_lesions_reference": 0}
    for method, changes in (("erm", (EMPTY_REFERENCE, {"n_lesions_reference": 3})), ("randconv", (unread, unread))):
        cases = [
            case_row("MSD", index, nothing if change is unread else 0.5, **change)
            for index, change in enumerate((*changes, {}))
        ]
        add_run(tmp_path, method, "MSD", cases=cases)
    board = board_of(tmp_path)
    alone = board.table.only(board.row("randconv"))
    for part in (board, part_of(board.compiled, alone, tmp_path, PROTOCOL, whole=board.table)):
        (cell,) = part.of("randconv")
        assert cell.cases["included"].to_list() == [False, True, True]
        assert cell.cases["n_lesions_reference"].to_list() == [0, 3, 1]
        dsc = row_of(board.table, "randconv").centers["MSD"].scores["dsc"].mean
        assert cell.cases.loc[cell.cases["included"], "dsc"].mean() == pytest.approx(dsc) == 0.25


def test_of_several_tables_the_newest_is_drawn(tmp_path: Path) -> None:
    add_whole(tmp_path, "erm", "MSD", (0.5,), updated="2026-01-02T00:00:00+00:00")
    add_whole(tmp_path, "erm", "MSD", (0.9,), protocol={"content": "ba" * 32})
    board = board_of(tmp_path)
    assert board.older == 1
    assert board.table.content.startswith("c0ffee")
