"""Preparing a case (read, resample, window, cache): dgbench against MONAI's LoadImage + Spacing route, alternating in one process.

Run ``python benchmarks/preparation.py [--size 120 256 256] [--repeats 3]``. Prints seconds per case and the ratio of the medians; the
target is a ratio of at least 3. Both read the same image and label, resample to 1.5×0.8×0.8 mm, window to [0, 1] and write .npy files.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dgbench.data import preparation
from dgbench.data.case import Case
from dgbench.protocol import Protocol, load_protocol
from dgbench.task import Task, Window

SPACING = (1.5, 0.8, 0.8)
WINDOW = Window(low=-100, high=240)


def write_case(folder: Path, size: tuple[int, int, int]) -> Case:
    """A noisy body with a pancreas-sized structure and a lesion in it, at 2.5×0.74×0.74 mm."""
    z, y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in size)]
    noise = np.random.default_rng(0).normal(0, 15, size)
    image = np.where(y**2 + x**2 < 0.7, 50 + noise, -1000).astype(np.int16)
    organ = (z / 0.25) ** 2 + (y / 0.12) ** 2 + (x / 0.3) ** 2 < 1
    lesion = (z / 0.1) ** 2 + (y / 0.08) ** 2 + ((x - 0.1) / 0.08) ** 2 < 1
    paths = folder / "image.nii.gz", folder / "label.nii.gz"
    for path, array in zip(paths, (image, organ.astype(np.uint8) + (organ & lesion)), strict=True):
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing((0.74, 0.74, 2.5))
        sitk.WriteImage(volume, str(path))
    return Case("A", "1", *paths)


def monai_route(case: Case, folder: Path) -> None:
    """The route of a MONAI tutorial: dictionary transforms, bilinear image, nearest label; then saved as .npy."""
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        Orientationd,
        ScaleIntensityRanged,
        Spacingd,
    )

    keys = ["image", "label"]
    transform = Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=None),
            Spacingd(keys, pixdim=SPACING[::-1], mode=("bilinear", "nearest")),
            ScaleIntensityRanged(["image"], a_min=WINDOW.low, a_max=WINDOW.high, b_min=0, b_max=1, clip=True),
        ]
    )
    result = transform({"image": str(case.image), "label": str(case.label)})
    np.save(folder / "image.npy", result["image"].numpy())
    np.save(folder / "label.npy", result["label"].numpy().astype(np.uint8))


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, nargs=3, default=(120, 256, 256))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    protocol: Protocol = load_protocol("phantom").model_copy(update={"task": Task(spacing=SPACING, intensity=WINDOW)})
    times: dict[str, list[float]] = {"dgbench": [], "monai": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = write_case(folder, tuple(arguments.size))
        monai_route(case, folder)  # imports and warms up
        for repeat in range(arguments.repeats):
            cache = folder / str(repeat)
            times["dgbench"].append(seconds(partial(preparation.prepare_case, case, protocol, cache)))
            times["monai"].append(seconds(partial(monai_route, case, folder)))
    for route, taken in times.items():
        print(f"{route:8s} {statistics.median(taken):.2f} s  ({', '.join(f'{each:.2f}' for each in taken)})")
    print(f"ratio    {statistics.median(times['monai']) / statistics.median(times['dgbench']):.1f}")


if __name__ == "__main__":
    main()
