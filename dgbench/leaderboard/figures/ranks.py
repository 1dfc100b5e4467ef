"""How stable the ranks are: the rank of every method in each seed, and the bootstrap interval of its rank. From three seeds up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgbench.leaderboard.figures.board import Board, Drawing, NothingToDraw, Options
from dgbench.leaderboard.figures.style import finish
from dgbench.leaderboard.ranking import ranks
from dgbench.leaderboard.results import Row, seed_means
from dgbench.leaderboard.sheets import UNRANKED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_SEEDS = 3
LINE = 0.2
"""Height of a method's strip in inches."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One method: its rank, the 95 % interval of it, its tier, and its rank in each seed."""

    label: str
    rank: int
    interval: tuple[int, int]
    tier: int | None
    by_seed: Mapping[int, int]


def strips(board: Board) -> list[Strip]:
    """The rows that have a rank interval, best first.

    Raises:
        NothingToDraw: fewer than three seeds, statistics that could not be made, or no two rows to rank.
    """
    table = board.table
    if not table.ranked:
        raise NothingToDraw(UNRANKED)
    if len(table.seeds) < LEAST_SEEDS:
        seeds = ", ".join(map(str, table.seeds))
        raise NothingToDraw(
            f"whether ranks are stable cannot be told from {len(table.seeds)} seed{'s' if len(table.seeds) > 1 else ''} ({seeds}): "
            f"{LEAST_SEEDS} are the least"
        )
    standings = table.statistics.standings if table.statistics else {}
    rows = {row.label: row for row in table.rows if (one := standings.get(row.label)) and one.rank_interval}
    if len(rows) < 2:
        notes = "; ".join(table.statistics.notes) if table.statistics else "no complete row"
        raise NothingToDraw(f"fewer than two complete rows with a rank interval ({notes})")
    by_seed = ranks_by_seed(list(rows.values()), table.seeds)
    found = []
    for label in rows:
        place = standings[label]
        assert place.rank_interval is not None
        strip = Strip(
            label=label, rank=place.rank, interval=place.rank_interval, tier=place.tier, by_seed=by_seed[label]
        )
        found.append(strip)
    return sorted(found, key=lambda strip: (strip.rank, strip.label))


def ranks_by_seed(rows: Sequence[Row], seeds: Sequence[int]) -> dict[str, dict[int, int]]:
    """The rank of each complete row in every seed alone, by the mean DSC over centers; equal means share a rank."""
    means = [seed_means(row) for row in rows]
    found = {seed: ranks([own[seed] for own in means]) for seed in seeds}
    return {row.label: {seed: found[seed][place] for seed in seeds} for place, row in enumerate(rows)}


def draw(board: Board, options: Options) -> Drawing:
    """A strip per method: the line is the interval of the rank, the filled mark the rank, a ring the rank in one seed."""
    found = strips(board)
    drawn = {strip.label for strip in found}
    others = [row.label for row in board.table.rows if row.label not in drawn]
    notes = [f"not drawn, without a rank: {', '.join(others)}"] if others else []
    seeds = ", ".join(map(str, board.table.seeds))
    footer = [
        "line: ranks that the simultaneous 95 % intervals leave possible; filled: rank of the mean over seeds; rings: rank in each "
        f"seed alone ({seeds}), larger for several; methods of one tier are not told apart",
        *notes,
    ]
    left = 0.3 + 0.06 * max(len(strip.label) for strip in found)
    sheet = board.sheet(max(5.0, left + 3.5), LINE * len(found) + 0.55, "rank stability", footer)
    ((axis,),) = sheet.grid(1, 1, left=left, right=0.55, above=0.1, below=0.35)
    _panel(axis, found)
    return Drawing([sheet], notes)


def _panel(axis: "Axes", found: Sequence[Strip]) -> None:
    from matplotlib.ticker import MaxNLocator

    for line, strip in enumerate(found):
        axis.hlines(line, strip.interval[0] - 0.08, strip.interval[1] + 0.08, color="#56B4E9", linewidth=4, zorder=2)
        ranks = list(strip.by_seed.values())
        for rank in sorted(set(ranks)):
            size = 3.5 + 1.5 * ranks.count(rank)
            axis.plot(rank, line, "o", markersize=size, fillstyle="none", color="black", markeredgewidth=0.6, zorder=3)
        axis.plot(strip.rank, line, "D", markersize=3.2, color="#D55E00", zorder=4)
        if strip.tier is not None:
            axis.text(1.02, line, f"tier {strip.tier}", transform=axis.get_yaxis_transform(), va="center")
    last = max(max(strip.interval[1], *strip.by_seed.values()) for strip in found)
    axis.set_xlim(0.6, last + 0.4)
    axis.set_ylim(len(found) - 0.4, -0.6)
    axis.set_yticks(range(len(found)), [strip.label for strip in found])
    axis.set_xlabel("rank by mean DSC (1 is best)")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    finish(axis)
