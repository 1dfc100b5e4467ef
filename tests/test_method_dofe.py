"""DoFE: prototypes, their mixture and update, the phases, and nothing learned at prediction."""

import pytest
import torch
from method_fixtures import ERM_GFLOPS, ERM_PARAMS, assert_prediction_changes_nothing, cases, make, paper_cost
from torch import Tensor

from dgbench.ops.losses import segmentation_loss
from dgbench.testing import small_setup
from dgbench.training.step import AdamMaker, TrainingContext, run_step
from dgbench_methods.dofe.method import DoFE, soft_domain_label


def build(n_sources: int = 2, **overrides: object) -> DoFE:
    return make(DoFE, small_setup(n_sources, total_steps=20), **overrides)


def features() -> Tensor:
    return torch.randn(2, 64, 2, 4, 4, generator=torch.Generator().manual_seed(2))


def test_update_from_zero_follows_the_sheets_values() -> None:
    method = build(lambda_mode="batch")
    found = []
    for _ in range(3):
        method.update(torch.ones(1, 64), torch.tensor([1]), TrainingContext())
        found.append(method.pool[1, 0].item())
    assert found == pytest.approx([0.1, 0.19, 0.271])
    assert not method.pool[0].any()


def test_eight_images_one_by_one_remember_as_one_average_of_eight() -> None:
    method = build()
    method.pool.fill_(1.0)
    for _ in range(8):
        method.update(torch.zeros(1, 64), torch.tensor([0]), TrainingContext())
    assert method.pool[0, 0].item() == pytest.approx(0.9)
    together = build()
    together.pool.fill_(1.0)
    together.update(torch.zeros(8, 64), torch.zeros(8, dtype=torch.long), TrainingContext())
    assert together.pool[0, 0].item() == pytest.approx(0.9)


def test_closed_gate_or_empty_pool_leave_the_features() -> None:
    method, h = build(), features()
    assert torch.equal(method.enrich(h)[0], h)
    method.pool.normal_(generator=torch.Generator().manual_seed(0))
    assert not torch.equal(method.enrich(h)[0], h)
    torch.nn.init.zeros_(method.gate.weight)  # type: ignore[arg-type]
    assert torch.equal(method.enrich(h)[0], h)


