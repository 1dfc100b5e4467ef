"""Reading a case: an image and its label on one grid, in one orientation, with values the task can use, or one line that says why not."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dgbench.data import guard
from dgbench.data.case import Case
from dgbench.data.nifti import Nifti, load_nifti
from dgbench.errors import DgbenchError
from dgbench.task import Task

GRID_TOLERANCE_MM = 0.1
SHOWN_VALUES = 6


@dataclass(frozen=True)
class Grid:
    """Where voxels lie. ``size`` and ``spacing`` (mm) are in array order (z,y,x); ``origin`` (mm) and ``direction`` (row-major cosines) are
    ITK's: world order (x,y,z), pointing to the patient's left, posterior, superior. In two dimensions each has two axes."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def corners(self) -> NDArray[np.float64]:
        """World coordinates (2**ndim, ndim) in mm of the outermost voxel centers."""
        ndim = len(self.size)
        steps = np.array(list(np.ndindex((2,) * ndim))) * (np.array(self.size) - 1) * np.array(self.spacing)
        result: NDArray[np.float64] = steps[:, ::-1] @ np.array(self.direction).reshape(ndim, ndim).T + self.origin
        return result


@dataclass(frozen=True)
class Volume:
    """One file on its canonical grid: ``array`` (D,H,W), or (H,W) of a two-dimensional file, in its stored type."""

    array: NDArray[Any]
    grid: Grid


@dataclass(frozen=True)
class CaseVolumes:
    """One case: ``image`` float32 in its own unit (HU for CT) and ``label`` uint8, both (D,H,W), or (H,W) for a task in two dimensions."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    grid: Grid


def read_volume(path: Path, *, what: str) -> Volume:
    """Read one ``.nii.gz`` file, turned to the canonical LPS order of axes (``sitk.DICOMOrient``), so that it does not matter how a center
    stored it: index 0 is inferior, anterior, right.

    Intensity slope and intercept are applied. ``what`` starts every message. Raises DgbenchError as
    :func:`dgbench.data.nifti.load_nifti` does.
    """
    nifti = load_nifti(path, what)
    array = nifti.array
    if nifti.scaled:
        with np.errstate(over="ignore"):  # refused with a line of our own
            array = array * np.float64(nifti.slope) + nifti.intercept
        array = _float32(array, f"{what} {path}")
    return _canonical(array, path, what)


def read_image(case: Case, task: Task) -> tuple[NDArray[np.float32], Grid]:
    """The image of ``case`` in its own unit, float32 (D,H,W) or (H,W), and its grid. Raises DgbenchError, HeldOutAccessError."""
    guard.check(case)
    if task.in_channels != 1:
        raise DgbenchError(
            f"case {case.id}: the protocol asks for {task.in_channels} channels, an image file holds one"
        )
    what = f"case {case.id}: image"
    volume = _fit(read_volume(case.image, what=what), task.ndim, what)
    return _float32(volume.array, f"{what} {case.image}"), volume.grid


def read_label(case: Case, task: Task, labels: Collection[int]) -> tuple[NDArray[np.uint8], Grid]:
    """The reference label map of ``case``, uint8 (D,H,W) or (H,W) with values in ``labels`` and 0, and its grid.

    Raises DgbenchError when a value is not a whole number or not among ``labels``, or the file carries an intensity scale;
    HeldOutAccessError when a guard forbids the case.
    """
    guard.check(case)
    return read_label_map(case.label, task, labels, what=f"case {case.id}: label")


def read_label_map(path: Path, task: Task, labels: Collection[int], *, what: str) -> tuple[NDArray[np.uint8], Grid]:
    """Any file of label values, checked as those of a case; ``what`` starts every message. See :func:`read_label`."""
    nifti = load_nifti(path, what)
    values = _label_values(nifti, labels, what)
    volume = _fit(_canonical(values, path, what), task.ndim, what)
    return volume.array, volume.grid


def read_case(case: Case, task: Task, labels: Collection[int]) -> CaseVolumes:
    """Image and label of ``case``, checked to lie on one grid (corners within 0.1 mm).

    ``labels`` are the label values of the protocol; 0 is background. Raises DgbenchError with one line that holds both values of what does
    not fit; HeldOutAccessError when a guard forbids the case.
    """
    image, grid = read_image(case, task)
    label, label_grid = read_label(case, task, labels)
    difference = grid_difference(label_grid, grid)
    if difference:
        raise DgbenchError(f"case {case.id}: label grid {difference} — draw or resample the label on its image")
    return CaseVolumes(image, label, grid)


def grid_difference(first: Grid, second: Grid) -> str | None:
    """What differs between the grid of a label and that of an image, with both values; None where they agree within 0.1 mm."""
    if first.size != second.size:
        return f"{_times(first.size)} differs from image {_times(second.size)}"
    distance = float(np.linalg.norm(first.corners() - second.corners(), axis=1).max())
    if distance <= GRID_TOLERANCE_MM:
        return None
    shift = math.dist(first.origin, second.origin)
    stretch = max(abs(a - b) * (n - 1) for a, b, n in zip(first.spacing, second.spacing, first.size, strict=True))
    if stretch > GRID_TOLERANCE_MM:
        return f"spacing {_times(first.spacing)} mm differs from image {_times(second.spacing)} mm"
    if shift > GRID_TOLERANCE_MM:
        return f"origin {_tuple(first.origin)} differs from image {_tuple(second.origin)} by {shift:.1f} mm"
    return f"direction {_tuple(first.direction)} differs from image {_tuple(second.direction)}, up to {distance:.1f} mm"


def _float32(array: NDArray[Any], what: str) -> NDArray[np.float32]:
    """``array`` in single precision. Raises DgbenchError for values beyond it, which would become infinite."""
    with np.errstate(over="ignore"):
        single: NDArray[np.float32] = array.astype(np.float32, copy=False)
    if array.dtype == np.float64 and not np.isfinite(single).all():
        raise DgbenchError(
            f"{what} has intensities up to {np.abs(array).max():g}, more than 32 bits hold — check its intensity slope and values"
        )
    return single


def _canonical(array: NDArray[Any], path: Path, what: str) -> Volume:
    """``array`` in stored order with the geometry that ITK reads from the header of ``path``, turned to LPS."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DgbenchError(
            f"{what} {path} has a geometry that ITK refuses: {str(error).splitlines()[-1].strip()}"
        ) from None
    rank, ndim = reader.GetDimension(), array.ndim
    direction = np.eye(3)
    direction[:ndim, :ndim] = np.array(reader.GetDirection()).reshape(rank, rank)[:ndim, :ndim]
    image = sitk.GetImageFromArray(array.reshape((1,) * (3 - ndim) + array.shape))
    image.SetSpacing([*reader.GetSpacing()[:ndim], *[1.0] * (3 - ndim)])
    image.SetOrigin([*reader.GetOrigin()[:ndim], *[0.0] * (3 - ndim)])
    image.SetDirection(direction.ravel().tolist())
    image = sitk.DICOMOrient(image, "LPS")
    grid = Grid(image.GetSize()[::-1], image.GetSpacing()[::-1], image.GetOrigin(), image.GetDirection())
    volume = Volume(sitk.GetArrayFromImage(image), grid)
    return volume if ndim == 3 else _flat(volume)


