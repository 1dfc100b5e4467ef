"""What runs cost: read from run folders, compared pairwise on one machine only."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from leaderboard_runs import CENTERS, add_run, cell, compiled, only_table, row_of, terminal

from dgbench.atomic import append_jsonl, write_json
from dgbench.errors import DgbenchError
from dgbench.leaderboard.checked_rows import read_checked
from dgbench.leaderboard.costs import RunCost, common_machine, read_run_cost, row_cost
from dgbench.leaderboard.export import to_json
from dgbench.store.folder import iter_runs
from dgbench.store.times import sum_up_evaluation, sum_up_stage


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def add_priced_run(root: Path, method: str, heldout: str, step: float, **changes: Any) -> Path:
    """A finished run of one stage: four steps in two log lines and a pause, two held-out cases."""
    folder = add_run(root, method, heldout, cases=cell(heldout, 0.5, 0.6), **changes)
    counts = {"table-vi": {"params": 20, "gflops": 3.0}, "macs": {"params": 10, "gflops": 1.0}}
    write_json(folder / "cost.json", counts)
    write_json(folder / "env.json", {"processor": "Abacus"})
    for last, seconds in ((2, 2 * step), (4, 2 * step), (6, 90.0)):
        append_jsonl(folder / "tumor-fine" / "times.jsonl", {"step": last, "steps": 2, "seconds": seconds})
    first, second = (row["case"] for row in cell(heldout, 0.5, 0.6))
    seen = [(first, "C-Seg", 1.0), (first, "F-Seg", 2.0), (second, "F-Seg", 5.0)]
    others = [("OTHER/a", "F-Seg", 50.0), (first, "F-Mask", 50.0)]
    rows = [
        {
            "case": case,
            "setting": setting,
            "checkpoint": "source-val",
            "seconds": seconds,
            "round_seconds": [seconds / 4] * 2,
        }
        for case, setting, seconds in (*seen, *others)
    ]
    rows.append(
        {"case": first, "setting": "F-Seg", "checkpoint": "last-step", "seconds": 50.0, "round_seconds": [50.0]}
    )
    pd.DataFrame(rows).to_parquet(folder / "evaluation" / "times.parquet")
    return folder


def test_a_run_tells_what_it_cost(tmp_path: Path) -> None:
    """Seconds per case: chain Seg, official checkpoint, held-out cases, all own stages; per round: of the last stage, two rounds in each
    case; a pause is no part of a step."""
    add_priced_run(tmp_path, "erm", "MSD", step=0.5)
    (run,) = iter_runs(tmp_path)
    assert read_run_cost(run, read_checked(run.evaluation)) == RunCost(
        params=20,
        gflops=3.0,
        deployed_params=10,
        deployed_gmacs=1.0,
        seconds_per_case=4.0,
        seconds_per_round=0.875,
        train_seconds=92.0,
        step_seconds=3.0,
        machine=("Abacus", "fp32", "2 threads", "torch 2.13"),
    )


def test_what_times_come_to_is_read_instead_of_their_logs_with_the_same_numbers(tmp_path: Path) -> None:
    folder = add_priced_run(tmp_path, "erm", "MSD", step=0.1)
    (run,) = iter_runs(tmp_path)
    stage, cases = folder / "tumor-fine", read_checked(run.evaluation)
    of_logs = read_run_cost(run, cases)
    sum_up_stage(stage)
    sum_up_evaluation(run.evaluation)
    (stage / "times.jsonl").write_text("damaged\n")
    (run.evaluation / "times.parquet").unlink()
    assert read_run_cost(run, cases) == of_logs, "equal to the last bit"
    (stage / "times.json").write_text('{"seconds": -1.0}')
    with pytest.raises(
        DgbenchError, match=r"tumor-fine/times.json: seconds: .*greater than or equal to 0; step_seconds"
    ):
        read_run_cost(run, cases)
    (stage / "times.json").unlink()
    with pytest.raises(DgbenchError, match=r"times.jsonl, line 1: damaged"):
        read_run_cost(run, cases)


def test_a_run_whose_cases_all_failed_has_no_seconds_of_a_case(tmp_path: Path) -> None:
    folder = add_priced_run(tmp_path, "erm", "MSD", step=0.5)
    pd.DataFrame([]).to_parquet(folder / "evaluation" / "times.parquet")
    (run,) = iter_runs(tmp_path)
    cost = read_run_cost(run, read_checked(run.evaluation))
    sum_up_evaluation(run.evaluation)
    assert cost == read_run_cost(run, read_checked(run.evaluation))
    assert cost is not None
    assert (cost.seconds_per_case, cost.seconds_per_round, cost.step_seconds) == (None, None, 3.0)


def test_a_training_whose_log_of_times_was_removed_or_changed_is_not_summed_up(tmp_path: Path) -> None:
    sum_up_stage(tmp_path)
    (tmp_path / "times.jsonl").write_bytes(b"")
    sum_up_stage(tmp_path)
    assert not (tmp_path / "times.json").exists()
    append_jsonl(tmp_path / "times.jsonl", {"step": 2, "seconds": 1.0})
    with pytest.raises(DgbenchError, match=r"times.jsonl: KeyError: 'steps' — damaged, remove this folder"):
        sum_up_stage(tmp_path)


def test_a_row_is_compared_with_the_baseline_cell_by_cell_on_the_same_machine(tmp_path: Path) -> None:
    for center, step in zip(CENTERS, (1.0, 2.0, 4.0), strict=True):
        add_priced_run(tmp_path, "erm", center, step)
        add_priced_run(tmp_path, "saml", center, 1.5 * step if center != "RMYY" else 100.0)
    table = only_table(tmp_path)
    factors = [row_of(table, name).cost.train_factor for name in ("erm", "saml")]  # type: ignore[union-attr]
    assert factors == [1.0, 1.5], "the median over centers"
    assert "× erm" in terminal(compiled(tmp_path))
    (run, *_) = iter_runs(tmp_path)
    cost = read_run_cost(run, read_checked(run.evaluation))
    assert cost is not None
    elsewhere = replace(cost, machine=("Another", *cost.machine[1:]))
    alone = row_cost({("MSD", 0): cost}, {("MSD", 0): elsewhere}, cost.machine, ["MSD"])
    assert alone is not None
    assert alone.train_factor is None
    assert row_cost({}, {("MSD", 0): cost}, cost.machine, ["MSD"]) is None
    untimed = row_cost({("MSD", 0): cost}, {("MSD", 0): replace(cost, step_seconds=0.0)}, None, ["MSD"])
    assert untimed is not None
    assert untimed.train_factor is None, "there is nothing to compare with"


def test_seconds_are_of_one_machine_for_all_rows(tmp_path: Path) -> None:
    add_priced_run(tmp_path, "erm", "MSD", 1.0)
    (run,) = iter_runs(tmp_path)
    here = read_run_cost(run, read_checked(run.evaluation))
    assert here is not None
    slow = replace(here, machine=("Slowcoach",), seconds_per_case=40.0, train_seconds=920.0, step_seconds=33.0)
    erm = {("MSD", 0): here, ("MSD", 1): slow}
    saml = {("MSD", 0): here, ("MSD", 1): replace(slow, step_seconds=66.0)}
    snr = {("MSD", 1): slow}
    assert common_machine([erm, saml]) == here.machine, "of equals the first by name"
    assert common_machine([erm, saml, snr]) == ("Slowcoach",)
    assert common_machine([]) is None
    one, other = (row_cost(costs, erm, here.machine, ["MSD"]) for costs in (saml, snr))
    assert one is not None
    assert (one.seconds_per_case, one.train_seconds) == (4.0, here.train_seconds), "the slow machine's do not enter"
    assert one.factor_text == "1.50 (1.00–2.00)"
    assert other is not None
    assert other.seconds_per_case is other.train_seconds is None
    assert other.factor_text == "1.00"


def test_the_table_says_where_compared_runs_are_of_different_machines(tmp_path: Path) -> None:
    """Of complete rows: others are not compared."""
    elsewhere = {"processor": "Slide rule"}
    runs = {
        (method, center): add_priced_run(tmp_path, method, center, 1.0)
        for method in ("erm", "saml")
        for center in CENTERS
    }
    write_json(add_priced_run(tmp_path, "hog", "MSD", 1.0) / "env.json", elsewhere)

    def notes() -> tuple[str, ...]:
        found = only_table(tmp_path).statistics
        assert found is not None
        return tuple(line for line in found.notes if "machines" in line)

    assert notes() == ()
    write_json(runs["saml", "RMYY"] / "env.json", elsewhere)
    (line,) = notes()
    assert line.startswith("RMYY seed 0: compared runs are of different machines")
    assert line in terminal(compiled(tmp_path)).replace("\n", " ")
    for center in CENTERS:
        write_json(runs["erm", center] / "env.json", elsewhere)
    (line,) = notes()
    assert line.startswith("MSD seed 0, RENJI seed 0: compared runs"), "RMYY is of one machine again"
    for center in CENTERS:
        for seed in (0, 1):
            add_priced_run(tmp_path, "saml", center, 1.0, seed=seed)
            write_json(add_priced_run(tmp_path, "erm", center, 1.0, seed=seed) / "env.json", elsewhere)
    (line,) = notes()
    assert line.startswith("6 pairs of center and seed: compared runs")


def test_seconds_of_a_row_are_means_over_all_centers_or_none(tmp_path: Path) -> None:
    """Centers take different times: a mean over those that happen to be there would compare scans, not methods."""
    add_priced_run(tmp_path, "erm", "MSD", 1.0)
    (run,) = iter_runs(tmp_path)
    short = read_run_cost(run, read_checked(run.evaluation))
    assert short is not None
    long = replace(short, seconds_per_case=16.0, train_seconds=3 * short.train_seconds)
    costs = {("MSD", 0): short, ("MSD", 1): short, ("MSD", 2): short, ("RENJI", 0): long}
    whole = row_cost(costs, None, short.machine, ["MSD", "RENJI"])
    part = row_cost(costs, None, short.machine, ["MSD", "RENJI", "RMYY"])
    assert whole is not None
    assert part is not None
    assert (whole.seconds_per_case, whole.train_seconds) == (10.0, 2 * short.train_seconds)
    assert part.seconds_per_case is part.seconds_per_round is part.train_seconds is None


def test_times_on_two_devices_are_not_compared_with_those_on_one(tmp_path: Path) -> None:
    folder = add_priced_run(tmp_path, "erm", "MSD", 1.0)
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps(spec | {"environment": spec["environment"] | {"devices": 2}}))
    (run,) = iter_runs(tmp_path)
    cost = read_run_cost(run, read_checked(run.evaluation))
    assert cost is not None
    assert cost.machine[-1] == "2 devices"


def test_times_on_different_gpus_are_not_compared(tmp_path: Path) -> None:
    folder = add_priced_run(tmp_path, "erm", "MSD", 1.0)
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps(spec | {"environment": spec["environment"] | {"device": "cuda"}}))
    named = []
    for told in ({}, {"gpu": "A100", "driver": "550.54"}, {"gpu": "H200", "driver": "550.54"}, {"gpu": "H200"}):
        write_json(folder / "env.json", {"processor": "Abacus", **told})
        (run,) = iter_runs(tmp_path)
        cost = read_run_cost(run, read_checked(run.evaluation))
        assert cost is not None
        named.append(cost.machine[:-3])
    unknown = ("cuda (unknown GPU)",)
    assert named == [unknown, ("A100", "driver 550.54"), ("H200", "driver 550.54"), unknown]


def test_times_of_bf16_with_and_without_instructions_are_not_compared(tmp_path: Path) -> None:
    folder = add_priced_run(tmp_path, "erm", "MSD", 1.0)
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps(spec | {"environment": spec["environment"] | {"precision": "bf16"}}))
    named = []
    for has in (True, False):
        write_json(folder / "env.json", {"processor": "Abacus", "bf16_instructions": has})
        (run,) = iter_runs(tmp_path)
        cost = read_run_cost(run, read_checked(run.evaluation))
        assert cost is not None
        named.append(cost.machine[1])
    assert named == ["bf16", "bf16 without instructions"]


def test_a_run_without_networks_has_no_cost_and_a_damaged_one_says_so(tmp_path: Path) -> None:
    add_run(tmp_path, "imported", "MSD", cases=cell("MSD", 0.5))
    (run,) = iter_runs(tmp_path)
    assert read_run_cost(run, read_checked(run.evaluation)) is None
    folder = add_priced_run(tmp_path, "erm", "MSD", 1.0)
    (folder / "cost.json").write_text(json.dumps({"macs": {}}))
    erm = next(run for run in iter_runs(tmp_path) if run.spec.method.name == "erm")
    with pytest.raises(DgbenchError, match=r"its cost cannot be read \(KeyError: 'table-vi'\)"):
        read_run_cost(erm, read_checked(erm.evaluation))
    row = row_of(only_table(tmp_path), "erm")
    assert row.cost is None
    assert row.centers["MSD"].scores["dsc"].mean == pytest.approx(0.55), "accuracy stands on its own"
    assert any("cost cannot be read" in note for note in row.notes)
    assert json.loads(to_json(compiled(tmp_path)))["tables"][0]["rows"][0]["cost"] is None
