"""Cutout: the size of the box, its fill, and nothing else changed."""

import pytest
import torch
from method_fixtures import cases, make

from dgbench.method import Batch
from dgbench.ops.erasing import box_mask
from dgbench.ops.losses import segmentation_loss
from dgbench.testing import small_setup
from dgbench.training.step import TrainingContext
from dgbench_methods.cutout.method import Cutout


def build(**overrides: object) -> Cutout:
    return make(Cutout, **overrides)


@pytest.mark.parametrize(
    ("center", "edge", "erased"),
    [((16,) * 3, 16, 4096), ((0,) * 3, 16, 512), ((31,) * 3, 16, 729), ((16,) * 3, 15, 2744)],
)
def test_voxels_of_a_box(center: tuple[int, ...], edge: int, erased: int) -> None:
    assert box_mask((32,) * 3, torch.tensor([center]), (edge,) * 3).sum() == erased


@pytest.mark.parametrize(("ndim", "share"), [(2, 0.1914), (3, 0.08374)])
def test_mean_share_of_a_box_of_half_the_side(ndim: int, share: float) -> None:
    """0.4375 on each axis of 8 voxels: the mean over all centers, exactly."""
    side = 8
    axes = torch.meshgrid(*[torch.arange(side)] * ndim, indexing="ij")
    centers = torch.stack([a.flatten() for a in axes], dim=1)
    shares = [box_mask((side,) * ndim, c[None], (side // 2,) * ndim).float().mean().item() for c in centers]
    assert sum(shares) / len(shares) == pytest.approx(share, abs=5e-5)


def test_boxes_join() -> None:
    centers = torch.tensor([[4, 4], [12, 12]])
    both = box_mask((16, 16), centers, (4, 4))
    assert both.sum() == 32
    assert torch.equal(both, box_mask((16, 16), centers[:1], (4, 4)) | box_mask((16, 16), centers[1:], (4, 4)))


def test_centers_are_uniform_over_the_whole_crop_and_edges_follow_each_side() -> None:
    """A voxel is erased as often as centers reach it: on each axis, the share of positions at most a quarter of the side away."""
    sides = (8, 12, 16)
    data, method = cases((0,), sides), build(edge=0.5)
    images = [method.augment(data, TrainingContext(step=step)).image for step in range(1500)]
    rate = torch.stack([(image != data.image)[0, 0] for image in images]).float().mean(0)
    expected = torch.ones(sides)
    for axis, side in enumerate(sides):
        center, voxel = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        reached = ((center - side // 4 <= voxel) & (voxel < center + side // 4)).float().mean(0)
        expected *= reached.view([side if a == axis else 1 for a in range(3)])
    assert rate.mean().item() == pytest.approx(0.4375**3, abs=0.006)
    assert torch.allclose(rate, expected, atol=0.045)


def test_a_small_share_of_a_short_side_still_erases_two_voxels() -> None:
    data = cases((0,))
    changed = [build(edge=0.05).augment(data, TrainingContext(step=s)).image != data.image for s in range(20)]
    assert max(int(one.sum()) for one in changed) == 8


def test_every_hole_is_cut() -> None:
    data = cases(sides=(32, 32, 32))
    counts = [
        (build(edge=0.125, holes=holes).augment(data, TrainingContext(seed=2)).image != data.image).sum()
        for holes in (1, 8)
    ]
    assert counts[1] > 4 * counts[0]


@pytest.mark.parametrize("fill", ["mean", "min"])
def test_the_erased_voxels_hold_the_fill_and_all_else_stays(fill: str) -> None:
    data = cases()
    out = build(edge=0.5, fill=fill).augment(data, TrainingContext(seed=3))
    assert torch.equal(out.label, data.label)
    for before, after in zip(data.image, out.image, strict=True):
        changed = before != after
        assert 0 < changed.sum() <= 4 * 8 * 8
        wanted = before.mean() if fill == "mean" else before.min()
        assert after[changed].unique().item() == pytest.approx(wanted.item(), abs=1e-6)


@pytest.mark.parametrize("fill", ["mean", "min"])
def test_channels_lose_the_same_box_and_get_their_own_fill(fill: str) -> None:
    data = cases(channels=2)
    data.image[:, 1] += 1
    method = make(Cutout, small_setup(in_channels=2), edge=0.5, fill=fill)
    out = method.augment(data, TrainingContext(seed=3)).image
    for before, after in zip(data.image, out, strict=True):
        changed = before != after
        assert torch.equal(changed[0], changed[1])
        for channel in range(2):
            wanted = before[channel].mean() if fill == "mean" else before[channel].min()
            assert after[channel][changed[channel]].unique().item() == pytest.approx(wanted.item(), abs=1e-6)


def test_minimum_of_a_windowed_crop_is_exactly_zero() -> None:
    data = cases()
    data.image[:, :, 0, 0, 0] = 0
    out = build(edge=0.5, fill="min").augment(data, TrainingContext(seed=3))
    assert (out.image[out.image != data.image] == 0).all()


def test_each_case_and_step_has_its_own_box() -> None:
    data = cases(tuple(range(1)))
    twice = Batch(data.image.repeat(2, 1, 1, 1, 1), data.label.repeat(2, 1, 1, 1, 1), torch.tensor([0, 1]))
    method = build()
    out = method.augment(twice, TrainingContext(seed=3)).image
    assert not torch.equal(out[0], out[1])
    assert torch.equal(out, method.augment(twice, TrainingContext(seed=3)).image)
    assert not torch.equal(out, method.augment(twice, TrainingContext(seed=3, step=1)).image)


def test_loss_is_that_of_the_erased_image_and_prediction_that_of_the_backbone() -> None:
    method, data, ctx = build().eval(), cases(), TrainingContext(seed=3)
    erased = method.augment(data, ctx)
    assert torch.equal(
        method.training_step(data, ctx)["loss"], segmentation_loss(method.backbone(erased.image), data.label)
    )
    assert torch.equal(method.predict(data.image), torch.sigmoid(method.backbone(data.image)))
