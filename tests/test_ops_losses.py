"""Losses: closed forms, the paper's definitions written out, safety in half precision and at the extremes."""

import math

import pytest
import torch
from torch import Tensor

from dgbench.ops.losses import (
    consistency_loss,
    dice_loss,
    distance_loss,
    segmentation_loss,
    slice_labels,
    slice_loss,
    view_divergence,
)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_dice_golden() -> None:
    """p = (.8, .6, .1, .5), Y = (1, 1, 0, 0): 1 - 2·1.4 / (2 + 2) = 0.3."""
    p = torch.tensor([0.8, 0.6, 0.1, 0.5], dtype=torch.float64).reshape(1, 1, 2, 2)
    y = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    assert dice_loss(p, y, eps=0).item() == pytest.approx(0.3, abs=1e-12)
    assert dice_loss(p, y).item() == pytest.approx(1 - (2.8 + 1e-6) / (4 + 1e-6), abs=1e-12)


def test_dice_is_averaged_over_samples_not_pooled() -> None:
    y = torch.zeros(2, 1, 4, 4, 4)
    y[0, 0, :2] = 1
    y[1, 0, 0, 0, 0] = 1
    p = torch.stack([y[0], torch.zeros_like(y[1])])
    assert dice_loss(p, y).item() == pytest.approx(0.5, abs=1e-5)
    assert dice_loss(p[:1], y[:1]).item() == pytest.approx(0.0, abs=1e-6)


def test_dice_of_empty_masks() -> None:
    empty = torch.zeros(1, 1, 4, 4)
    assert dice_loss(empty, empty).item() == 0.0
    assert dice_loss(empty + 1, empty).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 5, 6), (2, 3, 3, 4, 5)])
def test_segmentation_loss_is_equation_2(shape: tuple[int, ...]) -> None:
    logits = 4 * uniform(*shape) - 2
    y = (uniform(*shape, seed=1) > 0.6).double()
    p = 1 / (1 + torch.exp(-logits))
    per_channel = [1 - (2 * (p[b, c] * y[b, c]).sum()) / (p[b, c].sum() + y[b, c].sum())
                   for b in range(shape[0]) for c in range(shape[1])]  # fmt: skip
    cross_entropy = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    expected = torch.stack(per_channel).mean() + cross_entropy
    torch.testing.assert_close(segmentation_loss(logits, y), expected, atol=1e-6, rtol=0)


def test_segmentation_loss_golden() -> None:
    """Logits 0 on a half-full mask: Dice 1/2, cross-entropy log 2."""
    y = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    assert segmentation_loss(torch.zeros_like(y), y).item() == pytest.approx(0.5 + math.log(2), abs=1e-6)


def test_saturated_logits_stay_finite() -> None:
    logits = torch.tensor([-200.0, 200.0, 200.0, -200.0]).reshape(1, 1, 2, 2).requires_grad_()
    y = torch.tensor([1.0, 0.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    loss = segmentation_loss(logits, y)
    assert loss.item() == pytest.approx(0.5 + 100, rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0.2


def test_half_precision_sums_do_not_overflow() -> None:
    """100,000 foreground voxels exceed what a half-precision sum can hold (65,504)."""
    y = torch.ones(1, 1, 10, 100, 100, dtype=torch.float16)
    assert dice_loss(y, y).item() == pytest.approx(0.0, abs=1e-6)
    assert segmentation_loss(10 * y, y).dtype == torch.float32
    assert slice_labels(torch.ones(1, 1, 1, 300, 300, dtype=torch.float16)).item() == 1
    assert consistency_loss(y, 0 * y).dtype == torch.float32


def test_slice_labels_need_more_than_ten_voxels() -> None:
    mask = torch.zeros(2, 1, 4, 5, 6)
    mask[0, 0, 1].view(-1)[:10] = 1
    mask[0, 0, 2].view(-1)[:11] = 1
    mask[1, 0, 3] = 1
    assert slice_labels(mask).tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]
    assert slice_labels(mask, min_voxels=9).tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]
    assert slice_labels(mask.bool()).dtype == torch.float32
    assert slice_labels(mask[:, :, 2]).tolist() == [[1], [0]]
    with pytest.raises(ValueError, match="one channel"):
        slice_labels(mask.expand(-1, 2, -1, -1, -1))


def test_slice_loss_golden() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])
    expected = (math.log(2) + math.log(4)) / 2  # sigmoid: 1/2 and 3/4
    assert slice_loss(logits, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(expected, abs=1e-6)


def test_distance_loss_averages_over_valid_samples() -> None:
    target = torch.zeros(3, 1, 2, 2)
    predicted = torch.stack([torch.full((1, 2, 2), v) for v in (0.2, 0.9, -0.6)]).requires_grad_()
    loss = distance_loss(predicted, target, torch.tensor([True, False, True]))
    assert loss.item() == pytest.approx(0.4, abs=1e-6)
    loss.backward()
    assert predicted.grad is not None
    torch.testing.assert_close(predicted.grad.flatten(1)[:, 0], torch.tensor([1.0, 0.0, -1.0]) / 8)


def test_distance_loss_without_a_valid_sample_is_zero() -> None:
    predicted = torch.ones(2, 1, 2, 2, 2, requires_grad=True)
    loss = distance_loss(predicted, torch.zeros(2, 1, 2, 2, 2), torch.tensor([False, False]))
    loss.backward()
    assert loss.item() == 0
    assert predicted.grad is not None
    assert predicted.grad.abs().max() == 0


def test_consistency_golden() -> None:
    first, second = torch.tensor([0.0, 0.5, 1.0, 1.0]), torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert consistency_loss(first, second).item() == pytest.approx(1.25 / 4)


def test_consistency_moves_both_views() -> None:
    first, second = uniform(1, 1, 3, 3).requires_grad_(), uniform(1, 1, 3, 3, seed=1).requires_grad_()
    consistency_loss(first, second).backward()
    assert first.grad is not None
    assert second.grad is not None
    torch.testing.assert_close(first.grad, -second.grad)
    assert first.grad.abs().max() > 0


def test_view_divergence_golden() -> None:
    """The sheet's value for logits (2, 0), (0, 0), (0, 1), and the same from the Bernoulli form with 2, 0, -1."""
    categorical = [torch.tensor(z, dtype=torch.float64).reshape(1, 2, 1, 1) for z in ([2.0, 0], [0, 0], [0, 1.0])]
    bernoulli = [torch.full((1, 1, 1, 1, 1), z, dtype=torch.float64) for z in (2.0, 0, -1)]
    assert view_divergence(categorical).item() == pytest.approx(0.1412616, abs=1e-7)
    assert view_divergence(bernoulli).item() == pytest.approx(0.1412616, abs=1e-7)


def test_view_divergence_bounds() -> None:
    z = 6 * uniform(2, 1, 3, 4, 5) - 3
    assert view_divergence([z, z, z]).item() == pytest.approx(0.0, abs=1e-12)
    certain = torch.full((1, 1, 2, 2), 200.0)
    assert view_divergence([certain, certain]).item() == 0.0
    opposite = torch.full((1, 1, 2, 2), 80.0, requires_grad=True)
    loss = view_divergence([opposite, -opposite])
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)
    loss.backward()
    assert opposite.grad is not None
    assert torch.isfinite(opposite.grad).all()
