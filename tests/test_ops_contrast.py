"""Gamma curves and contrast: the sheet's values and what each setting keeps."""

import pytest
import torch
from method_fixtures import sheet_u

from dgbench.ops.contrast import gamma_curve, scale_contrast


@pytest.mark.parametrize(("gamma", "mean"), [(2.0, 0.328744), (0.5, 0.615054)])
def test_gamma_has_the_reference_means_and_keeps_the_range_exactly(gamma: float, mean: float) -> None:
    y = gamma_curve(sheet_u(), gamma)
    assert y.mean().item() == pytest.approx(mean, abs=1e-6)
    assert y.min() == 0
    assert y.max() == 1


def test_gamma_of_one_is_the_identity_in_each_form() -> None:
    x = 3 * sheet_u() - 7
    for invert in (False, True):
        for retain in (False, True):
            assert torch.allclose(gamma_curve(x, 1.0, invert=invert, retain_statistics=retain), x, atol=1e-12)


def test_gamma_follows_the_range_of_each_sample_and_channel() -> None:
    u = sheet_u()
    x = torch.cat([torch.cat([u, 5 * u - 2], dim=1), torch.cat([-u, 0.1 * u], dim=1)])
    y = gamma_curve(x, 2.5)
    for sample in range(2):
        for channel in range(2):
            alone = gamma_curve(x[sample : sample + 1, channel : channel + 1], 2.5)
            assert torch.equal(y[sample : sample + 1, channel : channel + 1], alone)
    assert torch.allclose(y[:1, 1:], 5 * gamma_curve(u, 2.5) - 2)


def test_inverted_gamma_is_the_curve_of_the_negative() -> None:
    x = sheet_u()
    assert torch.allclose(gamma_curve(x, 2.0, invert=True), 1 - (1 - x) ** 2)
    assert gamma_curve(x, 2.0).mean() < x.mean() < gamma_curve(x, 2.0, invert=True).mean()


@pytest.mark.parametrize("invert", [False, True])
def test_retained_statistics_are_those_of_before(invert: bool) -> None:
    x = 2 * sheet_u() - 3
    y = gamma_curve(x, 1.4, invert=invert, retain_statistics=True)
    assert y.mean().item() == pytest.approx(x.mean().item(), abs=1e-12)
    assert y.std().item() == pytest.approx(x.std().item(), abs=1e-12)
    assert not torch.allclose(y, x, atol=1e-2)
    assert not torch.isclose(gamma_curve(x, 1.4, invert=invert).mean(), x.mean(), atol=1e-2)


def test_constant_channel_stays_finite_and_as_it_is() -> None:
    x = torch.full((1, 1, 4, 4), 0.3)
    for retain in (False, True):
        assert torch.allclose(gamma_curve(x, 3.0, retain_statistics=retain), x)
    assert torch.allclose(scale_contrast(x, 1.2), x)


def test_contrast_is_about_the_mean_and_stays_in_range() -> None:
    x = sheet_u()
    assert torch.allclose(scale_contrast(x, 1.0), x)
    low = scale_contrast(x, 0.75)
    assert low.mean().item() == pytest.approx(x.mean().item())
    assert low.std().item() == pytest.approx(0.75 * x.std().item())
    high, free = scale_contrast(x, 1.25), scale_contrast(x, 1.25, preserve_range=False)
    assert torch.equal(high, free.clamp(0, 1))
    assert free.std().item() == pytest.approx(1.25 * x.std().item())
    assert free.max() > 1
