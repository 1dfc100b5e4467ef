"""The dual-task framework (paper, Eqs. 1 to 11). README.md says where the text and the release differ, and what is done."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dgbench.errors import DgbenchError
from dgbench.method import Batch, Method, Setup, StepContext
from dgbench.nets import DistanceHead, ProjectionHead, SliceHead
from dgbench.ops.contrastive import features_at, info_nce, sample_positions
from dgbench.ops.conversion import distance_to_mask
from dgbench.ops.distance import signed_distance_batch
from dgbench.ops.intensity import rescale
from dgbench.ops.losses import (
    consistency_loss,
    dice_loss,
    distance_loss,
    segmentation_loss,
    slice_labels,
    slice_loss,
)
from dgbench.ops.random_conv import random_conv
from dgbench.ops.select import where_case
from dgbench_methods.dualtask import INFO, DualTaskConfig, Stages

KERNEL_SIZES = (3, 5, 7)
"""Sides of the random filters (release; the paper does not name them)."""


class DualTask(Method[DualTaskConfig]):
    """Segmentation, slice classification and distance regression on two views of each case, tied by conversion,
    contrast and consistency; every term has its switch. All heads exist whatever is switched on."""

    info = INFO

    def __init__(self, config: DualTaskConfig, setup: Setup) -> None:
        if setup.task.out_channels != 1:
            raise DgbenchError(
                f"dualtask: the distance map is of one structure, the task has {setup.task.out_channels} — use one stage each"
            )
        if config.upsample == "nearest":
            setup = replace(setup, build_backbone=partial(setup.build_backbone, upsample="nearest"))
        super().__init__(config, setup)
        ndim, width = self.backbone.ndim, self.backbone.width
        self.projection = ProjectionHead(ndim, width)
        self.distance = DistanceHead(ndim, width)
        self.slices = SliceHead(ndim, width)
        for parameter in self.distance.parameters():  # tanh is saturated by PyTorch's initialisation: README.md
            torch.nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> Mapping[str, Tensor]:
        """Outputs of all heads for (B, 1, D, H, W): the whole network, as the paper's Table VI counts it."""
        features = self.backbone.features(image)
        return {
            "segmentation": self.backbone.head(features.decoder),
            "embedding": self.projection(features.encoder),
            "distance": torch.tanh(self.distance(features.decoder)),
            "slices": self.slices(features.encoder),
        }

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Eq. 11 with weights: the mean of each term over the views."""
        config = self.config
        images, paired = self.views(batch.image, ctx)
        features = self.backbone.features(images)
        logits = self.backbone.head(features.decoder)
        label = self._per_view(batch.label)

        terms = {"segmentation": segmentation_loss(logits, label)}
        if self._active(config.cls):
            terms["slices"] = config.weight_cls * slice_loss(self.slices(features.encoder), slice_labels(label))
        outputs = [torch.sigmoid(logits)]
        if config.dis:
            distance = torch.tanh(self.distance(features.decoder).float())
            target, valid = signed_distance_batch(batch.label, normalise=True)
            regression = distance_loss(distance, self._per_view(target), self._per_view(valid))
            terms["distance"] = config.weight_dis * regression
            if config.tran:
                terms["conversion"] = config.weight_tran * self.conversion_loss(distance, label)
            if self._active(config.cos_distance):
                outputs.append(distance)
        if config.con:
            terms["contrast"] = config.weight_con * self.contrast(self.projection(features.encoder), batch.label, ctx)
        if config.cos:
            terms["consistency"] = config.weight_cos * torch.stack([disagreement(out, paired) for out in outputs]).sum()
        return {
            "loss": torch.stack(list(terms.values())).sum(),
            **{name: term.detach() for name, term in terms.items()},
        }

    def views(self, image: Tensor, ctx: StepContext) -> tuple[Tensor, Tensor]:
        """Views one after the other, (views * B, 1, D, H, W), and ``paired`` (B,) bool.

        With one view it is the image itself. With two (Eq. 1), a case whose convolved view is constant gives the image
        twice and is not ``paired``.
        """
        paired = torch.ones(len(image), dtype=torch.bool, device=image.device)
        if self.config.views == 1:
            return image, paired
        views = []
        for index in range(self.config.views):
            generator = ctx.generator("random convolution", index)
            convolved = random_conv(image, generator, kernel_sizes=KERNEL_SIZES, bias=True, per_sample=True)
            view, degenerate = rescale(convolved, "clamp-minmax")
            views.append(view)
            paired = paired & ~degenerate
        return torch.cat([where_case(paired, view, image) for view in views]), paired

    def conversion_loss(self, distance: Tensor, label: Tensor) -> Tensor:
        """Eq. 7 on distances (V, 1, D, H, W) in [-1, 1]: Dice and cross-entropy of the smooth map; Dice alone of a map
        of zeros and ones, whose cross-entropy is 0 or infinite."""
        config = self.config
        if config.task_conversion == "smooth":
            return segmentation_loss(-config.conversion_k * distance, label)
        return dice_loss(distance_to_mask(distance, config.task_conversion), label)

    def contrast(self, embedding: Tensor, label: Tensor, ctx: StepContext) -> Tensor:
        """Eq. 8 between tumor cells and cells around it, of all cases and views of the step together."""
        masks = label[:, 0].cpu()
        cells, classes = [], []
        for index, view in enumerate(embedding.chunk(self.config.views)):
            generator = torch.Generator().manual_seed(ctx.generator("contrast cells", index).initial_seed())
            for case, mask in zip(view, masks, strict=True):
                positions = sample_positions(
                    mask, generator, stride=self.backbone.stride, release_bug=self.config.corner_negatives
                )
                cells += [features_at(case, chosen) for chosen in positions]
                classes += [1] * len(positions.positive) + [0] * len(positions.negative)
        return info_nce(
            torch.cat(cells),
            torch.tensor(classes, device=embedding.device),
            temperature=self.config.temperature,
            denominator=self.config.denominator,
        )

    def deploy(self) -> None:
        """Only the segmentation branch predicts: the other heads are dropped, and :meth:`forward` goes with them."""
        del self.projection, self.distance, self.slices

    def _active(self, stages: Stages) -> bool:
        return stages == "all" or (stages == "fine" and self.setup.is_fine)

    def _per_view(self, per_case: Tensor) -> Tensor:
        return torch.cat([per_case] * self.config.views)


def disagreement(output: Tensor, paired: Tensor) -> Tensor:
    """One term of Eq. 10: mean squared difference of the two halves of ``output`` (2 * B, 1, D, H, W); a case that is
    not ``paired`` adds nothing to the sum."""
    first, second = output.chunk(2)
    return consistency_loss(first, where_case(paired, second, first))
