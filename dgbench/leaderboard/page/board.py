"""The main table: its columns in groups, and a cell for every row with what is shown and what it is sorted by."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dgbench.leaderboard import policies
from dgbench.leaderboard.page.marks import Place, Scale, interval_mark, rank_strip, seeds_mark
from dgbench.leaderboard.ranking import Standing
from dgbench.leaderboard.results import METRICS, Row, Score, Table, seed_means
from dgbench.leaderboard.sheets import BLANK, HEADERS, number, points
from dgbench.leaderboard.statistics import Comparison
from dgbench.leaderboard.statistics_sheets import difference_cells, p_text
from dgbench.leaderboard.tables import RECORDS, center_cell, detection_cell, rank_cell
from dgbench.store.tiers import TIERS

DETECTION_HEADERS = {
    "sensitivity": "sensitivity",
    "false_positives": "FP per case",
    "false_positives_lesion_free": "FP per lesion-free case",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """``falling``: the first click sorts the highest value up. ``text``: sorted as text, left-aligned. ``title`` explains the header."""

    header: str
    group: str
    title: str = ""
    falling: bool = False
    text: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """``key`` is what the cell is sorted by; without one it always comes last."""

    text: str
    key: float | str | None = None
    mark: Markup | None = None


EMPTY = Cell(text=BLANK)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: ``cells`` in the order of the columns; the name of the method is one of its own, before all others."""

    label: str
    method: str
    complete: bool
    stamps: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Board:
    """The main table of one leaderboard table, and its rank strip where there are rank intervals."""

    columns: tuple[Column, ...]
    groups: tuple[tuple[str, int], ...]
    lines: tuple[Line, ...]
    scales: tuple[str, ...]
    strip: Markup | None


@dataclass(frozen=True)
class _Scales:
    seeds: Scale | None
    difference: Scale | None


def board(table: Table) -> Board:
    """The main table of ``table``, rows in its order; imported prediction sets have a section of their own."""
    rows = [row for row in table.rows if not row.imported]
    found = table.statistics
    comparisons = {row.label: found.comparisons[row.label] for row in rows if found and row.label in found.comparisons}
    standings = found.standings if found else {}
    scales = _Scales(
        Scale.around(value for row in rows for value in seed_means(row).values()),
        Scale.around((100 * value for one in comparisons.values() for value in _ends(one)), include=(0.0,)),
    )
    lines = tuple(
        Line(
            label=row.label,
            method=row.method,
            complete=row.complete,
            stamps="; ".join(row.stamps),
            cells=_cells(table, row, comparisons.get(row.label), standings.get(row.label), scales),
        )
        for row in rows
    )
    columns = _columns(table)
    return Board(
        columns=columns,
        groups=_groups(columns),
        lines=lines,
        scales=tuple(_scale_notes(scales)),
        strip=_strip(table, standings),
    )


def _columns(table: Table) -> tuple[Column, ...]:
    accuracy, other = "DSC, points", "Other metrics, mean over centers"
    difference, standing, detection, cost = f"Difference to {table.baseline}", "Standing", "Detection", "Cost"
    overlaps = policies.OVERLAPS
    return (
        Column(header="rank", group="", title="official rank by mean DSC; only ranked rows have one"),
        Column(
            header="mean DSC", group=accuracy, falling=True, title="equal-weight mean over centers, ± sd over seeds"
        ),
        Column(header="seeds", group=accuracy, falling=True, title="mean over centers of each seed; tick: their mean"),
        *(Column(header=center, group=accuracy, falling=True, title=f"held out: {center}") for center in table.centers),
        Column(header="worst center", group=accuracy, falling=True),
        Column(
            header=f"DSC − {table.baseline}", group=difference, falling=True, title="points, with the 95 % interval"
        ),
        Column(header="interval", group=difference, falling=True, title="the same, drawn; sorted by the lower end"),
        Column(header="p (Holm)", group=difference, title="adjusted for all that are compared with the same row"),
        Column(header="effect size", group=difference, falling=True, title="Cohen's d_z over patients"),
        Column(
            header="rank interval", group=standing, title="ranks that the simultaneous 95 % intervals leave possible"
        ),
        Column(
            header="P(best)",
            group=standing,
            falling=True,
            title="share of resamples in which it is first; from five seeds up",
        ),
        Column(header="tier", group=standing, title="methods of one tier are not told apart"),
        *(
            Column(header=HEADERS[m] + ("" if m in overlaps else ", mm"), group=other, falling=m in overlaps)
            for m in METRICS[1:]
        ),
        *(
            Column(header=header, group=detection, falling=metric == "sensitivity")
            for metric, header in DETECTION_HEADERS.items()
        ),
        Column(header="parameters", group=cost, title="training network, all heads"),
        Column(header="GFLOPs", group=cost, title="convention of the paper's Table VI"),
        Column(header="s per case", group=cost, title="inference, flips included"),
        Column(
            header=f"training × {table.baseline}",
            group=cost,
            title="steps × median step time, pairwise on the same kind of machine (least to greatest)",
        ),
        Column(header="seeds run", group="Row", title="at every center"),
        *((Column(header="record", group="Row", title=RECORDS),) if _has_records(table) else ()),
        Column(header="notes", group="Row", text=True),
    )


