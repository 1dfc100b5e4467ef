"""BigAug (Zhang et al., TMI 2020): image quality, appearance and shape of every training case are changed at random."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dgbench.method import Batch, Method, StepContext
from dgbench.ops.contrast import gamma_curve
from dgbench.ops.sharpness import gaussian_blur, sharpen
from dgbench.ops.warp import elastic_displacement, rotation_matrix, warp
from dgbench_methods.bigaug import INFO, TRANSFORMS, BigAugConfig

Draws = Mapping[str, Sequence[float]]
"""The transforms that a case gets, by name, each with its magnitudes."""


class BigAug(Method[BigAugConfig]):
    """Augments in training only, after the protocol's augmentation; the loss and prediction are those of erm."""

    info = INFO

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        """Nine transforms, one after the other, each drawn for each case."""
        images, labels = [], []
        for index in range(len(batch.image)):
            draws = self.draw(ctx, index)
            image = self.change_intensities(batch.image[index : index + 1], draws, ctx.generator("noise", index))
            moved, label = self.move(image[0], batch.label[index], draws, ctx.generator("elastic", index))
            images.append(moved)
            labels.append(label)
        return replace(batch, image=torch.stack(images), label=torch.stack(labels))

    def draw(self, ctx: StepContext, index: int) -> Draws:
        """What case ``index`` of the step gets. Every magnitude is drawn whether it is used or not, so that leaving one transform out
        changes no other."""
        config, ndim = self.config, self.setup.task.ndim
        rng = np.random.default_rng(ctx.generator("transforms", index).initial_seed())
        shift, change, turn = (
            (-limit, limit) for limit in (config.brightness, config.perturbation, config.rotation_degrees)
        )
        intervals = {
            "blur": [config.blur_sigma],
            "sharpen": [config.sharpen_sigma, config.sharpen_sigma, config.sharpen_amount],
            "noise": [config.noise_std],
            "brightness": [shift],
            "gamma": [config.gamma],
            "perturbation": [change, change],
            "rotation": [turn] * (ndim * (ndim - 1) // 2),
            "scaling": [config.scaling],
            "elastic": [config.elastic_sigma, config.elastic_amplitude],
        }
        fires = rng.random(len(TRANSFORMS)) < config.p
        magnitudes = {name: [float(rng.uniform(*interval)) for interval in intervals[name]] for name in TRANSFORMS}
        return {
            name: magnitudes[name]
            for name, fired in zip(TRANSFORMS, fires, strict=True)
            if fired and name in config.transforms
        }

    def change_intensities(self, image: Tensor, draws: Draws, generator: torch.Generator) -> Tensor:
        """The six transforms of one image (1, C, *spatial) that leave every voxel where it is."""
        deviation = image.flatten(2).std(2).view(1, -1, *[1] * (image.ndim - 2))
        if "blur" in draws:
            image = gaussian_blur(image, draws["blur"][0])
        if "sharpen" in draws:
            image = sharpen(image, *draws["sharpen"])
        if "noise" in draws:
            noise = torch.randn(image.shape, generator=generator, device=generator.device).to(image)
            unit = deviation if self.config.noise_std_unit == "zscore" else torch.ones_like(deviation)
            image = image + draws["noise"][0] * unit * noise
        if "brightness" in draws:
            image = image + draws["brightness"][0]
        if "gamma" in draws:
            image = gamma_curve(image, draws["gamma"][0])
        if "perturbation" in draws:
            scale, shift = draws["perturbation"]
            image = image * (1 + scale) + shift
        return image

    def move(self, image: Tensor, label: Tensor, draws: Draws, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rotation, scaling and elastic deformation of one case's image and label (C, *spatial), read once."""
        if not {"rotation", "scaling", "elastic"} & set(draws):
            return image, label
        spacing = self.setup.task.spacing
        turns = len(spacing) * (len(spacing) - 1) // 2
        matrix = rotation_matrix(draws.get("rotation", [0.0] * turns), spacing) / draws.get("scaling", [1.0])[0]
        displacement = None
        if "elastic" in draws:
            sigma, amplitude = draws["elastic"]
            displacement = elastic_displacement(image.shape[1:], generator, sigma=sigma, amplitude=amplitude)
        return warp(image, label, matrix, displacement)
