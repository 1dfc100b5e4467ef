"""BigAug: each of its nine transforms, how often it comes, what it leaves alone, and nothing at prediction."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from method_fixtures import assert_predicts_as_the_backbone, make, paper_cost
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from dgbench.errors import DgbenchError
from dgbench.method import Batch, Setup
from dgbench.ops.losses import segmentation_loss
from dgbench.ops.warp import elastic_displacement
from dgbench.registry import find_method, load_class
from dgbench.testing import small_setup
from dgbench.training.step import TrainingContext
from dgbench_methods.bigaug import INFO, TRANSFORMS, BigAugConfig
from dgbench_methods.bigaug.method import BigAug

SHAPE = (16, 24, 24)
INTENSITY, SPATIAL = TRANSFORMS[:6], TRANSFORMS[6:]


def build(setup: Setup | None = None, **defaults: Any) -> BigAug:
    return make(BigAug, setup, **defaults)


def batch(cases: int = 2, channels: int = 1, shape: tuple[int, ...] = SHAPE) -> Batch:
    """Smooth images whose label is a threshold of them."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(cases, channels, *(4,) * len(shape), generator=generator)
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    image = torch.nn.functional.interpolate(coarse, size=list(shape), mode=mode)
    return Batch(image, (image[:, :1] > 0.5).float(), torch.arange(cases))


def only(name: str, **defaults: Any) -> BigAug:
    return build(p=1.0, transforms=(name,), **defaults)


def test_registered_with_the_publications_ranges() -> None:
    config = find_method("bigaug").configure()
    assert config == BigAugConfig(
        p=0.5,
        blur_sigma=(0.25, 1.5),
        sharpen_sigma=(0.25, 1.5),
        sharpen_amount=(10, 30),
        noise_std=(0.1, 1.0),
        noise_std_unit="zscore",
        brightness=0.1,
        gamma=(0.5, 4.5),
        perturbation=0.1,
        rotation_degrees=20,
        scaling=(0.4, 1.6),
        elastic_sigma=(10, 13),
        elastic_amplitude=(0, 1000),
    )
    assert TRANSFORMS == (
        "blur",
        "sharpen",
        "noise",
        "brightness",
        "gamma",
        "perturbation",
        "rotation",
        "scaling",
        "elastic",
    )
    assert load_class(INFO) is BigAug


def test_each_transform_comes_in_half_of_the_draws() -> None:
    """Within 0.02. With 2,000 draws that would be 1.8 standard errors and nine rates would all hold for half of the seeds only."""
    method, steps = build(), 8000
    draws = [method.draw(TrainingContext(seed=3, step=step), 0) for step in range(steps)]
    rates = {name: sum(name in drawn for drawn in draws) / steps for name in TRANSFORMS}
    assert rates == pytest.approx(dict.fromkeys(TRANSFORMS, 0.5), abs=0.02)


def test_transforms_come_independently_of_each_other() -> None:
    method, steps = build(), 2000
    draws = [method.draw(TrainingContext(seed=3, step=step), 0) for step in range(steps)]
    for first, second in pairwise(TRANSFORMS):
        both = sum(first in drawn and second in drawn for drawn in draws) / steps
        assert both == pytest.approx(0.25, abs=0.04)


def test_magnitudes_fill_their_ranges() -> None:
    method = build(p=1.0)
    draws = [method.draw(TrainingContext(step=step), step % 2) for step in range(400)]
    ranges: dict[str, list[tuple[float, float]]] = {
        "blur": [(0.25, 1.5)],
        "sharpen": [(0.25, 1.5), (0.25, 1.5), (10, 30)],
        "noise": [(0.1, 1.0)],
        "brightness": [(-0.1, 0.1)],
        "gamma": [(0.5, 4.5)],
        "perturbation": [(-0.1, 0.1)] * 2,
        "rotation": [(-20, 20)] * 3,
        "scaling": [(0.4, 1.6)],
        "elastic": [(10, 13), (0, 1000)],
    }
    for name, bounds in ranges.items():
        for values, (low, high) in zip(zip(*(d[name] for d in draws), strict=True), bounds, strict=True):
            assert low <= min(values) < low + 0.05 * (high - low)
            assert high - 0.05 * (high - low) < max(values) <= high
            assert len(set(values)) == len(values), "no whole numbers, no constant"


