"""Cutout (DeVries and Taylor, 2017) for volumes."""

import torch

from dgbench.method import Batch, Method, StepContext
from dgbench.ops.erasing import box_mask
from dgbench_methods.cutout import INFO, CutoutConfig


class Cutout(Method[CutoutConfig]):
    """Every training image loses ``holes`` boxes, after all other augmentation; labels stay as they are."""

    info = INFO

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        """Boxes with centers uniform over the whole crop, drawn for each case, filled with the case's mean or minimum."""
        image, config = batch.image, self.config
        shape = image.shape[2:]
        edges = [max(2, round(config.edge * side)) for side in shape]  # an edge of 1 would erase nothing
        generator = ctx.generator("boxes")
        erased = []
        for case in image:
            draws = torch.rand(config.holes, len(shape), generator=generator, device=generator.device)
            sides = torch.tensor(shape, device=draws.device)
            mask = box_mask(shape, (draws * sides).long(), edges).to(image.device)
            flat = case.flatten(1)
            fill = flat.mean(1) if config.fill == "mean" else flat.amin(1)
            erased.append(torch.where(mask, fill.view(-1, *[1] * len(shape)), case))
        return batch.with_image(torch.stack(erased))
