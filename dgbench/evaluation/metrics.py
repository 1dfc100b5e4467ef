"""Metrics of one case: overlap, surface distances, position, volume and lesion detection of two binary masks.

Every value is raw: ``NaN`` where it is not defined, beside flags that say why. What an undefined value counts for is
decided when tables are made (:mod:`dgbench.leaderboard.policies`).

Definitions, which differ between tools and are therefore fixed here:

- **Surface**: the foreground voxels with at least one face neighbour (connectivity 1) in the background; what lies
  beyond the image border is background (as MedPy). Distances run between voxel centers, in mm, each directed
  distance from one surface voxel to the nearest surface voxel of the other mask.
- **ASSD**: ``assd`` is the mean of the directed distances of both surfaces pooled (MedPy 0.5); ``assd_two_means`` is
  the mean of the two directed means (MedPy 0.4).
- **HD95**: ``hd95`` is the 95th percentile, linearly interpolated, of the pooled directed distances (MedPy);
  ``hd95_max`` is the larger of the two directed 95th percentiles (MONAI).
- **NSD**: the share of the surface voxels of both masks that lie within the tolerance of the other surface (Nikolov et
  al., J Med Internet Res 2021;23(7):e26151), counted in voxels. It is not area-weighted: the surface-distance package
  weights by surface area, MONAI's surface Dice without subvoxels counts as here.
- **Lesions**: components connected by faces, edges or corners (26 neighbours in 3D). The IoU of a reference lesion
  compares it with the union of all predicted components that overlap it, and the lesion is found if that IoU reaches
  ``detection_overlap`` (a localisation criterion in the sense of Maier-Hein et al., Nat Methods 2024;21:195). A predicted
  component that overlaps no found lesion is a false positive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from operator import mul
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from dgbench.data import resampling
from dgbench.errors import DgbenchError

NUMBERS = 1
"""Raised when a stored number changes its meaning or value: evaluations that differ here never share a table."""

TOLERANCE_SLACK_MM = 1e-6
"""Added to the NSD tolerance, so that a tolerance of three voxels includes three voxels whatever the rounding."""

RAGGED = 30
"""A grid of fewer voxels per surface voxel than this is transformed as a whole; a tree of the surface voxels would be slower there."""

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Box = tuple[slice, ...]


@dataclass(frozen=True, kw_only=True)
class CaseMetrics:
    """Raw metrics of one case; see the module docstring for the definitions.

    ``dsc`` and ``nsd`` lie in [0, 1]: 0 if exactly one mask is empty, ``NaN`` if both are. Distances are in mm, volumes
    in mm³. Distances are ``NaN`` if either mask is empty.
    """

    dsc: float
    nsd: float
    assd: float
    assd_two_means: float
    hd95: float
    hd95_max: float
    centroid_mm: float
    volume_reference_mm3: float
    volume_prediction_mm3: float
    empty_reference: bool
    empty_prediction: bool
    n_lesions_reference: int
    n_lesions_found: int
    n_false_positive: int


def case_metrics(
    reference: NDArray[Any],
    prediction: NDArray[Any],
    spacing: Sequence[float],
    *,
    nsd_tolerance_mm: float,
    detection_overlap: float = 0.1,
) -> CaseMetrics:
    """All metrics of one case, from one pass over the surfaces.

    Args:
        reference: mask of any dimension, (D, H, W) for volumes; any dtype, values 0 and 1.
        prediction: mask of the same shape.
        spacing: voxel size in mm, one positive number per axis, in the order of the axes.
        nsd_tolerance_mm: largest distance in mm at which a surface voxel counts as matched, ≥ 0.
        detection_overlap: IoU in (0, 1] from which a reference lesion counts as found.

    Raises:
        DgbenchError: shapes differ, a mask is not binary, or a parameter is out of range.
    """
    _check_parameters(reference, prediction, spacing, nsd_tolerance_mm, detection_overlap)
    boxes = [bounding_box(reference), bounding_box(prediction)]
    frame = _union([box for box in boxes if box is not None], reference.ndim)
    ref = _occupied(reference, boxes[0], frame, "reference")
    pred = _occupied(prediction, boxes[1], frame, "prediction")

    size_mm = np.asarray(spacing, dtype=np.float64)
    n_ref, n_pred = ref.voxels.size, pred.voxels.size
    shared, in_ref, in_pred = np.intersect1d(ref.voxels, pred.voxels, assume_unique=True, return_indices=True)
    lesions = _lesions(ref, pred, in_ref, in_pred, detection_overlap)
    surface = _surface_metrics(ref, pred, size_mm, nsd_tolerance_mm)
    shift = (ref.center() - pred.center()) * size_mm if n_ref and n_pred else np.nan
    voxel_mm3 = float(size_mm.prod())
    return CaseMetrics(
        dsc=_dice(shared.size, n_ref, n_pred),
        nsd=surface.nsd,
        assd=surface.assd,
        assd_two_means=surface.assd_two_means,
        hd95=surface.hd95,
        hd95_max=surface.hd95_max,
        centroid_mm=float(np.linalg.norm(shift)),
        volume_reference_mm3=n_ref * voxel_mm3,
        volume_prediction_mm3=n_pred * voxel_mm3,
        empty_reference=n_ref == 0,
        empty_prediction=n_pred == 0,
        n_lesions_reference=lesions.reference,
        n_lesions_found=lesions.found,
        n_false_positive=lesions.false_positive,
    )


def dice(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Dice similarity coefficient 2|A∩B| / (|A|+|B|) in [0, 1] of two masks; ``NaN`` if both are empty.

    Any nonzero value is foreground.

    Raises:
        DgbenchError: the shapes differ.
    """
    _check_shapes(a, b)
    overlap = int(np.count_nonzero(np.logical_and(a, b)))
    return _dice(overlap, int(np.count_nonzero(a)), int(np.count_nonzero(b)))


