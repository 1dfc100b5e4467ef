"""SNR: the values of the sheet, identities of the gate, its loss, and its cost."""

import math

import pytest
import torch
from torch import Tensor

from dgbench.evaluation.run_cost import method_cost
from dgbench.method import Batch, Setup
from dgbench.nets import Backbone
from dgbench.ops.losses import segmentation_loss
from dgbench.protocol import Task, Window, load_protocol
from dgbench.registry import find_method
from dgbench.training.step import TrainingContext
from dgbench_methods.snr.method import SNR, Restitution, restitution_loss, restore, voxel_entropy


def fixture() -> Tensor:
    """X(2, 3, 4, 5, 6) of the method sheet."""
    b, c, d, h, w = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in (2, 3, 4, 5, 6)], indexing="ij")
    wave = torch.sin(0.7 * (c + 1) + 0.3 * d + 0.2 * h + 0.11 * w + b)
    return (0.5 * (b + 1) * wave + 0.1 * (b + 1) * (c + 1)).float()


def build(**overrides: object) -> SNR:
    torch.manual_seed(0)
    config = find_method("snr").configure({key: str(value) for key, value in overrides.items()})
    task = Task(spacing=(1.5, 0.8, 0.8), intensity=Window(low=-100, high=240))
    return SNR(config, Setup(task, "tumor-fine", True, 2, 10, lambda **k: Backbone(width=8, **k)))  # type: ignore[arg-type]


def batch() -> Batch:
    image = torch.rand(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(image, (image > 0.7).float(), torch.tensor([0, 1]))


def parts() -> tuple[Tensor, Tensor]:
    normalised, residual, _ = Restitution(3, 3, 16)(fixture())
    return normalised.detach(), residual.detach()


def test_full_gate_is_the_identity_and_closed_gate_the_normalisation() -> None:
    normalised, residual = parts()
    one, nothing = torch.ones(2, 3, 1, 1, 1), torch.zeros(2, 3, 1, 1, 1)
    assert torch.allclose(restore(normalised, residual, one)[0], fixture(), atol=1e-6)
    assert torch.equal(restore(normalised, residual, nothing)[0], normalised)
    assert normalised.mean((2, 3, 4)).abs().max() < 1e-6
    assert torch.allclose(normalised.var((2, 3, 4), correction=0), torch.ones(2, 3), atol=3e-3)


def test_both_versions_share_the_residual_for_any_gate() -> None:
    normalised, residual = parts()
    plus, minus = restore(normalised, residual, torch.rand(2, 3, 1, 1, 1, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(plus + minus, fixture() + normalised, atol=1e-5)


def test_quarter_gate_gives_the_sheets_means() -> None:
    plus, _ = restore(*parts(), torch.full((2, 3, 1, 1, 1), 0.25))
    assert plus[0].mean((1, 2, 3)).tolist() == pytest.approx([0.1328349, 0.1144269, 0.0657181], abs=1e-6)


def test_ranking_of_entropies_gives_the_sheets_values() -> None:
    def loss(plus: float, normalised: float, minus: float) -> float:
        return restitution_loss(*(torch.tensor([value]) for value in (plus, normalised, minus))).item()

    assert loss(0.4, 0.4, 0.4) == pytest.approx(2 * math.log(2))
    assert loss(0.3, 0.5, 0.6) == pytest.approx(1.2425355, abs=1e-6)
    assert loss(0.6, 0.5, 0.3) > loss(0.3, 0.5, 0.6)


def test_entropy_is_that_of_a_coin() -> None:
    assert voxel_entropy(torch.zeros(1, 1, 2, 2)).item() == pytest.approx(math.log(2))
    p = torch.tensor([0.1, 0.9]).view(1, 1, 2, 1)
    expected = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert voxel_entropy(torch.logit(p)).item() == pytest.approx(expected, abs=1e-6)
    assert voxel_entropy(torch.full((1, 1, 2, 2), 200.0)).item() == 0


@pytest.mark.parametrize(("channels", "parameters"), [(32, 226), (64, 708), (128, 2440)])
def test_parameters_of_a_module(channels: int, parameters: int) -> None:
    assert sum(p.numel() for p in Restitution(3, channels, 16).parameters()) == parameters


def test_cost_is_that_of_table_vi() -> None:
    info = find_method("snr")
    resolved = load_protocol("pancreas-tumor").resolve("paper", {})
    assert method_cost(info, info.configure(), resolved, 2)["table-vi"]["gflops"] == pytest.approx(946.019, abs=5e-4)
    silent = method_cost(info, info.configure({"restitution": "false"}), resolved, 2)["table-vi"]
    assert silent["params"] == 37_922_398
    assert silent["gflops"] == pytest.approx(946.019, abs=5e-4)
    for points, gflops in ((1, 945.832), (2, 945.982)):
        config = info.configure({"points": str(points)})
        assert method_cost(info, config, resolved, 2)["table-vi"]["gflops"] == pytest.approx(gflops, abs=6e-4)


@pytest.mark.parametrize("site", ["output", "normalised"])
def test_gates_learn_from_the_ranking_and_the_backbone_from_both(site: str) -> None:
    """Without the ranking's weight the heads learn nothing, and with it they and every gate do."""
    gradients = {}
    for weight in (0.0, 1.0):
        method = build(site=site, reduction=2, restitution_weight=weight, auxiliary_weight=0)
        method.training_step(batch(), TrainingContext())["loss"].backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in method.backbone.parameters())
        gradients[weight] = [float(p.grad.abs().sum()) for p in method.heads.parameters() if p.grad is not None]
        assert all(p.grad is not None and bool(p.grad.any()) for p in method.points.parameters() if p.ndim > 1)
    assert max(gradients[0.0]) == 0
    assert min(gradients[1.0]) > 0


def test_module_stands_in_the_forward_pass_and_not_elsewhere() -> None:
    """Gates driven to 1 give the plain backbone at both sites; at 0 they do not."""
    for site in ("output", "normalised"):
        method = build(site=site).eval()
        plain_backbone = Backbone(width=8).eval()
        plain_backbone.load_state_dict(method.backbone.state_dict())
        image = batch().image
        for bias, same in ((50.0, True), (-50.0, False)):
            for point in method.points:
                torch.nn.init.constant_(point.excite.bias, bias)  # type: ignore[union-attr, arg-type]
                torch.nn.init.zeros_(point.excite.weight)  # type: ignore[union-attr, arg-type]
            with torch.no_grad():
                assert torch.allclose(method.logits(image), plain_backbone(image), atol=1e-3) is same


def test_without_restitution_the_loss_is_the_segmentations() -> None:
    method, data = build(restitution="false").eval(), batch()
    losses = method.training_step(data, TrainingContext())
    assert set(losses) == {"loss"}
    assert torch.equal(losses["loss"], segmentation_loss(method.logits(data.image), data.label))
    assert not list(method.heads.parameters())


def test_prediction_is_unchanged_by_deploying_and_changes_nothing() -> None:
    method, image = build().eval(), batch().image
    with torch.no_grad():
        before = method.predict(image)
        method.deploy()
        state = {name: value.clone() for name, value in method.state_dict().items()}
        assert torch.equal(method.predict(image), before)
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
    assert not [name for name in state if name.startswith("heads")]
