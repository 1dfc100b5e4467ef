"""Semi-hard triplets: the sheet's value, the definition triplet by triplet, and what has no triplet."""

import pytest
import torch
from torch import Tensor

from dgbench.ops.triplet import semi_hard_triplet_loss

POINTS = torch.tensor([[0.0, 0], [3, 0], [1, 0], [0, 1], [4, 0]])
LABELS = torch.tensor([1, 0, 1, 1, 0])


def definition(features: Tensor, labels: Tensor, margin: float) -> tuple[float, int]:
    """The formula triplet by triplet, and for how many pairs no negative is farther than the positive."""
    n, terms, inside = len(labels), [], 0
    d = [[float(((a - b) ** 2).sum()) for b in features] for a in features]
    for a in range(n):
        others = [d[a][k] for k in range(n) if labels[k] != labels[a]]
        for p in range(n):
            if p != a and labels[p] == labels[a]:
                farther = [value for value in others if value > d[a][p]]
                inside += not farther
                terms.append(max(0.0, margin + d[a][p] - (min(farther) if farther else max(others))))
    return sum(terms) / len(terms), inside


def test_five_points_give_the_reference_value() -> None:
    assert semi_hard_triplet_loss(POINTS, LABELS, margin=10.0).item() == 31 / 8


@pytest.mark.parametrize("margin", [0.5, 10.0])
def test_equals_the_definition(margin: float) -> None:
    without_farther = 0
    for seed, labels in enumerate([[1, 0, 1, 0], [1, 0, 1, 0, 1, 0], [0, 1, 2, 2, 1, 0, 2], [0, 0, 0, 1]]):
        features = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        expected, inside = definition(features, torch.tensor(labels), margin)
        without_farther += inside
        assert semi_hard_triplet_loss(features, torch.tensor(labels), margin=margin).item() == pytest.approx(expected)
    assert without_farther


def test_gradient_reaches_anchor_positive_and_negative() -> None:
    features = POINTS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(semi_hard_triplet_loss(features, LABELS, margin=10.0), features)
    assert gradient.isfinite().all()
    assert gradient.abs().sum(1).all()


def test_separated_labels_cost_nothing() -> None:
    features = torch.tensor([[0.0], [0.1], [9.0], [9.1]])
    labels = torch.tensor([0, 0, 1, 1])
    assert semi_hard_triplet_loss(features, labels, margin=10.0) == 0
    assert semi_hard_triplet_loss(features, labels, margin=100.0) > 0


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1, 2], [1]])
def test_without_a_triplet_loss_and_gradient_are_zero(labels: list[int]) -> None:
    features = POINTS[: len(labels)].clone().requires_grad_()
    loss = semi_hard_triplet_loss(features, torch.tensor(labels), margin=10.0)
    (gradient,) = torch.autograd.grad(loss, features)
    assert loss == 0
    assert not gradient.any()


def test_half_precision_is_computed_in_float32_and_wrong_arguments_are_errors() -> None:
    assert semi_hard_triplet_loss(POINTS.to(torch.bfloat16), LABELS, margin=10.0).dtype == torch.float32
    with pytest.raises(ValueError, match="margin"):
        semi_hard_triplet_loss(POINTS, LABELS, margin=0.0)
    with pytest.raises(ValueError, match="do not fit"):
        semi_hard_triplet_loss(POINTS, LABELS[:3], margin=1.0)
