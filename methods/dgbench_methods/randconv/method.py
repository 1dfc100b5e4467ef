"""RandConv (Xu et al., ICLR 2021, Alg. 1): views of each image under random convolutions, and agreement between them."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from dgbench.method import Batch, Method, StepContext
from dgbench.ops.intensity import rescale
from dgbench.ops.losses import consistency_loss, segmentation_loss, view_divergence
from dgbench.ops.random_conv import random_conv
from dgbench.ops.select import where_case
from dgbench_methods.randconv import INFO, RandConvConfig


class RandConv(Method[RandConvConfig]):
    """Trains on randomly convolved views, predicts on the image as it is: prediction is that of erm."""

    info = INFO

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Segmentation loss of the first view (or all), plus the weighted disagreement of the views."""
        views, usable = self.views(batch.image, ctx)
        logits = self.logits(torch.cat(views)).chunk(len(views))
        supervised = logits[:1] if self.config.supervise == "first" else logits
        loss = segmentation_loss(torch.cat(supervised), torch.cat([batch.label] * len(supervised)))
        if len(views) == 1 or self.config.consistency_weight == 0:
            return {"loss": loss}
        disagreement = self.disagreement(logits, usable)
        return {
            "loss": loss + self.config.consistency_weight * disagreement,
            "segmentation": loss.detach(),
            "consistency": disagreement.detach(),
        }

    def views(self, image: Tensor, ctx: StepContext) -> tuple[list[Tensor], Tensor]:
        """The views, each (B, C, *spatial), and ``usable`` (B,) bool.

        Where rescaling has nothing to stretch (a view of a case is constant), all views of that case are the image
        itself and ``usable`` is False.
        """
        config = self.config
        views: list[Tensor] = []
        usable = torch.ones(len(image), dtype=torch.bool, device=image.device)
        for index in range(config.views):
            convolved = random_conv(
                views[0] if config.compound and views else image,
                ctx.generator("random convolution", index),
                kernel_sizes=config.kernel_sizes,
                bias=config.bias,
                mix=config.mix,
                identity_probability=config.identity_probability,
                per_sample=config.draw == "case",
            )
            view, degenerate = rescale(convolved, config.rescale)
            views.append(view)
            usable = usable & ~degenerate
        return [where_case(usable, view, image) for view in views], usable

    def disagreement(self, logits: Sequence[Tensor], usable: Tensor) -> Tensor:
        """Mean over voxels and cases of KL(p_j || mean) over views, or of the squared difference over pairs of views.

        Every channel is a Bernoulli probability. A case that is not ``usable`` counts as in agreement, with no
        gradient.
        """
        agreed = [where_case(usable, view, logits[0]) for view in logits]
        if self.config.consistency == "kl":
            return view_divergence([view.flatten(0, 1).unsqueeze(1) for view in agreed])
        pairs = list(combinations([torch.sigmoid(view) for view in agreed], 2))
        return torch.stack([consistency_loss(first, second) for first, second in pairs]).mean()
