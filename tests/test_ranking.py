"""Ranks of methods: intervals, ties, tiers, and what other schemes say, in closed forms and where one case decides."""

import numpy as np
import pytest
from scipy import stats
from score_tables import CENTERS, random_table, table_of

from dgbench.leaderboard.ranking import (
    SCHEMES,
    rank,
    rank_distribution,
    robustness,
    simultaneous,
    standings,
    tiers,
)
from dgbench.leaderboard.scores import ScoreTable
from dgbench.leaderboard.statistics import compare


def test_clear_order_has_narrow_ranks_and_a_tier_each() -> None:
    table = random_table(gain=0.3)
    found = {s.method: (s.rank, s.rank_interval, s.p_best, s.tier) for s in standings(table)}
    assert found == {"m2": (1, (1, 1), 1, 1), "m1": (2, (2, 2), 0, 2), "erm": (3, (3, 3), 0, 3)}
    worse = ScoreTable(
        metric="hd95", higher_is_better=False, methods=table.methods, seeds=table.seeds, values=table.values
    )
    assert [s.rank for s in standings(worse)] == [1, 2, 3]
    assert [s.tier for s in standings(worse)] == [1, 2, 3]


def test_equal_methods_share_everything() -> None:
    base = random_table(methods=1).values
    found = standings(table_of({c: np.repeat(v, 4, axis=0) for c, v in base.items()}))
    assert {(s.rank, s.rank_interval, s.p_best, s.tier) for s in found} == {(1, (1, 1), 0.25, 1)}
    (alone,) = standings(random_table(methods=1))
    assert (alone.rank, alone.rank_interval, alone.p_best, alone.tier) == (1, (1, 1), 1, 1)


def test_methods_that_cannot_be_told_apart_share_a_tier() -> None:
    found = standings(random_table(methods=5))
    assert {s.tier for s in found} == {1}
    assert sum(s.p_best or 0 for s in found) == pytest.approx(1)
    assert all(s.rank_interval is not None and s.rank_interval[0] <= s.rank <= s.rank_interval[1] for s in found)
    assert any(s.rank_interval == (1, 5) for s in found)


def test_rank_distribution_splits_ties() -> None:
    draws = np.array([[2.0, 2.0, 1.0], [3.0, 1.0, 1.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    low, high, best = rank_distribution(draws)
    assert best == pytest.approx([2.5 / 4, 0.5 / 4, 1 / 4])
    assert (low.tolist(), high.tolist()) == ([1, 1, 1], [3, 2, 3])
    assert rank(np.array([0.5, 0.7, 0.7 + 1e-13, 0.1])).tolist() == [3, 1, 1, 4]


def test_ranks_and_tau_are_those_of_scipy() -> None:
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 6, (50, 12)) / 10
    assert (rank(scores) == stats.rankdata(-scores, method="min", axis=1)).all()
    tables = [random_table(methods=12, draw=draw, gain=0.05) for draw in range(4)]
    found = robustness(tables)
    official = list(found[0].ranks.values())
    assert len(found) == 12
    assert any(len(set(r.ranks.values())) < 12 for r in found), "with ties"
    for r in found:
        ranks = list(r.ranks.values())
        expected = stats.kendalltau(official, ranks).statistic
        assert r.tau == (None if len(set(ranks)) == 1 else pytest.approx(expected))


def test_tiers_of_overlapping_intervals() -> None:
    """a ~ b, b ~ c, but a differs from c: c opens the second tier, and d, which differs from neither a nor c, is in the first."""
    differs = np.zeros((4, 4), dtype=bool)
    differs[0, 2] = differs[2, 0] = True
    assert tiers(np.array([0.9, 0.8, 0.7, 0.6]), differs).tolist() == [1, 1, 2, 1]
    assert tiers(np.array([0.6, 0.7, 0.8, 0.9]), ~np.eye(4, dtype=bool)).tolist() == [4, 3, 2, 1]


def test_simultaneous_intervals_are_wider_than_single_ones() -> None:
    table = random_table(methods=6)
    pairs = simultaneous(table)
    assert np.array_equal(pairs.difference, -pairs.difference.T)
    assert np.array_equal(pairs.half_width, pairs.half_width.T)
    for row, found in enumerate(compare(table), start=1):
        assert found.overall.interval is not None
        low, high = found.overall.interval
        assert pairs.difference[row, 0] == pytest.approx(found.overall.mean)
        assert pairs.half_width[row, 0] > (high - low) / 2
    two = table_of({center: values[:2] for center, values in table.values.items()})
    (single,) = compare(two)
    assert single.overall.interval is not None
    width = (single.overall.interval[1] - single.overall.interval[0]) / 2
    assert simultaneous(two).half_width[1, 0] == pytest.approx(width, rel=1e-4)


def test_ranking_schemes_disagree_where_one_case_decides() -> None:
    """m1 is a little better on nine cases and fails on the tenth: worse by the mean, better by ranks."""
    base = np.full((1, 5, 10), 0.5) + 0.01 * np.random.default_rng(9).standard_normal((1, 5, 10))
    other = base + 0.01
    other[:, :, 9] = 0.0
    overlap = table_of({center: np.concatenate([base, other]) for center in CENTERS})
    distance = table_of({c: 1 - v for c, v in overlap.values.items()}, higher_is_better=False, metric="asd")
    found = {(r.metric, r.scheme): (r.ranks, r.tau) for r in robustness([overlap, distance])}
    assert set(found) == {(metric, scheme) for metric in ("dsc", "asd") for scheme in SCHEMES}
    for metric in ("dsc", "asd"):
        assert found[metric, "aggregate-then-rank"] == ({"erm": 1, "m1": 2}, pytest.approx(1))
        assert found[metric, "rank-then-aggregate"] == ({"erm": 2, "m1": 1}, pytest.approx(-1))
        assert found[metric, "test-then-rank"] == ({"erm": 1, "m1": 1}, None)


def test_test_then_rank_counts_significant_wins() -> None:
    table = random_table(gain=0.3)
    found = {r.scheme: r.ranks for r in robustness([table])}
    assert found["test-then-rank"] == {"m2": 1, "m1": 2, "erm": 3}
    assert "test-then-rank" not in {r.scheme for r in robustness([random_table(seeds=2)])}
