"""The statistics of one table: what its complete rows let one say, from their case rows.

The procedures are in :mod:`dgbench.leaderboard.statistics` and :mod:`dgbench.leaderboard.ranking`; here they are applied to the rows of a
leaderboard, and docs/statistics.md says what they mean.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dgbench.errors import DgbenchError
from dgbench.leaderboard import policies
from dgbench.leaderboard.ranking import SchemeRanks, Standing, robustness, standings
from dgbench.leaderboard.scores import ScoreTable, score_table
from dgbench.leaderboard.statistics import Comparison, Evidence, center_note, compare, evidence

if TYPE_CHECKING:
    import pandas as pd

ROBUSTNESS_UP_TO = 40
"""Most rows for which ranks under other schemes and metrics are computed: all pairs are looked at, for every metric."""


@dataclass(frozen=True, kw_only=True)
class TableStatistics:
    """``comparisons`` (row minus its baseline) and ``standings`` by row label, of DSC in [0, 1]; ``notes`` say of what the intervals speak
    and what is absent for which reason. ``evidence`` is None where the cases permit no statistics. ``robustness``: ranks under other
    schemes and metrics."""

    evidence: Evidence | None
    comparisons: Mapping[str, Comparison]
    standings: Mapping[str, Standing]
    robustness: tuple[SchemeRanks, ...]
    notes: tuple[str, ...]

    def evidence_of(self, label: str) -> Evidence | None:
        """What its seeds permit one to say of a row: of its comparison where it has one, else of its standing; None without either."""
        if (one := self.comparisons.get(label)) is not None:
            return one.evidence
        return self.evidence if label in self.standings else None


class Family(NamedTuple):
    """Rows that are compared with one ``baseline``, by label; their p are adjusted among them. Without ``claims`` they have no p."""

    baseline: str
    members: tuple[str, ...]
    claims: bool


def table_statistics(
    rows: "pd.DataFrame",
    *,
    families: Sequence[Family],
    baseline: str | None,
    imported: Collection[str],
    ranked: Collection[str],
    metrics: Collection[str],
    claims: bool,
) -> TableStatistics | None:
    """Statistics of the rows of one table; None without a row that was trained.

    Args:
        rows: resolved case rows of complete rows (:func:`dgbench.leaderboard.policies.apply_policy`), included ones only, with ``method``
            (the row's label), ``center``, ``seed`` and ``case``.
        families: of rows that were trained; none where there is no baseline.
        baseline: the label of the row that imported prediction sets are compared with; None where there is none.
        imported: labels of prediction sets. They are a family of their own, so that what is imported changes nothing in what is said of
            rows that were trained.
        ranked: labels that take part in ranks; the others (rows with more draws) are only compared.
        metrics: for ranks by other metrics than DSC, the official one.
        claims: whether the table may carry any, which one that is not ranked may not.
    """
    apart = rows["method"].isin(list(imported))
    trained = rows[~apart]
    if trained.empty:
        return None
    notes = [center_note(trained["center"].nunique())]
    if not families:
        notes.append("no complete row of the baseline to compare with")
    comparisons: dict[str, Comparison] = {}
    places: dict[str, Standing] = {}
    schemes: tuple[SchemeRanks, ...] = ()
    grade: Evidence | None = evidence(trained["seed"].nunique(), claims=claims)
    standing = trained[trained["method"].isin(list(ranked))]
    try:
        scores = score_table(trained, "dsc", higher_is_better=True)
        comparisons = _compared(scores, families)
        if not standing.empty:
            scores = scores.only(ranked)
            places = {one.method: one for one in standings(scores)}
            if 1 < len(places) <= ROBUSTNESS_UP_TO:
                defined = [metric for metric in metrics if metric != "dsc" and standing[metric].notna().all()]
                others = [score_table(standing, m, higher_is_better=m in policies.OVERLAPS) for m in defined]
                schemes = robustness([scores, *others])
            elif len(places) > ROBUSTNESS_UP_TO:
                notes.append(f"ranks under other schemes: for at most {ROBUSTNESS_UP_TO} rows")
    except DgbenchError as error:
        grade = None
        notes.append(f"no statistics: {error}")
    try:
        if baseline is not None and apart.any():
            scores = score_table(rows[apart | (rows["method"] == baseline)], "dsc", higher_is_better=True)
            comparisons |= _compared(scores, [Family(baseline, tuple(imported), claims)])
    except DgbenchError as error:
        notes.append(f"no statistics of imported sets: {error}")
    return TableStatistics(
        evidence=grade,
        comparisons=comparisons,
        standings=places,
        robustness=schemes,
        notes=tuple(notes),
    )


def _compared(scores: ScoreTable, families: Iterable[Family]) -> dict[str, Comparison]:
    found = [
        one
        for family in families
        for one in compare(scores.only((family.baseline, *family.members)), family.baseline, claims=family.claims)
    ]
    return {one.method: one for one in found}
