"""What the MLflow mirror shows of a run folder, without MLflow: curves, summary values, files and their digest."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake_cases, fake_run, fake_spec

from dgbench.atomic import append_jsonl
from dgbench.errors import DgbenchError
from dgbench.store.snapshot import CURVE_POINTS, curve_points, flatten, folder_digest, summary_points, take_snapshot


def values(points: list[Any]) -> dict[tuple[str, int], float]:
    assert len({(p.name, p.step) for p in points}) == len(points)
    return {(p.name, p.step): p.value for p in points}


def test_curves_of_a_stage(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    found = values(curve_points(run.stage_folder("tumor-fine"), "tumor-fine"))
    assert found == pytest.approx(
        {
            **{("tumor-fine/lr", step): 0.01 for step in (1, 2, 3)},
            **{("tumor-fine/loss", step): 1 / step for step in (1, 2, 3)},
            **{("tumor-fine/con", step): 0.5 for step in (2, 3)},  # null at step 1
            ("tumor-fine/validation/MSD/dsc", 2): 0.3,
            ("tumor-fine/validation/RMYY/dsc", 2): 0.9,
            ("tumor-fine/validation/dsc", 2): 0.6,  # of the centers, not of the cases
        }
    )


@pytest.mark.parametrize("rows", [1, CURVE_POINTS, CURVE_POINTS + 1, 3 * CURVE_POINTS + 7])
def test_long_curves_are_thinned_and_keep_their_ends(tmp_path: Path, rows: int) -> None:
    append_jsonl(tmp_path / "steps.jsonl", *({"step": i, "loss": float(i)} for i in range(1, rows + 1)))
    steps = [point.step for point in curve_points(tmp_path, "s")]
    assert len(steps) <= CURVE_POINTS + 1
    assert len(steps) >= min(rows, CURVE_POINTS // 2)
    assert (steps[0], steps[-1]) == (1, rows)
    assert steps == sorted(set(steps))


def test_summary_at_the_official_threshold() -> None:
    found = values(summary_points(fake_cases(), "cases"))
    held, last, source = "held-out/RENJI/F-Seg", "held-out/RENJI/F-Seg/last-step", "source-val/MSD/F-Seg"
    assert found[f"{held}/dsc", 0] == pytest.approx(0.4)
    assert found[f"{last}/dsc", 0] == pytest.approx(0.5)
    assert found[f"{source}/dsc", 0] == pytest.approx(0.8)
    assert found[f"{held}/hd95", 0] == 8.0
    assert (found[f"{held}/cases", 0], found[f"{held}/failed", 0]) == (2, 1)
    assert all(math.isfinite(value) for value in found.values())
    with pytest.raises(DgbenchError, match="columns hd95 are missing"):
        summary_points(fake_cases().drop(columns="hd95"), "cases")


def test_snapshot_and_digest(tmp_path: Path) -> None:
    run = fake_run(tmp_path, fake_spec(lr=0.5, views=[1, 2], name="a", none=None))
    shot = take_snapshot(run)
    assert shot.experiment == "phantom-v1-demo"
    assert shot.params["method.config.lr"] == "0.5"
    assert shot.params["method.config.views"] == "[1, 2]"
    assert shot.params["method.config.name"] == "a"
    assert shot.params["method.config.none"] == "null"
    assert shot.params["stages.tumor-fine.key"] == run.spec.key
    assert shot.tags["dgbench.state"] == "done"
    assert not any(point.name.startswith("pancreas") for point in shot.points)  # they are runs of their own
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    digest = folder_digest(run)
    os.utime(run.path / "spec.json", (1, 1))
    (run.path / "tumor-fine" / "last-000002.safetensors").write_bytes(b"other weights")
    assert folder_digest(run) == digest
    append_jsonl(run.path / "tumor-fine" / "steps.jsonl", {"step": 4})
    assert folder_digest(run) != digest


def test_logs_without_their_columns_are_named(tmp_path: Path) -> None:
    append_jsonl(tmp_path / "validation.jsonl", {"step": 1, "case": "a", "dsc": 0.5})
    with pytest.raises(DgbenchError, match=r"validation\.jsonl, line 1: no center"):
        curve_points(tmp_path, "s")
