"""BigAug (Zhang et al., TMI 2020): nine stacked transforms of every training image."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from dgbench.info import MethodConfig, MethodInfo, Range

Transform = Literal["blur", "sharpen", "noise", "brightness", "gamma", "perturbation", "rotation", "scaling", "elastic"]
TRANSFORMS: tuple[Transform, ...] = get_args(Transform)
"""In the order in which they are applied."""

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class BigAugConfig(MethodConfig):
    """The defaults are the publication's ranges; README.md explains each key. A pair is an interval to draw from uniformly."""

    p: Annotated[float, Field(ge=0, le=1)] = 0.5
    transforms: tuple[Transform, ...] = TRANSFORMS
    blur_sigma: tuple[NotNegative, NotNegative] = (0.25, 1.5)
    sharpen_sigma: tuple[NotNegative, NotNegative] = (0.25, 1.5)
    sharpen_amount: tuple[NotNegative, NotNegative] = (10.0, 30.0)
    noise_std: tuple[NotNegative, NotNegative] = (0.1, 1.0)
    noise_std_unit: Literal["zscore", "range"] = "zscore"
    brightness: NotNegative = 0.1
    gamma: tuple[Positive, Positive] = (0.5, 4.5)
    perturbation: NotNegative = 0.1
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 20.0
    scaling: tuple[Positive, Positive] = (0.4, 1.6)
    elastic_sigma: tuple[Positive, Positive] = (10.0, 13.0)
    elastic_amplitude: tuple[NotNegative, NotNegative] = (0.0, 1000.0)

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {
        "p": Range(low=0.1, high=0.8),
        "transforms": (TRANSFORMS, TRANSFORMS[:6], TRANSFORMS[6:]),
        "gamma": ((0.5, 4.5), (0.5, 2.0)),
    }


INFO = MethodInfo(
    name="bigaug",
    target="dgbench_methods.bigaug.method:BigAug",
    title="BigAug",
    paper=(
        "Zhang et al., Generalizing Deep Learning for Medical Image Segmentation to Unseen Domains via Deep Stacked Transformation, "
        "IEEE TMI 39(7), 2020"
    ),
    year=2020,
    config=BigAugConfig,
)
