"""Which step is selected: when a stage is validated, and the number that picks the best. Needs no torch."""

from collections.abc import Sequence

import numpy as np


def validation_steps(total: int, count: int) -> frozenset[int]:
    """``count`` equal fractions of the budget, the last one its end."""
    return frozenset(max(1, round(total * (index + 1) / count)) for index in range(count))


def center_mean(scores: Sequence[float], centers: Sequence[str]) -> float:
    """The mean over centers of the mean over cases; cases without a value are left out."""
    means = []
    for center in sorted(set(centers)):
        own = [score for score, name in zip(scores, centers, strict=True) if name == center and not np.isnan(score)]
        if own:
            means.append(float(np.mean(own)))
    return float(np.mean(means)) if means else float("nan")
