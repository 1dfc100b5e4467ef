"""erm_nnaug: how often and how strongly each of nnU-Net's transforms comes, by the shape of the crop, and nothing at prediction."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from method_fixtures import assert_predicts_as_the_backbone, make, paper_cost
from torch import Tensor

from dgbench.errors import DgbenchError
from dgbench.method import Batch, Setup
from dgbench.ops.contrast import gamma_curve, scale_contrast
from dgbench.ops.losses import segmentation_loss
from dgbench.ops.sharpness import gaussian_blur, low_resolution
from dgbench.registry import find_method, load_class
from dgbench.testing import small_setup
from dgbench.training.step import TrainingContext
from dgbench_methods.erm_nnaug import INFO, NnAugConfig
from dgbench_methods.erm_nnaug.method import NnAugERM, around_one, is_flat

SHAPE = (8, 16, 16)
NEVER: dict[str, float] = dict.fromkeys(
    (
        "rotation_p",
        "scaling_p",
        "noise_p",
        "blur_p",
        "brightness_p",
        "contrast_p",
        "low_resolution_p",
        "gamma_inverted_p",
        "gamma_p",
        "mirror_p",
    ),
    0.0,
)
INTENSITY = ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma")


def build(setup: Setup | None = None, **defaults: Any) -> NnAugERM:
    return make(NnAugERM, setup, **defaults)


def only(name: str, **defaults: Any) -> NnAugERM:
    return build(**{**NEVER, f"{name}_p": 1.0, "channel_p": 1.0, **defaults})


def batch(cases: int = 2, channels: int = 1, shape: tuple[int, ...] = SHAPE) -> Batch:
    image = torch.rand(cases, channels, *shape, generator=torch.Generator().manual_seed(1))
    return Batch(image, (image[:, :1] > 0.7).float(), torch.arange(cases))


def rate(method: NnAugERM, steps: int = 1500) -> float:
    """Share of the cases that are changed."""
    data = batch(1, shape=(4, 4, 4))
    changed = [not torch.equal(method.augment(data, TrainingContext(step=s)).image, data.image) for s in range(steps)]
    return sum(changed) / steps


def test_defaults_are_those_of_nnunet() -> None:
    assert find_method("erm_nnaug").configure() == NnAugConfig(
        rotation_p=0.2,
        scaling_p=0.2,
        scaling=(0.7, 1.4),
        noise_p=0.1,
        noise_max=0.1,
        blur_p=0.2,
        blur_sigma=(0.5, 1.0),
        brightness_p=0.15,
        brightness=(0.75, 1.25),
        contrast_p=0.15,
        contrast=(0.75, 1.25),
        low_resolution_p=0.25,
        low_resolution=(0.5, 1.0),
        gamma_inverted_p=0.1,
        gamma_p=0.3,
        gamma=(0.7, 1.5),
        mirror_p=0.5,
    )
    assert load_class(INFO) is NnAugERM
    assert "control" in INFO.title


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rotation", 0.2),
        ("scaling", 0.2),
        ("noise", 0.1),
        ("blur", 0.1),
        ("brightness", 0.15),
        ("contrast", 0.15),
        ("gamma_inverted", 0.1),
        ("gamma", 0.3),
    ],
)
def test_each_transform_comes_as_often_as_in_nnunet(name: str, expected: float) -> None:
    """Blur at half its 0.2: nnU-Net then draws again for the channel; with ``channel_p`` 1 it is 0.2."""
    own = {f"{name}_p": NnAugConfig.model_fields[f"{name}_p"].default}
    assert rate(build(**{**NEVER, **own})) == pytest.approx(expected, abs=0.03)
    if name == "blur":
        assert rate(build(**{**NEVER, **own}, channel_p=1.0)) == pytest.approx(0.2, abs=0.03)


def test_low_resolution_comes_for_a_quarter_of_the_cases_and_half_of_their_channels() -> None:
    """At a fixed factor of one half, since a factor near 1 may round to the full grid."""
    for channel_p, expected in ((0.5, 0.125), (1.0, 0.25)):
        method = build(**{**NEVER, "low_resolution_p": 0.25}, low_resolution=(0.5, 0.5), channel_p=channel_p)
        assert rate(method) == pytest.approx(expected, abs=0.03)


def test_nothing_drawn_is_the_identity() -> None:
    data = batch()
    out = build(**NEVER).augment(data, TrainingContext())
    assert torch.equal(out.image, data.image)
    assert torch.equal(out.label, data.label)


@pytest.mark.parametrize("name", INTENSITY)
def test_intensity_transforms_never_touch_the_label(name: str) -> None:
    data = batch()
    out = only(name).augment(data, TrainingContext(seed=2))
    assert torch.equal(out.label, data.label)
    assert not torch.allclose(out.image, data.image, atol=1e-4)


@pytest.mark.parametrize("name", ["rotation", "scaling", "mirror"])
def test_spatial_transforms_move_image_and_label_together(name: str) -> None:
    blocks = (torch.rand(2, 1, 4, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    label = torch.nn.functional.interpolate(blocks, scale_factor=4, mode="nearest")
    out = only(name).augment(Batch(label.clone(), label, torch.tensor([0, 1])), TrainingContext(seed=2))
    assert set(out.label.unique().tolist()) == {0.0, 1.0}
    sure = (out.image < 1e-4) | (out.image > 1 - 1e-4)
    assert sure.float().mean() > 0.2
    assert torch.equal(out.image[sure].round(), out.label[sure])
    assert not torch.equal(out.label, label)


def angles(method: NnAugERM, shape: tuple[int, ...], draws: int = 300) -> Tensor:
    """Drawn matrices (draws, ndim, ndim) as rotations in mm."""
    spacing = torch.tensor(method.setup.task.spacing, dtype=torch.float64)
    drawn = [method.affine(shape, np.random.default_rng(seed)) for seed in range(draws)]
    return torch.stack([m * spacing[:, None] / spacing for m in drawn if m is not None])


def test_flat_crops_turn_in_the_plane_by_any_angle_and_others_by_thirty_degrees_on_each_axis() -> None:
    assert is_flat((32, 128, 128))
    assert is_flat((64, 224, 224))
    assert not is_flat((16, 32, 48))
    assert not is_flat((64, 16, 64))
    method = only("rotation")
    flat = angles(method, (32, 128, 128))
    assert torch.allclose(flat[:, 0], torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    assert flat[:, 1, 1].min() < -0.95
    solid = angles(method, (16, 32, 48))
    assert torch.allclose(solid @ solid.mT, torch.eye(3, dtype=torch.float64).expand_as(solid), atol=1e-9)
    assert solid[:, 0, 1].abs().max() > 0.4
    # cos 30° on two axes bounds each diagonal element from below
    assert torch.diagonal(solid, dim1=1, dim2=2).min() > 0.75 - 0.5**3


@pytest.mark.parametrize(("shape", "limit"), [((64, 64), 180.0), ((32, 64), 15.0)])
def test_slices_turn_by_any_angle_unless_they_are_oblong(shape: tuple[int, ...], limit: float) -> None:
    setup = small_setup(ndim=2)
    turns = angles(build(setup, **{**NEVER, "rotation_p": 1.0}), shape)
    degrees = torch.rad2deg(torch.atan2(turns[:, 1, 0], turns[:, 0, 0])).abs()
    assert 0.95 * limit < degrees.max() <= limit


def test_a_given_angle_replaces_nnunets_rule() -> None:
    turns = angles(only("rotation", rotation_degrees=5.0), (32, 128, 128))
    assert torch.rad2deg(torch.atan2(turns[:, 2, 1], turns[:, 1, 1])).abs().max() <= 5


def test_a_scale_above_one_shows_everything_smaller_and_flat_crops_keep_their_slices() -> None:
    rng = np.random.default_rng(0)
    larger = only("scaling", scaling=(1.4, 1.4))
    matrix = larger.affine((32, 128, 128), rng)
    assert matrix is not None
    assert torch.diagonal(matrix).tolist() == pytest.approx([1.0, 1.4, 1.4])
    solid = larger.affine((16, 32, 32), rng)
    assert solid is not None
    assert torch.diagonal(solid).tolist() == pytest.approx([1.4] * 3)
    image = torch.zeros(1, 1, 24, 24, 24)
    image[..., 6:18, 6:18, 6:18] = 1
    out = larger.augment(Batch(image, image, torch.tensor([0])), TrainingContext())
    assert out.label.sum() == 8**3


def test_noise_reads_a_deviation_or_a_variance_in_units_of_the_case_or_of_the_range() -> None:
    data = Batch(batch().image * 0.5, batch().label, torch.arange(2))
    noise = {}
    for reading in ("sd", "variance"):
        for unit in ("zscore", "range"):
            method = only("noise", noise_reading=reading, unit=unit, noise_max=0.04)
            noise[reading, unit] = method.augment(data, TrainingContext(seed=1)).image - data.image
    for case in range(2):
        sd, variance = noise["sd", "range"][case].std(), noise["variance", "range"][case].std()
        assert sd < 0.042
        assert variance.item() == pytest.approx(sd.item() ** 0.5, rel=0.1)
        zscore = noise["sd", "zscore"][case].std() / noise["sd", "range"][case].std()
        assert zscore.item() == pytest.approx(data.image[case].std().item(), rel=1e-3)


def test_noise_is_the_same_in_every_channel_and_all_else_is_drawn_by_channel() -> None:
    setup = small_setup(in_channels=2)
    image = batch(1).image.repeat(1, 2, 1, 1, 1)
    data = Batch(image, batch(1).label, torch.tensor([0]))
    for name in INTENSITY:
        method = build(setup, **{**NEVER, f"{name}_p": 1.0, "channel_p": 1.0})
        out = method.augment(data, TrainingContext(seed=9)).image
        assert torch.equal(out[:, 0], out[:, 1]) is (name == "noise")


def test_brightness_is_about_the_mean_in_units_of_the_case_and_about_zero_in_those_of_the_range() -> None:
    data, ctx = batch(1), TrainingContext(seed=3)
    centered = only("brightness").augment(data, ctx).image
    factor = centered.std() / data.image.std()
    assert 0.75 <= factor <= 1.25
    assert centered.mean().item() == pytest.approx(data.image.mean().item(), abs=1e-6)
    plain = only("brightness", unit="range").augment(data, ctx).image
    assert torch.allclose(plain, factor * data.image, atol=1e-6)


def test_the_six_come_one_after_the_other() -> None:
    """Each with one possible magnitude, in nnU-Net's order."""
    fixed = {"blur_sigma": (0.7, 0.7), "brightness": (1.2, 1.2), "contrast": (1.1, 1.1), "low_resolution": (0.5, 0.5)}
    data, never = batch(1), {**NEVER, **dict.fromkeys((f"{name}_p" for name in INTENSITY[1:]), 1.0)}
    method = build(**never, **fixed, gamma=(1.5, 1.5), channel_p=1.0)
    expected = gaussian_blur(data.image, 0.7)
    expected = scale_contrast((expected - expected.mean()) * 1.2 + expected.mean(), 1.1)
    expected = low_resolution(expected, (0.5, 0.5, 0.5))
    expected = gamma_curve(expected, 1.5, invert=True, retain_statistics=True)
    expected = gamma_curve(expected, 1.5, retain_statistics=True)
    assert torch.allclose(method.augment(data, TrainingContext()).image, expected, atol=1e-5)


