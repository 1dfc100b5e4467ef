"""Source validation: Dice on label ROIs with a fixed margin, one pass, no flips (protocol.md §3)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from dgbench.data.preparation import PreparedCase
from dgbench.evaluation.metrics import dice
from dgbench.inference.cascade import CHAIN_THRESHOLD, label_roi, predict_box
from dgbench.inference.predictor import Predictor
from dgbench.method import Method
from dgbench.protocol import ResolvedProtocol


def stage_predictor(
    method: Method[Any], stage: str, resolved: ResolvedProtocol, device: torch.device, precision: str, *, tta: bool
) -> Predictor:
    """A predictor with the settings that ``resolved`` gives to ``stage``."""
    inference = resolved.protocol.inference
    window = resolved.preset.stages[stage].crop
    return Predictor(method, window, inference.whole_roi_voxels, inference.window_overlap, tta, device, precision)


def validate(
    cases: Sequence[PreparedCase],
    stage: str,
    predictor: Predictor,
    resolved: ResolvedProtocol,
    beat: Callable[[], None] = lambda: None,
) -> list[float]:
    """Dice (0..1) at threshold 0.5 of each case, inside its label ROI; NaN where reference and prediction are both empty. ``beat`` is
    called after each case."""
    settings = resolved.protocol.stages[stage]
    scores = []
    for case in cases:
        box = label_roi(case, stage, resolved)
        probability, _ = predict_box(case, box, predictor, settings.downsample)
        reference = np.isin(case.label_box(box.lo, box.hi), settings.target)
        scores.append(dice(reference, probability >= CHAIN_THRESHOLD))
        beat()
    return scores
