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

    Pancreas is the last shared stage, coarse and fine the first and the last of the method's own.
    """
    labels = np.asarray(case.label)
    own = [name for name in protocol.stages if name not in protocol.shared_stages]
    results = [found[name] for name in (protocol.shared_stages[-1], own[0], own[-1])]
    masks = [result.mask(CHAIN_THRESHOLD, protocol.inference.component_fraction) for result in results]
    references = [np.isin(labels, protocol.stages[result.stage].target) for result in results]
    scores = [dice(reference, mask) for reference, mask in zip(references, masks, strict=True)]
    return CaseSlice.from_volumes(
        case.case.id,
        np.asarray(case.image)[0].astype(np.float32) / FULL_SCALE,
        {
            "reference_pancreas": references[0],
            "reference_tumor": references[-1],
            "pancreas": masks[0],
            "tumor_coarse": masks[1],
            "tumor_fine": masks[2],
        },
        case.spacing,
        dsc=dict(zip(("pancreas", "coarse", "fine"), scores, strict=True)),
        window=(0.0, 1.0),
    )
