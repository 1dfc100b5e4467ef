"""Compiled leaderboards and single runs as sheets of text, for terminals and for Markdown.

The first line of every page says whether the numbers come from the phantom or from patients. A cell without a number says why.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dgbench.errors import DgbenchError
from dgbench.leaderboard import policies
from dgbench.leaderboard.compile import (
    AMONG_DETECTED,
    BASELINE,
    DETECTION,
    METRICS,
    Compiled,
    Row,
    Score,
    Table,
    resolve_policy,
)
from dgbench.leaderboard.published import Published, Reported
from dgbench.protocol import Protocol
from dgbench.store.folder import RunSpec

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

BANNERS = {"phantom": "PHANTOM DATA — not patient data", "patient": "Patient data"}
REPORTED = "REPORTED in the literature on patient data — not run by dgbench, never ranked with its rows"
UNITS = "DSC and NSD in points (0–100), distances in mm; ± is the standard deviation over seeds"
HEADERS = {"dsc": "DSC", "nsd": "NSD", "asd": "ASD", "hd95": "HD95", "centroid": "centroid"}
UNDEFINED = "undefined"
NOTES = "notes"
BLANK = "–"
"""In a row whose notes say why: not ranked, or incomplete."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Lines of text, a table of text cells, more lines.

    ``numeric`` columns are right-aligned, ``code`` columns hold commands. A column :data:`NOTES` is the last one, and then the second
    column names the row.
    """

    heading: tuple[str, ...]
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    footer: tuple[str, ...] = ()
    numeric: frozenset[str] = frozenset()
    code: frozenset[str] = frozenset()


def points(value: float) -> str:
    """A value in [0, 1] in points, one decimal."""
    return f"{100 * value:.1f}"


def number(metric: str, score: Score | None) -> str:
    """A score as text: points for DSC and NSD, mm else; with its spread where there are several seeds."""
    if score is None:
        return UNDEFINED
    scale = 100 if metric in policies.OVERLAPS else 1
    spread = "" if score.sd is None else f" ± {scale * score.sd:.1f}"
    return f"{scale * score.mean:.1f}{spread}"


def describe_policy(policy: policies.Policy) -> str:
    """One line that says what counts for what."""
    centroid = (
        "centroid over detected cases only" if policy.centroid_mm is None else f"centroid {policy.centroid_mm:g} mm"
    )
    reference = "are excluded" if policy.exclude_empty_reference else "count as empty predictions"
    return (
        f"policy {policy.name}: an empty prediction or failed case counts as DSC 0, NSD 0, ASD {policy.asd_mm:g} mm, "
        f"HD95 {policy.hd95_mm:g} mm, {centroid}; cases without a reference lesion {reference}"
    )


def leaderboard_sheets(compiled: Compiled, published: Published | None = None) -> list[Sheet]:
    """One sheet per table, each followed by its missing runs, and the reported counterpart of the view last."""
    sheets: list[Sheet] = []
    for position, table in enumerate(compiled.tables, start=1):
        sheets.append(_table_sheet(compiled, table, position))
        if any(row.imported for row in table.rows):
            sheets.append(_imported_sheet(table))
        if any(row.complete and not row.imported for row in table.rows):
            sheets.append(_detection_sheet(table))
        if any(row.cost for row in table.rows):
            sheets.append(_cost_sheet(table))
        if table.missing:
            sheets.append(_missing_sheet(table))
    if not sheets:
        start = f"no runs yet — start with: dgbench run --protocol {compiled.protocol} --method erm --heldout CENTER"
        sheets.append(Sheet(heading=(BANNERS[compiled.kind], f"Leaderboard {compiled.protocol}: {start}")))
    if compiled.problems:
        heading = f"Run folders that cannot be read and are not counted ({len(compiled.problems)})"
        sheets.append(Sheet(heading=(heading,), footer=compiled.problems))
    if published is not None:
        sheets.append(_published_sheet(published, compiled.view.setting))
    return sheets


def _table_sheet(compiled: Compiled, table: Table, position: int) -> Sheet:
    metrics = METRICS[1:]
    columns = (
        *("rank", "method", *(f"DSC {center}" for center in table.centers), "mean DSC", "worst center"),
        *(HEADERS[metric] for metric in metrics),
        *("seeds", NOTES),
    )
    rows = [
        (
            str(row.rank or BLANK),
            row.label,
            *(_center_cell(table, row, center) for center in table.centers),
            number("dsc", row.mean["dsc"]) if row.complete else "incomplete",
            f"{points(row.centers[row.worst].scores['dsc'].mean)} {row.worst}" if row.worst else BLANK,
            *(number(metric, row.mean.get(metric)) if row.complete else BLANK for metric in metrics),
            ", ".join(map(str, row.seeds)),
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
        footer=("undefined: no case of a center defines the metric under this policy",) if undefined else (),
        numeric=frozenset(columns) - {"method", NOTES},
    )


def _imported_sheet(table: Table) -> Sheet:
    """Prediction sets of systems that were not trained under the protocol, by mean DSC."""
    metrics, counted = METRICS[1:], DETECTION[:2]
    columns = (
        *("training", "system", *(f"DSC {center}" for center in table.centers), "mean DSC"),
        *(*(HEADERS[metric] for metric in metrics), "sensitivity", "FP per case", "cost", "seeds", NOTES),
    )
    rows = [
        (
            *("not ours", row.label),
            *(_center_cell(table, row, center) for center in table.centers),
            number("dsc", row.mean["dsc"]) if row.complete else "incomplete",
            *(number(metric, row.mean.get(metric)) if row.complete else BLANK for metric in metrics),
            *(_detection_cell(metric, row.mean.get(metric)) if row.complete else BLANK for metric in counted),
            *("unknown", ", ".join(map(str, row.seeds)), "; ".join(row.notes)),
        )
        for row in table.rows
        if row.imported
    ]
    return Sheet(
        heading=(
            "Imported prediction sets: masks of systems that were not trained under this protocol, never ranked with rows that were",
            "one mask per case: setting F-Seg, no threshold and no checkpoint to choose, whatever the view above; what they were trained "
            "on, with which budget and at what cost is not known here",
        ),
        columns=columns,
        rows=tuple(rows),
        numeric=frozenset(columns) - {"training", "system", "cost", NOTES},
    )


def _detection_sheet(table: Table) -> Sheet:
    words = {
        "sensitivity": "sensitivity",
        "false_positives": "FP per case",
        "false_positives_lesion_free": "FP per lesion-free case",
        **{metric: f"{HEADERS[metric.removesuffix('_detected')]} among detected" for metric in AMONG_DETECTED},
    }
    rows = [
        (row.label, *(_detection_cell(metric, row.mean.get(metric)) for metric in words))
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


def _cost_sheet(table: Table) -> Sheet:
    columns = (
        "method",
        "parameters",
        "GFLOPs",
        "deployed parameters",
        "deployed GMACs",
        "s per case",
        "training s",
        f"× {BASELINE}",
    )
    rows = [
        (
            row.label,
            f"{row.cost.params:,}",
            f"{row.cost.gflops:.3f}",
            f"{row.cost.deployed_params:,}",
            f"{row.cost.deployed_gmacs:.3f}",
            BLANK if row.cost.seconds_per_case is None else f"{row.cost.seconds_per_case:.2f}",
            f"{row.cost.train_seconds:.0f}",
            BLANK if row.cost.train_factor is None else f"{row.cost.train_factor:.2f}",
        )
        for row in table.rows
        if row.cost is not None
    ]
    machines = sorted({machine for row in table.rows if row.cost for machine in row.cost.machines})
    return Sheet(
        heading=(
            "Cost of the method's stages together, means over runs",
            "parameters, GFLOPs: the convention of the paper's Table VI, training network, one crop of each stage; deployed: what "
            f"predicts; s per case: its stages, flips included; × {BASELINE}: median step time, pairwise on the same machine",
            f"times as the runs had them, not on an idle machine: {'; '.join(machines)}",
        ),
        columns=columns,
        rows=tuple(rows),
        numeric=frozenset(columns) - {"method"},
    )


def _detection_cell(metric: str, score: Score | None) -> str:
    """Points for the sensitivity, two decimals for counts, one for mm."""
    if score is None:
        return "not evaluated" if metric == "false_positives_lesion_free" else UNDEFINED
    scale, digits = (100, 1) if metric == "sensitivity" else (1, 2 if metric in DETECTION else 1)
    spread = "" if score.sd is None else f" ± {scale * score.sd:.{digits}f}"
    return f"{scale * score.mean:.{digits}f}{spread}"


def _heading(compiled: Compiled, table: Table, position: int) -> tuple[str, ...]:
    view = compiled.view
    cases = ", ".join(
        f"{center} {table.n_cases[center]}"
        + (f" ({table.n_excluded[center]} excluded)" if table.n_excluded[center] else "")
        if center in table.n_cases
        else f"{center} not evaluated"
        for center in table.centers
    )
    lines = [
        BANNERS[compiled.kind],
        f"Leaderboard {compiled.protocol} version {table.protocol_version} ({table.content[:8]}), preset {table.preset}, "
        f"setting {view.setting}, "
        f"threshold {view.threshold:g}, checkpoint {view.checkpoint}",
        describe_policy(compiled.policy),
        f"dgbench {', '.join(table.dgbench)}; seeds {', '.join(map(str, table.seeds))}; cases {cases}; {_troubles(table)}; "
        f"data {table.data}",
        _standing(compiled, table),
        UNITS,
    ]
    if len(compiled.tables) > 1:
        lines.append(
            f"Table {position} of {len(compiled.tables)}: runs that differ in dgbench Major.Minor, protocol version or content, preset or "
            "data are not comparable and never share a table"
        )
    return tuple(lines)


def _troubles(table: Table) -> str:
    """Empty predictions and failed cases over all counted runs."""
    results = [result.counts for row in table.rows for result in row.centers.values()]
    total, empty, failed = (
        sum(counts.get(key, 0) for counts in results) for key in ("n", "n_empty_prediction", "n_failed")
    )
    return f"empty predictions {empty} and failed cases {failed} of {total}"


def _standing(compiled: Compiled, table: Table) -> str:
    oracle = "oracle ROI: the held-out label places the crop. " if compiled.view.oracle else ""
    if not compiled.view.official:
        return f"{oracle}A view, not ranked; the official ranking is F-Seg, threshold 0.5, source-val, default policy"
    if not table.ranked:
        return f"{table.preset}, not ranked"
    return "Official ranking: mean over centers of the mean DSC over cases; complete rows only"


def _center_cell(table: Table, row: Row, center: str) -> str:
    result = row.centers[center]
    if result.scores:
        return number("dsc", result.scores["dsc"])
    if len(row.seeds) > 1:
        return f"{len(result.finished_seeds)}/{len(row.seeds)} seeds"
    reasons = [hole.reason for hole in table.missing if hole.label == row.label and hole.heldout == center]
    return reasons[0].partition(":")[0]


def _missing_sheet(table: Table) -> Sheet:
    return Sheet(
        heading=(f"Missing runs ({len(table.missing)}); no row is averaged around them",),
        columns=("method", "held-out", "seed", "reason", "command"),
        rows=tuple((hole.label, hole.heldout, str(hole.seed), hole.reason, hole.command) for hole in table.missing),
        numeric=frozenset({"seed"}),
        code=frozenset({"command"}),
    )


def _published_sheet(published: Published, setting: str) -> Sheet:
    rows = published.counterpart(setting)
    heading = (REPORTED, f"{published.source}; setting {setting}")
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


def run_settings(protocol: Protocol) -> dict[str, str]:
    """The settings of a protocol in the order of inference, with what each is: shared stages by their code, the others as `Seg` and
    `Mask`."""
    own = {name: stage for name, stage in protocol.stages.items() if name not in protocol.shared_stages}
    shared = {protocol.stages[name].code: name for name in protocol.shared_stages}
    seg = {f"{stage.code}-Seg": name for name, stage in own.items()}
    mask = {f"{stage.code}-Mask": f"{name}; oracle ROI" for name, stage in own.items()}
    words = {**shared, **seg, **mask}
    return {setting: name.replace("-", ", ") for setting, name in words.items()}


def run_table(
    cases: "pd.DataFrame",
    *,
    spec: RunSpec,
    protocol: Protocol,
    threshold: float = 0.5,
    checkpoint: str = "source-val",
    policy: str = "default",
) -> Sheet:
    """What one run achieved: a line per setting, means over the cases of the held-out center, source-validation DSC beside.

    Args:
        cases: raw rows of the run's evaluation, with those of its shared pancreas run where they exist.
        spec: the run's spec; names method, held-out center, seed and preset in the heading.
        protocol: the protocol, for its metric constants.
        threshold: the threshold of the tumor rows; pancreas rows are always taken at 0.5.
        checkpoint: ``source-val`` or ``last-step``.
        policy: ``default`` or ``paper``.

    Raises:
        DgbenchError: the policy is unknown, or ``cases`` holds no such rows or lacks a column or a value.
    """
    import numpy as np

    rule = resolve_policy(policy, protocol)
    shared = [protocol.stages[name].code for name in protocol.shared_stages]
    wanted = np.where(cases["setting"].isin(shared), 0.5, threshold)
    rows = cases[(cases["checkpoint"] == checkpoint) & np.isclose(cases["threshold"], wanted, atol=1e-6)]
    if rows.empty:
        raise DgbenchError(
            f"evaluation holds no rows for checkpoint {checkpoint}, threshold {threshold:g} — evaluate the run again"
        )
    resolved = policies.apply_policy(rows, rule)
    summary = policies.summarise(resolved, by=["setting", "role", "center"]).to_dict("records")
    columns = ("stage", "setting", "DSC", "ASD", "HD95", "centroid", "cases", "source-val DSC", NOTES)
    lines = []
    for setting, stage in run_settings(protocol).items():
        held = [line for line in summary if line["setting"] == setting and line["role"] == "held-out"]
        source = [line["dsc_mean"] for line in summary if line["setting"] == setting and line["role"] == "source-val"]
        for line in held:
            fallback = rows["roi"][(rows["setting"] == setting) & (rows["role"] == "held-out")].str.startswith(
                "fallback"
            )
            metrics = ("asd", "hd95", "centroid")
            lines.append(
                (
                    *(
                        stage,
                        setting,
                        _mean(100 * line["dsc_mean"]),
                        *(_mean(line[f"{metric}_mean"]) for metric in metrics),
                    ),
                    *(str(line["n"]), _mean(100 * sum(source) / len(source)) if source else "not evaluated"),
                    _run_notes(line, int(fallback.sum())),
                )
            )
    preset = spec.protocol
    stamp = ", ".join(preset.stamps)
    return Sheet(
        heading=(
            BANNERS[spec.protocol.kind],
            f"{spec.method.name}, held-out {spec.heldout}, seed {spec.seed}; protocol {preset.name} version {preset.version}, "
            f"preset {preset.preset}{f' ({stamp})' if stamp else ''}; threshold {threshold:g}, checkpoint {checkpoint}",
            describe_policy(rule),
            "DSC in points (0–100), distances in mm; source-val DSC: equal-weight mean over the source centers",
        ),
        columns=columns,
        rows=tuple(lines),
        numeric=frozenset(columns) - {"stage", "setting", NOTES},
    )


def _mean(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.1f}"


def _run_notes(line: Mapping[Hashable, Any], fallback: int) -> str:
    words = {
        "empty predictions": line["n_empty_prediction"],
        "failed": line["n_failed"],
        "excluded, no lesion": line["n_excluded"],
        "fallback ROI": fallback,
    }
    return ", ".join(f"{text} {count}" for text, count in words.items() if count)


def to_rich(sheets: Iterable[Sheet]) -> "RenderableType":
    """The sheets for a terminal, where width is short: notes stand below the table. Cells are plain text, never markup."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    parts: list[RenderableType] = []
    for sheet in sheets:
        first, *others = sheet.heading
        parts += [Text(printable(first), style="bold"), *(Text(printable(line)) for line in others)]
        if sheet.columns:
            grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
            shown = [position for position, column in enumerate(sheet.columns) if column != NOTES]
            for position in shown:
                column = sheet.columns[position]
                grid.add_column(Text(column), justify="right" if column in sheet.numeric else "left", overflow="fold")
            for row in sheet.rows:
                grid.add_row(*(Text(printable(row[position])) for position in shown))
            parts.append(grid)
            if len(shown) < len(sheet.columns):
                parts += [Text(printable(f"{row[1]}: {row[-1]}")) for row in sheet.rows if row[-1]]
        parts += [*(Text(printable(line), style="dim") for line in sheet.footer), Text()]
    return Group(*parts)


