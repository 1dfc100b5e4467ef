"""Finished runs with all that figures are drawn from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from leaderboard_runs import CENTERS, PROTOCOL, add_run, cell
from numpy.typing import NDArray

from dgbench.atomic import append_jsonl, write_json
from dgbench.leaderboard.figures.board import Board, load_board
from dgbench.store.slices import CaseSlice, slice_file

WHOLE = ("validation", "features", "slices", "cost")
"""What a whole run keeps beside its rows."""


def add_whole(
    root: Path, method: str, heldout: str, dsc: Sequence[float], *, keep: Sequence[str] = WHOLE, **changes: Any
) -> Path:
    """A finished run with everything that figures are drawn from, or the named parts of it."""
    cases = changes.pop("cases", None) or cell(heldout, *dsc)
    folder = add_run(root, method, heldout, cases=cases, **changes)
    names = [str(case["case"]) for case in cases]
    if "validation" in keep:
        rows = [
            {"step": step, "case": f"{center}/a", "center": center, "dsc": step / 40}
            for step in (10, 20)
            for center in CENTERS
            if center != heldout
        ]
        append_jsonl(folder / "tumor-fine" / "validation.jsonl", *rows)
    if "features" in keep:
        write_features(folder, heldout, names)
    if "slices" in keep:
        for case in names:
            write_slice(folder, case)
    if "cost" in keep:
        write_json(
            folder / "cost.json", {kind: {"params": 2_000_000, "gflops": 0.5} for kind in ("table-vi", "macs", "flops")}
        )
        write_json(folder / "env.json", {"processor": "Abacus"})
        append_jsonl(folder / "tumor-fine" / "times.jsonl", {"step": 20, "steps": 20, "seconds": 2.0})
        times = [
            {"case": names[0], "setting": "F-Seg", "checkpoint": "source-val", "seconds": 1.0, "round_seconds": [1.0]}
        ]
        pd.DataFrame(times).to_parquet(folder / "evaluation" / "times.parquet")
    return folder


def write_features(folder: Path, heldout: str, names: Sequence[str], **changes: Any) -> None:
    """Features of the held-out cases and of three source-validation cases, tumor apart from normal in one channel."""
    source = [f"{center}/s{index}" for center in CENTERS if center != heldout for index in range(3)]
    rng = np.random.default_rng(7)
    rows = [
        {
            "case": case,
            "center": case.partition("/")[0],
            "role": "held-out" if case in names else "source-val",
            "stage": "tumor-fine",
            "checkpoint": "source-val",
            "tissue": tissue,
            "n_voxels": 10,
            "features": np.array([shift, 0, 0, 1.0]) + rng.normal(0, 0.3, 4) * [1, 1, 1, 0],
            **changes,
        }
        for case in [*names, *source]
        for tissue, shift in (("tumor", 4.0), ("normal", 0.0))
    ]
    pd.DataFrame(rows).to_parquet(folder / "evaluation" / "features.parquet")


def write_slice(folder: Path, case: str) -> None:
    def box(first: int, last: int) -> NDArray[np.bool_]:
        mask = np.zeros((60, 60), dtype=bool)
        mask[first:last, first:last] = True
        return mask

    CaseSlice(
        case=case,
        image=np.linspace(-100, 240, 3600).reshape(60, 60),
        reference_pancreas=box(20, 45),
        reference_tumor=box(25, 35),
        pancreas=box(20, 45),
        tumor_coarse=box(24, 34),
        tumor_fine=box(27, 37),
        spacing=(2.0, 2.0),
        slice_index=3,
        n_slices=9,
        dsc={"fine": 0.5},
    ).save(slice_file(folder, case))


def board_of(root: Path, **options: Any) -> Board:
    return load_board(root, PROTOCOL, options.pop("preset", None), **options)


def write_table(root: Path, seeds: int = 1, **changes: Any) -> Path:
    """erm and randconv at all centers; randconv is better, and both fail on the first case."""
    for center in CENTERS:
        for seed in range(seeds):
            add_whole(root, "erm", center, (0.1, 0.8), seed=seed, **changes)
            add_whole(root, "randconv", center, (0.15, 0.95), seed=seed, **changes)
    return root


def text_of(sheet: Any) -> str:
    """All words on a sheet, those of the panels included."""
    texts = [*sheet.figure.texts, *(text for axis in sheet.figure.axes for text in axis.texts)]
    return "\n".join(text.get_text() for text in texts)
