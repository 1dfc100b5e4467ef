"""Rescaling of perturbed intensities, constant samples included."""

import pytest
import torch

from dgbench.ops.intensity import Rescale, min_max_rescale, rescale


def test_each_sample_spans_the_unit_interval() -> None:
    x = torch.tensor([[[[1.0, 3.0, 5.0]]], [[[-2.0, -1.0, 2.0]]]])
    y, degenerate = min_max_rescale(x)
    torch.testing.assert_close(y, torch.tensor([[[[0.0, 0.5, 1.0]]], [[[0.0, 0.25, 1.0]]]]))
    assert degenerate.tolist() == [False, False]


@pytest.mark.parametrize("ndim", [2, 3])
def test_samples_do_not_influence_each_other(ndim: int) -> None:
    x = torch.randn(3, 2, *(5,) * ndim, generator=torch.Generator().manual_seed(0))
    together, _ = min_max_rescale(x)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], min_max_rescale(x[i : i + 1])[0])


@pytest.mark.parametrize("value", [0.0, 0.7, torch.nan, torch.inf])
def test_samples_without_a_range_are_flagged_not_nan(value: float) -> None:
    x = torch.full((2, 1, 3, 4, 5), value)
    x[1] = torch.linspace(0, 1, 60).reshape(1, 3, 4, 5)
    y, degenerate = min_max_rescale(x)
    assert degenerate.tolist() == [True, False]
    assert torch.equal(y[0], torch.zeros_like(y[0]))
    torch.testing.assert_close(y[1], x[1])


def test_constant_sample_has_finite_gradient() -> None:
    x = torch.full((1, 1, 4, 4), 0.3, requires_grad=True)
    min_max_rescale(x)[0].sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", [-1.0, 0.25, 0.5, 2.0]),
        ("clamp", [0.0, 0.25, 0.5, 1.0]),
        ("minmax", [0.0, 1.25 / 3, 0.5, 1.0]),
        ("clamp-minmax", [0.0, 0.25, 0.5, 1.0]),
    ],
)
def test_modes(mode: Rescale, expected: list[float]) -> None:
    y, degenerate = rescale(torch.tensor([-1.0, 0.25, 0.5, 2.0]).reshape(1, 1, 2, 2), mode)
    torch.testing.assert_close(y.flatten(), torch.tensor(expected))
    assert degenerate.tolist() == [False]


def test_clamp_comes_before_min_max() -> None:
    """Voxels below and above the unit interval saturate first; then what is left is stretched."""
    x = torch.tensor([0.2, 0.4, 0.6, 5.0]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(rescale(x, "clamp-minmax")[0].flatten(), torch.tensor([0.0, 0.25, 0.5, 1.0]))


def test_saturated_sample_is_degenerate() -> None:
    """A perturbation that drives all voxels above 1 leaves nothing after the clamp."""
    _, degenerate = rescale(torch.rand(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)) + 1.5, "clamp-minmax")
    assert degenerate.tolist() == [True]


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match=r"'zscore'.*clamp-minmax"):
        rescale(torch.zeros(1, 1, 2, 2), "zscore")  # type: ignore[arg-type]
