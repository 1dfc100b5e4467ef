"""The slice of a held-out case that overlay figures show, taken while its predictions are at hand."""

from collections.abc import Mapping

import numpy as np

from dgbench.data.preparation import FULL_SCALE, PreparedCase
from dgbench.evaluation.metrics import dice
from dgbench.inference.cascade import CHAIN_THRESHOLD, StageResult
from dgbench.protocol import Protocol
from dgbench.store.slices import CaseSlice


def case_slice(case: PreparedCase, protocol: Protocol, found: Mapping[str, StageResult]) -> CaseSlice:
    """Reference, pancreas, coarse and fine tumor of the `Seg` chain on the task grid; ``found`` holds the results of all stages.

    Pancreas is the last shared stage (empty and without a DSC where there is none), coarse and fine the first and the last of the method's
    own.
    """
    labels = np.asarray(case.label)
    own = [name for name in protocol.stages if name not in protocol.shared_stages]
    shown = {"coarse": own[0], "fine": own[-1]}
    if protocol.shared_stages:
        shown["pancreas"] = protocol.shared_stages[-1]
    masks = {
        panel: found[name].mask(CHAIN_THRESHOLD, protocol.inference.component_fraction) for panel, name in shown.items()
    }
    references = {panel: np.isin(labels, protocol.stages[name].target) for panel, name in shown.items()}
    nothing = np.zeros(labels.shape, dtype=bool)
    return CaseSlice.from_volumes(
        case.case.id,
        np.asarray(case.image)[0].astype(np.float32) / FULL_SCALE,
        {
            "reference_pancreas": references.get("pancreas", nothing),
            "reference_tumor": references["fine"],
            "pancreas": masks.get("pancreas", nothing),
            "tumor_coarse": masks["coarse"],
            "tumor_fine": masks["fine"],
        },
        case.spacing,
        dsc={panel: dice(references[panel], mask) for panel, mask in masks.items()},
        window=(0.0, 1.0),
    )
