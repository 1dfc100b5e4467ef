"""The two-way (seed × patient) paired bootstrap of mean differences between methods.

Model, for one center c, of a method's difference to another at seed s and patient i (same seed, same patient)::

    d[c,s,i] = μ[c] + a[c,s] + b[c,i] + e[c,s,i]

a: trainings differ; b: a patient suits one of the methods; e: the rest. What is estimated is the equal-weight mean of μ over centers.

Seeds are resampled independently per center, patients within center; the deviation that a resample causes is the sum of the two. The
residual e is not resampled a third time: seed means and patient means each carry it already. No resampling scheme reproduces the
variance of such a mean exactly (McCullagh 2000); resampling whole rows and columns counts e three times (Owen 2007), the sum counts
it twice. Each part is inflated by √(n/(n−1)), so that its bootstrap variance is the unbiased estimate: with S = 5 seeds this is
√(5/4) for the seed part, without which intervals are too short.

From :data:`CENTERS_RESAMPLED_FROM` centers up, centers are resampled and take the place of seeds and patients, whose noise is in
the spread of center means already: resampling with replacement at the top level alone is what reproduces the variance of nested data
(Davison and Hinkley 1997, section 3.8). Below, centers are fixed: the result holds for these centers.

Sources: McCullagh 2000, Resampling and exchangeable arrays, Bernoulli 6; Owen 2007, The pigeonhole bootstrap, Annals of Applied
Statistics 1; Davison and Hinkley 1997, Bootstrap Methods and their Application; Hall 1988, Theoretical comparison of bootstrap
confidence intervals, Annals of Statistics 16 (symmetric studentised intervals).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dgbench.errors import DgbenchError
from dgbench.leaderboard.scores import FloatArray
from dgbench.seeds import numpy_generator

N_RESAMPLES = 2000
CENTERS_RESAMPLED_FROM = 6
SEED = 0
LEVEL = 0.95

Kind = Literal["studentised", "percentile", "basic"]

Weights = Mapping[str, NDArray[np.floating]]
"""How often each unit of a part is drawn in each resample, (resamples, units), by name of the part."""

Means = Mapping[str, NDArray[np.floating]]
"""Resampled means of each part, (resamples, methods), by name of the part."""

ROUNDING = 1e-12
"""Deviations below this share of the largest difference are rounding."""


class Part(NamedTuple):
    """Units that are resampled together (the seeds of a center, its patients, or the centers).

    ``deviations`` (units, methods): what each unit adds to the mean over centers, inflated, summing to zero over units.
    """

    name: str
    deviations: FloatArray


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Mean differences and their resamples, in the metric's unit.

    ``estimate`` and ``standard_error``: (methods,). ``draws``: resampled estimates, (resamples, methods).
    ``pivots``: |draw − estimate| over the standard error of that resample, (resamples, methods); infinite where a resample
    shifts the mean but drew the same unit throughout.
    """

    estimate: FloatArray
    standard_error: FloatArray
    draws: FloatArray
    pivots: FloatArray

    @property
    def statistic(self) -> FloatArray:
        """|estimate| in standard errors, (methods,); 0 for no difference, infinite for a difference without any spread."""
        return _ratio(np.abs(self.estimate), self.standard_error)


def resampling_weights(
    shapes: Mapping[str, tuple[int, int]], *, n_resamples: int = N_RESAMPLES, seed: int = SEED
) -> Weights:
    """Multinomial counts for tables of these shapes; equal for equal arguments, on every machine.

    A center's counts depend on its name, size and ``seed`` only: adding methods changes no other method's interval.

    Args:
        shapes: (seeds, cases) per center.
        n_resamples: B, at least 1.
        seed: of the resampling.
    """
    sizes = {"centers": len(shapes)}
    if len(shapes) < CENTERS_RESAMPLED_FROM:
        sizes = {}
        for center, (n_seeds, n_cases) in shapes.items():
            sizes |= {f"{center}/seeds": n_seeds, f"{center}/patients": n_cases}
    return {name: _counts(seed, name, size, n_resamples) for name, size in sizes.items()}


