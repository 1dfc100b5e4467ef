"""The counterparts of the dual-task paper's tables, made from one's own runs.

Each is a selection of settings and methods in the paper's layout: DSC, ASD and HD95 per held-out center and their equal-weight mean.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dgbench.errors import DgbenchError, suggest
from dgbench.leaderboard.published import Published
from dgbench.leaderboard.records import OFFICIAL
from dgbench.leaderboard.results import Compiled, Missing, Row, Score, Table, runs_text
from dgbench.leaderboard.sheets import BANNERS, BLANK, IN_DOMAIN, NOTES, REPORTED, Sheet, describe_policy, number, units
from dgbench.leaderboard.statistics import BASELINE
from dgbench.leaderboard.tables import center_cell, missing_sheet, oracle_text, smoke_text, times_text
from dgbench.protocol import Protocol, load_protocol, protocol_names

METRICS = ("dsc", "asd", "hd95")
ABLATIONS = (
    *("dualtask_bl", "dualtask_idr", "dualtask_dtl", "dualtask_dtl_smooth"),
    *("dualtask_dsl", "dualtask", "dualtask_smooth"),
)
"""The rows of Table V, in its order, and beside them those with a conversion that has a gradient."""


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table: its settings in order, the methods it is of (all by default), and whether cost stands beside."""

    name: str
    title: str
    settings: tuple[str, ...]
    methods: tuple[str, ...] | None = None
    with_cost: bool = False

    @property
    def first_method(self) -> str:
        """The method to begin with."""
        return (self.methods or (BASELINE,))[0]


def paper_table(name: str, protocol: Protocol) -> PaperTable:
    """The counterpart of table ``name`` (II to VI) under ``protocol``: of IV under one that is in-domain, of the others under one that
    holds centers out.

    Raises:
        DgbenchError: there is no such table here.
    """
    shared = tuple(protocol.stages[stage].code for stage in protocol.shared_stages)
    seg = [setting for setting in protocol.settings if setting.endswith("-Seg")]
    official = (seg[-1],)
    known = {
        "II": PaperTable(name="II", title="the shared pancreas stages", settings=shared),
        "III": PaperTable(name="III", title="predicted and reference ROI, coarse and fine", settings=protocol.settings),
        "IV": PaperTable(name="IV", title="in-domain, coarse and fine in both ROIs", settings=protocol.settings),
        "V": PaperTable(name="V", title="ablation of the dual-task framework", settings=official, methods=ABLATIONS),
        "VI": PaperTable(name="VI", title="all methods, with cost", settings=official, with_cost=True),
    }
    if name not in known:
        raise DgbenchError(f"--table {name}: no counterpart here{suggest(name, known)}")
    if (name == "IV") != bool(protocol.folds):
        kind = "in-domain" if protocol.folds else "of held-out centers"
        raise DgbenchError(
            f"--table {name}: protocol {protocol.name!r} is {kind}, the table is not — name another with --protocol"
        )
    if not known[name].settings:
        raise DgbenchError(f"--table {name}: protocol {protocol.name!r} has no shared stages")
    return known[name]


def in_domain_pair(protocol: Protocol) -> tuple[Protocol, Protocol | None]:
    """The protocols whose runs Table IV shows: the in-domain one that ``protocol`` is or is the base of, and that base; None where it has
    none.

    Raises:
        DgbenchError: no in-domain protocol has ``protocol`` as its base.
    """
    if protocol.folds:
        return protocol, None if protocol.base is None else load_protocol(protocol.base)
    for name in protocol_names():
        if (found := load_protocol(name)).folds and found.base == protocol.name:
            return found, protocol
    raise DgbenchError(
        f"--table IV: protocol {protocol.name!r} has no in-domain variant — a file with `base: {protocol.name}` and `folds: 4` makes one"
    )


def paper_table_sheets(
    wanted: PaperTable,
    compiled: Mapping[str, Compiled],
    published: Published | None = None,
    beside: Sequence[Sheet] = (),
) -> list[Sheet]:
    """One sheet for each group of comparable runs, then what is missing, then ``beside``, then the paper's table where ``published`` is
    given.

    ``compiled`` holds the runs in each setting of the table, under the threshold, checkpoint and policy that were asked for.
    """
    groups: list[dict[str, Table]] = []
    for setting, result in compiled.items():
        for table in result.tables:
            beside_it = (
                tables
                for tables in groups
                if setting not in tables and all(_comparable(table, one) for one in tables.values())
            )
            home = next(beside_it, None)
            if home is None:
                groups.append(home := {})
            home[setting] = table
    first = next(iter(compiled.values()))
    sheets: list[Sheet] = []
    for tables in groups:
        if sheet := _sheet(wanted, first, tables):
            sheets.append(sheet)
            holes: dict[tuple[Missing, ...], list[str]] = {}
            for setting, table in tables.items():
                holes.setdefault(table.missing, []).append(setting)
            sheets += [
                missing_sheet(tables[settings[0]], ", ".join(settings), wanted.methods)
                for missing, settings in holes.items()
                if missing
            ]
    if not sheets:
        methods = f" of {', '.join(wanted.methods)}" if wanted.methods else ""
        where = f"protocol {first.protocol}, no runs{methods} in {', '.join(wanted.settings)} yet"
        line = f"Counterpart of Table {wanted.name}: {where} — start with: {first.start}"
        sheets.append(Sheet(heading=(BANNERS[first.kind], line)))
    sheets += beside
    if published is not None:
        sheets.append(_reported(wanted, published))
    return [sheet for sheet in sheets if sheet.rows or sheet.heading]


