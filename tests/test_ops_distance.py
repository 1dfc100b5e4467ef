"""Signed distance maps against closed forms, scipy and scikit-image, with every degenerate mask."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import find_boundaries

from dgbench.ops.distance import signed_distance, signed_distance_batch


def ellipsoid(shape: tuple[int, ...], radii: tuple[float, ...]) -> NDArray[np.uint8]:
    axes = np.meshgrid(*(np.arange(n) - n / 2 + 0.3 for n in shape), indexing="ij")
    return (sum((a / r) ** 2 for a, r in zip(axes, radii, strict=True)) <= 1).astype(np.uint8)


SHAPES = [((17, 20), (5, 6)), ((12, 20, 22), (3.5, 6, 7)), ((5, 20, 22), (9, 6, 7))]


def reference(mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The normalised target by its definition, with two independent distance transforms."""
    inside, outside = distance_transform_edt(mask), distance_transform_edt(1 - mask)
    target = outside / outside.max() - inside / inside.max()
    target[find_boundaries(mask, mode="inner")] = 0
    return target


def test_raw_golden_on_a_line() -> None:
    mask = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 0, 0]])
    raw, valid = signed_distance(mask, normalise=False)
    assert valid
    assert raw.tolist() == [[3, 2, 1, -1, -2, -3, -2, -1, 1, 2]]


def test_normalised_golden_on_a_line() -> None:
    mask = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 0, 0]])
    target, valid = signed_distance(mask, normalise=True)
    assert valid
    torch.testing.assert_close(target, torch.tensor([[1, 2 / 3, 1 / 3, 0, -2 / 3, -1, -2 / 3, 0, 1 / 3, 2 / 3]]))


def test_golden_cube() -> None:
    """A 5³ cube in a 9³ crop: center 3 voxels deep, corner of the crop at distance 2√3."""
    mask = torch.zeros(9, 9, 9)
    mask[2:7, 2:7, 2:7] = 1
    raw, _ = signed_distance(mask, normalise=False)
    target, _ = signed_distance(mask, normalise=True)
    assert raw[4, 4, 4] == -3
    assert raw[0, 0, 0].item() == pytest.approx(2 * 3**0.5)
    assert target[4, 4, 4] == -1
    assert target[3, 3, 3].item() == pytest.approx(-2 / 3)
    assert target[0, 0, 0] == 1
    assert target[0, 4, 4].item() == pytest.approx(1 / 3**0.5)
    assert (target == 0).sum() == 98  # 5³ − 3³ boundary voxels


@pytest.mark.parametrize(("shape", "radii"), SHAPES)
def test_equals_the_definition(shape: tuple[int, ...], radii: tuple[float, ...]) -> None:
    mask = ellipsoid(shape, radii)
    raw, valid = signed_distance(mask, normalise=False)
    assert valid
    expected = distance_transform_edt(1 - mask) - distance_transform_edt(mask)
    np.testing.assert_allclose(raw.numpy(), expected, atol=1e-5)
    target, valid = signed_distance(mask, normalise=True)
    assert valid
    np.testing.assert_allclose(target.numpy(), reference(mask), atol=1e-6)
    assert target.min() == -1
    assert target.max() == 1
    for distances in (raw, target):
        assert distances.dtype == torch.float32
        np.testing.assert_array_equal((distances <= 0).numpy(), mask == 1)


def test_several_lesions_of_random_shape() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros((9, 14, 13), np.uint8)
        for _ in range(3):
            z, y, x = rng.integers(0, (6, 10, 9))
            d, h, w = rng.integers(3, 7, 3)
            mask[z : z + d, y : y + h, x : x + w] = 1
        target, valid = signed_distance(mask, normalise=True)
        assert valid
        np.testing.assert_allclose(target.numpy(), reference(mask), atol=1e-6)


