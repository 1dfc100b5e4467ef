"""A compiled leaderboard as a folder of HTML files."""

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

import dgbench
from dgbench.leaderboard.figures.board import Options
from dgbench.leaderboard.page import cases as case_rooms
from dgbench.leaderboard.page.board import board
from dgbench.leaderboard.page.facts import evidence_words, table_facts, table_title
from dgbench.leaderboard.page.folder import Site, check_folder, file_name, replacing_folder
from dgbench.leaderboard.page.gallery import LARGEST, Choose, Painter, counted_runs
from dgbench.leaderboard.page.methods import method_pages
from dgbench.leaderboard.published import Published
from dgbench.leaderboard.results import Compiled, Table
from dgbench.leaderboard.sheets import BANNERS, NOTES, Sheet, printable
from dgbench.leaderboard.statistics_sheets import statistics_sheets
from dgbench.leaderboard.tables import (
    cost_sheet,
    detection_sheet,
    imported_sheet,
    missing_sheet,
    published_sheet,
)
from dgbench.protocol import Protocol
from dgbench.registry import discover

POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; base-uri 'none'; form-action 'none'"
)
"""The content-security-policy of every page: nothing from elsewhere, nothing inline."""
STATIC = ("page.css", "page.js")


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written; ``cases`` says how many case pages there are, or why there are none."""

    index: Path
    methods: int
    cases: str


def write_page(
    compiled: Compiled,
    out: Path,
    *,
    root: Path,
    protocol: Protocol,
    published: Published | None = None,
    cases: bool | None = None,
    figures: bool | None = False,
    choose: Choose = lambda _: Options(),
) -> Written:
    """Write the page of ``compiled`` into ``out``, complete or not at all.

    Args:
        compiled: from :func:`dgbench.leaderboard.compile.compile_runs`.
        out: a new or empty folder, or one that holds a page and nothing else: it is replaced.
        root: the runs folder that was compiled, for the cases and their slices.
        protocol: the protocol that was compiled.
        published: reported numbers for a section of their own.
        cases: whether to write a page per case; by default for up to :data:`dgbench.leaderboard.page.cases.LARGEST` cases × rows.
        figures: whether to draw the figures of each table and of each row; None: for up to
            :data:`dgbench.leaderboard.page.gallery.LARGEST` runs.
        choose: the options of figures, by their board.

    Raises:
        DgbenchError: ``out`` holds other files or cannot be written.
    """
    check_folder(out)
    scores, words = _wanted_cases(compiled, root, protocol, cases)
    environment = _environment()
    environment.globals |= {
        "banner": BANNERS[compiled.kind],
        "kind": compiled.kind,
        "protocol": compiled.protocol,
        "policy": POLICY,
        "version": dgbench.__version__,
        "case_words": words,
        "figure_words": _no_figures(compiled, figures),
    }
    with replacing_folder(out) as site:
        for name in STATIC:
            site.write(
                f"static/{name}", resources.files("dgbench.leaderboard.page").joinpath("static", name).read_bytes()
            )
        centers = case_rooms.cases_by_center(scores)
        painter = None
        if not environment.globals["figure_words"]:
            painter = Painter(compiled, root, protocol, site, choose)
        site.write("index.html", _index(environment, compiled, published, centers, painter))
        pages = method_pages(compiled, discover(), painter.of_row if painter else None)
        template = environment.get_template("method.html")
        for page in pages:
            text = template.render(page=page, centers=_mine(page.name, compiled, scores), up="../")
            site.write(f"methods/{file_name(page.name)}.html", text)
        count = _write_cases(environment, compiled, root, scores, site)
    return Written(index=out / "index.html", methods=len(pages), cases=f"{count} case pages" if count else words)


def _no_figures(compiled: Compiled, wanted: bool | None) -> str:
    """Why there are no figures; empty where there are."""
    runs = counted_runs(compiled)
    if wanted is None and runs > LARGEST:
        return f"no figures: {runs:,} runs are more than {LARGEST} (--figures draws them all the same)"
    return "no figures: left out with --no-figures" if wanted is False else ""


def _wanted_cases(
    compiled: Compiled, root: Path, protocol: Protocol, wanted: bool | None
) -> tuple[case_rooms.Scores, str]:
    """The scores of all cases, or none and one line that says why."""
    size = case_rooms.size(compiled)
    if wanted is False:
        return {}, "no case pages: left out with --no-cases"
    if wanted is None and size > case_rooms.LARGEST:
        return (
            {},
            f"no case pages: {size:,} cases × rows are more than {case_rooms.LARGEST:,} (--cases writes them all the same)",
        )
    return case_rooms.case_scores(compiled, root, protocol), "no case pages: no case has been evaluated"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dgbench.leaderboard.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {
        "file": file_name,
        "case_file": case_rooms.case_file,
        "sheet_rows": _sheet_rows,
    }
    return environment


def _sheet_rows(sheet: Sheet) -> list[list[tuple[str, str]]]:
    """The cells of a sheet with the name of their kind: number, code, notes or text."""

    def kind(column: str) -> str:
        return (
            "number"
            if column in sheet.numeric
            else "code"
            if column in sheet.code
            else (column == NOTES and "notes") or "text"
        )

    return [[(kind(column), cell) for column, cell in zip(sheet.columns, row, strict=True)] for row in sheet.rows]


def _index(
    environment: jinja2.Environment,
    compiled: Compiled,
    published: Published | None,
    centers: dict[str, list[str]],
    painter: Painter | None,
) -> str:
    tables = [
        {
            "title": table_title(compiled, table),
            "facts": table_facts(compiled, table),
            "evidence": evidence_words(table),
            "board": board(table),
            "holes": missing_sheet(table) if table.missing else None,
            "figures": painter.of_table(table) if painter else None,
            **_sheets(table),
        }
        for table in compiled.tables
    ]
    reported = published_sheet(published, compiled.view.setting) if published is not None else None
    return environment.get_template("index.html").render(
        tables=tables, reported=reported, problems=compiled.problems, centers=centers, start=compiled.start, up=""
    )


def _sheets(table: Table) -> dict[str, Any]:
    statistics = statistics_sheets(table, table.statistics) if table.statistics else []
    if statistics:  # the grade stands above the table already
        standings = ", and standings" if table.ranked else ""
        titled = (f"Differences to {table.baseline}, center by center{standings}", *statistics[0].heading[1:])
        statistics[0] = replace(statistics[0], heading=titled)
    return {
        "notes": table.statistics.notes if table.statistics else (),
        "details": [
            *statistics,
            *([detection_sheet(table)] if any(row.complete and not row.imported for row in table.rows) else []),
            *([cost_sheet(table)] if any(row.cost for row in table.rows) else []),
            *([imported_sheet(table)] if any(row.imported for row in table.rows) else []),
        ],
    }


def _mine(method: str, compiled: Compiled, scores: case_rooms.Scores) -> dict[str, list[str]]:
    """The cases by center that a counted run of the method was judged on."""
    folders = {
        folder
        for table in compiled.tables
        for row in table.rows
        if row.method == method
        for result in row.centers.values()
        for run in result.runs.values()
        for folder in run.folders
    }
    return case_rooms.cases_by_center({folder: scores[folder] for folder in folders if folder in scores})


def _write_cases(
    environment: jinja2.Environment, compiled: Compiled, root: Path, scores: case_rooms.Scores, site: Site
) -> int:
    template = environment.get_template("case.html")
    count = 0
    for page in case_rooms.case_pages(compiled, root, scores, site):
        site.write(page.file, template.render(page=page, up="../../"))
        count += 1
    return count
