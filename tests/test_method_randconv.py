"""randconv: views, consistency and the fallback for constant views."""

from typing import Any, get_args

import pytest
import torch

from dgbench.errors import DgbenchError
from dgbench.method import Batch, Setup
from dgbench.nets import Backbone
from dgbench.ops.intensity import Rescale, rescale
from dgbench.ops.losses import consistency_loss, segmentation_loss
from dgbench.ops.random_conv import draw_kernel, random_conv
from dgbench.registry import find_method, load_class
from dgbench.task import Task, Window
from dgbench.training.step import TrainingContext
from dgbench_methods.randconv import INFO, RandConvConfig
from dgbench_methods.randconv.method import RandConv

TASK = Task(spacing=(1.5, 0.8, 0.8), intensity=Window(low=-100, high=240))


def build(config: RandConvConfig | None = None, **defaults: Any) -> RandConv:
    """A small network in evaluation mode: no dropout, so that only the method's own draws are random."""
    torch.manual_seed(0)
    setup = Setup(TASK, "tumor-fine", True, 2, 10, lambda **k: Backbone(width=8, **k))
    return RandConv(config or RandConvConfig(**defaults), setup).eval()


def seed_variant() -> RandConv:
    config = find_method("randconv_seed").configure()
    assert isinstance(config, RandConvConfig)
    return build(config)


