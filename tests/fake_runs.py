"""Small run folders written by hand, for the tests of everything that reads them."""

from pathlib import Path
from typing import Any

import pandas as pd

from dgbench.atomic import append_jsonl, replacing, write_bytes
from dgbench.store.folder import RunFolder, RunSpec, open_run, run_folder, write_status
from dgbench.store.keys import key_of

STAGES = ("pancreas-coarse", "pancreas-fine", "tumor-coarse", "tumor-fine")
METRICS = {"nsd": 0.5, "assd": 2.0, "assd_two_means": 2.5, "hd95": 8.0, "hd95_max": 9.0, "centroid_mm": 3.0}
PNG = b"\x89PNG\r\n\x1a\n"


def fake_spec(method: str = "erm", heldout: str = "RENJI", seed: int = 0, **config: Any) -> RunSpec:
    """A valid spec; ``config`` enters the key. Its pancreas stages lie in another run."""
    key = key_of({"method": method, "heldout": heldout, "seed": seed, "config": config})
    shared = run_folder(Path(), "phantom", heldout, "_pancreas", seed, "0" * 64)
    own = run_folder(Path(), "phantom", heldout, method, seed, key)
    return RunSpec.model_validate(
        {
            "schema": 1,
            "dgbench": "0.1.0.dev0",
            "key": key,
            "protocol": {
                "name": "phantom",
                "version": 1,
                "content": "c0" * 32,
                "kind": "phantom",
                "preset": "demo",
                "ranked": False,
                "modified": False,
            },
            "heldout": heldout,
            "sources": ["MSD", "RMYY"],
            "support": ["NIH"],
            "seed": seed,
            "method": {"name": method, "version": 1, "title": method.upper(), "config": config},
            "stages": {
                name: {"key": key, "folder": f"{(shared if name.startswith('pancreas') else own).as_posix()}/{name}"}
                for name in STAGES
            },
            "data": {"centers": {"phantom": "phantom-1"}},
            "environment": {"device": "cpu", "precision": "fp32", "threads": 2, "torch": "2.13"},
            "command": f"dgbench run --method {method} --heldout {heldout} --seed {seed}",
        }
    )


def fake_cases(heldout: str = "RENJI") -> pd.DataFrame:
    """Two held-out cases (the second failed) with DSC 0.4 and undefined, and a source-validation case; two checkpoints, two thresholds."""
    rows = []
    for checkpoint, gain in (("source-val", 0.0), ("last-step", 0.1)):
        for threshold in (0.5, 0.9):
            for center, number, role, dsc in (
                (heldout, 1, "held-out", 0.4),
                (heldout, 2, "held-out", float("nan")),
                ("MSD", 7, "source-val", 0.8),
            ):
                failed = dsc != dsc
                rows.append(
                    {
                        "case": f"{center}/{center}_{number:04d}",
                        "center": center,
                        "role": role,
                        "stage": "tumor-fine",
                        "setting": "F-Seg",
                        "checkpoint": checkpoint,
                        "threshold": threshold,
                        "failed": failed,
                        "reason": "out of memory" if failed else None,
                        "roi": "prediction",
                        "rounds": 1,
                        "windowed": False,
                        "dsc": dsc + gain - (0.2 if threshold == 0.9 else 0.0),
                        **{name: float("nan") if failed else value for name, value in METRICS.items()},
                    }
                )
    return pd.DataFrame(rows)


def fake_run(root: Path, spec: RunSpec | None = None, steps: int = 3) -> RunFolder:
    """A finished run with logs of two stages, an evaluation and a picture."""
    spec = spec or fake_spec()
    run = open_run(root, spec)
    for stage in ("tumor-coarse", "tumor-fine"):
        folder = run.stage_folder(stage)
        append_jsonl(
            folder / "steps.jsonl",
            *({"step": i, "lr": 0.01, "loss": 1.0 / i, "con": 0.5 if i > 1 else None} for i in range(1, steps + 1)),
        )
        append_jsonl(
            folder / "validation.jsonl",
            {"step": 2, "case": "MSD/a", "center": "MSD", "dsc": 0.2},
            {"step": 2, "case": "MSD/b", "center": "MSD", "dsc": 0.4},
            {"step": 2, "case": "RMYY/a", "center": "RMYY", "dsc": 0.9},
            {"step": 2, "case": "RMYY/b", "center": "RMYY", "dsc": None},
        )
        write_bytes(folder / "last-000001.safetensors", b"weights")
        write_status(folder, "done")
    run.evaluation.mkdir()
    with replacing(run.evaluation / "cases.parquet") as temporary:
        fake_cases(spec.heldout).to_parquet(temporary)
    write_bytes(run.path / "figures" / "overlay.png", PNG)
    write_status(run.path, "done")
    return run
