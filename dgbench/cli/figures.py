"""``dgbench figures``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dgbench.cli import options
from dgbench.cli.lesion_types import lesion_types
from dgbench.errors import DgbenchError, suggest


class FigureFormat(StrEnum):
    """The files that are written."""

    png = "png"
    pdf = "pdf"
    svg = "svg"


def figures(
    protocol: options.Protocol = "phantom",
    preset: Annotated[
        str | None, typer.Option("--preset", help="The preset to draw; needed where the runs are of several.")
    ] = None,
    runs: options.Runs = options.DEFAULT_RUNS,
    seeds: options.FirstSeeds = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the figures.")] = Path("figures"),
    form: Annotated[FigureFormat, typer.Option("--format", help="png, pdf or svg.")] = FigureFormat.png,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="NAME,...",
            help="overlays, embedding, centroids, failures, cost, ranks, curves; default: all.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="ROW",
            help="Row whose DSC chooses the cases of overlays and failures; default: mean over rows.",
        ),
    ] = None,
    limit: Annotated[float, typer.Option("--limit", help="A case fails below this DSC, in points.")] = 20.0,
) -> None:
    """Draw the paper's figures and training curves from run folders, without a model or a volume."""
    from dgbench.leaderboard.figures import check_names, draw_figures
    from dgbench.leaderboard.figures.board import Options, load_board
    from dgbench.protocol import load_protocol

    contract = load_protocol(protocol)
    if preset is not None and preset not in contract.presets:
        raise DgbenchError(
            f"unknown preset {preset!r} for protocol {contract.name!r}{suggest(preset, contract.presets)}"
        )
    names = check_names(only)
    if not 0 < limit <= 100:
        raise DgbenchError(f"--limit {limit:g}: a DSC in points lies above 0 and at most at 100")
    options.check_runs(runs, contract)
    board = load_board(runs, contract, preset, seeds=seeds)
    if by is not None and by not in board.labels:
        raise DgbenchError(f"--by {by!r}: no finished run of this row{suggest(by, board.labels)}")
    for problem in board.compiled.problems:
        typer.echo(f"not counted: {problem}", err=True)
    if board.older:
        typer.echo(
            f"drawn is the newest of {board.older + 1} tables; the others are not comparable with it, see `dgbench leaderboard`",
            err=True,
        )
    chosen = Options(limit=limit / 100, by=by, lesion_type=lesion_types(contract, board))
    empty = []
    for figure in draw_figures(board, names, out, form.value, chosen):
        if not figure.files:
            empty.append(figure)
            continue
        for path in figure.files:
            typer.echo(path)
        for note in figure.notes:
            typer.echo(f"{figure.name}: {note}", err=True)
    reasons = [f"{figure.name}: {note}" for figure in empty for note in figure.notes]
    if len(empty) == len(names):
        raise DgbenchError(f"--runs {runs}: no figure was drawn — {'; '.join(reasons)}")
    for reason in reasons:
        typer.echo(reason, err=True)