def batch(cases: int = 2) -> Batch:
    image = torch.rand(cases, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(image, (image > 0.7).float(), torch.arange(cases))


def test_defaults_are_those_of_the_publication() -> None:
    assert INFO.configure() == RandConvConfig(
        kernel_sizes=(1, 3, 5, 7), bias=False, mix=True, rescale="none", views=3, consistency_weight=10
    )
    assert load_class(INFO) is RandConv


def test_consistency_golden() -> None:
    """The reference value on logits [2, 0], [0, 0], [0, 1], in its Bernoulli form (2, 0, -1)."""
    logits = [torch.full((1, 1, 2, 2, 2), z) for z in (2.0, 0.0, -1.0)]
    value = build().disagreement(logits, torch.tensor([True]))
    assert value.item() == pytest.approx(0.1412616, abs=1e-6)


def test_squared_consistency_is_the_mean_over_pairs() -> None:
    logits = [torch.full((1, 1, 2, 2, 2), z) for z in (2.0, 0.0, -1.0)]
    p = [torch.sigmoid(z) for z in logits]
    expected = sum(consistency_loss(p[i], p[j]).item() for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    value = build(consistency="mse").disagreement(logits, torch.tensor([True]))
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_channels_are_independent_probabilities() -> None:
    method, usable = build(), torch.tensor([True])
    one = [torch.full((1, 1, 2, 2, 2), z) for z in (2.0, 0.0, -1.0)]
    both = [torch.cat([z, z], dim=1) for z in one]
    assert method.disagreement(both, usable).item() == pytest.approx(method.disagreement(one, usable).item())


def test_step_loss_in_full() -> None:
    """Three independent views of the image, the first supervised, ten times their divergence."""
    method, data, ctx = build(), batch(), TrainingContext(seed=3, step=5)
    views = [random_conv(data.image, ctx.generator("random convolution", i)) for i in range(3)]
    logits = [method.backbone(view) for view in views]
    kl = method.disagreement(logits, torch.ones(2, dtype=torch.bool))
    expected = segmentation_loss(logits[0], data.label) + 10 * kl
    losses = method.training_step(data, ctx)
    assert kl > 0
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_seed_variant_supervises_both_views_by_squared_consistency() -> None:
    method, data, ctx = seed_variant(), batch(), TrainingContext(seed=3)
    views, usable = method.views(data.image, ctx)
    assert len(views) == 2
    assert usable.all()
    for view in views:
        assert view.amin((1, 2, 3, 4)).tolist() == [0, 0]
        assert view.amax((1, 2, 3, 4)).tolist() == [1, 1]
    logits = [method.backbone(view) for view in views]
    expected = sum(segmentation_loss(z, data.label).item() for z in logits) / 2
    expected += consistency_loss(torch.sigmoid(logits[0]), torch.sigmoid(logits[1])).item()
    assert method.training_step(data, ctx)["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "settings", [{"kernel_sizes": (5,)}, {"bias": True}, {"mix": False}, {"mix": False, "identity_probability": 0.5}]
)
def test_settings_reach_the_draw(settings: dict[str, Any]) -> None:
    data, ctx = batch(), TrainingContext(seed=4)
    views, _ = build(**settings).views(data.image, ctx)
    for index, view in enumerate(views):
        generator = ctx.generator("random convolution", index)
        assert torch.equal(view, random_conv(data.image, generator, **settings))


@pytest.mark.parametrize("mode", get_args(Rescale))
def test_views_are_rescaled_as_configured(mode: Rescale) -> None:
    data, ctx = batch(), TrainingContext(seed=4)
    views, usable = build(rescale=mode).views(data.image, ctx)
    assert usable.all()
    for index, view in enumerate(views):
        assert torch.equal(view, rescale(random_conv(data.image, ctx.generator("random convolution", index)), mode)[0])


def test_one_constant_view_spoils_all_views_of_its_case() -> None:
    """A single negative weight makes a clamped view 0, a positive one does not: each of four patterns of two views comes."""
    method, image, seen = build(kernel_sizes=(1,), mix=False, rescale="clamp-minmax", views=2), batch(1).image, set()
    for step in range(40):
        ctx = TrainingContext(step=step)
        kernels = [ctx.generator("random convolution", index) for index in range(2)]
        signs = tuple(bool(draw_kernel(1, 3, g, kernel_sizes=(1,), bias=False)[0] > 0) for g in kernels)
        views, usable = method.views(image, ctx)
        assert usable.tolist() == [all(signs)]
        assert all(torch.equal(view, image) for view in views) is not all(signs)
        seen.add(signs)
    assert len(seen) == 4


def test_compound_views_start_from_the_first() -> None:
    data, ctx = batch(), TrainingContext()
    method = build(compound=True)
    views, _ = method.views(data.image, ctx)
    plain, _ = build().views(data.image, ctx)
    assert torch.equal(views[0], plain[0])
    assert not torch.equal(views[1], plain[1])
    assert torch.equal(views[2], random_conv(views[0], ctx.generator("random convolution", 2)))


def test_draw_is_shared_by_the_batch_or_made_per_case() -> None:
    image = batch(1).image.repeat(2, 1, 1, 1, 1)
    shared, _ = build().views(image, TrainingContext())
    own, _ = build(draw="case").views(image, TrainingContext())
    assert torch.equal(shared[0][0], shared[0][1])
    assert not torch.equal(own[0][0], own[0][1])


def test_one_view_or_no_weight_is_augmentation_alone() -> None:
    data, ctx = batch(), TrainingContext()
    for method in (build(views=1), build(consistency_weight=0.0)):
        assert set(method.training_step(data, ctx)) == {"loss"}
    never = build(views=1, identity_probability=1.0)
    expected = segmentation_loss(never.backbone(data.image), data.label)
    assert torch.equal(never.training_step(data, ctx)["loss"], expected)


def test_constant_view_falls_back_to_the_image_for_that_case_alone() -> None:
    method, data, ctx = seed_variant(), batch(3), TrainingContext(seed=2)
    data.image[1] = 0.0
    views, usable = method.views(data.image, ctx)
    assert usable.tolist() == [True, False, True]
    for view in views:
        assert torch.equal(view[1], data.image[1])
        assert not torch.equal(view[0], data.image[0])
    assert torch.isfinite(method.training_step(data, ctx)["loss"])


@pytest.mark.parametrize("consistency", ["kl", "mse"])
def test_unusable_case_has_no_consistency_gradient(consistency: str) -> None:
    method = build(consistency=consistency)
    logits = [torch.randn(2, 1, 2, 2, 2, requires_grad=True) for _ in range(3)]
    method.disagreement(logits, torch.tensor([True, False])).backward()  # type: ignore[no-untyped-call]
    for z in logits:
        assert z.grad is not None
        assert z.grad[0].abs().max() > 1e-4
        assert z.grad[1].abs().max() < 1e-8


def test_draws_come_from_the_context_alone() -> None:
    method, data = build(), batch(3)
    state = torch.get_rng_state()
    first = method.training_step(data, TrainingContext(seed=1, step=4))["loss"]
    again = method.training_step(data, TrainingContext(seed=1, step=4))["loss"]
    later = method.training_step(data, TrainingContext(seed=1, step=5))["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_prediction_is_that_of_erm() -> None:
    method, image = build(), batch().image
    erm = find_method("erm")
    other = load_class(erm)(erm.configure(), method.setup).eval()
    other.load_state_dict(method.state_dict())
    assert torch.equal(method.predict(image), other.predict(image))


@pytest.mark.parametrize(
    ("key", "text"),
    [("kernel_sizes", "[2]"), ("kernel_sizes", "[]"), ("views", "0"), ("rescale", "stretch"), ("lamda", "1")],
)
def test_bad_configuration_is_one_line(key: str, text: str) -> None:
    with pytest.raises(DgbenchError, match=key) as caught:
        INFO.configure({key: text})
    assert "\n" not in str(caught.value)
