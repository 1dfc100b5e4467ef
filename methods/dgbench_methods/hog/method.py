"""HOG: a head on the encoder regresses gradient histograms of the augmented input."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.method import Batch, Method, Setup, StepContext
from dgbench.nets import point_conv
from dgbench.ops.hog import hog_length, hog_map, hog_vector
from dgbench.ops.losses import segmentation_loss
from dgbench.ops.precision import full_precision
from dgbench_methods.hog import INFO, HOGConfig


class HOG(Method[HOGConfig]):
    """See the card."""

    info = INFO

    def __init__(self, config: HOGConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        ndim, width = self.backbone.ndim, self.backbone.channels["layer4"]
        if config.target == "dense":
            conv: type[nn.Module] = nn.Conv2d if ndim == 2 else nn.Conv3d
            self.hog_head: nn.Module = nn.Sequential(
                conv(width, config.hidden, 3, padding=1),
                nn.ReLU(),
                point_conv(ndim, config.hidden, 4 * config.orientations),
            )
        else:
            self.hog_head = nn.Linear(width, hog_length(config.cell, config.orientations))

    def target(self, image: Tensor) -> Tensor:
        """What the head must say of ``image`` (B, C, *spatial), in float32.

        ``dense``: (B, 4 * orientations, *(spatial / 8)); ``vector``: (B, slices, length).
        """
        config = self.config
        if config.target == "dense":
            found = hog_map(image.float(), cell=self.backbone.stride, orientations=config.orientations)
        else:
            planes = self.slices(image)
            rows = hog_vector(planes.flatten(0, 1).float(), cell=config.cell, orientations=config.orientations)
            found = rows.view(*planes.shape[:2], -1)
        return found.long().to(found.dtype) if config.literal_bug else found

    def slices(self, image: Tensor) -> Tensor:
        """(B, slices, C, H, W): the middle of every eight slices, or the image itself in 2D."""
        if image.ndim == 4:
            return image[:, None]
        stride = self.backbone.stride
        return image[:, :, stride // 2 :: stride].transpose(1, 2)

    def regress(self, encoder: Tensor) -> Tensor:
        """The head's answer, in float32, of the shape of :meth:`target`."""
        with full_precision(encoder):
            wide = F.group_norm(encoder.float(), 1) if self.config.normalise else encoder.float()
            if self.config.target == "vector":
                pooled = wide.amax((-2, -1))
                wide = pooled[:, None] if pooled.ndim == 2 else pooled.transpose(1, 2)
            answer: Tensor = self.hog_head(wide)
            return answer

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Segmentation logits and the regressed histograms."""
        features = self.backbone.features(image)
        return self.backbone.head(features.decoder), self.regress(features.encoder)

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Segmentation loss and squared error of the histograms."""
        batch = self.augment(batch, ctx)
        logits, answer = self(batch.image)
        seg = segmentation_loss(logits, batch.label)
        hog = F.mse_loss(answer, self.target(batch.image))
        return {"loss": seg + self.config.weight * hog, "seg": seg.detach(), "hog": hog.detach()}

    def deploy(self) -> None:
        """The regression goes, and :meth:`forward` with it."""
        del self.hog_head
