"""Draws are pure functions of (seed, step), cover what they should, and crops hold the ROI."""

from collections import Counter

import numpy as np
import pytest

from dgbench.data.sampling import crop_start, draw_cases
from dgbench.seeds import derive_seed


def test_pooled_draws_visit_every_case_once_before_any_twice() -> None:
    domains = [0] * 5 + [1] * 3
    drawn = [index for step in range(8) for index in draw_cases(1, step, 2, domains, "pooled")]
    assert Counter(drawn) == dict.fromkeys(range(8), 2)
    assert sorted(drawn[:8]) == list(range(8))


def test_per_center_draws_hold_one_case_of_each_center() -> None:
    domains = [0] * 5 + [1] * 3 + [2] * 2
    for step in range(20):
        assert sorted(domains[index] for index in draw_cases(1, step, 3, domains, "per-center")) == [0, 1, 2]
    first = [draw_cases(1, step, 3, domains, "per-center")[2] for step in range(2)]
    assert sorted(first) == [8, 9]


@pytest.mark.parametrize(("k", "n_centers"), [(3, 2), (4, 3), (2, 3)])
def test_centers_take_turns_where_a_step_cannot_hold_as_many_of_each(k: int, n_centers: int) -> None:
    """A training without one of three sources draws three cases from two centers."""
    domains = [domain for domain in range(n_centers) for _ in range(4)]
    drawn = [index for step in range(120) for index in draw_cases(1, step, k, domains, "per-center")]
    assert Counter(domains[index] for index in drawn) == dict.fromkeys(range(n_centers), 120 * k // n_centers)
    assert Counter(drawn[: len(domains)]) == dict.fromkeys(range(len(domains)), 1)


def test_mixture_draws_follow_the_given_probabilities() -> None:
    domains = [0] * 4 + [1] * 4
    drawn = [domains[draw_cases(1, step, 1, domains, [[0.2, 0.8]])[0]] for step in range(600)]
    assert np.mean(drawn) == pytest.approx(0.8, abs=0.05)


def test_draws_do_not_depend_on_what_was_drawn_before() -> None:
    domains = [0] * 7 + [1] * 4
    for sampling in ("pooled", "per-center", [[0.5, 0.5]] * 2):
        late = draw_cases(3, 123, 2, domains, sampling)
        for step in range(20):
            draw_cases(3, step, 2, domains, sampling)
        assert draw_cases(3, 123, 2, domains, sampling) == late


def test_seeds_differ_along_every_axis_and_are_stable() -> None:
    assert derive_seed(0, "crop", 1, 2) == 7592580033425313640
    assert len({derive_seed(0, "a", 1), derive_seed(1, "a", 1), derive_seed(0, "b", 1), derive_seed(0, "a", 2)}) == 4


@pytest.mark.parametrize(("box", "size"), [(((4, 6), (8, 9)), (10, 10)), (((2, 2), (18, 19)), (8, 8))])
def test_crops_hold_a_small_roi_and_lie_in_a_large_one(
    box: tuple[tuple[int, ...], tuple[int, ...]], size: tuple[int, ...]
) -> None:
    starts = set()
    for seed in range(200):
        start = crop_start(np.random.default_rng(seed), box, (20, 20), size)
        starts.add(tuple(start))
        for low, high, first, length in zip(*box, start, size, strict=True):
            assert 0 <= first <= 20 - length
            assert (first <= low and high <= first + length) or (low <= first and first + length <= high)
    assert len(starts) > 20


def test_a_crop_longer_than_the_volume_is_centered_on_it() -> None:
    assert crop_start(np.random.default_rng(0), ((0,), (5,)), (5,), (8,)) == [-2]
