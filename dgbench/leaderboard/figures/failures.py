"""Cases that a method failed on (the paper's Fig. 8): how many of each lesion type, and what the worst of them look like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgbench.leaderboard.figures.board import POOLED, Board, Cell, Drawing, NothingToDraw, Options, undrawn
from dgbench.leaderboard.figures.overlays import case_dsc
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
from dgbench.leaderboard.figures.style import HATCHES, SMALL_PT, TONES, Sheet, finish, numbered, pages

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MOST_CASES = 6
"""Cases in the gallery."""
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Share:
    """Of a row at a center: ``failed`` of ``n`` predictions (cases × finished seeds) of one lesion type have a DSC below the limit."""

    label: str
    center: str
    lesion: str
    failed: int
    n: int


def shares(board: Board, options: Options) -> list[Share]:
    """In the order of rows and centers, then lesion types by name; cases that the policy excludes are not counted."""
    found = []
    for label in board.labels:
        for center in board.table.centers:
            rows = [row for cell in board.of(label, center) for row in _judged(cell, options)]
            for lesion in sorted({lesion for lesion, _ in rows}):
                below = [failed for name, failed in rows if name == lesion]
                found.append(Share(label=label, center=center, lesion=lesion, failed=sum(below), n=len(below)))
    return found


def _judged(cell: Cell, options: Options) -> list[tuple[str, bool]]:
    """Lesion type of every counted case of a run, and whether its DSC is below the limit."""
    rows = cell.cases[cell.cases["included"]]
    pairs = zip(rows["case"], rows["dsc"], strict=True)
    return [(options.lesion_type(str(case)), float(dsc) < options.limit) for case, dsc in pairs]


def hardest(board: Board, shown: Shown, options: Options) -> tuple[list[tuple[str, str, float]], int]:
    """At most six cases (center, case, DSC in [0, 1]) below the limit in the mean over rows, or of the row that chooses, of which every
    method that is drawn keeps a slice: first the worst of each center and lesion type, then the next worst; sorted by center. And how many
    cases below it could not be chosen because a method keeps no slice of them."""
    unseen = 0
    groups: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for center in board.table.centers:
        drawn = [cells for (_, where), cells in shown.items() if where == center]
        for case, dsc in _below(case_dsc(board, center, options.by), options.limit):
            if not drawn:
                continue
            if not all(keeper(cells, case) for cells in drawn):
                unseen += 1
            else:
                groups.setdefault((center, options.lesion_type(case)), []).append((dsc, case))
    waiting = [
        (turn, dsc, center, case)
        for (center, _), cases in groups.items()
        for turn, (dsc, case) in enumerate(sorted(cases))
    ]
    order = {name: index for index, name in enumerate(board.table.centers)}
    taken = [(center, case, dsc) for _, dsc, center, case in sorted(waiting)[:MOST_CASES]]
    return sorted(taken, key=lambda entry: (order[entry[0]], entry[2], entry[1])), unseen


def _below(scores: "pd.Series[float]", limit: float) -> list[tuple[str, float]]:
    return [(str(case), float(dsc)) for case, dsc in scores.items() if dsc < limit]


def draw(board: Board, options: Options) -> Drawing:
    """First page: shares per method, center and lesion type; then the gallery, where run folders keep slices."""
    found = shares(board, options)
    if not found:
        raise NothingToDraw("no case is counted under the policy")
    reason = unpictured(board.compiled.view)
    shown, without = ({}, []) if reason else shown_cells(board)
    notes = [f"no gallery: {reason}"] if reason else undrawn(without, len(board.cells), "lack slices for the gallery")
    cases, unseen = hardest(board, shown, options)
    limit = f"DSC below {100 * options.limit:g}"
    if shown and not cases:
        notes.append(f"no gallery: no case with slices has a {limit}, in the {_whose(options)}")
    if unseen:
        notes.append(f"{unseen} cases below the limit cannot be in the gallery: {NO_SLICE}")
    sheets = [_chart(board, found, limit, notes)]
    if cases:
        labels = [label for label in board.labels if any(label == drawn for drawn, _ in shown)]
        parts = pages(labels, MOST_METHODS)
        for page, part in enumerate(parts, start=1):
            sheets.append(
                _gallery(board, shown, cases, part, options, numbered("failed cases", page, len(parts)), notes)
            )
    return Drawing(sheets, notes)


def _whose(options: Options) -> str:
    return f"DSC of {options.by}" if options.by else "mean DSC over rows"


def _chart(board: Board, found: Sequence[Share], limit: str, notes: Sequence[str]) -> Sheet:
    labels, centers = board.labels, board.table.centers
    lesions = sorted({share.lesion for share in found})
    left = min(2.2, 0.35 + 0.065 * max(map(len, labels)))
    footer = [
        f"share of the predictions (cases × finished seeds) with {limit} points among those of the same center and lesion type; beside the "
        "bar: how many of how many; an empty prediction or failed case counts as DSC 0",
        *(["lesion type unknown: the data does not tell it"] if UNKNOWN in lesions else []),
        *notes,
    ]
    width = max(5.4, left + 2.25 * len(centers))
    bar = 0.13
    body = len(labels) * (bar * len(lesions) + 0.1) + 1.0
    sheet = board.sheet(width, body, f"failures: {limit}", footer, missing=POOLED)
    (axes,) = sheet.grid(1, len(centers), left=left, above=0.22, below=0.62, gaps=(0.17, 0.0), sharey=True, sharex=True)
    step = 1 / (len(lesions) + 0.1 / bar)
    look = {name: (TONES[index % len(TONES)], HATCHES[index % len(HATCHES)]) for index, name in enumerate(lesions)}
    for center, axis in zip(centers, axes, strict=True):
        for place, label in enumerate(labels):
            here = [share for share in found if (share.label, share.center) == (label, center)]
            if not here:
                why = "no case counted" if board.of(label, center) else board.reason(label, center)
                axis.text(1, place, why, fontsize=SMALL_PT, va="center")
            elif finished := board.some_seeds(label, center):
                axis.text(124, place - 0.42, finished, fontsize=SMALL_PT - 0.5, ha="right", va="center")
            for index, share in enumerate(here):
                _bar(axis, place + (index - (len(here) - 1) / 2) * step, 0.86 * step, share, *look[share.lesion])
        axis.set_title(f"held-out {center}", pad=3)
        axis.set_xlabel("failed (%)")
        axis.set_xlim(0, 125)
        axis.set_xticks(range(0, 101, 25))
        axis.set_ylim(len(labels) - 0.5, -0.5)
        finish(axis, grid="x")
    axes[0].set_yticks(range(len(labels)), labels)
    sheet.legend(_handles(look), columns=min(6, len(look)), handlelength=2.0)
    return sheet


def _bar(axis: "Axes", place: float, height: float, share: Share, colour: str, hatch: str) -> None:
    percent = 100 * share.failed / share.n
    axis.barh(place, percent, height, color="white", edgecolor=colour, hatch=hatch, linewidth=0.7)
    axis.barh(place, percent, height, color=colour, alpha=0.35, linewidth=0)
    axis.text(percent + 1.5, place, f"{share.failed}/{share.n}", fontsize=SMALL_PT - 0.5, va="center_baseline")


def _handles(look: Mapping[str, tuple[str, str]]) -> list[object]:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=to_rgba(colour, 0.35), edgecolor=colour, hatch=hatch, linewidth=0.7, label=name)
        for name, (colour, hatch) in look.items()
    ]


def _gallery(
    board: Board,
    shown: Shown,
    cases: Sequence[tuple[str, str, float]],
    labels: Sequence[str],
    options: Options,
    title: str,
    notes: Sequence[str],
) -> Sheet:
    rows = [
        CaseRow(
            center,
            case,
            (case.rpartition("/")[2], f"lesion: {options.lesion_type(case)}", f"{_whose(options)} {100 * dsc:.1f}"),
        )
        for center, case, dsc in cases
    ]
    footer = [
        f"cases with a {_whose(options)} below {100 * options.limit:g} points, the worst of each center and lesion type first, at most "
        f"{MOST_CASES}; the axial slice with most of the reference tumor, {board.intensities}; corner: the lesion enlarged; DSC in "
        f"points (0–100) of the whole volume, seed {seeds_of(shown)}",
        *notes,
    ]
    width, body = page_size(len(rows), len(labels))
    sheet = board.sheet(width, body, title, footer, missing="cases are chosen without them")
    draw_panels(board, sheet, rows, labels, shown)
    return sheet
