"""Empirical risk minimisation under nnU-Net's default augmentation: a control row."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dgbench.info import MethodConfig, MethodInfo, Range

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class NnAugConfig(MethodConfig):
    """The defaults are nnU-Net's; README.md explains each key. A pair is an interval to draw from."""

    rotation_p: Probability = 0.2
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] | None = None
    scaling_p: Probability = 0.2
    scaling: tuple[Positive, Positive] = (0.7, 1.4)
    noise_p: Probability = 0.1
    noise_max: Annotated[float, Field(ge=0)] = 0.1
    noise_reading: Literal["sd", "variance"] = "sd"
    unit: Literal["zscore", "range"] = "zscore"
    blur_p: Probability = 0.2
    blur_sigma: tuple[Positive, Positive] = (0.5, 1.0)
    brightness_p: Probability = 0.15
    brightness: tuple[Positive, Positive] = (0.75, 1.25)
    contrast_p: Probability = 0.15
    contrast: tuple[Positive, Positive] = (0.75, 1.25)
    low_resolution_p: Probability = 0.25
    low_resolution: tuple[Share, Share] = (0.5, 1.0)
    gamma_inverted_p: Probability = 0.1
    gamma_p: Probability = 0.3
    gamma: tuple[Positive, Positive] = (0.7, 1.5)
    channel_p: Probability = 0.5
    mirror_p: Probability = 0.5

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {}


INFO = MethodInfo(
    name="erm_nnaug",
    target="dgbench_methods.erm_nnaug.method:NnAugERM",
    title="Empirical risk minimisation, nnU-Net's augmentation (control)",
    paper=(
        "Isensee et al., nnU-Net: A Self-Configuring Method for Deep Learning-Based Biomedical Image Segmentation, "
        "Nature Methods 18, 2021"
    ),
    year=2021,
    config=NnAugConfig,
)
