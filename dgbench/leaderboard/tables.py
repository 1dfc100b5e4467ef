"""Compiled leaderboards as sheets. The first line of every page says whether the numbers come from the phantom or from patients."""

from collections.abc import Sequence

from dgbench.leaderboard.published import Published, Reported
from dgbench.leaderboard.records import OFFICIAL, View
from dgbench.leaderboard.results import AMONG_DETECTED, DETECTION, METRICS, Compiled, Row, Score, Table, runs_text
from dgbench.leaderboard.sheets import (
    BANNERS,
    BLANK,
    HEADERS,
    IN_DOMAIN,
    NOTES,
    REPORTED,
    UNDEFINED,
    Sheet,
    describe_policy,
    number,
    points,
    units,
)
from dgbench.leaderboard.statistics import Evidence, smoke_stamp
from dgbench.leaderboard.statistics_sheets import difference_cells, statistics_sheets
from dgbench.leaderboard.thresholds import TARGET_INFORMED

RECORDS = (
    "experimental until second records of the same keys from another environment agree with it: reproduced where every mean DSC does, "
    "verified where every case does; the lowest of a row's runs"
)
"""What the tiers of submitted records mean."""


def leaderboard_sheets(compiled: Compiled, published: Published | None = None) -> list[Sheet]:
    """One sheet per table, each followed by its missing runs, and the reported counterpart of the view last."""
    sheets: list[Sheet] = []
    for position, table in enumerate(compiled.tables, start=1):
        sheets.append(_table_sheet(compiled, table, position))
        if table.statistics is not None:
            sheets += statistics_sheets(table, table.statistics)
        if any(row.complete and not row.imported for row in table.rows):
            sheets.append(detection_sheet(table))
        if any(row.cost for row in table.rows):
            sheets.append(cost_sheet(table))
        if any(row.imported for row in table.rows):
            sheets.append(imported_sheet(table))
        if table.missing:
            sheets.append(missing_sheet(table))
    if not sheets:
        start = f"no runs yet — start with: {compiled.start}"
        sheets.append(Sheet(heading=(BANNERS[compiled.kind], f"Leaderboard {compiled.protocol}: {start}")))
    if compiled.problems:
        heading = f"Run folders that cannot be read and are not counted ({len(compiled.problems)})"
        sheets.append(Sheet(heading=(heading,), footer=compiled.problems))
    if published is not None:
        sheets.append(published_sheet(published, compiled.view.setting))
    return sheets


def _table_sheet(compiled: Compiled, table: Table, position: int) -> Sheet:
    metrics, records = METRICS[1:], any(row.record for row in table.rows)
    columns = (
        *("rank", "method", *(f"DSC {center}" for center in table.centers), "mean DSC", "worst center"),
        *(HEADERS[metric] for metric in metrics),
        *("seeds", *(("record",) if records else ()), NOTES),
    )
    rows = [
        (
            rank_cell(table, row),
            row.label,
            *(center_cell(table, row, center) for center in table.centers),
            number("dsc", row.mean["dsc"]) if row.complete else "incomplete",
            f"{points(row.centers[row.worst].scores['dsc'].mean)} {row.worst}" if row.worst else BLANK,
            *(number(metric, row.mean.get(metric)) if row.complete else BLANK for metric in metrics),
            row.seeds_text,
            *((row.record or BLANK,) if records else ()),
            "; ".join(("incomplete, not ranked", *row.notes) if not row.complete else row.notes),
        )
        for row in table.rows
        if not row.imported
    ]
    undefined = any(UNDEFINED in row for row in rows)
    return Sheet(
        heading=_heading(compiled, table, position),
        columns=columns if rows else (),
        rows=tuple(rows),
        footer=(
            *(("undefined: no case of a center defines the metric under this policy",) if undefined else ()),
            *((f"record: {RECORDS}",) if records else ()),
        ),
        numeric=frozenset(columns) - {"method", "record", NOTES},
    )


