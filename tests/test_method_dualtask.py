"""dualtask: every term and switch, the ablation rows, the two conversions, cost, and the start of training."""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from dgbench.errors import DgbenchError
from dgbench.evaluation.cost import count_cost
from dgbench.method import Batch, Method, Setup
from dgbench.nets import Backbone, DistanceHead
from dgbench.ops.distance import signed_distance_batch
from dgbench.ops.losses import segmentation_loss, slice_labels, slice_loss
from dgbench.registry import find_method, load_class
from dgbench.task import Task, Window
from dgbench.training.step import TrainingContext
from dgbench_methods.dualtask import INFO, VARIANTS, DualTaskConfig
from dgbench_methods.dualtask.method import DualTask, disagreement

TASK = Task(spacing=(1.5, 0.8, 0.8), intensity=Window(low=-100, high=240))
OFF = {"views": 1, "cls": "off", "dis": False, "tran": False, "con": False, "cos": False}


def setup_of(width: int = 8, *, is_fine: bool = True, task: Task = TASK) -> Setup:
    return Setup(task, "tumor", is_fine, 2, 10, lambda **k: Backbone(width=width, **k))


def build(*, is_fine: bool = True, **config: Any) -> DualTask:
    """A small network in evaluation mode: no dropout, so that only the method's own draws are random."""
    torch.manual_seed(0)
    return DualTask(DualTaskConfig(**config), setup_of(is_fine=is_fine)).eval()


def row(name: str) -> Method[Any]:
    torch.manual_seed(0)
    info = find_method(name)
    return load_class(info)(info.configure(), setup_of()).train()


def batch(cases: int = 2) -> Batch:
    """Noise with a ball, large enough to have an interior and cells on the feature grid."""
    image = torch.rand(cases, 1, 16, 32, 32, generator=torch.Generator().manual_seed(1))
    z, y, x = torch.meshgrid(torch.arange(16), torch.arange(32), torch.arange(32), indexing="ij")
    ball = ((z - 8) ** 2 + (y - 15) ** 2 + (x - 17) ** 2 < 36).float()
    return Batch(image, ball.expand(cases, 1, 16, 32, 32).clone(), torch.arange(cases))


def train(method: Method[Any], steps: int = 2) -> dict[str, Tensor]:
    """The weights after a few steps with everything random drawn from one seed."""
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3, weight_decay=5e-4)
    torch.manual_seed(7)
    for step in range(steps):
        method.train_step(batch(), TrainingContext(step=step, total_steps=steps, optimizers=(optimizer,)))
    return method.state_dict()


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# --- layout and cost --------------------------------------------------------------------------------------------------


def test_parameters_and_cost_of_table_vi() -> None:
    with torch.device("meta"):
        method = DualTask(DualTaskConfig(), setup_of(32))
    costs = [count_cost(method, (1, 1, *grid), convention="table-vi") for grid in ((64, 224, 224), (32, 128, 128))]
    assert [cost.params for cost in costs] == [18_999_619] * 2
    assert sum(cost.gflops for cost in costs) == pytest.approx(945.4415, abs=1e-4)


def test_layout_depends_on_no_setting() -> None:
    layouts = {
        tuple((name, tuple(p.shape)) for name, p in build(**config).named_parameters())
        for config in ({}, {"profile": "release"}, OFF, {"task_conversion": "smooth"})
    }
    assert len(layouts) == 1


def test_deploy_keeps_the_segmentation_branch_alone() -> None:
    method, image = build(), batch().image
    before = method.predict(image)
    assert torch.equal(before, torch.sigmoid(method(image)["segmentation"]))
    method.deploy()
    assert torch.equal(before, method.predict(image))
    assert sum(p.numel() for p in method.parameters()) == sum(p.numel() for p in method.backbone.parameters())


def test_prediction_is_that_of_erm_with_the_same_weights() -> None:
    method, image = build(), batch().image
    erm = find_method("erm")
    other = load_class(erm)(erm.configure(), method.setup).eval()
    other.backbone.load_state_dict(method.backbone.state_dict())
    assert torch.equal(method.predict(image), other.predict(image))


