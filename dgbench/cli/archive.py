"""``dgbench archive``."""

from pathlib import Path
from typing import Annotated

import typer

from dgbench.cli import options
from dgbench.errors import DgbenchError


def archive(
    folder: Annotated[Path, typer.Argument(help="Where the records go, such as leaderboards.")],
    protocol: options.Protocol = "phantom",
    preset: options.Preset = "bench",
    runs: options.Runs = Path("runs"),
) -> None:
    """Copy finished runs without weights, predictions and pictures: records to commit or share, for `leaderboard --runs FOLDER`."""
    from dgbench.protocol import load_protocol
    from dgbench.store.archive import archive as write_record
    from dgbench.store.archive import with_shared
    from dgbench.store.folder import SHARED_METHOD, iter_runs, read_status

    name = load_protocol(protocol).name
    everything = list(iter_runs(runs))
    chosen = [
        run
        for run in everything
        if (run.spec.protocol.name, run.spec.protocol.preset) == (name, preset)
        and run.spec.method.name != SHARED_METHOD
        and run.status.state == "done"
        and read_status(run.evaluation).state == "done"
    ]
    if not chosen:
        raise DgbenchError(f"--runs {runs}: no finished run of protocol {name}, preset {preset}")
    for run in with_shared(chosen, everything):
        write_record(run, folder)
        typer.echo(f"{folder / run.relative}")
    typer.echo(f"\ndgbench leaderboard --runs {folder} --protocol {name} --preset {preset}")
