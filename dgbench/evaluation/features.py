"""Features pooled over tumor and over normal tissue, for the embeddings of the paper's Fig. 6."""

from typing import Any

import numpy as np

from dgbench.data.preparation import PreparedCase
from dgbench.inference.cascade import label_roi, pooled_features
from dgbench.inference.predictor import Predictor
from dgbench.protocol import ResolvedProtocol

TISSUES = ("tumor", "normal")


def feature_rows(
    case: PreparedCase, stage: str, predictor: Predictor, resolved: ResolvedProtocol
) -> list[dict[str, Any]]:
    """One row per tissue that occurs in the label ROI of ``stage``: ``tissue``, ``n_voxels`` and ``features``, the mean of the decoder's
    last feature over it. Tumor is what the stage segments, normal tissue every other labelled voxel (the pancreas around a tumor)."""
    protocol = resolved.protocol
    target = protocol.stages[stage].target
    other = [value for value in protocol.labels.values() if value not in target]
    box = label_roi(case, stage, resolved)
    label = case.label_box(box.lo, box.hi)
    masks = np.stack([np.isin(label, target), np.isin(label, other)])
    pooled = pooled_features(case, box, masks, predictor, protocol.stages[stage].downsample)
    return [
        {"tissue": tissue, "n_voxels": int(mask.sum()), "features": [float(value) for value in row]}
        for tissue, mask, row in zip(TISSUES, masks, pooled, strict=True)
        if mask.any()
    ]
