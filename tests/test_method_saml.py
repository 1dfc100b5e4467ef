"""SAML: the meta step against an independent in-place one, its two losses, who gets which gradient, and nothing at prediction."""

from typing import Any

import pytest
import torch
from method_fixtures import ERM_GFLOPS, ERM_PARAMS, assert_predicts_as_the_backbone, make, paper_cost
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.utils.flop_counter import FlopCounterMode

from dgbench.data.sampling import check_sampling
from dgbench.errors import DgbenchError
from dgbench.method import Batch, Method, Setup
from dgbench.nets.upsample import upsample_linear
from dgbench.ops.losses import segmentation_loss
from dgbench.ops.shape import contour, isoperimetric_ratio, surroundings
from dgbench.ops.triplet import semi_hard_triplet_loss
from dgbench.registry import find_method, load_class
from dgbench.testing import small_setup
from dgbench.training.step import AdamMaker, TrainingContext
from dgbench_methods.saml.method import Saml


class Recorder(TrainingContext):
    """Keeps the gradients that each optimiser steps with, and steps by nothing."""

    def __init__(self, method: Saml, **k: Any) -> None:
        super().__init__(optimizers=method.configure_optimizers(AdamMaker(1e-3, 0.0)), **k)
        self.recorded: list[list[Tensor | None]] = []

    def step_optimizer(self, optimizer: Optimizer | None = None) -> None:
        for chosen in self._chosen(optimizer):
            gradients = [parameter.grad for group in chosen.param_groups for parameter in group["params"]]
            self.recorded.append([None if gradient is None else gradient.clone() for gradient in gradients])


def build(made: Setup | None = None, **overrides: object) -> Saml:
    return make(Saml, made, **overrides)


def batch(domains: tuple[int, ...] = (0, 1), sides: tuple[int, ...] = (8, 16, 16), channels: int = 1) -> Batch:
    """A box of its own size in each case."""
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros(len(domains), 1, *sides)
    for index in range(len(domains)):
        box = [slice(2, 5 + index % 3)] * len(sides)
        label[index, 0][tuple(box)] = 1
    image = 0.5 * label + 0.5 * torch.rand(len(domains), channels, *sides, generator=generator)
    return Batch(image, label, torch.tensor(domains))


def gradients_of(context: Recorder) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    inner, outer, metric = context.recorded
    return tuple([g for g in group if g is not None] for group in (inner, outer, metric))  # type: ignore[return-value]


def clipped(gradient: Tensor, norm: float) -> Tensor:
    return gradient * min(1.0, norm / max(float(gradient.norm()), 1e-12))


def reference(method: Saml, data: Batch, train: list[int], test: list[int]) -> tuple[list[Tensor], ...]:
    """The step as the publication describes it, the fast weights put in place of the weights: gradients of the backbone on meta-train
    and at the fast weights (clipped), and of the embedding network."""
    config, backbone = method.config, method.backbone
    weights = list(backbone.parameters())
    start = segmentation_loss(backbone(data.image[train]), data.label[train])
    at_weights = torch.autograd.grad(start, weights)
    saved = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, gradient in zip(weights, at_weights, strict=True):
            weight.sub_(config.inner_lr * clipped(gradient, config.clip))

    vectors, labels, logits = [], [], {}
    for index in range(len(data.image)):
        features: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor, features: dict[str, Tensor] = features) -> Tensor:
            features[name] = x
            return x

        logits[index] = backbone(data.image[index : index + 1], keep)
        maps = torch.cat([upsample_linear(features["up2"]), features["up1"]], 1)[0]
        label = data.label[index : index + 1]
        for mask, one in ((contour(label), 1), (surroundings(label, config.ring), 0)):
            vectors.append(method.embedder(torch.stack([channel[mask[0, 0]].mean() for channel in maps])))
            labels.append(one)
    smooth = semi_hard_triplet_loss(torch.stack(vectors), torch.tensor(labels), margin=config.margin)
    answer = torch.cat([logits[index] for index in test])
    p = torch.sigmoid(answer)
    if config.compact_mode == "slice2d":
        ratios = [isoperimetric_ratio(plane, 2) for plane in p.flatten(0, 2)]
    else:
        ratios = [isoperimetric_ratio(volume, 3) for volume in p.flatten(0, 1)]
    loss = segmentation_loss(answer, data.label[test]) + config.compact_weight * 1e-4 * torch.stack(ratios).sum()
    loss = loss + config.smooth_weight * smooth
    at_fast = [clipped(g, config.clip) for g in torch.autograd.grad(loss, weights, retain_graph=True)]
    of_metric = torch.autograd.grad(smooth, list(method.embedder.parameters()))
    with torch.no_grad():
        for weight, old in zip(weights, saved, strict=True):
            weight.copy_(old)
    return list(at_weights), at_fast, list(of_metric)


