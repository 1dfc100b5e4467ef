"""``dgbench run``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgbench.cli import options
from dgbench.cli.console import show

if TYPE_CHECKING:
    from dgbench.launch.plan import RunPlan, RunRequest


def run(
    method: Annotated[str, typer.Option("--method", help="Method name, or package.module:Class.")],
    heldout: Annotated[
        str,
        typer.Option(
            "--heldout",
            help="The center that training never sees; in-domain a fold: RENJI-fold0.",
        ),
    ],
    protocol: options.ProtocolOrDefault = None,
    preset: options.Preset = "demo",
    data: options.Data = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the run.")] = 0,
    devices: options.Devices = 1,
    rank_timeout: options.RankTimeout = None,
    device: options.Device = None,
    threads: options.Threads = None,
    settings: options.Set = None,
    config: options.Config = None,
    runs: options.Runs = options.DEFAULT_RUNS,
    cache: options.Cache = options.DEFAULT_CACHE,
    fresh: options.Fresh = False,
    dry_run: options.DryRun = False,
    no_mlflow: options.NoMlflow = False,
) -> None:
    """Train one method on all centers but one and judge it there. The same call goes on where an earlier one stopped."""
    from dgbench.launch.plan import RunRequest

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
        config=config,
        runs=runs,
        cache=options.cache_folder(cache),
    )
    if dry_run:
        _show_plan(request)
        return
    plan = _execute(request, fresh=fresh)
    if not no_mlflow:
        mirror(plan)
    _show_result(plan)


def _execute(request: "RunRequest", *, fresh: bool) -> "RunPlan":
    from dgbench.launch.adopt import take_over_trials
    from dgbench.launch.execute import execute
    from dgbench.launch.phantom import ensure_data
    from dgbench.launch.plan import plan_run, resolve_request
    from dgbench.store.folder import probe_writable

    resolve_request(request)
    probe_writable(request.runs)
    ensure_data(request)
    plan = plan_run(request)
    for warning in warnings_of(plan):
        _say(warning)
    if not fresh:
        take_over_trials(plan)
    if not execute(plan, fresh=fresh, say=_say):
        _say("this run is done already; showing the stored result")
    return plan


def warnings_of(plan: "RunPlan") -> list[str]:
    """What a user should know before a run starts, a line each."""
    from dgbench.data.splits import MIN_CASES_FOR_VALIDATION, without_validation
    from dgbench.processor import has_bf16

    lines = [
        f"{center} has fewer than {MIN_CASES_FOR_VALIDATION} cases: all of them train, none validates"
        for center in without_validation(plan.split)
    ]
    machine, preset = plan.own.spec.environment, plan.request.preset
    if machine.device == "cpu" and machine.precision == "bf16" and has_bf16() is False:
        lines.append(
            f"preset {preset} computes in bf16, for which this processor has no instructions: products are computed in fp32 and "
            "rounded — --set preset.precision.cpu=fp32 is ranked as well"
        )
    return lines


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _show_plan(request: "RunRequest") -> None:
    from dgbench.launch.plan import describe_plan

    for line in describe_plan(request):
        typer.echo(line)


def mirror(plan: "RunPlan") -> None:
    """Show the run in MLflow, unless it is there already; problems are said, the run is what counts."""
    from dgbench.store.mlflow_mirror import mirrored, sync

    folders = [folder.folder for folder in plan.folders]
    if all(mirrored(folder) for folder in folders):
        return
    report = sync(plan.request.runs, only=folders)
    for problem in report.problems:
        _say(f"mlflow: {problem}")


def _show_result(plan: "RunPlan") -> None:
    import pandas as pd

    from dgbench.leaderboard.run_table import run_table
    from dgbench.leaderboard.sheets import to_rich
    from dgbench.store.folder import RunFolder

    folder = plan.own.folder
    cases = pd.concat(
        [RunFolder(plan.request.runs, part.folder, part.spec).cases() for part in plan.folders], ignore_index=True
    )
    table = run_table(cases, spec=plan.own.spec, protocol=plan.resolved.protocol)
    show(lambda width: to_rich([table], width))
    typer.echo(f"run folder  {folder}")
    overlay = folder / "figures" / "overlay.png"
    if overlay.is_file():
        typer.echo(f"overlay     {overlay}")
    typer.echo(
        f"look at it  dgbench mlflow ui{'' if plan.request.runs == Path('runs') else f' --runs {plan.request.runs}'}"
    )
