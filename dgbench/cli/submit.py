"""``dgbench submit`` and ``dgbench verify``."""

from pathlib import Path
from typing import Annotated

import typer

from dgbench.errors import DgbenchError


def submit(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders with runs below them.")],
    to: Annotated[Path, typer.Option("--to", help="Folder of the records.")] = Path("leaderboards"),
    preset: Annotated[
        str | None, typer.Option("--preset", help="Only runs of this preset; default: of every ranked preset.")
    ] = None,
) -> None:
    """Write records of finished runs (no weights, predictions or pictures) that a pull request adds; shared stages come along."""
    from dgbench.store.manifest import REPRODUCTIONS, Manifest
    from dgbench.store.record import require_place, require_whole, with_shared, write_record
    from dgbench.verification.collect import finished_runs, siblings

    chosen = finished_runs(runs, preset, skipped=lambda line: typer.echo(line, err=True))
    if not chosen:
        raise DgbenchError(
            f"{', '.join(map(str, runs))}: no finished run of {f'preset {preset}' if preset else 'a ranked preset'} there"
        )
    every = with_shared(chosen, siblings(chosen))
    for run in every:
        require_whole(run)
        require_place(run, to)
    for run in every:
        record = write_record(run, to)
        parent = record.parents[1] if record.parent.name == REPRODUCTIONS else record
        typer.echo(f"{record}  {Manifest.read(parent).tier}")
    typer.echo(f"\ndgbench verify {to}")


def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of the records.")] = Path("leaderboards"),
    protocol: Annotated[
        list[Path] | None,
        typer.Option("--protocol", help="YAML file of a protocol that is not shipped; may be repeated."),
    ] = None,
) -> None:
    """Check every record (files, keys, budget, rows) and rebuild the tables; a record that does not hold is refused."""
    from dgbench.protocol import load_protocol
    from dgbench.verification.tree import verify_tree

    report = verify_tree(folder, [load_protocol(str(path)) for path in protocol or ()])
    if len(report.refused) > 1:
        for line in report.refused:
            typer.echo(f"refused: {line}")
    for line in report.lines if not report.refused else ():
        typer.echo(line)
    if report.refused:
        first = report.refused[0]
        count = len(report.refused)
        raise DgbenchError(first if count == 1 else f"{count} of {report.records} records refused; first: {first}")
