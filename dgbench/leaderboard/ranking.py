"""Who is best, and how sure that is: rank intervals, P(best), tiers, and ranks under other schemes and metrics.

Sources: Wiesenfarth et al. 2021, Methods and open-source toolkit for analyzing and visualizing challenge results, Scientific Reports
11 (ranking schemes, ranks in resamples); Westfall and Young 1993, Resampling-Based Multiple Testing (max-T); Hsu 1996, Multiple Comparisons
(comparison with the best); Klein, Wright and Wieczorek 2020, A joint confidence region for an overall ranking of populations, Applied
Statistics 69 (rank intervals from simultaneous intervals of differences).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgbench.leaderboard.resampling import (
    LEVEL,
    N_RESAMPLES,
    SEED,
    Part,
    Weights,
    assemble,
    bootstrap,
    critical_value,
    effects,
    resampled_means,
    resampling_weights,
)
from dgbench.leaderboard.scores import FloatArray, ScoreTable
from dgbench.leaderboard.statistics import evidence

SCHEMES = ("aggregate-then-rank", "rank-then-aggregate", "test-then-rank")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One method's place. ``rank``: 1 is best, equal means share a rank.

    ``rank_interval``: ranks that the simultaneous intervals leave possible, both ends included. ``tier``: 1 is best. Both are absent with
    one or two seeds. ``p_best``: share of resamples in which the method is best, ties split; sums to 1 over methods; with five seeds and
    more.
    """

    method: str
    rank: int
    rank_interval: tuple[int, int] | None
    p_best: float | None
    tier: int | None


@dataclass(frozen=True, kw_only=True)
class Pairwise:
    """All differences between methods with simultaneous intervals, each (methods, methods): row minus column.

    ``half_width`` of 0 with a nonzero difference means a difference without any spread; it is infinite where some resample leaves none.
    """

    difference: FloatArray
    half_width: FloatArray

    @property
    def differs(self) -> NDArray[np.bool_]:
        """Whether the simultaneous interval excludes 0."""
        different: NDArray[np.bool_] = np.abs(self.difference) > self.half_width
        return different


def standings(
    table: ScoreTable, *, level: float = LEVEL, n_resamples: int = N_RESAMPLES, seed: int = SEED
) -> tuple[Standing, ...]:
    """Rank, rank interval, P(best) and tier of every method, in the table's order.

    Ranks of all methods come from the same resamples of the same seeds and patients. All rank intervals hold at once: a method's rank is
    above the number of those that are better with simultaneous confidence, and at most the number of those that are not worse.

    Args:
        table: scores of complete methods.
        level: of the simultaneous intervals behind rank intervals and tiers, in (0, 1).
        n_resamples: B.
        seed: of the resampling.

    Raises:
        DgbenchError: a center has a single case while intervals are due.
    """
    sign, grade = _signed(table), evidence(len(table.seeds))
    ranks = rank(sign * table.means())
    if not grade.has_interval:
        return tuple(
            Standing(method=method, rank=int(place), rank_interval=None, p_best=None, tier=None)
            for method, place in zip(table.methods, ranks, strict=True)
        )
    weights = _weights(table, n_resamples, seed)
    pairs = simultaneous(table, level=level, weights=weights)
    better = pairs.differs & (sign * pairs.difference > 0)
    low, high = 1 + better.sum(axis=0), len(table.methods) - better.sum(axis=1)
    best = p_best(sign * bootstrap(table.differences(table.methods[0]), weights).draws) if grade.has_p_value else None
    tier = tiers(sign * table.means(), pairs.differs)
    return tuple(
        Standing(
            method=method,
            rank=int(ranks[row]),
            rank_interval=(int(low[row]), int(high[row])),
            p_best=None if best is None else float(best[row]),
            tier=int(tier[row]),
        )
        for row, method in enumerate(table.methods)
    )


def _signed(table: ScoreTable) -> int:
    return 1 if table.higher_is_better else -1


def _weights(table: ScoreTable, n_resamples: int, seed: int) -> Weights:
    shapes = {center: array.shape[1:] for center, array in table.values.items()}
    return resampling_weights(shapes, n_resamples=n_resamples, seed=seed)


def rank(scores: FloatArray) -> NDArray[np.int64]:
    """Ranks of methods, 1 for the highest; equal scores share the better rank (rounding below 1e-9 is equal).

    Args:
        scores: (methods,) or (resamples, methods), without NaN.
    """
    import pandas as pd

    rows = pd.DataFrame(np.atleast_2d(np.round(scores, 9)))
    ranks: NDArray[np.int64] = rows.rank(axis=1, method="min", ascending=False).to_numpy(np.int64)
    return ranks.reshape(scores.shape)


def ranks(means: Sequence[float]) -> list[int]:
    """:func:`rank` of single numbers, higher is better."""
    return rank(np.array(means, dtype=np.float64)).tolist() if means else []