@pytest.mark.parametrize("spacing", [(2.5, 0.7, 0.8), (0.7, 2.5, 0.8), (0.7, 0.8, 2.5)])
def test_spacing_is_in_axis_order(spacing: tuple[float, float, float]) -> None:
    mask = ellipsoid((10, 14, 16), (3, 4, 5))
    raw, _ = signed_distance(mask, normalise=False, spacing=spacing)
    inside, outside = (distance_transform_edt(m, sampling=spacing) for m in (mask, 1 - mask))
    np.testing.assert_allclose(raw.numpy(), outside - inside, atol=1e-5)
    target, _ = signed_distance(mask, normalise=True, spacing=spacing)
    np.testing.assert_array_equal((target <= 0).numpy(), mask == 1)
    np.testing.assert_array_equal((target == 0).numpy(), find_boundaries(mask, mode="inner"))


@pytest.mark.parametrize("thickness", [1, 2])
def test_thin_lesions_are_flagged(thickness: int) -> None:
    mask = np.zeros((8, 12, 12), np.uint8)
    mask[3 : 3 + thickness, 3:9, 3:9] = 1
    target, valid = signed_distance(mask, normalise=True)
    assert not valid
    assert target.abs().max() == 0
    raw, valid = signed_distance(mask, normalise=False)
    assert valid
    np.testing.assert_array_equal((raw <= 0).numpy(), mask == 1)


def test_three_slices_are_enough() -> None:
    mask = np.zeros((8, 12, 12), np.uint8)
    mask[3:6, 3:9, 3:9] = 1
    target, valid = signed_distance(mask, normalise=True)
    assert valid
    assert target.min() == -1


@pytest.mark.parametrize("shape", [(8, 12, 12), (12, 12)])
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("normalise", [False, True])
def test_one_label_is_flagged_and_finite(shape: tuple[int, ...], value: int, normalise: bool) -> None:
    target, valid = signed_distance(np.full(shape, value), normalise=normalise)
    assert not valid
    assert torch.equal(target, torch.zeros(shape))


def test_tiny_block_is_flagged() -> None:
    mask = torch.zeros(6, 6, 6)
    mask[2:4, 2:4, 2:4] = 1
    assert not signed_distance(mask, normalise=True)[1]


def test_slab_at_the_border_has_an_interior() -> None:
    """The border of the crop is no lesion boundary: two slices at the edge are one deep and one boundary slice."""
    mask = np.zeros((8, 6, 6), np.uint8)
    mask[:2] = 1
    target, valid = signed_distance(mask, normalise=True)
    assert valid
    assert (target[0] == -1).all()
    assert (target[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_dtypes_and_layouts(dtype: torch.dtype) -> None:
    mask = torch.from_numpy(ellipsoid((12, 20, 22), (3.5, 6, 7)))
    expected, _ = signed_distance(mask, normalise=True)
    assert torch.equal(signed_distance(mask.to(dtype), normalise=True)[0], expected)
    turned, _ = signed_distance(mask.to(dtype).permute(2, 0, 1), normalise=True)
    assert torch.equal(turned, expected.permute(2, 0, 1))


@pytest.mark.parametrize("ndim", [2, 3])
def test_batch_equals_single(ndim: int) -> None:
    shape, radii = ((14, 16), (4, 5)) if ndim == 2 else ((10, 14, 16), (3, 4, 5))
    mask = torch.zeros(3, 1, *shape)
    mask[0, 0] = torch.from_numpy(ellipsoid(shape, radii))
    mask[2, 0, ..., :4] = 1
    maps, valid = signed_distance_batch(mask, normalise=True)
    assert maps.shape == mask.shape
    assert valid.tolist() == [True, False, True]
    for i in range(3):
        assert torch.equal(maps[i, 0], signed_distance(mask[i, 0], normalise=True)[0])


def test_bad_masks() -> None:
    with pytest.raises(ValueError, match="zeros and ones"):
        signed_distance(np.array([[0, 1], [2, 0]]), normalise=True)
    with pytest.raises(ValueError, match="zeros and ones"):
        signed_distance(np.array([[0, 0.5], [1, 0]]), normalise=True)
    with pytest.raises(ValueError, match="2D or 3D"):
        signed_distance(np.zeros(4), normalise=True)
    with pytest.raises(ValueError, match="2 values for a mask with 3 axes"):
        signed_distance(np.zeros((2, 2, 2)), normalise=True, spacing=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"\(B, 1, \*spatial\)"):
        signed_distance_batch(torch.zeros(1, 2, 4, 4), normalise=True)