def bounding_box(mask: NDArray[Any]) -> Box | None:
    """The smallest box that holds every nonzero voxel, as one slice per axis; ``None`` if there is none."""
    found = resampling.bounding_box(mask)
    return None if found is None else tuple(map(slice, *found))


def _dice(overlap: int, n_a: int, n_b: int) -> float:
    return 2.0 * overlap / (n_a + n_b) if n_a + n_b else float("nan")


def _check_shapes(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape != b.shape:
        shapes = " and ".join("×".join(map(str, array.shape)) for array in (a, b))
        raise DgbenchError(f"masks: shapes {shapes} differ — resample both to one grid first")


def _check_parameters(
    reference: NDArray[Any],
    prediction: NDArray[Any],
    spacing: Sequence[float],
    nsd_tolerance_mm: float,
    detection_overlap: float,
) -> None:
    _check_shapes(reference, prediction)
    if len(spacing) != reference.ndim or not all(0 < size < np.inf for size in spacing):
        raise DgbenchError(
            f"spacing {tuple(spacing)}: the masks have {reference.ndim} axes — give one positive size in mm per axis"
        )
    if not 0 <= nsd_tolerance_mm < np.inf:
        raise DgbenchError(
            f"nsd_tolerance_mm {nsd_tolerance_mm}: out of range — give a finite distance in mm, at least 0"
        )
    if not 0 < detection_overlap <= 1:
        raise DgbenchError(f"detection_overlap {detection_overlap}: out of range — give a number above 0 and at most 1")


def _union(boxes: list[Box], ndim: int) -> Box:
    """The smallest box around all ``boxes``; empty if there is none."""
    axes = zip(*boxes, strict=True) if boxes else [(slice(0, 0),)] * ndim
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in axes)


class _Occupied(NamedTuple):
    """The foreground of a mask as ascending flat indices into a grid with a margin of one voxel on every side."""

    voxels: Indices
    surface: Indices
    shape: tuple[int, ...]

    def surface_points(self, size_mm: Floats) -> Floats:
        """Centers of the surface voxels in mm, (n, ndim)."""
        return np.stack(np.unravel_index(self.surface, self.shape), axis=1) * size_mm

    def center(self) -> Floats:
        """The center of mass in voxels, (ndim,)."""
        return np.array([axis.mean() for axis in np.unravel_index(self.voxels, self.shape)])

    def components(self) -> tuple[int, Indices]:
        """The number of components (26 neighbours in 3D) and the component of each voxel.

        Works on runs along the last axis: two runs touch if, moved to the same row, one begins at most one voxel
        behind the other's end. The margin keeps runs of different rows apart.
        """
        if self.voxels.size == 0:
            return 0, self.voxels
        gaps = np.flatnonzero(np.diff(self.voxels) > 1)
        first, last = self.voxels[np.r_[0, gaps + 1]], self.voxels[np.r_[gaps, -1]]
        rows = [prod(self.shape[axis:]) for axis in range(1, len(self.shape))]
        shifts = [sum(map(mul, steps, rows)) for steps in product((-1, 0, 1), repeat=len(rows))]
        edges = [_touching(first, last, shift) for shift in shifts if shift > 0]
        left, right = (np.concatenate(side) for side in zip(*edges, strict=True)) if edges else (first[:0], first[:0])
        graph = coo_array((np.ones(left.size, dtype=bool), (left, right)), shape=(first.size, first.size))
        count, of_run = connected_components(graph, directed=False)
        return int(count), np.repeat(of_run, last - first + 1).astype(np.intp)