def assert_close(left: list[Tensor], right: list[Tensor], tolerance: float = 1e-4) -> None:
    for one, other in zip(left, right, strict=True):
        assert torch.linalg.vector_norm(one - other) <= tolerance * torch.linalg.vector_norm(other) + 1e-6


@pytest.mark.parametrize("mode", ["slice2d", "volume3d"])
@pytest.mark.parametrize("domains", [(0, 1), (2, 0, 1)])
def test_functional_and_in_place_fast_weights_agree(domains: tuple[int, ...], mode: str) -> None:
    """A long fast step, strong losses of shape and a short clip, so that each of them is seen in the gradient; in float64, where rounding
    moves nothing over the kink of a ReLU."""
    strong = {"inner_lr": 0.05, "compact_weight": 20, "smooth_weight": 0.5, "clip": 0.5, "compact_mode": mode}
    method, data = build(small_setup(len(domains)), **strong).eval().double(), batch(domains)
    data = Batch(data.image.double(), data.label.double(), data.domain)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    context = Recorder(method, seed=3)
    train, test = method.split(data.domain, context)
    method.train_step(data, context)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    for ours, expected in zip(gradients_of(context), reference(method, data, train, test), strict=True):
        assert_close(ours, expected, tolerance=1e-6)
    _, at_fast, _ = gradients_of(context)
    norms = torch.stack([g.norm() for g in at_fast])
    assert norms.max() == pytest.approx(0.5, rel=1e-4)
    assert norms.min() < 0.49


def test_the_outer_gradient_is_taken_at_the_fast_weights() -> None:
    """Not at the weights: with a step of length 0 it is another one, that of the plain loss."""
    data = batch()
    outer = {}
    for rate in (0.0, 0.05):
        method = build(inner_lr=rate, compact_weight=0, smooth_weight=0, clip=1e9).eval()
        context = Recorder(method, seed=3)
        _, test = method.split(data.domain, context)
        method.train_step(data, context)
        outer[rate] = [g for g in context.recorded[1] if g is not None]
    plain = segmentation_loss(method.backbone(data.image[test]), data.label[test])
    expected = list(torch.autograd.grad(plain, list(method.backbone.parameters())))
    assert_close(outer[0.0], expected)
    gap = sum(float((a - b).norm()) for a, b in zip(outer[0.05], expected, strict=True))
    assert gap > 0.1 * sum(float(b.norm()) for b in expected)


def test_neutral_setting_has_the_losses_of_the_plain_backbone() -> None:
    data, method = batch(), build(inner_lr=0, compact_weight=0, smooth_weight=0).eval()
    context = Recorder(method, seed=3)
    train, test = method.split(data.domain, context)
    losses = method.train_step(data, context)
    for name, cases in (("meta_train", train), ("meta_test", test)):
        plain = segmentation_loss(method.backbone(data.image[cases]), data.label[cases])
        assert losses[name].item() == pytest.approx(plain.item(), rel=1e-6)
    assert losses["loss"] == losses["meta_train"] + losses["meta_test"]
    assert context.recorded[2] == [None] * 4