def rank_cell(table: Table, row: Row) -> str:
    """The rank; with too few seeds to know its interval it is marked."""
    if row.rank is None:
        return BLANK
    smoke = table.statistics is not None and table.statistics.evidence is Evidence.SMOKE
    return f"{row.rank} ({Evidence.SMOKE})" if smoke else str(row.rank)


def detection_sheet(table: Table) -> Sheet:
    """Lesions found and falsely found, and distances among detected cases, of complete rows."""
    words = {
        "sensitivity": "sensitivity",
        "false_positives": "FP per case",
        "false_positives_lesion_free": "FP per lesion-free case",
        **{metric: f"{HEADERS[metric.removesuffix('_detected')]} among detected" for metric in AMONG_DETECTED},
    }
    rows = [
        (row.label, *(detection_cell(metric, row.mean.get(metric)) for metric in words))
        for row in table.rows
        if row.complete and not row.imported
    ]
    return Sheet(
        heading=(
            "Detection: means over centers, complete rows in the order of the table above",
            "sensitivity: lesions found, in percent; FP: predicted lesions without a counterpart; lesion-free: cases of the support "
            "centers; among detected: mm, over cases where both masks hold voxels, so that rows average different cases",
        ),
        columns=("method", *words.values()),
        rows=tuple(rows),
        numeric=frozenset(words.values()),
    )


def cost_sheet(table: Table) -> Sheet:
    """Parameters, operations and times of the rows whose runs tell of them."""
    columns = (
        "method",
        "parameters",
        "GFLOPs",
        "deployed parameters",
        "deployed GMACs",
        "s per case",
        "s per round",
        "training s",
        f"× {table.baseline}",
    )
    rows = [
        (
            row.label,
            f"{row.cost.params:,}",
            f"{row.cost.gflops:.3f}",
            f"{row.cost.deployed_params:,}",
            f"{row.cost.deployed_gmacs:.3f}",
            BLANK if row.cost.seconds_per_case is None else f"{row.cost.seconds_per_case:.2f}",
            BLANK if row.cost.seconds_per_round is None else f"{row.cost.seconds_per_round:.2f}",
            BLANK if row.cost.train_seconds is None else f"{row.cost.train_seconds:.0f}",
            row.cost.factor_text or BLANK,
        )
        for row in table.rows
        if row.cost is not None
    ]
    return Sheet(
        heading=(
            "Cost of the method's stages together",
            "parameters, GFLOPs: the convention of the paper's Table VI, training network, one crop of each stage; deployed: what "
            f"predicts; s per case: its stages, flips included; s per round: of the last stage; × {table.baseline}: steps × median "
            f"step time, relative to the run of {table.baseline} with the same center and seed on the same kind of machine (median over "
            "pairs, least to greatest)",
            times_text(table),
        ),
        columns=columns,
        rows=tuple(rows),
        numeric=frozenset(columns) - {"method"},
    )


def times_text(table: Table) -> str:
    """Where the times of a table were taken."""
    costs = [row.cost for row in table.rows if row.cost is not None]
    (machine,) = {cost.timed_on for cost in costs}
    others = sorted({name for cost in costs for name in cost.machines} - {machine})
    left = f"; runs on other machines give no seconds ({'; '.join(others)})" if others else ""
    return f"times as the runs had them, not on an idle machine: {machine}{left}; means over centers, of rows that have such a run at each"


