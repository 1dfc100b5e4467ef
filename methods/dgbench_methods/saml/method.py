"""SAML (Liu et al., MICCAI 2020): a meta step over centers, with compactness and smoothness losses. README.md says what is adapted."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from dgbench.errors import DgbenchError
from dgbench.method import Batch, MakeOptimizer, Method, Sampling, Setup, StepContext
from dgbench.nets.upsample import upsample_linear
from dgbench.ops.fast_weights import clip_each, descend
from dgbench.ops.losses import dice_loss, segmentation_loss
from dgbench.ops.shape import contour, isoperimetric_ratio, mean_inside, surroundings
from dgbench.ops.triplet import semi_hard_triplet_loss
from dgbench_methods.saml import INFO, SamlConfig

COMPACT_SCALE = 1e-4
"""The release multiplies the perimeter by 0.01, hence its square by this."""

HALF, FULL = "up2", "up1"
"""Decoder features that are embedded, at half and at full resolution."""


class Saml(Method[SamlConfig]):
    """The embedding network is for training only; prediction is that of erm."""

    info = INFO

    def __init__(self, config: SamlConfig, setup: Setup) -> None:
        if setup.task.out_channels != 1:
            raise DgbenchError(
                f"saml: contour and compactness are of one structure, the task has {setup.task.out_channels} — use one stage each"
            )
        super().__init__(config, setup)
        channels = self.backbone.channels[HALF] + self.backbone.channels[FULL]
        self.embedder = nn.Sequential(
            nn.Linear(channels, config.hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(config.hidden, config.embedding),
            nn.LeakyReLU(0.2),
        )

    def sampling(self, step: int, total_steps: int) -> Sampling:
        """One case of every center, to be split into meta-train and meta-test."""
        return "per-center"

    def configure_optimizers(self, make: MakeOptimizer) -> Sequence[Optimizer]:
        """Of the backbone on meta-train, of the backbone on meta-test, of the embedding network."""
        return (
            make(self.backbone.parameters()),
            make(self.backbone.parameters(), lr_factor=self.config.outer_lr_factor),
            make(self.embedder.parameters(), lr_factor=self.config.metric_lr_factor),
        )

    def train_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Both gradients are taken before any optimiser steps: that on meta-train at the weights, that on meta-test at the fast ones."""
        config = self.config
        inner, outer, metric = ctx.optimizers
        train, test = self.split(batch.domain, ctx)
        with ctx.autocast():
            logits = self.logits(batch.image[train])
        meta_train = self.segmentation(logits, batch.label[train])
        ctx.backward(meta_train)
        at_weights = self._gradients()
        fast = descend(dict(self.backbone.named_parameters()), clip_each(at_weights, config.clip), config.inner_lr)
        objective, terms = self.meta_test(batch, train, test, fast, ctx)
        ctx.backward(objective)
        at_fast = clip_each(self._gradients(), config.clip)
        for optimizer, gradients in ((inner, at_weights), (outer, at_fast)):
            for parameter, gradient in zip(self.backbone.parameters(), gradients, strict=True):
                parameter.grad = gradient
            ctx.step_optimizer(optimizer)
        ctx.step_optimizer(metric)
        return {"loss": meta_train.detach() + terms["meta_test"], "meta_train": meta_train.detach(), **terms}

    def split(self, domain: Tensor, ctx: StepContext) -> tuple[list[int], list[int]]:
        """Indices of the meta-train and of the meta-test cases: one center at random is meta-test, the others are meta-train. With
        ``release_split`` the first two of the permuted centers are meta-train and the last is meta-test, which overlap for two centers."""
        domains = domain.tolist()
        centers = sorted(set(domains))
        if len(centers) < 2:
            raise DgbenchError("saml: a step needs cases of at least two centers, one of them to be meta-test")
        generator = ctx.generator("meta split")
        order = torch.randperm(len(centers), generator=generator, device=generator.device).tolist()
        learning = {centers[i] for i in (order[:2] if self.config.release_split else order[:-1])}
        train = [index for index, center in enumerate(domains) if center in learning]
        return train, [index for index, center in enumerate(domains) if center == centers[order[-1]]]

    def segmentation(self, logits: Tensor, label: Tensor) -> Tensor:
        """The benchmark's loss, or with ``dice_only`` the release's: Dice over background and structure, mean over cases."""
        if not self.config.dice_only:
            return segmentation_loss(logits, label)
        p = torch.sigmoid(logits.float())
        return dice_loss(torch.cat([1 - p, p], 1), torch.cat([1 - label, label], 1), eps=1e-7)

    def meta_test(
        self, batch: Batch, train: Sequence[int], test: Sequence[int], fast: Mapping[str, Tensor], ctx: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is backpropagated at the weights ``fast``, and the detached terms to log: ``meta_test`` (their weighted sum), ``compact``,
        ``smooth``.

        The backbone gets the gradient of ``smooth_weight`` times the smoothness loss, the embedding network that of the loss itself.
        """
        config = self.config
        cases = [*test, *(index for index in train if index not in test and config.smooth_weight)]
        kept: dict[str, Tensor] = {}

        def tap(name: str, x: Tensor) -> Tensor:
            if name in (HALF, FULL):
                kept[name] = x
            return x

        with ctx.autocast():
            logits = functional_call(self.backbone, dict(fast), (batch.image[cases], tap))[: len(test)]
        segmentation = self.segmentation(logits, batch.label[list(test)])
        compact = self.compactness(torch.sigmoid(logits.float()))
        smooth = smooth_weighted = torch.zeros_like(segmentation)
        if config.smooth_weight:
            smooth = self.smoothness(kept[HALF], kept[FULL], batch.label[cases])
            smooth_weighted = config.smooth_weight * smooth.detach()
        weighted = segmentation + config.compact_weight * compact
        terms = {"meta_test": weighted + smooth_weighted, "compact": compact, "smooth": smooth}
        return weighted + smooth, {name: term.detach() for name, term in terms.items()}

    def compactness(self, p: Tensor) -> Tensor:
        """1e-4 times the isoperimetric ratios of the probabilities (B, 1, *spatial), summed over cases and axial slices (``slice2d``) or
        over cases (``volume3d``; a 2D image is one slice)."""
        ndim = 2 if self.config.compact_mode == "slice2d" else p.ndim - 2
        return COMPACT_SCALE * isoperimetric_ratio(p, ndim).sum()

    def smoothness(self, half: Tensor, full: Tensor, label: Tensor) -> Tensor:
        """Triplet loss between the mean embeddings of the contours and of their surroundings.

        Args:
            half: (B, C, *(spatial / 2)) decoder features.
            full: (B, C', *spatial) decoder features.
            label: (B, 1, *spatial); a case without contour or surroundings takes no part.

        Returns:
            Scalar, 0 where fewer than two cases are left. Its gradient reaches the features times ``smooth_weight``.
        """
        masks = torch.cat([contour(label), surroundings(label, self.config.ring)], 1)
        present = masks.flatten(2).any(2).all(1)
        if present.sum() < 2:
            return torch.zeros((), device=label.device)
        means = [mean_inside(maps, masks)[present] for maps in (upsample_linear(half.float()), full)]
        features = _scale_gradient(torch.cat(means, 2), self.config.smooth_weight)
        labels = torch.tensor([1, 0], device=label.device).repeat(len(features))
        return semi_hard_triplet_loss(self.embedder(features).flatten(0, 1), labels, margin=self.config.margin)

    def deploy(self) -> None:
        """Prediction needs the backbone alone."""
        del self.embedder

    def _gradients(self) -> list[Tensor]:
        """Gradients of the backbone's parameters; they outlive the next clearing."""
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.backbone.parameters()]


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x``, with its gradient times ``factor``."""
    constant = x.detach()
    return constant + factor * (x - constant)