def test_blur_is_drawn_for_each_axis_and_flat_crops_keep_the_resolution_of_their_slices() -> None:
    point = torch.zeros(1, 1, 16, 16, 16)
    point[..., 8, 8, 8] = 1
    spread = only("blur").augment(Batch(point, point, torch.tensor([0])), TrainingContext()).image[0, 0]
    along = [spread[7, 8, 8], spread[8, 7, 8], spread[8, 8, 7]]
    assert min(abs(a - b) for a, b in combinations(along, 2)) > 1e-3
    for side, same in ((4, True), (16, False)):
        image = torch.rand(1, 1, side, 1, 1, generator=torch.Generator().manual_seed(1)).expand(1, 1, side, 16, 16)
        out = only("low_resolution", low_resolution=(0.5, 0.5)).augment(batch(1).with_image(image), TrainingContext())
        assert torch.allclose(out.image, image) is same


def test_gamma_retains_mean_and_deviation_of_the_case() -> None:
    data = batch()
    for name in ("gamma", "gamma_inverted"):
        out = only(name).augment(data, TrainingContext(seed=3)).image
        assert torch.allclose(out.mean((1, 2, 3, 4)), data.image.mean((1, 2, 3, 4)), atol=1e-5)
        assert torch.allclose(out.std((1, 2, 3, 4)), data.image.std((1, 2, 3, 4)), atol=1e-5)