def imported_sheet(table: Table) -> Sheet:
    """Prediction sets of systems that were not trained under the protocol, by mean DSC; beside trained rows, with their difference to the
    baseline where they have all seeds of the table."""
    metrics, counted = METRICS[1:], DETECTION[:2]
    found = table.statistics
    against = (f"DSC − {table.baseline}", "p (Holm)") if found else ()
    columns = (
        *("training", "system", *(f"DSC {center}" for center in table.centers), "mean DSC", *against),
        *(*(HEADERS[metric] for metric in metrics), "sensitivity", "FP per case", "cost", "seeds", NOTES),
    )
    rows = [
        (
            *("not ours", row.label),
            *(center_cell(table, row, center) for center in table.centers),
            number("dsc", row.mean["dsc"]) if row.complete else "incomplete",
            *(difference_cells(found.comparisons.get(row.label), table.baseline) if found else ()),
            *(number(metric, row.mean.get(metric)) if row.complete else BLANK for metric in metrics),
            *(detection_cell(metric, row.mean.get(metric)) if row.complete else BLANK for metric in counted),
            *("unknown", row.seeds_text, "; ".join(row.notes)),
        )
        for row in table.rows
        if row.imported
    ]
    return Sheet(
        heading=(
            "Imported prediction sets: masks of systems that were not trained under this protocol, never ranked with rows that were",
            "one mask per case: setting F-Seg, no threshold and no checkpoint to choose, whatever the view above; what they were trained "
            "on, with which budget and at what cost is not known here",
            *(
                (f"DSC − {table.baseline}: of sets that have all seeds of the table; p is adjusted among the sets",)
                if found
                else ()
            ),
        ),
        columns=columns,
        rows=tuple(rows),
        numeric=frozenset(columns) - {"training", "system", "cost", NOTES},
    )


def detection_cell(metric: str, score: Score | None) -> str:
    """Points for the sensitivity, two decimals for counts, one for mm."""
    if score is None:
        return "not evaluated" if metric == "false_positives_lesion_free" else UNDEFINED
    scale, digits = (100, 1) if metric == "sensitivity" else (1, 2 if metric in DETECTION else 1)
    spread = "" if score.sd is None else f" ± {scale * score.sd:.{digits}f}"
    return f"{scale * score.mean:.{digits}f}{spread}"


def _heading(compiled: Compiled, table: Table, position: int) -> tuple[str, ...]:
    view = compiled.view
    lines = [
        BANNERS[compiled.kind],
        f"Leaderboard {compiled.protocol} version {table.protocol_version} ({table.content[:8]}), preset {table.preset}, "
        f"setting {view.setting}, "
        f"threshold {view.threshold_text}, checkpoint {view.checkpoint}",
        describe_policy(compiled.policy),
        f"dgbench {', '.join(table.dgbench)}; {runs_text(compiled, table)}; cases {cases_text(table)}; {troubles(table)}; "
        f"data {table.data}",
        standing(compiled, table),
        units(compiled.nsd_tolerance_mm),
    ]
    if len(compiled.tables) > 1:
        lines.append(
            f"Table {position} of {len(compiled.tables)}: runs that differ in dgbench Major.Minor, protocol version or content, preset or "
            "data are not comparable and never share a table"
        )
    return tuple(lines)


def cases_text(table: Table) -> str:
    """How many held-out cases every row has at each center, and how many of them are excluded."""
    return ", ".join(
        f"{center} {table.n_cases[center]}"
        + (f" ({table.n_excluded[center]} excluded)" if table.n_excluded[center] else "")
        if center in table.n_cases
        else f"{center} none counted"
        for center in table.centers
    )


def troubles(table: Table) -> str:
    """Empty predictions and failed cases over all counted runs."""
    results = [result.counts for row in table.rows for result in row.centers.values()]
    total, empty, failed = (
        sum(counts.get(key, 0) for counts in results) for key in ("n", "n_empty_prediction", "n_failed")
    )
    return f"empty predictions {empty} and failed cases {failed} of {total}"


def standing(compiled: Compiled, table: Table) -> str:
    """Whether the table is a ranking, and if not, why; with so few seeds that its order may be chance, that too."""
    smoke = smoke_text(table)
    return f"{_ranking(compiled, table)}{f'; {smoke}' if smoke else ''}"


def smoke_text(table: Table) -> str | None:
    """What must be said of rows that were trained with one or two seeds."""
    return smoke_stamp(len(table.seeds)) if any(not row.imported for row in table.rows) else None


