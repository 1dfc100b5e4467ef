"""``dgbench status``, ``logs``, ``cancel`` and ``retry``: looking after runs; ``dgbench job``: one job of a graph."""

import time
from typing import Annotated

import typer

from dgbench.cli import options
from dgbench.errors import DgbenchError

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="RUN...", help="Run folders, or folders with runs below them; default: all."),
]
Named = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or folders with runs below them.")]

WATCH_SECONDS = 2.0
FOLLOW_SECONDS = 0.5

job_app = typer.Typer(
    help="Single jobs of runs, as schedulers start them.", no_args_is_help=True, rich_markup_mode=None
)


def status(
    names: Names = None,
    runs: options.Runs = options.DEFAULT_RUNS,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds until Ctrl-C.")] = False,
    form: options.Format = options.ListFormat.table,
) -> None:
    """How runs and tuning studies stand: done, running (what, how far), failed with the reason, interrupted, cancelled, or lost (its
    process is gone)."""
    from dgbench.launch.overview import overview

    if not watch:
        options.print_rows(overview(runs, names or ()), form)
        return
    if form is options.ListFormat.json:
        raise DgbenchError("--watch shows a table — call without it for JSON")
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        while True:
            live.update(options.table_of(overview(runs, names or ())), refresh=True)
            time.sleep(WATCH_SECONDS)


def logs(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run or study.")],
    runs: options.Runs = options.DEFAULT_RUNS,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Wait for more until the run has ended.")] = False,
) -> None:
    """What the jobs of a run, or a tuning study, said."""
    from dgbench.launch.overview import logs_of

    paths, ended = logs_of(runs, name)
    read = dict.fromkeys(paths, 0)
    while True:
        over = ended()
        for title, path in paths.items():
            text = path.read_text(encoding="utf-8", errors="replace")[read[title] :] if path.is_file() else ""
            whole = text[: text.rfind("\n") + 1]
            read[title] += len(whole)
            for line in whole.splitlines():
                typer.echo(f"{title} | {line}")
        if not follow or over:
            break
        time.sleep(FOLLOW_SECONDS)
    if not any(read.values()):
        typer.echo(f"{name}: nothing was said yet", err=True)


def cancel(names: Named, runs: options.Runs = options.DEFAULT_RUNS) -> None:
    """Stop runs and keep their jobs from being started until `dgbench retry`. A job that runs saves its state first."""
    from datetime import UTC, datetime

    from dgbench.atomic import write_json
    from dgbench.launch.jobs import CANCELLED
    from dgbench.launch.overview import chosen_runs
    from dgbench.launch.slurm import cancel_submitted

    for run in chosen_runs(runs, names):
        if run.status.state == "done":
            typer.echo(f"{run.relative}: is done already")
            continue
        write_json(run.path / CANCELLED, {"when": datetime.now(UTC).isoformat(timespec="seconds")})
        numbers = ", ".join(cancel_submitted(run))
        typer.echo(f"{run.relative}: cancelled{f', Slurm jobs {numbers}' if numbers else ''}")


def retry(
    names: Named,
    runs: options.Runs = options.DEFAULT_RUNS,
    gpus: options.Gpus = None,
    jobs_per_gpu: options.JobsPerGpu = 1,
    jobs: options.Jobs = 1,
    launcher: options.LauncherName = options.Launcher.local,
    slurm: options.Slurm = None,
    no_mlflow: options.NoMlflow = False,
) -> None:
    """Start cancelled, failed or interrupted runs again, from where they stopped."""
    from dgbench.cli.sweep import graph_of, launch
    from dgbench.launch.jobs import CANCELLED
    from dgbench.launch.overview import chosen_runs
    from dgbench.launch.request import read_request
    from dgbench.store.folder import SHARED_METHOD

    chosen = [run for run in chosen_runs(runs, names) if run.spec.method.name != SHARED_METHOD]
    if not chosen:
        raise DgbenchError(f"{', '.join(names)}: only shared stages lie there — retry the runs that need them")
    requests = [read_request(runs, run.path) for run in chosen]
    graph = graph_of(requests, draw=True)
    for folder in {job.part.folder for job in graph.jobs.values()}:
        (folder / CANCELLED).unlink(missing_ok=True)
    launch(graph, launcher, slurm, gpus=gpus, jobs_per_gpu=jobs_per_gpu, jobs=jobs, mirrored=not no_mlflow)


@job_app.command("exec")
def exec_job(
    job_id: Annotated[
        str, typer.Argument(metavar="ID", help="PROTOCOL/HELDOUT/METHOD/SEED-KEY/STAGE, or …/evaluation.")
    ],
    runs: options.Runs = options.DEFAULT_RUNS,
    no_mlflow: options.NoMlflow = False,
) -> None:
    """Do one job of a run that was planned by `dgbench sweep` or `dgbench run`; what it needs must be done."""
    from dgbench.cli.run import mirror
    from dgbench.launch.graph import find_job, missing_needs
    from dgbench.launch.jobs import dependents, do
    from dgbench.launch.worker import run_job
    from dgbench.store.folder import write_status

    job = find_job(runs, job_id)
    if missing := missing_needs(job):
        raise DgbenchError(f"{job_id}: needs {', '.join(missing)}, not done yet — do them first")

    def say(text: str) -> None:
        typer.echo(text, err=True)

    try:
        if not do(job, run_job, say):
            say(f"{job_id}: done already")
    except DgbenchError as error:  # whoever waits for it in a queue will not be started
        for run in dependents(job):
            write_status(run.path, "failed", f"needs {job_id}: {error}")
        raise
    if job.training is None and job.part is job.plan.own and not no_mlflow:
        mirror(job.plan)
