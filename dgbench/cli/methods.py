"""``dgbench methods``."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgbench.cli import options
from dgbench.errors import DgbenchError

if TYPE_CHECKING:
    from dgbench.testing import Outcome

app = typer.Typer(help="The methods that can be run.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_methods(form: options.Format = options.ListFormat.table) -> None:
    """Every method by name; a plugin that cannot be loaded is listed with its reason."""
    from dgbench.registry import BrokenMethod, discover

    rows = [
        {"name": entry.name, "year": None, "title": None, "paper": None, "broken": entry.reason}
        if isinstance(entry, BrokenMethod)
        else {"name": entry.name, "year": entry.year, "title": entry.title, "paper": entry.paper, "broken": None}
        for entry in discover().values()
    ]
    if form is options.ListFormat.table and not any(row["broken"] for row in rows):
        rows = [{key: value for key, value in row.items() if key != "broken"} for row in rows]
    options.print_rows(rows, form)


@app.command("show")
def show(name: Annotated[str, typer.Argument()], form: options.Format = options.ListFormat.table) -> None:
    """One method: its settings with defaults and search space, and its card."""
    from dgbench.registry import card, find_method
    from dgbench.tuning.space import HARNESS, MEANINGS, describe, space_of

    info = find_method(name)
    config = info.configure()
    space = space_of(info, {})
    settings = [
        {
            "key": key,
            "default": json.dumps(value),
            "meaning": info.config.model_fields[key].description or "",
            "search": describe(space[key]) if key in space else "",
        }
        for key, value in config.model_dump(mode="json").items()
    ]
    harness = [
        {"key": key, "default": "", "meaning": f"{MEANINGS[key]} (every method)", "search": describe(domain)}
        for key, domain in HARNESS.items()
    ]
    text = card(info)
    if form is options.ListFormat.json:
        fields = ("name", "target", "title", "paper", "year", "version", "min_sources", "draws_factor", "one_device")
        content = {field: getattr(info, field) for field in fields}
        typer.echo(
            json.dumps(
                {
                    **content,
                    "needs": sorted(info.needs),
                    "dims": sorted(info.dims),
                    "config": settings,
                    "tuning": harness,
                    "card": text,
                },
                indent=2,
            )
        )
        return
    typer.echo(f"{info.name}: {info.title}\n{info.paper}, {info.year}\n")
    if info.one_device is not None:
        typer.echo(f"one device only: {info.one_device}\n")
    options.print_rows([*settings, *harness], form)
    typer.echo("")
    typer.echo(text or "(no card)")


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="A Python name: letters, digits and _.")],
    folder: Annotated[Path, typer.Option("--dir", help="Where the plugin's folder is made.")] = Path(),
) -> None:
    """Write a plugin that runs as it is: entry and settings, class, card."""
    from dgbench.cli.plugins import write_plugin

    path, method = write_plugin(name, folder, datetime.now(UTC).year)
    typer.echo(f"wrote {path}: __init__.py (entry, settings), method.py (the class), README.md (the card)")
    typer.echo(f"check it:  dgbench methods check {path}")
    where = "" if folder == Path() or method == name else f"cd {folder} && "
    typer.echo(f"run it:    {where}dgbench run --method {method} --heldout RENJI --preset tiny")


@app.command("check")
def check(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="NAME|PATH...", help="Names, module:Class, plugin folders or files; or `all`."),
    ],
) -> None:
    """Run the conformance suite: does the method keep the contract? Exit code 2 if not."""
    from rich.console import Console

    from dgbench.cli.plugins import find_plugin
    from dgbench.info import MethodInfo
    from dgbench.registry import discover
    from dgbench.testing import CHECKS, check_method

    names = [name for name, found in discover().items() if isinstance(found, MethodInfo)]
    infos = [find_plugin(target) for target in (names if targets == ["all"] else targets)]
    console = Console(soft_wrap=True, highlight=False)
    failed = []
    for info in infos:
        console.print(f"{info.name}: {info.title}", markup=False)

        def report(outcome: "Outcome") -> None:
            words = outcome.check.replace("_", " ")
            verdict = "ok" if outcome.problem is None else f"FAILED: {outcome.problem}"
            console.print(f"  {words:32} {outcome.seconds:5.1f} s  {verdict}", markup=False)

        outcomes = check_method(info, report=report)
        broken = [outcome.check for outcome in outcomes if outcome.problem is not None]
        console.print(f"  {len(CHECKS) - len(broken)} of {len(CHECKS)} checks passed", markup=False)
        if broken:
            failed.append(f"{info.name} ({', '.join(broken)})")
    if failed:
        raise DgbenchError(f"does not keep the contract: {'; '.join(failed)}")
