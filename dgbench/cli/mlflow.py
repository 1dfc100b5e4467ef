"""``dgbench mlflow``."""

from typing import Annotated

import typer

from dgbench.cli import options
from dgbench.errors import DgbenchError

app = typer.Typer(help="The MLflow mirror of the run folders.", no_args_is_help=True, rich_markup_mode=None)
Uri = Annotated[str | None, typer.Option("--uri", help="Tracking URI; default: a database in the runs folder.")]


@app.command("sync")
def sync_runs(runs: options.Runs = options.DEFAULT_RUNS, uri: Uri = None) -> None:
    """Bring MLflow up to date with the run folders; what is there already is not doubled."""
    from dgbench.store.mlflow_mirror import sync

    if not runs.is_dir():
        raise DgbenchError(f"runs folder {runs} does not exist")
    report = sync(runs, tracking_uri=uri)
    for problem in report.problems:
        typer.echo(f"skipped: {problem}", err=True)
    typer.echo(
        f"{report.tracking_uri}: {report.created} runs added, {report.replaced} replaced, "
        f"{report.removed} removed, {report.unchanged} as they were"
    )


@app.command("ui")
def ui(
    runs: options.Runs = options.DEFAULT_RUNS,
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow's pages on this machine only (127.0.0.1); Ctrl-C ends it."""
    import subprocess

    from dgbench.store.mlflow_mirror import ui_command

    if not (runs / "mlflow.db").is_file():
        raise DgbenchError(f"{runs} has no MLflow database yet — run `dgbench mlflow sync --runs {runs}` first")
    raise typer.Exit(subprocess.call(ui_command(runs, port=port)))
