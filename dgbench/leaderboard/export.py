"""Compiled leaderboards for other programs: JSON with full precision and one flat CSV. The first line says phantom or patients."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from dgbench.leaderboard import policies
from dgbench.leaderboard.costs import RowCost
from dgbench.leaderboard.evidence import TableStatistics
from dgbench.leaderboard.published import Published
from dgbench.leaderboard.results import AMONG_DETECTED, COUNTS, DETECTION, METRICS, QUARTILES, Compiled, Row, Score
from dgbench.leaderboard.sheets import BANNERS, REPORTED, Sheet, describe_policy, printable, units
from dgbench.leaderboard.statistics import Difference
from dgbench.leaderboard.tables import standing


def to_json(compiled: Compiled, published: Published | None = None) -> str:
    """Everything compiled, with full precision: DSC and NSD in [0, 1], distances in mm. What is undefined is absent, never NaN."""
    view = compiled.view
    content: dict[str, Any] = {
        "data": BANNERS[compiled.kind],
        "protocol": compiled.protocol,
        "view": {**asdict(view), "official": view.official, "oracle": view.oracle},
        "policy": asdict(compiled.policy),
        "standing": list({standing(compiled, table): None for table in compiled.tables}),
        "nsd_tolerance_mm": compiled.nsd_tolerance_mm,
        "units": {
            **{
                metric: "fraction" if metric in policies.OVERLAPS else "mm"
                for metric in (*METRICS, *AMONG_DETECTED, *QUARTILES)
            },
            **{metric: "fraction" if metric == "sensitivity" else "lesions per case" for metric in DETECTION},
        },
        "first_seeds": compiled.first_seeds,
        "unreadable": compiled.problems,
        "tables": [{**asdict(table), "rows": [_row_json(row) for row in table.rows]} for table in compiled.tables],
    }
    if published is not None:
        rows = [row.model_dump(mode="json") for row in published.counterpart(view.setting)]
        reported = {
            "source": published.source,
            "remarks": published.remarks,
            "units": "DSC in percent, distances in mm",
        }
        content["reported"] = {"data": REPORTED, **reported, "rows": rows}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _row_json(row: Row) -> dict[str, Any]:
    """Without the commands of its runs: they name folders of a machine, and runs and their records shall give one table."""
    content = {**asdict(row), "complete": row.complete, "seeds": row.counted_seeds, "seeds_owed": row.seeds}
    for center in content["centers"].values():
        for run in center["runs"].values():
            del run["commands"]
    return content


def sheets_to_json(sheets: Iterable[Sheet]) -> str:
    """Tables of text as they are printed: heading and footer as lines, each row as an object from column to cell."""
    content = [
        {
            "heading": sheet.heading,
            "rows": [dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows],
            "footer": sheet.footer,
        }
        for sheet in sheets
    ]
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def sheets_to_csv(sheets: Iterable[Sheet]) -> str:
    """Tables of text as they are printed, one after the other with a blank line between: heading and footer as comment lines, then the
    columns, then the rows."""
    blocks = []
    for sheet in sheets:
        text = io.StringIO()
        text.writelines(f"# {printable(line)}\n" for line in (*sheet.heading, *sheet.footer))
        if sheet.columns:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerows([list(map(printable, row)) for row in (sheet.columns, *sheet.rows)])
        blocks.append(text.getvalue())
    return "\n".join(blocks)


CSV_COLUMNS = (
    *("status", "rank", "method", "center", "seeds", "n", "n_excluded", "n_empty_prediction", "n_failed"),
    *(name for metric in (*METRICS, *AMONG_DETECTED, *DETECTION) for name in (metric, f"{metric}_sd")),
    *QUARTILES,
    *("evidence", "baseline", "difference", "difference_low", "difference_high", "p_holm", "effect_size"),
    *("rank_low", "rank_high", "p_best", "tier", "worst_center"),
    *("params", "gflops", "deployed_params", "deployed_gmacs", "seconds_per_case", "seconds_per_round"),
    *("train_seconds", "train_factor"),
    *("train_factor_low", "train_factor_high", "timed_on"),
    *("record", "dgbench", "protocol_version", "content", "preset", "data", "notes", "command"),
)


def to_csv(compiled: Compiled, published: Published | None = None) -> str:
    """One line per row and center, one per row for its mean, one per missing run and per reported number; comment lines first.

    DSC and NSD are in points, distances in mm; ``status`` says ranked, unranked, imported, incomplete, missing or reported. ``difference``
    is that of DSC to the row named as ``baseline``, at the center or of the mean.
    """
    view = compiled.view
    text = io.StringIO()
    text.writelines(f"# {printable(line)}\n" for line in _remarks(compiled, published))
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for table in compiled.tables:
        common = {"dgbench": " ".join(table.dgbench), "protocol_version": table.protocol_version}
        common |= {"content": table.content, "preset": table.preset, "data": table.data}
        writer.writerows(
            {**common, **line} for row in table.rows for line in _csv_rows(row, table.statistics, table.ranked)
        )
        for hole in table.missing:
            missing = {"status": "missing", "method": hole.label, "center": hole.heldout, "seeds": hole.seed}
            writer.writerow({**common, **missing, "notes": printable(hole.reason), "command": printable(hole.command)})
    for reported in published.counterpart(view.setting) if published else ():
        for center, (dsc, asd, hd95) in {**reported.centers, "mean": reported.mean}.items():
            line = {
                "status": "reported",
                "method": reported.method,
                "center": center,
                "dsc": dsc,
                "asd": asd,
                "hd95": hd95,
            }
            cost = reported.cost if center == "mean" else None
            priced = (
                {"params": round(cost.params_1e7 * 1e7), "gflops": cost.gflops, "seconds_per_case": cost.seconds}
                if cost
                else {}
            )
            notes = "; ".join((f"table {reported.table}", reported.note or "as printed"))
            writer.writerow({**line, **priced, "notes": notes})
    return text.getvalue()


def _remarks(compiled: Compiled, published: Published | None) -> Iterable[str]:
    """What the numbers are of, a line each; the first says phantom or patients."""
    view = compiled.view
    yield BANNERS[compiled.kind]
    chosen = f"setting {view.setting}, threshold {view.threshold_text}, checkpoint {view.checkpoint}"
    yield f"protocol {compiled.protocol}, {chosen}"
    yield from {standing(compiled, table): None for table in compiled.tables}
    yield describe_policy(compiled.policy)
    yield units(compiled.nsd_tolerance_mm)
    yield (
        "columns: sensitivity and p_best as fractions, false positives per case, difference in points; n counts cases times seeds; seconds "
        "are of the runs on the machine timed_on, not on an idle one; median, q25 and q75 over cases, then means over seeds (and centers)"
    )
    if compiled.first_seeds is not None:
        yield f"--seeds {compiled.first_seeds}: runs with later seeds are left out"
    yield from (f"unreadable, not counted: {problem}" for problem in compiled.problems)
    if published is not None:
        yield f"lines with status reported: {REPORTED}"
        yield from (published.source, *published.remarks)


def _csv_rows(row: Row, statistics: TableStatistics | None, is_ranked: bool) -> Iterable[dict[str, Any]]:
    status = "imported" if row.imported else "ranked" if row.rank else "unranked"
    status = status if row.complete else "incomplete"
    one = statistics.comparisons.get(row.label) if statistics else None
    place = statistics.standings.get(row.label) if statistics else None
    shared = {"status": status, "rank": row.rank, "method": row.label, "record": row.record}
    if one:
        shared["baseline"] = one.baseline
    if is_ranked and statistics:
        shared["evidence"] = statistics.evidence_of(row.label)
    for center, result in row.centers.items():
        gap = "" if result.scores else f"{len(result.finished_seeds)} of {len(row.seeds)} seeds finished"
        difference = _csv_difference(one.centers[center]) if one else {}
        seeds = " ".join(map(str, result.finished_seeds))
        counts = {count: result.counts.get(count) for count in COUNTS}
        scores = {**counts, **_csv_scores(result.scores), **difference}
        yield {**shared, "center": center, "seeds": seeds, **scores, "notes": gap}
    if row.complete:
        found: dict[str, Any] = {"worst_center": row.worst, **_csv_cost(row.cost)}
        if one:
            found |= {**_csv_difference(one.overall), "p_holm": one.p_holm, "effect_size": one.effect_size}
        if place:
            low, high = place.rank_interval or (None, None)
            found |= {"rank_low": low, "rank_high": high, "p_best": place.p_best, "tier": place.tier}
        seeds = " ".join(map(str, row.seeds))
        yield {
            **shared,
            "center": "mean",
            "seeds": seeds,
            **_csv_scores(row.mean),
            **found,
            "notes": "; ".join(row.notes),
        }


def _csv_cost(cost: RowCost | None) -> dict[str, Any]:
    if cost is None:
        return {}
    low, high = cost.factor_range or (None, None)
    machine_free = {"params": cost.params, "deployed_params": cost.deployed_params, "timed_on": cost.timed_on}
    measured = {
        "gflops": cost.gflops,
        "deployed_gmacs": cost.deployed_gmacs,
        "seconds_per_case": cost.seconds_per_case,
        "seconds_per_round": cost.seconds_per_round,
        "train_seconds": cost.train_seconds,
        "train_factor": cost.train_factor,
        "train_factor_low": low,
        "train_factor_high": high,
    }
    return machine_free | {name: value if value is None else f"{value:.4f}" for name, value in measured.items()}


def _csv_difference(difference: Difference) -> dict[str, Any]:
    """In points; the bounds are empty where the evidence carries no interval."""
    low, high = (None, None) if difference.interval is None else (f"{100 * bound:.4f}" for bound in difference.interval)
    return {"difference": f"{100 * difference.mean:.4f}", "difference_low": low, "difference_high": high}


def _csv_scores(scores: Mapping[str, Score]) -> dict[str, Any]:
    line: dict[str, Any] = {}
    for metric, score in scores.items():
        scale = 100 if metric in policies.OVERLAPS else 1
        line[metric] = f"{scale * score.mean:.4f}"
        if metric in QUARTILES:
            continue
        line[f"{metric}_sd"] = "" if score.sd is None else f"{scale * score.sd:.4f}"
    return line