@lru_cache(maxsize=16)
def _counts(seed: int, name: str, size: int, n_resamples: int) -> FloatArray:
    """The counts of one part, (resamples, units), read-only: every metric of a table is resampled with the same."""
    drawn = numpy_generator(seed, "bootstrap", name, size).multinomial(size, np.full(size, 1 / size), size=n_resamples)
    counts: FloatArray = drawn.astype(np.float64)
    counts.flags.writeable = False
    return counts


def bootstrap(differences: Mapping[str, FloatArray], weights: Weights | None = None) -> Bootstrap:
    """The bootstrap of the equal-weight mean over centers.

    Args:
        differences: (methods, seeds, cases) per center, paired; any unit.
        weights: from :func:`resampling_weights` for these shapes; drawn with the defaults unless given. Resamples are computed in
            their precision.

    Raises:
        DgbenchError: fewer than two seeds, or two cases in a center, while centers are fixed: their spread is unknown.
    """
    if weights is None:
        weights = resampling_weights({center: array.shape[1:] for center, array in differences.items()})
    estimate, variance, parts = moments(differences)
    return assemble(estimate, variance, parts, part_means(parts, weights), weights)


def moments(differences: Mapping[str, FloatArray]) -> tuple[FloatArray, FloatArray, list[Part]]:
    """The estimate and its variance, (methods,) each, and the parts to resample. Raises as :func:`bootstrap` does."""
    estimate = np.mean([array.mean(axis=(1, 2)) for array in differences.values()], axis=0)
    largest = np.max([np.abs(array).max(axis=(1, 2)) for array in differences.values()], axis=0)
    estimate = np.where(np.abs(estimate) <= ROUNDING * largest, 0.0, estimate)
    parts, variance = _parts(differences, ROUNDING * largest)
    return estimate, variance, parts


def part_means(parts: Sequence[Part], weights: Weights) -> Means:
    """Resampled means of every part, in the precision of the weights; linear in the deviations, and so in the methods."""
    found: dict[str, NDArray[np.floating]] = {}
    for name, deviations in parts:
        counts = weights[name]
        found[name] = counts @ deviations.astype(counts.dtype, copy=False) / len(deviations)
    return found


def assemble(
    estimate: FloatArray, variance: FloatArray, parts: Sequence[Part], means: Means, weights: Weights
) -> Bootstrap:
    """The bootstrap from its moments and resampled means."""
    first = next(iter(means.values()))
    shift, spread = np.zeros_like(first), np.zeros_like(first)
    for name, deviations in parts:
        count, counts, mean = len(deviations), weights[name], means[name]
        shift += mean
        # the variance of the mean that this resample would be given: its own units' spread, n−1 in the divisor
        squares = counts @ (deviations.astype(counts.dtype, copy=False) ** 2 / count)
        own = squares - mean**2
        rounding = 4 * count * np.finfo(own.dtype).eps * squares
        own[own <= rounding] = 0  # the resample drew equal units throughout
        spread += own / (count - 1)
    return Bootstrap(
        estimate=estimate,
        standard_error=np.sqrt(variance),
        draws=estimate + shift,
        pivots=_ratio(np.where(variance > 0, np.abs(shift), 0), np.sqrt(spread)),
    )