def test_leaving_a_transform_out_changes_no_other() -> None:
    ctx = TrainingContext(seed=4)
    whole, rest = build(), build(transforms=tuple(name for name in TRANSFORMS if name != "sharpen"))
    expected = {name: values for name, values in whole.draw(ctx, 1).items() if name != "sharpen"}
    assert rest.draw(ctx, 1) == expected


def test_no_transform_is_the_identity() -> None:
    data, ctx = batch(), TrainingContext()
    for method in (build(p=0.0), build(p=1.0, transforms=())):
        out = method.augment(data, ctx)
        assert torch.equal(out.image, data.image)
        assert torch.equal(out.label, data.label)


def test_neutral_magnitudes_are_the_identity() -> None:
    neutral = build(
        p=1.0,
        blur_sigma=(0, 0),
        sharpen_sigma=(0, 0),
        sharpen_amount=(0, 0),
        noise_std=(0, 0),
        brightness=0,
        gamma=(1, 1),
        perturbation=0,
        rotation_degrees=0,
        scaling=(1, 1),
        elastic_amplitude=(0, 0),
    )
    data = batch()
    out = neutral.augment(data, TrainingContext())
    assert torch.allclose(out.image, data.image, atol=1e-5)
    assert torch.equal(out.label, data.label)


@pytest.mark.parametrize("name", INTENSITY)
def test_intensity_transforms_change_the_image_and_never_the_label(name: str) -> None:
    data = batch()
    out = only(name).augment(data, TrainingContext(seed=2))
    assert torch.equal(out.label, data.label)
    assert all(not torch.allclose(a, b, atol=1e-4) for a, b in zip(out.image, data.image, strict=True))


@pytest.mark.parametrize("name", SPATIAL)
def test_spatial_transforms_move_image_and_label_together(name: str) -> None:
    """Fed with its own label as the image, a case stays the image of its label wherever a cell is of one label."""
    data = batch()
    data = Batch(data.label.clone(), data.label, data.domain)
    out = only(name).augment(data, TrainingContext(seed=2))
    assert set(out.label.unique().tolist()) == {0.0, 1.0}
    sure = (out.image < 1e-4) | (out.image > 1 - 1e-4)
    assert sure.float().mean() > 0.5
    assert torch.equal(out.image[sure].round(), out.label[sure])
    assert all(not torch.equal(a, b) for a, b in zip(out.label, data.label, strict=True))


def test_what_each_intensity_transform_does() -> None:
    data, ctx = batch(1), TrainingContext(seed=7)
    image = data.image

    def changed(name: str) -> tuple[Tensor, list[float]]:
        method = only(name)
        return method.augment(data, ctx).image, list(method.draw(ctx, 0)[name])

    out, (shift,) = changed("brightness")
    assert torch.allclose(out, image + shift)
    out, (gamma,) = changed("gamma")
    low, high = image.min(), image.max()
    assert torch.allclose(out, ((image - low) / (high - low)) ** gamma * (high - low) + low, atol=1e-6)
    out, (scale, shift) = changed("perturbation")
    assert torch.allclose(out, image * (1 + scale) + shift)
    assert out.std() > 0.8 * image.std()
    assert changed("blur")[0].std() < image.std()
    assert changed("sharpen")[0].std() > image.std()


def test_the_six_come_one_after_the_other() -> None:
    """Written out on scipy's filter, with each magnitude of the draw."""
    data, ctx = batch(1), TrainingContext(seed=11, step=2)
    method = build(p=1.0, transforms=INTENSITY)
    draws = method.draw(ctx, 0)
    image = data.image.double().numpy()[0, 0]
    unit = image.std(ddof=1)
    expected = gaussian_filter(image, draws["blur"][0], mode="reflect")
    first, second, amount = draws["sharpen"]
    base = gaussian_filter(expected, first, mode="reflect")
    expected = base + amount * (base - gaussian_filter(base, second, mode="reflect"))
    noise = torch.randn(data.image.shape, generator=ctx.generator("noise", 0)).numpy()[0, 0]
    expected = expected + draws["noise"][0] * unit * noise + draws["brightness"][0]
    low, extent = expected.min(), np.ptp(expected)
    expected = ((expected - low) / extent) ** draws["gamma"][0] * extent + low
    scale, shift = draws["perturbation"]
    expected = expected * (1 + scale) + shift
    np.testing.assert_allclose(method.augment(data, ctx).image[0, 0].numpy(), expected, atol=1e-4)


