"""SNR: the values of the sheet, identities of the gate, its loss, and its cost."""

import math

import pytest
import torch
import torch.nn.functional as F
from method_fixtures import assert_prediction_changes_nothing, cases, make, paper_cost, sheet_x
from torch import Tensor

from dgbench.errors import DgbenchError
from dgbench.method import Batch
from dgbench.nets import Backbone
from dgbench.ops.losses import segmentation_loss
from dgbench.training.step import TrainingContext
from dgbench_methods.snr.method import SNR, Restitution, restitution_loss, restore, voxel_entropy


def build(**overrides: object) -> SNR:
    return make(SNR, **overrides)


def parts() -> tuple[Tensor, Tensor]:
    """X of the sheet and its instance normalisation, float32."""
    x = sheet_x().float()
    normalised, _ = Restitution(3, 3, 16)(x)
    return x, normalised.detach()


def test_full_gate_is_the_identity_and_closed_gate_the_normalisation() -> None:
    x, normalised = parts()
    assert torch.equal(restore(x, normalised, torch.ones(2, 3, 1, 1, 1)), x)
    assert torch.equal(restore(x, normalised, torch.zeros(2, 3, 1, 1, 1)), normalised)
    assert normalised.mean((2, 3, 4)).abs().max() < 1e-6
    assert torch.allclose(normalised.var((2, 3, 4), correction=0), torch.ones(2, 3), atol=3e-3)


