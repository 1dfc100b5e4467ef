"""The augmentation that every method trains under: one rotation about the crop's center with real context, mirroring, Gaussian noise
(paper IV.C). Every draw comes from a generator seeded by (run seed, step, slot)."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from dgbench.data.preparation import PreparedCase
from dgbench.protocol import Augmentation

Floats = NDArray[np.float64]


def strengthened(augmentation: Augmentation, strength: float) -> Augmentation:
    """``augmentation`` with the largest angle (at most 180°) and the noise multiplied by ``strength``; chances and mirroring stay as they
    are, and so does everything at strength 1."""
    if strength == 1:
        return augmentation
    return augmentation.model_copy(
        update={
            "rotation_degrees": min(180.0, augmentation.rotation_degrees * strength),
            "noise_sd": augmentation.noise_sd * strength,
        }
    )


def draw_rotation(rng: np.random.Generator, augmentation: Augmentation, ndim: int) -> Floats | None:
    """A rotation matrix (ndim, ndim) in millimetre space with each Euler angle from U(-max, max), or None where none is drawn."""
    drawn = rng.random() < augmentation.rotation_p
    planes = [(0, 1), (0, 2), (1, 2)] if ndim == 3 else [(0, 1)]
    angles = np.deg2rad(rng.uniform(-augmentation.rotation_degrees, augmentation.rotation_degrees, len(planes)))
    if not drawn:
        return None
    matrix = np.eye(ndim)
    for (a, b), angle in zip(planes, angles, strict=True):
        turn = np.eye(ndim)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def read_crop(
    case: PreparedCase, lo: Sequence[int], size: Sequence[int], rotation: Floats | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (C, *size) float32 in [0, 1] and label values (*size) uint8 of the box at ``lo``, rotated about its center.

    The source box is read wide enough to fill the corners; only voxels outside the volume are zero.
    """
    if rotation is None:
        hi = [low + length for low, length in zip(lo, size, strict=True)]
        return torch.from_numpy(case.image_box(lo, hi)), torch.from_numpy(case.label_box(lo, hi))
    spacing = np.asarray(case.spacing)
    matrix = (rotation * spacing) / spacing[:, None]  # output voxel offset -> source voxel offset
    half = (np.asarray(size) - 1) / 2
    corners = np.array([matrix @ (np.array(sign) * half) for sign in product((-1, 1), repeat=len(size))])
    center = np.asarray(lo) + half
    source_lo = np.floor(center + corners.min(axis=0)).astype(int)
    source_hi = np.ceil(center + corners.max(axis=0)).astype(int) + 1
    image = torch.from_numpy(case.image_box(source_lo.tolist(), source_hi.tolist()))
    label = torch.from_numpy(case.label_box(source_lo.tolist(), source_hi.tolist()))
    grid = _sampling_grid(matrix, center - source_lo, size, np.asarray(image.shape[1:]))
    turned = functional.grid_sample(image[None], grid, mode="bilinear", align_corners=True)[0]
    labels = functional.grid_sample(label[None, None].float(), grid, mode="nearest", align_corners=True)[0, 0]
    return turned, labels.to(torch.uint8)


def _sampling_grid(
    matrix: Floats, center: Floats, size: Sequence[int], source_shape: NDArray[np.int64]
) -> torch.Tensor:
    """(1, *size, ndim) in grid_sample's convention (last axis x, y, z; align_corners=True)."""
    ndim = len(size)
    axes = [torch.arange(length, dtype=torch.float64) - (length - 1) / 2 for length in size]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    positions = offsets @ torch.from_numpy(matrix).T + torch.from_numpy(center)
    scale = torch.from_numpy(np.maximum(source_shape - 1, 1).astype(np.float64))
    return (positions * (2 / scale) - 1)[..., list(range(ndim - 1, -1, -1))].float()[None]


def mirror_and_noise(
    image: torch.Tensor, label: torch.Tensor, rng: np.random.Generator, augmentation: Augmentation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip each axis with probability ``flip_p``; with ``noise_p`` add Gaussian noise of standard deviation U(0, ``noise_sd``) to the
    image."""
    ndim = label.ndim
    flips = [axis for axis, value in enumerate(rng.random(ndim)) if value < augmentation.flip_p]
    if flips:
        image = torch.flip(image, [axis + 1 for axis in flips])
        label = torch.flip(label, flips)
    drawn, deviation = rng.random() < augmentation.noise_p, rng.uniform(0, augmentation.noise_sd)
    if drawn:
        image = image + torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32) * np.float32(deviation))
    return image, label
