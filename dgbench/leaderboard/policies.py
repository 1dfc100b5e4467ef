"""Named policies: what an undefined metric counts for, applied to raw case rows when a table is made.

A run stores raw values (:class:`dgbench.evaluation.metrics.CaseMetrics`) with ``NaN`` and flags. A policy turns them
into numbers that can be averaged, and :func:`summarise` averages them beside the counts that a reader needs to judge
the mean. The two policies of the benchmark:

========================================  =============================================  ===========================
case                                      :func:`default`                                :data:`PAPER`
========================================  =============================================  ===========================
both masks hold voxels                    raw DSC, NSD, ``assd``, ``hd95``               raw, ASD is ``assd_two_means``
empty prediction                          DSC 0, NSD 0, distances the protocol's         DSC 0, NSD 0, ASD 40 mm,
                                          constants                                      HD95 100 mm
empty reference                           excluded; predicted volume is false positive   as an empty prediction
failed case (no prediction was made)      as an empty prediction                         as an empty prediction
========================================  =============================================  ===========================

``PAPER`` follows Sec. IV-B of the dual-task paper (40 and 100 mm where not computable); DSC 0, also for two empty
masks, is what MedPy 0.4 returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dgbench.errors import DgbenchError, suggest
from dgbench.protocol import Protocol

if TYPE_CHECKING:
    import pandas as pd

OVERLAPS = ("dsc", "nsd")
DISTANCES = ("asd", "hd95", "centroid")
ONE_OF_EACH = ("stage", "setting", "threshold", "checkpoint")
"""Columns that may hold only one value in a group: rows that differ here are alternatives, not cases to average."""

RAW_COLUMNS = (
    *("case", "center", *ONE_OF_EACH, "failed", "empty_reference", "empty_prediction"),
    *("dsc", "nsd", "assd", "assd_two_means", "hd95", "centroid_mm"),
    *("volume_prediction_mm3", "n_lesions_reference", "n_lesions_found", "n_false_positive"),
)
"""The columns of raw rows that a policy needs."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What undefined distances count for, in mm (``None``: stays undefined), and which ASSD is reported as ASD."""

    name: str
    asd_column: Literal["assd", "assd_two_means"]
    asd_mm: float
    hd95_mm: float
    centroid_mm: float | None
    exclude_empty_reference: bool


def default(*, assd_constant_mm: float, hd95_constant_mm: float) -> Policy:
    """The benchmark's own policy, with the constants of the protocol; a missing centroid counts as the HD95 constant."""
    return Policy(
        name="default",
        asd_column="assd",
        asd_mm=assd_constant_mm,
        hd95_mm=hd95_constant_mm,
        centroid_mm=hd95_constant_mm,
        exclude_empty_reference=True,
    )


PAPER = Policy(
    name="paper",
    asd_column="assd_two_means",
    asd_mm=40.0,
    hd95_mm=100.0,
    centroid_mm=None,
    exclude_empty_reference=False,
)
"""The dual-task paper's policy; the paper does not say what a missing centroid counts for, so it stays undefined."""


def resolve(name: str, protocol: Protocol) -> Policy:
    """The policy of that name, with the constants of ``protocol``. Raises DgbenchError for an unknown name."""
    if name == PAPER.name:
        return PAPER
    own = default(
        assd_constant_mm=protocol.metrics.assd_constant_mm, hd95_constant_mm=protocol.metrics.hd95_constant_mm
    )
    if name != own.name:
        raise DgbenchError(f"unknown policy {name!r}{suggest(name, (own.name, PAPER.name))}")
    return own


def apply_policy(rows: "pd.DataFrame", policy: Policy) -> "pd.DataFrame":
    """A copy of raw ``rows`` with the resolved columns; no row is dropped.

    Resolved: ``dsc`` and ``nsd`` in [0, 1], ``asd``, ``hd95`` and ``centroid`` in mm (all ``NaN`` in excluded rows);
    ``included``; ``detected`` (both masks hold voxels, so that distances are measured); ``empty_prediction`` (true for
    failed cases); ``n_lesions_found`` and ``n_false_positive`` (0 for failed cases); ``false_positive_mm3``, the predicted
    volume where the reference is empty, else ``NaN``.

    A failed row tells of the reference (``empty_reference``, ``n_lesions_reference``) as any other; the rest may be missing. Where its
    reference could not be read either, it is taken from the rows of other runs of the case; without any, for one lesion, the least that a
    held-out case has.

    Raises:
        DgbenchError: a column is missing, or a row that did not fail lacks a value that its flags call for.
    """
    import pandas as pd

    _require(rows, RAW_COLUMNS)
    always = pd.Series(True, index=rows.index)
    failed = _flag(rows, "failed", needed=always)
    empty_reference = _flag(rows, "empty_reference", needed=always)
    _complete(rows, rows["n_lesions_reference"], always)
    lesions = rows["n_lesions_reference"]
    if (unread := _unread(failed, empty_reference, lesions)).any():
        case = [rows["center"], rows["case"]]
        empty_reference |= unread & empty_reference.groupby(case, observed=True).transform("any")
        told = lesions.groupby(case, observed=True).transform("max")
        lesions = lesions.where(~unread | empty_reference, told.clip(lower=1))
    empty_prediction = _flag(rows, "empty_prediction", needed=~failed) | failed
    detected = ~empty_reference & ~empty_prediction
    included = ~empty_reference if policy.exclude_empty_reference else always

    resolved = rows.copy()
    undefined = {"dsc": 0.0, "nsd": 0.0, "asd": policy.asd_mm, "hd95": policy.hd95_mm, "centroid": policy.centroid_mm}
    source = {"asd": policy.asd_column, "centroid": "centroid_mm"}
    for column, value in undefined.items():
        raw = rows[source.get(column, column)].astype("float64")
        _complete(rows, raw, detected)
        constant = float("nan") if value is None else value
        resolved[column] = raw.where(detected, constant).where(included)
    resolved["n_lesions_reference"] = lesions
    for column in ("n_lesions_found", "n_false_positive", "volume_prediction_mm3"):
        _complete(rows, rows[column], ~failed)
        resolved[column] = rows[column].where(~failed, 0)
    counts = ["n_lesions_reference", "n_lesions_found", "n_false_positive"]
    resolved[counts] = resolved[counts].astype("int64")
    resolved["false_positive_mm3"] = resolved["volume_prediction_mm3"].astype("float64").where(empty_reference)
    resolved["failed"] = failed
    resolved["empty_reference"] = empty_reference
    resolved["empty_prediction"] = empty_prediction
    resolved["detected"] = detected
    resolved["included"] = included
    return resolved


