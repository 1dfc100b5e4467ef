"""The leaderboard on hand-built run folders with closed-form numbers: what is averaged, what is refused, and what every hole says."""

import csv
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from leaderboard_runs import (
    CENTERS,
    EMPTY_PREDICTION,
    EMPTY_REFERENCE,
    PROTOCOL,
    add_run,
    case_row,
    cell,
    compiled,
    only_table,
    row_of,
    terminal,
)

from dgbench.atomic import write_json
from dgbench.errors import DgbenchError
from dgbench.evaluation.metrics import CaseMetrics
from dgbench.leaderboard.compile import compile_runs
from dgbench.leaderboard.export import to_csv, to_json
from dgbench.leaderboard.records import View
from dgbench.leaderboard.results import Compiled
from dgbench.leaderboard.sheets import to_markdown
from dgbench.leaderboard.tables import leaderboard_sheets
from dgbench.protocol import Protocol


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_rows_with_more_seeds_stand_beside_others_with_the_first_alone(two_seeds: Path) -> None:
    """Of all seeds the row without the second is incomplete; of the first seeds alone both are whole, and the table says so."""
    for center, cases in zip(CENTERS, (3, 1, 2), strict=True):
        add_run(two_seeds, "saml", center, cases=cell(center, *[0.9] * cases))
    assert not row_of(only_table(two_seeds), "saml").complete
    first = compiled(two_seeds, seeds=1)
    (table,) = first.tables
    assert (table.seeds, table.missing) == ((0,), ())
    assert {row.label: row.seeds for row in table.rows if row.complete}.items() >= {"erm": (0,), "saml": (0,)}.items()
    assert row_of(table, "erm").centers["MSD"].finished_seeds == (0,)
    assert "seed 0 (--seeds 1: runs with later seeds are left out)" in to_markdown(leaderboard_sheets(first))
    assert "# --seeds 1: runs with later seeds are left out" in to_csv(first)
    assert json.loads(to_json(first))["first_seeds"] == 1
    assert "--seeds" not in to_markdown(leaderboard_sheets(compiled(two_seeds)))


def test_means_over_cases_then_centers_and_spread_over_seeds(two_seeds: Path) -> None:
    table = only_table(two_seeds)
    erm = row_of(table, "erm")
    assert table.seeds == (0, 1)
    assert erm.centers["MSD"].scores["dsc"].mean == pytest.approx(0.35)
    assert erm.centers["MSD"].scores["dsc"].sd == pytest.approx(0.1 / 2**0.5)
    assert erm.centers["RMYY"].scores["dsc"].mean == pytest.approx(0.55)
    # equal weight per center, although MSD has three cases and RENJI one; seeds 0 and 1 have the same mean over centers
    assert erm.mean["dsc"].mean == pytest.approx((0.35 + 0.5 + 0.55) / 3)
    assert erm.mean["dsc"].sd == pytest.approx(0.0)
    assert erm.mean["nsd"].mean == pytest.approx((0.35 + 0.5 + 0.55) / 6)
    assert erm.mean["asd"].mean == pytest.approx(10 * (1 - 1.4 / 3))
    assert erm.mean["hd95"].mean == pytest.approx(20 * (1 - 1.4 / 3))
    assert erm.mean["centroid"].mean == pytest.approx(5 * (1 - 1.4 / 3))
    assert erm.worst == "MSD"
    assert erm.mean["dsc"].n_seeds == 2
    assert [(row.label, row.rank) for row in table.rows] == [("randconv", 1), ("erm", 2)]
    assert table.n_cases == {"MSD": 3, "RENJI": 1, "RMYY": 2}
    assert table.missing == ()


def test_a_hole_is_not_averaged_around(two_seeds: Path) -> None:
    """The best method loses its rank and its mean with one run missing; the other keeps both."""
    (folder,) = (two_seeds / "phantom" / "RENJI" / "randconv").glob("seed1-*")
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    table = only_table(two_seeds)
    holed = row_of(table, "randconv")
    assert (holed.rank, holed.mean, holed.worst) == (None, {}, None)
    assert holed.centers["RENJI"].scores == {}
    assert holed.centers["RENJI"].finished_seeds == (0,)
    assert holed.centers["MSD"].scores["dsc"].mean == pytest.approx(0.5)
    assert row_of(table, "erm").rank == 1
    (hole,) = table.missing
    assert (hole.label, hole.heldout, hole.seed, hole.reason) == ("randconv", "RENJI", 1, "not run")
    assert hole.command == "dgbench run --method randconv --protocol phantom --preset bench --heldout RENJI --seed 1"
    text = to_markdown(leaderboard_sheets(compiled(two_seeds)))
    (line,) = [line for line in text.splitlines() if "randconv" in line and "dgbench run" not in line]
    assert line.split(" | ")[5:11] == ["incomplete", "–", "–", "–", "–", "–"]
    assert "incomplete, not ranked" in line
    assert "1/2 seeds" in line
    assert "60.0" not in line


