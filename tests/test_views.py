"""What a table that is not the official one says, in every form: no ranks, no claim, and what the held-out center told."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from cli_calls import mistake
from leaderboard_runs import CENTERS, add_run, case_row, compiled, only_table, terminal

from dgbench.cli import call
from dgbench.leaderboard.export import to_csv, to_json
from dgbench.leaderboard.page.facts import evidence_words
from dgbench.leaderboard.records import View
from dgbench.leaderboard.results import Compiled
from dgbench.leaderboard.sheets import UNRANKED, to_markdown
from dgbench.leaderboard.tables import leaderboard_sheets

ORACLES = {
    "threshold": ({"threshold": "oracle"}, "oracle threshold: chosen on the held-out center"),
    "roi": ({"setting": "F-Mask"}, "oracle ROI: the held-out label places the crop"),
}


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def five_seeds(tmp_path: Path) -> Path:
    """erm and randconv with all seeds that a claim takes, in the official view and in both oracles."""
    for position, method in enumerate(("erm", "randconv")):
        for center in CENTERS:
            for seed in range(5):
                views: list[dict[str, Any]] = [{}, {"threshold": 0.1}, {"setting": "F-Mask"}]
                cases = [
                    case_row(center, index, 0.4 + 0.1 * position + 0.02 * ((index * seed) % 3), **view)
                    for view in views
                    for index in range(4)
                ]
                add_run(tmp_path, method, center, seed, cases=cases)
    return tmp_path


def csv_rows(made: Compiled) -> list[dict[str, str]]:
    return list(csv.DictReader(line for line in io.StringIO(to_csv(made)) if not line.startswith("#")))


def test_the_official_view_is_ranked(five_seeds: Path) -> None:
    made = compiled(five_seeds)
    assert "Evidence: claim" in to_markdown(leaderboard_sheets(made))
    mean = next(row for row in csv_rows(made) if (row["method"], row["center"]) == ("randconv", "mean"))
    assert (mean["rank"], mean["tier"], mean["evidence"], mean["worst_center"]) == ("1", "1", "claim", "MSD")


@pytest.mark.parametrize("name", ORACLES)
def test_an_oracle_says_so_and_has_no_ranks(name: str, five_seeds: Path) -> None:
    options, words = ORACLES[name]
    made = compiled(five_seeds, view=View(**options))
    (table,) = made.tables
    assert not table.ranked
    assert table.statistics is not None
    assert table.statistics.standings == {}
    assert table.statistics.comparisons["randconv"].overall.interval is not None, "a difference may be shown"
    assert table.statistics.comparisons["randconv"].p_holm is None, "and is no claim"
    assert table.statistics.evidence == "row"
    for text in (to_markdown(leaderboard_sheets(made)), terminal(made)):
        assert words in text
        assert UNRANKED in text
        for claimed in ("Evidence", "P(best)", "official ranks", "rank interval"):
            assert claimed not in text
    assert all("tier" not in sheet.columns for sheet in leaderboard_sheets(made))
    assert words in to_csv(made)
    assert words in json.loads(to_json(made))["standing"][0]
    for row in csv_rows(made):
        assert [row[name] for name in ("rank", "rank_low", "p_best", "tier", "evidence")] == [""] * 5
    shown = evidence_words(table)
    assert shown is not None
    assert shown["words"] == UNRANKED


def test_counterparts_of_the_papers_tables_say_it_too(five_seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["leaderboard", "--runs", str(five_seeds), "--format", "md", "--table"]
    assert call([*arguments, "VI", "--threshold", "oracle"]) == 0
    out = capsys.readouterr().out
    assert "oracle threshold: chosen on the held-out center. A counterpart, not ranked" in out
    assert "oracle ROI" not in out
    assert call([*arguments, "III"]) == 0
    assert (
        "oracle ROI in C-Mask and F-Mask: the held-out label places the crop. A counterpart" in capsys.readouterr().out
    )
    assert call([*arguments, "V"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (fills,) = (line for line in lines if line.startswith("- not run: dualtask"))
    assert r"dgbench sweep --protocol phantom --preset bench --method dualtask\_bl" in fills
    assert "--heldout MSD,RENJI,RMYY --seeds 5" in fills
    shown = [line.split(" | ")[1] for line in lines if line.startswith("| F-Seg")]
    assert len(shown) == 7
    assert shown[0] == r"dualtask\_bl"
    assert call([*arguments, "IV"]) == 0
    assert (
        "start with: dgbench run --protocol phantom-in-domain --method erm --heldout MSD-fold0"
        in capsys.readouterr().out.replace("\\", "")
    )


@pytest.mark.parametrize(("table", "method"), [("V", "dualtask_bl"), ("VI", "erm")])
def test_an_empty_table_starts_with_a_method_that_it_shows(
    table: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["leaderboard", "--runs", str(tmp_path), "--table", table]) == 0
    assert f"start with: dgbench run --protocol phantom --method {method} --heldout MSD" in capsys.readouterr().out


def test_a_command_names_the_file_of_a_protocol_that_is_not_shipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: phantom\nname: mine\n", encoding="utf-8")
    assert call(["leaderboard", "--runs", str(tmp_path), "--protocol", str(path)]) == 0
    assert f"start with: dgbench run --protocol {path} --method erm" in capsys.readouterr().out


def test_what_cannot_be_shown_is_one_line(five_seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = ["leaderboard", "--runs", str(five_seeds)]
    line = mistake(capsys, [*runs, "--threshold", "0.45"])
    assert line == "--threshold 0.45: evaluation holds no threshold 0.45 (stored: 0.1, 0.5)"
    assert mistake(capsys, [*runs, "--table", "VI", "--setting", "C-Seg"]).startswith(
        "--setting C-Seg: --table VI shows"
    )
    line = mistake(capsys, ["leaderboard", "--runs", str(five_seeds / "nowhere")])
    assert "no such folder — start with: dgbench run --protocol phantom --method erm --heldout MSD" in line
    line = mistake(capsys, ["leaderboard", "--runs", str(five_seeds / "phantom")])
    assert line.endswith("holds the runs of one protocol — name the folder above it")


def test_a_csv_tells_patients_from_phantoms(five_seeds: Path) -> None:
    from dgbench.leaderboard.published import load_published

    made = compiled(five_seeds)
    assert "REPORTED" not in to_csv(made)
    head = [line for line in to_csv(made, load_published()).splitlines() if line.startswith("# ")]
    assert head[0] == "# PHANTOM DATA — not patient data"
    assert any(
        line.startswith("# lines with status reported: REPORTED in the literature on patient data") for line in head
    )
    assert any("NSD at a tolerance of 3 mm" in line for line in head)


def test_a_damaged_run_is_not_one_that_was_never_run(five_seeds: Path) -> None:
    (run,) = five_seeds.glob("phantom/RENJI/randconv/seed3-*")
    (run / "spec.json").write_text("{")
    made = compiled(five_seeds)
    (hole,) = made.tables[0].missing
    assert (hole.label, hole.heldout, hole.seed) == ("randconv", "RENJI", 3)
    assert hole.reason.startswith("unreadable: phantom/RENJI/randconv/seed3-")
    assert "30 runs counted" not in to_markdown(leaderboard_sheets(made))
    assert "29 runs counted, 1 missing" in to_markdown(leaderboard_sheets(made))


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (View(setting="F-Mask"), "evaluation holds no setting F-Mask (stored: F-Seg)"),
        (View(checkpoint="last-step"), "evaluation holds no checkpoint last-step (stored: source-val)"),
    ],
)
def test_a_view_that_was_not_stored_is_a_hole(two_seeds: Path, view: View, reason: str) -> None:
    table = only_table(two_seeds, view=view)
    assert {hole.reason for hole in table.missing} == {reason}
    assert len(table.missing) == 12
    assert not any(row.complete for row in table.rows)


def test_other_views_are_shown_unranked_and_oracle_rois_say_so(tmp_path: Path) -> None:
    for center in CENTERS:
        mask = case_row(center, 0, 0.7, setting="C-Mask", stage="tumor-coarse", roi="label")
        add_run(
            tmp_path,
            "erm",
            center,
            cases=[mask, case_row(center, 0, 0.6), case_row(center, 0, 0.5, threshold=0.30000001)],
        )
    result = compiled(tmp_path, view=View(setting="C-Mask"))
    assert [(row.rank, row.mean["dsc"].mean) for row in result.tables[0].rows] == [(None, pytest.approx(0.7))]
    assert "oracle ROI" in terminal(result)
    (row,) = only_table(tmp_path, view=View(threshold=0.3)).rows
    assert (row.rank, row.mean["dsc"].mean) == (None, pytest.approx(0.5))
