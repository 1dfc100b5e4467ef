"""Task conversion: Eq. 6 has no gradient, its smooth extension has, the released variant has a wrong one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dgbench.ops.conversion import Conversion, distance_to_mask
from dgbench.ops.distance import signed_distance_batch
from dgbench.ops.losses import dice_loss


def lesion(ndim: int) -> Tensor:
    mask = torch.zeros(2, 1, *(10,) * ndim)
    mask[(0, 0, *(slice(2, 7),) * ndim)] = 1
    mask[(1, 0, *(slice(3, 9),) * ndim)] = 1
    return mask


def gradient(mode: Conversion, ndim: int = 3) -> Tensor:
    """Gradient of Dice of the converted map with respect to the distance head's logits."""
    mask = lesion(ndim)
    logits = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    dice_loss(distance_to_mask(torch.tanh(logits), mode), mask).backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("ndim", [2, 3])
def test_hard_conversion_has_zero_gradient(ndim: int) -> None:
    assert gradient("hard", ndim).abs().max() == 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_smooth_conversion_has_gradient_of_the_right_sign(ndim: int) -> None:
    """Raising a logit moves a voxel outwards: it must cost inside the lesion and pay outside."""
    grad = gradient("smooth", ndim)
    assert (grad[lesion(ndim) == 1] > 0).all()
    assert (grad[lesion(ndim) == 0] < 0).all()


def test_hard_values() -> None:
    m = torch.tensor([-1.0, -1e-9, -0.0, 0.0, 1e-9, 0.5, 0.9999995, 1.0])
    assert distance_to_mask(m, "hard").tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
def test_hard_conversion_inverts_the_distance_map(normalise: bool, ndim: int) -> None:
    maps, valid = signed_distance_batch(lesion(ndim), normalise=normalise)
    assert valid.all()
    assert torch.equal(distance_to_mask(maps, "hard"), lesion(ndim))


def test_smooth_values() -> None:
    m = torch.tensor([-1.0, 0.0, 0.2])
    torch.testing.assert_close(distance_to_mask(m, "smooth", k=5), torch.tensor([0.99330715, 0.5, 0.26894142]))


def test_smooth_approaches_hard() -> None:
    m = torch.tensor([-0.3, -0.01, 0.01, 0.3])
    torch.testing.assert_close(distance_to_mask(m, "smooth", k=1e4), distance_to_mask(m, "hard"))


def test_release_values() -> None:
    m = torch.tensor([-1.0, 0.0, 1e-6, 0.5, 0.999998, 0.9999995, 1.0], dtype=torch.float64)
    expected = torch.tensor([1, 1, 0, 0, 0, 0.9999995, 1], dtype=torch.float64)
    assert torch.equal(distance_to_mask(m, "release"), expected)


def test_release_equals_two_chained_thresholds() -> None:
    """1 where m <= 0, then 0 up to 0.999999: what two chained threshold units compute."""
    m = torch.linspace(-1, 1, 2001, dtype=torch.float64).clamp(max=0.9999999)
    chained = F.threshold(F.threshold(m, 0.0, 1.0), 0.999999, 0.0)
    assert torch.equal(distance_to_mask(m, "release"), chained)


def test_release_gradient_is_zero_below_a_logit_of_7_25() -> None:
    """The sheet's measurement: nothing below 7.26, at most 2e-6 above, where voxels far outside become foreground."""
    logits = torch.linspace(-10, 10, 4001, dtype=torch.float64, requires_grad=True)
    converted = distance_to_mask(torch.tanh(logits), "release")
    converted.sum().backward()
    assert logits.grad is not None
    assert logits.grad[logits < 7.25].abs().max() == 0
    above = logits.grad[logits > 7.26]
    assert (above > 0).all()
    assert above.max() <= 2e-6
    assert (converted[logits > 7.26] > 0.99).all()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"'soft'.*hard"):
        distance_to_mask(torch.zeros(2), "soft")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive"):
        distance_to_mask(torch.zeros(2), "smooth", k=0)
