"""Counterparts of the paper's tables: which runs and settings they are of, and what they leave out."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from cli_calls import mistake
from leaderboard_runs import CENTERS, PROTOCOL, add_run, case_row, compiled
from prediction_sets import cube, of_arrays
from test_costs import add_priced_run

from dgbench.cli import call
from dgbench.errors import DgbenchError
from dgbench.leaderboard import records
from dgbench.leaderboard.checked_rows import read_checked
from dgbench.leaderboard.compile import compile_views
from dgbench.leaderboard.paper_tables import ABLATIONS, paper_table, paper_table_sheets
from dgbench.leaderboard.published import load_published
from dgbench.leaderboard.records import View
from dgbench.leaderboard.sheets import Sheet
from dgbench.leaderboard.tables import published_sheet
from dgbench.registry import discover
from dgbench.training.job import protocol_reference


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def sheets(root: Path, name: str, **options: Any) -> list[Sheet]:
    wanted = paper_table(name, PROTOCOL)
    views = [View(setting=setting) for setting in wanted.settings]
    found = compile_views(root, views, protocol=PROTOCOL)
    return paper_table_sheets(wanted, dict(zip(wanted.settings, found, strict=True)), **options)


def column(sheet: Sheet, name: str) -> list[str]:
    return [row[sheet.columns.index(name)] for row in sheet.rows]


def add_everywhere(root: Path, method: str, **dsc: float) -> None:
    """One run per center with one case in each of the settings, given as ``F_Seg=0.5``."""
    for center in CENTERS:
        cases = [case_row(center, 0, value, setting=name.replace("_", "-")) for name, value in dsc.items()]
        add_run(root, method, center, cases=cases)


def test_the_pancreas_table_is_of_the_shared_runs_alone(tmp_path: Path) -> None:
    add_everywhere(tmp_path, "_pancreas", P_Coarse=0.7, P_Fine=0.8)
    add_everywhere(tmp_path, "erm", F_Seg=0.5)
    (sheet,) = sheets(tmp_path, "II")
    assert column(sheet, "setting") == ["P-Coarse", "P-Fine"]
    assert column(sheet, "method") == ["_pancreas", "_pancreas"]
    assert column(sheet, "DSC mean") == ["70.0", "80.0"]
    assert [row.label for table in compiled(tmp_path).tables for row in table.rows] == ["erm"]


def test_all_settings_stand_side_by_side_with_their_centers(tmp_path: Path) -> None:
    add_everywhere(tmp_path, "erm", C_Seg=0.3, F_Seg=0.4, C_Mask=0.5, F_Mask=0.6)
    (sheet,) = sheets(tmp_path, "III")
    assert dict(zip(column(sheet, "setting"), column(sheet, "DSC mean"), strict=True)) == {
        "C-Seg": "30.0",
        "F-Seg": "40.0",
        "C-Mask": "50.0",
        "F-Mask": "60.0",
    }
    assert [name for name in sheet.columns if name.startswith("DSC")] == [*(f"DSC {c}" for c in CENTERS), "DSC mean"]
    assert any("oracle ROI" in line for line in sheet.heading)


def test_the_ablation_has_the_papers_rows_in_its_order_and_no_other(tmp_path: Path) -> None:
    for position, method in enumerate(("erm", "dualtask", "dualtask_dsl", "dualtask_bl")):
        add_everywhere(tmp_path, method, F_Seg=0.5 + 0.1 * position)
    (sheet,) = sheets(tmp_path, "V")
    assert column(sheet, "method") == list(ABLATIONS)
    there = [row[1] for row in sheet.rows if "not run" not in row]
    assert there == ["dualtask_bl", "dualtask_dsl", "dualtask"]
    assert sheet.footer[0].startswith(
        "not run: dualtask_idr, dualtask_dtl, dualtask_dtl_smooth, dualtask_smooth — dgbench"
    )
    assert set(ABLATIONS) <= set(discover())


def test_cost_stands_beside_all_methods(tmp_path: Path) -> None:
    for center in CENTERS:
        add_priced_run(tmp_path, "erm", center, 1.0)
    add_everywhere(tmp_path, "unpriced", F_Seg=0.5)
    (sheet, missing) = sheets(tmp_path, "VI")
    assert missing.heading[0].startswith("Missing runs in F-Seg (3)"), "other cases than those of erm"
    assert column(sheet, "method") == ["erm", "unpriced"]
    assert column(sheet, "parameters") == ["20", "none stored"]
    assert column(sheet, "s per case") == ["4.00", "none stored"]


def test_what_is_missing_is_listed_for_the_tables_own_methods(tmp_path: Path) -> None:
    add_run(tmp_path, "dualtask", "MSD", cases=[case_row("MSD", 0, 0.5)])
    add_run(tmp_path, "erm", "MSD", cases=[case_row("MSD", 0, 0.5)])
    sheet, missing = sheets(tmp_path, "V")
    assert [mean for mean in column(sheet, "DSC mean") if mean != "not run"] == ["incomplete"]
    assert {(row[0], row[1]) for row in missing.rows} == {("dualtask", "RENJI"), ("dualtask", "RMYY")}


def test_the_reported_table_follows_and_is_marked(tmp_path: Path) -> None:
    published = load_published()
    for name, rows in (("II", 2), ("III", 4), ("V", 5), ("VI", len([r for r in published.rows if r.table == "VI"]))):
        empty, reported = sheets(tmp_path, name, published=published)
        assert "no runs" in empty.heading[1]
        assert reported.heading[0].startswith("REPORTED in the literature")
        assert len(reported.rows) == rows
        oracle = [line for line in reported.heading if line.startswith("oracle ROI in C-Mask and F-Mask: ")]
        assert bool(oracle) == (name == "III")
    masked, official = (published_sheet(published, setting).heading for setting in ("F-Mask", "F-Seg"))
    assert any(line.startswith("oracle ROI in F-Mask: the held-out label places") for line in masked)
    assert "oracle" not in " ".join(official)


def test_tables_that_are_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DgbenchError, match="--table IV: protocol 'phantom' is of held-out centers"):
        paper_table("IV", PROTOCOL)
    runs = f"--runs={tmp_path}"
    assert mistake(capsys, ["leaderboard", runs, "--table", "VII"]).startswith("--table VII: no counterpart here")
    line = mistake(capsys, ["leaderboard", runs, "--table", "II", "--threshold", "0.3"])
    assert line == "--table II --threshold 0.3: pancreas masks are always taken at 0.5"
    line = mistake(capsys, ["leaderboard", runs, "--table", "III", "--format", "html", "--out", str(tmp_path / "page")])
    assert line.startswith("--table III: the page has tables of its own")
    assert call(["leaderboard", runs, "--table", "iii", "--format", "md"]) == 0
    assert "no runs in C-Seg, F-Seg, C-Mask, F-Mask yet" in capsys.readouterr().out.replace("\\", "")


def test_csv_and_json_hold_the_cells_that_are_printed(two_seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["leaderboard", f"--runs={two_seeds}", "--table=III", "--published"]
    assert call([*command, "--format=json"]) == 0
    own, *_, reported = json.loads(capsys.readouterr().out)
    assert own["heading"][0].startswith("PHANTOM DATA")
    assert call([*command, "--format=csv"]) == 0
    first, *_, last = capsys.readouterr().out.split("\n\n")
    for text, sheet in ((first, own), (last, reported)):
        lines = text.splitlines()
        remarks = [line.removeprefix("# ") for line in lines if line.startswith("#")]
        assert remarks == [*sheet["heading"], *sheet["footer"]]
        assert list(csv.DictReader(lines[len(remarks) :])) == sheet["rows"]
    assert reported["heading"][0].startswith("REPORTED in the literature")
    assert {row["setting"] for row in own["rows"]} == {"C-Seg", "F-Seg", "C-Mask", "F-Mask"}


def test_every_run_is_read_once_for_all_settings(two_seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(records, "read_checked", lambda folder: read.append(folder) or read_checked(folder))
    views = [View(setting=setting) for setting in PROTOCOL.settings]
    found = compile_views(two_seeds, views, protocol=PROTOCOL)
    assert len(read) == len(set(read)) == 12
    assert found == [compiled(two_seeds, view=view) for view in views]


def test_runs_judged_on_other_data_are_a_sheet_of_their_own(tmp_path: Path) -> None:
    for told, value in (("old", 0.1), ("new", 0.9)):
        changes = {"evaluated": told, "environment": {"torch": f"2.{len(told)}{told == 'new':d}"}}
        add_run(
            tmp_path,
            "erm",
            "RENJI",
            cases=[case_row("RENJI", 0, value)],
            updated=f"2026-01-0{1 + (told == 'new')}",
            **changes,
        )
    shown = [sheet for sheet in sheets(tmp_path, "VI") if sheet.rows and "DSC RENJI" in sheet.columns]
    assert [column(sheet, "DSC RENJI") for sheet in shown] == [["90.0"], ["10.0"]]


def test_settings_of_the_same_data_share_a_sheet(tmp_path: Path) -> None:
    """An imported set stands in the official setting alone, there before the run, as it is newer."""
    reference = protocol_reference(PROTOCOL.resolve("bench")).model_dump()
    for center in CENTERS:
        rows = [case_row(center, 0, 0.5, setting=setting) for setting in ("C-Seg", "F-Seg")]
        add_run(tmp_path, "erm", center, cases=rows, protocol=reference)
    of_arrays(
        tmp_path,
        cube("MSD/MSD_0000"),
        evaluated={"fingerprint": "others", "content": "others"},
        data={"phantom": "0" * 64},
    )
    shown = [sheet for sheet in sheets(tmp_path, "III") if sheet.rows and "DSC MSD" in sheet.columns]
    assert [column(sheet, "setting") for sheet in shown] == [["C-Seg", "F-Seg", "C-Mask", "F-Mask"]]
