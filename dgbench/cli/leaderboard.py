"""``dgbench leaderboard``."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgbench.cli import options
from dgbench.cli.console import show
from dgbench.errors import DgbenchError, suggest

if TYPE_CHECKING:
    from dgbench.leaderboard.sheets import Sheet


class TableFormat(StrEnum):
    """How the leaderboard is printed."""

    table = "table"
    md = "md"
    csv = "csv"
    latex = "latex"
    json = "json"
    html = "html"


def leaderboard(
    protocol: options.Protocol = "phantom",
    preset: Annotated[
        str | None, typer.Option("--preset", help="Only this preset; default: all, each in its own table.")
    ] = None,
    runs: options.Runs = options.DEFAULT_RUNS,
    form: Annotated[
        TableFormat, typer.Option("--format", help="table, md, csv, latex, json, or html (with --out).")
    ] = TableFormat.table,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the page (--format html); replaced as a whole.")
    ] = None,
    cases: Annotated[
        bool | None,
        typer.Option(
            "--cases/--no-cases", help="Page: one for each held-out case; default: unless there are very many."
        ),
    ] = None,
    figures: Annotated[
        bool | None,
        typer.Option("--figures/--no-figures", help="Page: with figures; default: unless there are very many runs."),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option("--table", help="The counterpart of a table of the paper: II to VI; in all its settings."),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Show the paper's reported numbers beside; never ranked together.")
    ] = False,
    setting: Annotated[
        str | None,
        typer.Option(
            "--setting",
            help="F-Seg (official, default), C-Seg, or the oracle settings C-Mask and F-Mask; not with --table.",
        ),
    ] = None,
    threshold: Annotated[
        str,
        typer.Option(
            "--threshold",
            help="Threshold of the final mask: a number (0.5 is official), source-tuned, or as an oracle the best on the target (oracle) "
            "or the paper's per center (paper).",
        ),
    ] = "0.5",
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="source-val (official) or last-step.")] = "source-val",
    seeds: options.FirstSeeds = None,
    policy: Annotated[
        str, typer.Option("--policy", help="How undefined values count: default (official) or paper.")
    ] = "default",
) -> None:
    """Compile finished runs into a ranking; what is missing is listed and never averaged around."""
    from dgbench.cli.lesion_types import lesion_types
    from dgbench.leaderboard import export, tables
    from dgbench.leaderboard.compile import compile_runs, compile_views
    from dgbench.leaderboard.figures.board import Options
    from dgbench.leaderboard.page.folder import check_folder
    from dgbench.leaderboard.page.site import write_page
    from dgbench.leaderboard.paper_tables import PaperTable, in_domain_pair, paper_table, paper_table_sheets
    from dgbench.leaderboard.published import load_published
    from dgbench.leaderboard.records import OFFICIAL, View
    from dgbench.leaderboard.results import Compiled
    from dgbench.leaderboard.thresholds import OFFICIAL_THRESHOLD, parse_threshold
    from dgbench.processor import available_cores
    from dgbench.protocol import CHECKPOINTS, Protocol, load_protocol

    if form is TableFormat.html and out is None:
        raise DgbenchError("--format html: name the folder of the page with --out DIR")
    if form is not TableFormat.html and (out is not None or cases is not None or figures is not None):
        option = "--out" if out is not None else "--cases/--no-cases" if cases is not None else "--figures/--no-figures"
        raise DgbenchError(f"{option}: belongs to --format html, not to {form}")
    contract, held_out = load_protocol(protocol), None
    if table is not None and table.upper() == "IV":
        contract, held_out = in_domain_pair(contract)
    if preset is not None and preset not in contract.presets:
        raise DgbenchError(
            f"unknown preset {preset!r} for protocol {contract.name!r}{suggest(preset, contract.presets)}"
        )
    if setting is not None and table is not None:
        raise DgbenchError(
            f"--setting {setting}: --table {table} shows the settings of the paper's table — leave one out"
        )
    setting = OFFICIAL.setting if setting is None else setting
    for option, chosen, known in (("setting", setting, contract.settings), ("checkpoint", checkpoint, CHECKPOINTS)):
        if chosen not in known:
            raise DgbenchError(
                f"--{option} {chosen!r} is unknown to protocol {contract.name!r}{suggest(chosen, known)}"
            )
    options.check_runs(runs, contract)
    view = View(setting=setting, threshold=parse_threshold(threshold, contract), checkpoint=checkpoint, policy=policy)
    reported = load_published().beside(contract) if published else None
    if published and reported is None:
        typer.echo(f"nothing is published for protocol {contract.name}", err=True)
    if table is not None:
        if form is TableFormat.html:
            raise DgbenchError(f"--table {table}: the page has tables of its own — leave --table or --format html out")
        wanted = paper_table(table.upper(), contract)
        if wanted.name == "II" and view.threshold != OFFICIAL_THRESHOLD:
            raise DgbenchError(f"--table II --threshold {threshold}: pancreas masks are always taken at 0.5")

        def compiled_in(protocol: Protocol, wanted: PaperTable) -> dict[str, Compiled]:
            views = [replace(view, setting=setting) for setting in wanted.settings]
            found = compile_views(
                runs,
                views,
                protocol=protocol,
                preset=preset,
                seeds=seeds,
                processes=available_cores(),
                first_method=wanted.first_method,
            )
            return dict(zip(wanted.settings, found, strict=True))

        beside: list[Sheet] = []
        if held_out is not None:
            same = paper_table("III", held_out)
            beside = paper_table_sheets(same, compiled_in(held_out, same))
            beside = beside if any(sheet.rows for sheet in beside) else []
        _print(paper_table_sheets(wanted, compiled_in(contract, wanted), reported, beside), form)
        return
    if out is not None:
        check_folder(out)
    compiled = compile_runs(runs, protocol=contract, preset=preset, view=view, seeds=seeds, processes=available_cores())
    match form:
        case TableFormat.table | TableFormat.md | TableFormat.latex:
            _print(tables.leaderboard_sheets(compiled, reported), form)
        case TableFormat.csv:
            typer.echo(export.to_csv(compiled, reported), nl=False)
        case TableFormat.json:
            typer.echo(export.to_json(compiled, reported))
        case TableFormat.html:
            assert out is not None
            written = write_page(
                compiled,
                out,
                root=runs,
                protocol=contract,
                published=reported,
                cases=cases,
                figures=figures,
                choose=lambda board: Options(lesion_type=lesion_types(contract, board)),
            )
            tables_word = "1 table" if len(compiled.tables) == 1 else f"{len(compiled.tables)} tables"
            typer.echo(f"{written.index}: {tables_word}, {written.methods} method pages, {written.cases}")


def _print(sheets: "list[Sheet]", form: TableFormat) -> None:
    from dgbench.leaderboard.export import sheets_to_csv, sheets_to_json
    from dgbench.leaderboard.latex import to_latex
    from dgbench.leaderboard.sheets import to_markdown, to_rich

    match form:
        case TableFormat.md:
            typer.echo(to_markdown(sheets))
        case TableFormat.latex:
            typer.echo(to_latex(sheets))
        case TableFormat.csv:
            typer.echo(sheets_to_csv(sheets), nl=False)
        case TableFormat.json:
            typer.echo(sheets_to_json(sheets), nl=False)
        case _:
            show(lambda width: to_rich(sheets, width))
