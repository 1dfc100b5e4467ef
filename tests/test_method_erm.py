"""erm: the contract's defaults and nothing else."""

import torch

from dgbench.info import MethodConfig
from dgbench.method import Batch, Method, Setup
from dgbench.nets import Backbone
from dgbench.ops.losses import segmentation_loss
from dgbench.registry import find_method, load_class
from dgbench.task import Task, Window
from dgbench.training.step import TrainingContext

TASK = Task(spacing=(1.5, 0.8, 0.8), intensity=Window(low=-100, high=240))


def build() -> Method[MethodConfig]:
    torch.manual_seed(0)
    info = find_method("erm")
    setup = Setup(TASK, "tumor-fine", True, 2, 10, lambda **k: Backbone(width=8, **k))
    return load_class(info)(info.configure(), setup)


def batch(cases: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(cases, 1, 8, 16, 16, generator=generator)
    return Batch(image, (image > 0.7).float(), torch.arange(cases))


def test_is_the_backbone_alone() -> None:
    method = build()
    assert type(method).training_step is Method.training_step
    assert sum(p.numel() for p in method.parameters()) == sum(p.numel() for p in method.backbone.parameters())


def test_loss_is_the_segmentation_loss_of_the_backbone() -> None:
    method = build().eval()
    for cases in (1, 2, 3):
        data = batch(cases)
        losses = method.training_step(data, TrainingContext())
        assert set(losses) == {"loss"}
        assert torch.equal(losses["loss"], segmentation_loss(method.backbone(data.image), data.label))


def test_prediction_is_the_sigmoid_and_stays_after_deploy() -> None:
    method, image = build().eval(), batch(2).image
    before = method.predict(image)
    method.deploy()
    assert torch.equal(before, torch.sigmoid(method.backbone(image)))
    assert torch.equal(before, method.predict(image))


def test_a_step_updates_the_weights_and_lowers_the_loss() -> None:
    method, data = build(), batch(2)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    losses = [
        method.train_step(data, TrainingContext(step=step, total_steps=4, optimizers=(optimizer,)))["loss"].item()
        for step in range(4)
    ]
    assert losses[-1] < losses[0]
