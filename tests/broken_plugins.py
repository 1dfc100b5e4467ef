"""Methods that each break one promise of the contract, and one that keeps them all."""

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dgbench.info import MethodConfig, MethodInfo
from dgbench.method import Batch, Method, Setup, StepContext


def entry(cls: str, config: type[MethodConfig] = MethodConfig, module: str = "broken_plugins") -> MethodInfo:
    return MethodInfo(name=cls.lower(), target=f"{module}:{cls}", title=cls, paper="none", year=2026, config=config)


class Unbuildable(Method[MethodConfig]):
    info = entry("Unbuildable")

    def __init__(self, config: MethodConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        raise ValueError("three centers are needed")


class FlatLand(Method[MethodConfig]):
    """Declares two dimensions and knows three."""

    info = entry("FlatLand")

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        _, _, _, _, width = batch.image.shape
        return batch.with_image(batch.image / width)


class Reseeding(Method[MethodConfig]):
    info = entry("Reseeding")

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        torch.manual_seed(0)
        return batch


class ReseedingAtBirth(Method[MethodConfig]):
    info = entry("ReseedingAtBirth")

    def __init__(self, config: MethodConfig, setup: Setup) -> None:
        torch.manual_seed(2022)
        super().__init__(config, setup)


class NumpyNoise(Method[MethodConfig]):
    info = entry("NumpyNoise")

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        return batch.with_image(batch.image + 0.01 * np.random.rand())  # noqa: NPY002


class PythonNoise(Method[MethodConfig]):
    info = entry("PythonNoise")

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        return batch.with_image(batch.image + 0.01 * random.random())


class Diverging(Method[MethodConfig]):
    info = entry("Diverging")

    def training_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        losses = dict(super().training_step(batch, ctx))
        return {"loss": losses["loss"], "extra": losses["loss"].detach() / 0}


class WidePrecision(Method[MethodConfig]):
    """Mixes float32 and the run's precision in an operation that takes one dtype."""

    info = entry("WidePrecision")

    def logits(self, image: Tensor) -> Tensor:
        answer: Tensor = self.backbone(image, lambda stage, x: torch.lerp(x.float(), x, 0.5) if stage == "up1" else x)
        return answer


class Detached(Method[MethodConfig]):
    """Learns a head on features that no gradient reaches."""

    info = entry("Detached")

    def logits(self, image: Tensor) -> Tensor:
        answer: Tensor = self.backbone.head(self.backbone.features(image).decoder.detach())
        return answer


class Logits(Method[MethodConfig]):
    """Predicts logits."""

    info = entry("Logits")

    def predict(self, image: Tensor) -> Tensor:
        return self.logits(image)


class Cropped(Method[MethodConfig]):
    info = entry("Cropped")

    def predict(self, image: Tensor) -> Tensor:
        return super().predict(image)[:, :, 1:]


class Restless(Method[MethodConfig]):
    """Draws of its own, other ones in each training."""

    info = entry("Restless")

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        noise = np.random.default_rng().normal(0, 0.01, batch.image.shape)
        return batch.with_image(batch.image + torch.from_numpy(noise).float())


class Sociable(Method[MethodConfig]):
    """Normalises by the batch at prediction."""

    info = entry("Sociable")

    def predict(self, image: Tensor) -> Tensor:
        return super().predict(image - image.mean())


class Adapting(Method[MethodConfig]):
    """Learns from the cases that it predicts."""

    info = entry("Adapting")

    def __init__(self, config: MethodConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.register_buffer("seen", torch.zeros(()))

    def predict(self, image: Tensor) -> Tensor:
        self.seen += 1
        return super().predict(image)


class Forgetful(Method[MethodConfig]):
    """A memory outside of the state."""

    info = entry("Forgetful")

    def __init__(self, config: MethodConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.mean = 0.0

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        self.mean = 0.9 * self.mean + 0.1 * float(batch.image.mean())
        return batch.with_image(batch.image - self.mean)


class Hoarding(Method[MethodConfig]):
    """Keeps what it sees of a batch, on each device its own."""

    info = entry("Hoarding")

    def __init__(self, config: MethodConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.register_buffer("brightness", torch.zeros(()))

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        self.brightness = 0.9 * self.brightness + 0.1 * batch.image.mean()
        return batch


class OwnBackward(Method[MethodConfig]):
    """Goes round the harness's backward pass."""

    info = entry("OwnBackward")

    def train_step(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        losses = self.training_step(batch, ctx)
        ctx.optimizers[0].zero_grad()
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        ctx.step_optimizer()
        return losses


class Moody(Method[MethodConfig]):
    """Exchanges only what it likes."""

    info = entry("Moody")

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        liked = int(1000 * float(batch.image.abs().sum())) % 101
        return batch.with_image(batch.image + 0 * ctx.all_reduce(batch.image.flatten()[:liked]).sum())


class Peeking(Method[MethodConfig]):
    info = entry("Peeking")

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        Path(__file__).with_suffix(".yaml").exists()
        with Path("/etc/hostname").open() as file:
            file.read()
        return batch


class Pairwise(Method[MethodConfig]):
    """Two source centers, wired in."""

    info = entry("Pairwise")

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        first, second = batch.image
        return batch.with_image(torch.stack([first, second]))


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Uncountable(Method[MethodConfig]):
    """A layer that no rule counts."""

    info = entry("Uncountable")

    def __init__(self, config: MethodConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.scale = _Scale()

    def logits(self, image: Tensor) -> Tensor:
        scaled: Tensor = self.scale(super().logits(image))
        return scaled
