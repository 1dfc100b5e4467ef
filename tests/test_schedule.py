"""The polynomial schedule against its formula."""

from itertools import pairwise

import pytest

from dgbench.training.schedule import poly_lr


def test_golden_values() -> None:
    """1e-4 (1 - it / max_it)^0.9, the paper's schedule."""
    assert poly_lr(0, 1000) == 1.0
    assert 1e-4 * poly_lr(500, 1000) == pytest.approx(5.358867e-5, rel=1e-6)
    assert 1e-4 * poly_lr(900, 1000) == pytest.approx(1.258925e-5, rel=1e-6)
    assert 1e-4 * poly_lr(999, 1000) == pytest.approx(1.995262e-7, rel=1e-6)
    assert poly_lr(1000, 1000) == 0.0


def test_linear_and_constant_powers() -> None:
    assert [poly_lr(step, 4, power=1) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert poly_lr(3, 4, power=0) == 1.0


def test_decreases_from_the_base_rate_not_as_a_recursion() -> None:
    factors = [poly_lr(step, 100) for step in range(101)]
    assert all(later < earlier for earlier, later in pairwise(factors))
    recursion = 1.0
    for step in range(50):
        recursion *= (1 - step / 100) ** 0.9
    assert factors[50] > 1e3 * recursion


def test_release_lags_one_step() -> None:
    """The released loop sets the rate after the update with that update's index: the documented expression gives it."""
    total, rate, used = 10, 1.0, []
    for step in range(total):
        used.append(rate)
        rate = (1 - step / total) ** 0.9
    assert used == [poly_lr(max(step - 1, 0), total) for step in range(total)]
    assert used != [poly_lr(step, total) for step in range(total)]


@pytest.mark.parametrize(("step", "total"), [(-1, 10), (11, 10), (0, 0)])
def test_outside_the_run(step: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"step {step} is outside 0..{total}"):
        poly_lr(step, total)
