"""Sheets of text: headings, a table of cells, footers; for terminals and for Markdown. A cell without a number says why."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dgbench.leaderboard import policies
from dgbench.leaderboard.results import Score

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as RichTable

BANNERS = {"phantom": "PHANTOM DATA — not patient data", "patient": "Patient data"}
REPORTED = "REPORTED in the literature on patient data — not run by dgbench, never ranked with its rows"
IN_DOMAIN = (
    "in-domain: every case is judged once, by networks trained on the other folds of its own center, on another number of cases than with "
    "the center held out; neither is a bound of the other (docs/protocol.md)"
)
UNRANKED = "this table is not ranked, so it carries no ranks, no tiers and no claim"
HEADERS = {"dsc": "DSC", "nsd": "NSD", "asd": "ASD", "hd95": "HD95", "centroid": "centroid"}
UNDEFINED = "undefined"
NOTES = "notes"
NAMES = ("method", "system")
"""Columns of names, which are never broken into lines."""
UNBROKEN = 10
"""The longest word of any other cell that is never broken; numbers are shorter."""
BLANK = "–"
"""In a row whose notes say why: not ranked, or incomplete."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Lines of text, a table of text cells, more lines.

    ``numeric`` columns are right-aligned, ``code`` columns hold commands. A column :data:`NOTES` is the last one, and then the second
    column names the row.
    """

    heading: tuple[str, ...]
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    footer: tuple[str, ...] = ()
    numeric: frozenset[str] = frozenset()
    code: frozenset[str] = frozenset()


def units(nsd_tolerance_mm: float) -> str:
    """One line on the units of a table."""
    return (
        f"DSC and NSD in points (0–100), NSD at a tolerance of {nsd_tolerance_mm:g} mm, distances in mm; ± is the standard deviation over "
        "seeds"
    )


def points(value: float) -> str:
    """A value in [0, 1] in points, one decimal."""
    return f"{100 * value:.1f}"


def number(metric: str, score: Score | None) -> str:
    """A score as text: points for DSC and NSD, mm else; with its spread where there are several seeds."""
    if score is None:
        return UNDEFINED
    scale = 100 if metric in policies.OVERLAPS else 1
    spread = "" if score.sd is None else f" ± {scale * score.sd:.1f}"
    return f"{scale * score.mean:.1f}{spread}"


def describe_policy(policy: policies.Policy) -> str:
    """One line that says what counts for what."""
    centroid = (
        "centroid over detected cases only" if policy.centroid_mm is None else f"centroid {policy.centroid_mm:g} mm"
    )
    reference = "are excluded" if policy.exclude_empty_reference else "count as empty predictions"
    return (
        f"policy {policy.name}: an empty prediction or failed case counts as DSC 0, NSD 0, ASD {policy.asd_mm:g} mm, "
        f"HD95 {policy.hd95_mm:g} mm, {centroid}; cases without a reference lesion {reference}"
    )


def beside_notes(sheet: Sheet) -> tuple[list[int], list[str]]:
    """For pages too narrow for notes in a table: the positions of all other columns, and each note as a line with the names of its rows,
    after the first column where a name alone does not tell rows apart."""
    shown = [position for position, column in enumerate(sheet.columns) if column != NOTES]
    noted = sheet.rows if len(shown) < len(sheet.columns) else ()
    unique = len({row[1] for row in noted}) == len(noted)
    names: dict[str, list[str]] = {}
    for first, second, *_, note in noted:
        if note:
            names.setdefault(note, []).append(second if unique else f"{first} {second}")
    return shown, [f"{', '.join(named)}: {note}" for note, named in names.items()]


def to_rich(sheets: Iterable[Sheet], width: int | None = None) -> "RenderableType":
    """The sheets for a terminal of ``width`` characters (None: as wide as need be), where notes stand below the table. Cells are plain
    text, never markup. Names and numbers are never broken: columns that do not fit follow below, beside the names again."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for sheet in sheets:
        first, *others = sheet.heading
        parts += [Text(printable(first), style="bold"), *(Text(printable(line)) for line in others)]
        if sheet.columns:
            shown, notes = beside_notes(sheet)
            parts += [_grid(sheet, block) for block in _blocks(sheet, shown, width)]
            parts += [Text(printable(line)) for line in notes]
        parts += [*(Text(printable(line), style="dim") for line in sheet.footer), Text()]
    return Group(*parts)


