"""HOG: the target of the augmented image, a regression that reaches the encoder, and nothing of it at prediction."""

import pytest
import torch

from dgbench.evaluation.run_cost import method_cost
from dgbench.method import Batch, Setup
from dgbench.nets import Backbone
from dgbench.ops.hog import hog_map, hog_vector
from dgbench.ops.losses import segmentation_loss
from dgbench.protocol import Task, Window, load_protocol
from dgbench.registry import find_method
from dgbench.training.step import TrainingContext
from dgbench_methods.hog.method import HOG


def build(ndim: int = 3, **overrides: object) -> HOG:
    torch.manual_seed(0)
    config = find_method("hog").configure({key: str(value) for key, value in overrides.items()})
    task = Task(ndim=ndim, spacing=(1.5, 0.8, 0.8)[-ndim:], intensity=Window(low=-100, high=240))
    return HOG(config, Setup(task, "tumor-fine", True, 2, 10, lambda **k: Backbone(width=8, ndim=ndim, **k)))  # type: ignore[arg-type]


def batch(ndim: int = 3) -> Batch:
    image = torch.rand(2, 1, *(16, 24, 32)[-ndim:], generator=torch.Generator().manual_seed(1))
    return Batch(image, (image > 0.7).float(), torch.tensor([0, 1]))


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
    answer.square().mean().backward()  # type: ignore[no-untyped-call]
    assert method.backbone.stem.weight.grad is not None  # type: ignore[union-attr]
    assert bool(method.backbone.stem.weight.grad.any())  # type: ignore[union-attr, operator]
    assert all(p.grad is None for p in [*method.backbone.up1.parameters(), *method.backbone.head.parameters()])


def test_literal_bug_regresses_zeros() -> None:
    image = batch().image
    assert build().target(image).any()
    assert not build(literal_bug="true").target(image).any()


def test_prediction_is_the_backbone_with_and_without_the_head() -> None:
    method, image = build().eval(), batch().image
    with torch.no_grad():
        before = method.predict(image)
        assert torch.equal(torch.sigmoid(method(image)[0]), before)
        method.deploy()
        assert torch.equal(method.predict(image), before)
    assert not any(name.startswith("hog_head") for name in method.state_dict())


def test_deployed_cost_is_that_of_erm() -> None:
    resolved = load_protocol("pancreas-tumor").resolve("paper", {})
    costs = {
        name: method_cost(find_method(name), find_method(name).configure(), resolved, 2) for name in ("hog", "erm")
    }
    assert costs["hog"]["macs"] == costs["erm"]["macs"]
    weights = 27 * 256 * 64 + 64 * 36
    added = weights * (64 * 224 * 224 + 32 * 128 * 128) / 512 / 1e9
    assert costs["hog"]["table-vi"]["gflops"] == pytest.approx(costs["erm"]["table-vi"]["gflops"] + added, abs=1e-6)
