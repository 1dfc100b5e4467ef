"""Which voxels count as tumor and which as normal tissue when features are pooled."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dgbench.evaluation import features
from dgbench.inference.roi import Box
from dgbench.protocol import load_protocol


def test_tumor_is_the_target_and_normal_tissue_the_other_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    label = np.zeros((2, 2, 4), dtype=np.uint8)
    label[0, 0], label[1, 1, :2] = 1, 2
    case: Any = SimpleNamespace(label_box=lambda lo, hi: label)
    resolved: Any = SimpleNamespace(protocol=load_protocol("phantom"))
    monkeypatch.setattr(features, "label_roi", lambda *_: Box((0, 0, 0), label.shape))
    monkeypatch.setattr(features, "pooled_features", lambda case, box, masks, *_: [[m.argmax()] for m in masks])
    rows = features.feature_rows(case, "tumor-fine", None, resolved)  # type: ignore[arg-type]
    assert [(row["tissue"], row["n_voxels"], row["features"]) for row in rows] == [
        ("tumor", 2, [12.0]),
        ("normal", 4, [0.0]),
    ]
    label[label == 1] = 0
    assert [row["tissue"] for row in features.feature_rows(case, "tumor-fine", None, resolved)] == ["tumor"]  # type: ignore[arg-type]
