"""With which row each row of a table is compared, and what that permits one to say."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leaderboard_runs import CENTERS, PROTOCOL, add_method, add_run, cell, compiled, only_table, row_of, terminal

from dgbench.atomic import read_json, write_json
from dgbench.leaderboard.export import to_csv, to_json
from dgbench.leaderboard.page.board import board
from dgbench.leaderboard.results import Compiled

SEEDS = 5


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def tuned(trials: int) -> dict[str, Any]:
    return {"tuned": {"trials": trials, "study": "0" * 64}}


def test_the_latest_version_on_one_device_is_the_baseline_of_accuracy_and_cost(tmp_path: Path) -> None:
    for number, gain in ((1, 0.0), (2, 0.05)):
        add_method(tmp_path, "erm", gain, SEEDS, version=number)
    add_method(tmp_path, "erm", 0.2, SEEDS, version=2, environment={"devices": 2})
    add_method(tmp_path, "better", 0.1, SEEDS)
    table = only_table(tmp_path)
    assert [row.label for row in table.rows if row.is_baseline] == [table.baseline] == ["erm (v2)"]
    assert table.statistics is not None
    found = table.statistics.comparisons
    assert {one.baseline for one in found.values()} == {"erm (v2)"}
    assert set(found) == {"better", "erm (v1)", "erm (v2, 2 devices)"}
    assert found["better"].overall.mean == pytest.approx(0.05, abs=0.01)
    assert "DSC − erm (v2)" in terminal(compiled(tmp_path))
    assert "DSC − erm (v2)" in {column.header for column in board(table).columns}


def test_an_incomplete_baseline_is_not_replaced_by_another_one(tmp_path: Path) -> None:
    add_method(tmp_path, "erm", 0.0, SEEDS, version=1)
    add_run(tmp_path, "erm", "MSD", 0, cases=cell("MSD", *[0.5] * 12), version=2)
    add_method(tmp_path, "better", 0.1, SEEDS)
    table = only_table(tmp_path)
    assert table.statistics is not None
    assert table.statistics.comparisons == {}
    assert "no complete row of the baseline to compare with" in table.statistics.notes


def test_a_tuned_row_is_compared_with_the_baseline_that_was_tuned_as_long(tmp_path: Path) -> None:
    add_method(tmp_path, "erm", 0.0, SEEDS)
    add_method(tmp_path, "plain", 0.1, SEEDS)
    add_method(tmp_path, "erm", 0.05, SEEDS, **tuned(10))
    add_method(tmp_path, "searched", 0.1, SEEDS, **tuned(10))
    add_method(tmp_path, "lonely", 0.1, SEEDS, **tuned(100))
    table = only_table(tmp_path)
    assert table.statistics is not None
    found = table.statistics.comparisons
    assert {label: (one.baseline, one.p_holm is not None) for label, one in found.items()} == {
        "plain": ("erm (default)", True),
        "searched (tuned(10))": ("erm (tuned(10))", True),
        "erm (tuned(10))": ("erm (default)", False),
        "lonely (tuned(100))": ("erm (default)", False),
    }
    assert found["searched (tuned(10))"].overall.mean == pytest.approx(0.05, abs=0.01)
    page = terminal(compiled(tmp_path))
    for told in (
        "rows tuned(10) are compared with erm (tuned(10))",
        "so without p",
        "rows with different numbers of trials stand in one order",
    ):
        assert told in page
    assert re.search(r"searched \(tuned\(10\)\) .*\] to erm \(tuned\(10\)\)", page), (
        "not the row that the column is headed with"
    )
    lines = means(compiled(tmp_path))
    assert {label: (line["baseline"], line["evidence"]) for label, line in lines.items()} == {
        "erm (default)": ("", "claim"),
        "plain": ("erm (default)", "claim"),
        "searched (tuned(10))": ("erm (tuned(10))", "claim"),
        "erm (tuned(10))": ("erm (default)", "row"),
        "lonely (tuned(100))": ("erm (default)", "row"),
    }
    header = [column.header for column in board(table).columns].index("DSC − erm (default)")
    cells = {line.label: line.cells[header].text for line in board(table).lines}
    assert cells["searched (tuned(10))"].endswith("] to erm (tuned(10))")
    assert cells["plain"].endswith("]")


def means(result: Compiled) -> dict[str, dict[str, str]]:
    """The lines of the CSV for the means of rows, by label."""
    text = "".join(line for line in to_csv(result).splitlines(keepends=True) if not line.startswith("#"))
    return {line["method"]: line for line in csv.DictReader(io.StringIO(text)) if line["center"] == "mean"}


def test_a_row_that_is_not_compared_has_no_evidence(tmp_path: Path) -> None:
    add_method(tmp_path, "erm", 0.0, SEEDS)
    add_method(tmp_path, "wide", 0.1, 1, protocol={"modified": True, "ranked": False}, extra=" --set preset.width=16")
    lines = means(compiled(tmp_path))
    assert {label: line["evidence"] for label, line in lines.items()} == {"erm": "claim", "wide (preset.width=16)": ""}


def test_equal_means_share_a_rank_in_the_table_as_in_the_statistics(tmp_path: Path) -> None:
    """The same cases in another order: sums that differ by rounding."""
    for method, order in (("erm", (0.1, 0.7, 0.3)), ("mixstyle", (0.3, 0.1, 0.7)), ("randconv", (0.3, 0.7, 0.1))):
        for center in CENTERS:
            add_run(tmp_path, method, center, cases=cell(center, *order))
    table = only_table(tmp_path)
    assert len({row.mean["dsc"].mean for row in table.rows}) > 1
    assert table.statistics is not None
    assert {row.rank for row in table.rows} == {one.rank for one in table.statistics.standings.values()} == {1}


def test_a_run_on_other_data_is_not_called_one_that_was_never_run(tmp_path: Path) -> None:
    for method, told in (("erm", "old"), ("randconv", "new")):
        for center in CENTERS:
            changes = {"evaluated": told} if center == "RENJI" else {}
            sources = {name: "a" * 64 for name in CENTERS if name != center}
            add_run(
                tmp_path,
                method,
                center,
                cases=cell(center, 0.5, 0.6),
                centers=sources,
                updated=f"2026-01-0{1 + (told == 'new')}",
                **changes,
            )
    add_run(tmp_path, "saml", "MSD", cases=cell("MSD", 0.5, 0.6), centers={"RENJI": "a" * 64, "RMYY": "a" * 64})
    one, other = compiled(tmp_path).tables
    holes = {
        (hole.label, hole.heldout, hole.reason, bool(hole.command)) for table in (one, other) for hole in table.missing
    }
    elsewhere = "counted in another table, with other data"
    assert ("erm", "RENJI", elsewhere, False) in holes
    assert ("saml", "RENJI", "not run", True) in holes
    assert not {hole for hole in holes if hole[0] != "saml" and hole[2] == "not run"}


def test_a_row_that_is_converged_at_some_centers_only_says_so(tmp_path: Path) -> None:
    for center in CENTERS:
        add_run(tmp_path, "erm", center, cases=cell(center, 0.5), protocol={"converged": center == "MSD"})
    assert row_of(only_table(tmp_path), "erm").stamps == ("unconverged",)


def test_a_table_of_a_preset_without_ranks_carries_no_claim(tmp_path: Path) -> None:
    for method, gain in (("erm", 0.0), ("better", 0.1)):
        add_method(tmp_path, method, gain, SEEDS, protocol={"preset": "demo", "ranked": False})
    made = compiled(tmp_path)
    (table,) = made.tables
    assert table.statistics is not None
    one = table.statistics.comparisons["better"]
    assert one.overall.interval is not None
    assert one.p is one.p_holm is None
    assert json.loads(to_json(made))["tables"][0]["statistics"]["evidence"] == "row"
    assert ",claim," not in to_csv(made)


def test_a_small_p_is_not_printed_as_zero(tmp_path: Path) -> None:
    for method, gain in (("erm", 0.0), ("better", 0.1)):
        add_method(tmp_path, method, gain, SEEDS)
    page = terminal(compiled(tmp_path))
    assert "<0.001" in page
    assert " 0.000 " not in page


def test_a_difference_that_nothing_bounds_is_told_in_every_format(tmp_path: Path) -> None:
    """One case of one seed is all that differs."""
    for method in ("erm", "twin"):
        for seed in range(SEEDS):
            for place, center in enumerate(CENTERS):
                dsc = np.random.default_rng([seed, place]).uniform(0.2, 0.8, 12)
                dsc[4] += 0.01 * (method == "twin" and (seed, center) == (1, "RENJI"))
                add_run(tmp_path, method, center, seed, cases=cell(center, *dsc.tolist()))
    made = compiled(tmp_path)
    overall = json.loads(to_json(made))["tables"][0]["statistics"]["comparisons"]["twin"]["overall"]
    assert (overall["interval"], overall["unbounded"]) == (None, True)
    assert "+0.0 [unbounded]" in terminal(made)
    mean = next(line for line in to_csv(made).splitlines() if ",twin,mean," in line)
    assert "inf" not in mean
    line = next(line for line in board(made.tables[0]).lines if line.label == "twin")
    assert "inf" not in "".join(str(cell.mark) for cell in line.cells)


def test_what_was_judged_with_other_constants_is_not_counted(tmp_path: Path) -> None:
    """The constants of the protocol at hand would be printed above numbers of others."""
    for center in CENTERS:
        folder = add_run(tmp_path, "erm", center, cases=cell(center, 0.5))
        spec = folder / "evaluation/spec.json"
        constants = PROTOCOL.metrics.model_dump(mode="json")
        told = constants | ({"nsd_tolerance_mm": 7.0} if center == "MSD" else {})
        write_json(spec, read_json(spec) | {"how": {"metrics": told}})
    (hole,) = only_table(tmp_path).missing
    assert (hole.center, hole.label) == ("MSD", "erm")
    assert hole.reason.startswith(
        "judged with other constants than protocol phantom has here (nsd_tolerance_mm: 7.0 → "
    )