def p_best(draws: FloatArray) -> FloatArray:
    """The share of resamples in which each method is best, (methods,); ties are split.

    Args:
        draws: resampled scores, higher is better, (resamples, methods).
    """
    first = rank(draws) == 1
    shares: FloatArray = (first / first.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def simultaneous(table: ScoreTable, *, level: float = LEVEL, weights: Weights | None = None) -> Pairwise:
    """Simultaneous intervals of all pairwise differences (max-T over pairs, studentised).

    One critical value, the ``level`` quantile of the largest pivot over all pairs, holds for all of them, and so also for the
    comparison with whichever method turns out best: a band for comparisons with a method that was named beforehand would be too
    short for one that was picked by its score.

    Args:
        table: scores, at least two seeds and two cases in every center.
        level: probability, in (0, 1), that all intervals hold at once.
        weights: from :func:`dgbench.leaderboard.resampling.resampling_weights`; drawn with the defaults unless given.

    Raises:
        DgbenchError: a center has a single seed or case.
    """
    weights = weights or _weights(table, N_RESAMPLES, SEED)
    # a critical value needs three digits, and there are many pairs
    single = {name: counts.astype(np.float32) for name, counts in weights.items()}
    count = len(table.methods)
    difference, error = np.zeros((count, count)), np.zeros((count, count))
    found = effects(table.differences(table.methods[0]))
    shift, means = resampled_means(found.parts, single)
    twice = [_squared_distances(residual) for residual in found.residuals]
    largest = np.zeros(len(shift), dtype=np.float32)
    for row in range(count - 1):
        rest = slice(row + 1, None)
        result = assemble(
            _less_later(found.estimate, row),
            _less_later(shift, row),
            (
                (Part(name, _less_later(deviations, row)), _less_later(mean, row))
                for (name, deviations), mean in zip(found.parts, means, strict=True)
            ),
            [center[row, rest] for center in twice],
            found.largest[row] + found.largest[rest],
            single,
        )
        # nothing bounds a difference that some resample shifts and leaves without spread: it is told from no other, and widens none
        endless = np.isinf(result.pivots.max(axis=0))
        difference[row, rest] = result.estimate
        error[row, rest] = np.where(endless, np.inf, result.standard_error)
        largest = np.maximum(largest, result.pivots.max(axis=1, where=~endless, initial=0))
    value = float(critical_value(largest, level)) if count > 1 else 0.0
    half = np.multiply(error, value, out=error.copy(), where=np.isfinite(error))
    return Pairwise(difference=difference - difference.T, half_width=half + half.T)


def _less_later(of_methods: NDArray[Any], row: int) -> NDArray[Any]:
    """What is linear in the methods, (…, methods), of the differences of one to each of those after it."""
    less: NDArray[Any] = of_methods[..., [row]] - of_methods[..., row + 1 :]
    return less


def _squared_distances(residual: FloatArray) -> FloatArray:
    """The sum of squares of every method's residual less every other's, (methods, methods), from (methods, residuals)."""
    products = residual @ residual.T
    squares = products.diagonal()
    distances: FloatArray = np.maximum(squares[:, None] + squares - 2 * products, 0)
    return distances


def tiers(scores: FloatArray, differs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Tier of each method: the best and all that do not differ from it are tier 1; the best of the rest opens tier 2; and so on.

    Args:
        scores: higher is better, (methods,).
        differs: whether two methods differ, from simultaneous intervals, (methods, methods).
    """
    found = np.zeros(len(scores), dtype=np.int64)
    tier = 0
    while (found == 0).any():
        tier += 1
        left = np.flatnonzero(found == 0)
        best = left[np.argmax(scores[left])]
        found[left[~differs[best, left]]] = tier
    return found


@dataclass(frozen=True, kw_only=True)
class SchemeRanks:
    """Ranks of one metric under one scheme; ``tau``: Kendall's τ-b with the official ranks, in [−1, 1], ``None`` where undefined."""

    metric: str
    scheme: str
    ranks: Mapping[str, int]
    tau: float | None


def robustness(
    tables: Sequence[ScoreTable], *, level: float = LEVEL, n_resamples: int = N_RESAMPLES, seed: int = SEED
) -> tuple[SchemeRanks, ...]:
    """Ranks under :data:`SCHEMES` and over metrics, against the first metric's aggregate-then-rank, which is the official one.

    - aggregate-then-rank: by the mean over cases, seeds and centers;
    - rank-then-aggregate: by the mean rank, taken for every case at every seed, averaged like a score;
    - test-then-rank: by the number of methods that one is better than with simultaneous confidence; absent with one or two seeds.

    Args:
        tables: one per metric, with the same methods.
        level: of the simultaneous intervals.
        n_resamples: B.
        seed: of the resampling.
    """
    found = [
        (table, scheme, ranks)
        for table in tables
        for scheme, ranks in _schemes(table, level, n_resamples, seed).items()
    ]
    return tuple(
        SchemeRanks(
            metric=table.metric,
            scheme=scheme,
            ranks=dict(zip(table.methods, ranks.tolist(), strict=True)),
            tau=_tau(found[0][2], ranks),
        )
        for table, scheme, ranks in found
    )


def _schemes(table: ScoreTable, level: float, n_resamples: int, seed: int) -> dict[str, NDArray[np.int64]]:
    import pandas as pd

    sign, count = _signed(table), len(table.methods)
    by_case = [
        pd.DataFrame(sign * np.round(values, 9).reshape(count, -1)).rank(ascending=False).mean(axis=1)
        for values in table.values.values()
    ]
    ranks = [rank(sign * table.means()), rank(-np.mean(by_case, axis=0))]
    if evidence(len(table.seeds)).has_interval:
        pairs = simultaneous(table, level=level, weights=_weights(table, n_resamples, seed))
        ranks.append(rank((pairs.differs & (sign * pairs.difference > 0)).sum(axis=1).astype(np.float64)))
    return dict(zip(SCHEMES, ranks, strict=False))


def _tau(official: NDArray[np.int64], other: NDArray[np.int64]) -> float | None:
    """Kendall's τ-b: pairs in the same order less those in the opposite one, over the geometric mean of the pairs that are untied in one
    and in the other; undefined where all ranks of one are equal. (To import :mod:`scipy.stats` for it took 0.4 of a small table.)"""
    one, two = (np.sign(np.subtract.outer(ranks, ranks)) for ranks in (official, other))
    pairs = np.sqrt(float((one**2).sum()) * float((two**2).sum()))
    return float((one * two).sum() / pairs) if pairs else None
