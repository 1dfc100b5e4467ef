"""``dgbench plan`` and ``dgbench sweep``: many runs as one graph of jobs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgbench.cli import options
from dgbench.errors import DgbenchError

if TYPE_CHECKING:
    from dgbench.launch.graph import Graph
    from dgbench.launch.local import Outcome
    from dgbench.launch.plan import RunRequest
    from dgbench.protocol import Protocol


def plan(
    method: options.Methods,
    heldout: options.Heldouts,
    seeds: options.Seeds = 1,
    protocol: options.ProtocolOrDefault = None,
    preset: options.Preset = "demo",
    data: options.Data = None,
    devices: options.Devices = 1,
    device: options.Device = None,
    threads: options.Threads = None,
    settings: options.Set = None,
    configs: options.Configs = None,
    runs: options.Runs = options.DEFAULT_RUNS,
    cache: options.Cache = options.DEFAULT_CACHE,
    jobs: Annotated[bool, typer.Option("--jobs", help="Every job with its name, not only a line per run.")] = False,
    form: options.Format = options.ListFormat.table,
) -> None:
    """What a sweep with the same options would do: the jobs that are done, shared and missing, and what they will cost. Starts nothing."""
    from dgbench.launch.plan import RunRequest

    every = RunRequest(
        method=method,
        heldout=heldout,
        protocol=options.protocol_name(protocol, data),
        preset=preset,
        data=data,
        devices=devices,
        device=device,
        threads=threads,
        overrides=tuple(settings or ()),
        runs=runs,
        cache=options.cache_folder(cache),
    )
    print_plan(requests_of(every, seeds, configs or ()), jobs=jobs, form=form)


def sweep(
    method: options.Methods,
    heldout: options.Heldouts,
    seeds: options.Seeds = 1,
    protocol: options.ProtocolOrDefault = None,
    preset: options.Preset = "demo",
    data: options.Data = None,
    devices: options.Devices = 1,
    rank_timeout: options.RankTimeout = None,
    device: options.Device = None,
    threads: options.Threads = None,
    settings: options.Set = None,
    configs: options.Configs = None,
    runs: options.Runs = options.DEFAULT_RUNS,
    cache: options.Cache = options.DEFAULT_CACHE,
    gpus: options.Gpus = None,
    jobs_per_gpu: options.JobsPerGpu = 1,
    jobs: options.Jobs = 1,
    launcher: options.LauncherName = options.Launcher.local,
    slurm: options.Slurm = None,
    fresh: options.Fresh = False,
    dry_run: options.DryRun = False,
    no_mlflow: options.NoMlflow = False,
) -> None:
    """Every method on every held-out center with every seed, as one graph of jobs: what runs share is done once, what is done is not done
    again. A failed job takes those that need it with it and no others; a cell that a method cannot fill is called n/a. The same call goes
    on where an earlier one stopped."""
    from dgbench.launch.plan import RunRequest

    every = RunRequest(
        method=method,
        heldout=heldout,
        protocol=options.protocol_name(protocol, data),
        preset=preset,
        data=data,
        devices=devices,
        rank_timeout=rank_timeout,
        device=device,
        threads=threads,
        overrides=tuple(settings or ()),
        runs=runs,
        cache=options.cache_folder(cache),
    )
    requests = requests_of(every, seeds, configs or ())
    if dry_run:
        print_plan(requests)
        return
    graph = graph_of(requests, draw=True)
    if fresh:
        from dgbench.launch.execute import forget

        for one in graph.plans:
            forget(one)
    else:
        from dgbench.launch.adopt import take_over_trials

        for one in graph.plans:
            take_over_trials(one)
    launch(graph, launcher, slurm, gpus=gpus, jobs_per_gpu=jobs_per_gpu, jobs=jobs, mirrored=not no_mlflow)


def print_plan(
    requests: "list[RunRequest]", *, jobs: bool = False, form: options.ListFormat = options.ListFormat.table
) -> None:
    """Print what a sweep of ``requests`` would do: a line for each run, or with ``jobs`` for each job."""
    from dgbench.launch.estimate import summary
    from dgbench.launch.phantom import is_drawn

    if not all(is_drawn(request) for request in _possible(requests)[:1]):
        typer.echo(
            f"{len(requests)} runs of the phantom, which is not drawn yet: `dgbench sweep` draws it first, then each run has a key"
        )
        return
    graph = graph_of(requests, draw=False)
    made = summary(graph)
    options.print_rows(made.jobs if jobs else made.runs, form)
    if form is options.ListFormat.table:
        for line in made.lines:
            typer.echo(line)


def requests_of(every: "RunRequest", seeds: int, configs: Sequence[Path]) -> "list[RunRequest]":
    """The runs of a sweep in their order: seeds first, so that complete tables grow evenly, then methods, then centers. Each is ``every``
    with one of the methods and held-out centers that this names, and with what ``configs`` hold for them."""
    from dgbench.launch.settings import assign_configs
    from dgbench.protocol import load_protocol
    from dgbench.registry import find_method

    heldouts = heldouts_of(load_protocol(every.protocol), every.heldout)
    names = {name: find_method(name).name if configs else name for name in methods_of(every.method)}
    chosen = assign_configs(configs, [(name, one) for name in names.values() for one in heldouts])
    return [
        replace(every, method=name, heldout=one, seed=seed, config=chosen[names[name], one])
        for seed in range(seeds)
        for name in names
        for one in heldouts
    ]


def methods_of(text: str) -> list[str]:
    """What ``--method`` names: methods with commas, or all that are registered and not broken."""
    from dgbench.registry import BrokenMethod, discover

    if text == "all":
        return [entry.name for entry in discover().values() if not isinstance(entry, BrokenMethod)]
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def heldouts_of(protocol: "Protocol", text: str) -> list[str]:
    """What ``--heldout`` names: centers with commas or all of them, in-domain their folds, or single folds."""
    names = list(protocol.centers) if text == "all" else [name.strip() for name in text.split(",")]
    return [one for name in names for one in (protocol.heldouts_of(name) if name in protocol.centers else (name,))]


def launch(
    graph: "Graph",
    launcher: options.Launcher,
    slurm: Path | None,
    *,
    gpus: str | None,
    jobs_per_gpu: int,
    jobs: int,
    mirrored: bool,
) -> None:
    """Do the jobs of ``graph`` here, or submit them. Raises DgbenchError where some failed, after all the others are done."""
    if launcher is options.Launcher.slurm:
        from dgbench.launch.slurm import SlurmConfig, submit

        for line in submit(graph, SlurmConfig.read(slurm), mirrored=mirrored):
            typer.echo(line)
        return
    from concurrent.futures import ThreadPoolExecutor

    from dgbench.cli.board import board
    from dgbench.cli.run import mirror
    from dgbench.launch.local import run_graph, slots_for

    slots = slots_for(graph, gpus=gpus, jobs_per_gpu=jobs_per_gpu, jobs=jobs)
    with (
        board() as told,
        ThreadPoolExecutor(1) as beside,
    ):  # the mirror takes seconds in which no slot should stand empty

        def ended(job: Any) -> None:
            if job.training is None and job.part is job.plan.own and mirrored:
                beside.submit(mirror, job.plan)

        outcome = run_graph(graph, slots, told, ended)
    _report(graph, outcome)


def graph_of(requests: "list[RunRequest]", *, draw: bool) -> "Graph":
    """The graph of ``requests``; what can be wrong with any of them is said before anything starts."""
    from dgbench.cli.run import warnings_of
    from dgbench.launch.graph import build_graph
    from dgbench.launch.phantom import ensure_data
    from dgbench.store.folder import probe_writable

    possible = _possible(requests)
    if draw:
        probe_writable(requests[0].runs)
        for request in possible[:1]:  # they share the data
            ensure_data(request)
    graph = build_graph(requests)
    for cell in graph.cells:
        if cell.plan is None:
            typer.echo(f"n/a: {cell.reason}", err=True)
    for line in dict.fromkeys(line for made in graph.plans for line in warnings_of(made)):
        typer.echo(line, err=True)
    return graph


def _possible(requests: "list[RunRequest]") -> "list[RunRequest]":
    """Those whose method can fill its cell, as far as can be told without data. Raises DgbenchError for what is wrong with any."""
    from contextlib import suppress

    from dgbench.errors import NotApplicable
    from dgbench.launch.plan import resolve_request

    possible = []
    for request in requests:
        with suppress(NotApplicable):  # its reason is said when the graph is built
            resolve_request(request)
            possible.append(request)
    return possible


def _report(graph: "Graph", outcome: "Outcome") -> None:
    """How the runs stand; DgbenchError where some failed or were cancelled."""
    lost = {}
    for made in graph.plans:
        reasons = [
            f"{word}: {reasons[job]}"
            for job in (job.id for job in graph.jobs.values() if job.plan.own.folder == made.own.folder)
            for word, reasons in (("failed", outcome.failed), ("cancelled", outcome.cancelled))
            if job in reasons
        ]
        if reasons:
            lost[made.request.command()] = reasons[0]
    done = len(graph.plans) - len(lost)
    typer.echo(
        f"{done} of {len(graph.plans)} runs are done: {len(outcome.worked)} jobs now, "
        f"{len(outcome.done) - len(outcome.worked)} earlier",
        err=True,
    )
    for command, reason in lost.items():
        typer.echo(f"{reason}\n  {command}", err=True)
    if lost:
        raise DgbenchError(f"{len(lost)} of {len(graph.plans)} runs are not done; first: {next(iter(lost))}")