@pytest.mark.parametrize(("n_sources", "release"), [(2, False), (3, False), (2, True), (3, True)])
def test_split_swaps_at_random_and_leaves_one_center_to_meta_test(n_sources: int, release: bool) -> None:
    """The release's split of two centers puts the meta-test case in meta-train too."""
    method = build(small_setup(n_sources), release_split=release)
    domain = torch.tensor([2, 0, 1][-n_sources:])
    counts = dict.fromkeys(range(n_sources), 0)
    for step in range(300):
        train, test = method.split(domain, TrainingContext(seed=1, step=step))
        assert len(test) == 1
        counts[test[0]] += 1
        if release and n_sources == 2:
            assert train == [0, 1]
        else:
            assert sorted([*train, *test]) == list(range(n_sources))
    assert all(abs(count / 300 - 1 / n_sources) < 0.1 for count in counts.values())
    assert method.split(domain, TrainingContext(seed=1)) == method.split(domain, TrainingContext(seed=1))


def test_a_step_needs_two_centers_and_draws_one_case_of_each() -> None:
    method = build()
    assert method.sampling(0, 10) == "per-center"
    check_sampling(method.sampling(0, 10), 2, 2, "saml")
    assert find_method("saml").min_sources == 2
    assert "domain-batch" in find_method("saml").needs
    with pytest.raises(DgbenchError, match="two centers"):
        method.train_step(batch((1, 1)), Recorder(method))


def test_the_release_split_of_two_centers_trains() -> None:
    method, data = build(release_split=True, inner_lr=0).eval(), batch()
    losses = method.train_step(data, Recorder(method, seed=3))
    both = segmentation_loss(method.backbone(data.image), data.label)
    assert losses["meta_train"].item() == pytest.approx(both.item(), rel=1e-5)