def _cells(table: Table, row: Row, one: Comparison | None, place: Standing | None, scales: _Scales) -> tuple[Cell, ...]:
    return (
        Cell(text=rank_cell(table, row), key=row.rank),
        _score("dsc", row.mean.get("dsc")) if row.complete else Cell(text="incomplete"),
        _seeds(row, scales.seeds),
        *(
            Cell(text=center_cell(table, row, center), key=_key(row.centers[center].scores.get("dsc")))
            for center in table.centers
        ),
        _worst(row),
        *_difference(table, row, one, scales.difference),
        *_standing(place),
        *(_score(metric, row.mean.get(metric)) if row.complete else EMPTY for metric in METRICS[1:]),
        *(_detection(metric, row) for metric in DETECTION_HEADERS),
        *_cost(row),
        _seeds_run(row),
        *((_record(row),) if _has_records(table) else ()),
        _notes(row),
    )


def _seeds_run(row: Row) -> Cell:
    """The seeds that are there at every center."""
    run = [seed for seed in row.seeds if all(seed in center.runs for center in row.centers.values())]
    return Cell(text=", ".join(map(str, run)) or BLANK, key=len(run))


def _has_records(table: Table) -> bool:
    return any(row.record for row in table.rows)


def _record(row: Row) -> Cell:
    return EMPTY if row.record is None else Cell(text=row.record, key=TIERS.index(row.record))


def _key(score: Score | None) -> float | None:
    return None if score is None else score.mean


def _score(metric: str, score: Score | None) -> Cell:
    return Cell(text=number(metric, score), key=_key(score))


def _seeds(row: Row, scale: Scale | None) -> Cell:
    by_seed = seed_means(row)
    if scale is None or not by_seed:
        return EMPTY
    return Cell(text="", key=min(by_seed.values()), mark=seeds_mark(by_seed, scale))


def _worst(row: Row) -> Cell:
    if row.worst is None:
        return EMPTY
    dsc = row.centers[row.worst].scores["dsc"].mean
    return Cell(text=f"{points(dsc)} {row.worst}", key=dsc)


def _ends(one: Comparison) -> tuple[float, ...]:
    return (one.overall.mean, *(one.overall.interval or ()))


def _difference(table: Table, row: Row, one: Comparison | None, scale: Scale | None) -> tuple[Cell, ...]:
    if one is None or scale is None:
        first = Cell(text="baseline", key=0.0) if row.complete and row.is_baseline else EMPTY
        return (first, EMPTY, EMPTY, EMPTY)
    mean, interval = 100 * one.overall.mean, one.overall.interval
    scaled = None if interval is None else (100 * interval[0], 100 * interval[1])
    return (
        Cell(text=difference_cells(one, table.baseline)[0], key=mean),
        Cell(text="", key=scaled[0] if scaled else mean, mark=interval_mark(mean, scaled, scale)),
        EMPTY if one.p_holm is None else Cell(text=p_text(one.p_holm), key=one.p_holm),
        EMPTY if one.effect_size is None else Cell(text=f"{one.effect_size:+.2f}", key=one.effect_size),
    )


def _standing(place: Standing | None) -> tuple[Cell, ...]:
    if place is None or place.rank_interval is None or place.tier is None:
        return (EMPTY, EMPTY, EMPTY)
    low, high = place.rank_interval
    return (
        Cell(text=f"{low} to {high}", key=low + high / 10_000),
        EMPTY if place.p_best is None else Cell(text=f"{place.p_best:.2f}", key=place.p_best),
        Cell(text=str(place.tier), key=place.tier),
    )


def _detection(metric: str, row: Row) -> Cell:
    if not row.complete:
        return EMPTY
    score = row.mean.get(metric)
    return Cell(text=detection_cell(metric, score), key=_key(score))


def _cost(row: Row) -> tuple[Cell, ...]:
    cost = row.cost
    if cost is None:
        return (EMPTY,) * 4
    per_case, factor = cost.seconds_per_case, cost.factor_text
    return (
        Cell(text=f"{cost.params:,}", key=cost.params),
        Cell(text=f"{cost.gflops:.3f}", key=cost.gflops),
        EMPTY if per_case is None else Cell(text=f"{per_case:.2f}", key=per_case),
        EMPTY if factor is None else Cell(text=factor, key=cost.train_factor),
    )


def _notes(row: Row) -> Cell:
    notes = row.notes[len(row.stamps) :]  # the stamps stand below the name
    text = "; ".join(notes if row.complete else ("incomplete, not ranked", *notes))
    return Cell(text=text, key=text or None)


def _groups(columns: Sequence[Column]) -> tuple[tuple[str, int], ...]:
    """Neighbouring columns of one group, with their number."""
    found: list[tuple[str, int]] = []
    for column in columns:
        if found and found[-1][0] == column.group:
            found[-1] = (column.group, found[-1][1] + 1)
        else:
            found.append((column.group, 1))
    return tuple(found)


def _scale_notes(scales: _Scales) -> Iterable[str]:
    if scales.seeds is not None:
        yield f"seeds: one dot each, from {scales.seeds.text} points; the tick is their mean"
    if scales.difference is not None:
        yield (
            f"interval: from {scales.difference.text} points, the vertical line is 0 (no difference); a filled mark "
            "excludes 0, a hollow one does not or has no interval"
        )


def _strip(table: Table, standings: Mapping[str, Standing]) -> Markup | None:
    places = [
        Place(label=row.label, rank=place.rank, interval=place.rank_interval, tier=place.tier)
        for row in table.rows
        if (place := standings.get(row.label)) is not None and place.rank_interval is not None
    ]
    return rank_strip(sorted(places, key=lambda place: place.rank)) if len(places) > 1 else None
