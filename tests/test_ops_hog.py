"""HOG against scikit-image, on ramps with closed forms, and its invariances."""

import math

import pytest
import torch
from skimage.feature import hog as reference
from torch import Tensor

from dgbench.ops.hog import blocks_of, cell_histograms, hog_length, hog_map, hog_vector, normalise


def ramp(degrees: float, side: int = 64) -> Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angle = math.radians(degrees)
    return (0.01 * (x * math.cos(angle) + y * math.sin(angle))).double()[None, None]


@pytest.mark.parametrize(
    ("degrees", "bin_"), [(0.5, 0), (90, 4), (45, 2), (30, 1), (50, 2), (70, 3), (110, 5), (150, 7)]
)
def test_ramp_has_one_orientation_and_interior_blocks_of_one_half(degrees: float, bin_: int) -> None:
    blocks = blocks_of(cell_histograms(ramp(degrees), 8))[..., 1:-1, 1:-1]
    expected = torch.zeros(36, dtype=torch.float64)
    expected[bin_::9] = 0.5
    assert torch.allclose(blocks, expected.view(1, 36, 1, 1).expand_as(blocks), atol=1e-6)


def test_column_ramp_is_in_the_first_bin() -> None:
    x = torch.arange(64, dtype=torch.float64).expand(1, 1, 64, 64)
    cells = cell_histograms(x, 8)[..., 1:-1, 1:-1]
    assert torch.allclose(cells[:, 0], torch.full_like(cells[:, 0], 2.0))
    assert not cells[:, 1:].any()
    assert normalise(cells, "L1")[0, 0, 0, 0].item() == pytest.approx(0.999995, abs=1e-6)


def test_no_gradient_is_lost_just_below_180_degrees() -> None:
    """A step along the columns that tilts by less than float32 resolves: its orientation is rounded to 180, its magnitude counts."""
    column, row = torch.arange(16.0).expand(16, 16), torch.arange(16.0)[:, None]
    tilted = (column > 7).float() - 1e-8 * row
    cells = cell_histograms(tilted[None, None], 16)
    assert cells.sum().item() == pytest.approx(2 * 16 / 256)
    assert cells[0, 8].item() >= 14 / 256


@pytest.mark.parametrize(
    ("cell", "orientations", "length"), [(8, 9, 3780), (8, 6, 2520), (8, 4, 1680), (16, 9, 756), (16, 6, 504)]
)
def test_vector_is_that_of_scikit_image(cell: int, orientations: int, length: int) -> None:
    image = torch.rand(2, 1, 128, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = hog_vector(image, cell=cell, orientations=orientations)
    assert found.shape == (2, length)
    assert hog_length(cell, orientations) == length
    for row, picture in zip(found, image[:, 0].numpy(), strict=True):
        wanted = reference(picture, orientations, (cell, cell), (2, 2), block_norm="L2-Hys")
        assert torch.allclose(row, torch.from_numpy(wanted), atol=1e-5)


def test_channel_with_the_strongest_gradient_counts() -> None:
    image = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = reference(image.numpy(), 9, (8, 8), (2, 2), block_norm="L2-Hys", channel_axis=-1)
    found = blocks_of(cell_histograms(image.permute(2, 0, 1)[None], 8)).permute(0, 2, 3, 1).flatten()
    assert torch.allclose(found, torch.from_numpy(wanted), atol=1e-5)


def test_map_of_equal_slices_is_that_of_one_slice() -> None:
    plane = torch.rand(2, 1, 24, 32, generator=torch.Generator().manual_seed(2))
    volume = plane[:, :, None].expand(-1, -1, 16, -1, -1)
    flat = hog_map(plane)
    assert flat.shape == (2, 36, 3, 4)
    deep = hog_map(volume)
    assert deep.shape == (2, 36, 2, 3, 4)
    assert torch.allclose(deep, flat[:, :, None].expand_as(deep), atol=1e-6)
    assert torch.allclose(flat[..., :2, :3], blocks_of(cell_histograms(plane, 8)))


def test_contrast_leaves_blocks_as_they_are() -> None:
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(hog_map(3.7 * image + 2), hog_map(image), atol=1e-6)


def test_one_cell_is_enough() -> None:
    assert hog_map(torch.rand(1, 1, 8, 8, 8)).shape == (1, 36, 1, 1, 1)
