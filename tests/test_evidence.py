"""What a table says about its evidence: as much as its seeds permit, of complete rows, against the baseline."""

import csv
import io
import json
from pathlib import Path

import pytest
from leaderboard_runs import CENTERS, PROTOCOL, add_method, add_run, case_row, compiled, only_table, terminal

from dgbench.leaderboard.export import to_csv, to_json
from dgbench.leaderboard.page.facts import evidence_words, table_facts
from dgbench.leaderboard.paper_tables import paper_table, paper_table_sheets
from dgbench.leaderboard.records import View
from dgbench.leaderboard.results import Table
from dgbench.leaderboard.statistics import SMOKE, Evidence


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def board(root: Path, n_seeds: int) -> Table:
    for method, gain in (("erm", 0.0), ("better", 0.1), ("equal", 0.0)):
        add_method(root, method, gain, n_seeds)
    return only_table(root)


@pytest.mark.parametrize(("n_seeds", "grade"), [(1, Evidence.SMOKE), (3, Evidence.ROW), (5, Evidence.CLAIM)])
def test_what_is_printed_follows_the_number_of_seeds(tmp_path: Path, n_seeds: int, grade: Evidence) -> None:
    table = board(tmp_path, n_seeds)
    found = table.statistics
    assert found is not None
    assert found.evidence is grade
    better, equal = found.comparisons["better"], found.comparisons["equal"]
    assert set(found.comparisons) == {"better", "equal"}, "the baseline is not compared with itself"
    assert better.overall.mean == pytest.approx(0.1, abs=0.01)
    assert set(better.centers) == set(CENTERS)
    assert (better.overall.interval is not None) == (n_seeds >= 3)
    assert (better.p_holm is not None) == (n_seeds >= 5)
    assert (found.standings["better"].rank_interval is not None) == (n_seeds >= 3)
    page = terminal(compiled(tmp_path))
    assert ("1 (smoke)" in page) == (n_seeds < 3)
    assert f"Evidence: {grade}" in page
    assert "no claim about new ones" in page
    if better.overall.interval and equal.overall.interval:
        assert better.overall.interval[0] > 0.05
        assert equal.overall.interval[0] < 0 < equal.overall.interval[1]
        tiers = {label: place.tier for label, place in found.standings.items()}
        assert tiers == {"better": 1, "erm": 2, "equal": 2}
        assert found.standings["better"].rank_interval == (1, 1)
    schemes = {(one.metric, one.scheme) for one in found.robustness}
    assert (("dsc", "test-then-rank") in schemes) == (n_seeds >= 3)
    assert "Ranks under other schemes" in page


def test_control_rows_are_compared_and_take_no_rank_and_holes_take_no_part(tmp_path: Path) -> None:
    add_method(tmp_path, "erm", 0.0, 3)
    add_method(tmp_path, "long", 0.2, 3, draws_factor=3)
    add_method(tmp_path, "late", 0.1, 2)
    table = only_table(tmp_path)
    assert table.statistics is not None
    assert set(table.statistics.comparisons) == {"long"}
    assert set(table.statistics.standings) == {"erm"}
    assert [row.label for row in table.rows if not row.complete] == ["late"]


def test_without_a_baseline_nothing_is_compared_and_the_page_says_so(tmp_path: Path) -> None:
    add_method(tmp_path, "better", 0.1, 3)
    table = only_table(tmp_path)
    assert table.statistics is not None
    assert table.statistics.comparisons == {}
    assert "no complete row of the baseline to compare with" in terminal(compiled(tmp_path))


@pytest.mark.parametrize("n_seeds", [1, 2, 3])
def test_smoke_is_said_in_every_view_and_format(tmp_path: Path, n_seeds: int) -> None:
    for method in ("erm", "better"):
        add_method(tmp_path, method, 0.0, n_seeds)
    for view in (View(), View(policy="paper")):
        made = compiled(tmp_path, view=view)
        for text in (terminal(made), to_csv(made), to_json(made), "".join(table_facts(made, made.tables[0]).values())):
            assert (SMOKE in text) == (n_seeds < 3)
    sheets = paper_table_sheets(paper_table("VI", PROTOCOL), {"F-Seg": compiled(tmp_path)})
    assert any(SMOKE in line for sheet in sheets for line in sheet.heading) == (n_seeds < 3)
    rows = csv.DictReader(line for line in to_csv(compiled(tmp_path)).splitlines() if not line.startswith("#"))
    assert {row["evidence"] for row in rows if row["status"] == "ranked"} == {"smoke" if n_seeds < 3 else "row"}


def test_what_permits_no_statistics_is_a_note_and_not_an_error(tmp_path: Path) -> None:
    for method in ("erm", "other"):
        add_method(tmp_path, method, 0.0, 3, n_cases=1)
    table = only_table(tmp_path)
    assert table.statistics is not None
    assert any(note.startswith("no statistics: ") for note in table.statistics.notes)
    assert all(row.complete for row in table.rows)
    assert table.statistics.evidence is None, "three seeds are no evidence where one case tells nothing of patients"
    assert "Evidence: none" in terminal(compiled(tmp_path))
    assert json.loads(to_json(compiled(tmp_path)))["tables"][0]["statistics"]["evidence"] is None
    assert ",row," not in to_csv(compiled(tmp_path))
    assert (evidence_words(table) or {})["grade"] == "none"


def test_a_table_without_a_complete_row_has_no_statistics(tmp_path: Path) -> None:
    add_run(tmp_path, "erm", "MSD", cases=[case_row("MSD", 0, 0.5)])
    assert only_table(tmp_path).statistics is None
    assert "Evidence" not in terminal(compiled(tmp_path))


def test_json_and_csv_carry_the_same_figures(tmp_path: Path) -> None:
    found = board(tmp_path, 5).statistics
    assert found is not None
    better = found.comparisons["better"]
    stored = json.loads(to_json(compiled(tmp_path)))["tables"][0]["statistics"]
    assert stored["comparisons"]["better"]["overall"]["mean"] == better.overall.mean
    assert stored["standings"]["better"]["tier"] == 1
    text = "\n".join(line for line in to_csv(compiled(tmp_path)).splitlines() if not line.startswith("#"))
    lines = {(line["method"], line["center"]): line for line in csv.DictReader(io.StringIO(text))}
    mean = lines["better", "mean"]
    assert better.overall.interval is not None
    assert float(mean["difference"]) == pytest.approx(100 * better.overall.mean, abs=1e-3)
    assert float(mean["difference_low"]) == pytest.approx(100 * better.overall.interval[0], abs=1e-3)
    assert float(mean["p_holm"]) == better.p_holm
    assert (mean["tier"], mean["rank_low"], mean["rank_high"], mean["evidence"]) == ("1", "1", "1", "claim")
    at_msd = better.centers["MSD"]
    assert float(lines["better", "MSD"]["difference"]) == pytest.approx(100 * at_msd.mean, abs=1e-3)
    assert lines["erm", "mean"]["difference"] == ""
