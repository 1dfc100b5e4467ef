"""Every method against a baseline: difference with its interval first, p second, and what so many seeds permit one to say.

The interval is the symmetric studentised one of the two-way bootstrap (:mod:`dgbench.leaderboard.resampling`); docs/statistics.md says
how it was chosen and how often it is wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dgbench.errors import DgbenchError
from dgbench.leaderboard.resampling import (
    CENTERS_RESAMPLED_FROM,
    LEVEL,
    N_RESAMPLES,
    SEED,
    bootstrap,
    intervals,
    p_values,
    resampling_weights,
)
from dgbench.leaderboard.scores import FloatArray, ScoreTable

BASELINE = "erm"
"""The method, in its default configuration, that others are compared with."""


class Evidence(StrEnum):
    """What a number of seeds permits a table to print.

    ``smoke`` (one or two): the difference, marked; no interval. ``row`` (three or four): the interval too, no p. ``claim`` (five and
    more): everything. A table that is not ranked is at most ``row``: it carries no claim.
    """

    SMOKE = "smoke"
    ROW = "row"
    CLAIM = "claim"

    @property
    def has_interval(self) -> bool:
        """Whether intervals, rank intervals and tiers are printed."""
        return self is not Evidence.SMOKE

    @property
    def has_p_value(self) -> bool:
        """Whether p-values are printed, and a difference may be claimed."""
        return self is Evidence.CLAIM


SMOKE = "one or two seeds show that methods run"
SEEDS_FOR_A_ROW = 3
SEEDS_FOR_A_CLAIM = 5


def evidence(n_seeds: int, *, claims: bool = True) -> Evidence:
    """What ``n_seeds`` (at least 1) seeds in every cell permit, in a table that may carry ``claims``."""
    if n_seeds >= SEEDS_FOR_A_CLAIM and claims:
        return Evidence.CLAIM
    return Evidence.ROW if n_seeds >= SEEDS_FOR_A_ROW else Evidence.SMOKE


def smoke_stamp(n_seeds: int) -> str | None:
    """What must be said beside numbers of so few seeds; None from three up."""
    grade = evidence(n_seeds)
    return None if grade.has_interval else f"{grade}: {SMOKE}"


def smallest_sign_flip_p(n_centers: int) -> float:
    """The smallest two-sided p that an exact sign-flip test over ``n_centers`` centers can give, in (0, 1]: 2 of 2ⁿ sign patterns."""
    return 2.0 ** (1 - n_centers)


def center_note(n_centers: int) -> str:
    """One line that says of which centers the intervals speak."""
    smallest = smallest_sign_flip_p(n_centers)
    if n_centers < CENTERS_RESAMPLED_FROM:
        return (
            f"these {n_centers} centers only, no claim about new ones: even if all {n_centers} agree, an exact sign-flip test over centers "
            f"cannot go below p = {smallest:g}"
        )
    return (
        f"centers like these {n_centers}, resampled (smallest p of an exact sign-flip test over them: {smallest:.2g})"
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference in the metric's unit; ``interval`` is absent where the evidence does not carry one, and where resamples leave it
    ``unbounded``: too many of them shift the difference and have no spread to measure it with."""

    mean: float
    interval: tuple[float, float] | None
    unbounded: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One method minus the baseline.

    ``overall``: equal-weight mean over centers; ``centers``: each center by itself, always with centers fixed, and without an interval
    where it has a single case. ``p`` and ``p_holm``
    (adjusted over all compared methods), in (0, 1], are of the overall difference and present with evidence ``claim`` only.
    ``effect_size``: see :func:`effect_size`; ``None`` where undefined.
    """

    method: str
    baseline: str
    evidence: Evidence
    overall: Difference
    centers: Mapping[str, Difference]
    p: float | None
    p_holm: float | None
    effect_size: float | None


def compare(
    table: ScoreTable,
    baseline: str = BASELINE,
    *,
    claims: bool = True,
    level: float = LEVEL,
    n_resamples: int = N_RESAMPLES,
    seed: int = SEED,
) -> tuple[Comparison, ...]:
    """Every other method against ``baseline``, in the table's order.

    Args:
        table: scores of complete methods.
        baseline: the method that the others are compared with.
        claims: whether the table may carry any (:func:`evidence`).
        level: of each interval, in (0, 1); intervals are not adjusted for the number of methods, ``p_holm`` is.
        n_resamples: B.
        seed: of the resampling; equal seeds give equal results.

    Raises:
        DgbenchError: the baseline is not in the table, or a center has a single case while intervals are due.
    """
    differences = table.differences(baseline)
    others = [row for row, method in enumerate(table.methods) if method != baseline]
    differences = {center: array[others] for center, array in differences.items()}
    if not others:
        return ()
    grade = evidence(len(table.seeds), claims=claims)
    overall, p = _differences(differences, grade, level, n_resamples, seed)
    by_center = {
        center: _differences(
            {center: array}, grade if array.shape[2] > 1 else Evidence.SMOKE, level, n_resamples, seed
        )[0]
        for center, array in differences.items()
    }
    adjusted = holm(p) if grade.has_p_value else p
    effects = effect_size(differences)
    return tuple(
        Comparison(
            method=table.methods[row],
            baseline=baseline,
            evidence=grade,
            overall=overall[place],
            centers={center: found[place] for center, found in by_center.items()},
            p=float(p[place]) if grade.has_p_value else None,
            p_holm=float(adjusted[place]) if grade.has_p_value else None,
            effect_size=None if np.isnan(effects[place]) else float(effects[place]),
        )
        for place, row in enumerate(others)
    )


def _differences(
    differences: Mapping[str, FloatArray], grade: Evidence, level: float, n_resamples: int, seed: int
) -> tuple[list[Difference], FloatArray]:
    """The difference of each method with its interval, and the unadjusted p (methods,)."""
    if not grade.has_interval:
        means = np.mean([array.mean(axis=(1, 2)) for array in differences.values()], axis=0)
        return [Difference(mean=float(mean), interval=None) for mean in means], np.ones(len(means))
    shapes = {center: array.shape[1:] for center, array in differences.items()}
    result = bootstrap(differences, resampling_weights(shapes, n_resamples=n_resamples, seed=seed))
    low, high = intervals(result, level=level)
    found = [
        Difference(mean=float(mean), interval=(float(a), float(b)))
        if np.isfinite(b - a)
        else Difference(mean=float(mean), interval=None, unbounded=True)
        for mean, a, b in zip(result.estimate, low, high, strict=True)
    ]
    return found, p_values(result)


def holm(p: Sequence[float] | FloatArray) -> FloatArray:
    """Holm's step-down adjustment (Holm 1979, Scandinavian Journal of Statistics 6): same order, in [0, 1], family-wise error kept.

    Args:
        p: one unadjusted p per hypothesis, in [0, 1].

    Raises:
        DgbenchError: a p is outside [0, 1] or undefined.
    """
    values = np.asarray(p, dtype=np.float64)
    if not np.all((values >= 0) & (values <= 1)):
        raise DgbenchError(f"holm: p-values lie in [0, 1], got {values.tolist()}")
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted


def effect_size(differences: Mapping[str, FloatArray]) -> FloatArray:
    """Paired standardised mean difference (Cohen's d_z; Cohen 1988, Lakens 2013), mean over centers: (methods,), no unit.

    Within a center: patients' differences, averaged over seeds, mean over standard deviation (n−1). It says how uniformly patients
    gain, not how many points: 0.2 is commonly called small, 0.5 medium, 0.8 large. 0 where all patients of a center agree on no
    difference; NaN where they agree on another one, or a center has one patient.

    Args:
        differences: (methods, seeds, cases) per center, paired.
    """
    sizes: FloatArray = np.mean([_standardised(array.mean(axis=1)) for array in differences.values()], axis=0)
    return sizes


def _standardised(patients: FloatArray) -> FloatArray:
    """Mean over standard deviation along the second axis of (methods, cases)."""
    mean = patients.mean(axis=1)
    if patients.shape[1] < 2:
        return np.full(len(mean), np.nan)
    spread = patients.std(axis=1, ddof=1)
    same = np.ptp(patients, axis=1) <= 1e-12 * np.abs(patients).max(axis=1)
    ratio = np.divide(mean, spread, out=np.zeros_like(mean), where=~same)
    standardised: FloatArray = np.where(same & (mean != 0), np.nan, ratio)
    return standardised