def test_a_row_names_the_seeds_that_it_has(two_seeds: Path) -> None:
    """Not those that it owes: a reader takes them for what was run."""
    add_run(two_seeds, "saml", "MSD", 1, cases=cell("MSD", 0.5, 0.6, 0.7))
    table = only_table(two_seeds)
    saml = row_of(table, "saml")
    assert (saml.seeds, saml.seeds_text) == ((0, 1), "1")
    assert row_of(table, "erm").seeds_text == "0, 1"
    (place,) = [
        index for index, column in enumerate(leaderboard_sheets(compiled(two_seeds))[0].columns) if column == "seeds"
    ]
    assert {row[1]: row[place] for row in leaderboard_sheets(compiled(two_seeds))[0].rows}["saml"] == "1"
    told = {row["label"]: row for row in json.loads(to_json(compiled(two_seeds)))["tables"][0]["rows"]}
    assert (told["saml"]["seeds"], told["saml"]["seeds_owed"]) == ([1], [0, 1])
    lines = csv.DictReader(line for line in to_csv(compiled(two_seeds)).splitlines() if not line.startswith("#"))
    found = {line["center"]: line["seeds"] for line in lines if line["status"] == "incomplete"}
    assert found == {"MSD": "1", "RENJI": "", "RMYY": ""}


def test_a_cell_that_no_run_can_fill_has_no_command(tmp_path: Path) -> None:
    for center in CENTERS:
        changes = EMPTY_REFERENCE if center == "MSD" else {}
        add_run(tmp_path, "erm", center, cases=[case_row(center, 0, float("nan") if changes else 0.5, **changes)])
    (hole,) = only_table(tmp_path).missing
    assert (hole.reason, hole.command) == ("no case left to average: policy default excludes all 1", "")
    assert "MSD none counted" in to_markdown(leaderboard_sheets(compiled(tmp_path)))


