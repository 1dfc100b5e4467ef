"""``dgbench shift``."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgbench.cli import options
from dgbench.cli.console import show
from dgbench.errors import DgbenchError

if TYPE_CHECKING:
    from dgbench.launch.plan import RunPlan, RunRequest
    from dgbench.leaderboard.response import Response


def shift(
    method: Annotated[list[str], typer.Option("--method", help="Method names, separated by commas; may be repeated.")],
    axis: Annotated[
        str,
        typer.Option(
            "--axis", help="thickness, kernel, noise, contrast, calibration, lesion or annotation: the one that grows."
        ),
    ],
    strengths: Annotated[
        str, typer.Option("--strengths", metavar="S,...", help="Strengths of the axis; 1 is the full shift.")
    ] = "0,0.5,1,1.5",
    heldout: Annotated[str, typer.Option("--heldout", help="Held-out centers, separated by commas, or all.")] = "all",
    preset: options.Preset = "demo",
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the runs; default: 0.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Seeds 0 to N-1 instead of one.")] = None,
    cases: Annotated[
        int | None, typer.Option("--cases", min=1, help="The first N cases of each center; default: all of the preset.")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Train the runs that are missing.")] = False,
    device: options.Device = None,
    threads: options.Threads = None,
    settings: options.Set = None,
    runs: options.Runs = options.DEFAULT_RUNS,
    cache: options.Cache = options.DEFAULT_CACHE,
    out: Annotated[Path, typer.Option("--out", help="Folder for the figure.")] = Path("figures"),
    form: options.Format = options.ListFormat.table,
) -> None:
    """Shift response: what models trained on the protocol phantom-neutral score as one axis of the phantom grows."""
    from dgbench.launch.plan import RunRequest, resolve_request
    from dgbench.launch.shift import NEUTRAL, check_axis, neutral_strength, read_strengths, respond
    from dgbench.protocol import load_protocol

    check_axis(axis)
    wanted = read_strengths(strengths)
    if seed is not None and seeds is not None:
        raise DgbenchError("--seed names one seed and --seeds how many there are: give one of the two")
    centers = load_protocol(NEUTRAL).centers if heldout == "all" else _words(heldout)
    requests = [
        RunRequest(
            method=name,
            heldout=center,
            protocol=NEUTRAL,
            preset=preset,
            seed=number,
            device=device,
            threads=threads,
            overrides=tuple(settings or ()),
            runs=runs,
            cache=options.cache_folder(cache),
        )
        for name in _words(",".join(method))
        for center in centers
        for number in (range(seeds) if seeds is not None else (seed or 0,))
    ]
    if not requests:
        raise DgbenchError("no method or no held-out center is named")
    for request in requests:
        neutral_strength(resolve_request(request)[0], axis)
    plans = list(_trained(requests) if train else _found(requests))
    response = respond(plans, axis, wanted, cases=cases, say=_say)
    _show(response, _draw(response, out), form)


def _words(text: str) -> list[str]:
    """The words of a comma-separated list, each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _found(requests: Sequence["RunRequest"]) -> Iterator["RunPlan"]:
    from dgbench.launch.shift import require_run

    for request in requests:
        yield require_run(request)


def _trained(requests: Sequence["RunRequest"]) -> Iterator["RunPlan"]:
    """The runs, trained and evaluated where they are missing."""
    from dgbench.launch.execute import execute
    from dgbench.launch.phantom import ensure_data
    from dgbench.launch.plan import plan_run
    from dgbench.store.folder import probe_writable

    for request in requests:
        probe_writable(request.runs)
        ensure_data(request)
        plan = plan_run(request)
        execute(plan, fresh=False, say=_say)
        yield plan


def _draw(response: "Response", out: Path) -> Path:
    """The figure of ``response``, written below ``out``."""
    from dgbench.leaderboard.figures import response as figure
    from dgbench.leaderboard.figures.style import plain_settings, save

    path = out / f"shift-{response.axis}.png"
    with plain_settings():
        save(figure.draw(response).figure, path, "png", f"Shift response, axis {response.axis}")
    return path


def _show(response: "Response", figure: Path, form: options.ListFormat) -> None:
    from dgbench.leaderboard.response import to_json, to_sheet

    if form is options.ListFormat.json:
        content = {**to_json(response), "figure": str(figure)}
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    from dgbench.leaderboard.sheets import to_rich

    show(lambda width: to_rich([to_sheet(response)], width))
    typer.echo(f"figure  {figure}")
