"""Moving image and label together: rotation, scaling and elastic deformation as one sampling grid.

A warp says where each output voxel is read: at ``c + matrix (p - c + displacement(p))``, with p the output voxel and c the center of
the grid, in voxels.
"""

from collections.abc import Sequence
from itertools import combinations
from math import cos, pi, radians, sin

import torch
from torch import Tensor
from torch.nn import functional as F

from dgbench.ops.sharpness import filter_axis, gaussian_weights

_LATTICE_STEP = 4
"""Voxels between the nodes of an elastic field, if its sigma allows."""

_STEPS_PER_SIGMA = 2.5
"""With this many nodes in one sigma, linear interpolation between them is within a few percent of the smooth field."""

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def rotation_matrix(degrees: Sequence[float], spacing: Sequence[float]) -> Tensor:
    """Rotation in millimetres, as a map of voxel offsets from the output to the source.

    Args:
        degrees: one angle for each plane of axes, in the order (0, 1), (0, 2), (1, 2) in 3D and (0, 1) in 2D; the turns are multiplied
            in that order.
        spacing: voxel size on each axis, mm.

    Returns:
        (ndim, ndim) float64 on the CPU; proper and rigid in mm, so not orthogonal where the spacing differs by axis.

    Raises:
        ValueError: not one angle for each plane.
    """
    ndim = len(spacing)
    matrix = torch.eye(ndim, dtype=torch.float64)
    for (a, b), angle in zip(combinations(range(ndim), 2), degrees, strict=True):
        turn = torch.eye(ndim, dtype=torch.float64)
        turn[a, a] = turn[b, b] = cos(radians(angle))
        turn[a, b], turn[b, a] = -sin(radians(angle)), sin(radians(angle))
        matrix = matrix @ turn
    size = torch.tensor(spacing, dtype=torch.float64)
    return matrix * size / size[:, None]


def elastic_deviation(ndim: int, sigma: float, amplitude: float) -> float:
    """Standard deviation (voxels) of the displacement on each axis in :func:`elastic_displacement`:
    ``amplitude / sqrt(3) * (2 sqrt(pi) sigma)^(-ndim / 2)``, that of smoothed white noise from U(-1, 1)."""
    return float(amplitude / 3**0.5 * (2 * pi**0.5 * sigma) ** (-ndim / 2))


def elastic_displacement(shape: Sequence[int], generator: torch.Generator, *, sigma: float, amplitude: float) -> Tensor:
    """White noise smoothed by a Gaussian and scaled: the elastic deformation of BigAug (Zhang et al., TMI 2020).

    The published field is ``amplitude`` times noise from U(-1, 1) per voxel, smoothed by ``sigma``. A sum of so many voxels is normal, so
    the field is drawn from the normal distribution of the same variance, on nodes up to 4 voxels apart that reach beyond the border,
    and interpolated: 64 times fewer draws, and no weaker or stronger at the border.

    Args:
        shape: spatial sides.
        generator: source of the draws; its device is that of the result.
        sigma: width of the Gaussian, voxels, positive.
        amplitude: factor of the smoothed noise, voxels.

    Returns:
        (ndim, *shape) float32 displacements in voxels, of the deviation that :func:`elastic_deviation` gives.
    """
    ndim = len(shape)
    step = max(1, min(_LATTICE_STEP, int(sigma / _STEPS_PER_SIGMA)))
    weights = gaussian_weights(sigma / step)
    nodes = [-(-(side - 1) // step) + 1 for side in shape]
    size = [count + len(weights) - 1 for count in nodes]
    field = torch.randn(1, ndim, *size, generator=generator, device=generator.device)
    field = field * float(amplitude / 3**0.5 * step ** (-ndim / 2))
    for axis in range(2, ndim + 2):
        field = filter_axis(field, weights, axis)
    dense = [(count - 1) * step + 1 for count in nodes]
    field = F.interpolate(field, size=dense, mode=_LINEAR[ndim], align_corners=True)[0]
    return field[(slice(None), *(slice(side) for side in shape))]


def warp(image: Tensor, label: Tensor, matrix: Tensor, displacement: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Read image (linear) and label (nearest voxel) of one case at the same positions; outside both are 0.

    Args:
        image: (C, *spatial).
        label: (c, *spatial).
        matrix: (ndim, ndim) map of voxel offsets from the center, output to source: :func:`rotation_matrix`, divided by s to show
            everything s times as large.
        displacement: (ndim, *spatial) in voxels, added before the matrix is applied; None for none.

    Returns:
        Image and label of the same shapes and dtypes. The label has no values but its own and 0.
    """
    shape = image.shape[1:]
    offsets = []
    for axis, side in enumerate(shape):
        along = torch.arange(side, device=image.device, dtype=torch.float32) - (side - 1) / 2
        along = along.view([side if other == axis else 1 for other in range(len(shape))])
        offsets.append(along if displacement is None else along + displacement[axis])
    rows = matrix.tolist()
    grid = torch.empty((1, *shape, len(shape)), device=image.device)
    for axis, side in enumerate(shape):  # grid_sample wants the last axis first
        position = sum(factor * offset for factor, offset in zip(rows[axis], offsets, strict=True))
        grid[0, ..., len(shape) - 1 - axis] = position * (2 / max(side - 1, 1))
    moved = F.grid_sample(image[None].float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    labels = F.grid_sample(label[None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=True)
    return moved[0].to(image.dtype), labels[0].to(label.dtype)