def test_even_code_mixes_the_mean_of_the_prototypes() -> None:
    method, h = build(), features()
    method.pool.normal_(generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(method.code[2].weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(method.code[2].bias)  # type: ignore[arg-type]
    gate = torch.tanh(method.gate(method.norm(h)))
    expected = h + gate * method.pool.mean(0).view(1, 64, 1, 1, 1)
    assert torch.allclose(method.enrich(h)[0], expected, atol=1e-6)


@pytest.mark.parametrize("n_sources", [2, 3, 4])
def test_soft_domain_label_sums_to_one_with_at_least_08_at_the_center(n_sources: int) -> None:
    domain = torch.arange(400) % n_sources
    rows = soft_domain_label(domain, n_sources, torch.Generator().manual_seed(0))
    assert torch.allclose(rows.sum(1), torch.ones(400))
    true = rows.gather(1, domain[:, None])
    assert true.min() >= 0.8
    assert true.max() <= 1
    assert 0.88 < true.mean() < 0.92
    assert (rows >= 0).all()
    if n_sources == 3:
        assert rows[domain == 0][:, 1].std() > 0.01


def steps(method: DoFE, count: int) -> list[dict[str, Tensor]]:
    optimizers = list(method.configure_optimizers(AdamMaker(1e-3, 0.0)))
    logs = []
    for step in range(count):
        ctx = TrainingContext(total_steps=20, step=step, optimizers=optimizers)
        logs.append(run_step(method, cases(), ctx)[2])
    return logs


def test_phases_pretrain_look_and_train() -> None:
    method = build(prototypes=0.1)
    logs = steps(method, 7)
    assert not method.pool.any()
    assert all(set(log) == {"loss"} for log in logs)
    frozen = [p.clone() for p in method.parameters()]
    optimizers = list(method.configure_optimizers(AdamMaker(1e-3, 0.0)))
    means = []
    for step in (7, 8):
        method.eval()
        with torch.no_grad():
            means.append(method.run(cases().image)[2])
        log = run_step(method, cases(), TrainingContext(total_steps=20, step=step, optimizers=optimizers))[2]
        assert log == {}
    assert all(torch.equal(a, b) for a, b in zip(frozen, method.parameters(), strict=True))
    assert torch.allclose(method.pool, torch.stack(means).mean(0), atol=1e-6)
    before = method.pool.clone()
    for step in (9, 10):  # after the first one the features, and so the prototypes, are others
        log = run_step(method, cases(), TrainingContext(total_steps=20, step=step, optimizers=optimizers))[2]
        assert set(log) == {"loss", "seg", "code"}
    assert not torch.allclose(method.pool, before, atol=1e-4)


def test_prototypes_are_summed_in_float32_in_mixed_precision() -> None:
    method = build()
    with TrainingContext(precision="bf16").autocast():
        sums, _ = method.by_center(torch.full((2, 64), 1.001), torch.tensor([1, 1]), TrainingContext())
    assert sums[1, 0].item() == pytest.approx(2.002)
    assert not sums[0].any()


def test_code_is_of_the_largest_values_and_mixes_the_prototypes() -> None:
    """Against the formula: largest value of each channel, normalised over channels, ReLU, a linear layer to the centers."""
    method, h = build(), features()
    method.pool.normal_(generator=torch.Generator().manual_seed(0))
    enriched, code, mean = method.enrich(h)
    largest = torch.nn.functional.layer_norm(h.amax((2, 3, 4)), (64,)).relu()
    weight, bias = method.code[2].weight.flatten(1), method.code[2].bias  # type: ignore[union-attr, operator]
    assert torch.allclose(code, largest @ weight.T + bias, atol=1e-5)  # type: ignore[operator]
    normalised = torch.nn.functional.group_norm(h, 8)
    assert torch.allclose(mean, normalised.mean((2, 3, 4)), atol=1e-6)
    mixture = (torch.softmax(code, 1) @ method.pool)[:, :, None, None, None]
    assert torch.allclose(enriched, h + torch.tanh(method.gate(normalised)) * mixture, atol=1e-5)


def test_frozen_pool_stays() -> None:
    method = build(pool_update="frozen", prototypes=0.1)
    steps(method, 9)
    before = method.pool.clone()
    assert before.any()
    ctx = TrainingContext(phase="train")
    method.training_step(cases(), ctx)
    assert torch.equal(method.pool, before)


def test_one_center_leaves_the_other_prototypes_to_the_bit() -> None:
    method = build()
    method.pool.normal_(generator=torch.Generator().manual_seed(0))
    before = method.pool.clone()
    method.training_step(cases((1, 1)), TrainingContext(phase="train"))
    assert torch.equal(method.pool[0], before[0])
    assert not torch.equal(method.pool[1], before[1])


def test_code_learns_from_its_own_loss_and_the_pool_gets_no_gradient() -> None:
    method = build(code_weight=2.0)
    method.pool.normal_(generator=torch.Generator().manual_seed(0))
    losses = method.training_step(cases(), TrainingContext(phase="train"))
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(losses["loss"], losses["seg"] + 2 * losses["code"])
    assert all(
        p.grad is not None and bool(p.grad.any()) for p in [*method.code.parameters(), *method.gate.parameters()]
    )
    assert not method.pool.requires_grad


def test_pretraining_is_the_plain_backbone() -> None:
    method, data = build().eval(), cases()
    method.pool.normal_(generator=torch.Generator().manual_seed(0))
    loss = method.training_step(data, TrainingContext(phase="pretrain"))["loss"]
    assert torch.equal(loss, segmentation_loss(method.backbone(data.image), data.label))


def test_prediction_uses_the_pool_and_changes_nothing() -> None:
    method, image = build().eval(), cases().image
    method.pool.normal_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = torch.sigmoid(method.backbone(image))
    assert not torch.allclose(assert_prediction_changes_nothing(method, image), plain, atol=1e-4)


def test_cost_is_said_as_it_is() -> None:
    plain = paper_cost("dofe")["table-vi"]
    assert plain["gflops"] == pytest.approx(ERM_GFLOPS + 0.4782 + 0.0075, abs=1e-3)
    assert plain["params"] == ERM_PARAMS + 2 * (65_536 + 512 + 514)
    reduced = paper_cost("dofe", reduce="true")["table-vi"]
    assert reduced["gflops"] == pytest.approx(ERM_GFLOPS + 0.7172 + 0.0075, abs=1e-3)
    assert round(reduced["params"] / 1e7, 2) == 3.81
