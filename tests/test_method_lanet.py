"""LA-Net (reconstruction): edges, gates that close to the plain backbone, the second task's gradient, and the cost of the thin branch."""

import pytest
import torch
from method_fixtures import ERM_GFLOPS, ERM_PARAMS, assert_prediction_changes_nothing, cases, make, paper_cost
from scipy import ndimage
from torch import Tensor

from dgbench.method import Batch
from dgbench.ops.losses import segmentation_loss
from dgbench.testing import small_setup
from dgbench.training.step import TrainingContext
from dgbench_methods.lanet.method import LANet

SIZES = ("full", "lite")


def build(ndim: int = 3, **overrides: object) -> LANet:
    return make(LANet, small_setup(ndim=ndim), **overrides)


def ball(radius: int, side: int = 16) -> Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.arange(side) - side // 2] * 3, indexing="ij"))
    return (grid.square().sum(0) <= radius**2).float()[None, None]


def batch() -> Batch:
    image = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(image, torch.cat([ball(4), ball(5)]), torch.tensor([0, 1]))


def test_edge_of_a_cube_has_98_voxels_and_of_nothing_none() -> None:
    cube = torch.zeros(1, 1, 9, 9, 9)
    cube[..., 2:7, 2:7, 2:7] = 1
    method = build()
    assert method.edge_of(cube).sum() == 98
    assert not method.edge_of(torch.zeros_like(cube)).any()
    band = build(edge="band").edge_of(cube)
    assert band.sum() == 98 + 6 * 25
    assert (band >= method.edge_of(cube)).all()


def test_edge_of_a_ball_is_the_ball_less_its_erosion() -> None:
    mask = ball(5)
    eroded = torch.from_numpy(ndimage.binary_erosion(mask[0, 0].numpy()))[None, None]
    assert torch.equal(build().edge_of(mask), mask - eroded.float())


def close_gates(method: LANet) -> None:
    gates = (
        [gate.attend for gate in method.branch.gates.values()] if method.config.size == "full" else [method.branch.gate]
    )
    for gate in gates:
        torch.nn.init.constant_(gate.bias, -200.0)


@pytest.mark.parametrize("size", SIZES)
def test_closed_gates_leave_the_plain_backbone_and_open_ones_do_not(size: str) -> None:
    method, image = build(size=size).eval(), batch().image
    with torch.no_grad():
        plain = method.backbone(image)
        assert not torch.allclose(method.logits(image), plain, atol=1e-3)
        close_gates(method)
        assert torch.allclose(method.logits(image), plain, atol=1e-6)


@pytest.mark.parametrize("level", ["up3", "up2", "up1"])
def test_every_level_of_the_decoder_has_its_gate(level: str) -> None:
    method, image = build().eval(), batch().image
    close_gates(method)
    gate = method.branch.gates[level]
    with torch.no_grad():
        plain = method.logits(image)
        torch.nn.init.constant_(gate.attend.bias, 0.0)
        assert not torch.allclose(method.logits(image), plain, atol=1e-3)
        s, g = torch.randn(2, 1, gate.bring.in_channels, 2, 3, 4, generator=torch.Generator().manual_seed(0))
        opened = torch.sigmoid(gate.attend(torch.cat([s, g], 1)))
        assert torch.allclose(gate(s, g), s + opened * gate.bring(g))


@torch.no_grad()
def test_edge_decoder_has_the_skips_and_the_thin_branch_reads_the_last_feature() -> None:
    full, lite, image, at = build().eval(), build(size="lite").eval(), batch().image, {}

    def tap(stage: str, x: Tensor) -> Tensor:
        at[stage] = x
        return x

    full.backbone.features(image, tap)
    edge = at["fusion"]
    for level, skip in (("up3", "layer2"), ("up2", "layer1"), ("up1", "layer0")):
        edge = full.branch.blocks[level](full.backbone.upsample(edge) + at[skip])
    assert torch.allclose(full(image)[1], full.branch.head(edge), atol=1e-5)
    lite.backbone.features(image, tap)
    thin = lite.branch.stem(at["up1"])
    strengthened = at["up1"] * (1 + torch.sigmoid(lite.branch.gate(thin)))
    assert torch.allclose(lite(image)[0], lite.backbone.head(strengthened), atol=1e-5)
    assert torch.allclose(lite(image)[1], lite.branch.head(thin), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_edge_loss_reaches_the_encoder_and_not_with_weight_zero(size: str) -> None:
    data, gradients = batch(), {}
    for weight in (0.0, 1.0):
        method = build(size=size, edge_weight=weight).eval()
        losses = method.training_step(data, TrainingContext())
        assert torch.allclose(losses["loss"], losses["seg"] + weight * losses["edge"])
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        gradients[weight] = method.backbone.stem.weight.grad  # type: ignore[union-attr]
        assert bool(method.branch.head.weight.grad.any()) is (weight > 0)
        assert all(p.grad is not None for p in method.parameters())
    assert not torch.allclose(gradients[0.0], gradients[1.0])  # type: ignore[arg-type]
    alone = build(size=size).eval()
    segmentation_loss(alone(data.image)[1], alone.edge_of(data.label)).backward()  # type: ignore[no-untyped-call]
    assert bool(alone.backbone.stem.weight.grad.any())  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("size", SIZES)
def test_prediction_is_the_segmentation_and_changes_nothing(size: str) -> None:
    method, image = build(size=size).eval(), batch().image
    with torch.no_grad():
        expected = torch.sigmoid(method(image)[0])
    assert torch.equal(assert_prediction_changes_nothing(method, image), expected)
    method.deploy()
    assert torch.equal(assert_prediction_changes_nothing(method, image), expected)
    assert not any(name.startswith("branch.head") for name in method.state_dict())


@pytest.mark.parametrize("size", SIZES)
def test_two_dimensions(size: str) -> None:
    losses = build(ndim=2, size=size).training_step(cases(sides=(16, 16)), TrainingContext())
    assert torch.isfinite(losses["loss"])


def test_lite_costs_what_table_vi_says_and_full_a_second_decoder() -> None:
    lite = paper_cost("lanet", size="lite")["table-vi"]
    assert lite["gflops"] == pytest.approx(958.14, abs=0.05)
    assert round(lite["params"] / 1e7, 2) == 3.79
    full = paper_cost("lanet")["table-vi"]
    assert full["gflops"] > ERM_GFLOPS + 266
    assert full["params"] > ERM_PARAMS + 2 * 480_000