def test_factors_below_and_above_one_are_equally_likely() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([around_one((0.7, 1.5), rng) for _ in range(4000)])
    assert 0.7 <= drawn.min() < 0.71
    assert 1.49 < drawn.max() <= 1.5
    assert (drawn < 1).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_is_mirrored_in_half_of_the_cases(axis: int) -> None:
    """Fair coins after the protocol's fair coins: mirroring twice is as often as mirroring once."""
    method = build(**{**NEVER, "mirror_p": 0.5})
    ramp = torch.arange(8.0).view([8 if a == axis else 1 for a in range(3)]).expand(8, 8, 8)[None, None]
    data = Batch(ramp, ramp, torch.tensor([0]))
    flipped = [method.augment(data, TrainingContext(step=s)).image[0, 0, 0, 0, 0] > 0 for s in range(800)]
    assert sum(map(bool, flipped)) / 800 == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("cases", [1, 2, 3])
def test_each_case_has_its_own_draws_from_the_context_alone(cases: int) -> None:
    method, data = build(), batch(cases)
    state = torch.get_rng_state()
    for step in range(5):
        ctx = TrainingContext(seed=6, step=step)
        out = method.augment(data, ctx)
        assert torch.equal(out.image, method.augment(data, ctx).image)
        first = Batch(data.image[:1], data.label[:1], data.domain[:1])
        assert torch.equal(out.image[:1], method.augment(first, ctx).image)
        assert out.image.shape == data.image.shape
    assert torch.equal(torch.get_rng_state(), state)
    same = Batch(data.image[:1].repeat(2, 1, 1, 1, 1), data.label[:1].repeat(2, 1, 1, 1, 1), torch.tensor([0, 1]))
    both = build(noise_p=1.0).augment(same, TrainingContext())
    assert not torch.equal(both.image[0], both.image[1])


