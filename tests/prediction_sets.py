"""Imported prediction sets of cubes, with closed-form DSC."""

from pathlib import Path
from typing import Any

import numpy as np
from leaderboard_runs import PROTOCOL

from dgbench.evaluation.imported import PredictedCase, import_predictions
from dgbench.store.folder import RunFolder

SPACING = (2.0, 1.0, 1.0)
SAME: dict[str, Any] = {"evaluated": {"fingerprint": "these", "content": "these"}, "data": {"phantom": "fee1dead" * 8}}
"""What makes a set one of the cases of hand-built runs that are ``evaluated="these"``."""


def cube(case: str, shift: int = 0) -> PredictedCase:
    """A cube of 4×4×4 voxels and itself moved: DSC 1 − shift/4."""
    reference = np.zeros((8, 12, 12), bool)
    reference[2:6, 4:8, 4:8] = True
    return case, np.roll(reference, shift, axis=1), reference, SPACING


def of_arrays(runs: Path, *cases: PredictedCase, heldout: str = "MSD", **changes: Any) -> RunFolder:
    return import_predictions(
        cases,
        **{"name": "closed", "heldout": heldout, "protocol": PROTOCOL, "preset": "bench", "runs": runs, **changes},
    )