def _parts(differences: Mapping[str, FloatArray], rounding: FloatArray) -> tuple[list[Part], FloatArray]:
    """The parts that are resampled, and the variance of the estimate (methods,)."""
    n_centers = len(differences)
    if n_centers >= CENTERS_RESAMPLED_FROM:
        means = np.stack([array.mean(axis=(1, 2)) for array in differences.values()])
        part = _part("centers", means - means.mean(axis=0), rounding)
        return [part], _variance(part)
    parts: list[Part] = []
    total = np.zeros(len(rounding))
    for center, array in differences.items():
        _, n_seeds, n_cases = array.shape
        if min(n_seeds, n_cases) < 2:
            what = "one seed" if n_seeds < 2 else "one case"
            raise DgbenchError(f"bootstrap: {center} has {what} only, so its spread is unknown — add runs or cases")
        mean = array.mean(axis=(1, 2))
        by_seed, by_case = array.mean(axis=2) - mean[:, None], array.mean(axis=1) - mean[:, None]
        residual = array - (by_case + mean[:, None])[:, None, :]
        residual -= by_seed[:, :, None]  # in place, as the next line: there are as many as pairs of methods
        seeds = _part(f"{center}/seeds", by_seed.T / n_centers, rounding)
        patients = _part(f"{center}/patients", by_case.T / n_centers, rounding)
        parts += [seeds, patients]
        twice = np.einsum("msc,msc->m", residual, residual) / (
            (n_seeds - 1) * (n_cases - 1) * n_seeds * n_cases * n_centers**2
        )
        seed_variance, patient_variance = _variance(seeds), _variance(patients)
        # both hold the residual's share, which is taken away once; the mean varies no less than through either alone
        total += np.maximum(seed_variance + patient_variance - twice, np.maximum(seed_variance, patient_variance))
    return parts, total


def _part(name: str, deviations: FloatArray, rounding: FloatArray) -> Part:
    """A part from deviations (units, methods) that sum to zero over units, inflated."""
    count = len(deviations)
    inflated = deviations * math.sqrt(count / (count - 1))
    return Part(name, np.where(np.abs(inflated) <= rounding, 0.0, inflated))


def _variance(part: Part) -> FloatArray:
    """The bootstrap variance of a part's mean, (methods,): thanks to the inflation also the unbiased estimate."""
    variance: FloatArray = (part.deviations**2).sum(axis=0) / len(part.deviations) ** 2
    return variance


def _ratio(numerator: NDArray[np.floating], denominator: NDArray[np.floating]) -> FloatArray:
    """0/0 is 0, and x/0 infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: FloatArray = np.where(numerator == 0, 0.0, numerator / denominator)
    return ratio


def intervals(result: Bootstrap, *, level: float = LEVEL, kind: Kind = "studentised") -> tuple[FloatArray, FloatArray]:
    """Lower and upper ends of the confidence interval of each difference, (methods,) each.

    Args:
        result: from :func:`bootstrap`.
        level: in (0, 1).
        kind: ``studentised``, symmetric (Hall 1988), is what is printed; ``percentile`` and ``basic`` are there to be compared with
            it: with five seeds they are too short where trainings differ more than patients.
    """
    if kind == "studentised":
        spreads = result.standard_error > 0
        half = np.where(spreads, critical_value(result.pivots, level), 0.0) * result.standard_error
        return result.estimate - half, result.estimate + half
    tail = (1 - level) / 2
    low, high = np.quantile(result.draws, [tail, 1 - tail], axis=0)
    return (low, high) if kind == "percentile" else (2 * result.estimate - high, 2 * result.estimate - low)


def critical_value(pivots: NDArray[np.floating], level: float) -> FloatArray:
    """What (B+1)·level of B resamples and the estimate itself stay below or at, along the first axis."""
    count = len(pivots)
    place = min(math.ceil(level * (count + 1) - 1e-9), count) - 1
    value: FloatArray = np.partition(pivots, place, axis=0)[place].astype(np.float64)
    return value


def p_values(result: Bootstrap) -> FloatArray:
    """Two-sided p of no difference, (methods,), in [1/(B+1), 1]: at most 1 − level exactly where the studentised interval excludes 0."""
    exceeding = (result.pivots >= result.statistic).sum(axis=0)
    p: FloatArray = (1 + exceeding) / (len(result.pivots) + 1)
    return p
