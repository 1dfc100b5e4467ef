"""DAM: the protocol's view trains the head that predicts, a strongly augmented view a head that is dropped."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log

import numpy as np
import torch
from torch import Tensor

from dgbench.method import Batch, Method, Setup, StepContext
from dgbench.nets import point_conv
from dgbench.ops.contrast import gamma_curve, scale_contrast
from dgbench.ops.intensity import min_max_rescale
from dgbench.ops.losses import segmentation_loss
from dgbench.ops.select import where_case
from dgbench.ops.sharpness import gaussian_blur, sharpen
from dgbench.ops.tones import equalize, posterize, solarize
from dgbench.ops.warp import rotation_matrix, warp
from dgbench_methods.dam import INFO, DAMConfig

LEVELS = 10
"""Magnitudes are ``0 .. 9`` of 9 parts of an operation's largest; 0 is never drawn."""


@dataclass(frozen=True)
class Draw:
    """One operation that a case gets: ``size`` in (0, 1] of its largest magnitude, ``sign`` -1 or 1, ``axes`` two different ones."""

    operation: str
    size: float
    sign: int
    axes: tuple[int, int]


class DAM(Method[DAMConfig]):
    """See the card."""

    info = INFO

    def __init__(self, config: DAMConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.strong_head = point_conv(self.backbone.ndim, self.backbone.channels["up1"], setup.task.out_channels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the head that predicts and of the other one."""
        decoder = self.backbone.features(image).decoder
        return self.backbone.head(decoder), self.strong_head(decoder)

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Both views through the trunk, each through its own head; the losses are summed."""
        batch = self.augment(batch, ctx)
        weak = segmentation_loss(self.logits(batch.image), batch.label)
        image, label = self.strong_view(batch, ctx)
        strong = segmentation_loss(self.strong_head(self.backbone.features(image).decoder), label)
        return {"loss": weak + strong, "weak": weak.detach(), "strong": strong.detach()}

    def strong_view(self, batch: Batch, ctx: StepContext) -> tuple[Tensor, Tensor]:
        """Image and label of every case under a policy of its own."""
        images, labels = [], []
        for index, (image, label) in enumerate(zip(batch.image, batch.label, strict=True)):
            changed, moved, noise = image[None], label, ctx.generator("noise", index)
            for draw in self.draw(ctx, index):
                changed, moved = self.apply_one(draw, changed, moved, noise)
            images.append(changed[0])
            labels.append(moved)
        return torch.stack(images), torch.stack(labels)

    def draw(self, ctx: StepContext, index: int) -> list[Draw]:
        """The operations of case ``index``: up to ``per_view``, each with a probability of 0.1 to 1.0 and a level of 1 to 9."""
        rng = np.random.default_rng(ctx.generator("policy", index).initial_seed())
        draws = []
        for _ in range(self.config.per_view):
            operation = self.config.operations[rng.integers(len(self.config.operations))]
            probability, level = rng.integers(1, 11) / 10, rng.integers(1, LEVELS)
            axes = rng.permutation(self.setup.task.ndim)
            sign = 1 if rng.random() < 0.5 else -1
            if rng.random() < probability:
                draws.append(Draw(operation, float(level / (LEVELS - 1)), sign, (int(axes[0]), int(axes[1]))))
        return draws

    def apply_one(self, draw: Draw, image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One operation on image (1, C, *spatial) and label (c, *spatial) of a case."""
        if draw.operation in ("shear", "translate", "rotate"):
            matrix, shift = self.motion(draw, image)
            moved, label = warp(image[0], label, matrix, shift)
            return moved[None], label
        size, signed = draw.size, draw.sign * draw.size
        match draw.operation:
            case "brightness":
                image = image * (1 + 0.9 * signed)
            case "contrast":
                image = scale_contrast(image, 1 + 0.9 * signed, preserve_range=False)
            case "gamma":
                image = gamma_curve(image, exp(log(2) * signed))
            case "solarize":
                image = solarize(image, 1 - size)
            case "posterize":
                image = posterize(image, 8 - round(4 * size))
            case "equalize":
                image = equalize(image)
            case "autocontrast":
                stretched, constant = min_max_rescale(image)
                image = where_case(constant, image, stretched)
            case "invert":
                image = 1 - image
            case "sharpness":
                image = sharpen(image, 0.0, 1.0, 0.9 * signed)
            case "blur":
                image = gaussian_blur(image, 1.5 * size)
            case "noise":
                noise = torch.randn(image.shape, generator=generator, device=generator.device)
                image = image + 0.1 * size * noise.to(image)
        return image.clamp(0, 1), label

    def motion(self, draw: Draw, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Matrix and displacement of a shear (0.3 at most), a translation (a quarter of a side) or a rotation (30° in the plane of the last
        two axes, which are the finest)."""
        ndim, sides = self.setup.task.ndim, image.shape[2:]
        signed, (first, second) = draw.sign * draw.size, draw.axes
        matrix = torch.eye(ndim, dtype=torch.float64)
        match draw.operation:
            case "shear":
                matrix[first, second] = 0.3 * signed
            case "rotate":
                planes = ndim * (ndim - 1) // 2
                matrix = rotation_matrix([0.0] * (planes - 1) + [30 * signed], self.setup.task.spacing)
            case "translate":
                shift = torch.zeros(ndim, *sides, device=image.device)
                shift[first] = 0.25 * signed * sides[first]
                return matrix, shift
        return matrix, None

    def deploy(self) -> None:
        """The strong view's head goes, and :meth:`forward` with it."""
        del self.strong_head
