"""Accuracy against cost: mean DSC over centers, and parameters, operations and training time; what no other row beats is marked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dgbench.leaderboard.costs import RowCost
from dgbench.leaderboard.figures.board import Board, Drawing, NothingToDraw, Options
from dgbench.leaderboard.figures.style import Look, finish, looks, say
from dgbench.leaderboard.results import Row
from dgbench.leaderboard.statistics import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Axis(NamedTuple):
    """A cost: its label with unit, and its value of a row's cost (None: not known) with the least and the greatest that it is of."""

    label: str
    value: Callable[[RowCost], float | None]
    bounds: Callable[[RowCost], tuple[float, float] | None] = lambda _: None


AXES: Mapping[str, Axis] = {
    "parameters": Axis("parameters, all training heads (millions)", lambda cost: cost.params / 1e6),
    "gflops": Axis("GFLOPs, one crop of each stage", lambda cost: cost.gflops),
    "training": Axis(f"training time (× {BASELINE})", lambda cost: cost.train_factor, lambda cost: cost.factor_range),
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A row on one axis: ``cost`` in the axis' unit with its ``bounds`` (None: it has none), ``dsc`` in points, its standard deviation over
    seeds (None for one seed)."""

    label: str
    cost: float
    dsc: float
    sd: float | None
    bounds: tuple[float, float] | None = None


def gather(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """The points of each axis: the complete rows that have this cost."""
    found: dict[str, list[Point]] = {name: [] for name in AXES}
    for row in rows:
        if not row.complete or row.cost is None:
            continue
        score = row.mean["dsc"]
        sd = None if score.sd is None else 100 * score.sd
        for name, axis in AXES.items():
            if (value := axis.value(row.cost)) is not None:
                bounds = axis.bounds(row.cost)
                found[name].append(Point(label=row.label, cost=value, dsc=100 * score.mean, sd=sd, bounds=bounds))
    return found


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats: none is at most as costly and at least as good, and better in one of the two. By cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.dsc)):
        last = front[-1] if front else None
        if last is None or point.dsc > last.dsc or (point.cost, point.dsc) == (last.cost, last.dsc):
            front.append(point)
    return front


def draw(board: Board, options: Options) -> Drawing:
    """A panel per cost with the complete rows; the front is a line through ringed points."""
    points = gather(board.table.rows)
    shown = [
        row.label for row in board.table.rows if any(row.label == p.label for some in points.values() for p in some)
    ]
    if not shown:
        complete = sum(row.complete for row in board.table.rows)
        raise NothingToDraw(
            f"no complete row with known cost ({complete} of {len(board.table.rows)} rows are complete)"
        )
    notes = _notes(board, points)
    machines = sorted({machine for row in board.table.rows if row.cost for machine in row.cost.machines})
    footer = [
        "mean DSC: equal-weight mean over centers of the mean over cases, in points (0–100), bars: standard deviation over seeds; ringed "
        "and joined: no other row is at most as costly and better (ties are both ringed)",
        f"parameters and GFLOPs: networks of the method's stages while training, the convention of the paper's Table VI; training time: "
        f"steps × median step relative to the run of {BASELINE} with the same center and seed on the same kind of machine, not on an "
        f"idle one (median over pairs; bars: the least and the greatest): {'; '.join(machines)}",
        *notes,
    ]
    columns = 5
    legend = 0.19 * -(-len(shown) // columns) + 0.1
    sheet = board.sheet(7.2, 2.65 + legend, "accuracy against cost", footer)
    (axes,) = sheet.grid(1, len(AXES), left=0.5, above=0.12, below=0.4 + legend, gaps=(0.2, 0.0), sharey=True)
    look = looks(shown)
    for axis, (name, kind) in zip(axes, AXES.items(), strict=True):
        axis.set_xlabel(kind.label)
        if points[name]:
            _panel(axis, points[name], look)
        else:
            say(axis, "not known for any complete row")
        finish(axis)
    axes[0].set_ylabel("mean DSC (points)")
    sheet.legend([_handle(label, look[label]) for label in shown], columns=min(columns, len(shown)))
    return Drawing([sheet], notes)


def _notes(board: Board, points: Mapping[str, Sequence[Point]]) -> list[str]:
    """One line about the rows that are on no panel or not on all of them."""
    incomplete = [row.label for row in board.table.rows if not row.complete]
    words = [f"incomplete rows: {', '.join(incomplete)}"] if incomplete else []
    for name, some in points.items():
        there = {point.label for point in some}
        absent = [row.label for row in board.table.rows if row.complete and row.label not in there]
        if absent:
            words.append(f"{name} not known: {', '.join(absent)}")
    return [f"not drawn: {'; '.join(words)}"] if words else []


def _panel(axis: "Axes", points: Sequence[Point], look: Mapping[str, Look]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    for point in points:
        style = look[point.label]
        axis.errorbar(
            point.cost,
            point.dsc,
            xerr=None if point.bounds is None else [[point.cost - point.bounds[0]], [point.bounds[1] - point.cost]],
            yerr=point.sd,
            fmt=style.marker,
            color=style.colour,
            markersize=5,
            markeredgecolor="black",
            markeredgewidth=0.5,
            elinewidth=0.8,
            capsize=1.5,
            zorder=3,
        )
    front = pareto_front(points)
    costs, values = [point.cost for point in front], [point.dsc for point in front]
    axis.step(costs, values, where="post", color="#555555", linewidth=0.9, linestyle=(0, (4, 2)), zorder=2)
    axis.plot(costs, values, "o", markersize=9, fillstyle="none", color="black", markeredgewidth=0.9, zorder=4)
    every = [value for point in points for value in (point.cost, *(point.bounds or ()))]
    if min(every) > 0 and max(every) / min(every) > 8:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.12, y=0.12)
    else:
        low, high = min(every), max(every)
        room = 0.12 * (high - low) if high > 1.05 * low else 0.1 * high
        axis.set_xlim(low - room, high + room)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axis.margins(y=0.12)


def _handle(label: str, look: Look) -> object:
    from matplotlib.lines import Line2D

    return Line2D(
        [],
        [],
        color=look.colour,
        linestyle="none",
        marker=look.marker,
        markersize=5,
        markeredgecolor="black",
        markeredgewidth=0.5,
        label=label,
    )
