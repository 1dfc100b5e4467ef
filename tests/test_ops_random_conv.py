"""Random convolution: the sheets' golden values, statistics of the draws, and the rules for random numbers."""

import pytest
import torch
from torch import Tensor

from dgbench.ops.random_conv import convolve_and_mix, draw_kernel, random_conv


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wave(*shape: int) -> Tensor:
    """The sheets' fixture X: 0.5 (b+1) sin(0.7 (c+1) + 0.3 d + 0.2 h + 0.11 w + b) + 0.1 (b+1) (c+1), float64."""
    b, c, d, h, w = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    return 0.5 * (b + 1) * torch.sin(0.7 * (c + 1) + 0.3 * d + 0.2 * h + 0.11 * w + b) + 0.1 * (b + 1) * (c + 1)


def unit_wave() -> Tensor:
    """Fixture Z1: X(1, 1, 4, 5, 6) min-maxed."""
    x = wave(1, 1, 4, 5, 6)
    return (x - x.min()) / (x.max() - x.min())


def test_golden_mix() -> None:
    weight = (torch.cos(0.37 * torch.arange(27, dtype=torch.float64)) / 27**0.5).reshape(1, 1, 3, 3, 3)
    bias = torch.tensor([0.1], dtype=torch.float64)
    convolved = convolve_and_mix(unit_wave(), weight, bias)
    mixed = convolve_and_mix(unit_wave(), weight, bias, 0.6)
    measured = torch.stack([convolved.mean(), convolved.std(), mixed.mean(), mixed.std(), mixed.min(), mixed.max()])
    expected = torch.tensor([0.086422, 0.206032, 0.384094, 0.112176, 0.101880, 0.665791], dtype=torch.float64)
    torch.testing.assert_close(measured, expected, atol=1e-6, rtol=0)
    corner = torch.tensor([0.197284, 0.207460, 0.251793], dtype=torch.float64)
    torch.testing.assert_close(mixed[0, 0, 0, 0, :3], corner, atol=1e-6, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_identity_filter_returns_the_image(alpha: float) -> None:
    dirac = torch.zeros(1, 1, 5, 5, 5, dtype=torch.float64)
    dirac[0, 0, 2, 2, 2] = 1
    torch.testing.assert_close(convolve_and_mix(unit_wave(), dirac, alpha=alpha), unit_wave())


@pytest.mark.parametrize(("k", "std"), [(1, 1.0), (3, 0.19245), (5, 0.08944), (7, 0.05399)])
def test_weights_have_kaiming_std(k: int, std: float) -> None:
    g = generator()
    draws = -(-20_000 // k**3)
    weights = torch.stack([draw_kernel(1, 3, g, kernel_sizes=(k,), bias=False)[0] for _ in range(draws)])
    assert weights.shape == (draws, 1, 1, k, k, k)
    assert weights.std().item() == pytest.approx(std, rel=0.02)
    assert abs(weights.mean().item()) < 0.03 * std


def test_std_counts_input_channels_in_2d() -> None:
    g = generator()
    weights = torch.stack([draw_kernel(3, 2, g, kernel_sizes=(5,), bias=False)[0] for _ in range(200)])
    assert weights.shape == (200, 3, 3, 5, 5)
    assert weights.std().item() == pytest.approx((3 * 25) ** -0.5, rel=0.02)


def test_bias_is_uniform_in_the_kaiming_bound() -> None:
    g = generator()
    drawn = [draw_kernel(1, 3, g, kernel_sizes=(3,), bias=True)[1] for _ in range(4000)]
    bias = torch.cat([b for b in drawn if b is not None])
    bound = 27**-0.5
    assert bias.numel() == 4000
    assert bias.abs().max() <= bound
    assert bias.abs().max() > 0.99 * bound
    assert bias.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert draw_kernel(1, 3, g, kernel_sizes=(3,), bias=False)[1] is None


def test_kernel_sizes_are_drawn_evenly() -> None:
    g = generator()
    sides = [draw_kernel(1, 3, g, kernel_sizes=(1, 3, 5, 7), bias=False)[0].shape[-1] for _ in range(2000)]
    for k in (1, 3, 5, 7):
        assert sides.count(k) == pytest.approx(500, abs=80)


def test_alpha_is_uniform() -> None:
    """With a single-voxel image and k = 1, y = alpha w + 1 - alpha: mean 1/2, variance 1/3 + 1/12."""
    y = random_conv(torch.ones(5_000, 1, 1, 1, 1), generator(), kernel_sizes=(1,), per_sample=True)
    assert y.mean().item() == pytest.approx(0.5, abs=0.03)
    assert y.var().item() == pytest.approx(5 / 12, rel=0.08)


@pytest.mark.parametrize("shape", [(2, 1, 6, 9, 10), (2, 3, 6, 7, 8), (2, 1, 9, 10), (2, 3, 8, 9), (2, 1, 11)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_same_generator_same_result(shape: tuple[int, ...], per_sample: bool) -> None:
    x = torch.rand(shape, generator=generator(5))
    first = random_conv(x, generator(1), bias=True, per_sample=per_sample)
    assert first.shape == x.shape
    assert torch.equal(first, random_conv(x, generator(1), bias=True, per_sample=per_sample))
    assert not torch.equal(first, random_conv(x, generator(2), bias=True, per_sample=per_sample))


def test_global_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    random_conv(torch.rand(2, 1, 4, 4, 4, generator=generator()), generator(), bias=True, per_sample=True)
    assert torch.equal(before, torch.get_rng_state())


def test_one_draw_per_call_by_default() -> None:
    x = torch.rand(1, 1, 6, 6, 6, generator=generator()).expand(2, -1, -1, -1, -1)
    shared = random_conv(x, generator(3))
    torch.testing.assert_close(shared[0], shared[1])
    own = random_conv(x, generator(3), per_sample=True)
    assert not torch.allclose(own[0], own[1], atol=1e-3)


def test_per_sample_draws_do_not_depend_on_the_other_samples() -> None:
    x = torch.rand(3, 1, 6, 6, 6, generator=generator())
    alone = random_conv(x[:1], generator(4), per_sample=True)
    torch.testing.assert_close(random_conv(x, generator(4), per_sample=True)[:1], alone)
    other = x.clone()
    other[0] = 0
    torch.testing.assert_close(
        random_conv(x, generator(4), per_sample=True)[1:], random_conv(other, generator(4), per_sample=True)[1:]
    )


def test_without_mix_the_image_is_only_convolved() -> None:
    x = torch.zeros(1, 1, 7, 7, 7)
    x[..., 3, 3, 3] = 1
    y = random_conv(x, generator(), kernel_sizes=(3,), mix=False)
    weight, _ = draw_kernel(1, 3, generator(), kernel_sizes=(3,), bias=False)
    torch.testing.assert_close(y[..., 2:5, 2:5, 2:5], weight.flip(2, 3, 4))
    assert y[..., :2, :, :].abs().max() == 0


def test_identity_probability() -> None:
    x = torch.rand(400, 1, 4, 4, generator=generator())
    y = random_conv(x, generator(), mix=False, identity_probability=0.5, per_sample=True)
    kept = (x == y).flatten(1).all(1).sum().item()
    assert kept == pytest.approx(200, abs=40)
    assert torch.equal(random_conv(x, generator(), identity_probability=1.0), x)


def test_dtype_follows_the_image_and_gradients_flow() -> None:
    x = torch.rand(1, 1, 5, 5, 5, dtype=torch.float64, requires_grad=True)
    y = random_conv(x, generator())
    assert y.dtype == torch.float64
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("sizes", [(), (2,), (3, 4), (0,), (-1,)])
def test_bad_kernel_sizes(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="odd positive"):
        random_conv(torch.rand(1, 1, 4, 4, generator=generator()), generator(), kernel_sizes=sizes)