def test_the_three_read_the_image_where_one_after_the_other_would() -> None:
    """Elastic deformation of the scaled, rotated image: the source of voxel p is c + R / s (p - c + u(p)), R rigid in mm."""
    data, ctx = batch(1), TrainingContext(seed=11, step=2)
    method = build(p=1.0, transforms=SPATIAL)
    draws, spacing = method.draw(ctx, 0), np.array(method.setup.task.spacing)
    rotation = np.eye(3)
    for plane, degrees in zip(((0, 1), (0, 2), (1, 2)), draws["rotation"], strict=True):
        turn, angle = np.eye(3), np.radians(degrees)
        turn[np.ix_(plane, plane)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        rotation = rotation @ turn
    assert len(set(spacing)) > 1
    matrix = rotation * spacing / spacing[:, None] / draws["scaling"][0]
    sigma, amplitude = draws["elastic"]
    field = elastic_displacement(SHAPE, ctx.generator("elastic", 0), sigma=sigma, amplitude=amplitude).numpy()
    center = (np.array(SHAPE).reshape(3, 1, 1, 1) - 1) / 2
    source = center + np.einsum("ij,jabc->iabc", matrix, np.indices(SHAPE) - center + field) + 2
    out = method.augment(data, ctx)
    for found, given, order, atol in ((out.image, data.image, 1, 1e-4), (out.label, data.label, 0, 0)):
        expected = map_coordinates(np.pad(given[0, 0].numpy(), 2), source, order=order)
        np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=atol)


def test_noise_is_in_units_of_each_channels_own_deviation() -> None:
    data = batch(1, channels=2)
    data.image[:, 1] *= 10
    noise = only("noise").augment(data, TrainingContext(seed=5)).image - data.image
    ratio = (noise[0, 1].std() / noise[0, 0].std()).item()
    assert ratio == pytest.approx((data.image[0, 1].std() / data.image[0, 0].std()).item(), rel=0.05)


def test_noise_is_in_units_of_the_cases_own_deviation_or_of_the_range() -> None:
    data, ctx = batch(), TrainingContext(seed=5)
    larger = data.with_image(10 * data.image)
    for unit, ratio in (("zscore", 10.0), ("range", 1.0)):
        method = only("noise", noise_std_unit=unit)
        noise = method.augment(data, ctx).image - data.image
        more = method.augment(larger, ctx).image - larger.image
        assert torch.allclose(more, ratio * noise, atol=1e-4)
        for index, (case, added) in enumerate(zip(data.image, noise, strict=True)):
            expected = method.draw(ctx, index)["noise"][0] * (case.std().item() if unit == "zscore" else 1.0)
            assert added.std().item() == pytest.approx(expected, rel=0.05)


def test_a_scale_below_one_shows_less_of_everything_on_a_ground_of_zero() -> None:
    image = torch.ones(1, 1, 24, 24, 24)
    out = only("scaling", scaling=(0.5, 0.5)).augment(Batch(image, image, torch.tensor([0])), TrainingContext())
    assert out.label.sum() == 12**3
    assert out.image[0, 0, 0].sum() == 0
    assert out.image[0, 0, 12, 12, 12] == 1
    small = torch.zeros(1, 1, 24, 24, 24)
    small[..., 8:16, 8:16, 8:16] = 1
    grown = only("scaling", scaling=(1.6, 1.6)).augment(Batch(small, small, torch.tensor([0])), TrainingContext())
    assert grown.label.sum() > 3 * small.sum()


