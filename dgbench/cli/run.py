"""``dgbench run`` and ``dgbench sweep``."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgbench.cli import options
from dgbench.errors import DgbenchError, NotApplicable

if TYPE_CHECKING:
    from dgbench.launch.plan import RunPlan, RunRequest

Fresh = Annotated[bool, typer.Option("--fresh", help="Forget an earlier run of the same key and start over.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; start nothing.")]
NoMlflow = Annotated[bool, typer.Option("--no-mlflow", help="Do not mirror the run to MLflow.")]


def run(
    method: Annotated[str, typer.Option("--method", help="Method name, or package.module:Class.")],
    heldout: Annotated[str, typer.Option("--heldout", help="The center that training never sees.")],
    protocol: options.ProtocolOrDefault = None,
    preset: options.Preset = "demo",
    data: options.Data = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the run.")] = 0,
    devices: options.Devices = 1,
    device: options.Device = None,
    threads: options.Threads = None,
    settings: options.Set = None,
    runs: options.Runs = Path("runs"),
    cache: options.Cache = options.DEFAULT_CACHE,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    no_mlflow: NoMlflow = False,
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
        device=device,
        threads=threads,
        overrides=tuple(settings or ()),
        runs=runs,
        cache=options.cache_folder(cache),
    )
    if dry_run:
        _show_plan(request)
        return
    plan = _execute(request, fresh=fresh)
    if not no_mlflow:
        _mirror(plan)
    _show_result(plan)


def sweep(
    method: Annotated[str, typer.Option("--method", help="Method names, separated by commas.")],
    heldout: Annotated[str, typer.Option("--heldout", help="Held-out centers, separated by commas, or all.")],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds 0 to N-1.")] = 1,
    protocol: options.ProtocolOrDefault = None,
    preset: options.Preset = "demo",
    data: options.Data = None,
    devices: options.Devices = 1,
    device: options.Device = None,
    threads: options.Threads = None,
    settings: options.Set = None,
    runs: options.Runs = Path("runs"),
    cache: options.Cache = options.DEFAULT_CACHE,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    no_mlflow: NoMlflow = False,
) -> None:
    """Every method on every held-out center with every seed, one run after another; a failed run is reported and the others go on, a cell
    that a method cannot fill is called n/a."""
    from dgbench.launch.plan import RunRequest, resolve_request
    from dgbench.protocol import load_protocol

    name_of_protocol = options.protocol_name(protocol, data)
    centers = (
        list(load_protocol(name_of_protocol).centers)
        if heldout == "all"
        else [name.strip() for name in heldout.split(",")]
    )
    requests = [
        RunRequest(
            method=name.strip(),
            heldout=center,
            protocol=options.protocol_name(protocol, data),
            preset=preset,
            data=data,
            seed=seed,
            devices=devices,
            device=device,
            threads=threads,
            overrides=tuple(settings or ()),
            runs=runs,
            cache=options.cache_folder(cache),
        )
        for seed in range(seeds)
        for name in method.split(",")
        for center in centers
    ]
    for request in requests:
        with suppress(NotApplicable):  # said below, where its turn comes
            resolve_request(request)
    failures = []
    for index, request in enumerate(requests):
        typer.echo(f"[{index + 1}/{len(requests)}] {request.command()}", err=True)
        try:
            if dry_run:
                _show_plan(request)
                continue
            plan = _execute(request, fresh=fresh)
        except NotApplicable as reason:
            typer.echo(f"n/a: {reason}", err=True)
            continue
        except DgbenchError as error:
            typer.echo(f"failed: {error}", err=True)
            failures.append(request)
            continue
        if not no_mlflow:
            _mirror(plan)
    if failures:
        raise DgbenchError(f"{len(failures)} of {len(requests)} runs failed; first: {failures[0].command()}")


def _execute(request: "RunRequest", *, fresh: bool) -> "RunPlan":
    from dgbench.data.splits import MIN_CASES_FOR_VALIDATION, without_validation
    from dgbench.launch.environment import has_bf16
    from dgbench.launch.execute import execute
    from dgbench.launch.phantom import ensure_data
    from dgbench.launch.plan import plan_run, resolve_request
    from dgbench.store.folder import probe_writable

    resolve_request(request)
    probe_writable(request.runs)
    ensure_data(request)
    plan = plan_run(request)
    for center in without_validation(plan.split):
        _say(f"{center} has fewer than {MIN_CASES_FOR_VALIDATION} cases: all of them train, none validates")
    machine = plan.own.spec.environment
    if machine.device == "cpu" and machine.precision == "bf16" and has_bf16() is False:
        _say(
            f"preset {request.preset} computes in bf16, which this processor emulates, an order of magnitude slower than fp32 — "
            "--set preset.precision.cpu=fp32 is ranked as well"
        )
    if not execute(plan, fresh=fresh, say=_say):
        _say("this run is done already; showing the stored result")
    return plan


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _show_plan(request: "RunRequest") -> None:
    from dgbench.launch.plan import describe_plan

    for line in describe_plan(request):
        typer.echo(line)


def _mirror(plan: "RunPlan") -> None:
    from dgbench.store.mlflow_mirror import mirrored, sync

    folders = [folder.folder for folder in plan.folders]
    if all(mirrored(folder) for folder in folders):
        return
    report = sync(plan.request.runs, only=folders)
    for problem in report.problems:
        _say(f"mlflow: {problem}")


def _show_result(plan: "RunPlan") -> None:
    import pandas as pd
    from rich.console import Console

    from dgbench.leaderboard.run_table import run_table
    from dgbench.leaderboard.sheets import to_rich
    from dgbench.store.folder import RunFolder

    folder = plan.own.folder
    cases = pd.concat(
        [RunFolder(plan.request.runs, part.folder, part.spec).cases() for part in plan.folders], ignore_index=True
    )
    table = run_table(cases, spec=plan.own.spec, protocol=plan.resolved.protocol)
    Console(soft_wrap=False).print(to_rich([table]))
    typer.echo(f"run folder  {folder}")
    overlay = folder / "figures" / "overlay.png"
    if overlay.is_file():
        typer.echo(f"overlay     {overlay}")
    typer.echo(
        f"look at it  dgbench mlflow ui{'' if plan.request.runs == Path('runs') else f' --runs {plan.request.runs}'}"
    )
