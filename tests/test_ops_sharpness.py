"""Blur, sharpening and low resolution: the sheet's values, scipy's filter, and what stays as it is."""

import numpy as np
import pytest
import torch
from method_fixtures import sheet_u
from scipy.ndimage import gaussian_filter

from dgbench.ops.sharpness import filter_axis, gaussian_blur, gaussian_weights, low_resolution, sharpen


def test_fixture_is_the_one_of_the_sheet() -> None:
    assert sheet_u().mean().item() == pytest.approx(0.4654515, abs=5e-8)
    assert sheet_u().std(correction=0).item() == pytest.approx(0.3348113, abs=5e-8)


def test_blur_has_the_reference_values() -> None:
    blurred = gaussian_blur(sheet_u(), 0.75)
    assert blurred.mean().item() == pytest.approx(0.465451, abs=1e-6)
    assert blurred.std(correction=0).item() == pytest.approx(0.320615, abs=1e-6)


def test_sharpening_has_the_reference_values() -> None:
    sharp = sharpen(sheet_u(), 0.75, 0.5, 20.0)
    assert sharp.mean().item() == pytest.approx(0.465451, abs=1e-6)
    assert sharp.std(correction=0).item() == pytest.approx(0.428324, abs=1e-6)
    assert sharp[0, 0, 0, 0, :3].tolist() == pytest.approx([0.616889, 0.711492, 0.797251], abs=1e-6)


@pytest.mark.parametrize("shape", [(8, 10, 12), (3, 4, 2), (7, 5)])
@pytest.mark.parametrize("sigma", [0.1, 0.75, 1.5, 4.0])
def test_blur_equals_scipys_also_where_the_filter_is_longer_than_the_image(
    shape: tuple[int, ...], sigma: float
) -> None:
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blurred = gaussian_blur(x, sigma)
    for sample in range(2):
        for channel in range(3):
            expected = gaussian_filter(x[sample, channel].numpy(), sigma, mode="reflect")
            np.testing.assert_allclose(blurred[sample, channel].numpy(), expected, atol=1e-12)


def test_one_sigma_for_each_axis() -> None:
    x = sheet_u()
    expected = gaussian_filter(x[0, 0].numpy(), (0.0, 1.5, 0.5), mode="reflect")
    np.testing.assert_allclose(gaussian_blur(x, (0.0, 1.5, 0.5))[0, 0].numpy(), expected, atol=1e-12)


def test_nothing_to_blur_and_nothing_to_sharpen_is_the_identity() -> None:
    x = sheet_u()
    assert torch.equal(gaussian_blur(x, 0), x)
    assert torch.equal(sharpen(x, 0, 1.0, 0), x)
    assert torch.equal(sharpen(x, 0.75, 0.5, 0), gaussian_blur(x, 0.75))


def test_blur_has_a_gradient_that_sums_to_one_per_voxel() -> None:
    x = sheet_u().requires_grad_()
    (grad,) = torch.autograd.grad(gaussian_blur(x, 1.0).sum(), x)
    assert grad.sum().item() == pytest.approx(x.numel())


def test_weights_are_a_sampled_gaussian() -> None:
    weights = gaussian_weights(1.5)
    assert len(weights) == 13
    assert sum(weights) == pytest.approx(1)
    assert weights[7] / weights[6] == pytest.approx(np.exp(-0.5 / 1.5**2))
    assert gaussian_weights(0) == [1.0]


def test_filter_keeps_what_lies_inside() -> None:
    x = torch.arange(6.0).view(1, 1, 6)
    assert filter_axis(x, [1.0, 0.0, -1.0], 2).flatten().tolist() == [-2.0] * 4


@pytest.mark.parametrize("sigma", [-1.0, (1.0, 2.0)])
def test_sigma_that_does_not_fit_is_an_error(sigma: float | tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="sigma"):
        gaussian_blur(sheet_u(), sigma)


def test_low_resolution_keeps_linear_ramps_inside_and_removes_detail() -> None:
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 8, 16)
    stripes = (torch.arange(16) % 2).float().view(1, 1, 1, 16).expand(1, 1, 8, 16)
    inner = low_resolution(ramp, (0.5, 0.5))[..., 2:-2]
    assert torch.allclose(inner.diff(dim=-1), torch.ones(1, 1, 8, 11))
    assert low_resolution(stripes, (0.5, 0.5)).std() == 0
    assert torch.equal(low_resolution(stripes, (0.5, 1.0)), stripes)


@pytest.mark.parametrize("shape", [(9,), (9, 8), (7, 9, 8)])
def test_low_resolution_keeps_the_grid_and_is_the_identity_at_one(shape: tuple[int, ...]) -> None:
    x = torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(low_resolution(x, [1.0] * len(shape)), x)
    coarse = low_resolution(x, [0.6] * len(shape))
    assert coarse.shape == x.shape
    assert not torch.equal(coarse, x)
    assert low_resolution(x, [0.01] * len(shape)).shape == x.shape
