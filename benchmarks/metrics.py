"""Time the case metrics against MedPy, MONAI and scipy's distance transform, all in one process.

Usage: python benchmarks/metrics.py [--repeats N]

The pair is a curved organ of about 45,000 voxels on a 120×512×512 grid and a displaced, rougher copy of it; a second
pair has its masks far apart. Every tool computes DSC, ASSD and HD95, ours all its metrics. Printed are the least CPU
time of N runs on one thread (the slow tools run once or twice), its ratio to ours, and the peak of newly allocated
memory. CPU time makes the ratios hold on a machine that is busy with other work.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from medpy.metric import binary
from monai.metrics import compute_dice, compute_hausdorff_distance
from monai.metrics.surface_distance import compute_average_surface_distance
from numpy.typing import NDArray
from scipy import ndimage

from dgbench.evaluation.metrics import bounding_box, case_metrics

SHAPE = (120, 512, 512)
SPACING = (2.5, 0.8, 0.8)
Mask = NDArray[np.bool_]
Values = tuple[float, float, float]
Tool = Callable[[Mask, Mask], Values]


def organ(offset: Sequence[int], roughness: float, seed: int) -> Mask:
    """A bent tube with a rough surface, moved by ``offset`` voxels."""
    shape = (50, 120, 240)
    z, y, x = (axis - size / 2 for axis, size in zip(np.ogrid[tuple(map(slice, shape))], shape, strict=True))
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (1, 3, 3))
    bend = y - 25 * np.cos(x / 40)
    tube = np.hypot(z / 8, bend / 14) + (x / 90) ** 4 + roughness * noise / noise.std() < 1
    mask = np.zeros(SHAPE, dtype=bool)
    mask[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))] = tube
    return mask


def ours(reference: Mask, prediction: Mask) -> Values:
    got = case_metrics(reference, prediction, SPACING, nsd_tolerance_mm=2)
    return got.dsc, got.assd, got.hd95


def cropped_distance_transform(reference: Mask, prediction: Mask) -> Values:
    """Surfaces and scipy's exact distance transform on the box around both masks."""
    box = bounding_box(reference | prediction)
    masks = [np.pad(mask[box], 1) for mask in (reference, prediction)]
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    maps = [ndimage.distance_transform_edt(~surface, sampling=SPACING) for surface in surfaces]
    pooled = np.concatenate([maps[1][surfaces[0]], maps[0][surfaces[1]]])
    dsc = 2 * np.count_nonzero(masks[0] & masks[1]) / (np.count_nonzero(masks[0]) + np.count_nonzero(masks[1]))
    return dsc, pooled.mean(), np.percentile(pooled, 95)


def medpy(reference: Mask, prediction: Mask) -> Values:
    return (
        binary.dc(prediction, reference),
        binary.assd(prediction, reference, SPACING),
        binary.hd95(prediction, reference, SPACING),
    )


def monai(reference: Mask, prediction: Mask) -> Values:
    """Its HD95 is the maximum of the directed percentiles, its symmetric ASD the pooled mean."""
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
    options: dict[str, Any] = {"include_background": True, "spacing": SPACING}
    return (
        compute_dice(*pair).item(),
        compute_average_surface_distance(*pair, symmetric=True, **options).item(),
        compute_hausdorff_distance(*pair, percentile=95, **options).item(),
    )


def best_ms(tool: Tool, pair: tuple[Mask, Mask], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        tool(*pair)
        times.append(time.process_time() - start)
    return 1000 * min(times)


def values_and_peak_mb(tool: Tool, pair: tuple[Mask, Mask]) -> tuple[Values, float]:
    """The values and the peak of memory that numpy and Python newly allocate; what torch allocates is not seen."""
    tracemalloc.start()
    values = tool(*pair)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return values, peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="runs of the fast tools, of which the best counts")
    repeats = parser.parse_args().repeats
    tools = {
        "ours": (ours, repeats),
        "scipy, cropped": (cropped_distance_transform, repeats),
        "MONAI": (monai, 2),
        "MedPy": (medpy, 1),
    }
    torch.set_num_threads(1)
    reference = organ((30, 200, 120), 0.03, seed=1)
    predictions = {"overlapping": organ((32, 205, 126), 0.08, seed=2), "far apart": organ((70, 20, 270), 0.08, seed=2)}
    print(f"grid {'×'.join(map(str, SHAPE))}, reference {np.count_nonzero(reference):,} voxels")
    for name, prediction in predictions.items():
        print(f"\n{name}: prediction {np.count_nonzero(prediction):,} voxels")
        print(f"{'tool':16s}{'CPU ms':>10s}{'× ours':>9s}{'peak MB':>9s}   DSC, ASSD, HD95")
        pair = (reference, prediction)
        base = np.nan
        for label, (tool, runs) in tools.items():
            if tool is medpy and name == "far apart":
                continue  # half a minute each time, whatever the masks
            spent = best_ms(tool, pair, runs)
            base = spent if tool is ours else base
            values, peak = values_and_peak_mb(tool, pair)
            shown = ", ".join(f"{value:.6f}" for value in values)
            print(f"{label:16s}{spent:10.1f}{spent / base:9.1f}{peak:9.0f}   {shown}", flush=True)


if __name__ == "__main__":
    main()
