"""Ranks of methods: intervals, ties, tiers, and what other schemes say, in closed forms and where one case decides."""

import numpy as np
import pytest
from scipy import stats
from score_tables import CENTERS, random_table, table_of

from dgbench.leaderboard.ranking import (
    SCHEMES,
    p_best,
    rank,
    robustness,
    simultaneous,
    standings,
    tiers,
)
from dgbench.leaderboard.resampling import LEVEL, bootstrap, critical_value
from dgbench.leaderboard.scores import ScoreTable
from dgbench.leaderboard.statistics import compare
from dgbench.leaderboard.statistics_sheets import difference_text


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
    assert {(s.rank, s.rank_interval, s.p_best, s.tier) for s in found} == {(1, (1, 4), 0.25, 1)}
    (alone,) = standings(random_table(methods=1))
    assert (alone.rank, alone.rank_interval, alone.p_best, alone.tier) == (1, (1, 1), 1, 1)


def test_methods_that_cannot_be_told_apart_share_a_tier() -> None:
    found = standings(random_table(methods=5))
    assert {s.tier for s in found} == {1}
    assert sum(s.p_best or 0 for s in found) == pytest.approx(1)
    assert all(s.rank_interval is not None and s.rank_interval[0] <= s.rank <= s.rank_interval[1] for s in found)
    assert any(s.rank_interval == (1, 5) for s in found)


def test_the_share_of_first_places_splits_ties() -> None:
    draws = np.array([[2.0, 2.0, 1.0], [3.0, 1.0, 1.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    assert p_best(draws) == pytest.approx([2.5 / 4, 0.5 / 4, 1 / 4])
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


def test_rank_intervals_count_those_that_are_surely_better_and_worse() -> None:
    table = random_table(methods=8, gain=0.03, draw=2)
    differs = simultaneous(table).differs
    means = dict(zip(table.methods, table.means(), strict=True))
    found = standings(table)
    for row, one in enumerate(found):
        others = [other for place, other in enumerate(table.methods) if differs[row, place]]
        better = sum(means[other] > means[one.method] for other in others)
        assert one.rank_interval == (1 + better, 8 - (len(others) - better))
        assert one.rank_interval[0] <= one.rank <= one.rank_interval[1]
    assert len({one.rank_interval for one in found}) > 2, "some are told apart, some are not"
    flipped = ScoreTable(
        metric="asd", higher_is_better=False, methods=table.methods, seeds=table.seeds, values=table.values
    )
    assert [s.rank_interval for s in standings(flipped)] == [
        (9 - high, 9 - low) for low, high in (s.rank_interval or (0, 0) for s in found)
    ]


def test_equal_methods_whose_trainings_differ_are_rarely_told_apart_by_rank_intervals() -> None:
    """Where nothing but seeds varies, the middle 95 % of the ranks in the resamples would be disjoint in every tenth table."""
    disjoint = 0
    for draw in range(300):
        rng = np.random.default_rng(draw)
        noise = {
            center: 0.5 + 0.05 * rng.standard_normal((2, 3, 1)) + 1e-6 * rng.standard_normal((2, 3, 8))
            for center in CENTERS
        }
        one, two = standings(table_of(noise), n_resamples=400)
        disjoint += one.rank_interval != two.rank_interval
    assert disjoint <= 0.07 * 300


def test_three_seeds_tell_no_probability_of_being_best() -> None:
    assert {s.p_best for s in standings(random_table(seeds=3))} == {None}
    assert all(s.tier for s in standings(random_table(seeds=3)))


def twins() -> ScoreTable:
    """m1 is far above erm; m2 equals erm but for one case at one seed, so that many resamples shift and have no spread."""
    base = {
        center: 0.4 + 0.02 * np.random.default_rng(place).standard_normal((5, 12))
        for place, center in enumerate(CENTERS)
    }
    values = {}
    for place, (center, own) in enumerate(base.items()):
        twin = own.copy()
        if place == 1:
            twin[1, 4] += 0.01
        noise = 0.01 * np.random.default_rng(place + 9).standard_normal(own.shape)
        values[center] = np.stack([own, own + 0.3 + noise, twin])
    return table_of(values)


def test_a_difference_that_nothing_bounds_takes_no_tier_from_the_others() -> None:
    table = twins()
    one, twin = compare(table)
    assert one.overall.interval is not None
    assert one.overall.interval[0] > 0.25
    assert (twin.overall.interval, twin.overall.unbounded) == (None, True)
    assert twin.p is not None
    assert twin.p > 0.05
    pairs = simultaneous(table)
    assert np.isinf(pairs.half_width[0, 2])
    assert pairs.differs.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    assert {s.method: (s.rank_interval, s.tier) for s in standings(table)} == {
        "erm": ((2, 3), 2),
        "m1": ((1, 1), 1),
        "m2": ((2, 3), 2),
    }
    assert difference_text(twin.overall) == "+0.0 [unbounded]"


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


@pytest.mark.parametrize("n_centers", [3, 6])
def test_simultaneous_intervals_are_those_of_all_differences_taken_one_by_one(n_centers: int) -> None:
    """The first method is far from all others, and two of these are nearly the same: their difference is still told as exactly."""
    rng = np.random.default_rng(7)
    values = {}
    for place in range(n_centers):
        scores = 0.6 + 0.05 * rng.standard_normal((5, 5, 9)) + 0.05 * rng.standard_normal((5, 5, 1))
        scores[0] = rng.random((5, 9))
        scores[4] = scores[3] + 1e-5 * rng.standard_normal((5, 9))
        values[f"C{place}"] = scores
    pairs, above = simultaneous(table_of(values)), np.triu_indices(5, k=1)
    alone = bootstrap({center: scores[above[0]] - scores[above[1]] for center, scores in values.items()})
    width = critical_value(alone.pivots.max(axis=1), LEVEL) * alone.standard_error
    assert pairs.difference[above] == pytest.approx(alone.estimate, rel=1e-6)
    assert pairs.half_width[above] == pytest.approx(width, rel=1e-3)
    assert pairs.half_width[3, 4] < 1e-4 < pairs.half_width[2, 3]


def test_rounding_is_neither_a_difference_nor_a_spread() -> None:
    """The first method is far from the others, which are one, that with rounding, and that with constants added."""
    rng = np.random.default_rng(8)
    values = {}
    for center in CENTERS:
        far, one = rng.random((2, 5, 50))
        values[center] = np.stack([far, one, (one + 0.3) - 0.3, *(one + 0.01 * step for step in range(1, 6))])
    assert any((scores[1] != scores[2]).any() for scores in values.values())
    pairs = simultaneous(table_of(values))
    assert pairs.difference[1, 2] == 0
    assert pairs.difference[1, 3:] == pytest.approx(-0.01 * np.arange(1, 6))
    assert (pairs.half_width[1:, 1:] == 0).all()
    assert pairs.half_width[0, 1] > 0
    assert pairs.differs[1, 1:].tolist() == [False, False, *[True] * 5]
