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
from collections.abc import Iterable, Mapping, Sequence
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

Draws = NDArray[np.floating]
"""(resamples, methods), in the precision of the weights."""

ROUNDING = 1e-12
"""Deviations below this share of the largest difference are rounding."""


class Part(NamedTuple):
    """Units that are resampled together (the seeds of a center, its patients, or the centers).

    ``deviations`` (units, methods): what each unit adds to the mean over centers, inflated, summing to zero over units.
    """

    name: str
    deviations: FloatArray


class Effects(NamedTuple):
    """What mean differences are made of. All but ``largest`` is linear in the methods: that of two methods to a third, subtracted, is that
    of one to the other.

    ``estimate``: (methods,). ``largest``: the largest absolute difference, (methods,). ``parts``: the seeds and the patients of each
    center in turn, or the centers. ``residuals``: of each center (none where centers are resampled), (methods, seeds × cases), so that
    the sum of squares is the residual's share in the variance of the estimate, which seed means and patient means both carry.
    """

    estimate: FloatArray
    largest: FloatArray
    parts: Sequence[Part]
    residuals: Sequence[FloatArray]


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Mean differences and their resamples, in the metric's unit.

    ``estimate`` and ``standard_error``: (methods,). ``shift``: resampled estimates less the estimate, (resamples, methods).
    ``pivots``: |shift| over the standard error of that resample, (resamples, methods); infinite where a resample shifts the mean but
    drew the same unit throughout.
    """

    estimate: FloatArray
    standard_error: FloatArray
    shift: Draws
    pivots: Draws

    @property
    def draws(self) -> FloatArray:
        """Resampled estimates, (resamples, methods)."""
        return self.estimate + self.shift

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
    found = effects(differences)
    shift, means = resampled_means(found.parts, weights)
    twice = [np.einsum("mr,mr->m", residual, residual) for residual in found.residuals]
    return assemble(found.estimate, shift, zip(found.parts, means, strict=True), twice, found.largest, weights)


def effects(differences: Mapping[str, FloatArray]) -> Effects:
    """What the means of these differences are made of. Raises as :func:`bootstrap` does."""
    estimate = np.mean([array.mean(axis=(1, 2)) for array in differences.values()], axis=0)
    largest = np.max([np.abs(array).max(axis=(1, 2)) for array in differences.values()], axis=0)
    n_centers = len(differences)
    if n_centers >= CENTERS_RESAMPLED_FROM:
        means = np.stack([array.mean(axis=(1, 2)) for array in differences.values()])
        return Effects(estimate, largest, [_part("centers", means - means.mean(axis=0))], [])
    parts: list[Part] = []
    residuals: list[FloatArray] = []
    for center, array in differences.items():
        n_methods, n_seeds, n_cases = array.shape
        if min(n_seeds, n_cases) < 2:
            what = "one seed" if n_seeds < 2 else "one case"
            raise DgbenchError(f"bootstrap: {center} has {what} only, so its spread is unknown — add runs or cases")
        mean = array.mean(axis=(1, 2))
        by_seed, by_case = array.mean(axis=2) - mean[:, None], array.mean(axis=1) - mean[:, None]
        residual = array - (by_case + mean[:, None])[:, None, :] - by_seed[:, :, None]
        parts += [_part(f"{center}/seeds", by_seed.T / n_centers), _part(f"{center}/patients", by_case.T / n_centers)]
        share = math.sqrt((n_seeds - 1) * (n_cases - 1) * n_seeds * n_cases) * n_centers
        residuals.append(residual.reshape(n_methods, -1) / share)
    return Effects(estimate, largest, parts, residuals)


def _part(name: str, deviations: FloatArray) -> Part:
    """A part from deviations (units, methods) that sum to zero over units, inflated."""
    count = len(deviations)
    return Part(name, deviations * math.sqrt(count / (count - 1)))


def resampled_means(parts: Sequence[Part], weights: Weights) -> tuple[Draws, list[Draws]]:
    """What each resample adds to the estimate, and the mean of each part over the root of its units less one; in the precision of the
    weights, and linear in the deviations, and so in the methods."""
    means: list[Draws] = []
    for name, deviations in parts:
        counts = weights[name]
        means.append(counts @ deviations.astype(counts.dtype, copy=False) / len(deviations))
    scales = [mean.dtype.type(math.sqrt(len(part.deviations) - 1)) for part, mean in zip(parts, means, strict=True)]
    return sum(means[1:], means[0]), [mean / scale for mean, scale in zip(means, scales, strict=True)]


def assemble(
    estimate: FloatArray,
    shift: Draws,
    parts: Iterable[tuple[Part, Draws]],
    twice: Sequence[FloatArray],
    largest: FloatArray,
    weights: Weights,
) -> Bootstrap:
    """The bootstrap of differences from what they are made of.

    Args:
        estimate: (methods,).
        shift: from :func:`resampled_means`.
        parts: with their means from :func:`resampled_means`, one after another.
        twice: the squared norms of the residuals of each center, (methods,) each.
        largest: a bound of the absolute differences, (methods,): what is nothing beside it is rounding.
        weights: that the means are of.
    """
    rounding = ROUNDING * largest
    estimate = np.where(np.abs(estimate) <= rounding, 0.0, estimate)
    spread = np.zeros_like(shift)
    variances: list[FloatArray] = []
    for (name, deviations), mean in parts:
        count, counts = len(deviations), weights[name]
        squared = np.where(np.abs(deviations) <= rounding, 0.0, deviations) ** 2
        # the bootstrap variance of the part's mean: thanks to the inflation also the unbiased estimate
        variances.append(squared.sum(axis=0) / count**2)
        # the variance of the mean that this resample would be given: its own units' spread, n−1 in the divisor
        squares = counts @ (squared / (count * (count - 1))).astype(counts.dtype, copy=False)
        own = mean * mean
        np.subtract(squares, own, out=own)  # in place, as the next lines: there are as many as pairs of methods
        squares *= 4 * count * np.finfo(own.dtype).eps
        own *= own > squares  # what remains else is rounding: the resample drew equal units throughout
        spread += own
    variance = _variance(variances, twice)
    return Bootstrap(
        estimate=estimate,
        standard_error=np.sqrt(variance),
        shift=shift,
        pivots=_ratio(np.where(variance > 0, np.abs(shift), 0), np.sqrt(spread, out=spread)),
    )


def _variance(parts: Sequence[FloatArray], twice: Sequence[FloatArray]) -> FloatArray:
    """The variance of the estimate from those of its parts, (methods,)."""
    if not twice:
        (centers,) = parts
        return centers
    total = np.zeros_like(parts[0])
    for seeds, patients, residual in zip(parts[::2], parts[1::2], twice, strict=True):
        # both hold the residual's share, which is taken away once; the mean varies no less than through either alone
        total += np.maximum(seeds + patients - residual, np.maximum(seeds, patients))
    return total


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
