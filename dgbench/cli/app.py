"""All commands in one application."""

from typing import Annotated

import typer

from dgbench import __version__
from dgbench.cli import data, leaderboard, methods, mlflow, protocols, run, runs, sweep
from dgbench.cli.cost import cost
from dgbench.cli.doctor import doctor
from dgbench.cli.figures import figures
from dgbench.cli.imported import import_predictions
from dgbench.cli.shift import shift
from dgbench.cli.submit import submit, verify
from dgbench.cli.tune import tune

app = typer.Typer(
    name="dgbench",
    help="Benchmark of domain-generalization methods in 3D medical segmentation: train at some hospitals, be judged at another.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Benchmark of domain-generalization methods in 3D medical segmentation: train at some hospitals, be judged at another."""
    if show:
        typer.echo(__version__)
        raise typer.Exit


app.command("run")(run.run)
app.command("plan")(sweep.plan)
app.command("sweep")(sweep.sweep)
app.command("tune")(tune)
app.command("status")(runs.status)
app.command("logs")(runs.logs)
app.command("cancel")(runs.cancel)
app.command("retry")(runs.retry)
app.command("leaderboard")(leaderboard.leaderboard)
app.command("figures")(figures)
app.command("shift")(shift)
app.command("import-predictions")(import_predictions)
app.command("submit")(submit)
app.command("verify")(verify)
app.command("cost")(cost)
app.add_typer(runs.job_app, name="job")
app.add_typer(methods.app, name="methods")
app.add_typer(protocols.app, name="protocols")
app.add_typer(data.app, name="data")
app.add_typer(mlflow.app, name="mlflow")
app.command("doctor")(doctor)