def test_importing_the_card_needs_no_torch() -> None:
    code = "import sys, dgbench_methods.erm, dgbench_methods.randconv, dgbench_methods.dualtask; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- terms and switches -----------------------------------------------------------------------------------------------

TERMS = {
    "slices": {"cls": "off"},
    "conversion": {"tran": False},
    "contrast": {"con": False},
    "consistency": {"cos": False},
}


def test_the_loss_is_the_sum_of_all_terms() -> None:
    losses = build().training_step(batch(), TrainingContext())
    assert set(losses) == {"loss", "segmentation", "distance", *TERMS}
    assert losses["loss"].item() == pytest.approx(sum(losses[key].item() for key in losses if key != "loss"), rel=1e-6)


@pytest.mark.parametrize("term", TERMS)
def test_a_switch_removes_its_term_and_no_other(term: str) -> None:
    full = build().training_step(batch(), TrainingContext())
    less = build(**TERMS[term]).training_step(batch(), TrainingContext())
    assert set(full) - set(less) == {term}
    assert full[term].abs() > 0
    assert less["loss"].item() == pytest.approx((full["loss"] - full[term]).item(), rel=1e-5)
    assert all(torch.equal(full[key], less[key]) for key in less if key != "loss")


def test_weights_scale_their_terms() -> None:
    keys = {"cls": "slices", "dis": "distance", "tran": "conversion", "con": "contrast", "cos": "consistency"}
    plain = build(weight_con=1.0).training_step(batch(), TrainingContext())
    scaled = build(**{f"weight_{key}": 3.0 for key in keys}).training_step(batch(), TrainingContext())
    for term in keys.values():
        assert scaled[term].item() == pytest.approx(3 * plain[term].item(), rel=1e-5)


def test_terms_against_the_equations() -> None:
    """One view, so that the reference needs no random convolution."""
    method, data = build(**OFF | {"dis": True, "cls": "all"}), batch()
    torch.nn.init.normal_(method.distance.regress.weight, std=0.01)
    losses = method.training_step(data, TrainingContext())
    outputs = method(data.image)
    target, valid = signed_distance_batch(data.label, normalise=True)
    assert valid.all()
    assert torch.equal(losses["segmentation"], segmentation_loss(outputs["segmentation"], data.label))
    assert torch.equal(losses["slices"], slice_loss(outputs["slices"], slice_labels(data.label)))
    assert losses["distance"].item() == pytest.approx((outputs["distance"] - target).abs().mean().item(), rel=1e-5)


def test_regression_is_averaged_over_views_of_cases_that_have_a_map() -> None:
    """The head starts at zero, so the term is the mean absolute target; an empty case takes no part."""
    data = batch()
    target, _ = signed_distance_batch(data.label, normalise=True)
    data.label[1] = 0.0
    losses = build().training_step(data, TrainingContext())
    assert losses["distance"].item() == pytest.approx(target[0].abs().mean().item(), rel=1e-5)
    assert torch.isfinite(losses["loss"])


