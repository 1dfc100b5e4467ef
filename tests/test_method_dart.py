"""DART: mixtures, unions on the sheet's quadratics, one network or several, and cost."""

from collections.abc import Sequence

import pytest
import torch
from method_fixtures import ERM_PARAMS, cases, make, paper_cost
from torch import nn

from dgbench.ops.averaging import unite
from dgbench.ops.losses import segmentation_loss
from dgbench.testing import small_setup
from dgbench.training.step import AdamMaker, TrainingContext
from dgbench_methods.dart.method import DART, mixtures
from dgbench_methods.erm.method import BalancedERM


def build(n_sources: int = 2, **overrides: object) -> DART:
    return make(DART, small_setup(n_sources, total_steps=20), **overrides)


def steps(method: DART, count: int) -> TrainingContext:
    ctx = TrainingContext(total_steps=20, optimizers=list(method.configure_optimizers(AdamMaker(1e-3, 0.0))))
    for step in range(count):
        ctx.step = step
        method.train_step(cases(tuple(range(method.setup.n_sources))), ctx)
        method.on_step_end(ctx)
    return ctx


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_mixtures_keep_two_to_one() -> None:
    assert mixtures("published", 3) == [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5], [1 / 3] * 3]
    for row, expected in zip(mixtures("published", 2), ([2 / 3, 1 / 3], [1 / 3, 2 / 3], [0.5, 0.5]), strict=True):
        assert row == pytest.approx(expected)
    assert mixtures("own-center", 2) == [[1, 0], [0, 1]]


class Quadratic(nn.Module):
    """h (w - c)² / 2 with w from 2."""

    def __init__(self, curvature: float, center: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.curvature, self.center = curvature, center

    def forward(self) -> torch.Tensor:
        return self.curvature * (self.w - self.center).square() / 2


@pytest.mark.parametrize(
    ("curvatures", "expected"),
    [((1, 1, 1), [1.9366667, 1.8853667, 1.8438137]), ((1, 2, 0.5), [1.8183333, 1.6758764, 1.5641664])],
)
def test_unions_give_the_sheets_values(curvatures: Sequence[float], expected: list[float]) -> None:
    branches = [Quadratic(h, c) for h, c in zip(curvatures, (0, 1, 4), strict=True)]
    optimizers = [torch.optim.SGD(branch.parameters(), lr=0.1) for branch in branches]
    found = []
    for _ in expected:
        for _ in range(2):
            for branch, optimizer in zip(branches, optimizers, strict=True):
                optimizer.zero_grad()
                branch().backward()
                optimizer.step()
        unite(branches)
        found.append(branches[0].w.item())
    assert found == pytest.approx(expected, abs=1e-7)


def test_branches_start_alike_part_and_unite_with_moments_of_their_own() -> None:
    method = build()
    assert method.interval == 2
    assert all(same(method.backbone, branch) for branch in method.branches)
    ctx = steps(method, 1)
    assert not same(method.backbone, method.branches[1])
    assert not same(method.backbone, method.branches[2])
    ctx = steps(build_into := build(), 2)
    assert all(same(build_into.backbone, branch) for branch in build_into.branches)
    moments = [next(iter(optimizer.state.values()))["exp_avg"] for optimizer in ctx.optimizers]
    assert not torch.equal(moments[0], moments[1])
    assert {int(state["step"]) for optimizer in ctx.optimizers for state in optimizer.state.values()} == {2}


def test_ensemble_never_unites() -> None:
    method = build(deploy="ensemble")
    steps(method, 4)
    assert not same(method.branches[0], method.branches[1])


def test_branch_weighs_the_losses_of_its_centers() -> None:
    method, data = build().eval(), cases()
    alone = [segmentation_loss(method.backbone(data.image[i : i + 1]), data.label[i : i + 1]) for i in range(2)]
    loss = method.branch_loss(method.backbone, [2 / 3, 1 / 3], data)
    assert torch.allclose(loss, 2 / 3 * alone[0] + 1 / 3 * alone[1])
    assert torch.allclose(method.branch_loss(method.backbone, [0.0, 1.0], data), alone[1])
    together = segmentation_loss(method.backbone(data.image), data.label)
    assert torch.equal(method.branch_loss(method.backbone, [0.5, 0.5], data), together)


def test_one_branch_is_erm_on_balanced_draws_to_the_bit() -> None:
    method = build(n_sources=1)
    method.mixtures, method.others = [[1.0]], nn.ModuleList()
    plain = make(BalancedERM, method.setup)
    plain.load_state_dict({f"backbone.{name}": value for name, value in method.backbone.state_dict().items()})
    contexts = [
        TrainingContext(total_steps=20, optimizers=list(one.configure_optimizers(AdamMaker(1e-3, 0.0))))
        for one in (method, plain)
    ]
    for step in range(3):
        for one, ctx in zip((method, plain), contexts, strict=True):
            ctx.step = step
            torch.manual_seed(step)
            one.train_step(cases(), ctx)
            one.on_step_end(ctx)
    assert same(method.backbone, plain.backbone)


def test_prediction_before_and_after_deploying_is_that_of_the_mean() -> None:
    method, image = build(), cases().image
    steps(method, 1)
    method.eval()
    with torch.no_grad():
        before = method.predict(image)
        single = torch.sigmoid(method.backbone(image))
        method.deploy()
        assert torch.allclose(method.predict(image), before, atol=1e-6)
    assert not torch.allclose(single, before, atol=1e-4)
    assert len(method.branches) == 1
    assert not any(name.startswith("others") for name in method.state_dict())


def test_prediction_follows_the_weights_after_a_step_and_after_loading() -> None:
    method, image = build(), cases().image
    steps(method, 1)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    first = method.eval().predict(image)
    steps(method.train(), 1)
    second = method.eval().predict(image)
    assert not torch.equal(second, first)
    method.load_state_dict(before)
    assert torch.equal(method.predict(image), first)


def test_ensemble_of_equal_branches_is_one_of_them() -> None:
    method, image = build(deploy="ensemble").eval(), cases().image
    with torch.no_grad():
        assert torch.allclose(method.predict(image), torch.sigmoid(method.backbone(image)), atol=1e-7)
        method.deploy()
        assert len(method.branches) == 2


def test_ensemble_is_the_mean_of_probabilities() -> None:
    method, image = build(deploy="ensemble"), cases().image
    steps(method, 1)
    method.eval()
    with torch.no_grad():
        for branch, bias in zip(method.branches, (-4.0, 1.0), strict=True):
            torch.nn.init.constant_(branch.head.bias, bias)  # type: ignore[arg-type]
        parts = [torch.sigmoid(branch(image)) for branch in method.branches]
        expected = (parts[0] + parts[1]) / 2
        assert torch.allclose(method.predict(image), expected, atol=1e-6)
        method.deploy()
        assert torch.allclose(method.predict(image), expected, atol=1e-6)


def test_a_step_holds_one_case_of_every_center() -> None:
    assert build().sampling(3, 20) == "per-center"


def test_three_centers_have_four_branches() -> None:
    method = build(n_sources=3)
    steps(method, 1)
    assert len(method.branches) == 4


def test_cost_of_the_ensemble_is_that_of_table_vi_and_weights_cost_one_network() -> None:
    ensemble = paper_cost("dart", deploy="ensemble")["table-vi"]
    assert ensemble["params"] == 2 * ERM_PARAMS
    assert round(ensemble["gflops"], 2) == 1890.47
    assert paper_cost("dart")["macs"] == paper_cost("erm")["macs"]