def test_every_hole_says_why(tmp_path: Path) -> None:
    add_run(tmp_path, "a", "MSD", cases=cell("MSD", 0.5))
    add_run(tmp_path, "a", "RENJI", state="failed", reason="loss became NaN at step 12")
    add_run(tmp_path, "a", "RMYY", state="running")
    add_run(tmp_path, "b", "MSD", state="queued")
    folder = add_run(tmp_path, "b", "RENJI", state="interrupted", reason="Ctrl-C")
    write_json(folder / "tumor-fine" / "spec.json", {"steps": 4})
    (folder / "tumor-fine" / "steps.jsonl").write_text(3 * "{}\n")
    add_run(tmp_path, "b", "RMYY", evaluation=None)
    add_run(tmp_path, "c", "MSD", cases=cell("MSD", 0.5), evaluation="failed", reason="case MSD/MSD_0000 unreadable")
    folder = add_run(tmp_path, "c", "RENJI", cases=cell("RENJI", 0.5))
    other = {"train_keys": {"tumor-fine": "1" * 64}, "fingerprint": "x", "numbers": 1}
    write_json(folder / "evaluation" / "spec.json", other)
    folder = add_run(tmp_path, "c", "RMYY", cases=cell("RMYY", 0.5))
    (folder / "evaluation" / "cases.parquet").write_bytes(b"PAR1 cut short")
    add_run(tmp_path, "d", "MSD", cases=cell("MSD", 0.5, 0.6))
    add_run(tmp_path, "d", "RENJI", cases=cell("RENJI", 0.5) * 2)
    add_run(tmp_path, "d", "RMYY", cases=[case_row("RMYY", 0, float("nan"))])
    add_run(
        tmp_path,
        "e",
        "MSD",
        cases=[case_row("MSD", 0, 0.0, **EMPTY_REFERENCE), case_row("MSD", 1, 0.0, **EMPTY_REFERENCE)],
    )
    folder = add_run(tmp_path, "e", "RENJI", cases=cell("RENJI", 0.5))
    write_json(folder / "evaluation" / "spec.json", {"fingerprint": "x", "numbers": 1})
    folder = add_run(tmp_path, "e", "RMYY", cases=cell("RMYY", 0.5))
    (folder / "status.json").write_text('{"state": "do')
    reasons = {(hole.label, hole.heldout): hole.reason for hole in only_table(tmp_path).missing}
    exact = {
        ("a", "MSD"): "evaluated 1 of 2 cases",
        ("a", "RENJI"): "failed: loss became NaN at step 12",
        ("a", "RMYY"): "running, 0% trained",
        ("b", "MSD"): "queued",
        ("b", "RENJI"): "interrupted, 75% trained: Ctrl-C",
        ("b", "RMYY"): "evaluation missing",
        ("c", "MSD"): "evaluation failed: case MSD/MSD_0000 unreadable",
        ("c", "RENJI"): "evaluation is of other weights: tumor-fine",
        ("d", "RENJI"): "evaluation holds case RENJI/RENJI_0000 more than once",
        ("e", "MSD"): "no case left to average: policy default excludes all 2",
        ("e", "RENJI"): "unreadable: evaluation/spec.json: train_keys: Field required",
    }
    assert {where: reasons.get(where) for where in exact} == exact
    starts = {
        ("c", "RMYY"): "unreadable: phantom/RMYY/c/seed0-",
        ("d", "RMYY"): "evaluation is damaged: ",
        ("e", "RMYY"): "unreadable: phantom/RMYY/e/seed0-",
    }
    assert all(reasons[where].startswith(start) for where, start in starts.items())
    assert set(reasons) == {*exact, *starts}
    assert str(tmp_path) not in to_markdown(leaderboard_sheets(compiled(tmp_path)))


def test_a_spoiled_command_line_is_still_a_hint(two_seeds: Path) -> None:
    add_run(two_seeds, "dualtask", "MSD", cases=cell("MSD", 0.5, 0.5, 0.5), extra=" --set 'x=1")
    table = only_table(two_seeds)
    command = next(hole.command for hole in table.missing if (hole.heldout, hole.seed) == ("RENJI", 1))
    assert command.endswith("--heldout RENJI --seed 1")
    add_run(
        two_seeds, "saml", "MSD", cases=cell("MSD", 0.5), protocol={"modified": True}, extra=" --set 'preset.width=1"
    )
    assert {row.method for row in only_table(two_seeds).rows} == {"erm", "randconv", "dualtask", "saml"}


def test_a_version_that_is_none_is_an_unreadable_folder(two_seeds: Path) -> None:
    folder = add_run(two_seeds, "dualtask", "MSD", cases=cell("MSD", 0.5, 0.5, 0.5))
    spec = json.loads((folder / "spec.json").read_text())
    write_json(folder / "spec.json", {**spec, "dgbench": "weird"})
    [problem] = compiled(two_seeds).problems
    assert "dgbench: String should match pattern" in problem
    assert {row.method for row in only_table(two_seeds).rows} == {"erm", "randconv"}


def test_an_unreadable_folder_is_reported(two_seeds: Path) -> None:
    bad = two_seeds / "phantom" / "MSD" / "erm" / "seed7-00000000"
    bad.mkdir()
    (bad / "spec.json").write_text("{")
    result = compiled(two_seeds)
    assert len(result.problems) == 1
    assert "phantom/MSD/erm/seed7-00000000" in terminal(result)
    assert "seed7-00000000" in to_csv(result)
    assert json.loads(to_json(result))["unreadable"] == list(result.problems)


