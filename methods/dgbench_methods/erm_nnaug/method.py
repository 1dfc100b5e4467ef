"""nnU-Net's default augmentation on the device, after the protocol's: a control for methods that only augment."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dgbench.method import Batch, Method, StepContext
from dgbench.ops.contrast import gamma_curve, scale_contrast
from dgbench.ops.sharpness import gaussian_blur, low_resolution
from dgbench.ops.warp import rotation_matrix, warp
from dgbench_methods.erm_nnaug import INFO, NnAugConfig

FLAT = 3
"""A crop whose longest side is more than this many times its first is moved in the plane only (nnU-Net)."""


class NnAugERM(Method[NnAugConfig]):
    """The loss and prediction of erm; only the training images differ."""

    info = INFO

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        """nnU-Net's transforms in its order, each drawn for each case."""
        images, labels = [], []
        for index in range(len(batch.image)):
            rng = np.random.default_rng(ctx.generator("transforms", index).initial_seed())
            image, label = batch.image[index], batch.label[index]
            matrix = self.affine(image.shape[1:], rng)
            if matrix is not None:
                image, label = warp(image, label, matrix)
            image = self.add_noise(image, rng, ctx.generator("noise", index))
            image = self.change(image[None], rng)[0]
            axes = [axis for axis in range(1, image.ndim) if rng.random() < self.config.mirror_p]
            images.append(image.flip(axes))
            labels.append(label.flip(axes))
        return replace(batch, image=torch.stack(images), label=torch.stack(labels))

    def affine(self, shape: Sequence[int], rng: np.random.Generator) -> Tensor | None:
        """Rotation and scaling of a crop of ``shape`` as a map of voxel offsets from output to source, or None where neither is drawn.

        The angles are from U(-a, a), with a = 30 degrees about all three axes; 180 degrees in the plane for a flat crop; in 2D 180 degrees,
        or 15 where one side is more than 1.5 times the other. A scale above 1 shows everything smaller.
        """
        config, ndim = self.config, len(shape)
        turns, scales = rng.random() < config.rotation_p, rng.random() < config.scaling_p
        in_plane = ndim == 3 and is_flat(shape)
        if ndim == 2:
            limit = 15.0 if max(shape) > 1.5 * min(shape) else 180.0
        else:
            limit = 180.0 if in_plane else 30.0
        limit = limit if config.rotation_degrees is None else config.rotation_degrees
        degrees = rng.uniform(-limit, limit, ndim * (ndim - 1) // 2)
        scale = float(rng.uniform(*config.scaling))
        if not turns and not scales:
            return None
        if in_plane:
            degrees[:2] = 0
        matrix = rotation_matrix(degrees.tolist() if turns else [0.0] * len(degrees), self.setup.task.spacing)
        if not scales:
            return matrix
        factors = [1.0 if in_plane and axis == 0 else scale for axis in range(ndim)]
        return matrix * torch.tensor(factors, dtype=matrix.dtype)

    def add_noise(self, image: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """Gaussian noise on an image (C, *spatial), the same in every channel."""
        fires, drawn = rng.random() < self.config.noise_p, float(rng.uniform(0, self.config.noise_max))
        if not fires:
            return image
        deviation = drawn if self.config.noise_reading == "sd" else drawn**0.5
        noise = torch.randn(image.shape[1:], generator=generator, device=generator.device).to(image)
        if self.config.unit == "zscore":
            return image + deviation * image.flatten(1).std(1).view(-1, *[1] * noise.ndim) * noise
        return image + deviation * noise

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Blur, brightness, contrast, low resolution and gamma of one case (1, C, *spatial): whether a transform comes is drawn for the
        case, its magnitude for each channel; blur and low resolution then still leave a channel out with 1 - ``channel_p``."""
        config, shape = self.config, image.shape[2:]
        probabilities = (
            config.blur_p,
            config.brightness_p,
            config.contrast_p,
            config.low_resolution_p,
            config.gamma_inverted_p,
            config.gamma_p,
        )
        blurs, brightens, contrasts, coarsens, bends_inverted, bends = (rng.random() < p for p in probabilities)
        channels = []
        for channel in image.chunk(image.shape[1], dim=1):
            if blurs and rng.random() < config.channel_p:
                channel = gaussian_blur(channel, [float(rng.uniform(*config.blur_sigma)) for _ in shape])
            if brightens:
                center = channel.mean() if config.unit == "zscore" else torch.zeros_like(channel.mean())
                channel = (channel - center) * around_one(config.brightness, rng) + center
            if contrasts:
                channel = scale_contrast(channel, around_one(config.contrast, rng))
            if coarsens and rng.random() < config.channel_p:
                factors = [float(rng.uniform(*config.low_resolution))] * len(shape)
                if len(shape) == 3 and is_flat(shape):
                    factors[0] = 1.0
                channel = low_resolution(channel, factors)
            if bends_inverted:
                channel = gamma_curve(channel, around_one(config.gamma, rng), invert=True, retain_statistics=True)
            if bends:
                channel = gamma_curve(channel, around_one(config.gamma, rng), retain_statistics=True)
            channels.append(channel)
        return torch.cat(channels, dim=1)


def is_flat(shape: Sequence[int]) -> bool:
    """Whether a 3D crop counts as anisotropic for nnU-Net: its longest side is more than three times its first."""
    return max(shape) > FLAT * shape[0]


def around_one(interval: tuple[float, float], rng: np.random.Generator) -> float:
    """A factor below 1 and one above 1 are equally likely, whatever the lengths of the two parts of ``interval``."""
    low, high = interval
    if rng.random() < 0.5 and low < 1:
        return float(rng.uniform(low, 1))
    return float(rng.uniform(max(low, 1), high))