@pytest.mark.parametrize("cases", [1, 2, 3])
def test_each_case_has_its_own_draws_whatever_is_beside_it(cases: int) -> None:
    method, ctx = build(), TrainingContext(seed=6)
    same = Batch(
        batch(1).image.repeat(cases, 1, 1, 1, 1), batch(1).label.repeat(cases, 1, 1, 1, 1), torch.arange(cases)
    )
    out = method.augment(same, ctx)
    alone = method.augment(batch(1), ctx)
    assert torch.equal(out.image[:1], alone.image)
    for index in range(1, cases):
        assert not torch.equal(out.image[index], out.image[0])


@pytest.mark.parametrize("name", ["noise", "elastic"])
def test_cases_with_equal_magnitudes_have_their_own_noise_and_field(name: str) -> None:
    fixed = {"noise_std": (0.5, 0.5), "elastic_sigma": (10, 10), "elastic_amplitude": (900, 900)}
    twice = Batch(batch(1).image.repeat(2, 1, 1, 1, 1), batch(1).label.repeat(2, 1, 1, 1, 1), torch.arange(2))
    out = only(name, **fixed).augment(twice, TrainingContext())
    assert not torch.allclose(out.image[0], out.image[1], atol=1e-3)


def test_draws_are_a_function_of_the_step_and_leave_the_global_generator_alone() -> None:
    method, data = build(p=1.0), batch()
    state = torch.get_rng_state()
    first = method.augment(data, TrainingContext(seed=1, step=4)).image
    assert torch.equal(first, method.augment(data, TrainingContext(seed=1, step=4)).image)
    assert not torch.equal(first, method.augment(data, TrainingContext(seed=1, step=5)).image)
    assert torch.equal(torch.get_rng_state(), state)


def test_mixed_precision_does_not_reach_the_augmentation() -> None:
    method, data = build(p=1.0), batch()
    plain = method.augment(data, TrainingContext(seed=1))
    ctx = TrainingContext(seed=1, precision="bf16")
    with ctx.autocast():
        mixed = method.augment(data, ctx)
    assert mixed.image.dtype == torch.float32
    assert torch.equal(plain.image, mixed.image)
    assert torch.equal(plain.label, mixed.label)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("ndim", [2, 3])
def test_two_and_three_dimensions_and_several_channels(ndim: int, channels: int) -> None:
    setup = small_setup(ndim=ndim, in_channels=channels)
    data = batch(2, channels, SHAPE[-ndim:])
    method = build(setup, p=1.0)
    out = method.augment(data, TrainingContext())
    assert out.image.shape == data.image.shape
    assert out.label.shape == data.label.shape
    assert out.image.isfinite().all()
    losses = method.training_step(Batch(data.image, data.label, data.domain), TrainingContext())
    assert torch.isfinite(losses["loss"])


def test_constant_crop_stays_finite() -> None:
    data = Batch(torch.zeros(2, 1, *SHAPE), torch.zeros(2, 1, *SHAPE), torch.tensor([0, 1]))
    out = build(p=1.0).augment(data, TrainingContext())
    assert out.image.isfinite().all()
    assert not out.label.any()


def test_loss_is_that_of_the_changed_case_and_prediction_that_of_the_backbone() -> None:
    method, data, ctx = build().eval(), batch(), TrainingContext(seed=3)
    changed = method.augment(data, ctx)
    assert not torch.equal(changed.image, data.image)
    expected = segmentation_loss(method.backbone(changed.image), changed.label)
    assert torch.equal(method.training_step(data, ctx)["loss"], expected)
    assert_predicts_as_the_backbone(method, data.image)


def test_gradient_reaches_every_weight() -> None:
    method = build(p=1.0)
    method.training_step(batch(), TrainingContext())["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())


def test_cost_is_that_of_erm() -> None:
    assert paper_cost("bigaug") == paper_cost("erm")


@pytest.mark.parametrize(
    ("key", "text"), [("noise_std_unit", "hu"), ("transforms", '["flip"]'), ("p", "2"), ("gamma", "[0, 1]")]
)
def test_bad_configuration_is_one_line(key: str, text: str) -> None:
    with pytest.raises(DgbenchError, match=key) as caught:
        INFO.configure({key: text})
    assert "\n" not in str(caught.value)