def _touching(first: Indices, last: Indices, shift: int) -> tuple[Indices, Indices]:
    """Pairs of runs (a, b) such that ``a``, moved by ``shift`` and made one voxel longer at both ends, meets ``b``."""
    begin = np.searchsorted(last, first + shift - 1, side="left")
    count = np.searchsorted(first, last + shift + 1, side="right") - begin
    left = np.repeat(np.arange(first.size), count)
    right = np.arange(left.size) + np.repeat(begin - np.cumsum(count) + count, count)
    return left, right


def _occupied(mask: NDArray[Any], box: Box | None, frame: Box, name: str) -> _Occupied:
    """The foreground of ``mask``, all of it inside ``box``, as indices into ``frame`` with a margin of one voxel."""
    shape = tuple(side.stop - side.start + 2 for side in frame)
    nothing = np.empty(0, dtype=np.intp)
    if box is None:
        return _Occupied(nothing, nothing, shape)
    grid = np.zeros(shape, dtype=bool)
    inner = grid[tuple(slice(b.start - f.start + 1, b.stop - f.start + 1) for b, f in zip(box, frame, strict=True))]
    np.not_equal(mask[box], 0, out=inner)
    if not np.array_equal(mask[box], inner):
        raise DgbenchError(f"{name}: the mask holds values other than 0 and 1 — pass one label as a binary mask")
    flat = grid.ravel()
    voxels = np.flatnonzero(flat)
    interior = np.ones(voxels.size, dtype=bool)
    for step in grid.strides:
        interior &= flat[voxels - step]
        interior &= flat[voxels + step]
    return _Occupied(voxels, voxels[~interior], shape)


class _Surface(NamedTuple):
    nsd: float
    assd: float
    assd_two_means: float
    hd95: float
    hd95_max: float


def _surface_metrics(reference: _Occupied, prediction: _Occupied, size_mm: Floats, tolerance_mm: float) -> _Surface:
    """NSD and distances between two surfaces on the same grid with voxels of ``size_mm``."""
    nan = float("nan")
    counts = (reference.surface.size, prediction.surface.size)
    if not all(counts):
        return _Surface(0.0 if any(counts) else nan, nan, nan, nan, nan)
    nearest = _nearest_by_transform if prod(reference.shape) < RAGGED * sum(counts) else _nearest_by_tree
    directed = (nearest(reference, prediction, size_mm), nearest(prediction, reference, size_mm))
    pooled = np.concatenate(directed)
    return _Surface(
        nsd=float(np.mean(pooled <= tolerance_mm + TOLERANCE_SLACK_MM)),
        assd=float(pooled.mean()),
        assd_two_means=float(np.mean([distances.mean() for distances in directed])),
        hd95=float(np.percentile(pooled, 95)),
        hd95_max=float(max(np.percentile(distances, 95) for distances in directed)),
    )


def _nearest_by_tree(points: _Occupied, targets: _Occupied, size_mm: Floats) -> Floats:
    """The distance of each surface voxel to the nearest target surface voxel in mm, (n,): few points in a large grid."""
    tree = cKDTree(targets.surface_points(size_mm), leafsize=32, balanced_tree=False, compact_nodes=False)
    distances, _ = tree.query(points.surface_points(size_mm))
    return np.asarray(distances, dtype=np.float64)


def _nearest_by_transform(points: _Occupied, targets: _Occupied, size_mm: Floats) -> Floats:
    """The same from a distance transform of the whole grid: ragged masks, whose surface fills it."""
    outside = np.ones(targets.shape, dtype=bool)
    outside.ravel()[targets.surface] = False
    distances = distance_transform_edt(outside, sampling=size_mm)
    return np.asarray(distances, dtype=np.float64).ravel()[points.surface]


class _Lesions(NamedTuple):
    reference: int
    found: int
    false_positive: int


def _lesions(
    reference: _Occupied, prediction: _Occupied, in_reference: Indices, in_prediction: Indices, detection_overlap: float
) -> _Lesions:
    """Lesion counts, given the positions of the shared voxels in both lists of voxels."""
    n_reference, of_reference = reference.components()
    n_prediction, of_prediction = prediction.components()
    pairs = of_reference[in_reference] * n_prediction + of_prediction[in_prediction]
    pairs, overlaps = np.unique(pairs, return_counts=True)
    lesion, candidate = np.divmod(pairs, max(n_prediction, 1))
    overlap = np.bincount(lesion, weights=overlaps, minlength=n_reference)
    candidates = np.bincount(lesion, weights=np.bincount(of_prediction)[candidate], minlength=n_reference)
    iou = overlap / (np.bincount(of_reference) + candidates - overlap)
    found = iou >= detection_overlap
    matched = np.unique(candidate[found[lesion]])
    return _Lesions(n_reference, int(found.sum()), n_prediction - matched.size)