@pytest.mark.parametrize("cases", [1, 2, 3])
def test_any_number_of_sources(cases: int) -> None:
    method = build()
    method.training_step(batch(cases), TrainingContext())["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_slice_classifier_by_stage() -> None:
    for cls, is_fine, expected in (("all", False, True), ("fine", False, False), ("fine", True, True)):
        losses = build(cls=cls, is_fine=is_fine).training_step(batch(), TrainingContext())
        assert ("slices" in losses) is expected


# --- views and consistency --------------------------------------------------------------------------------------------


def test_views_fill_the_unit_range_and_differ() -> None:
    images, paired = build().views(batch().image, TrainingContext())
    assert paired.all()
    first, second = images.chunk(2)
    assert images.amin((1, 2, 3, 4)).tolist() == [0] * 4
    assert images.amax((1, 2, 3, 4)).tolist() == [1] * 4
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_constant_view_gives_the_image_twice_and_no_consistency() -> None:
    data = batch(3)
    data.image[1] = 0.0
    images, paired = build().views(data.image, TrainingContext())
    assert images.shape == (6, 1, 16, 32, 32)
    assert paired.tolist() == [True, False, True]
    assert torch.equal(images[1], data.image[1])
    assert torch.equal(images[4], data.image[1])


def test_disagreement_ignores_what_is_not_paired() -> None:
    output = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(4, 1, 1, 1, 1).requires_grad_()
    value = disagreement(output, torch.tensor([True, False]))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(0.5)
    assert output.grad is not None
    assert output.grad.flatten().tolist() == [-1, 0, 1, 0]


def test_consistency_of_the_distance_by_stage() -> None:
    def value(cos_distance: str, *, is_fine: bool) -> Tensor:
        method = build(cos_distance=cos_distance, is_fine=is_fine)
        torch.nn.init.normal_(method.distance.regress.weight, std=0.1)
        return method.training_step(batch(), TrainingContext())["consistency"]

    torch.manual_seed(0)
    assert value("fine", is_fine=False) == value("off", is_fine=False)
    assert value("all", is_fine=False) > value("off", is_fine=False)
    assert value("fine", is_fine=True) > value("off", is_fine=True)


# --- conversion -------------------------------------------------------------------------------------------------------


def gradient_norm(method: DualTask, distance: Tensor) -> float:
    logits = distance.atanh().requires_grad_()
    method.conversion_loss(torch.tanh(logits), batch().label).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    return logits.grad.norm().item()


def test_hard_conversion_has_no_gradient_and_smooth_has_one() -> None:
    distance = torch.rand(2, 1, 16, 32, 32, generator=torch.Generator().manual_seed(2)) * 1.8 - 0.9
    assert gradient_norm(build(task_conversion="hard"), distance) == 0
    assert gradient_norm(build(task_conversion="smooth"), distance) > 1e-4


def test_smooth_conversion_in_closed_form() -> None:
    """At m = 0 the map is 1/2 everywhere: cross-entropy log 2, Dice 2 (n/2) / (N/2 + n)."""
    label = batch().label
    n, total = label[0].sum().item(), label[0].numel()
    value = build(task_conversion="smooth").conversion_loss(torch.zeros_like(label), label)
    assert value.item() == pytest.approx(1 - n / (total / 2 + n) + math.log(2), rel=1e-5)
    right = signed_distance_batch(label, normalise=True)[0]
    steep = build(task_conversion="smooth", conversion_k=1e4).conversion_loss(right - 1e-3, label)
    assert steep.item() == pytest.approx(0, abs=1e-3)
    assert build(task_conversion="hard").conversion_loss(right, label).item() == pytest.approx(0, abs=1e-6)


def test_ablation_rows() -> None:
    switches = {
        info.name: {key: getattr(info.configure(), key) for key in OFF | {"task_conversion": ""}}
        for info in (INFO, *VARIANTS)
    }
    on = {"views": 2, "cls": "all", "dis": True, "tran": True, "con": True, "cos": True}
    assert switches == {
        "dualtask": on | {"task_conversion": "hard"},
        "dualtask_smooth": on | {"task_conversion": "smooth"},
        "dualtask_bl": OFF | {"task_conversion": "hard"},
        "dualtask_idr": OFF | {"dis": True, "task_conversion": "hard"},
        "dualtask_dtl": OFF | {"dis": True, "tran": True, "task_conversion": "hard"},
        "dualtask_dtl_smooth": OFF | {"dis": True, "tran": True, "task_conversion": "smooth"},
        "dualtask_dsl": OFF | {"views": 2, "con": True, "cos": True, "task_conversion": "hard"},
    }


def test_baseline_row_is_erm_to_the_byte() -> None:
    erm, bl = train(row("erm")), train(row("dualtask_bl"))
    assert equal(erm, {key: value for key, value in bl.items() if key.startswith("backbone.")})


def test_hard_conversion_row_is_the_regression_row_to_the_byte() -> None:
    idr = train(row("dualtask_idr"))
    assert equal(idr, train(row("dualtask_dtl")))
    assert not equal(idr, train(row("dualtask_dtl_smooth")))
    assert not equal(idr, train(row("dualtask_bl")))


# --- contrast ---------------------------------------------------------------------------------------------------------


def test_contrast_trains_the_projection_and_the_encoder_only() -> None:
    method = build()
    data = batch()
    images, _ = method.views(data.image, TrainingContext())
    features = method.backbone.features(images)
    method.contrast(method.projection(features.encoder), data.label, TrainingContext()).backward()  # type: ignore[no-untyped-call]
    touched = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in method.named_parameters() if p.grad is not None
    }
    assert {"projection.project", "backbone.layer4"} <= touched
    assert not any(name.startswith(("backbone.up", "backbone.head", "distance", "slices")) for name in touched)


