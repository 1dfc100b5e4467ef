"""The slice of a held-out case that overlay figures show, taken while its predictions are at hand."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dgbench.data.preparation import FULL_SCALE, PreparedCase
from dgbench.evaluation.metrics import dice
from dgbench.inference.cascade import CHAIN_THRESHOLD, StageResult
from dgbench.inference.native import native_mask
from dgbench.protocol import Protocol
from dgbench.store.slices import CaseSlice


def case_slice(
    case: PreparedCase, protocol: Protocol, found: Mapping[str, StageResult], reference: NDArray[np.uint8]
) -> CaseSlice:
    """Reference, pancreas, coarse and fine tumor of the `Seg` chain on the task grid, and what DSC they reach on the grid of the scan, of
    which ``reference`` is the label map. ``found`` holds the results of all stages.

    Pancreas is the last shared stage (empty and without a DSC where there is none), coarse and fine the first and the last of the method's
    own.
    """
    labels, fraction = np.asarray(case.label), protocol.inference.component_fraction
    own = [name for name in protocol.stages if name not in protocol.shared_stages]
    shown = {"coarse": own[0], "fine": own[-1]}
    if protocol.shared_stages:
        shown["pancreas"] = protocol.shared_stages[-1]
    masks = {panel: found[name].mask(CHAIN_THRESHOLD, fraction) for panel, name in shown.items()}
    targets = {panel: protocol.stages[name].target for panel, name in shown.items()}
    nothing = np.zeros(labels.shape, dtype=bool)
    return CaseSlice.from_volumes(
        case.case.id,
        np.asarray(case.image)[0].astype(np.float32) / FULL_SCALE,
        {
            "reference_pancreas": np.isin(labels, targets["pancreas"]) if "pancreas" in targets else nothing,
            "reference_tumor": np.isin(labels, targets["fine"]),
            "pancreas": masks.get("pancreas", nothing),
            "tumor_coarse": masks["coarse"],
            "tumor_fine": masks["fine"],
        },
        case.spacing,
        dsc={
            panel: dice(np.isin(reference, targets[panel]), native_mask(case, found[name], CHAIN_THRESHOLD, fraction))
            for panel, name in shown.items()
        },
        window=(0.0, 1.0),
    )
