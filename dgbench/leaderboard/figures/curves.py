"""Training curves: source-validation DSC over training steps, per stage, held-out center and method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dgbench.atomic import read_jsonl
from dgbench.errors import DgbenchError
from dgbench.leaderboard.figures.board import Board, Cell, Drawing, NothingToDraw, Options, undrawn
from dgbench.leaderboard.figures.style import TEXT_PT, Look, Sheet, finish, looks, numbered, pages, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_METHODS = 8
"""Methods on one page."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One training: DSC in points (equal-weight mean over source centers, what the checkpoint is selected by) at each step."""

    label: str
    center: str
    stage: str
    seed: int
    steps: NDArray[np.int64]
    dsc: NDArray[np.float64]


def read_curve(cell: Cell, stage: str) -> Curve | None:
    """The curve of a run's stage; None where the run keeps no validation log of it.

    Raises:
        DgbenchError: the log is damaged.
    """
    import pandas as pd

    path = cell.run.stage_folder(stage) / "validation.jsonl"
    if not path.is_file():
        return None
    rows = pd.DataFrame(read_jsonl(path))
    lacking = {"step", "center", "dsc"} - set(rows)
    if lacking:
        raise DgbenchError(f"{path}: no {', '.join(sorted(lacking))} in its rows — damaged or foreign, run again")
    try:
        per_center = rows.assign(dsc=rows["dsc"].astype(float)).groupby(["step", "center"])["dsc"].mean()
        means = per_center.groupby("step").mean().dropna().sort_index()
        steps, values = means.index.to_numpy(dtype=np.int64), 100 * means.to_numpy(dtype=np.float64)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        problem = " ".join(str(error).split())
        raise DgbenchError(f"{path}: not a readable log ({problem}) — damaged or foreign, run again") from error
    return Curve(cell.label, cell.center, stage, cell.seed, steps, values) if len(steps) else None


def mean_curve(curves: Sequence[Curve], seeds: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """The mean over ``seeds`` at the steps that all have; None while one of them is missing."""
    if {curve.seed for curve in curves} != set(seeds):
        return None
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    values = [curve.dsc[np.searchsorted(curve.steps, steps)] for curve in curves]
    return steps, np.mean(values, axis=0)


def draw(board: Board, options: Options) -> Drawing:
    """Rows of panels are stages, columns held-out centers; thin lines are seeds, thick ones means over all seeds of the table."""
    curves: list[Curve] = []
    lacking = []
    for cell in board.cells:
        found = [curve for stage in cell.run.own_stages if (curve := read_curve(cell, stage))]
        curves += found
        if not found:
            lacking.append(cell)
    if not curves:
        raise NothingToDraw(f"no run keeps a validation log ({len(board.cells)} runs)")
    notes = undrawn(lacking, len(board.cells), "lack validation.jsonl")
    labels = [label for label in board.labels if any(curve.label == label for curve in curves)]
    parts = pages(labels, MOST_METHODS)
    titles = [numbered("training curves on source validation", page, len(parts)) for page in range(1, len(parts) + 1)]
    sheets = [_page(board, curves, part, title, notes) for part, title in zip(parts, titles, strict=True)]
    return Drawing(sheets, notes)


def _page(board: Board, curves: Sequence[Curve], labels: Sequence[str], title: str, notes: Sequence[str]) -> Sheet:
    stages = list(dict.fromkeys(curve.stage for curve in curves))
    centers, look = board.table.centers, looks(board.labels)
    seeds = "thin: one seed; thick: mean, only where every seed is there" if len(board.table.seeds) > 1 else "one seed"
    footer = [
        f"validation DSC in points (0–100) on the label ROI, no flips: equal-weight mean over the source centers; {seeds}; a ring is the "
        "best value of a seed, where its official checkpoint is taken",
        *notes,
    ]
    legend = 0.2 * -(-len(labels) // 4) + 0.1
    width = max(5.0, 0.7 + 2.1 * len(centers))
    sheet = board.sheet(width, 1.8 * len(stages) + 0.5 + legend, title, footer)
    gaps = (0.17, 0.42)
    grid = sheet.grid(len(stages), len(centers), left=0.5, above=0.22, below=0.33 + legend, gaps=gaps, sharey="row")
    for stage, axes in zip(stages, grid, strict=True):
        for center, axis in zip(centers, axes, strict=True):
            here = [curve for curve in curves if (curve.stage, curve.center) == (stage, center)]
            _panel(axis, board, [curve for curve in here if curve.label in labels], look)
            axis.set_title(f"{stage}, held-out {center}", fontsize=TEXT_PT, pad=3)
        axes[0].set_ylabel("validation DSC (points)")
    for axis in grid[-1]:
        axis.set_xlabel("training step")
    sheet.legend([_handle(label, look[label]) for label in labels], columns=4, handlelength=3.2)
    return sheet


def _panel(axis: "Axes", board: Board, curves: Sequence[Curve], look: Mapping[str, Look]) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    finish(axis)
    if not curves:
        say(axis, "no run")
    for label in dict.fromkeys(curve.label for curve in curves):
        _lines(axis, [curve for curve in curves if curve.label == label], board, look[label])


def _lines(axis: "Axes", curves: Sequence[Curve], board: Board, look: Look) -> None:
    mean = mean_curve(curves, board.row(curves[0].label).seeds)
    single = len(curves) == 1 and mean is not None
    style: dict[str, Any] = {"color": look.colour, "linestyle": look.dash, "marker": look.marker}
    for curve in () if single else curves:
        axis.plot(curve.steps, curve.dsc, linewidth=0.6, markersize=2, alpha=0.7, **style)
    if mean is not None:
        axis.plot(*mean, linewidth=1.6, markersize=3.5, markeredgecolor="white", markeredgewidth=0.4, **style)
    for curve in curves:
        best = int(np.argmax(curve.dsc))
        axis.plot(
            curve.steps[best],
            curve.dsc[best],
            "o",
            markersize=6.5 if single else 5,
            fillstyle="none",
            color=look.colour,
            markeredgewidth=0.7,
        )
    axis.margins(x=0.06, y=0.1)
    axis.set_xlim(left=0)


def _handle(label: str, look: Look) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=look.colour, linestyle=look.dash, marker=look.marker, markersize=4, linewidth=1.6, label=label
    )
