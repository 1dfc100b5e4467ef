"""What the cascade answers, on the grid of the scan: predictions are made on the task grid and measured there."""

import numpy as np
from numpy.typing import NDArray

from dgbench.data.preparation import PreparedCase, to_native
from dgbench.inference.cascade import StageResult
from dgbench.inference.roi import Box, paste


def native_mask(
    prepared: PreparedCase, result: StageResult, threshold: float, component_fraction: float | None
) -> NDArray[np.bool_]:
    """The answer at ``threshold`` on the case's own grid: components are filtered on the task grid, and the probabilities without the
    dropped ones are resampled linearly and thresholded there."""
    dropped = result.filtered(threshold, None) & ~result.filtered(threshold, component_fraction)
    kept = np.where(dropped, 0, result.levels).astype(np.float32) / 255
    part, lo = to_native(prepared, kept, result.box.lo)
    hi = tuple(low + length for low, length in zip(lo, part.shape, strict=True))
    return paste(part >= max(threshold, 0.5 / 255), Box(tuple(lo), hi), prepared.native.size)
