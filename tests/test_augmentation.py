"""Rotation about the crop's center in millimetres with real context; flips and noise as the protocol says."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dgbench.data.augmentation import draw_rotation, mirror_and_noise, read_crop
from dgbench.protocol import Augmentation


@dataclass
class Volume:
    """The part of a prepared case that cropping uses."""

    values: NDArray[np.float32]
    labels: NDArray[np.uint8]
    spacing: tuple[float, ...]

    def image_box(self, low: list[int], high: list[int]) -> NDArray[np.float32]:
        return self._cut(self.values[None], low, high)

    def label_box(self, low: list[int], high: list[int]) -> NDArray[np.uint8]:
        return self._cut(self.labels, low, high)

    def _cut(self, array: NDArray[np.generic], low: list[int], high: list[int]) -> NDArray[np.generic]:
        shape = array.shape[-len(low) :]
        part = array[(..., *(slice(max(a, 0), min(b, n)) for a, b, n in zip(low, high, shape, strict=True)))]
        pads = [(max(-a, 0), max(b - n, 0)) for a, b, n in zip(low, high, shape, strict=True)]
        return np.pad(part, [(0, 0)] * (array.ndim - len(low)) + pads)


def smooth_volume(spacing: tuple[float, ...], shape: tuple[int, ...] = (40, 60, 60)) -> Volume:
    """A function of the position in mm, so that a rotated crop can be predicted exactly."""
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    values = 0.5 + 0.2 * np.sin(grid[0] / 40) + 0.2 * np.cos(grid[1] / 50 + grid[2] / 35)
    return Volume(values.astype(np.float32), (values > 0.6).astype(np.uint8), spacing)


def rotation(seed: int, degrees: float, ndim: int = 3) -> NDArray[np.float64]:
    matrix = draw_rotation(np.random.default_rng(seed), Augmentation(rotation_degrees=degrees, rotation_p=1), ndim)
    assert matrix is not None
    return matrix


@pytest.mark.parametrize("ndim", [2, 3])
def test_rotations_are_proper_and_bounded(ndim: int) -> None:
    for seed in range(50):
        matrix = rotation(seed, 15, ndim)
        assert matrix @ matrix.T == pytest.approx(np.eye(ndim), abs=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1)
        angle = np.rad2deg(np.arccos(np.clip((np.trace(matrix) - (ndim - 2)) / 2, -1, 1)))
        assert angle <= (15 if ndim == 2 else 15 * 3)


def test_a_rotation_is_drawn_as_often_as_asked() -> None:
    drawn = [
        draw_rotation(np.random.default_rng(seed), Augmentation(rotation_p=0.3), 3) is not None for seed in range(1000)
    ]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.04)


def test_the_identity_rotation_is_the_plain_crop() -> None:
    volume = smooth_volume((4.0, 3.0, 3.0))
    plain = read_crop(volume, (5, 6, 7), (16, 24, 24), None)
    turned = read_crop(volume, (5, 6, 7), (16, 24, 24), np.eye(3))
    torch.testing.assert_close(turned[0], plain[0], atol=1e-5, rtol=0)
    assert torch.equal(turned[1], plain[1])


@pytest.mark.parametrize("spacing", [(4.0, 3.0, 3.0), (1.5, 0.8, 0.8), (1.0, 1.0, 1.0)])
def test_a_rotated_crop_shows_the_turned_position_in_millimetres(spacing: tuple[float, ...]) -> None:
    volume = smooth_volume(spacing)
    lo, size, matrix = np.array((10, 18, 16)), (16, 24, 24), rotation(3, 15)
    image, _ = read_crop(volume, lo.tolist(), size, matrix)
    center = lo + (np.array(size) - 1) / 2
    for voxel in ((0, 0, 0), (15, 23, 0), (8, 3, 20)):
        offset_mm = (np.array(voxel) - (np.array(size) - 1) / 2) * np.array(spacing)
        z, y, x = center * np.array(spacing) + matrix @ offset_mm
        expected = 0.5 + 0.2 * np.sin(z / 40) + 0.2 * np.cos(y / 50 + x / 35)
        assert float(image[0][voxel]) == pytest.approx(expected, abs=2e-3)


def test_corners_hold_real_context_and_zeros_only_outside_the_volume() -> None:
    volume = smooth_volume((1.0, 1.0, 1.0))
    inside, _ = read_crop(volume, (12, 18, 18), (16, 24, 24), rotation(5, 15))
    assert float(inside.min()) > 0.05
    outside, labels = read_crop(volume, (-20, -20, -20), (16, 16, 16), rotation(5, 15))
    assert float(outside.abs().max()) == 0
    assert int(labels.max()) == 0


def test_flips_move_image_and_label_together() -> None:
    image = torch.rand(1, 8, 8, 8)
    label = (image[0] > 0.5).to(torch.uint8)
    seen = set()
    for seed in range(40):
        flipped, mask = mirror_and_noise(image, label, np.random.default_rng(seed), Augmentation(noise_p=0))
        assert torch.equal((flipped[0] > 0.5).to(torch.uint8), mask)
        seen.add(tuple(flipped.flatten()[:4].tolist()))
    assert len(seen) == 8


def test_noise_has_the_drawn_deviation_and_none_is_added_without() -> None:
    image, label = torch.full((1, 24, 24, 24), 0.5), torch.zeros(24, 24, 24, dtype=torch.uint8)
    deviations = [
        float(
            mirror_and_noise(
                image, label, np.random.default_rng(seed), Augmentation(flip_p=0, noise_p=1, noise_sd=0.1)
            )[0].std()
        )
        for seed in range(60)
    ]
    assert 0 < min(deviations) < 0.02
    assert 0.08 < max(deviations) < 0.103
    assert np.mean(deviations) == pytest.approx(0.05, abs=0.01)
    plain, _ = mirror_and_noise(image, label, np.random.default_rng(0), Augmentation(flip_p=0, noise_p=0))
    assert torch.equal(plain, image)
