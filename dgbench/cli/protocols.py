"""``dgbench protocols``."""

import json
from typing import Annotated

import typer

from dgbench.cli import options

app = typer.Typer(help="The scientific contracts that runs follow.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_protocols(form: options.Format = options.ListFormat.table) -> None:
    """Every shipped protocol."""
    from dgbench.protocol import load_protocol, protocol_names

    rows = []
    for name in protocol_names():
        protocol = load_protocol(name)
        row = {"name": name, "version": protocol.version, "kind": protocol.kind, "centers": ", ".join(protocol.centers)}
        rows.append({**row, "presets": ", ".join(protocol.presets), "title": protocol.title})
    options.print_rows(rows, form)


@app.command("show")
def show(name: Annotated[str, typer.Argument()], form: options.Format = options.ListFormat.table) -> None:
    """One protocol in full, as YAML (or JSON)."""
    import yaml

    from dgbench.protocol import load_protocol

    content = load_protocol(name).model_dump(mode="json")
    if form is options.ListFormat.json:
        typer.echo(json.dumps(content, indent=2))
    else:
        typer.echo(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120).rstrip())
