"""What every method reached on one held-out center, as a Markdown table: that each of them trains and answers, and nothing about which is
better. Rows come from the run folders of::

    dgbench sweep --method all --heldout RENJI --preset demo --threads 1 --jobs 2
    python benchmarks/smoke_table.py runs > docs/smoke.md
"""

import argparse
from pathlib import Path

from dgbench import __version__
from dgbench.atomic import read_json
from dgbench.leaderboard.run_table import run_table
from dgbench.leaderboard.sheets import NOTES
from dgbench.protocol import load_protocol
from dgbench.store.folder import SHARED_METHOD, RunFolder, iter_runs


def line(run: RunFolder) -> dict[str, str]:
    """One row: best source-validation DSC of each stage, held-out DSC of every setting, in points, and what there is to note of F-Seg."""
    sheet = run_table(run.cases(), spec=run.spec, protocol=load_protocol(run.spec.protocol.name))
    settings = {row["setting"]: row for row in (dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows)}
    stages = {name: read_json(run.stage_folder(name) / "result.json")["best_dsc"] for name in run.own_stages}
    return {
        "method": run.spec.method.name,
        **{f"source-val {name.removeprefix('tumor-')}": f"{100 * value:.1f}" for name, value in stages.items()},
        **{setting: row["DSC"] for setting, row in settings.items()},
        "notes on F-Seg": settings["F-Seg"][NOTES],
    }


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs"))
    parser.add_argument("--heldout", default="RENJI")
    arguments = parser.parse_args()
    runs = [
        run
        for run in iter_runs(arguments.runs)
        if run.spec.heldout == arguments.heldout
        and (run.spec.protocol.name, run.spec.protocol.preset) == ("phantom", "demo")
        and run.spec.method.name != SHARED_METHOD
        and not run.spec.protocol.modified
        and run.status.state == "done"
    ]
    rows = [line(run) for run in runs]
    print("# Phantom data: every method once\n")
    print(
        f"Preset `demo`, held-out {arguments.heldout}, seed 0, dgbench {__version__}. DSC in points: the best source "
        "validation of each stage (label ROI), then the held-out center in the four settings at threshold 0.5. `demo` is far from "
        "converged and never ranked, and one seed of a dozen cases orders nothing: the table shows that every method trains, and answers "
        "on a center it never saw.\n"
    )
    print(
        f"```bash\ndgbench sweep --method all --heldout {arguments.heldout} --preset demo --threads 1 --jobs 2\n"
        "python benchmarks/smoke_table.py runs\n```\n"
    )
    columns = list(rows[0]) if rows else []
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row.values())} |")


if __name__ == "__main__":
    main()
