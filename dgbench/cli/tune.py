"""``dgbench tune``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgbench.cli import options
from dgbench.store.selection import Selection

if TYPE_CHECKING:
    from dgbench.store.study import TrialRow
    from dgbench.tuning.study import StudyPlan

SHOWN = 5
"""Trials in the table at the end."""


def tune(
    method: Annotated[str, typer.Option("--method", help="Method name, or package.module:Class.")],
    heldout: Annotated[str, typer.Option("--heldout", help="The center that neither training nor tuning ever sees.")],
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials, pruned ones among them.")],
    selection: Annotated[
        Selection,
        typer.Option(
            "--selection",
            help="What is maximised: DSC on validation cases of the source centers, or at each source center of a training without it "
            "(from three source centers up; as many trainings more).",
        ),
    ] = Selection.SOURCE_VAL,
    protocol: options.ProtocolOrDefault = None,
    preset: options.Preset = "demo",
    data: options.Data = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the trainings and of the search.")] = 0,
    devices: options.Devices = 1,
    rank_timeout: options.RankTimeout = None,
    device: options.Device = None,
    threads: options.Threads = None,
    settings: options.Set = None,
    runs: options.Runs = options.DEFAULT_RUNS,
    cache: options.Cache = options.DEFAULT_CACHE,
    launcher: options.LauncherName = options.Launcher.local,
    slurm: options.Slurm = None,
    dry_run: options.DryRun = False,
    no_mlflow: options.NoMlflow = False,
) -> None:
    """Search the settings of one method on the source centers: its own, learning rate, weight decay and strength of the augmentation. What
    --set fixes is not searched. The same call goes on where an earlier one stopped; with more --trials it goes further."""
    from dgbench.launch.phantom import ensure_data
    from dgbench.launch.plan import RunRequest
    from dgbench.store.folder import probe_writable
    from dgbench.tuning.study import plan_study, resolve_study, run_study

    request = RunRequest(
        method=method,
        heldout=heldout,
        protocol=options.protocol_name(protocol, data),
        preset=preset,
        data=data,
        seed=seed,
        devices=devices,
        rank_timeout=rank_timeout,
        device=device,
        threads=threads,
        overrides=tuple(settings or ()),
        runs=runs,
        cache=options.cache_folder(cache),
    )
    _, info, _, space, default = resolve_study(request, selection)
    if dry_run:
        from dgbench.tuning.space import rows

        typer.echo(
            f"{info.name}, held-out {heldout}: {trials} trials, selected by {selection}, the first one without changes"
        )
        options.print_rows(rows(space, default), options.ListFormat.table)
        return
    probe_writable(runs)
    ensure_data(request)
    plan = plan_study(request, trials, selection)
    if launcher is options.Launcher.slurm:
        _submit(plan, trials, slurm, mirrored=not no_mlflow)
        return
    chosen = run_study(plan, trials, lambda text: typer.echo(text, err=True))
    if not no_mlflow:
        _mirror(plan)
    _show(plan, chosen, trials)


def _submit(plan: "StudyPlan", trials: int, slurm: Path | None, *, mirrored: bool) -> None:
    """The study as one job of Slurm: this command with what it took from this machine, on a node."""
    import shlex
    from dataclasses import replace

    from dgbench.launch.slurm import SlurmConfig, submit_command

    made, asked = plan.spec.environment, plan.request
    data = None if asked.data is None else asked.data.absolute()
    there = replace(asked, device=made.device, threads=made.threads, runs=asked.runs.absolute(), data=data)
    words = [*shlex.split(there.command("tune"))[1:], "--trials", str(trials), "--cache", str(asked.cache)]
    words += shlex.split(plan.spec.selection.option)
    words += ["--rank-timeout", f"{asked.rank_timeout:g}"] if asked.rank_timeout is not None else []
    words += [] if mirrored else ["--no-mlflow"]
    line = submit_command(
        SlurmConfig.read(slurm),
        words,
        folder=plan.folder,
        title="study",
        name=f"tune-{plan.info.name}-{plan.request.heldout}-{plan.request.seed}",
        environment=plan.spec.environment,
        devices=plan.request.devices,
    )
    typer.echo(line)


def _mirror(plan: "StudyPlan") -> None:
    """Show the study in MLflow; problems are said, the study is what counts."""
    from dgbench.store.mlflow_mirror import sync

    for problem in sync(plan.request.runs, only=[], studies=[plan.folder]).problems:
        typer.echo(f"mlflow: {problem}", err=True)


def _show(plan: "StudyPlan", chosen: "TrialRow", trials: int) -> None:
    """The best trials, where all of them are, and what to do next."""
    from dataclasses import replace

    from dgbench.store.study import BEST, TRIALS, counted, read_trials

    rows = read_trials(plan.folder)
    first = [row for row in rows if counted(rows[: row.number + 1]) <= trials]
    complete = sorted(
        (row for row in first if row.state == "complete"), key=lambda row: (-(row.value or 0.0), row.number)
    )
    options.print_rows([_line(row) for row in complete[:SHOWN]], options.ListFormat.table)
    pruned, failed = (sum(row.state == state for row in first) for state in ("pruned", "failed"))
    typer.echo(f"DSC in points: {plan.spec.selection}, mean of the columns; trial 0 is the method without changes")
    typer.echo(
        f"{trials} trials: {len(complete)} complete, {pruned} pruned{f'; {failed} failed beside them' if failed else ''}; "
        f"trial {chosen.number} is selected"
    )
    typer.echo(f"all trials  {plan.folder / TRIALS}")
    typer.echo(f"run it      {replace(plan.request, config=plan.folder / BEST, overrides=()).command()}")


def _line(row: "TrialRow") -> dict[str, object]:
    stages = {name: f"{100 * stage.best_dsc:.1f}" for name, stage in row.stages.items()}
    params = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.params.items()}
    return {"trial": row.number, "DSC": f"{100 * (row.value or 0.0):.2f}", **stages, **params}
