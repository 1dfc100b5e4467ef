"""DCAC: filters of the segmentation head from a predicted domain code, and from what the encoder sees."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.method import Batch, Method, Setup, StepContext
from dgbench.nets import point_conv
from dgbench.ops.dynamic import layer_sizes, pointwise, split_layers
from dgbench.ops.losses import segmentation_loss
from dgbench.ops.precision import full_precision
from dgbench_methods.dcac import INFO, DCACConfig

BOTTLENECK = "layer4"
ENCODER = ("layer2", "layer1", "layer0")
SLOPE = 0.01


class DCAC(Method[DCACConfig]):
    """See the card."""

    info = INFO

    def __init__(self, config: DCACConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        net, sources = self.backbone, setup.n_sources
        self.classes = setup.task.out_channels + (config.answer == "softmax")
        self.channels = sources * self.classes
        k, ndim = self.channels, net.ndim
        net.head = nn.Identity()
        norm: type[nn.Module] = nn.InstanceNorm2d if ndim == 2 else nn.InstanceNorm3d
        self.static = point_conv(ndim, net.channels["up1"], k)
        self.static_norm = norm(k, affine=True) if config.head_norm else nn.Identity()
        self.norms = nn.ModuleList(nn.GroupNorm(1, k, affine=False) for _ in range(3))
        width = net.channels[BOTTLENECK]
        self.predictor = nn.Linear(width + sum(net.channels[stage] for stage in ENCODER), sources)
        self.domain_widths, self.content_widths = (k, k), (k, k, k, self.classes)
        self.domain_controller = nn.Linear(sources, sum(map(sum, layer_sizes(self.domain_widths))))
        self.content_controller = nn.Linear(width, sum(map(sum, layer_sizes(self.content_widths))))

    def run(self, image: Tensor, domain: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Class logits (B, classes, *spatial) and domain logits (B, sources).

        ``domain`` (B,) are the true centers, in training; without them the predicted probabilities are the code.
        """
        pooled: dict[str, Tensor] = {}

        def tap(stage: str, x: Tensor) -> Tensor:
            if stage == BOTTLENECK or stage in ENCODER:
                means = x.float().mean(tuple(range(2, x.ndim)))
                plain = self.config.means == "plain"
                pooled[stage] = means if plain else F.layer_norm(means, means.shape[1:])
            return x

        decoder = self.backbone.features(image, tap).decoder
        with full_precision(image):
            told = self.predictor(torch.cat([pooled[stage].detach() for stage in (BOTTLENECK, *ENCODER)], 1))
            code = torch.softmax(told, 1) if domain is None else F.one_hot(domain, self.setup.n_sources).float()
            return self.head(decoder.float(), code, pooled[BOTTLENECK]), told

    def head(self, decoder: Tensor, code: Tensor, content: Tensor) -> Tensor:
        """Class logits of decoder features (B, C, *spatial), all in float32, with filters from the domain ``code`` (B, sources) and from
        the ``content`` (B, C'): the pooled encoder output."""
        x = F.leaky_relu(self.static_norm(self.static(decoder)), SLOPE)
        (domain_layer,) = split_layers(self.domain_controller(code), self.domain_widths)
        adapted = self.norms[0](pointwise(x, domain_layer))
        x = F.leaky_relu(x - adapted if self.config.combine == "subtract" else x + adapted, SLOPE)
        *hidden, last = split_layers(self.content_controller(content), self.content_widths)
        for norm, layer in zip(list(self.norms)[1:], hidden, strict=True):
            x = F.leaky_relu(norm(pointwise(x, layer)), SLOPE)
        return pointwise(x, last)

    def one_against_rest(self, logits: Tensor) -> Tensor:
        """(B, classes, *spatial) -> (B, out_channels, *spatial): logits whose sigmoid is the class's softmax probability."""
        if self.config.answer == "sigmoid":
            return logits
        parts = []
        for index in range(1, self.classes):
            others = [other for other in range(self.classes) if other != index]
            parts.append(logits[:, index] - torch.logsumexp(logits[:, others], 1))
        return torch.stack(parts, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and domain logits."""
        return self.run(image)

    def logits(self, image: Tensor) -> Tensor:
        """Segmentation logits with the predicted domain code."""
        return self.one_against_rest(self.run(image)[0])

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Segmentation with the true domain code, and the predictor's cross-entropy, which reaches the predictor alone."""
        batch = self.augment(batch, ctx)
        logits, told = self.run(batch.image, batch.domain)
        seg = segmentation_loss(self.one_against_rest(logits), batch.label)
        domain = F.cross_entropy(told, batch.domain)
        return {"loss": seg + self.config.domain_weight * domain, "seg": seg.detach(), "domain": domain.detach()}
