"""Run folders with closed-form numbers, for the tests of what is compiled from them."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from dgbench.atomic import write_json
from dgbench.leaderboard.compile import compile_runs
from dgbench.leaderboard.results import Compiled, Row, Table
from dgbench.leaderboard.sheets import to_rich
from dgbench.leaderboard.tables import leaderboard_sheets
from dgbench.protocol import load_protocol
from dgbench.store.folder import RunSpec, open_run, write_status

CENTERS = ("MSD", "RENJI", "RMYY")


PROTOCOL = load_protocol("phantom")


UPDATED = "2026-01-01T00:00:00+00:00"


def case_row(center: str, index: int, dsc: float, **changes: Any) -> dict[str, Any]:
    """One raw row; distances follow from the DSC so that their means have closed forms: ASD 10(1−DSC), HD95 twice that."""
    asd = 10 * (1 - dsc)
    row = {
        "case": f"{center}/{center}_{index:04d}",
        "center": center,
        "role": "held-out",
        "stage": "tumor-fine",
        "setting": "F-Seg",
        "checkpoint": "source-val",
        "threshold": 0.5,
        "failed": False,
        "reason": None,
        "roi": "prediction",
        "rounds": 1,
        "windowed": False,
        "dsc": dsc,
        "nsd": dsc / 2,
        "assd": asd,
        "assd_two_means": asd + 1,
        "hd95": 2 * asd,
        "hd95_max": 3 * asd,
        "centroid_mm": asd / 2,
        "volume_reference_mm3": 1000.0,
        "volume_prediction_mm3": 900.0,
        "empty_reference": False,
        "empty_prediction": False,
        "n_lesions_reference": 1,
        "n_lesions_found": 1,
        "n_false_positive": 0,
    }
    return {**row, **changes}


EMPTY_PREDICTION = {
    "empty_prediction": True,
    "n_lesions_found": 0,
    "volume_prediction_mm3": 0.0,
    **dict.fromkeys(("assd", "assd_two_means", "hd95", "hd95_max", "centroid_mm"), float("nan")),
}


EMPTY_REFERENCE = {
    "empty_reference": True,
    "n_lesions_reference": 0,
    "n_lesions_found": 0,
    **dict.fromkeys(("assd", "assd_two_means", "hd95", "hd95_max", "centroid_mm"), float("nan")),
}


def spec_of(method: str, heldout: str, seed: int, **changes: Any) -> RunSpec:
    config, draws_factor = changes.pop("config", {}), changes.pop("draws_factor", 1)
    version = changes.pop("version", 1)
    protocol = {
        "name": "phantom",
        "version": 1,
        "content": "c0ffee00" * 8,
        "kind": "phantom",
        "preset": "bench",
        "ranked": True,
        "modified": False,
        "converged": True,
    }
    protocol |= changes.pop("protocol", {})
    centers = changes.pop("centers", {"phantom": "fee1dead" * 8})
    extra = changes.pop("extra", "")
    environment = {"device": "cpu", "precision": "fp32", "threads": 2, "torch": "2.13"} | changes.pop("environment", {})
    command = (
        f"dgbench run --method {method} --protocol phantom --heldout {heldout} --preset bench --seed {seed}{extra}"
    )
    identity = [method, heldout, seed, config, draws_factor, protocol, centers, environment, extra, changes]
    identity += [version] if version != 1 else []
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    values = {
        "schema": 1,
        "dgbench": "0.1.0.dev0",
        "key": key,
        "protocol": protocol,
        "heldout": heldout,
        "seed": seed,
        "sources": [name for name in CENTERS if name != heldout] + ["NIH"],
        "support": ["NIH"],
        "method": {
            "name": method,
            "version": version,
            "title": method.upper(),
            "config": config,
            "draws_factor": draws_factor,
        },
        "stages": {"tumor-fine": {"key": key, "folder": f"phantom/{heldout}/{method}/seed{seed}-{key[:8]}/tumor-fine"}},
        "data": {"centers": centers},
        "environment": environment,
        "command": command,
    }
    return RunSpec.model_validate({**values, **changes})


def add_run(
    root: Path,
    method: str,
    heldout: str,
    seed: int = 0,
    *,
    cases: Sequence[dict[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """A finished run with ``cases`` as evaluation, ``state``/``reason``/``evaluation`` telling another story; returns its folder."""
    state, reason = changes.pop("state", "done"), changes.pop("reason", None)
    evaluation, updated = changes.pop("evaluation", "done"), changes.pop("updated", UPDATED)
    evaluated, numbers = changes.pop("evaluated", f"cases of {heldout}"), changes.pop("numbers", 1)
    data_of_heldout = changes.pop("data_of_heldout", {})
    spec = spec_of(method, heldout, seed, **changes)
    folder = open_run(root, spec).path
    if state == "done" and evaluation is not None:
        keys = {name: stage.key for name, stage in spec.stages.items()}
        judged = {
            "heldout": data_of_heldout,
            "train_keys": keys,
            "fingerprint": evaluated,
            "numbers": numbers,
            "key": "0" * 64,
        }
        write_json(folder / "evaluation" / "spec.json", judged)
        pd.DataFrame(cases).to_parquet(folder / "evaluation" / "cases.parquet")
        write_status(folder / "evaluation", evaluation, reason)
    write_json(folder / "status.json", {"state": state, "reason": reason, "updated": updated})
    return folder


def cell(center: str, *dsc: float) -> list[dict[str, Any]]:
    return [case_row(center, index, value) for index, value in enumerate(dsc)]


def add_method(root: Path, method: str, gain: float, n_seeds: int, n_cases: int = 12, **changes: Any) -> None:
    """Runs whose DSC differ from those of gain 0 by ``gain`` and a little noise of their own."""
    noise = np.random.default_rng(len(method))
    for position, center in enumerate(CENTERS):
        hard = np.random.default_rng(position).uniform(0.2, 0.7, n_cases)
        for seed in range(n_seeds):
            dsc = np.clip(hard + gain + noise.normal(0, 0.01, n_cases), 0, 1)
            add_run(root, method, center, seed, cases=cell(center, *map(float, dsc)), **changes)


def compiled(root: Path, **options: Any) -> Compiled:
    return compile_runs(root, protocol=PROTOCOL, **options)


def only_table(root: Path, **options: Any) -> Table:
    (table,) = compiled(root, **options).tables
    return table


def row_of(table: Table, label: str) -> Row:
    (row,) = [row for row in table.rows if row.label == label]
    return row


def terminal(result: Compiled) -> str:
    console = Console(width=300, file=io.StringIO(), color_system=None)
    console.print(to_rich(leaderboard_sheets(result)))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def write_two_seeds(root: Path) -> Path:
    """erm and randconv at three centers with two seeds; centers have different numbers of cases."""
    for seed in (0, 1):
        add_run(root, "erm", "MSD", seed, cases=cell("MSD", 0.2, 0.4, 0.3 + 0.3 * seed))  # 0.3, 0.4
        add_run(root, "erm", "RENJI", seed, cases=cell("RENJI", 0.5))  # 0.5
        add_run(root, "erm", "RMYY", seed, cases=cell("RMYY", 0.4, 0.8 - 0.2 * seed))  # 0.6, 0.5
        for center, value in zip(CENTERS, (0.5, 0.6, 0.7), strict=True):
            n_cases = {"MSD": 3, "RENJI": 1, "RMYY": 2}[center]
            add_run(root, "randconv", center, seed, cases=cell(center, *[value] * n_cases))
    return root