def _ranking(compiled: Compiled, table: Table) -> str:
    oracle = oracle_text(compiled.view)
    if compiled.folds:
        return f"{oracle}{table.preset}, not ranked; {IN_DOMAIN}"
    if not compiled.view.official:
        return f"{oracle}A view, not ranked; the official ranking is F-Seg, threshold 0.5, source-val, default policy"
    if not table.ranked:
        return f"{table.preset}, not ranked"
    return "Official ranking: mean over centers of the mean DSC over cases; complete rows only"


def oracle_text(view: View, settings: Sequence[str] | None = None) -> str:
    """What the held-out center told, in sentences; of the view's own setting or of all ``settings`` that a table holds."""
    masked = [setting for setting in settings or [view.setting] if setting.endswith("-Mask")]
    where = f" in {' and '.join(masked)}" if settings else ""
    roi = f"oracle ROI{where}: the held-out label places the crop. " if masked else ""
    threshold = "oracle threshold: chosen on the held-out center. " if view.threshold in TARGET_INFORMED else ""
    return roi + threshold


def center_cell(table: Table, row: Row, center: str) -> str:
    """The DSC at one center, or why there is none."""
    result = row.centers[center]
    if result.scores:
        return number("dsc", result.scores["dsc"])
    if len(row.seeds) > 1:
        return f"{len(result.finished_seeds)}/{len(row.seeds)} seeds"
    holes = [hole for hole in table.missing if hole.label == row.label and hole.center == center]
    if holes[0].heldout != center:
        return f"{len(holes)} folds missing" if len(holes) > 1 else f"{holes[0].heldout} missing"
    return holes[0].reason.partition(":")[0]


def missing_sheet(table: Table, setting: str = "", methods: Sequence[str] | None = None) -> Sheet:
    """The holes of ``table`` with their reasons and the commands that fill them; only those of ``methods`` if given."""
    labels = {row.label for row in table.rows if methods is None or row.method in methods}
    missing = [hole for hole in table.missing if hole.label in labels]
    where = f" in {setting}" if setting else ""
    return Sheet(
        heading=(f"Missing runs{where} ({len(missing)}); no row is averaged around them",),
        columns=("method", "held-out", "seed", "reason", "command"),
        rows=tuple((hole.label, hole.heldout, str(hole.seed), hole.reason, hole.command) for hole in missing),
        numeric=frozenset({"seed"}),
        code=frozenset({"command"}),
    )


def published_sheet(published: Published, setting: str) -> Sheet:
    """What the paper reports for ``setting``, marked as reported."""
    rows = published.counterpart(setting)
    source = f"{published.source}; setting {setting}; DSC in points, distances in mm"
    heading = (REPORTED, source, *filter(None, [oracle_text(OFFICIAL, [setting]).strip()]))
    if not rows:
        return Sheet(heading=(*heading, f"the paper reports nothing for setting {setting}"))
    centers = published.centers
    columns = (
        *("reported in", "method", *(f"DSC {center}" for center in centers), "mean DSC", "worst center", "ASD", "HD95"),
        *("parameters", "GFLOPs", "s/case", NOTES),
    )
    return Sheet(
        heading=heading,
        columns=columns,
        rows=tuple(_reported_row(row, centers) for row in rows),
        footer=published.remarks,
        numeric=frozenset(columns) - {"reported in", "method", NOTES},
    )


def _reported_row(row: Reported, centers: Sequence[str]) -> tuple[str, ...]:
    worst = min(centers, key=lambda center: row.centers[center].dsc)
    cost = (f"{row.cost.params_1e7:.2f}e7", f"{row.cost.gflops:.2f}", f"{row.cost.seconds:.2f}") if row.cost else ()
    return (
        *(
            f"Table {row.table}",
            row.method,
            *(f"{row.centers[center].dsc:.2f}" for center in centers),
            f"{row.mean.dsc:.2f}",
        ),
        *(f"{row.centers[worst].dsc:.2f} {worst}", f"{row.mean.asd:.2f}", f"{row.mean.hd95:.2f}"),
        *(cost or ("not reported",) * 3),
        row.note or "",
    )
