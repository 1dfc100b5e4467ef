"""What each counted run, or the runs of all folds of a center together, achieved: resolved rows, means and counts."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from dgbench.errors import DgbenchError
from dgbench.leaderboard import policies
from dgbench.leaderboard.checked_rows import as_frame
from dgbench.leaderboard.records import Record
from dgbench.leaderboard.results import AMONG_DETECTED, COUNTS, METRICS, QUARTILES
from dgbench.protocol import Protocol

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


NOTHING_LEFT = "no case left to average"
"""How the reason begins of a run whose cases a policy excludes: no other run would fill its cell."""


class Result(NamedTuple):
    """The means of one counted run, or of those of all folds of a center together, and their counts."""

    records: tuple[Record, ...]
    means: Mapping[str, float]
    counts: Mapping[str, int]


def summaries(
    records: list[Record], policy: policies.Policy
) -> tuple[dict[str, Result], list[Record], "pd.DataFrame | None"]:
    """The result of each counted run by folder, the records again (a run that cannot be averaged is no longer counted), and the resolved
    case rows of all runs."""
    resolved, reasons = _resolve({record.folder: record.rows for record in records if record.rows is not None}, policy)
    lines: dict[str, dict[Any, Any]] = {}
    if resolved is not None:
        lines = {line["folder"]: line for line in policies.summarise(resolved, by=["folder"]).to_dict("records")}
    results: dict[str, Result] = {}
    for record in records:
        if (line := lines.get(record.folder)) is None:
            continue
        result = _result((record,), line)
        if math.isnan(result.means["dsc"]):
            reasons[record.folder] = f"{NOTHING_LEFT}: policy {policy.name} excludes all {int(line['n'])}"
        else:
            results[record.folder] = result
    counted = [
        record.without_rows(reasons[record.folder]) if record.folder in reasons else record for record in records
    ]
    return results, counted, resolved


def _result(records: tuple[Record, ...], line: Mapping[Any, Any]) -> Result:
    """Of the runs that the summary ``line`` is of."""
    means = {metric: float(line[f"{metric}_mean"]) for metric in (*METRICS, *AMONG_DETECTED)}
    means |= {name: float(line[name]) for name in QUARTILES}
    free = [record.lesion_free for record in records if record.lesion_free is not None]
    counts = {count: int(line[count]) for count in COUNTS}
    counts["n_lesion_free"] = sum(len(rows) for rows in free)
    counts["n_failed_lesion_free"] = sum(int(rows["failed"].to_numpy().sum()) for rows in free)
    return Result(records, means | _detection(free, line), counts)


def _detection(lesion_free: Sequence["pa.Table"], line: Mapping[Any, Any]) -> dict[str, float]:
    """:data:`DETECTION` of runs from their summary and their rows of lesion-free cases, failed ones left out; ``NaN`` where there is
    nothing to find, or no lesion-free case was judged."""
    free = [
        count
        for rows in lesion_free
        for count, failed in zip(rows["n_false_positive"].to_pylist(), rows["failed"].to_pylist(), strict=True)
        if not failed and count is not None and not math.isnan(count)
    ]
    return {
        "sensitivity": line["n_lesions_found"] / line["n_lesions"] if line["n_lesions"] else math.nan,
        "false_positives": line["n_false_positive"] / line["n"],
        "false_positives_lesion_free": fmean(free) if free else math.nan,
    }


class Results(NamedTuple):
    """The result of each counted run by folder, and the resolved case rows of all of them."""

    single: Mapping[str, Result]
    resolved: "pd.DataFrame | None"

    def of(self, records: Sequence[Record]) -> Result:
        """Of one run, or of several over all their cases."""
        if len(records) == 1 or self.resolved is None:
            return self.single[records[0].folder]
        rows = self.resolved[self.resolved["folder"].isin([record.folder for record in records])]
        # each run is a training of its own, and may have a threshold of its own
        (line,) = policies.summarise(rows.assign(cell=0, threshold=0.0), by=["cell"]).to_dict("records")
        return _result(tuple(records), line)


def counts_of_one_seed(single: Mapping[str, Result], protocol: Protocol) -> dict[str, Mapping[str, int]]:
    """The counts of a center from any of its runs, in-domain summed over its folds."""
    by_heldout = {result.records[0].spec.heldout: result.counts for result in single.values()}
    counts: dict[str, Counter[str]] = {}
    for heldout, found in by_heldout.items():
        counts.setdefault(protocol.center_of(heldout), Counter()).update(found)
    return {center: dict(found) for center, found in counts.items()}


def _resolve(rows: Mapping[str, "pa.Table"], policy: policies.Policy) -> tuple["pd.DataFrame | None", dict[str, str]]:
    """Resolved rows of all runs in one frame, and why the rows of some runs are not in it. One pass unless a row is damaged."""
    if not rows:
        return None, {}
    try:
        return policies.apply_policy(_together(rows), policy), {}
    except DgbenchError:
        reasons: dict[str, str] = {}
        for folder, table in rows.items():
            try:
                policies.apply_policy(_together({folder: table}), policy)
            except DgbenchError as error:
                reasons[folder] = f"evaluation is damaged: {error}"
        resolved, _ = _resolve({folder: table for folder, table in rows.items() if folder not in reasons}, policy)
        return resolved, reasons


def _together(rows: Mapping[str, "pa.Table"]) -> "pd.DataFrame":
    """The rows of all runs, with their ``folder``."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    codes = np.repeat(np.arange(len(rows)), [len(table) for table in rows.values()])
    frame = as_frame(pa.concat_tables(rows.values()), coded=True)
    return frame.assign(folder=pd.Categorical.from_codes(codes, pd.Index(list(rows))))
