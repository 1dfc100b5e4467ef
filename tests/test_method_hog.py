"""HOG: the target of the augmented image, a regression that reaches the encoder, and nothing of it at prediction."""

import pytest
import torch
from method_fixtures import assert_predicts_as_the_backbone, cases, make, paper_cost

from dgbench.method import Batch
from dgbench.ops.hog import hog_map, hog_vector
from dgbench.ops.losses import segmentation_loss
from dgbench.testing import small_setup
from dgbench.training.step import TrainingContext
from dgbench_methods.hog.method import HOG


def build(ndim: int = 3, **overrides: object) -> HOG:
    return make(HOG, small_setup(ndim=ndim), **overrides)


def batch(ndim: int = 3) -> Batch:
    return cases(sides=(16, 24, 32)[-ndim:])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("target", ["dense", "vector"])
def test_head_answers_in_the_shape_of_its_target(target: str, ndim: int) -> None:
    method, data = build(ndim, target=target), batch(ndim)
    _, answer = method(data.image)
    wanted = method.target(data.image)
    assert answer.shape == wanted.shape
    if target == "vector":
        assert wanted.shape == (2, 2 if ndim == 3 else 1, 756)
    assert torch.isfinite(method.training_step(data, TrainingContext())["loss"])


def test_dense_target_is_the_map_and_vector_that_of_the_middle_slices() -> None:
    image = batch().image
    assert torch.equal(build().target(image), hog_map(image))
    rows = build(target="vector").target(image)
    assert torch.equal(rows[:, 1], hog_vector(image[:, :, 12]))


def test_target_is_of_the_augmented_image() -> None:
    """A subclass that changes the image changes the target with it."""

    class Flat(HOG):
        def augment(self, batch: Batch, ctx: object) -> Batch:
            return batch.with_image(torch.zeros_like(batch.image))

    method = build().eval()
    flat = Flat(method.config, method.setup).eval()
    with torch.no_grad():
        answer = flat(torch.zeros_like(batch().image))[1]
    losses = flat.training_step(batch(), TrainingContext())
    assert torch.allclose(losses["hog"], answer.square().mean())


def test_loss_is_the_sum_and_the_regression_reaches_the_encoder_alone() -> None:
    method, data = build(weight=2.0).eval(), batch()
    losses = method.training_step(data, TrainingContext())
    assert torch.allclose(losses["loss"], losses["seg"] + 2 * losses["hog"])
    assert torch.equal(losses["seg"], segmentation_loss(method.logits(data.image), data.label))
    _, answer = method(data.image)
    assert torch.allclose(losses["hog"], (answer - hog_map(data.image)).square().mean())
    answer.square().mean().backward()  # type: ignore[no-untyped-call]
    assert method.backbone.stem.weight.grad is not None  # type: ignore[union-attr]
    assert bool(method.backbone.stem.weight.grad.any())  # type: ignore[union-attr, operator]
    assert all(p.grad is None for p in [*method.backbone.up1.parameters(), *method.backbone.head.parameters()])


@torch.no_grad()
def test_vector_is_regressed_from_the_largest_values_of_each_slice() -> None:
    method, encoder = (
        build(target="vector", normalise=False),
        torch.randn(2, 64, 3, 4, 5, generator=torch.Generator().manual_seed(0)),
    )
    expected = [method.hog_head(encoder[:, :, z].flatten(2).max(2).values) for z in range(3)]
    assert torch.allclose(method.regress(encoder), torch.stack(expected, 1), atol=1e-6)


@torch.no_grad()
def test_first_errors_do_not_depend_on_the_size_of_the_encoders_output() -> None:
    """It ends before its normalisation: a head that reads it as it is begins with errors far larger than the segmentation loss."""

    def first(normalise: bool, factor: float) -> torch.Tensor:
        torch.manual_seed(0)
        method = build(normalise=normalise)
        return method.regress(factor * torch.randn(2, 64, 2, 3, 4, generator=torch.Generator().manual_seed(0)))

    assert torch.allclose(first(True, 10), first(True, 100), atol=1e-4)
    assert first(True, 10).square().mean() < 1
    assert first(False, 100).square().mean() > 10


def test_literal_bug_regresses_zeros() -> None:
    image = batch().image
    assert build().target(image).any()
    assert not build(literal_bug="true").target(image).any()


def test_prediction_is_the_backbone_with_and_without_the_head() -> None:
    assert_predicts_as_the_backbone(build().eval(), batch().image)


def test_deployed_cost_is_that_of_erm() -> None:
    cost, erm = paper_cost("hog"), paper_cost("erm")
    assert cost["macs"] == erm["macs"]
    weights = 27 * 256 * 64 + 64 * 36
    added = weights * (64 * 224 * 224 + 32 * 128 * 128) / 512 / 1e9
    assert cost["table-vi"]["gflops"] == pytest.approx(erm["table-vi"]["gflops"] + added, abs=1e-6)
