"""One network applied to one ROI: flips averaged, whole or in sliding windows (protocol.md §2)."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgbench.method import Method


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
        image = torch.from_numpy(np.ascontiguousarray(roi))[None].to(self.device)
        windowed = int(np.prod(image.shape[2:])) > self.whole_roi_voxels
        self.method.eval()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            self.method.begin_case(image)
            try:
                probability = self._sliding(image) if windowed else self._flips(image)
            finally:
                self.method.end_case()
        return Prediction(probability[0].float().cpu().numpy(), windowed)

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

    def _sliding(self, image: Tensor) -> Tensor:
        from monai.inferers import sliding_window_inference

        answer: Tensor = sliding_window_inference(
            image,
            self.window,
            sw_batch_size=1,
            predictor=self._flips,
            overlap=self.overlap,
            mode="gaussian",
            padding_mode="constant",
        )
        return answer