def unread_references(rows: "pd.DataFrame") -> "pd.Series[bool]":
    """Which raw rows are of cases that failed before their reference was read: :func:`apply_policy` needs rows of other runs for these."""
    return _unread(rows["failed"].astype("bool"), rows["empty_reference"].astype("bool"), rows["n_lesions_reference"])


def _unread(
    failed: "pd.Series[bool]", empty_reference: "pd.Series[bool]", lesions: "pd.Series[float]"
) -> "pd.Series[bool]":
    return failed & ~empty_reference & (lesions == 0)


def summarise(rows: "pd.DataFrame", by: Sequence[str]) -> "pd.DataFrame":
    """One line per group of resolved ``rows``, sorted by ``by``, with the columns ``by`` first. Every row is counted.

    - ``n`` (all rows), ``n_excluded``, ``n_failed``; ``n_empty_prediction`` (included, empty or failed) and ``n_detected``;
    - ``dsc_mean``, ``dsc_median``, ``nsd_mean``, ``nsd_median`` over included rows;
    - for ``asd``, ``hd95`` and ``centroid`` in mm: ``_mean``, ``_median``, ``_q25``, ``_q75`` (the interquartile range)
      over included rows, and ``_detected_mean``, ``_detected_median`` over rows where both masks hold voxels;
    - ``n_lesions``, ``n_lesions_found``, ``n_false_positive`` (sums over all rows);
    - ``n_empty_reference`` and ``false_positive_mm3_mean``, the mean predicted volume over the cases without lesion.

    A mean over no row is ``NaN``.

    Raises:
        DgbenchError: a column is missing, or a group mixes stages, settings, thresholds or checkpoints.
    """
    import pandas as pd

    _require(rows, ("included", "detected", *by), hint="call apply_policy first")
    if not by:
        raise DgbenchError("summarise: no column to group by — name at least one")
    measured = {f"{metric}_detected": rows[metric].where(rows["detected"]) for metric in DISTANCES}
    groups = rows.assign(
        **measured, excluded=~rows["included"], nothing_predicted=rows["empty_prediction"] & rows["included"]
    ).groupby(list(by), dropna=False, observed=True)
    for column in ONE_OF_EACH:
        if column not in by:
            _refuse_mixture(groups[column].nunique(dropna=False))

    summary: dict[str, pd.Series] = {
        "n": groups.size(),
        "n_excluded": groups["excluded"].sum(),
        "n_failed": groups["failed"].sum(),
        "n_empty_prediction": groups["nothing_predicted"].sum(),
        "n_detected": groups["detected"].sum(),
    }
    for metric in (*OVERLAPS, *DISTANCES, *measured):
        summary[f"{metric}_mean"] = groups[metric].mean()
        summary[f"{metric}_median"] = groups[metric].median()
    for metric in DISTANCES:
        summary[f"{metric}_q25"] = groups[metric].quantile(0.25)
        summary[f"{metric}_q75"] = groups[metric].quantile(0.75)
    summary["n_lesions"] = groups["n_lesions_reference"].sum()
    summary["n_lesions_found"] = groups["n_lesions_found"].sum()
    summary["n_false_positive"] = groups["n_false_positive"].sum()
    summary["n_empty_reference"] = groups["empty_reference"].sum()
    summary["false_positive_mm3_mean"] = groups["false_positive_mm3"].mean()
    return pd.DataFrame(summary).reset_index()


def _require(rows: "pd.DataFrame", columns: Sequence[str], hint: str = "pass the rows as the run stored them") -> None:
    missing = [column for column in columns if column not in rows.columns]
    if missing:
        raise DgbenchError(f"case rows: no column {', '.join(missing)} — {hint}")


def _flag(rows: "pd.DataFrame", column: str, *, needed: "pd.Series[bool]") -> "pd.Series[bool]":
    """A flag as plain booleans; false where it is unknown and not needed."""
    _complete(rows, rows[column], needed)
    return rows[column].where(rows[column].notna(), False).astype("bool")


def _complete(rows: "pd.DataFrame", values: "pd.Series[Any]", needed: "pd.Series[bool]") -> None:
    """Refuse a row that lacks a value where it is ``needed``."""
    holes = values.isna() & needed
    if holes.any():
        first = rows[holes].iloc[0]
        raise DgbenchError(
            f"case {first['center']}/{first['case']}: no {values.name}, though its flags call for one "
            f"({holes.sum()} such rows) — evaluate the run again"
        )


def _refuse_mixture(counts: "pd.Series[int]") -> None:
    """Refuse a group with more than one value of the counted column."""
    if (counts > 1).any():
        raise DgbenchError(
            f"case rows: group {counts.index[counts > 1][0]!r} mixes several values of {counts.name} — "
            f"select one or add {counts.name!r} to the columns to group by"
        )
