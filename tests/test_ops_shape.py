"""Compactness against closed forms and the sheet's values; contour and surroundings against scipy and geometry."""

from math import pi, sqrt

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from dgbench.ops.shape import boundary_size, contour, dilate, erode, isoperimetric_ratio, mean_inside, surroundings


def box(sides: tuple[int, ...], low: int, length: int) -> Tensor:
    mask = torch.zeros(sides, dtype=torch.float64)
    mask[tuple(slice(low, low + length) for _ in sides)] = 1
    return mask


def radius(side: int, ndim: int) -> Tensor:
    """Distance of each voxel from the middle one."""
    axis = torch.arange(side, dtype=torch.float64) - side // 2
    return torch.stack([a**2 for a in torch.meshgrid(*[axis] * ndim, indexing="ij")]).sum(0).sqrt()


@pytest.mark.parametrize("side", [4, 9, 16])
def test_perimeter_of_a_square(side: int) -> None:
    p = box((64, 64), 20, side)
    assert boundary_size(p, 2, eps=0).item() == pytest.approx(4 * side - 2 + sqrt(2), rel=1e-12)


def test_boundary_is_that_of_the_release_where_a_shape_is_not_symmetric() -> None:
    """Differences to the previous voxels, pixel by pixel; those to the next ones give another sum."""
    p = torch.rand(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cells = [(i, j) for i in range(1, 6) for j in range(1, 9)]
    released = sum(sqrt((p[i, j] - p[i - 1, j]) ** 2 + (p[i, j] - p[i, j - 1]) ** 2 + 1e-8) for i, j in cells)
    assert boundary_size(p, 2).item() == pytest.approx(released, rel=1e-12)
    assert boundary_size(p.flip(0, 1), 2).item() != pytest.approx(released, rel=1e-2)
    q = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = [q[1:, 1:, 1:] - other for other in (q[:-1, 1:, 1:], q[1:, :-1, 1:], q[1:, 1:, :-1])]
    expected = (sum(step**2 for step in steps) + 1e-8).sqrt().sum()  # type: ignore[union-attr]
    assert boundary_size(q, 3).item() == pytest.approx(expected.item(), rel=1e-12)


def test_square_gives_the_reference_values() -> None:
    p = box((64, 64), 20, 16)
    assert boundary_size(p, 2, eps=0).item() == pytest.approx(63.414214, abs=1e-6)
    assert isoperimetric_ratio(p, 2, eps=0).item() == pytest.approx(1.2500385, abs=1e-7)
    assert 1e-4 * isoperimetric_ratio(p, 2).item() == pytest.approx(1.2654852e-4, abs=1e-11)


def test_disc_gives_the_reference_values() -> None:
    """The published value holds the floor of 1e-4 per voxel: without it the perimeter is 734.291."""
    p = (radius(384, 2) <= 100).double()
    assert p.sum() == 31417
    assert boundary_size(p, 2).item() == pytest.approx(748.892, abs=5e-4)
    assert boundary_size(p, 2, eps=0).item() == pytest.approx(734.291, abs=5e-4)
    assert isoperimetric_ratio(p, 2).item() == pytest.approx(1.42057, abs=5e-6)


@pytest.mark.parametrize("side", [3, 7, 10])
def test_surface_of_a_cube(side: int) -> None:
    closed = 6 * side**2 - 6 * (side - 1) - 3 + 3 * (side - 1) * sqrt(2) + sqrt(3)
    assert boundary_size(box((20, 20, 20), 5, side), 3, eps=0).item() == pytest.approx(closed, rel=1e-12)


def test_cube_gives_the_reference_values() -> None:
    p = box((20, 20, 20), 5, 10)
    assert boundary_size(p, 3, eps=0).item() == pytest.approx(582.915817, abs=1e-6)
    assert isoperimetric_ratio(p, 3, eps=0).item() == pytest.approx(1.751319, abs=1e-6)


@pytest.mark.parametrize(
    ("r", "surface", "volume", "ratio"), [(10, 1604.118, 4169, 2.099871), (20, None, None, 2.041116)]
)
def test_digital_balls_give_the_reference_values(
    r: int, surface: float | None, volume: int | None, ratio: float
) -> None:
    p = (radius(2 * r + 11, 3) <= r).double()
    assert surface is None or boundary_size(p, 3, eps=0).item() == pytest.approx(surface, abs=5e-4)
    assert volume is None or p.sum() == volume
    assert isoperimetric_ratio(p, 3, eps=0).item() == pytest.approx(ratio, abs=1e-6)


def test_soft_ball_gives_the_reference_value_and_soft_shapes_tend_to_one() -> None:
    """The value is that of a grid of 35 voxels a side; a larger one holds more of the logistic's tail (0.930129)."""
    assert isoperimetric_ratio(torch.sigmoid(10 - radius(35, 3)), 3, eps=0).item() == pytest.approx(0.928869, abs=5e-7)
    assert isoperimetric_ratio(torch.sigmoid(10 - radius(81, 3)), 3, eps=0).item() == pytest.approx(0.930129, abs=5e-7)
    assert isoperimetric_ratio(torch.sigmoid((100 - radius(384, 2)) / 2), 2, eps=0).item() == pytest.approx(1, abs=5e-3)


def test_slices_and_volumes_are_taken_one_by_one() -> None:
    p = torch.rand(2, 1, 5, 8, 9, generator=torch.Generator().manual_seed(0))
    planes = isoperimetric_ratio(p, 2)
    assert planes.shape == (2, 1, 5)
    assert torch.allclose(planes[1, 0, 3], isoperimetric_ratio(p[1, 0, 3], 2))
    assert torch.allclose(isoperimetric_ratio(p, 3)[1, 0], isoperimetric_ratio(p[1, 0], 3))
    with pytest.raises(ValueError, match="2 or 3"):
        isoperimetric_ratio(p, 1)


def test_a_structure_below_one_voxel_has_no_ratio_and_no_gradient() -> None:
    p = torch.zeros(3, 8, 8)
    p[0, 4, 4], p[1, 2:6, 2:6] = 0.99, 1.0
    p.requires_grad_()
    ratio = isoperimetric_ratio(p, 2)
    assert ratio[[0, 2]].tolist() == [0, 0]
    assert ratio[1] > 0
    (gradient,) = torch.autograd.grad(ratio.sum(), p)
    assert gradient.isfinite().all()
    assert not gradient[[0, 2]].any()
    assert gradient[1].any()


def test_descending_the_ratio_makes_a_square_rounder() -> None:
    logits = (8 * box((24, 24), 6, 12) - 4).float().requires_grad_()
    start = isoperimetric_ratio(torch.sigmoid(logits), 2)
    for _ in range(50):
        (gradient,) = torch.autograd.grad(isoperimetric_ratio(torch.sigmoid(logits), 2), logits)
        logits = (logits - 100 * gradient).detach().requires_grad_()
    assert isoperimetric_ratio(torch.sigmoid(logits), 2) < start - 0.05
    corner, side = torch.sigmoid(logits)[6, 6], torch.sigmoid(logits)[6, 12]
    assert corner < side


def test_ratio_is_float32_of_half_precision() -> None:
    p = (radius(96, 2) <= 40).to(torch.bfloat16)
    assert isoperimetric_ratio(p, 2).dtype == torch.float32
    assert isoperimetric_ratio(p, 2).item() == pytest.approx(isoperimetric_ratio(p.double(), 2).item(), rel=1e-5)


def test_cube_of_five_has_98_contour_and_1430_surrounding_voxels() -> None:
    mask = box((17, 17, 17), 6, 5)[None, None]
    assert contour(mask).sum() == 98
    assert surroundings(mask, 5).sum() == 1430
    assert not (surroundings(mask, 5) & contour(mask)).any()


@pytest.mark.parametrize("sides", [(12, 14), (7, 8, 9)])
@pytest.mark.parametrize("steps", [1, 3])
def test_erosion_and_dilation_are_those_of_scipy(sides: tuple[int, ...], steps: int) -> None:
    noise = torch.rand(2, 1, *sides, generator=torch.Generator().manual_seed(0))
    sparse, full = (noise > 0.97).float(), (noise > 0.03).float()
    for index in range(2):
        grown = ndimage.binary_dilation(sparse[index, 0].numpy(), iterations=steps)
        shrunk = ndimage.binary_erosion(full[index, 0].numpy(), iterations=steps, border_value=1)
        assert np.array_equal(dilate(sparse, steps)[index, 0].numpy(), grown)
        assert np.array_equal(erode(full, steps)[index, 0].numpy(), shrunk)


def test_the_edge_of_a_crop_is_no_contour() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    expected = torch.zeros_like(mask, dtype=torch.bool)
    expected[..., 3] = True
    assert torch.equal(contour(mask), expected)
    assert not contour(torch.ones_like(mask)).any()
    assert not surroundings(torch.zeros_like(mask)).any()
    assert mask.sum() == 32


def test_mean_inside_masks() -> None:
    features = torch.rand(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(2, 2, 4, 5, 6, generator=torch.Generator().manual_seed(1)) > 0.5
    masks[1, 1] = False
    means = mean_inside(features, masks)
    assert means.shape == (2, 2, 3)
    assert torch.allclose(means[0, 1, 2], features[0, 2][masks[0, 1]].mean())
    assert not means[1, 1].any()


def test_the_constant_is_that_of_the_ball() -> None:
    r = 7.0
    assert (4 * pi * r**2) ** 3 / (36 * pi * (4 / 3 * pi * r**3) ** 2) == pytest.approx(1)
