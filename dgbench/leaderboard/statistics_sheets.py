"""The statistics of a table as sheets: differences to the baseline with their intervals, standings, and ranks under other schemes."""

from dgbench.leaderboard.evidence import TableStatistics
from dgbench.leaderboard.ranking import Standing
from dgbench.leaderboard.results import Table
from dgbench.leaderboard.sheets import BLANK, HEADERS, UNRANKED, Sheet
from dgbench.leaderboard.statistics import SMOKE, Comparison, Difference, Evidence

EVIDENCE = {
    Evidence.SMOKE: f"smoke — {SMOKE}; three make a row with intervals, five a claim",
    Evidence.ROW: "row — three or four seeds carry intervals, no p; five make a claim",
    Evidence.CLAIM: "claim — five seeds or more",
}
"""What so many seeds permit one to say."""
NO_EVIDENCE = "none — the cases permit no statistics, for the reason below"


def statistics_sheets(table: Table, found: TableStatistics) -> list[Sheet]:
    """Differences to the baseline and standings, then ranks under other schemes and metrics; in a table that is not ranked, differences
    alone."""
    places = ("rank", "rank interval", "P(best)", "tier") if table.ranked else ()
    columns = (
        *("method", f"DSC − {table.baseline}", *(f"at {center}" for center in table.centers)),
        *("p (Holm)", "effect size", *places),
    )
    lines = []
    for row in table.rows:
        if row.imported:  # in the section of imported sets
            continue
        one, place = found.comparisons.get(row.label), found.standings.get(row.label)
        if one is None and place is None and not (row.is_baseline and row.complete):
            continue
        centers = one.centers if one else {}
        overall, p = difference_cells(one, table.baseline)
        lines.append(
            (
                row.label,
                overall if one or not row.is_baseline else "baseline",
                *(difference_text(centers[name]) if name in centers else BLANK for name in table.centers),
                p,
                BLANK if one is None or one.effect_size is None else f"{one.effect_size:+.2f}",
                *(_standing_cells(place) if table.ranked else ()),
            )
        )
    sheets = [
        Sheet(
            heading=(
                f"Evidence: {EVIDENCE[found.evidence] if found.evidence else NO_EVIDENCE}"
                if table.ranked
                else f"Differences: {UNRANKED}",
                "difference of mean DSC in points with its 95 % interval (two-way bootstrap over seeds and patients, docs/statistics.md); "
                f"effect size: Cohen's d_z over patients{'; rank 1 is best, rows with more draws have none' if table.ranked else ''}",
            ),
            columns=columns,
            rows=tuple(lines),
            footer=found.notes,
            numeric=frozenset(columns) - {"method"},
        )
    ]
    if found.robustness:
        methods = [row.label for row in table.rows if row.label in found.standings]
        sheets.append(
            Sheet(
                heading=("Ranks under other schemes and metrics; Kendall's τ with the official ranks (first line)",),
                columns=("metric", "scheme", *methods, "τ"),
                rows=tuple(
                    (
                        HEADERS[one.metric],
                        one.scheme,
                        *(str(one.ranks[method]) for method in methods),
                        BLANK if one.tau is None else f"{one.tau:+.2f}",
                    )
                    for one in found.robustness
                ),
                numeric=frozenset({*methods, "τ"}),
            )
        )
    return sheets


def _standing_cells(place: Standing | None) -> tuple[str, ...]:
    """Rank, its interval, the probability of being best and the tier."""
    if place is None:
        return (BLANK,) * 4
    return (
        str(place.rank),
        "–".join(map(str, place.rank_interval)) if place.rank_interval else BLANK,
        BLANK if place.p_best is None else f"{place.p_best:.2f}",
        str(place.tier) if place.tier else BLANK,
    )


def difference_cells(one: Comparison | None, baseline: str) -> tuple[str, str]:
    """The difference of the mean over centers, and its adjusted p; blank where there is none. One to another row than the ``baseline`` that
    the column is headed with names it."""
    if one is None:
        return BLANK, BLANK
    other = "" if one.baseline == baseline else f" to {one.baseline}"
    return difference_text(one.overall) + other, BLANK if one.p_holm is None else p_text(one.p_holm)


def p_text(p: float) -> str:
    """Three decimals; never zero, which no number of resamples shows."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def difference_text(difference: Difference) -> str:
    """In points, with its interval where there is one."""
    mean = f"{100 * difference.mean:+.1f}"
    if difference.interval is None:
        return f"{mean} [unbounded]" if difference.unbounded else mean
    low, high = (100 * bound for bound in difference.interval)
    return f"{mean} [{low:+.1f}, {high:+.1f}]"
