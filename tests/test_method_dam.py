"""DAM: two views, two heads, and a policy; the head that predicts never meets the strong view."""

import numpy as np
import pytest
import torch
from method_fixtures import assert_predicts_as_the_backbone, cases, make, paper_cost

from dgbench.ops.losses import segmentation_loss
from dgbench.ops.sharpness import gaussian_blur
from dgbench.testing import small_setup
from dgbench.training.step import TrainingContext
from dgbench_methods.dam import OPERATIONS
from dgbench_methods.dam.method import DAM, Draw


def build(**overrides: object) -> DAM:
    return make(DAM, **overrides)


def test_equal_views_and_heads_double_loss_and_gradient() -> None:
    method, data = build(per_view=0).eval(), cases()
    method.strong_head.load_state_dict(method.backbone.head.state_dict())
    single = segmentation_loss(method.backbone(data.image), data.label)
    (expected,) = torch.autograd.grad(single, method.backbone.stem.weight)  # type: ignore[arg-type]
    loss = method.training_step(data, TrainingContext())["loss"]
    (found,) = torch.autograd.grad(loss, method.backbone.stem.weight)  # type: ignore[arg-type]
    assert torch.allclose(loss, 2 * single)
    assert torch.allclose(found, 2 * expected, rtol=1e-4, atol=1e-6)


def test_each_head_learns_from_its_own_view_only() -> None:
    method, data = build().eval(), cases()
    image, label = method.strong_view(data, TrainingContext())
    weak = segmentation_loss(method.logits(data.image), data.label)
    strong = segmentation_loss(method.strong_head(method.backbone.features(image).decoder), label)
    for loss, learns, rests in (
        (weak, method.backbone.head, method.strong_head),
        (strong, method.strong_head, method.backbone.head),
    ):
        assert all(
            g is None for g in torch.autograd.grad(loss, [*rests.parameters()], retain_graph=True, allow_unused=True)
        )
        assert all(g.any() for g in torch.autograd.grad(loss, [*learns.parameters()], retain_graph=True))
    assert torch.allclose(method.training_step(data, TrainingContext())["loss"], weak + strong)


def test_a_step_passes_the_trunk_twice() -> None:
    method, passes = build(), []
    method.backbone.listener = passes.append
    method.training_step(cases(), TrainingContext())
    assert len(passes) == 2


def test_prediction_is_that_of_the_first_head_alone() -> None:
    method, image = build().eval(), cases().image
    with torch.no_grad():
        assert torch.equal(torch.sigmoid(method(image)[0]), method.predict(image))
    assert_predicts_as_the_backbone(method, image)


def test_policy_draws_every_operation_alike_with_a_mean_probability_of_055() -> None:
    method = build()
    draws = [draw for step in range(1500) for draw in method.draw(TrainingContext(step=step), 0)]
    assert len(draws) / 3000 == pytest.approx(0.55, abs=0.03)
    counts = [sum(draw.operation == name for draw in draws) for name in OPERATIONS]
    assert len(OPERATIONS) == 14
    assert min(counts) > 0.7 * np.mean(counts)
    assert max(counts) < 1.3 * np.mean(counts)
    assert {round(draw.size * 9) for draw in draws} == set(range(1, 10))
    assert 0.45 < sum(draw.sign == 1 for draw in draws) / len(draws) < 0.55


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_changes_the_image_stays_in_range_and_moves_the_label_only_with_it(operation: str) -> None:
    method, data = build(), cases()
    image, label = data.image[:1] * 0.8 + 0.1, data.label[0]
    for sign in (-1, 1):
        draw = Draw(operation, 1.0, sign, (1, 2))
        changed, moved = method.apply_one(draw, image, label, torch.Generator().manual_seed(0))
        assert changed.shape == image.shape
        assert not torch.equal(changed, image)
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert torch.equal(moved, label) is (operation not in ("shear", "translate", "rotate"))
        assert set(moved.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("sign", [-1, 1])
def test_gray_values_change_by_a_third_of_the_largest_magnitude(sign: int) -> None:
    x = cases().image[:1] * 0.6 + 0.2
    low, high, s = x.min(), x.max(), sign / 3
    expected = {
        "brightness": x * (1 + 0.9 * s),
        "contrast": (x - x.mean()) * (1 + 0.9 * s) + x.mean(),
        "gamma": ((x - low) / (high - low)) ** 2**s * (high - low) + low,
        "solarize": torch.where(x < 2 / 3, x, 1 - x),
        "posterize": (x * 128).floor() / 128,
        "autocontrast": (x - low) / (high - low),
        "invert": 1 - x,
        "sharpness": x + 0.9 * s * (x - gaussian_blur(x, 1.0)),
        "blur": gaussian_blur(x, 0.5),
    }
    for operation, wanted in expected.items():
        draw = Draw(operation, 1 / 3, sign, (1, 2))
        changed, _ = build().apply_one(draw, x, cases().label[0], torch.Generator())
        assert torch.allclose(changed, wanted.clamp(0, 1), atol=1e-5), operation


@pytest.mark.parametrize("sign", [-1, 1])
def test_shear_and_rotation_have_the_magnitudes_of_the_card(sign: int) -> None:
    method, image = build(), cases().image[:1]
    matrix, _ = method.motion(Draw("shear", 1 / 3, sign, (2, 0)), image)
    expected = torch.eye(3, dtype=torch.float64)
    expected[2, 0] = 0.1 * sign
    assert torch.allclose(matrix, expected)
    matrix, _ = method.motion(Draw("rotate", 1 / 3, sign, (2, 0)), image)
    size = torch.tensor(method.setup.task.spacing, dtype=torch.float64)
    turn = matrix * size[:, None] / size  # in mm
    assert turn[0].tolist() == [1, 0, 0]
    assert torch.rad2deg(torch.atan2(turn[2, 1], turn[1, 1])).item() == pytest.approx(10 * sign)


def test_translation_moves_image_and_label_by_a_quarter_of_the_side() -> None:
    method, data = build(), cases()
    image, label = method.apply_one(Draw("translate", 1.0, 1, (2, 1)), data.image[:1], data.label[0], torch.Generator())
    assert torch.allclose(image[0, ..., :12], data.image[0, ..., 4:], atol=1e-5)
    assert torch.equal(label[..., :12], data.label[0, ..., 4:])
    assert not image[..., 12:].any()


def test_two_noises_of_a_view_are_not_the_same_noise() -> None:
    method = build(operations=["noise"])
    data = cases()
    data = data.with_image(torch.full_like(data.image, 0.5))
    step = next(s for s in range(100) if len(method.draw(TrainingContext(step=s), 0)) == 2)
    first, second = method.draw(TrainingContext(step=step), 0)
    added = (method.strong_view(data, TrainingContext(step=step))[0][0] - 0.5).std().item()
    assert added == pytest.approx(0.1 * (first.size**2 + second.size**2) ** 0.5, rel=0.1)


def test_two_dimensions() -> None:
    method = make(DAM, small_setup(ndim=2), per_view=5)
    for step in range(5):
        losses = method.training_step(cases(sides=(16, 16)), TrainingContext(step=step))
        assert torch.isfinite(losses["loss"])


def test_deployed_cost_is_that_of_erm() -> None:
    cost = paper_cost("dam")
    assert cost["macs"] == paper_cost("erm")["macs"]
    assert cost["table-vi"]["gflops"] == pytest.approx(945.354, abs=1e-3)
