"""The page of a method: all rows that it has in any table, what it is, what is missing, and how each of its runs is made again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dgbench.info import MethodInfo
from dgbench.leaderboard.page.card import method_card
from dgbench.leaderboard.page.facts import table_title, view_facts
from dgbench.leaderboard.page.gallery import Gallery
from dgbench.leaderboard.results import METRICS, Compiled, CountedRun, Row, Table
from dgbench.leaderboard.sheets import BLANK, HEADERS, UNRANKED, Sheet, number, points
from dgbench.leaderboard.statistics_sheets import NO_EVIDENCE, difference_text, p_text
from dgbench.leaderboard.tables import center_cell, cost_sheet, missing_sheet, rank_cell
from dgbench.registry import BrokenMethod

Registry = Mapping[str, MethodInfo | BrokenMethod]


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """One run of a row: its cell, its mean DSC in points, its folder below the runs root and the command that makes it again."""

    center: str
    seed: int
    dsc: str
    run: CountedRun


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One row of the method in one table."""

    title: str
    facts: Mapping[str, str]
    config: Mapping[str, str]
    centers: Sheet
    seeds: Sheet
    cost: Sheet | None
    missing: Sheet | None
    runs: tuple[RunLine, ...]
    figures: Gallery | None


@dataclass(frozen=True, kw_only=True)
class MethodPage:
    """What the template of a method shows; ``unknown`` says why there is no card."""

    name: str
    title: str | None
    source: str | None
    card: Markup | None
    unknown: str | None
    rows: tuple[MethodRow, ...]


def method_pages(
    compiled: Compiled, registry: Registry, draw: Callable[[Table, Row], Gallery] | None = None
) -> list[MethodPage]:
    """One page per method that has a row, by name; with the figures that ``draw`` gives for a row."""
    rows: dict[str, list[MethodRow]] = {}
    for table in compiled.tables:
        for row in table.rows:
            figures = draw(table, row) if draw else None
            rows.setdefault(row.method, []).append(_method_row(compiled, table, row, figures))
    return [_page(name, tuple(rows[name]), registry.get(name)) for name in sorted(rows)]


def _page(name: str, rows: tuple[MethodRow, ...], info: MethodInfo | BrokenMethod | None) -> MethodPage:
    if not isinstance(info, MethodInfo):
        reason = "not installed here" if info is None else f"cannot be loaded here: {info.reason}"
        return MethodPage(name=name, title=None, source=None, card=None, unknown=f"the method is {reason}", rows=rows)
    card = method_card(info)
    unknown = "the method has no card" if card is None else None
    source = f"{info.paper} ({info.year})" if info.paper else None
    return MethodPage(name=name, title=info.title, source=source, card=card, unknown=unknown, rows=rows)


def _method_row(compiled: Compiled, table: Table, row: Row, figures: Gallery | None) -> MethodRow:
    alone = table.only(row)
    return MethodRow(
        title=f"{row.label} — {table_title(compiled, table)}",
        facts={**_facts(table, row), **view_facts(compiled)},
        figures=figures,
        config={key: _value(value) for key, value in row.config.items()},
        centers=_centers(alone, row),
        seeds=_seeds(row),
        cost=cost_sheet(alone) if row.cost else None,
        missing=missing_sheet(alone) if alone.missing else None,
        runs=tuple(
            RunLine(center=center, seed=seed, dsc=points(run.means["dsc"]), run=run)
            for center, result in row.centers.items()
            for seed, run in result.runs.items()
        ),
    )


def _facts(table: Table, row: Row) -> dict[str, str]:
    found = table.statistics
    one = found.comparisons.get(row.label) if found else None
    place = found.standings.get(row.label) if found else None
    facts = {
        "Method version": str(row.version),
        "Mean DSC": number("dsc", row.mean["dsc"]) if row.complete else "incomplete, not ranked",
        "Rank": rank_cell(table, row),
        "Seeds": row.seeds_text,
    }
    if (grade := _evidence(table, row)) is not None:
        facts["Evidence"] = grade
    if one is not None:
        facts[f"Difference to {one.baseline}"] = difference_text(one.overall) + " points"
        if one.p_holm is not None:
            facts["p (Holm)"] = p_text(one.p_holm)
        if one.effect_size is not None:
            facts["Effect size"] = f"{one.effect_size:+.2f}"
    if place is not None and place.rank_interval is not None:
        facts["Rank interval"] = "{} to {}".format(*place.rank_interval)
        facts["Tier"] = str(place.tier)
    if place is not None and place.p_best is not None:
        facts["P(best)"] = f"{place.p_best:.2f}"
    if row.record is not None:
        facts["Record"] = row.record
    if row.notes:
        facts["Notes"] = "; ".join(row.notes)
    return facts


def _evidence(table: Table, row: Row) -> str | None:
    """What the seeds of the row permit, or why nothing; None for a row that is neither compared nor ranked."""
    if not table.ranked:
        return f"none: {UNRANKED}"
    if row.imported and not (table.statistics and row.label in table.statistics.comparisons):
        return f"none: not compared with {table.baseline}"
    if table.statistics is None or not row.complete:
        return "none: no complete row"
    grade = table.statistics.evidence_of(row.label)
    if grade is None:
        return None if table.statistics.evidence else NO_EVIDENCE
    return grade.value


def _centers(table: Table, row: Row) -> Sheet:
    one = table.statistics.comparisons.get(row.label) if table.statistics else None
    columns = (
        "held-out center",
        *(HEADERS[metric] for metric in METRICS),
        f"DSC − {one.baseline if one else table.baseline}",
        "cases",
        "empty",
        "failed",
    )
    lines = []
    for center, result in row.centers.items():
        finished = max(1, len(result.runs))
        counts = (result.counts.get(key, 0) for key in ("n", "n_empty_prediction", "n_failed"))
        cases, empty, failed = counts
        lines.append(
            (
                center,
                center_cell(table, row, center),
                *(number(m, result.scores.get(m)) if result.scores else BLANK for m in METRICS[1:]),
                difference_text(one.centers[center]) if one and center in one.centers else BLANK,
                str(cases // finished),
                str(empty),
                str(failed),
            )
        )
    footer = ("empty: predictions without a voxel; empty and failed: over all seeds",)
    return Sheet(
        heading=("Results by held-out center: DSC and NSD in points, distances in mm",),
        columns=columns,
        rows=tuple(lines),
        footer=footer,
        numeric=frozenset(columns[1:]),
    )


def _seeds(row: Row) -> Sheet:
    columns = ("held-out center", *(f"seed {seed}" for seed in row.seeds))
    lines = [
        (center, *(points(result.runs[seed].means["dsc"]) if seed in result.runs else "missing" for seed in row.seeds))
        for center, result in row.centers.items()
    ]
    return Sheet(
        heading=("Mean DSC by seed, points",), columns=columns, rows=tuple(lines), numeric=frozenset(columns[1:])
    )


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