def _comparable(one: Table, other: Table) -> bool:
    """Whether two tables of different settings are of the same protocol, preset, version and data."""
    return (
        (one.dgbench, one.protocol_version, one.content, one.preset)
        == (other.dgbench, other.protocol_version, other.content, other.preset)
    ) and all(other.identities.get(name, identity) == identity for name, identity in one.identities.items())


def _sheet(wanted: PaperTable, compiled: Compiled, tables: Mapping[str, Table]) -> Sheet | None:
    one = next(iter(tables.values()))
    centers = one.centers
    absent = [name for name in wanted.methods or () if all(row.method != name for row in one.rows)]
    rows = [line for setting, table in tables.items() for line in _lines(wanted, setting, table, absent)]
    if not rows:
        return None
    view = compiled.view
    columns = (
        *("setting", "method"),
        *(f"{metric} {center}" for center in (*centers, "mean") for metric in ("DSC", "ASD", "HD95")),
        *(("parameters", "GFLOPs", "s per case", f"× {BASELINE}") if wanted.with_cost else ()),
        *("seeds", NOTES),
    )
    return Sheet(
        heading=(
            BANNERS[compiled.kind],
            f"Counterpart of Table {wanted.name} ({wanted.title}): protocol {compiled.protocol} version {one.protocol_version} "
            f"({one.content[:8]}), preset {one.preset}, threshold {view.threshold_text}, checkpoint {view.checkpoint}",
            describe_policy(compiled.policy),
            f"dgbench {', '.join(one.dgbench)}; {runs_text(compiled, one, wanted.methods)}; data {one.data}",
            f"{oracle_text(view, list(tables))}A counterpart, not ranked",
            *filter(None, [smoke_text(one)]),
            *((IN_DOMAIN,) if compiled.folds else ()),
            *((times_text(one),) if wanted.with_cost and any(row.cost for row in one.rows) else ()),
            units(compiled.nsd_tolerance_mm),
        ),
        columns=columns,
        rows=tuple(rows),
        footer=(f"not run: {', '.join(absent)} — {_sweep(compiled, one, absent)}",) if absent else (),
        numeric=frozenset(columns) - {"setting", "method", NOTES},
    )


def _lines(wanted: PaperTable, setting: str, table: Table, absent: Sequence[str]) -> list[tuple[str, ...]]:
    """The rows of one setting; in a table of certain methods in its order, with those that were never run."""
    order = {method: position for position, method in enumerate(wanted.methods or ())}
    lines = {
        (order.get(row.method, 0), position): (
            *(setting, row.label),
            *(cell for center in table.centers for cell in _center_cells(table, row, center)),
            *(_cells(row.mean) if row.complete else ("incomplete", "", "")),
            *(_cost_cells(row) if wanted.with_cost else ()),
            *(row.seeds_text, "; ".join(row.notes)),
        )
        for position, row in enumerate(table.rows)
        if not row.imported and (wanted.methods is None or row.method in order)
    }
    for method in absent:
        blank = ("not run", "", "") * (len(table.centers) + 1)
        lines[order[method], 0] = (setting, method, *blank, "none", "")
    return [lines[place] for place in sorted(lines)]


def _sweep(compiled: Compiled, table: Table, methods: Sequence[str]) -> str:
    """The command that runs ``methods`` wherever the table has runs."""
    what = ["--method", ",".join(methods), "--heldout", ",".join(table.centers), "--seeds", str(max(table.seeds) + 1)]
    return shlex.join(["dgbench", "sweep", *compiled.options, "--preset", table.preset, *what])


def _cells(scores: Mapping[str, Score]) -> tuple[str, ...]:
    return tuple(number(metric, scores.get(metric)) for metric in METRICS)


def _center_cells(table: Table, row: Row, center: str) -> tuple[str, ...]:
    scores = row.centers[center].scores
    return _cells(scores) if scores else (center_cell(table, row, center), "", "")


def _cost_cells(row: Row) -> tuple[str, ...]:
    cost = row.cost
    if cost is None:
        return ("none stored",) * 4
    seconds = BLANK if cost.seconds_per_case is None else f"{cost.seconds_per_case:.2f}"
    return f"{cost.params:,}", f"{cost.gflops:.3f}", seconds, cost.factor_text or BLANK


def _reported(wanted: PaperTable, published: Published) -> Sheet:
    rows = [row for row in published.rows if row.table == wanted.name]
    centers = published.centers
    cost = any(row.cost for row in rows)
    oracle = oracle_text(OFFICIAL, list(dict.fromkeys(row.setting for row in rows)))
    columns = (
        *("setting", "method"),
        *(f"{metric} {center}" for center in (*centers, "mean") for metric in ("DSC", "ASD", "HD95")),
        *(("parameters", "GFLOPs", "s per case") if cost else ()),
        NOTES,
    )
    lines = [
        (
            *(row.setting, row.method),
            *(f"{value:.2f}" for center in centers for value in row.centers[center]),
            *(f"{value:.2f}" for value in row.mean),
            *(
                (f"{row.cost.params_1e7:.2f}e7", f"{row.cost.gflops:.2f}", f"{row.cost.seconds:.2f}")
                if row.cost
                else ("not reported",) * (3 if cost else 0)
            ),
            row.note or "",
        )
        for row in rows
    ]
    return Sheet(
        heading=(REPORTED, f"{published.source}; Table {wanted.name}", *filter(None, [oracle.strip()])),
        columns=columns,
        rows=tuple(lines),
        footer=published.remarks,
        numeric=frozenset(columns) - {"setting", "method", NOTES},
    )
