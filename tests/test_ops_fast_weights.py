"""Fast weights: clipping each tensor, and the meta-gradient to first order."""

import pytest
import torch

from dgbench.ops.fast_weights import clip_each, descend


def test_each_tensor_is_clipped_by_itself() -> None:
    long, short = torch.tensor([30.0, 40.0]), torch.tensor([3.0, 4.0])
    clipped = clip_each([long, short, torch.zeros(2)], 10.0)
    assert torch.allclose(clipped[0], torch.tensor([6.0, 8.0]))
    assert torch.equal(clipped[1], short)
    assert torch.equal(clipped[2], torch.zeros(2))
    assert long.tolist() == [30, 40]


def test_meta_gradient_is_the_reference_value_of_first_order() -> None:
    """L_tr = θ²/2, L_te = (θ - 3)²/2, θ = 1, rate 0.1: -2.1 to first order, -1.89 with the derivative of the inner gradient."""
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(theta**2 / 2, theta, create_graph=True)
    fast = descend({"theta": theta}, [gradient], 0.1)["theta"]
    assert fast.item() == pytest.approx(0.9)
    (meta,) = torch.autograd.grad((fast - 3) ** 2 / 2, theta, retain_graph=True)
    assert meta.item() == pytest.approx(-2.1)
    (second,) = torch.autograd.grad((theta - 0.1 * gradient - 3) ** 2 / 2, theta)
    assert second.item() == pytest.approx(-1.89)


def test_weights_stay_and_a_rate_of_zero_changes_nothing() -> None:
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}
    fast = descend(weights, [torch.tensor([1.0, 1.0]), torch.tensor(-2.0)], 0.5)
    assert fast["a"].tolist() == [0.5, 1.5]
    assert fast["b"].item() == 4
    assert weights["a"].tolist() == [1, 2]
    same = descend(weights, [torch.ones(2), torch.ones(())], 0.0)
    assert all(torch.equal(same[name], weights[name]) for name in weights)
    with pytest.raises(ValueError, match="shorter"):
        descend(weights, [torch.ones(2)], 0.5)
