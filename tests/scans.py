"""Small synthetic scans on disk, for the tests of resampling, preparation and fingerprints."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dgbench.data.case import Case

SIZE = (9, 20, 24)


SPACING = (5.0, 0.9, 0.7)


def scan(size=SIZE) -> np.ndarray:
    return np.random.default_rng(1).normal(70, 150, size).astype(np.int16)


def mask(size=SIZE) -> np.ndarray:
    z, y, x = np.ogrid[tuple(slice(n) for n in size)]
    organ = ((z - 4) / 3) ** 2 + ((y - 10) / 6) ** 2 + ((x - 12) / 8) ** 2 <= 1
    lesion = ((z - 4) / 1.5) ** 2 + ((y - 10) / 3) ** 2 + ((x - 14) / 3) ** 2 <= 1
    return organ.astype(np.uint8) + (organ & lesion)


def save(path: Path, array: np.ndarray, spacing=SPACING) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(step) for step in spacing[::-1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def make_case(
    folder: Path, name: str = "1", image: np.ndarray | None = None, label: np.ndarray | None = None, center: str = "A"
) -> Case:
    parts = (folder / center / part / f"{name}.nii.gz" for part in ("imagesTr", "labelsTr"))
    case = Case(center, name, *parts)
    save(case.image, scan() if image is None else image)
    save(case.label, mask() if label is None else label)
    return case


def itk_linear(array: np.ndarray, spacing, size, new) -> np.ndarray:
    """ITK's answer; NaN beyond half a voxel after the last center, where ITK has none."""
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing([float(step) for step in spacing[::-1]])
    resample = sitk.ResampleImageFilter()
    resample.SetSize([int(n) for n in size[::-1]])
    resample.SetOutputSpacing([float(step) for step in new[::-1]])
    resample.SetDefaultPixelValue(np.nan)
    resample.SetInterpolator(sitk.sitkLinear)
    return sitk.GetArrayFromImage(resample.Execute(image))
