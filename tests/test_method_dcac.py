"""DCAC: dynamic filters in closed forms, the predictor kept from the encoder, true and predicted codes, counts."""

import pytest
import torch
from torch import nn

from dgbench.evaluation.run_cost import method_cost
from dgbench.method import Batch, Setup
from dgbench.nets import Backbone
from dgbench.protocol import Task, Window, load_protocol
from dgbench.registry import find_method
from dgbench.training.step import TrainingContext
from dgbench_methods.dcac.method import DCAC


def build(n_sources: int = 2, ndim: int = 3, width: int = 8, out_channels: int = 1, **overrides: object) -> DCAC:
    torch.manual_seed(0)
    config = find_method("dcac").configure({key: str(value) for key, value in overrides.items()})
    task = Task(
        ndim=ndim, out_channels=out_channels, spacing=(1.5, 0.8, 0.8)[-ndim:], intensity=Window(low=-100, high=240)
    )
    options = {"width": width, "ndim": ndim, "out_channels": out_channels}
    return DCAC(config, Setup(task, "tumor-fine", True, n_sources, 10, lambda **k: Backbone(**options, **k)))  # type: ignore[arg-type]


def batch() -> Batch:
    image = torch.rand(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(image, (image > 0.7).float(), torch.tensor([0, 1]))


def silence(*layers: nn.Module) -> None:
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def test_silent_controllers_answer_the_last_bias_everywhere() -> None:
    method = build().eval()
    silence(method.domain_controller, method.content_controller)
    with torch.no_grad():
        method.content_controller.bias[-2:] = torch.tensor([0.3, -1.2])
        logits, _ = method.run(batch().image)
    assert torch.allclose(logits[:, 0], torch.full_like(logits[:, 0], 0.3))
    assert torch.allclose(logits[:, 1], torch.full_like(logits[:, 1], -1.2))


def test_domain_filter_that_ignores_its_input_cancels() -> None:
    """The normalisation of one constant in all channels is 0, whatever its size; a filter that reads its input does not cancel."""
    method = build().eval()
    x, content = torch.randn(2, 8, 4, 8, 8), torch.randn(2, 64)
    codes = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])]
    with torch.no_grad():
        assert not torch.allclose(method.head(x, codes[0], content), method.head(x, codes[1], content), atol=1e-4)
        silence(method.domain_controller)
        method.domain_controller.bias[-4:] = 0.7
        method.domain_controller.weight[-4:] = torch.tensor([1.0, 2.0])
        found = [method.head(x, code, content) for code in codes]
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_sign_of_the_domain_branch_matters() -> None:
    heads = {}
    for combine in ("subtract", "add"):
        method = build(combine=combine).eval()
        with torch.no_grad():
            heads[combine] = method.run(batch().image)[0]
    assert not torch.allclose(heads["subtract"], heads["add"], atol=1e-4)


@pytest.mark.parametrize(
    ("n_sources", "answer", "domain", "content"),
    [(2, "softmax", 20, 50), (2, "sigmoid", 6, 15), (3, "softmax", 42, 98)],
)
def test_controllers_answer_as_many_numbers_as_the_sheet_counts(
    n_sources: int, answer: str, domain: int, content: int
) -> None:
    method = build(n_sources, answer=answer)
    assert (method.domain_controller.out_features, method.content_controller.out_features) == (domain, content)


@pytest.mark.parametrize(
    ("overrides", "added"),
    [
        ({}, 13_979),
        ({"head_norm": "false"}, 13_971),
        ({"answer": "sigmoid"}, 4_872),
        ({"answer": "sigmoid", "head_norm": "false"}, 4_868),
    ],
)
def test_parameters_added_to_the_backbone(overrides: dict[str, str], added: int) -> None:
    method = build(width=32, **overrides)
    assert sum(p.numel() for p in method.parameters()) == 18_957_825 + added


def test_predictors_loss_reaches_nothing_but_the_predictor_and_the_content_does_reach_the_encoder() -> None:
    method = build()
    _, told = method.run(batch().image, batch().domain)
    told.square().sum().backward()  # type: ignore[no-untyped-call]
    moved = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    assert moved == {"predictor"}
    method.zero_grad()
    x = torch.randn(2, 8, 4, 8, 8)
    content = torch.randn(2, 64, requires_grad=True)
    method.head(x, torch.eye(2), content)[:, 1].sum().backward()  # type: ignore[no-untyped-call]
    assert content.grad is not None
    assert bool(content.grad.any())


def test_training_uses_the_true_center_and_prediction_the_predicted_one() -> None:
    method, image = build().eval(), batch().image
    with torch.no_grad():
        true, told = method.run(image, torch.tensor([0, 1]))
        other, _ = method.run(image, torch.tensor([1, 0]))
        predicted, _ = method.run(image)
        assert not torch.allclose(true, other, atol=1e-5)
        method.predictor.weight.zero_()
        method.predictor.bias.copy_(torch.tensor([50.0, -50.0]))
        certain, _ = method.run(image)
        named, _ = method.run(image, torch.tensor([0, 0]))
    assert not torch.allclose(predicted, true, atol=1e-5)
    assert torch.allclose(certain, named, atol=1e-5)
    assert told.shape == (2, 2)


def test_every_part_learns_in_one_step() -> None:
    method = build()
    losses = method.training_step(batch(), TrainingContext())
    assert torch.allclose(losses["loss"], losses["seg"] + losses["domain"])
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in method.parameters())


def test_probability_is_that_of_the_softmax() -> None:
    method = build(out_channels=2)
    logits = torch.randn(2, 3, 2, 3, 4)
    expected = torch.softmax(logits, 1)[:, 1:]
    assert torch.allclose(torch.sigmoid(method.one_against_rest(logits)), expected, atol=1e-6)


def test_prediction_changes_nothing_in_two_and_three_dimensions() -> None:
    for ndim in (2, 3):
        method = build(ndim=ndim).eval()
        image = torch.rand(2, 1, *(8, 16, 16)[-ndim:])
        before = {name: value.clone() for name, value in method.state_dict().items()}
        with torch.no_grad():
            assert method.predict(image).shape == image.shape
        assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_cost_is_said_as_it_is_and_without_the_norm_that_of_table_vi() -> None:
    info = find_method("dcac")
    resolved = load_protocol("pancreas-tumor").resolve("paper", {})
    voxels = (64 * 224 * 224 + 32 * 128 * 128) / 1e9
    whole = method_cost(info, info.configure(), resolved, 2)["table-vi"]
    assert whole["gflops"] == pytest.approx(945.2347 + 220 * voxels, abs=1e-3)
    thin = method_cost(info, info.configure({"head_norm": "false"}), resolved, 2)["table-vi"]
    assert thin["gflops"] == pytest.approx(945.2347 + 200 * voxels, abs=1e-3)
    assert round(thin["gflops"], 2) == 945.98
