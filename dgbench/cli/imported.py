"""``dgbench import-predictions``."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dgbench.cli import options
from dgbench.errors import DgbenchError


def import_predictions(
    folder: Annotated[
        Path, typer.Argument(help="Masks: one .nii.gz per case of the held-out center, named as its labels.")
    ],
    name: Annotated[str, typer.Option("--name", help="What the row is called.")],
    heldout: Annotated[str, typer.Option("--heldout", help="The center that the masks are of.")],
    protocol: options.ProtocolOrDefault = None,
    preset: options.Preset = "bench",
    data: options.Data = None,
    seed: Annotated[int, typer.Option("--seed", help="Tells several trainings of one system apart.")] = 0,
    title: Annotated[str | None, typer.Option("--title", help="The system in words.")] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Values in the masks that mean the tumor, such as 1; default: the protocol's."),
    ] = None,
    runs: options.Runs = options.DEFAULT_RUNS,
    cache: options.Cache = options.DEFAULT_CACHE,
) -> None:
    """Judge the masks of any system on a held-out center; they form a section of their own and are never ranked with trained rows."""
    from dgbench.launch.imported import import_folder
    from dgbench.launch.plan import RunRequest
    from dgbench.store.folder import probe_writable

    request = RunRequest(
        method="erm",
        heldout=heldout,
        protocol=options.protocol_name(protocol, data),
        preset=preset,
        data=data,
        seed=seed,
        device="cpu",
        runs=runs,
        cache=options.cache_folder(cache),
    )
    probe_writable(runs)
    run = import_folder(folder, request, name=name, title=title, target=_target(target))
    rows = run.cases()
    defined = rows["dsc"].dropna()
    typer.echo(
        f"{name}, {heldout}: {len(rows)} cases, mean DSC {100 * defined.mean():.1f} over {len(defined)} (imported, not trained here)"
    )
    typer.echo(f"run folder  {run.path}")
    where = [] if runs == options.DEFAULT_RUNS else ["--runs", str(runs)]
    table = ["dgbench", "leaderboard", "--protocol", request.protocol, "--preset", preset, *where]
    typer.echo(f"table       {shlex.join(table)}")


def _target(text: str | None) -> tuple[int, ...]:
    """``--target`` as numbers."""
    if text is None:
        return ()
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = (0,)
    if min(values) < 1 or max(values) > 255:
        raise DgbenchError(f"--target {text!r}: expected label values from 1 to 255, such as 1 or 1,2")
    return values
