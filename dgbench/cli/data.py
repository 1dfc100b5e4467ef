"""``dgbench data``."""

from pathlib import Path
from typing import Annotated

import typer

from dgbench.cli import options
from dgbench.errors import DgbenchError, suggest

app = typer.Typer(help="Phantom and data folders.", no_args_is_help=True, rich_markup_mode=None)


@app.command("phantom")
def phantom(
    directory: Annotated[Path, typer.Argument(help="Folder to create.")],
    cases: Annotated[int, typer.Option("--cases", min=1, help="Cases per center.")] = 12,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the phantom.")] = 0,
    size: Annotated[str, typer.Option("--size", help="small (coarse grids) or full (paper-like grids).")] = "small",
    shift: Annotated[
        list[str] | None,
        typer.Option("--shift", metavar="AXIS=STRENGTH", help="Strength of a shift axis, 0 to 1 and beyond."),
    ] = None,
) -> None:
    """Draw the multi-center CT phantom: four hospitals whose differences have names and strengths."""
    from dgbench.data.phantom import CENTERS, PhantomRecipe, write_phantom
    from dgbench.launch.progress import progress

    strengths = {}
    for text in shift or ():
        axis, _, value = text.partition("=")
        try:
            strengths[axis] = float(value)
        except ValueError:
            raise DgbenchError(f"--shift {text!r}: expected axis=strength, e.g. noise=0.5") from None
    if size not in ("small", "full"):
        raise DgbenchError(f"unknown --size {size!r}{suggest(size, ('small', 'full'))}")
    recipe = PhantomRecipe(size=size, cases=cases, seed=seed, strengths=strengths)  # type: ignore[arg-type]
    total = cases * len(CENTERS)
    done = 0
    with progress("drawing the phantom") as report:

        def on_case(center: str, _index: int) -> None:
            nonlocal done
            done += 1
            report(done, total, center)

        write_phantom(recipe, directory, on_case=on_case)
    typer.echo(f"{total} cases of {', '.join(CENTERS)} in {directory}")


@app.command("check")
def check(
    directory: Annotated[Path, typer.Argument(help="Folder with one folder per center.")],
    protocol: options.Protocol = "phantom",
    form: options.Format = options.ListFormat.table,
) -> None:
    """Read every case once and report everything that is wrong, in one pass; exit code 2 if there are errors."""
    from dgbench.data.check import check_data
    from dgbench.launch.progress import progress
    from dgbench.protocol import load_protocol

    with progress("checking") as report:
        result = check_data(
            directory, load_protocol(protocol), on_case=lambda case_id, done, total: report(done, total, case_id)
        )
    if form is options.ListFormat.json:
        typer.echo(result.to_json())
    else:
        if result.rows():
            options.print_rows(result.rows(), form)
        typer.echo(
            f"{result.cases} cases of {result.centers} centers: {result.errors} errors, {len(result.rows()) - result.errors} warnings"
        )
    raise typer.Exit(2 if result.errors else 0)


@app.command("split")
def split(
    source: Annotated[Path, typer.Argument(help="Decathlon-style folder: imagesTr, labelsTr, dataset.json.")],
    directory: Annotated[Path, typer.Argument(help="Folder to create.")],
    centers: Annotated[str, typer.Option("--centers", help="Names of the centers, separated by commas.")],
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="NAME=INT,...", help="Names of the labels; needed without a dataset.json."),
    ] = None,
    modality: Annotated[str | None, typer.Option("--modality", help="CT, MRI, …; default: as in dataset.json.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Link to the source's files instead of copying them.")] = False,
) -> None:
    """Deal the cases of one data set into centers, to try the whole path on real files. Such centers are exchangeable: no gap to close."""
    from dgbench.data.importing import split_folder

    values: dict[str, int] = {}
    for text in labels.split(",") if labels else ():
        name, _, value = text.partition("=")
        if not name.strip() or not value.strip().isdecimal():
            raise DgbenchError(
                f"--labels {labels!r}: expected name=number pairs separated by commas, e.g. pancreas=1,tumor=2"
            )
        values[name.strip()] = int(value)
    names = [name.strip() for name in centers.split(",")]
    dealt = split_folder(source, directory, names, labels=values or None, modality=modality, link=link)
    counts = ", ".join(f"{name} {len(cases)}" for name, cases in dealt.items())
    typer.echo(f"{sum(map(len, dealt.values()))} cases in {directory}: {counts}")
