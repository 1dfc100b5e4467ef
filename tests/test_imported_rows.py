"""Imported prediction sets in a table: a section of their own, compared with the baseline, never ranked, changing no other row."""

import csv
import itertools
from pathlib import Path

import pandas as pd
import pytest
from leaderboard_runs import CENTERS, PROTOCOL, add_run, cell, only_table, row_of, terminal
from prediction_sets import SAME, cube, of_arrays

from dgbench.atomic import write_json
from dgbench.leaderboard.compile import compile_runs
from dgbench.leaderboard.evidence import Family, table_statistics
from dgbench.leaderboard.export import to_csv
from dgbench.leaderboard.records import View
from dgbench.leaderboard.sheets import to_markdown
from dgbench.leaderboard.tables import leaderboard_sheets
from dgbench.protocol import load_protocol
from dgbench.training.job import protocol_reference


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two trained rows at all centers, and two better imported sets on the same cases, one of them at one center with two seeds."""
    reference = protocol_reference(load_protocol("phantom").resolve("bench")).model_dump()
    for method, dsc in (("erm", 0.3), ("randconv", 0.4)):
        for center in CENTERS:
            add_run(tmp_path, method, center, cases=cell(center, dsc), protocol=reference, evaluated="these")
    for center in CENTERS:
        of_arrays(tmp_path, cube(f"{center}/{center}_0000", 1), heldout=center, **SAME)
    for seed in (0, 4):
        of_arrays(tmp_path, cube("MSD/MSD_0000", seed // 4), name="partial", seed=seed, **SAME)
    return tmp_path


def test_imported_rows_are_never_ranked_and_owe_only_their_own_seeds(mixed: Path) -> None:
    table = only_table(mixed)
    assert [(row.label, row.rank, row.imported) for row in table.rows] == [
        ("randconv", 1, False),
        ("erm", 2, False),
        ("closed", None, True),
        ("partial", None, True),
    ]
    assert table.ranked
    assert table.seeds == (0,)
    assert table.statistics is not None
    assert set(table.statistics.standings) == {"erm", "randconv"}
    assert set(table.statistics.comparisons) == {"randconv", "closed"}
    closed = row_of(table, "closed")
    assert closed.mean["dsc"].mean == 0.75
    assert closed.cost is None
    assert closed.notes[0] == "imported, not trained under this protocol"
    assert not row_of(table, "partial").complete
    holes = {(hole.heldout, hole.seed) for hole in table.missing}
    assert {hole.label for hole in table.missing} == {"partial"}
    assert holes == {(center, seed) for center in ("RENJI", "RMYY") for seed in (0, 4)}
    assert table.missing[0].command.startswith("dgbench import-predictions FOLDER --name partial")


def test_imported_rows_are_a_section_of_their_own(mixed: Path) -> None:
    result = compile_runs(mixed, protocol=PROTOCOL)
    text = terminal(result)
    ranked, _, rest = text.partition("Imported prediction sets: ")
    for part in ("Official ranking", "Evidence: ", "Detection: "):
        assert "randconv" in ranked.partition(part)[2]
    assert "closed" not in ranked
    assert "not ours" in rest.partition("Missing runs")[0]
    (noted,) = (line for line in text.splitlines() if ": imported, not trained under this protocol" in line)
    assert "closed" in noted
    page = to_markdown(leaderboard_sheets(result))
    assert "| not ours | closed | 75.0 | 75.0 | 75.0 | 75.0 |" in page
    assert "imported,,closed,mean" in to_csv(result)


def add_seeds(root: Path, n_seeds: int, n_cases: int) -> None:
    """``n_seeds`` seeds of two trained rows, whose DSC vary a little with the case."""
    reference = protocol_reference(load_protocol("phantom").resolve("bench")).model_dump()
    for method, dsc in (("erm", 0.3), ("randconv", 0.4)):
        for center, seed in itertools.product(CENTERS, range(n_seeds)):
            varied = (dsc + 0.01 * seed + 0.002 * index * (method == "erm") for index in range(n_cases))
            add_run(root, method, center, seed, cases=cell(center, *varied), protocol=reference, evaluated="these")


def test_a_set_with_all_seeds_is_compared_with_the_baseline_and_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    n_seeds, n_cases = 5, 3
    add_seeds(tmp_path, n_seeds, n_cases)
    alone = only_table(tmp_path).statistics
    for center in CENTERS:
        for seed, shifts in enumerate(
            ((1, 2, 3), (1, 2, 4), (1, 1, 3), (2, 3, 4), (1, 1, 2), (0, 0, 0))
        ):  # one seed more
            cubes = [cube(f"{center}/{center}_{index:04d}", shift) for index, shift in enumerate(shifts)]
            of_arrays(tmp_path, *cubes, heldout=center, seed=seed, **SAME)
        of_arrays(
            tmp_path, *(cube(f"{center}/{center}_{i:04d}") for i in range(n_cases)), name="once", heldout=center, **SAME
        )
    table = only_table(tmp_path)
    found = table.statistics
    assert alone is not None
    assert found is not None
    assert found.comparisons["randconv"] == alone.comparisons["randconv"]
    assert (found.standings, found.robustness, found.notes) == (alone.standings, alone.robustness, alone.notes)
    assert set(found.comparisons) == {"randconv", "closed"}
    other = found.comparisons["closed"]
    closed = other.overall
    assert closed.mean == pytest.approx(
        1 - 31 / 15 / 4 - (0.3 + 0.02 + 0.002)
    )  # the sixth seed, a perfect one, takes no part
    assert closed.interval is not None
    randconv = found.comparisons["randconv"]
    assert randconv.p is not None
    assert other.p is not None
    assert randconv.p < other.p  # so that one family of two would double it
    assert (randconv.p_holm, other.p_holm) == (randconv.p, other.p)
    result = compile_runs(tmp_path, protocol=PROTOCOL)
    ranked, _, rest = terminal(result).partition("Imported prediction sets: ")
    assert "closed" not in ranked
    low, high = (f"{100 * bound:+.1f}" for bound in closed.interval)
    assert f"+16.1 [{low}, {high}]" in rest
    lines = csv.DictReader(line for line in to_csv(result).splitlines() if not line.startswith("#"))
    told = {
        line["method"]: (line["difference"], line["evidence"], line["tier"])
        for line in lines
        if line["center"] == "mean"
    }
    assert told["closed"] == ("16.1333", "claim", "")
    assert told["once"] == ("", "", "")


def test_one_set_of_masks_under_several_seeds_is_not_several_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    add_seeds(tmp_path, 3, 2)
    for center, seed in itertools.product(CENTERS, range(3)):
        for name, shifts in (("copied", (1, 2)), ("trained", (1 + seed, 2)), ("partly", (1 + min(seed, 1), 2))):
            cubes = [cube(f"{center}/{center}_{index:04d}", shift) for index, shift in enumerate(shifts)]
            of_arrays(tmp_path, *cubes, name=name, heldout=center, seed=seed, **SAME)
    table = only_table(tmp_path)
    assert table.statistics is not None
    assert set(table.statistics.comparisons) == {"randconv", "trained"}
    told = [note for note in row_of(table, "copied").notes if note.startswith("equal results of several seeds")]
    assert told == [
        "equal results of several seeds at MSD, RENJI, RMYY: not compared, a system that was trained once has one seed"
    ]
    assert not any("equal results" in note for note in row_of(table, "trained").notes)


def test_a_set_of_other_cases_costs_the_trained_rows_nothing() -> None:
    """Sets are compared apart: what forbids it is noted, and trained rows keep their statistics."""
    frame = pd.concat(
        pd.DataFrame(cell(center, 0.5, 0.6)[: 1 + (method != "closed")]).assign(method=method, seed=0)
        for method in ("erm", "randconv", "closed")
        for center in CENTERS
    )
    found = table_statistics(
        frame,
        families=[Family("erm", ("randconv",), claims=True)],
        baseline="erm",
        imported=["closed"],
        ranked=["erm", "randconv"],
        metrics=["dsc"],
        claims=True,
    )
    assert found is not None
    assert set(found.comparisons) == {"randconv"}
    assert found.notes[-1].startswith("no statistics of imported sets: scores: closed has no dsc for MSD")


def test_imported_rows_stand_in_every_view_of_their_setting_only(mixed: Path) -> None:
    for view in (View(policy="paper"), View(checkpoint="last-step"), View(threshold=0.9)):
        table = only_table(mixed, view=view)
        assert row_of(table, "closed").mean["dsc"].mean == 0.75
        assert not table.ranked
    oracle = only_table(mixed, view=View(setting="F-Mask"))
    assert {row.label for row in oracle.rows} == {"erm", "randconv"}


def test_other_data_never_share_a_table(mixed: Path) -> None:
    """Nor does a set on other cases of one center take the runs of other centers, which do not speak of them, however new it is."""
    run = of_arrays(mixed, cube("MSD/MSD_0000"), name="elsewhere", data={"phantom": "fee1dead" * 8})
    write_json(run.path / "status.json", {"state": "done", "updated": "2036-01-01T00:00:00+00:00"})
    tables = compile_runs(mixed, protocol=PROTOCOL).tables
    assert sorted(sorted(row.label for row in table.rows) for table in tables) == [
        ["closed", "erm", "partial", "randconv"],
        ["elsewhere"],
    ]


def test_a_table_of_imports_alone_is_not_ranked(tmp_path: Path) -> None:
    for center in CENTERS:
        of_arrays(tmp_path, cube(f"{center}/a", 1), heldout=center)
    table = only_table(tmp_path)
    assert not table.ranked
    assert table.rows[0].rank is None
    assert table.rows[0].mean["dsc"].mean == 0.75
    assert "Imported prediction sets" in terminal(compile_runs(tmp_path, protocol=PROTOCOL))
