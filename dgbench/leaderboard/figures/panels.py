"""Rows of cases, columns of methods: slices with reference and predicted tumor and the lesion enlarged in a corner."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dgbench.leaderboard.figures.board import Board, Cell
from dgbench.leaderboard.figures.style import SMALL_PT, TEXT_PT, Sheet
from dgbench.leaderboard.overlay import (
    COLOURS,
    Field,
    draw_caption,
    draw_contour,
    draw_rectangle,
    draw_slice,
    field_around,
    lesion_masks,
    line_style,
    whole_field,
)
from dgbench.leaderboard.records import OFFICIAL, View
from dgbench.store.slices import CaseSlice, slice_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_METHODS = 5
"""Methods on one page, beside the whole slice."""
PANEL, GAP, LEFT = 1.55, 0.04, 0.5
"""Side of a panel, space between panels and left of them, in inches."""
INSET = 0.4
"""Side of the enlarged lesion relative to its panel."""
FIELD_MARGIN_MM, INSET_MARGIN_MM = 40.0, 8.0
"""Around what is drawn: wide in the panel, so that its corner is free for the enlarged lesion."""
LEGEND = {
    "reference pancreas": "reference pancreas",
    "reference tumor": "reference tumor",
    "fine tumor": "predicted tumor",
}


NO_SLICE = "a method keeps no slice of them (a failed case has none)"

Shown = Mapping[tuple[str, str], Sequence[Cell]]
"""By row and center the runs of one seed: one, or in-domain those of all folds."""


class CaseRow(NamedTuple):
    """A case to draw at a held-out center, and the words beside it, a line each."""

    center: str
    case: str
    words: tuple[str, ...]


def unpictured(view: View) -> str | None:
    """Why the numbers of ``view`` have no pictures: run folders keep slices with the masks of the official view alone, whatever the policy.
    None where they have."""
    if replace(view, policy=OFFICIAL.policy) == OFFICIAL:
        return None
    return (
        f"pictures are kept of the official view only: setting {OFFICIAL.setting}, threshold {OFFICIAL.threshold_text}, "
        f"checkpoint {OFFICIAL.checkpoint}"
    )


def keeper(cells: Sequence[Cell], case: str) -> Cell | None:
    """The run of ``cells`` that keeps the slice of ``case``; a record keeps none."""
    return next((cell for cell in cells if slice_file(cell.run.path, case).is_file()), None)


def shown_cells(board: Board) -> tuple[Shown, list[Cell]]:
    """The first seed of which slices are kept; and the runs passed over because they keep none."""
    shown: dict[tuple[str, str], tuple[Cell, ...]] = {}
    without: list[Cell] = []
    for label in board.labels:
        for center in board.table.centers:
            for _, of_seed in groupby(board.of(label, center), key=lambda cell: cell.seed):
                cells = tuple(of_seed)
                if any(keeper(cells, case) for cell in cells for case in cell.cases["case"]):
                    shown[label, center] = cells
                    break
                without += cells
    return shown, without


def seeds_of(shown: Shown) -> str:
    """The seeds that are drawn, sorted."""
    return ", ".join(str(seed) for seed in sorted({cell.seed for cells in shown.values() for cell in cells}))


def page_size(rows: int, columns: int) -> tuple[float, float]:
    """Width of the sheet and height of its body in inches, for ``rows`` cases and ``columns`` methods."""
    return max(5.4, LEFT + (columns + 1) * (PANEL + GAP) + 0.1), 0.22 + rows * (PANEL + GAP) + 0.26


def draw_panels(board: Board, sheet: Sheet, rows: Sequence[CaseRow], labels: Sequence[str], shown: Shown) -> None:
    """Fill ``sheet`` with a line of panels per case: the whole slice with the reference, then a panel for each of ``labels``."""
    right = sheet.width - LEFT - (len(labels) + 1) * (PANEL + GAP)
    grid = sheet.grid(len(rows), len(labels) + 1, left=LEFT, right=right, above=0.2, below=0.26, gaps=(GAP, GAP))
    for row, axes in zip(rows, grid, strict=True):
        cells = {
            label: cell
            for (label, center), of_seed in shown.items()
            if center == row.center and (cell := keeper(of_seed, row.case)) is not None
        }
        slices = {label: CaseSlice.load(slice_file(cell.run.path, row.case)) for label, cell in cells.items()}
        _draw_row(board, axes, row, labels, slices, cells, told="," in seeds_of(shown))
    for axis, title in zip(grid[0], ("whole slice", *labels), strict=True):
        axis.set_title(title, fontsize=TEXT_PT, pad=3)
    sheet.legend(_handles(), columns=len(LEGEND), handlelength=2.6)


def _draw_row(
    board: Board,
    axes: Sequence["Axes"],
    row: CaseRow,
    labels: Sequence[str],
    slices: Mapping[str, CaseSlice],
    cells: Mapping[str, Cell],
    told: bool,
) -> None:
    """``slices`` are those of all methods, also of those on other pages: the field is the same for all. Seeds are ``told`` where they
    differ."""
    every = list(slices.values())
    first, whole = every[0], whole_field(every[0])
    reference = (first.reference_pancreas, first.reference_tumor)
    view = field_around(first, (*reference, *(case.tumor_fine for case in every)), FIELD_MARGIN_MM, whole)
    zoom = field_around(first, lesion_masks(first), INSET_MARGIN_MM, view)
    if not _inside(zoom, view):  # predictions all over a narrow slice
        view = field_around(first, reference, FIELD_MARGIN_MM, whole)
    for axis in axes:
        axis.grid(False)
    _reference(axes[0], first, whole)
    draw_rectangle(axes[0], view)
    draw_caption(axes[0], f"slice {first.slice_index + 1} of {first.n_slices}")
    axes[0].set_ylabel("\n".join(row.words), fontsize=SMALL_PT, labelpad=3, linespacing=1.25)
    for label, axis in zip(labels, axes[1:], strict=True):
        if label in slices:
            seed = f", seed {cells[label].seed}" if told else ""
            _method(axis, slices[label], view, zoom, _caption(cells[label], row.case, slices[label], seed))
        else:
            _empty(axis, "no slice kept" if board.of(label, row.center) else board.reason(label, row.center))


def _inside(inner: Field, outer: Field) -> bool:
    """Whether ``outer`` holds all of ``inner``."""
    room = (outer.side - inner.side) / 2 + 1e-6
    return abs(inner.x - outer.x) <= room and abs(inner.y - outer.y) <= room


def _reference(axis: "Axes", case: CaseSlice, view: Field) -> None:
    draw_slice(axis, case, view)
    draw_contour(axis, case, case.reference_pancreas, "reference pancreas", width=0.9)
    draw_contour(axis, case, case.reference_tumor, "reference tumor", width=0.9)


def _method(axis: "Axes", case: CaseSlice, view: Field, zoom: Field, caption: str) -> None:
    draw_slice(axis, case, view)
    draw_contour(axis, case, case.reference_tumor, "reference tumor")
    draw_contour(axis, case, case.tumor_fine, "fine tumor")
    draw_rectangle(axis, zoom)
    draw_caption(axis, caption)
    inset = axis.inset_axes(_corner(view, zoom, case))
    inset.grid(False)
    draw_slice(inset, case, zoom, bar=False)
    draw_contour(inset, case, case.reference_tumor, "reference tumor")
    draw_contour(inset, case, case.tumor_fine, "fine tumor")
    for spine in inset.spines.values():
        spine.set_visible(True)
        spine.set_color("white")
        spine.set_linewidth(0.7)


def _corner(view: Field, zoom: Field, case: CaseSlice) -> tuple[float, float, float, float]:
    """The box of the inset, in units of the panel: lower left or upper right, whichever hides less of the lesion and of its prediction, of
    equals the one that is farther from the lesion. Caption and the scale bar are in the other two."""
    rows, columns = np.nonzero(case.reference_tumor | case.tumor_fine)
    x = ((columns + 0.5) * case.spacing[1] - view.x) / view.side + 0.5
    y = 0.5 - ((rows + 0.5) * case.spacing[0] - view.y) / view.side
    far = 1 - INSET - 0.015

    def cost(low: float) -> tuple[int, float]:
        hidden = (x >= low) & (x <= low + INSET) & (y >= low) & (y <= low + INSET)
        near = (zoom.x - view.x) + (view.y - zoom.y)
        return int(hidden.sum()), near if low == far else -near

    low = min((0.015, far), key=cost)
    return low, low, INSET, INSET


def _caption(cell: Cell, case: str, drawn: CaseSlice, seed: str) -> str:
    row = cell.cases[cell.cases["case"] == case].iloc[0]
    text = f"DSC {100 * row['dsc']:.1f}{seed}"
    if row["empty_prediction"]:
        return f"{text}\nnothing predicted"
    return text if drawn.tumor_fine.any() else f"{text}\nnone on this slice"


def _empty(axis: "Axes", text: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(True)
        spine.set_color("#bbbbbb")
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", fontsize=SMALL_PT, color="#555555")


def _handles() -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=COLOURS[name], linestyle=line_style(name), linewidth=1.8, label=label)
        for name, label in LEGEND.items()
    ]
