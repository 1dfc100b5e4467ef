"""``dgbench submit`` and ``dgbench verify``."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgbench.errors import DgbenchError

if TYPE_CHECKING:
    from dgbench.store.folder import RunFolder

Protocols = Annotated[
    list[Path] | None,
    typer.Option("--protocol", help="YAML file of a protocol that is not shipped; may be repeated."),
]


def submit(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders with runs below them.")],
    to: Annotated[Path, typer.Option("--to", help="Folder of the records.")] = Path("leaderboards"),
    preset: Annotated[
        str | None, typer.Option("--preset", help="Only runs of this preset; default: of every ranked preset.")
    ] = None,
    protocol: Protocols = None,
) -> None:
    """Verify finished runs and write records of them (no weights or predictions) that a pull request adds; shared stages come along."""
    from dgbench.protocol import load_protocol
    from dgbench.store.manifest import REPRODUCTIONS, Manifest
    from dgbench.store.record import require_place, require_whole, with_shared, write_record
    from dgbench.verification.collect import finished_runs, siblings
    from dgbench.verification.tree import refusals

    chosen = finished_runs(runs, preset, skipped=lambda line: typer.echo(line, err=True))
    if not chosen:
        raise DgbenchError(
            f"{', '.join(map(str, runs))}: no finished run of {f'preset {preset}' if preset else 'a ranked preset'} there"
        )
    every = with_shared(chosen, siblings(chosen))
    for run in every:
        require_whole(run)
        require_place(run, to)
    _refuse(refusals(every, [load_protocol(str(path)) for path in protocol or ()], _watched), len(every))
    for run in every:
        record = write_record(run, to)
        parent = record.parents[1] if record.parent.name == REPRODUCTIONS else record
        typer.echo(f"{record}  {Manifest.read(parent).tier}")
    typer.echo(f"\ndgbench verify {to}")


def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of the records.")] = Path("leaderboards"),
    protocol: Protocols = None,
) -> None:
    """Check every record (files, keys, budget, rows) and rebuild the tables; a record that does not hold is refused."""
    from dgbench.protocol import load_protocol
    from dgbench.verification.tree import verify_tree

    report = verify_tree(folder, [load_protocol(str(path)) for path in protocol or ()], _watched)
    _refuse(report.refused, report.records)
    for line in report.lines:
        typer.echo(line)


def _watched(runs: "Sequence[RunFolder]") -> "Iterable[RunFolder]":
    from rich.console import Console
    from rich.progress import track

    return track(runs, "verifying", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def _refuse(refused: Sequence[str], records: int) -> None:
    """Say why records are refused, if any is: one in the line of the error, several above it."""
    if len(refused) > 1:
        for line in refused:
            typer.echo(f"refused: {line}")
    if refused:
        count = len(refused)
        raise DgbenchError(refused[0] if count == 1 else f"{count} of {records} records refused; first: {refused[0]}")
