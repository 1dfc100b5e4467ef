"""``dgbench methods``."""

import json
from typing import Annotated

import typer

from dgbench.cli import options

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

    info = find_method(name)
    config = info.configure()
    settings = [
        {
            "key": key,
            "default": json.dumps(value),
            "meaning": info.config.model_fields[key].description or "",
            "search": str(info.config.space.get(key, "")),
        }
        for key, value in config.model_dump(mode="json").items()
    ]
    text = card(info)
    if form is options.ListFormat.json:
        fields = ("name", "target", "title", "paper", "year", "version", "min_sources", "draws_factor")
        content = {field: getattr(info, field) for field in fields}
        typer.echo(
            json.dumps(
                {**content, "needs": sorted(info.needs), "dims": sorted(info.dims), "config": settings, "card": text},
                indent=2,
            )
        )
        return
    typer.echo(f"{info.name}: {info.title}\n{info.paper}, {info.year}\n")
    if settings:
        options.print_rows(settings, form)
        typer.echo("")
    typer.echo(text or "(no card)")
