"""Tiers of submitted records, in every form of the leaderboard; runs that are no records show none."""

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from leaderboard_runs import CENTERS, PROTOCOL, add_run, cell, compiled, only_table

from dgbench.leaderboard import export
from dgbench.leaderboard.page.board import board
from dgbench.leaderboard.results import Table
from dgbench.leaderboard.sheets import to_markdown
from dgbench.leaderboard.tables import center_cell, leaderboard_sheets
from dgbench.store.manifest import MANIFEST, Manifest, Tier
from dgbench.store.tiers import lowest_tier

MIXED: tuple[Tier, ...] = ("verified", "reproduced", "verified")


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """erm: all three are records, of two tiers; randconv: one of them is none; saml: one is missing."""
    for center, tier in zip(CENTERS, MIXED, strict=True):
        for method in ("erm", "randconv", "saml"):
            if (method, center) == ("saml", "RMYY"):
                continue
            folder = add_run(tmp_path, method, center, cases=cell(center, 0.4, 0.6))
            if (method, center) != ("randconv", "RENJI"):
                Manifest.of(folder, tier).write(folder)
    return tmp_path


def test_the_lowest_of_several_tiers_where_none_is_missing() -> None:
    assert lowest_tier(MIXED) == "reproduced"
    assert lowest_tier(["verified", None]) is lowest_tier([]) is None


def test_a_row_has_the_lowest_tier_of_its_counted_runs(runs: Path) -> None:
    found = {row.label: row.record for row in only_table(runs).rows}
    assert found == {"erm": "reproduced", "randconv": None, "saml": "reproduced"}


def test_a_changed_record_is_not_counted(runs: Path) -> None:
    (folder,) = runs.glob("phantom/MSD/erm/seed0-*")
    table = folder / "evaluation" / "cases.parquet"
    pd.read_parquet(table).assign(dsc=0.9).to_parquet(table)
    made = only_table(runs)
    (hole,) = [hole for hole in made.missing if hole.label == "erm"]
    assert hole.reason.startswith("refused: phantom/MSD/erm/seed0-")
    assert hole.reason.endswith("the file was changed after it was submitted")
    assert center_cell(made, next(row for row in made.rows if row.label == "erm"), "MSD") == "refused"


def test_every_form_shows_it(runs: Path) -> None:
    made = compiled(runs)
    text = to_markdown(leaderboard_sheets(made))
    line = next(line for line in text.splitlines() if "| erm |" in line)
    header = next(line for line in text.splitlines() if line.startswith("| rank | method |"))
    assert line.split(" | ")[header.split(" | ").index("record")] == "reproduced"
    assert "record: experimental until second records" in text
    rows = csv.DictReader(line for line in io.StringIO(export.to_csv(made)) if not line.startswith("#"))
    assert {(row["method"], row["record"]) for row in rows if row["center"] == "mean"} == {
        ("erm", "reproduced"),
        ("randconv", ""),
    }
    (table,) = json.loads(export.to_json(made))["tables"]
    assert {row["method"]: row["record"] for row in table["rows"]}["erm"] == "reproduced"


def page_records(table: Table) -> list[str]:
    """The column of the page's table; nothing where there is none."""
    shown = board(table)
    place = [column.header for column in shown.columns].index("record")
    return [line.cells[place].text for line in shown.lines]


def test_the_page_shows_it_too(runs: Path) -> None:
    assert page_records(only_table(runs)) == ["reproduced", "–", "reproduced"]


def test_runs_alone_have_no_such_column(tmp_path: Path) -> None:
    for center in CENTERS:
        add_run(tmp_path, "erm", center, cases=cell(center, 0.4, 0.6))
    made = compiled(tmp_path)
    assert "record" not in to_markdown(leaderboard_sheets(made))
    with pytest.raises(ValueError, match="is not in list"):
        page_records(made.tables[0])


def test_a_damaged_manifest_is_a_hole_with_its_reason(runs: Path) -> None:
    folder = next(runs.glob("phantom/MSD/erm/*"))
    (folder / MANIFEST).write_text("{}", encoding="utf-8")
    (hole,) = [hole for hole in only_table(runs).missing if hole.label == "erm"]
    assert "record.json: tier: Field required" in hole.reason
    assert PROTOCOL.name in hole.command