def _grid(sheet: Sheet, widths: Mapping[int, int]) -> "RichTable":
    """Columns of the sheet, by position, in these widths."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for position, width in widths.items():
        column = sheet.columns[position]
        side: Literal["right", "left"] = "right" if column in sheet.numeric else "left"
        grid.add_column(Text(printable(column)), justify=side, overflow="fold", width=width)
    for row in sheet.rows:
        grid.add_row(*(Text(printable(row[position])) for position in widths))
    return grid


def _widths(sheet: Sheet, position: int) -> tuple[int, int]:
    """The least width of a column and the one it needs. The least holds whole names, whole words of the header and whole numbers; longer
    words of other cells may be broken."""
    from rich.cells import cell_len

    column = printable(sheet.columns[position])
    cells = [printable(row[position]) for row in sheet.rows]
    whole = max(cell_len(text) for text in (column, *cells))
    if column in NAMES:
        return whole, whole
    longest = max((cell_len(word) for cell in cells for word in cell.split()), default=0)
    return max(min(longest, UNBROKEN), *(cell_len(word) for word in column.split()), 1), max(whole, 1)


def _blocks(sheet: Sheet, shown: Sequence[int], width: int | None) -> list[dict[int, int]]:
    """The columns of ``sheet`` with their widths, in as many blocks as ``width`` needs; each begins with the columns up to the name of the
    row, or without such with the first columns of text."""
    found = {position: _widths(sheet, position) for position in shown}
    if width is None:
        return [{position: needed for position, (_, needed) in found.items()}]
    text = [sheet.columns[position] not in sheet.numeric for position in shown]
    named = [index for index, position in enumerate(shown) if sheet.columns[position] in NAMES]
    keys = shown[: named[0] + 1 if named else [*text, False].index(False)] or shown[:1]
    blocks = [list(keys)]
    for position in shown[len(keys) :]:
        if len(blocks[-1]) > len(keys) and _room([*blocks[-1], position], found, width) < 0:
            blocks.append(list(keys))
        blocks[-1].append(position)
    return [_fitted(block, found, width) for block in blocks]


def _room(block: Sequence[int], found: Mapping[int, tuple[int, int]], width: int) -> int:
    """What ``width`` leaves beside the least columns, each with a space and a divider."""
    return width - sum(found[position][0] + 2 for position in block)


def _fitted(block: Sequence[int], found: Mapping[int, tuple[int, int]], width: int) -> dict[int, int]:
    """The least widths, and what is left given to the columns from the left as they need it."""
    room = max(0, _room(block, found, width))
    widths = {}
    for position in block:
        least, needed = found[position]
        widths[position] = least + min(room, needed - least)
        room -= widths[position] - least
    return widths


def to_markdown(sheets: Iterable[Sheet]) -> str:
    """The sheets as GitHub-flavoured Markdown; every cell is escaped."""
    blocks: list[str] = []
    for sheet in sheets:
        first, *others = sheet.heading
        blocks.append(f"**{_markdown(first)}**")
        if others:
            blocks.append("\n".join(f"- {_markdown(line)}" for line in others))
        if sheet.columns:
            rule = ["---:" if column in sheet.numeric else "---" for column in sheet.columns]
            lines = [list(map(_markdown, sheet.columns)), rule]
            for row in sheet.rows:
                cells = zip(sheet.columns, row, strict=True)
                lines.append([_code(cell) if column in sheet.code else _markdown(cell) for column, cell in cells])
            blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        if sheet.footer:
            blocks.append("\n".join(f"- {_markdown(line)}" for line in sheet.footer))
    return "\n\n".join(blocks) + "\n"


def printable(text: str) -> str:
    """Text as one line without control characters, which could move a terminal's cursor."""
    return "".join(char if char.isprintable() else " " for char in text)


def _markdown(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\`*_[]<>|~&#" else char for char in printable(text))


def _code(text: str) -> str:
    """A code span that survives backticks and, inside a table, pipes."""
    fence = "`"
    while fence in text:
        fence += "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{printable(text)}{pad}{fence}".replace("|", "\\|")
