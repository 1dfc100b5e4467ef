"""How long a large leaderboard takes, by part: reading run folders, resolving rows, statistics, the page without case pages and, where
there is a Chromium, showing the page and sorting its table in it.

Fake runs are written into a temporary folder. By default evaluations hold the official view only; ``--views 72`` gives them what real ones
hold (4 settings, 2 checkpoints, 9 thresholds), at a size that should then be smaller::

    python benchmarks/leaderboard_page.py                  # 20 methods, 5 centers, 5 seeds, 60 cases
    python benchmarks/leaderboard_page.py --full           # 200 methods, 5 centers, 5 seeds, 300 cases per center
    python benchmarks/leaderboard_page.py --methods 4 --cases 300 --views 72
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from dgbench.atomic import append_jsonl, write_json
from dgbench.leaderboard import comparisons, evidence, policies
from dgbench.leaderboard import compile as compiling
from dgbench.leaderboard.page.site import write_page
from dgbench.processor import available_cores
from dgbench.protocol import load_protocol
from dgbench.store.folder import RunSpec
from dgbench.store.times import sum_up_evaluation, sum_up_stage

CENTERS = tuple(f"C{number}" for number in range(5))
SPENT: dict[str, float] = {}
SHOWN = 5
WITHIN = ("compare", "standings", "robustness", "score_table")
"""What the statistics of a table consist of."""
PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, whose seconds are added up under ``name``."""

    def call(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            SPENT[name] = SPENT.get(name, 0.0) + time.perf_counter() - start

    return call


def spec(method: str, heldout: str, seed: int, number: int) -> RunSpec:
    """The spec of one fake run."""
    key = f"{number:064x}"[::-1]
    folder = f"phantom/{heldout}/{method}/seed{seed}-{key[:8]}"
    return RunSpec.model_validate(
        {
            "schema": 1,
            "dgbench": "0.1.0",
            "key": key,
            "protocol": {
                "name": "phantom",
                "version": 1,
                "content": "c" * 64,
                "kind": "phantom",
                "preset": "bench",
                "ranked": True,
                "modified": False,
                "converged": True,
            },
            "heldout": heldout,
            "seed": seed,
            "sources": [name for name in CENTERS if name != heldout],
            "method": {"name": method, "version": 1, "title": method, "config": {}},
            "stages": {"tumor-fine": {"key": key, "folder": f"{folder}/tumor-fine"}},
            "data": {"centers": {"phantom": "d" * 64}},
            "environment": {"device": "cpu", "precision": "fp32", "threads": 1, "torch": "2.13"},
            "command": f"dgbench run --method {method} --protocol phantom --heldout {heldout} --preset bench --seed {seed}",
        }
    )


def rows(center: str, count: int, views: int, rng: np.random.Generator, level: float) -> pd.DataFrame:
    """Case rows of one evaluation; the first view is the official one."""
    n = count * views
    view = np.repeat(np.arange(views), count)
    dsc = np.clip(rng.normal(level, 0.18, n), 0.01, 0.99)
    distance = 10 * (1 - dsc)
    frame = {
        "case": np.tile([f"{center}/{center}_{index:04d}" for index in range(count)], views),
        "center": center,
        "role": "held-out",
        "stage": "tumor-fine",
        "setting": np.where(view % 4 == 0, "F-Seg", "C-Seg"),
        "checkpoint": np.where(view % 8 < 4, "source-val", "last-step"),
        "threshold": np.where(view // 8 == 0, 0.5, 0.1 + 0.001 * view),
        "failed": False,
        "reason": None,
        "dsc": dsc,
        "nsd": dsc / 2,
        "assd": distance,
        "assd_two_means": distance,
        "hd95": 2 * distance,
        "hd95_max": 3 * distance,
        "centroid_mm": distance / 2,
        "volume_reference_mm3": 1000.0,
        "volume_prediction_mm3": 900.0,
        "empty_reference": False,
        "empty_prediction": False,
        "n_lesions_reference": 1,
        "n_lesions_found": 1,
        "n_false_positive": 0,
    }
    return pd.DataFrame(frame)


def write_costs(folder: Path, frame: pd.DataFrame) -> None:
    """What a run of one stage tells of its cost: counts, machine, 240 lines of its step log, seconds per case and chain, and what
    these come to."""
    write_json(folder / "cost.json", {"table-vi": {"params": 2, "gflops": 2.0}, "macs": {"params": 1, "gflops": 1.0}})
    write_json(folder / "env.json", {"processor": "fake"})
    append_jsonl(
        folder / "tumor-fine" / "times.jsonl",
        *({"step": 20 * (line + 1), "steps": 20, "seconds": 2.0 + line % 3} for line in range(240)),
    )
    chains = pd.DataFrame({"setting": ["C-Mask", "C-Seg", "F-Mask", "F-Seg"]})
    checkpoints = pd.DataFrame({"checkpoint": ["source-val", "last-step"]})
    cases = frame[["case"]].drop_duplicates()
    times = cases.merge(chains, "cross").merge(checkpoints, "cross").assign(seconds=0.5)
    times["round_seconds"] = [[0.5]] * len(times)
    times.to_parquet(folder / "evaluation/times.parquet")
    sum_up_stage(folder / "tumor-fine")
    sum_up_evaluation(folder / "evaluation")


def write_runs(root: Path, methods: int, seeds: int, cases: int, views: int) -> int:
    """Write the fake runs; returns how many."""
    rng = np.random.default_rng(0)
    number = 0
    for index in range(methods):
        method = "erm" if index == 0 else f"method{index:03d}"
        for center in CENTERS:
            for seed in range(seeds):
                number += 1
                run = spec(method, center, seed, number)
                folder = run.folder(root)
                write_json(folder / "spec.json", run.dump())
                keys = {name: stage.key for name, stage in run.stages.items()}
                write_json(folder / "evaluation/spec.json", {"train_keys": keys, "fingerprint": center, "numbers": 1})
                frame = rows(center, cases, views, rng, 0.5 + 0.001 * index + rng.normal(0, 0.01))
                frame.to_parquet(folder / "evaluation/cases.parquet")
                write_costs(folder, frame)
                for place in (folder, folder / "evaluation"):
                    write_json(place / "status.json", {"state": "done", "updated": "2026-01-01T00:00:00+00:00"})
    return number


def in_chromium(index: Path, profile: Path) -> dict[str, float] | None:
    """Seconds until the page is loaded and painted, and until it is painted again after its table was sorted and filtered: medians of
    :data:`SHOWN` times each. None without a Chromium."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from chromium import NAMES, browser

    if not any(map(shutil.which, NAMES)):
        return None
    sort = "document.querySelectorAll('.board thead button')[{}].click()"
    find = "(() => {{ const box = document.querySelector('input'); box.value = '{}'; box.dispatchEvent(new Event('input')); }})()"
    found: dict[str, list[float]] = {"open": [], "sort": [], "filter": []}
    with browser(profile) as tab:
        tab.resize(1400, 900)
        for number in range(SHOWN):
            acts: dict[str, Callable[[], Any]] = {
                "open": partial(tab.open, index),
                "sort": partial(tab.value, sort.format(1 + number % 3)),
                "filter": partial(tab.value, find.format(f"method{number}")),
            }
            for what, act in acts.items():
                start = time.perf_counter()
                act()
                tab.call("Runtime.evaluate", expression=PAINTED, awaitPromise=True)
                found[what].append(time.perf_counter() - start)
        assert not tab.messages, tab.messages
        assert tab.value("[...document.querySelectorAll('.board tbody tr')].some(row => row.hidden)"), (
            "nothing is filtered"
        )
    return {what: median(seconds) for what, seconds in found.items()}


def main() -> None:
    """Write runs, compile them, write the page, and print the seconds of each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=60, help="per center")
    parser.add_argument("--views", type=int, default=1, help="views that every evaluation holds: 72 in a real one")
    parser.add_argument("--full", action="store_true", help="200 methods, 300 cases per center")
    parser.add_argument(
        "--processes", type=int, default=available_cores(), help="that read runs, at most; default: one for each core"
    )
    options = parser.parse_args()
    if options.full:
        options.methods, options.cases = 200, 300
    for module, name in (
        (compiling, "read_records"),
        (comparisons, "table_statistics"),
        *((evidence, name) for name in WITHIN),
        *((policies, name) for name in ("apply_policy", "summarise")),
    ):
        setattr(module, name, timed(name, getattr(module, name)))
    os.fsync = lambda fd: None  # writing the fake runs is not what is measured
    protocol = load_protocol("phantom")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        runs = write_runs(root, options.methods, options.seeds, options.cases, options.views)
        print(
            f"{options.methods} methods × {len(CENTERS)} centers × {options.seeds} seeds × {options.cases} cases "
            f"= {runs} runs, {runs * options.cases:,} case rows, {options.views} views stored"
        )
        start, used = time.perf_counter(), time.process_time()
        compiled = compiling.compile_runs(root, protocol=protocol, processes=options.processes)
        middle, half = time.perf_counter(), time.process_time()
        print(
            f"compile {middle - start:8.2f} s ({half - used:.2f} s of processor time here, {options.processes} read)",
            flush=True,
        )
        written = write_page(compiled, Path(folder) / "page", root=root, protocol=protocol, cases=False)
        end, whole = time.perf_counter(), time.process_time()
        size = sum(path.stat().st_size for path in (Path(folder) / "page").rglob("*") if path.is_file())
        index = written.index.stat().st_size
        shown = in_chromium(written.index, Path(folder) / "profile")
    for name, seconds in SPENT.items():
        print(f"  {name:18s} {seconds:8.2f} s" + (" (within table_statistics)" if name in WITHIN else ""))
    print(
        f"page    {end - middle:8.2f} s ({whole - half:.2f} s of processor time; {written.methods + 1} pages, {size / 1e6:.1f} MB, "
        f"index {index / 1e6:.1f} MB)"
    )
    if shown is None:
        print("browser: not measured, no Chromium here")
    for what, seconds in (shown or {}).items():
        print(f"{what:7s} {seconds:8.2f} s in Chromium")


if __name__ == "__main__":
    main()
