"""Options that several commands share, so that they mean the same everywhere."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgbench.cli.console import show

if TYPE_CHECKING:
    from rich.table import Table

    from dgbench.protocol import Protocol as ProtocolFile

DEFAULT_CACHE = Path("~/.cache/dgbench")
DEFAULT_RUNS = Path("runs")


class ListFormat(StrEnum):
    """How lists are printed."""

    table = "table"
    json = "json"


class Launcher(StrEnum):
    """Who runs the jobs."""

    local = "local"
    slurm = "slurm"


Protocol = Annotated[
    str, typer.Option("--protocol", help="Protocol name, or a YAML file; `pancreas-tumor` is the paper's.")
]
ProtocolOrDefault = Annotated[
    str | None,
    typer.Option(
        "--protocol", help="Protocol name, or a YAML file; default: pancreas-tumor with --data, else phantom."
    ),
]
Preset = Annotated[str, typer.Option("--preset", help="Size of the protocol: tiny, demo (not ranked), bench, paper.")]
Data = Annotated[
    Path | None, typer.Option("--data", help="Folder with one folder per center; default: the cached phantom.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the runs.")]
FirstSeeds = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        min=1,
        help="Count the seeds 0 to N-1 alone; default: all, and every row owes the seeds that any row has.",
    ),
]
Cache = Annotated[Path, typer.Option("--cache", help="Folder for prepared cases and the phantom.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Method setting (KEY), or preset setting (preset.KEY); may be repeated."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="YAML file with settings, such as the best.yaml of `dgbench tune`; --set wins over it."
    ),
]
Configs = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        help="YAML file with settings, such as a best.yaml of `dgbench tune`, for the method and held-out center that it names; may be "
        "repeated.",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu or cuda; default: a GPU where there is one.")]
Devices = Annotated[
    int, typer.Option("--devices", help="Devices of one run (part of its key): each takes a batch in every step.")
]
RankTimeout = Annotated[
    float | None,
    typer.Option(
        "--rank-timeout",
        metavar="SECONDS",
        min=1,
        help="With several devices: one that is silent for so long ends the run; default: ten minutes.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads of one run (part of its key); default: all cores, at most 8."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget an earlier run of the same key and start over.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; start nothing.")]
NoMlflow = Annotated[bool, typer.Option("--no-mlflow", help="Do not mirror the run to MLflow.")]
Methods = Annotated[str, typer.Option("--method", help="Method names, separated by commas, or all.")]
Heldouts = Annotated[
    str,
    typer.Option(
        "--heldout",
        help="Held-out centers, separated by commas, or all; in-domain: all folds of them.",
    ),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Seeds 0 to N-1.")]
Gpus = Annotated[
    str | None, typer.Option("--gpus", help="GPUs to use, separated by commas; default: all that are visible.")
]
JobsPerGpu = Annotated[int, typer.Option("--jobs-per-gpu", min=1, help="Jobs side by side on one GPU.")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Jobs side by side on the CPU.")]
LauncherName = Annotated[Launcher, typer.Option("--launcher", help="Run the jobs here, or submit them to Slurm.")]
Slurm = Annotated[
    Path | None,
    typer.Option(
        "--slurm", help="YAML file with partition, account, time limit …; default: slurm.yaml if there is one."
    ),
]
Format = Annotated[ListFormat, typer.Option("--format", help="table or json.")]


def protocol_name(protocol: str | None, data: Path | None) -> str:
    """The protocol asked for, or the default: the paper's for data of the user's own, else the phantom's."""
    return protocol or ("phantom" if data is None else "pancreas-tumor")


def cache_folder(cache: Path) -> Path:
    """The cache folder with ``~`` resolved."""
    return cache.expanduser().absolute()


def print_rows(rows: list[dict[str, Any]], form: ListFormat) -> None:
    """Print ``rows`` (all with the same keys) as a table for people or as JSON for programs."""
    if form is ListFormat.json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    show(lambda _: table_of(rows))


def table_of(rows: list[dict[str, Any]]) -> "Table":
    """``rows`` (all with the same keys) as a table for people."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0] if rows else ("nothing",):
        whole = name in ("name", "method")  # names are never broken
        least = max((len(str(row[name])) for row in rows), default=0) if whole else None
        table.add_column(name.replace("_", " "), overflow="fold", no_wrap=whole, min_width=least)
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row.values()))
    return table


def check_runs(runs: Path, protocol: "ProtocolFile") -> None:
    """Raise DgbenchError where ``runs`` is no folder that could hold runs of ``protocol``; without a folder of the default name nothing was
    run yet, which is no mistake."""
    from dgbench.leaderboard.records import check_root

    if runs.exists() or runs != DEFAULT_RUNS:
        check_root(runs, protocol)
