"""Distances between the centroids of reference and prediction (the paper's Fig. 7): box and points per method and center.

A distance is plotted only where both masks hold voxels; how many cases have none is printed beside, and no constant stands for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dgbench.leaderboard.figures.board import POOLED, Board, Cell, Drawing, NothingToDraw, Options
from dgbench.leaderboard.figures.style import HATCHES, PALETTE, SMALL_PT, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Distances:
    """The finished seeds of one row at one center, pooled: ``mm`` of the cases with both masks, and how many of ``n`` (cases × seeds,
    those without a reference lesion left out as the policy says) have no prediction; ``failed`` of these were not predicted at all."""

    label: str
    center: str
    seeds: tuple[int, ...]
    mm: NDArray[np.float64]
    n: int
    empty: int
    failed: int

    @property
    def note(self) -> str:
        """What stands beside the box."""
        median = f"median {np.median(self.mm):.1f}" if len(self.mm) else "no distance"
        return f"{median}; empty {self.empty}/{self.n}" + (f" ({self.failed} failed)" if self.failed else "")


def distances(cells: Sequence[Cell]) -> Distances:
    """Pool the runs of one row at one center."""
    import pandas as pd

    rows = pd.concat([cell.cases for cell in cells])
    rows = rows[rows["included"]]
    return Distances(
        label=cells[0].label,
        center=cells[0].center,
        seeds=tuple(dict.fromkeys(cell.seed for cell in cells)),
        mm=rows.loc[rows["detected"], "centroid_mm"].to_numpy(dtype=np.float64),
        n=len(rows),
        empty=int(rows["empty_prediction"].sum()),
        failed=int(rows["failed"].sum()),
    )


def gather(board: Board) -> dict[tuple[str, str], Distances]:
    """By row and center, where there is a finished run."""
    return {
        (label, center): distances(cells)
        for label in board.labels
        for center in board.table.centers
        if (cells := board.of(label, center))
    }


def draw(board: Board, options: Options) -> Drawing:
    """A panel per center, a line per method in the order of the table."""
    found = gather(board)
    if not any(len(entry.mm) for entry in found.values()):
        raise NothingToDraw("no prediction of any run holds a voxel, so no distance is defined")
    labels, centers = board.labels, board.table.centers
    left = min(2.2, 0.35 + 0.065 * max(map(len, labels)))
    footer = [
        "distance between the centroids of reference and predicted tumor in mm, a point per case and seed; box: quartiles, whiskers to "
        "1.5 interquartile ranges, white dot: mean; empty: nothing predicted, so that no distance exists: counted beside the box, "
        "not plotted"
    ]
    width = max(5.0, left + 2.25 * len(centers))
    sheet = board.sheet(width, 0.34 * len(labels) + 0.85, "tumor centroid distances", footer, missing=POOLED)
    (axes,) = sheet.grid(1, len(centers), left=left, above=0.22, below=0.42, gaps=(0.17, 0.0), sharey=True, sharex=True)
    longest = max(entry.mm.max() for entry in found.values() if len(entry.mm))
    for index, (center, axis) in enumerate(zip(centers, axes, strict=True)):
        for place, label in enumerate(labels):
            entry = found.get((label, center))
            if entry is None:
                _beside(axis, place, board.reason(label, center))
                continue
            _box(axis, place, entry, PALETTE[index % len(PALETTE)], HATCHES[index % len(HATCHES)])
            _beside(axis, place, "; ".join(filter(None, [entry.note, board.some_seeds(label, center)])))
        axis.set_title(f"held-out {center}", pad=3)
        axis.set_xlabel("centroid distance (mm)")
        axis.set_xlim(-0.02 * longest, 1.04 * longest)
        axis.set_ylim(len(labels) - 0.35, -0.6)
        finish(axis, grid="x")
    axes[0].set_yticks(range(len(labels)), labels)
    return Drawing([sheet])


def _box(axis: "Axes", place: int, entry: Distances, colour: str, hatch: str) -> None:
    """Box at the height ``place`` with its points spread over it, always at the same heights."""
    from matplotlib.colors import to_rgba

    if not len(entry.mm):
        return
    spread = np.random.default_rng(0).uniform(-0.2, 0.2, len(entry.mm))
    axis.plot(entry.mm, place + spread, ".", markersize=2.2, color=colour, alpha=0.55, markeredgewidth=0, zorder=2)
    parts = axis.boxplot(
        entry.mm,
        positions=[place],
        orientation="horizontal",
        widths=0.44,
        patch_artist=True,
        showfliers=False,
        showmeans=True,
        manage_ticks=False,
        zorder=3,
        boxprops={"facecolor": to_rgba(colour, 0.18), "edgecolor": colour, "linewidth": 0.8, "hatch": hatch},
        medianprops={"color": "black", "linewidth": 1.6},
        whiskerprops={"color": colour, "linewidth": 0.8},
        capprops={"color": colour, "linewidth": 0.8},
        meanprops={"marker": "o", "markersize": 3, "markerfacecolor": "white", "markeredgecolor": "black"},
    )
    for box in parts["boxes"]:
        box.set_hatch_linewidth(0.2)


def _beside(axis: "Axes", place: int, text: str) -> None:
    axis.text(
        0.995,
        place - 0.42,
        text,
        transform=axis.get_yaxis_transform(),
        fontsize=SMALL_PT - 0.5,
        ha="right",
        va="center",
    )