def to_markdown(sheets: Iterable[Sheet]) -> str:
    """The sheets as GitHub-flavoured Markdown; every cell is escaped."""
    blocks: list[str] = []
    for sheet in sheets:
        first, *others = sheet.heading
        blocks.append(f"**{_markdown(first)}**")
        if others:
            blocks.append("\n".join(f"- {_markdown(line)}" for line in others))
        if sheet.columns:
            rule = ["---:" if column in sheet.numeric else "---" for column in sheet.columns]
            lines = [list(map(_markdown, sheet.columns)), rule]
            for row in sheet.rows:
                cells = zip(sheet.columns, row, strict=True)
                lines.append([_code(cell) if column in sheet.code else _markdown(cell) for column, cell in cells])
            blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        if sheet.footer:
            blocks.append("\n".join(f"- {_markdown(line)}" for line in sheet.footer))
    return "\n\n".join(blocks) + "\n"


def printable(text: str) -> str:
    """Text as one line without control characters, which could move a terminal's cursor."""
    return "".join(char if char.isprintable() else " " for char in text)


def _markdown(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\`*_[]<>|~&#" else char for char in printable(text))


def _code(text: str) -> str:
    """A code span that survives backticks and, inside a table, pipes."""
    fence = "`"
    while fence in text:
        fence += "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{printable(text)}{pad}{fence}".replace("|", "\\|")