def test_both_versions_share_the_residual_for_any_gate() -> None:
    x, normalised = parts()
    gate = torch.rand(2, 3, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    plus, minus = restore(x, normalised, gate), restore(x, normalised, 1 - gate)
    assert torch.allclose(plus + minus, x + normalised, atol=1e-5)


def test_quarter_gate_gives_the_sheets_means() -> None:
    plus = restore(*parts(), torch.full((2, 3, 1, 1, 1), 0.25))
    assert plus[0].mean((1, 2, 3)).tolist() == pytest.approx([0.1328349, 0.1144269, 0.0657181], abs=1e-6)


def test_gate_is_the_small_network_on_the_mean_of_the_residual() -> None:
    """By hand: sigmoid(W2 relu(W1 m + b1) + b2), with m the channels' means of F - IN(F), IN of eps 1e-5 and biased variance."""
    torch.manual_seed(0)
    module, x = Restitution(3, 8, 2), 3 * torch.randn(2, 8, 3, 4, 5) + 1
    torch.nn.init.normal_(module.norm.bias)  # type: ignore[arg-type]
    variance, mean = torch.var_mean(x, (2, 3, 4), correction=0, keepdim=True)
    weight, bias = (getattr(module.norm, name).view(1, -1, 1, 1, 1) for name in ("weight", "bias"))
    expected = (x - mean) / (variance + 1e-5).sqrt() * weight + bias
    hidden = (x - expected).mean((2, 3, 4)) @ module.squeeze.weight.flatten(1).T + module.squeeze.bias  # type: ignore[operator, union-attr]
    assert (hidden < 0).any()
    gate = torch.sigmoid(hidden.relu() @ module.excite.weight.flatten(1).T + module.excite.bias)  # type: ignore[operator, union-attr]
    found, opened = module(x)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(opened.flatten(1), gate, atol=1e-6)


def test_mixed_precision_reaches_neither_normalisation_nor_gate() -> None:
    """They are what they are without autocast, and F+ goes on in the precision of the features."""
    method, x = build().eval(), torch.randn(2, 8, 4, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    wide = method.points[0](x.float())
    with TrainingContext(precision="bf16").autocast():
        for low, full in zip(method.points[0](x.float()), wide, strict=True):
            assert low.dtype == torch.float32
            assert torch.equal(low, full)
        assert method.apply_module(0, x).dtype == torch.bfloat16


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
    assert paper_cost("snr")["table-vi"]["gflops"] == pytest.approx(946.019, abs=5e-4)
    silent = paper_cost("snr", restitution="false")["table-vi"]
    assert silent["params"] == 37_922_398
    assert silent["gflops"] == pytest.approx(946.019, abs=5e-4)
    for points, gflops in (("1", 945.832), ("2", 945.982), ("4", 946.029)):
        assert paper_cost("snr", points=points)["table-vi"]["gflops"] == pytest.approx(gflops, abs=6e-4)


def test_a_fourth_module_has_no_place_before_a_strided_convolution() -> None:
    with pytest.raises(DgbenchError, match="site=normalised has three points"):
        build(site="normalised", points=4)


def test_entropies_do_not_compare_magnitudes() -> None:
    """A head answers for features a hundred times as large as for the features, but for the epsilon of its norm."""
    method, x = build().eval(), 3 * torch.randn(2, 8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    entropies = [voxel_entropy(method.heads[0](scale * x)) for scale in (1, 100)]
    assert torch.allclose(*entropies, atol=1e-4)
    assert entropies[0].min() > 0.1


def test_a_head_tells_the_versions_of_a_feature_apart() -> None:
    """A norm of single channels would make them equal, and the ranking blind."""
    method = build().eval()
    x = torch.randn(2, 8, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 9.0).view(
        1, 8, 1, 1, 1
    )
    normalised, _ = method.points[0](x)
    assert not torch.allclose(*(voxel_entropy(method.heads[0](version)) for version in (x, normalised)), atol=1e-3)


def test_auxiliary_head_learns_the_share_of_tumor_in_a_cell() -> None:
    """One labelled voxel counts wherever it lies in its cell."""
    losses = []
    for corner in (0, 3):
        method, data = build().eval(), cases()
        label = torch.zeros_like(data.label)
        label[:, :, corner, corner, corner] = 1
        step = method.training_step(Batch(data.image, label, data.domain), TrainingContext())
        losses.append(step["auxiliary"])
    assert torch.equal(*losses)


def test_step_loss_in_full() -> None:
    """Three points, each with its ranking of F+, IN(F) and F-; the last head's answer to F+ against the share of tumor in its cells."""
    method, data = build(restitution_weight=0.3, auxiliary_weight=0.2).eval(), cases()
    rank, answers = torch.zeros(()), []

    def restored(stage: str, x: Tensor) -> Tensor:
        nonlocal rank
        if stage not in ("layer0", "layer1", "layer2"):
            return x
        index = len(answers)
        normalised, gate = method.points[index](x)
        plus, minus = normalised + gate * (x - normalised), normalised + (1 - gate) * (x - normalised)
        head = method.heads[index]
        h_plus, h_normalised, h_minus = (voxel_entropy(head(version)) for version in (plus, normalised, minus))
        rank = rank + (F.softplus(h_plus - h_normalised) + F.softplus(h_normalised - h_minus)).mean()
        answers.append(head(plus))
        return plus

    seg = segmentation_loss(method.backbone(data.image, restored), data.label)
    auxiliary = F.binary_cross_entropy_with_logits(answers[-1], F.avg_pool3d(data.label, 4))
    losses = method.training_step(data, TrainingContext())
    assert rank > 3
    for name, expected in (("seg", seg), ("rank", rank), ("auxiliary", auxiliary)):
        assert losses[name].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx((seg + 0.3 * rank + 0.2 * auxiliary).item(), rel=1e-5)


@pytest.mark.parametrize("site", ["output", "normalised"])
def test_gates_learn_from_the_ranking_and_the_backbone_from_both(site: str) -> None:
    """Without the ranking's weight the heads learn nothing, and with it they and every gate do."""
    gradients, gates, stems = {}, {}, {}
    for weight in (0.0, 1.0):
        method = build(site=site, reduction=2, restitution_weight=weight, auxiliary_weight=0).eval()
        method.training_step(cases(), TrainingContext())["loss"].backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in method.backbone.parameters())
        gradients[weight] = [float(p.grad.abs().sum()) for p in method.heads.parameters() if p.grad is not None]
        assert all(p.grad is not None and bool(p.grad.any()) for p in method.points.parameters() if p.ndim > 1)
        gates[weight] = [p.grad for p in method.points.parameters() if p.ndim > 1]
        stems[weight] = method.backbone.stem.weight.grad
    assert not any(torch.allclose(a, b, rtol=1e-6, atol=0) for a, b in zip(gates[0.0], gates[1.0], strict=True))
    assert not torch.allclose(stems[0.0], stems[1.0], rtol=1e-6, atol=0)
    assert max(gradients[0.0]) == 0
    assert min(gradients[1.0]) > 1e-6


def test_module_stands_in_the_forward_pass_and_not_elsewhere() -> None:
    """Gates driven to 1 give the plain backbone at both sites; at 0 they do not."""
    for site in ("output", "normalised"):
        method = build(site=site).eval()
        plain_backbone = Backbone(width=8).eval()
        plain_backbone.load_state_dict(method.backbone.state_dict())
        image = cases().image
        for bias, same in ((50.0, True), (-50.0, False)):
            for point in method.points:
                torch.nn.init.constant_(point.excite.bias, bias)  # type: ignore[union-attr, arg-type]
                torch.nn.init.zeros_(point.excite.weight)  # type: ignore[union-attr, arg-type]
            with torch.no_grad():
                assert torch.allclose(method.logits(image), plain_backbone(image), atol=1e-3) is same


def test_without_restitution_the_loss_is_the_segmentations() -> None:
    method, data = build(restitution="false").eval(), cases()
    losses = method.training_step(data, TrainingContext())
    assert set(losses) == {"loss", "gate 0", "gate 1", "gate 2"}
    assert all(0 < losses[f"gate {index}"] < 1 for index in range(3))
    assert torch.equal(losses["loss"], segmentation_loss(method.logits(data.image), data.label))
    assert not list(method.heads.parameters())


def test_prediction_is_unchanged_by_deploying_and_changes_nothing() -> None:
    method, image = build().eval(), cases().image
    before = assert_prediction_changes_nothing(method, image)
    method.deploy()
    assert torch.equal(assert_prediction_changes_nothing(method, image), before)
    assert not [name for name in method.state_dict() if name.startswith("heads")]