def test_dice_alone_is_the_release_over_two_classes() -> None:
    method, data = build(dice_only=True), batch()
    logits = torch.randn(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = []
    for z, y in zip(logits.double(), data.label.double(), strict=True):
        p = torch.softmax(torch.cat([torch.zeros_like(z), z]), 0)
        for q, t in ((p[:1], 1 - y), (p[1:], y)):
            expected.append(1 - (2 * (q * t).sum() + 1e-7) / (q.sum() + t.sum() + 1e-7))
    assert method.segmentation(logits, data.label).item() == pytest.approx(
        torch.stack(expected).mean().item(), rel=1e-5
    )
    assert torch.equal(build().segmentation(logits, data.label), segmentation_loss(logits, data.label))


def test_compactness_of_slices_and_of_the_volume_are_the_reference_values() -> None:
    """Square of side 16 in one of two slices: the published loss of a slice. Cube of side 10: the ratio of the volume, nearly."""
    square = torch.zeros(1, 1, 2, 64, 64)
    square[0, 0, 1, 20:36, 20:36] = 1
    assert build().compactness(square).item() == pytest.approx(1.2654852e-4, rel=1e-5)
    assert build().compactness(square[:, :, 1]).item() == pytest.approx(1.2654852e-4, rel=1e-5)
    assert build(compact_mode="volume3d").compactness(square[:, :, 1]).item() == pytest.approx(1.2654852e-4, rel=1e-5)
    cube = torch.zeros(1, 1, 12, 12, 12)
    cube[0, 0, 1:11, 1:11, 1:11] = 1
    assert build(compact_mode="volume3d").compactness(cube).item() == pytest.approx(1.751319e-4, rel=1e-3)
    assert build().compactness(torch.cat([square, square])).item() == pytest.approx(2 * 1.2654852e-4, rel=1e-5)


def test_compactness_is_of_the_prediction_and_smoothness_of_the_label() -> None:
    """The loss of compactness does not read the label, that of smoothness does."""
    method, data = build(inner_lr=0).eval(), batch()
    other = Batch(data.image, torch.roll(data.label, 3, -1), data.domain)
    losses = [method.train_step(one, Recorder(method, seed=3)) for one in (data, other)]
    assert torch.equal(losses[0]["compact"], losses[1]["compact"])
    assert losses[0]["smooth"] != losses[1]["smooth"]
    assert losses[0]["compact"] > 0


def test_backbone_gets_the_weighted_smoothness_and_the_embedding_network_the_whole() -> None:
    """Two weights, one gradient of the embedding network, and one of the features that grows with the weight."""
    generator = torch.Generator().manual_seed(0)
    half, full = (torch.randn(2, 8, *s, generator=generator, requires_grad=True) for s in ((4, 8, 8), (8, 16, 16)))
    label = batch().label
    grads = {}
    for weight in (0.005, 0.05):
        method = build(smooth_weight=weight)
        loss = method.smoothness(half, full, label)
        grads[weight] = torch.autograd.grad(loss, [half, full, *method.embedder.parameters()])
    for index, (low, high) in enumerate(zip(grads[0.005], grads[0.05], strict=True)):
        assert low.any()
        assert torch.allclose((10 if index < 2 else 1) * low, high, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("spoil", ["none left", "all foreground", "one of three"])
def test_smoothness_leaves_out_cases_without_contour_or_surroundings(spoil: str) -> None:
    domains = (0, 1, 2) if spoil == "one of three" else (0, 1)
    data = batch(domains)
    data.label[0] = 1.0 if spoil == "all foreground" else 0.0
    method = build(small_setup(len(domains))).eval()
    context = Recorder(method, seed=3)
    losses = method.train_step(data, context)
    left = spoil == "one of three"
    assert (losses["smooth"] > 0) == left
    assert all((gradient is not None) == left for gradient in context.recorded[2])
    assert all(loss.isfinite() for loss in losses.values())
    assert all(gradient is not None and gradient.isfinite().all() for gradient in context.recorded[1])


def test_an_empty_prediction_has_no_compactness() -> None:
    method = build()
    with torch.no_grad():
        method.backbone.head.bias.fill_(-1e4)  # type: ignore[operator]
    losses = method.eval().train_step(batch(), Recorder(method))
    assert losses["compact"] == 0
    assert losses["meta_test"].isfinite()


@pytest.mark.parametrize("n_sources", [2, 3])
def test_cases_that_pass_the_network_in_a_step(n_sources: int) -> None:
    """Meta-train at the weights, then every case at the fast ones; without smoothness only meta-test there."""
    for weight, passes in ((0.005, 2 * n_sources - 1), (0, n_sources)):
        method = build(small_setup(n_sources), smooth_weight=weight)
        seen: list[int] = []
        method.backbone.stem.register_forward_hook(lambda m, i, out, seen=seen: seen.append(len(out)))
        method.train_step(batch(tuple(range(n_sources))), Recorder(method))
        assert sum(seen) == passes


def test_training_costs_one_and_a_half_times_erm() -> None:
    """Products of a whole step, backward included, two cases each; without smoothness as many as erm."""
    made, data = small_setup(ndim=2), batch(sides=(32, 32))

    def products(method: Method[Any], context: TrainingContext) -> int:
        with FlopCounterMode(display=False) as counter:
            method.train_step(data, context)
        return int(counter.get_total_flops())

    info = find_method("erm")
    erm: Method[Any] = load_class(info)(info.configure(), made)
    plain = products(erm, TrainingContext(optimizers=[SGD(erm.parameters(), lr=0.1)]))
    for weight, factor in ((0.005, 1.5), (0, 1.0)):
        method = build(made, smooth_weight=weight)
        assert products(method, Recorder(method)) / plain == pytest.approx(factor, rel=0.02)


def test_embedding_network_is_two_linear_layers_each_with_a_leaky_relu_of_slope_a_fifth() -> None:
    method = build(hidden=6, embedding=4)
    first, second = method.embedder[0], method.embedder[2]
    assert [tuple(p.shape) for p in method.embedder.parameters()] == [(6, 16), (6,), (4, 6), (4,)]
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    expected = x
    for layer in (first, second):
        expected = expected @ layer.weight.T + layer.bias  # type: ignore[operator]
        expected = torch.where(expected > 0, expected, 0.2 * expected)
    assert (expected < 0).any()
    assert torch.allclose(method.embedder(x), expected, atol=1e-6)


def test_both_optimisers_of_the_backbone_step_from_gradients_at_the_same_weights() -> None:
    """The update is the sum of two: by the meta-train gradient, by the meta-test gradient times the factor of its rate."""
    data = batch()

    class Sgd:
        def __call__(self, parameters: Any, *, lr_factor: float = 1.0) -> Optimizer:
            return SGD(parameters, lr=1e-2 * lr_factor)

    method = build(inner_lr=0.05, outer_lr_factor=3, metric_lr_factor=7).eval()
    recorder = Recorder(method, seed=3)
    method.train_step(data, recorder)
    inner, outer, metric = gradients_of(recorder)
    before = [parameter.detach().clone() for parameter in method.parameters()]
    method.train_step(data, TrainingContext(seed=3, optimizers=method.configure_optimizers(Sgd())))
    change = [after.detach() - old for after, old in zip(method.parameters(), before, strict=True)]
    backbone = [-1e-2 * (a + 3 * b) for a, b in zip(inner, outer, strict=True)]
    assert_close(change, [*backbone, *(-7e-2 * gradient for gradient in metric)])


def test_optimisers_are_disjoint_but_for_the_backbone() -> None:
    method = build()
    inner, outer, metric = method.configure_optimizers(AdamMaker(1e-3, 0.0))
    owned = [{id(p) for group in o.param_groups for p in group["params"]} for o in (inner, outer, metric)]
    assert owned[0] == owned[1] == {id(p) for p in method.backbone.parameters()}
    assert owned[2] == {id(p) for p in method.embedder.parameters()}


def test_gradients_of_one_step_do_not_leak_into_the_next() -> None:
    data, method = batch(), build().eval()
    twice = Recorder(method, seed=3)
    method.train_step(data, twice)
    method.train_step(data, twice)
    for first, second in zip(twice.recorded[:3], twice.recorded[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_float32_in_both_precisions(precision: str) -> None:
    method = build(dice_only=precision == "bf16")
    losses = method.train_step(batch(), Recorder(method, precision=precision))
    assert all(loss.dtype == torch.float32 and loss.isfinite() and not loss.requires_grad for loss in losses.values())


def test_two_dimensions_and_two_channels() -> None:
    method = build(small_setup(ndim=2, in_channels=2))
    losses = method.train_step(batch(sides=(16, 24), channels=2), Recorder(method))
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["smooth"] > 0


def test_several_structures_are_an_error() -> None:
    with pytest.raises(DgbenchError, match="one structure"):
        build(small_setup(out_channels=2))


def test_prediction_is_the_backbone_before_and_after_deployment_and_changes_nothing() -> None:
    assert_predicts_as_the_backbone(build().eval(), batch().image)


def test_cost_is_that_of_erm() -> None:
    """Table VI: 945.23 and 3.79e7. The embedding network, 1,960 weights for each stage, has no part in the deployed number."""
    cost, erm = paper_cost("saml"), paper_cost("erm")
    assert cost["table-vi"]["gflops"] == erm["table-vi"]["gflops"] == pytest.approx(ERM_GFLOPS, abs=6e-5)
    assert cost["table-vi"]["params"] == ERM_PARAMS + 2 * 1_960
    assert f"{cost['table-vi']['params']:.2e}" == "3.79e+07"
    assert cost["macs"] == erm["macs"]
