"""Best, median and worst case of every center (the paper's Fig. 5), a column per method."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dgbench.leaderboard.figures.board import Board, Drawing, NothingToDraw, Options, undrawn
from dgbench.leaderboard.figures.panels import (
    MOST_METHODS,
    NO_SLICE,
    CaseRow,
    Shown,
    draw_panels,
    keeper,
    page_size,
    seeds_of,
    shown_cells,
    unpictured,
)
from dgbench.leaderboard.figures.style import Sheet, numbered, pages
from dgbench.leaderboard.overlay import exemplary

if TYPE_CHECKING:
    import pandas as pd


class Choice(NamedTuple):
    """A case of a center, why it was chosen, and the DSC in [0, 1] by which it was."""

    center: str
    rank: str
    case: str
    dsc: float


def case_dsc(board: Board, center: str, by: str | None) -> "pd.Series[float]":
    """DSC per case of a center, sorted by case: of the row ``by``, or the mean over the rows that have runs there; of each the mean
    over its finished seeds. Cases that the policy excludes are left out."""
    import pandas as pd

    rows = [label for label in board.labels if by in (None, label)]
    frames = [cell.cases.assign(label=label) for label in rows for cell in board.of(label, center)]
    if not frames:
        return pd.Series(dtype="float64")
    cases = pd.concat(frames)
    per_row = cases[cases["included"]].groupby(["case", "label"])["dsc"].mean()
    return per_row.groupby("case").mean()


def choose(board: Board, shown: Shown, by: str | None) -> tuple[list[Choice], int]:
    """The cases of all centers, and how many could not be chosen because a method that is drawn keeps no slice of them."""
    chosen: list[Choice] = []
    unseen = 0
    for center in board.table.centers:
        drawn = [cells for (_, where), cells in shown.items() if where == center]
        if not drawn:
            continue
        scores = case_dsc(board, center, by)
        seen = scores[[all(keeper(cells, str(case)) for cells in drawn) for case in scores.index]]
        unseen += len(scores) - len(seen)
        chosen += (Choice(center, rank, case, float(seen[case])) for rank, case in exemplary(seen).items())
    return chosen, unseen


def draw(board: Board, options: Options) -> Drawing:
    """Three lines per center, at most five methods on a page."""
    if reason := unpictured(board.compiled.view):
        raise NothingToDraw(reason)
    shown, without = shown_cells(board)
    notes = undrawn(without, len(board.cells), "lack slices")
    if not shown:
        raise NothingToDraw(f"{'; '.join(notes)} — name a folder of whole runs, records keep no slices")
    choices, unseen = choose(board, shown, options.by)
    if not choices:
        raise NothingToDraw("no case has a DSC and a slice in every run")
    if unseen:
        notes.append(f"{unseen} cases could not be chosen: {NO_SLICE}")
    whose = f"DSC of {options.by}" if options.by else "mean DSC over rows"
    rows = [
        CaseRow(
            choice.center,
            choice.case,
            (
                f"{choice.center}, {choice.rank}",
                choice.case.rpartition("/")[2],
                f"{whose} {100 * choice.dsc:.1f}",
            ),
        )
        for choice in choices
    ]
    labels = [label for label in board.labels if any(label == drawn for drawn, _ in shown)]
    parts = pages(labels, MOST_METHODS)
    titles = [numbered("best, median and worst cases", page, len(parts)) for page in range(1, len(parts) + 1)]
    sheets = [_page(board, shown, rows, part, whose, title, notes) for part, title in zip(parts, titles, strict=True)]
    return Drawing(sheets, notes)


def _page(
    board: Board,
    shown: Shown,
    rows: Sequence[CaseRow],
    labels: Sequence[str],
    whose: str,
    title: str,
    notes: Sequence[str],
) -> "Sheet":
    footer = [
        f"cases chosen by the {whose}, over finished seeds; the axial slice with most of the reference tumor, {board.intensities}; "
        f"corner: the lesion enlarged; DSC in points (0–100) of the whole volume, seed {seeds_of(shown)}",
        *notes,
    ]
    width, body = page_size(len(rows), len(labels))
    sheet = board.sheet(width, body, title, footer, missing="cases are chosen without them")
    draw_panels(board, sheet, rows, labels, shown)
    return sheet
