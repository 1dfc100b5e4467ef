"""One network applied to one ROI: flips averaged, whole or in sliding windows (protocol.md §2)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgbench.method import Method
from dgbench.nets import Backbone, Features
from dgbench.ops.precision import mixed_precision


@dataclass(frozen=True)
class Prediction:
    """Probabilities (out_channels, *roi) float32 on the CPU, and whether sliding windows were needed."""

    probability: NDArray[np.float32]
    windowed: bool


@dataclass(frozen=True)
class Predictor:
    """A deployed method with the settings of its stage: ``window`` in voxels of the network's grid."""

    method: Method[Any]
    window: tuple[int, ...]
    whole_roi_voxels: int
    overlap: float
    tta: bool
    device: torch.device
    precision: str

    @torch.no_grad()
    def __call__(self, roi: NDArray[np.float32]) -> Prediction:
        """Predict one ROI, (C, *size) in [0, 1]; global codes of the method are computed once for it."""
        image = self._on_device(roi)
        with self._facing(image):
            probability = self._in_windows(image, self._flips) if self._windowed(image) else self._flips(image)
        return Prediction(probability[0].float().cpu().numpy(), self._windowed(image))

    @torch.no_grad()
    def pooled(self, roi: NDArray[np.float32], masks: NDArray[np.float32]) -> NDArray[np.float32]:
        """The last decoder feature of ``roi`` (C, *size), averaged over each of ``masks`` (K, *size; weights 0..1): (K, channels).

        One pass without flips, in windows where the ROI is large (a voxel counts once per window that holds it). The channels of all
        backbones of the method are joined; of one that answers several times, the last answer counts. NaN where a mask is empty.
        """
        image, sums, totals = self._on_device(roi), [], []

        def pool(joined: Tensor) -> Tensor:
            part, mask = joined[:, : len(roi)], joined[:, len(roi) :].flatten(2)
            with heard(self.method) as features:
                self.method.predict(part)
            decoder = torch.cat([feature.decoder for feature in features.values()], 1).float().flatten(2)
            sums.append((mask @ decoder.transpose(1, 2)).sum(0))
            totals.append(mask.sum(2).sum(0))
            return torch.zeros_like(part[:, :1])

        with self._facing(image):
            joined = torch.cat([image, self._on_device(masks)], 1)
            _ = self._in_windows(joined, pool) if self._windowed(image) else pool(joined)
        means = torch.stack(sums).sum(0) / torch.stack(totals).sum(0)[:, None]
        return means.cpu().numpy()

    def _on_device(self, array: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))[None].to(self.device)

    def _windowed(self, image: Tensor) -> bool:
        return int(np.prod(image.shape[2:])) > self.whole_roi_voxels

    @contextmanager
    def _facing(self, image: Tensor) -> Iterator[None]:
        """The method in evaluation mode and in the run's precision, told of the ROI it faces."""
        self.method.eval()
        with mixed_precision(self.device, self.precision):
            self.method.begin_case(image)
            try:
                yield
            finally:
                self.method.end_case()

    def _flips(self, image: Tensor) -> Tensor:
        """The mean over the 2^ndim mirror images, as many in one batch as hold ``whole_roi_voxels`` voxels together."""
        if not self.tta:
            return self.method.predict(image)
        axes = range(2, image.ndim)
        flips: list[list[int]] = [
            [axis for axis, on in zip(axes, choice, strict=True) if on]
            for choice in product((False, True), repeat=len(axes))
        ]
        at_once = max(1, self.whole_roi_voxels // int(np.prod(image.shape[2:])))
        total: Tensor | int = 0
        for first in range(0, len(flips), at_once):
            batch = flips[first : first + at_once]
            answers = self.method.predict(torch.cat([torch.flip(image, flip) for flip in batch])).float()
            for answer, flip in zip(answers, batch, strict=True):
                total = total + torch.flip(answer, [axis - 1 for axis in flip])
        return torch.as_tensor(total / len(flips))[None]

    def _in_windows(self, image: Tensor, predictor: Callable[[Tensor], Tensor]) -> Tensor:
        from monai.inferers import sliding_window_inference

        answer: Tensor = sliding_window_inference(
            image,
            self.window,
            sw_batch_size=1,
            predictor=predictor,
            overlap=self.overlap,
            mode="gaussian",
            padding_mode="constant",
        )
        return answer


@contextmanager
def heard(method: Method[Any]) -> Iterator[dict[int, Features]]:
    """What each backbone of ``method`` computes in the block, by its place among them; the last answer counts."""
    backbones = [module for module in method.modules() if isinstance(module, Backbone)]
    features: dict[int, Features] = {}
    for index, backbone in enumerate(backbones):
        backbone.listener = partial(features.__setitem__, index)
    try:
        yield features
    finally:
        for backbone in backbones:
            backbone.listener = None
