"""The coarse-to-fine cascade: each stage looks where an earlier stage found something (paper Fig. 4, dual-task sheet §4)."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from dgbench.data.preparation import PreparedCase
from dgbench.inference.predictor import Predictor
from dgbench.inference.roi import Box, bounding_box, clip, cut, keep_components, paste, whole, widen
from dgbench.nets import Backbone
from dgbench.protocol import ResolvedProtocol

CHAIN_THRESHOLD = 0.5


@dataclass(frozen=True)
class StageResult:
    """What one stage answers on one case, on the task grid.

    ``levels`` (*box.size) are probabilities in 8 bits (0..255 for 0..1), which is also how they are stored, so that a threshold applied
    later gives the mask it would have given at once; ``box`` is what of the ROI lies inside the volume; ``roi`` says where the ROI came
    from: ``prediction``, ``label`` (oracle), ``whole`` or ``fallback:<stage>`` (nothing was found there, so its own ROI is used);
    ``rounds`` counts the passes of an iterated stage and ``seconds`` says how long each took (empty for an answer read from a file).
    """

    stage: str
    levels: NDArray[np.uint8]
    box: Box
    shape: tuple[int, ...]
    roi: str
    rounds: int
    windowed: bool
    seconds: tuple[float, ...] = ()

    def mask(self, threshold: float, component_fraction: float | None) -> NDArray[np.bool_]:
        """The thresholded, component-filtered answer on the whole task grid."""
        return paste(self.filtered(threshold, component_fraction), self.box, self.shape)

    def filtered(self, threshold: float, component_fraction: float | None) -> NDArray[np.bool_]:
        """The same inside the box."""
        return keep_components(self.levels >= threshold * 255, component_fraction)


def network_multiple(downsample: int) -> int:
    """Every side of a ROI must be a multiple of this many voxels of the task grid."""
    return Backbone.stride * downsample


def run_stage(
    case: PreparedCase,
    name: str,
    predictor: Predictor,
    resolved: ResolvedProtocol,
    found: Mapping[str, StageResult],
    *,
    chain: str,
) -> StageResult:
    """Apply stage ``name`` to ``case``.

    ``found`` holds the results of the earlier stages of this chain. In the `Mask` chain a stage whose ROI source is not itself part of
    the chain (a shared stage) looks around the reference label: an oracle. In the `Seg` chain the label is never read.
    """
    stage, inference = resolved.protocol.stages[name], resolved.protocol.inference
    shape, oracle = tuple(case.size), chain == "Mask"
    margin, none = resolved.margin(name, oracle=oracle), (0,) * len(case.size)
    if stage.roi is None:
        first, roi = stage_box(whole(shape), none, name, resolved, shape), "whole"
    elif oracle and resolved.protocol.stages[stage.roi.source].recipe is not None:
        first = label_roi(case, name, resolved)
        roi = "whole" if case.box(stage.roi.labels) is None else "label"
    else:
        earlier = found[stage.roi.source]
        mask = earlier.mask(CHAIN_THRESHOLD, inference.component_fraction)
        around = bounding_box(mask) if int(mask.sum()) >= inference.minimum_voxels else None
        if around is None:
            first, roi = stage_box(earlier.box, none, name, resolved, shape), f"fallback:{stage.roi.source}"
        else:
            first, roi = stage_box(around, margin, name, resolved, shape), "prediction"
    rounds = resolved.rounds(name, oracle=oracle)
    return _iterate(case, name, predictor, resolved, first, roi, margin, rounds)


def label_roi(case: PreparedCase, name: str, resolved: ResolvedProtocol) -> Box:
    """The fixed-margin ROI around the reference that the `Mask` chain and source validation look at (protocol.md §3); all of a case
    without reference."""
    stage = resolved.protocol.stages[name]
    labelled = case.box(stage.roi.labels) if stage.roi else None
    if labelled is None:
        return stage_box(whole(case.size), (0,) * len(case.size), name, resolved, case.size)
    return stage_box(Box(*map(tuple, labelled)), resolved.margin(name, oracle=True), name, resolved, case.size)


def stage_box(box: Box, margin: tuple[int, ...], name: str, resolved: ResolvedProtocol, shape: tuple[int, ...]) -> Box:
    """``box`` widened to what the network of stage ``name`` can take: never smaller than its training crop."""
    factor = resolved.protocol.stages[name].downsample
    minimum = [length * factor for length in resolved.preset.stages[name].crop]
    return widen(
        box,
        margin,
        minimum if resolved.protocol.stages[name].roi else [0] * len(shape),
        shape,
        network_multiple(factor),
    )


def predict_box(case: PreparedCase, box: Box, predictor: Predictor, factor: int) -> tuple[NDArray[np.float32], bool]:
    """Probabilities (*box.size) of a one-channel stage; a stage on a coarser grid sees block means and is repeated back."""
    answer = predictor(_coarser(case.image_box(box.lo, box.hi), factor))
    probability = answer.probability[0]
    for axis in range(probability.ndim):
        probability = probability.repeat(factor, axis) if factor > 1 else probability
    return probability, answer.windowed


def pooled_features(
    case: PreparedCase, box: Box, masks: NDArray[np.bool_], predictor: Predictor, factor: int
) -> NDArray[np.float32]:
    """The decoder's last feature, averaged over each of ``masks`` (K, *box.size): (K, channels), NaN for an empty mask."""
    image = case.image_box(box.lo, box.hi)
    return predictor.pooled(_coarser(image, factor), _coarser(masks.astype(np.float32), factor))


def _coarser(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Block means of (C, *size) on a grid ``factor`` times coarser."""
    if factor == 1:
        return image
    mean = functional.avg_pool3d if image.ndim == 4 else functional.avg_pool2d
    coarser: NDArray[np.float32] = mean(torch.from_numpy(image)[None], factor)[0].numpy()
    return coarser


def _iterate(
    case: PreparedCase,
    name: str,
    predictor: Predictor,
    resolved: ResolvedProtocol,
    box: Box,
    roi: str,
    margin: tuple[int, ...],
    rounds: int,
) -> StageResult:
    """Up to ``rounds`` passes, the first in ``box``: each further one looks around the previous answer, until two agree."""
    inference, shape = resolved.protocol.inference, tuple(case.size)
    factor = resolved.protocol.stages[name].downsample
    result: StageResult | None = None
    for count in range(1, rounds + 1):
        started = time.perf_counter()
        probability, windowed = predict_box(case, box, predictor, factor)
        inside = clip(box, shape)
        levels = np.rint(cut(probability, box, inside) * 255).astype(np.uint8)
        earlier = result.seconds if result is not None else ()
        seconds = (*earlier, time.perf_counter() - started)
        previous, result = result, StageResult(name, levels, inside, shape, roi, count, windowed, seconds)
        mask = result.mask(CHAIN_THRESHOLD, inference.component_fraction)
        if previous is not None:
            before = previous.mask(CHAIN_THRESHOLD, inference.component_fraction)
            both = int(mask.sum()) + int(before.sum())
            if both == 0 or 2 * int((mask & before).sum()) / both >= inference.round_stop_dice:
                break
        if int(mask.sum()) > inference.round_minimum_voxels and (around := bounding_box(mask)) is not None:
            box = stage_box(around, margin, name, resolved, shape)
    assert result is not None
    return result