def test_contrast_is_lower_when_cells_of_a_class_agree() -> None:
    method, data = build(**OFF | {"con": True}), batch(1)
    apart = data.label[:, :, ::8, ::8, ::8]
    sorted_cells = torch.cat([apart, 1 - apart], dim=1)
    noise = torch.rand(1, 8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    ctx = TrainingContext()
    assert method.contrast(sorted_cells, data.label, ctx) < method.contrast(noise, data.label, ctx)


def test_contrast_without_a_tumor_is_zero() -> None:
    data = batch()
    data.label.zero_()
    losses = build().training_step(data, TrainingContext())
    assert losses["contrast"] == 0
    losses["loss"].backward()  # type: ignore[no-untyped-call]


# --- start of training ------------------------------------------------------------------------------------------------


def test_distance_head_starts_where_tanh_has_a_gradient() -> None:
    """PyTorch's initialisation saturates most of the map, because the decoder feature has a large scale; ours does not."""
    method, image = build(), batch().image
    naive = DistanceHead(3, 8)
    with torch.no_grad():
        decoder = method.backbone.features(image).decoder
        assert (naive(decoder).abs() > 3).float().mean() > 0.5
        assert method(image)["distance"].abs().max() == 0
    losses = method.training_step(batch(), TrainingContext())
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    assert method.distance.regress.weight.grad is not None
    assert method.distance.regress.weight.grad.abs().max() > 1e-3


# --- state, draws, configuration --------------------------------------------------------------------------------------


def test_draws_come_from_the_context_alone() -> None:
    method, data = build(), batch()
    state = torch.get_rng_state()
    first = method.training_step(data, TrainingContext(seed=1, step=4))["loss"]
    again = method.training_step(data, TrainingContext(seed=1, step=4))["loss"]
    later = method.training_step(data, TrainingContext(seed=1, step=5))["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_state_dict_holds_everything() -> None:
    method, data, ctx = build(), batch(), TrainingContext(step=2)
    torch.nn.init.normal_(method.distance.regress.weight, std=0.1)
    torch.manual_seed(5)
    other = DualTask(DualTaskConfig(), setup_of()).eval()
    other.load_state_dict(method.state_dict())
    assert torch.equal(method.training_step(data, ctx)["loss"], other.training_step(data, ctx)["loss"])


def test_release_profile() -> None:
    config = INFO.configure({"profile": "release"})
    assert isinstance(config, DualTaskConfig)
    assert (config.task_conversion, config.denominator, config.cls) == ("release", "release", "fine")
    explicit = INFO.configure({"profile": "release", "cls": "all"})
    assert isinstance(explicit, DualTaskConfig)
    assert explicit.cls == "all"
    image = batch().image
    nearest = build(profile="release")
    assert not torch.equal(nearest.predict(image), build().predict(image))
    assert torch.isfinite(nearest.training_step(batch(), TrainingContext())["loss"])


@pytest.mark.parametrize(
    "overrides",
    [
        {"dis": "false"},
        {"views": "1"},
        {"views": "3"},
        {"weight_dis": "0"},
        {"conversion_k": "-1"},
        {"wieght_dis": "1"},
    ],
)
def test_bad_configuration_is_one_line(overrides: dict[str, str]) -> None:
    with pytest.raises(DgbenchError) as caught:
        INFO.configure(overrides)
    assert "\n" not in str(caught.value)


def test_one_structure_only() -> None:
    task = Task(spacing=(1.5, 0.8, 0.8), intensity=Window(low=-100, high=240), out_channels=2)
    with pytest.raises(DgbenchError, match="2"):
        DualTask(DualTaskConfig(), setup_of(task=task))
