"""Warps: rigid in millimetres, image and label at the same positions, and elastic fields of the published strength."""

import pytest
import torch
from torch import Tensor

from dgbench.ops.warp import elastic_deviation, elastic_displacement, rotation_matrix, warp


def blob(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A label (1, *shape) of blocks of four voxels, and an image that is the label."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(*[-(-n // 4) for n in shape], generator=generator) > 0.5
    for axis, side in enumerate(shape):
        cells = cells.repeat_interleave(4, dim=axis).narrow(axis, 0, side)
    return cells[None].float(), cells[None].float()


@pytest.mark.parametrize("shape", [(8, 10, 12), (9, 14)])
def test_identity_matrix_changes_nothing(shape: tuple[int, ...]) -> None:
    image, label = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)), blob(shape)[1]
    moved, labels = warp(image, label, torch.eye(len(shape)), torch.zeros(len(shape), *shape))
    assert torch.allclose(moved, image, atol=1e-5)
    assert torch.equal(labels, label)


def test_rotation_is_rigid_in_millimetres() -> None:
    spacing = torch.tensor([1.5, 0.8, 0.5], dtype=torch.float64)
    matrix = rotation_matrix((10, -20, 30), spacing.tolist())
    in_mm = matrix * spacing[:, None] / spacing
    assert torch.allclose(in_mm @ in_mm.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.det(in_mm).item() == pytest.approx(1)
    assert not torch.allclose(matrix @ matrix.T, torch.eye(3, dtype=torch.float64), atol=1e-2)
    assert torch.equal(rotation_matrix((0, 0, 0), spacing.tolist()), torch.eye(3, dtype=torch.float64))


def test_planes_are_in_their_stated_order() -> None:
    for plane, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)]):
        degrees = [0.0] * 3
        degrees[plane] = 90.0
        expected = torch.eye(3, dtype=torch.float64)
        expected[a, a] = expected[b, b] = 0
        expected[a, b], expected[b, a] = -1, 1
        assert torch.allclose(rotation_matrix(degrees, (1, 1, 1)), expected, atol=1e-12)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_quarter_turn_moves_voxels_exactly(ndim: int) -> None:
    image = torch.rand(1, *(7,) * ndim, generator=torch.Generator().manual_seed(0))
    degrees = (90.0,) if ndim == 2 else (0.0, 0.0, 90.0)
    moved, labels = warp(image, (image > 0.5).float(), rotation_matrix(degrees, (1.0,) * ndim))
    expected = torch.rot90(image, -1, (ndim - 1, ndim))
    assert torch.allclose(moved, expected, atol=1e-5)
    assert torch.equal(labels, (expected > 0.5).float())


def test_wrong_number_of_angles_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        rotation_matrix((5.0,), (1.0, 1.0, 1.0))


def test_dividing_the_matrix_enlarges_about_the_center() -> None:
    label = torch.zeros(1, 17, 17, 17)
    label[:, 6:11, 6:11, 6:11] = 1
    eye = torch.eye(3)
    assert warp(label, label, eye / 2.2)[1].sum() == 11**3
    assert warp(label, label, eye * 2)[1].sum() == 3**3


def test_outside_the_grid_is_zero() -> None:
    image = torch.ones(1, 16, 16)
    moved, labels = warp(image, image, torch.eye(2) / 0.4)
    assert moved[0, 0].sum() == labels[0, 0].sum() == 0
    assert moved[0, 8, 8] == labels[0, 8, 8] == 1


@pytest.mark.parametrize("shape", [(16, 20, 24), (40, 32)])
def test_image_and_label_are_read_at_the_same_positions(shape: tuple[int, ...]) -> None:
    """Where all corners of the cell agree, the linear image of the label is the label."""
    image, label = blob(shape)
    generator = torch.Generator().manual_seed(3)
    field = elastic_displacement(shape, generator, sigma=5.0, amplitude=100.0)
    spacing = (1.5, 0.8, 0.8)[-len(shape) :]
    matrix = rotation_matrix((12.0,) * (1 if len(shape) == 2 else 3), spacing) / 1.2
    moved, labels = warp(image, label, matrix, field)
    assert set(labels.unique().tolist()) == {0.0, 1.0}
    sure = (moved < 1e-4) | (moved > 1 - 1e-4)
    assert sure.float().mean() > 0.2
    assert torch.equal(moved[sure].round(), labels[sure])
    assert not torch.equal(labels, label)


def test_displacement_is_in_voxels_and_comes_before_the_matrix() -> None:
    image = torch.zeros(1, 9, 9)
    image[0, 4, 6] = 1
    shift = torch.zeros(2, 9, 9)
    shift[1] = 1.0
    assert warp(image, image, torch.eye(2), shift)[0][0, 4, 5] == pytest.approx(1.0, abs=1e-5)
    assert warp(image, image, 2 * torch.eye(2), shift)[0][0, 4, 4] == pytest.approx(1.0, abs=1e-5)


def test_values_of_the_label_stay_its_own() -> None:
    label = torch.randint(0, 4, (1, 12, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = warp(label, label, rotation_matrix((20, 20, 20), (1, 1, 1)) / 1.3)[1]
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize(("shape", "sigma"), [((96, 96, 96), 10.0), ((512, 512), 12.0), ((80, 80, 80), 2.0)])
def test_elastic_field_has_the_strength_of_smoothed_uniform_noise(shape: tuple[int, ...], sigma: float) -> None:
    field = elastic_displacement(shape, torch.Generator().manual_seed(1), sigma=sigma, amplitude=500.0)
    assert field.shape == (len(shape), *shape)
    expected = elastic_deviation(len(shape), sigma, 500.0)
    assert field.std().item() == pytest.approx(expected, rel=0.12)


def test_elastic_deviation_in_closed_form() -> None:
    """Noise from U(-1, 1) has variance 1/3; a Gaussian of sigma smooths it by (2 sqrt(pi) sigma)^-1 on each axis."""
    assert elastic_deviation(3, 10.0, 1000.0) == pytest.approx(2.7353, abs=1e-3)
    assert elastic_deviation(2, 10.0, 1000.0) == pytest.approx(16.287, abs=1e-3)


def test_elastic_field_varies_over_its_sigma_and_is_no_different_at_the_border() -> None:
    fields = torch.stack(
        [
            elastic_displacement((48, 48), torch.Generator().manual_seed(seed), sigma=10.0, amplitude=100.0)
            for seed in range(150)
        ]
    )
    variance = fields.var(dim=(0, 1))
    assert variance[0].mean() / variance[24].mean() == pytest.approx(1.0, abs=0.25)
    near, far = ((fields[..., 5:, :] * fields[..., :-5, :]).mean(), (fields[..., 40:, :] * fields[..., :-40, :]).mean())
    assert near / variance.mean() == pytest.approx(torch.exp(torch.tensor(-25 / 400)).item(), abs=0.1)
    assert abs(far / variance.mean()) < 0.15


def test_elastic_field_is_a_function_of_its_generator() -> None:
    draw = [
        elastic_displacement((8, 16, 16), torch.Generator().manual_seed(s), sigma=11.0, amplitude=500.0)
        for s in (1, 1, 2)
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    zero = elastic_displacement((8, 16, 16), torch.Generator(), sigma=11.0, amplitude=0.0)
    assert not zero.any()
