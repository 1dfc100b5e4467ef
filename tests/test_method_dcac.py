"""DCAC: dynamic filters in closed forms, the predictor kept from the encoder, true and predicted codes, counts."""

import pytest
import torch
from method_fixtures import ERM_GFLOPS, assert_prediction_changes_nothing, cases, make, paper_cost
from torch import Tensor, nn

from dgbench.testing import small_setup
from dgbench.training.step import TrainingContext
from dgbench_methods.dcac.method import DCAC


def build(n_sources: int = 2, ndim: int = 3, width: int = 8, out_channels: int = 1, **overrides: object) -> DCAC:
    return make(DCAC, small_setup(n_sources, ndim, width, out_channels=out_channels), **overrides)


def silence(*layers: nn.Module) -> None:
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def test_silent_controllers_answer_the_last_bias_everywhere() -> None:
    method = build().eval()
    silence(method.domain_controller, method.content_controller)
    with torch.no_grad():
        method.content_controller.bias[-2:] = torch.tensor([0.3, -1.2])
        logits, _ = method.run(cases().image)
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


@pytest.mark.parametrize(("combine", "sign"), [("subtract", -1), ("add", 1)])
@torch.no_grad()
def test_head_is_the_publications_formula_case_by_case(combine: str, sign: int) -> None:
    """Three centers, two classes: one filter from the code and three from the content, weights first, each of one case alone."""

    def whole(x: Tensor) -> Tensor:
        return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()

    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.01 * x)

    def mix(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.einsum("oi,idhw->odhw", weight.view(len(bias), -1), x) + bias[:, None, None, None]

    method = build(3, combine=combine).eval()
    generator = torch.Generator().manual_seed(4)
    decoder, code, content = (torch.randn(2, *s, generator=generator) for s in ((8, 3, 4, 5), (3,), (64,)))
    found = method.head(decoder, code, content)
    for case in range(2):
        x = mix(decoder[case], method.static.weight, method.static.bias)  # type: ignore[arg-type]
        x = leaky(torch.stack([whole(channel) for channel in x]))
        values = method.domain_controller(code[case])
        x = leaky(x + sign * whole(mix(x, values[:36], values[36:])))
        first, second, last, *biases = method.content_controller(content[case]).split([36, 36, 12, 6, 6, 2])
        x = leaky(whole(mix(x, first, biases[0])))
        x = leaky(whole(mix(x, second, biases[1])))
        assert torch.allclose(found[case], mix(x, last, biases[2]), atol=1e-5)


@pytest.mark.parametrize("kind", ["normalised", "plain"])
@torch.no_grad()
def test_predictor_reads_the_means_of_the_stages_from_the_bottleneck_up(kind: str) -> None:
    method, means = build(means=kind).eval(), {}

    def tap(stage: str, x: Tensor) -> Tensor:
        plain = x.mean((2, 3, 4))
        centered = plain - plain.mean(1, keepdim=True)
        means[stage] = plain if kind == "plain" else centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return x

    method.backbone.features(cases().image, tap)
    expected = method.predictor(torch.cat([means[stage] for stage in ("layer4", "layer2", "layer1", "layer0")], 1))
    assert torch.allclose(method.run(cases().image)[1], expected, atol=1e-5)


@pytest.mark.parametrize("width", [8, 32])
@torch.no_grad()
def test_filters_begin_at_a_size_that_does_not_grow_with_the_backbone(width: int) -> None:
    """The stages of the shared backbone end before their normalisation; their means as they are give filters that explode in training."""

    def largest(means: str) -> float:
        torch.manual_seed(0)
        method, seen = build(width=width, means=means).eval(), []
        method.content_controller.register_forward_hook(lambda _module, _inputs, filters: seen.append(filters))
        method.run(cases().image)
        return float(seen[0].abs().max())

    assert largest("normalised") < 3
    assert largest("plain") > 10


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
    _, told = method.run(cases().image, cases().domain)
    told.square().sum().backward()  # type: ignore[no-untyped-call]
    moved = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    assert moved == {"predictor"}
    method.zero_grad()
    nn.init.zeros_(method.static.weight)  # type: ignore[arg-type]
    logits, _ = method.run(cases().image, cases().domain)
    logits[:, 1].sum().backward()  # type: ignore[no-untyped-call]
    assert not any(p.grad.any() for p in method.backbone.up1.parameters() if p.grad is not None)
    assert method.backbone.stem.weight.grad.any()  # type: ignore[union-attr, operator]


def test_training_uses_the_true_center_and_prediction_the_predicted_one() -> None:
    method, image = build().eval(), cases().image
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
    losses = method.training_step(cases(), TrainingContext())
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
        image = cases(sides=(8, 16, 16)[-ndim:]).image
        assert assert_prediction_changes_nothing(build(ndim=ndim).eval(), image).shape == image.shape


def test_cost_is_said_as_it_is_and_without_the_norm_that_of_table_vi() -> None:
    voxels = (64 * 224 * 224 + 32 * 128 * 128) / 1e9
    assert paper_cost("dcac")["table-vi"]["gflops"] == pytest.approx(ERM_GFLOPS + 220 * voxels, abs=1e-3)
    thin = paper_cost("dcac", head_norm="false")["table-vi"]
    assert thin["gflops"] == pytest.approx(ERM_GFLOPS + 200 * voxels, abs=1e-3)
    assert round(thin["gflops"], 2) == 945.98