def test_mixed_precision_does_not_reach_the_augmentation() -> None:
    every = build(**{**dict.fromkeys(NEVER, 1.0), "channel_p": 1.0})
    plain = every.augment(batch(), TrainingContext(seed=1))
    ctx = TrainingContext(seed=1, precision="bf16")
    with ctx.autocast():
        mixed = every.augment(batch(), ctx)
    assert torch.equal(plain.image, mixed.image)
    assert torch.equal(plain.label, mixed.label)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("ndim", [2, 3])
def test_two_and_three_dimensions_and_several_channels(ndim: int, channels: int) -> None:
    setup = small_setup(ndim=ndim, in_channels=channels)
    method = build(setup, **dict.fromkeys(NEVER, 1.0))
    losses = method.training_step(batch(2, channels, SHAPE[-ndim:]), TrainingContext())
    assert torch.isfinite(losses["loss"])


def test_loss_is_that_of_the_changed_case_and_prediction_that_of_the_backbone() -> None:
    method, data, ctx = build(**dict.fromkeys(NEVER, 1.0)).eval(), batch(), TrainingContext(seed=3)
    changed = method.augment(data, ctx)
    assert not torch.equal(changed.image, data.image)
    expected = segmentation_loss(method.backbone(changed.image), changed.label)
    assert torch.equal(method.training_step(data, ctx)["loss"], expected)
    assert_predicts_as_the_backbone(method, data.image)


def test_cost_is_that_of_erm() -> None:
    assert paper_cost("erm_nnaug") == paper_cost("erm")


@pytest.mark.parametrize(("key", "text"), [("noise_reading", "sigma"), ("unit", "hu"), ("gamma_p", "2")])
def test_bad_configuration_is_one_line(key: str, text: str) -> None:
    with pytest.raises(DgbenchError, match=key) as caught:
        INFO.configure({key: text})
    assert "\n" not in str(caught.value)
