"""MixStyle: the published formula on the reference's values, partners, the bank, and nothing at prediction."""

import numpy as np
import pytest
import torch
from method_fixtures import cases, make, sheet_x
from torch import Tensor

from dgbench.method import Batch
from dgbench.ops.losses import segmentation_loss
from dgbench.ops.style import channel_statistics, restyle
from dgbench.testing import small_setup
from dgbench.training.step import TrainingContext
from dgbench_methods.mixstyle.method import MixStyle

MEANS = [[0.4909568192, 0.1643556075, -0.0749341457], [0.5178786823, 0.3599235893, 0.1502697146]]
STDS = [[0.3334381391, 0.3513899470, 0.2299027374], [0.1664956325, 0.2384599952, 0.2217460938]]
FIRST = [0.0521779789, 0.2129971172, 0.3562318014]


def build(n_sources: int = 2, **overrides: object) -> MixStyle:
    return make(MixStyle, small_setup(n_sources), **overrides)


def batch(domains: tuple[int, ...] = (0, 1)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(len(domains), 1, 8, 16, 16, generator=generator)
    scale = torch.tensor([1.0 + d for d in domains]).view(-1, 1, 1, 1, 1)
    return Batch(image * scale, (image > 0.7).float(), torch.tensor(domains))


def mixed(x: Tensor, share: float, partner: list[int]) -> Tensor:
    mean, std = (value.detach() for value in channel_statistics(x))
    shares = torch.full((len(x),), share, dtype=x.dtype)
    return restyle(x, mean, std, mean[partner], std[partner], shares, active=torch.ones(len(x), dtype=torch.bool))


def test_formula_gives_the_reference_values() -> None:
    y = mixed(sheet_x(), 0.25, [1, 0])
    assert torch.allclose(y.mean((2, 3, 4)), torch.tensor(MEANS, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(y.flatten(2).std(2), torch.tensor(STDS, dtype=torch.float64), atol=1e-10)
    assert y[0, 0, 0, 0, :3].tolist() == pytest.approx(FIRST, abs=1e-10)


def test_statistics_are_detached() -> None:
    """Then the gradient of the sum is the ratio of the deviations, everywhere the same in a channel."""
    x = sheet_x().requires_grad_()
    mean, std = (value.detach() for value in channel_statistics(x))
    share = torch.full((2,), 0.25, dtype=torch.float64)
    y = restyle(x, mean, std, mean[[1, 0]], std[[1, 0]], share, active=torch.ones(2, dtype=torch.bool))
    (grad,) = torch.autograd.grad(y.sum(), x)
    expected = [[4.0169893, 1.9308127, 1.0562116], [0.3993235, 0.5846595, 0.9477077]]
    assert torch.allclose(grad[:, :, 0, 0, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-6)

    features = x.detach()[:, :1].repeat(1, 8, 1, 1, 1).requires_grad_()
    out = build(p=1.0).mix("layer0", features, torch.tensor([0, 1]), TrainingContext(seed=1))
    (grad,) = torch.autograd.grad((out**2).sum() / 2, features)
    ratio = grad / out
    assert not torch.allclose(ratio, torch.ones_like(ratio), atol=1e-3)
    assert torch.allclose(ratio.amin((2, 3, 4)), ratio.amax((2, 3, 4)))


def test_each_sample_has_its_own_share_from_the_beta_distribution_in_each_layer() -> None:
    """The share read back from the means of what is mixed; Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))."""
    x = sheet_x(2, 8, 4, 5, 6).float()
    own, other = x.mean((2, 3, 4)), x.mean((2, 3, 4))[[1, 0]]
    for alpha in (0.1, 1.0):
        method, shares = build(p=1.0, alpha=alpha), []
        for step in range(400):
            ctx = TrainingContext(step=step)
            both = [method.mix(layer, x, torch.tensor([0, 1]), ctx) for layer in ("layer0", "layer1")]
            shares.append([((y.mean((2, 3, 4)) - other) / (own - other)).mean(1) for y in both])
        drawn = np.array([[share.tolist() for share in step] for step in shares]).reshape(400, 4).T
        assert drawn.mean() == pytest.approx(0.5, abs=0.03)
        assert drawn.var() == pytest.approx(0.25 / (2 * alpha + 1), abs=0.015)
        assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.15


def test_statistics_use_the_configured_eps_and_float32() -> None:
    """A large eps draws the deviations together: the ratio of the deviations out to in tells which one was used."""
    x = sheet_x(2, 8, 4, 5, 6).float()
    std = (x.var((2, 3, 4)) + 4).sqrt()
    y = build(p=1.0, eps=4.0).mix("layer0", x, torch.tensor([0, 1]), TrainingContext())
    ratio, other = y.std((2, 3, 4)) / x.std((2, 3, 4)), std[[1, 0]] / std
    share = (ratio - other) / (1 - other)
    assert torch.allclose(share, share[:, :1].expand_as(share), atol=1e-3)

    mean, std = channel_statistics(x.bfloat16())
    assert mean.dtype == std.dtype == torch.float32
    mixed_low = build(p=1.0).mix("layer0", x.bfloat16(), torch.tensor([0, 1]), TrainingContext())
    assert mixed_low.dtype == torch.bfloat16


def test_only_the_configured_layers_mix_each_once_and_in_order() -> None:
    method, called = build(layers='["layer2", "stem"]'), []
    method.mix = lambda layer, x, domain, ctx: called.append(layer) or x  # type: ignore[method-assign, func-returns-value]
    method.training_step(batch(), TrainingContext())
    assert called == ["stem", "layer2"]


def test_own_style_alone_is_the_identity() -> None:
    x = sheet_x()
    assert torch.allclose(mixed(x, 1.0, [1, 0]), x, atol=1e-6)
    assert torch.allclose(mixed(x[:1], 0.25, [0]), x[:1], atol=1e-6)


def test_bank_gives_what_the_partner_in_the_batch_gives() -> None:
    """With sample 1's style alone in the bank, sample 0 becomes what it becomes beside sample 1."""
    method = build(mix="bank", p=1.0, bank_size=2)
    x = sheet_x().float()[:, :1].repeat(1, 8, 1, 1, 1)
    ctx = TrainingContext(seed=1)
    assert torch.equal(method.mix("layer0", x[1:], torch.tensor([1]), ctx), x[1:])
    method.stored += torch.tensor([0, 1])
    assert torch.equal(method.mix("layer0", x[1:], torch.tensor([1]), ctx), x[1:]), (
        "its own center's style is no partner"
    )
    alone = method.mix("layer0", x[:1], torch.tensor([0]), ctx)
    paired = build(p=1.0).mix("layer0", x, torch.tensor([0, 1]), ctx)
    assert not torch.allclose(alone, x[:1])
    assert torch.allclose(alone, paired[:1], atol=1e-5)


def test_bank_replaces_the_oldest_style() -> None:
    method = build(mix="bank", bank_size=2)
    x = sheet_x().float()[1:, :1].repeat(1, 8, 1, 1, 1)
    for scale in (1, 2, 3):
        method.mix("layer0", scale * x, torch.tensor([1]), TrainingContext())
        method.stored += torch.tensor([0, 1])
    bank = method.get_buffer("bank_layer0")
    for slot, scale in ((0, 3), (1, 2)):
        mean, std = channel_statistics(scale * x)
        assert torch.equal(bank[1, slot], torch.stack([mean.flatten(), std.flatten()]))
    assert not bank[0].any()


def test_bank_draws_from_all_its_styles() -> None:
    method = build(mix="bank", p=1.0, bank_size=3)
    method.stored += torch.tensor([0, 2])
    bank = method.get_buffer("bank_layer0")
    bank[1, :, 0] = torch.tensor([10.0, 20.0, 99.0])[:, None]
    bank[1, :, 1] = 1.0
    x = torch.randn(1, 8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    means = [method.mix("layer0", x, torch.tensor([0]), TrainingContext(step=step)).mean() for step in range(60)]
    assert min(abs(m - 10) for m in means) < 1
    assert 19 < max(means) < 21


def test_bank_is_in_the_state() -> None:
    method, other, fresh = (build(mix="bank", p=1.0, alpha=100.0, layers='["layer0"]').eval() for _ in range(3))
    method.training_step(batch(), TrainingContext(seed=1))
    assert method.stored.tolist() == [1, 1]
    other.load_state_dict(method.state_dict())
    data, ctx = batch((0,)), TrainingContext(seed=1, step=1)
    losses = [one.training_step(data, ctx)["loss"].item() for one in (method, other, fresh)]
    assert losses[0] == losses[1] != losses[2]


def test_partner_is_of_another_center_with_two_and_three_centers() -> None:
    method, rng = build(3), np.random.default_rng(0)
    for domains in ((0, 1), (0, 1, 2), (0, 0, 1, 2)):
        domain = torch.tensor(domains)
        for _ in range(20):
            assert (domain[method.partners(domain, rng)] != domain).all()
    assert method.partners(torch.tensor([1, 1]), rng).tolist() == [0, 1]
    assert method.sampling(0, 10) == "per-center"


def test_random_partners_are_a_permutation_of_pooled_draws() -> None:
    method = build(mix="random")
    rng = np.random.default_rng(0)
    drawn = [method.partners(torch.tensor([0, 0, 1, 1]), rng).tolist() for _ in range(200)]
    assert all(sorted(partners) == [0, 1, 2, 3] for partners in drawn)
    assert len(set(map(tuple, drawn))) == 24
    assert method.sampling(0, 10) == "pooled"


def test_probability_is_that_of_a_layer_in_a_step() -> None:
    method, x, domain = build(), sheet_x().float()[:, :1].repeat(1, 8, 1, 1, 1), torch.tensor([0, 1])
    changed = [not torch.equal(method.mix("layer0", x, domain, TrainingContext(step=step)), x) for step in range(400)]
    assert 0.42 < sum(changed) / len(changed) < 0.58


def test_never_mixing_is_erm_and_mixing_is_not() -> None:
    data, ctx = batch(), TrainingContext(seed=2)
    for p, same in ((0.0, True), (1.0, False)):
        method = build(p=p, alpha=1.0).eval()
        plain = segmentation_loss(method.backbone(data.image), data.label)
        assert torch.equal(method.training_step(data, ctx)["loss"], plain) is same


def test_gradient_reaches_the_stem_through_the_mixture() -> None:
    method = build(p=1.0)
    method.training_step(batch(), TrainingContext())["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())


def test_prediction_is_the_backbone_and_changes_nothing() -> None:
    method, data = build(mix="bank", p=1.0).eval(), batch()
    method.training_step(data, TrainingContext())
    before = {name: value.clone() for name, value in method.state_dict().items()}
    assert torch.equal(method.predict(data.image), torch.sigmoid(method.backbone(data.image)))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_two_dimensions() -> None:
    losses = make(MixStyle, small_setup(ndim=2), p=1).training_step(cases(sides=(16, 16)), TrainingContext())
    assert torch.isfinite(losses["loss"])