def test_many_processes_read_what_one_reads(two_seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = add_run(two_seeds, "mixstyle", "RENJI", cases=cell("RENJI", 0.5))
    (broken / "evaluation/cases.parquet").write_bytes(b"no table")
    alone = to_json(compiled(two_seeds))
    assert "not a readable table" in alone
    started: list[int] = []

    def pool(processes: int, *options: Any) -> ProcessPoolExecutor:
        started.append(processes)
        return ProcessPoolExecutor(processes, *options)

    monkeypatch.setattr("dgbench.leaderboard.records.ProcessPoolExecutor", pool)
    assert to_json(compiled(two_seeds, processes=2)) == alone
    assert not started, "so few runs are read faster by one"
    monkeypatch.setattr("dgbench.leaderboard.records.RUNS_PER_PROCESS", 2)
    assert to_json(compiled(two_seeds, processes=2)) == alone
    assert started == [2]


@pytest.mark.parametrize(
    "change",
    [
        {"dgbench": "0.2.0"},
        {"protocol": {"version": 2}},
        {"centers": {"phantom": "0badcafe" * 8}},
        {"evaluated": "other cases"},
        {"protocol": {"preset": "paper"}},
        {"protocol": {"content": "0badcafe" * 8}},
        {"numbers": 2},
    ],
    ids=["dgbench", "protocol", "sources", "evaluated", "preset", "content", "numbers"],
)
def test_incomparable_runs_never_share_a_table(two_seeds: Path, change: dict[str, Any]) -> None:
    for center, n_cases in (("MSD", 3), ("RENJI", 1), ("RMYY", 2)):
        add_run(two_seeds, "late", center, cases=cell(center, *[0.9] * n_cases), **change)
    result = compiled(two_seeds)
    assert sorted([row.label for row in table.rows] for table in result.tables) == [["late"], ["randconv", "erm"]]
    assert [row.rank for table in result.tables for row in table.rows if row.label == "randconv"] == [1]
    assert "never share a table" in terminal(result)


def test_a_row_with_more_draws_is_a_control_row_without_a_rank(two_seeds: Path) -> None:
    for seed in (0, 1):
        for center, n_cases in (("MSD", 3), ("RENJI", 1), ("RMYY", 2)):
            add_run(two_seeds, "long", center, seed, cases=cell(center, *[0.9] * n_cases), draws_factor=3)
    table = only_table(two_seeds)
    assert [(row.label, row.rank) for row in table.rows] == [("randconv", 1), ("erm", 2), ("long", None)]
    assert row_of(table, "long").notes[0] == "control row with 3× the draws, not ranked"
    assert table.ranked


def test_patches_of_one_minor_version_share_a_table(two_seeds: Path) -> None:
    for seed in (0, 1):
        for center, n_cases in (("MSD", 3), ("RENJI", 1), ("RMYY", 2)):
            add_run(two_seeds, "late", center, seed, cases=cell(center, *[0.9] * n_cases), dgbench="0.1.4")
    assert [row.label for row in only_table(two_seeds).rows] == ["late", "randconv", "erm"]


def add_patient_runs(
    root: Path, identities: dict[str, dict[str, str]], judged: dict[str, dict[str, str]] | None = None
) -> Compiled:
    """One run per held-out center with the identities of its source centers, and of what it is ``judged`` on, compiled as patient data."""
    for center in CENTERS:
        told = {"centers": identities[center], "data_of_heldout": (judged or {}).get(center, {})}
        add_run(root, "erm", center, cases=cell(center, 0.5), protocol={"kind": "patient"}, **told)
    return compile_runs(root, protocol=Protocol.model_validate({**PROTOCOL.model_dump(), "kind": "patient"}))


def test_splits_of_one_data_set_share_a_table(tmp_path: Path) -> None:
    result = add_patient_runs(
        tmp_path, {held: {name: f"cases of {name}" for name in CENTERS if name != held} for held in CENTERS}
    )
    assert [row.rank for table in result.tables for row in table.rows] == [1]
    assert to_markdown(leaderboard_sheets(result)).startswith("**Patient data**")


def test_a_center_that_changed_between_splits_parts_the_table(tmp_path: Path) -> None:
    identities = {held: {name: f"cases of {name}" for name in CENTERS if name != held} for held in CENTERS}
    identities["MSD"]["RMYY"] = "other cases"
    result = add_patient_runs(tmp_path, identities)
    assert len(result.tables) == 2
    assert [row.rank for table in result.tables for row in table.rows] == [None, None]


def test_a_center_that_changed_before_it_was_judged_parts_the_table(tmp_path: Path) -> None:
    identities = {held: {name: f"cases of {name}" for name in CENTERS if name != held} for held in CENTERS}
    judged = {held: {held: f"cases of {held}"} for held in CENTERS}
    assert len(add_patient_runs(tmp_path / "same", identities, judged).tables) == 1
    judged["MSD"]["MSD"] = "other cases"
    result = add_patient_runs(tmp_path / "changed", identities, judged)
    assert [row.rank for table in result.tables for row in table.rows] == [None, None]
    assert {table.data for table in result.tables} == {
        "MSD cases of, RENJI cases of, RMYY cases of",
        "MSD other ca, RENJI cases of, RMYY cases of",
    }


def test_a_ranked_preset_that_was_not_shown_to_converge_is_stamped(tmp_path: Path) -> None:
    for center in CENTERS:
        add_run(tmp_path, "erm", center, cases=cell(center, 0.5), protocol={"converged": False})
    (row,) = only_table(tmp_path).rows
    assert (row.rank, row.notes) == (1, ("unconverged",))


def test_demo_and_modified_presets_are_stamped_and_unranked(two_seeds: Path) -> None:
    for center, n_cases in (("MSD", 3), ("RENJI", 1), ("RMYY", 2)):
        cases = cell(center, *[0.9] * n_cases)
        add_run(two_seeds, "demoed", center, cases=cases, protocol={"preset": "demo", "ranked": False})
        wide = {"modified": True, "ranked": False}
        add_run(two_seeds, "erm", center, 5, cases=cases, protocol=wide, extra=" --set preset.width=16 --set lr=1")
    result = compiled(two_seeds)
    bench = next(table for table in result.tables if table.preset == "bench")
    wide_row = row_of(bench, "erm (preset.width=16)")
    assert (wide_row.rank, wide_row.notes, wide_row.seeds) == (None, ("modified bench, not ranked",), (5,))
    assert wide_row.mean["dsc"].mean == pytest.approx(0.9)
    assert bench.seeds == (0, 1)
    assert [row.rank for row in bench.rows] == [1, 2, None]
    demo = only_table(two_seeds, preset="demo")
    assert [(row.rank, row.notes) for row in demo.rows] == [(None, ("demo, not ranked",))]
    assert "demo, not ranked" in terminal(compiled(two_seeds, preset="demo"))


def test_configurations_and_versions_are_rows_of_their_own(tmp_path: Path) -> None:
    for center in CENTERS:
        for conversion, value in (("hard", 0.4), ("smooth", 0.6)):
            config = {"task_conversion": conversion, "views": 2}
            add_run(tmp_path, "dualtask", center, cases=cell(center, value), config=config)
    labels = [row.label for row in only_table(tmp_path).rows]
    assert labels == ["dualtask (task_conversion=smooth)", "dualtask (task_conversion=hard)"]


def test_equal_scores_share_a_rank(tmp_path: Path) -> None:
    for method, value in (("a", 0.5), ("b", 0.5), ("c", 0.25)):
        for center in CENTERS:
            add_run(tmp_path, method, center, cases=cell(center, value))
    assert [(row.label, row.rank) for row in only_table(tmp_path).rows] == [("a", 1), ("b", 1), ("c", 3)]


@pytest.mark.parametrize(
    ("updated", "expected"), [("2026-02-01T00:00:00+00:00", 0.9), ("2025-02-01T00:00:00+00:00", 0.5)]
)
def test_of_two_finished_runs_the_latest_counts_and_the_row_says_so(
    two_seeds: Path, updated: str, expected: float
) -> None:
    cuda = {"device": "cuda", "precision": "bf16"}
    add_run(two_seeds, "erm", "RENJI", cases=cell("RENJI", 0.9), environment=cuda, updated=updated)
    erm = row_of(only_table(two_seeds), "erm")
    assert erm.centers["RENJI"].scores["dsc"].mean == pytest.approx((expected + 0.5) / 2)
    assert any("2 finished runs, the latest counts" in note for note in erm.notes)
    assert "mixed devices: cpu fp32, cuda bf16" in erm.notes


def test_runs_on_two_devices_are_a_row_of_their_own_and_never_the_baseline_beside_one_device(tmp_path: Path) -> None:
    for center in CENTERS:
        for method, value in (("erm", 0.5), ("saml", 0.6)):
            add_run(tmp_path, method, center, cases=cell(center, value))
        add_run(tmp_path, "erm", center, cases=cell(center, 0.7), environment={"devices": 2})
    table = only_table(tmp_path)
    assert sorted(row.label for row in table.rows) == ["erm", "erm (2 devices)", "saml"]
    stamp = "2 devices: steps of 2× the cases"
    assert [stamp in row_of(table, name).stamps for name in ("erm", "erm (2 devices)")] == [False, True]
    assert row_of(table, "erm").centers["MSD"].scores["dsc"].mean == pytest.approx(0.5)
    sheet = leaderboard_sheets(compiled(tmp_path))[1]
    assert {line[0]: line[1] for line in sheet.rows} == {"erm": "baseline", "erm (2 devices)": "+20.0", "saml": "+10.0"}


def test_a_finished_run_beats_a_later_failure(two_seeds: Path) -> None:
    cuda = {"device": "cuda"}
    add_run(
        two_seeds,
        "erm",
        "RENJI",
        state="failed",
        reason="out of memory",
        environment=cuda,
        updated="2026-02-01T00:00:00+00:00",
    )
    assert row_of(only_table(two_seeds), "erm").rank == 2


def test_empty_failed_and_excluded_cases(tmp_path: Path) -> None:
    for center in CENTERS:
        failed = case_row(center, 3, float("nan"), failed=True, **EMPTY_PREDICTION)
        cases = [
            case_row(center, 0, 0.8),
            case_row(center, 1, 0.0, **EMPTY_PREDICTION),
            case_row(center, 2, 0.0, **EMPTY_REFERENCE),
            failed,
        ]
        add_run(tmp_path, "erm", center, cases=cases)
    default = only_table(tmp_path)
    (row,) = default.rows
    assert row.mean["dsc"].mean == pytest.approx(0.8 / 3)
    assert row.mean["asd"].mean == pytest.approx((2 + 2 * PROTOCOL.metrics.assd_constant_mm) / 3)
    assert row.notes == ("empty predictions 6/12", "failed cases 3/12")
    assert default.n_excluded == dict.fromkeys(CENTERS, 1)
    paper = only_table(tmp_path, view=View(policy="paper"))
    assert paper.rows[0].mean["dsc"].mean == pytest.approx(0.8 / 4)
    assert paper.rows[0].mean["asd"].mean == pytest.approx((3 + 3 * 40) / 4)
    assert paper.rows[0].rank is None
    text = terminal(compiled(tmp_path))
    assert "MSD 4 (1 excluded)" in text
    assert "empty predictions 6 and failed cases 3 of 12" in text


def test_an_undefined_metric_is_named_never_nan(tmp_path: Path) -> None:
    """Under the paper's policy a center where nothing is found has no centroid distance."""
    for center in CENTERS:
        add_run(tmp_path, "erm", center, cases=[case_row(center, 0, 0.0, **EMPTY_PREDICTION)])
    result = compiled(tmp_path, view=View(policy="paper"))
    text = to_markdown(leaderboard_sheets(result))
    assert "| undefined |" in text
    assert "no case of a center defines the metric" in text
    assert "centroid" not in json.loads(to_json(result))["tables"][0]["rows"][0]["mean"]


def test_source_validation_rows_and_shared_pancreas_runs_are_not_counted(tmp_path: Path) -> None:
    for center in CENTERS:
        other = next(name for name in CENTERS if name != center)
        cases = [*cell(center, 0.4), case_row(other, 9, 0.99, role="source-val")]
        add_run(tmp_path, "erm", center, cases=cases)
        add_run(tmp_path, "_pancreas", center, cases=[case_row(center, 0, 0.99, setting="P-Fine")])
    table = only_table(tmp_path)
    assert [row.label for row in table.rows] == ["erm"]
    assert table.rows[0].mean["dsc"].mean == pytest.approx(0.4)


def test_include_decides_what_is_expected(two_seeds: Path) -> None:
    add_run(two_seeds, "erm", "MSD", 9, state="failed", reason="stray")
    assert {hole.seed for hole in only_table(two_seeds).missing} == {9}
    assert only_table(two_seeds, include=lambda spec: spec.seed != 9).missing == ()


def test_unknown_policy(tmp_path: Path) -> None:
    with pytest.raises(DgbenchError, match="unknown policy 'papr' — did you mean 'paper'"):
        compiled(tmp_path, view=View(policy="papr"))


def test_hand_built_rows_have_every_metric_of_an_evaluation() -> None:
    assert {field.name for field in fields(CaseMetrics)} <= set(case_row("MSD", 0, 0.5))