def _flat(volume: Volume) -> Volume:
    """The only slice of a volume, as a two-dimensional one."""
    grid = volume.grid
    cosines = np.array(grid.direction).reshape(3, 3)[:2, :2].ravel().tolist()
    return Volume(volume.array[0], Grid(grid.size[1:], grid.spacing[1:], grid.origin[:2], tuple(cosines)))


def _fit(volume: Volume, ndim: int, what: str) -> Volume:
    """``volume`` in the dimensions of the task; a stack of one slice counts as two-dimensional."""
    if ndim == 2 and volume.array.ndim == 3 and len(volume.array) == 1:
        return _flat(volume)
    if volume.array.ndim != ndim:
        raise DgbenchError(
            f"{what} has {volume.array.ndim} dimensions ({_times(volume.array.shape)}), the task has {ndim}"
        )
    return volume


def _label_values(nifti: Nifti, labels: Collection[int], what: str) -> NDArray[np.uint8]:
    """The stored label values as uint8. Raises DgbenchError when they are not whole numbers among ``labels`` and 0."""
    array, allowed = nifti.array, sorted({0, *labels})
    if nifti.scaled:
        raise DgbenchError(
            f"{what} carries an intensity scale (slope {nifti.slope:g}, intercept {nifti.intercept:g}) — store labels as they are"
        )
    fits = np.zeros(array.shape, bool)
    for value in allowed:
        fits |= array == value
    if fits.all():
        return array.astype(np.uint8)
    wrong = np.unique(array[~fits])
    if (wrong != np.rint(wrong)).any():
        raise DgbenchError(
            f"{what} has values that are not whole numbers ({_some(wrong)}): a soft label? — threshold it to {allowed}"
        )
    hint = "an 8-bit mask?" if wrong.tolist() == [255] else "another label set?"
    raise DgbenchError(
        f"{what} has the values {_some(wrong)}, the protocol allows {', '.join(map(str, allowed))}: {hint} — map its labels"
    )


def _some(values: NDArray[Any]) -> str:
    shown = ", ".join(f"{float(value):g}" for value in values[:SHOWN_VALUES])
    return shown if len(values) <= SHOWN_VALUES else f"{shown}, … ({len(values)} values)"


def _times(values: Sequence[float]) -> str:
    return "×".join(f"{value:g}" for value in values)


def _tuple(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"
