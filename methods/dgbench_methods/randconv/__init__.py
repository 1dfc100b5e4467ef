"""RandConv (Xu et al., ICLR 2021), and the form of it that the dual-task framework builds on."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from dgbench.info import MethodConfig, MethodInfo, Range


class RandConvConfig(MethodConfig):
    """The defaults are the publication's RC_mix with consistency; README.md explains each key."""

    kernel_sizes: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 3, 5, 7)
    bias: bool = False
    mix: bool = True
    identity_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    rescale: Literal["none", "clamp", "minmax", "clamp-minmax"] = "none"
    draw: Literal["batch", "case"] = "batch"
    views: Annotated[int, Field(ge=1)] = 3
    compound: bool = False
    supervise: Literal["first", "all"] = "first"
    consistency: Literal["kl", "mse"] = "kl"
    consistency_weight: Annotated[float, Field(ge=0)] = 10.0

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {
        "consistency_weight": Range(low=0.1, high=30.0, log=True),
        "rescale": ("none", "clamp", "minmax", "clamp-minmax"),
        "mix": (True, False),
    }

    @field_validator("kernel_sizes")
    @classmethod
    def _odd(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(k < 1 or k % 2 == 0 for k in sizes):
            raise ValueError(f"kernel sizes {sizes} must be odd and positive, so that the image keeps its grid")
        return sizes


INFO = MethodInfo(
    name="randconv",
    target="dgbench_methods.randconv.method:RandConv",
    title="RandConv",
    paper="Xu et al., Robust and Generalizable Visual Representation Learning via Random Convolutions, ICLR 2021",
    year=2021,
    config=RandConvConfig,
)
VARIANTS = (
    MethodInfo(
        name="randconv_seed",
        target=INFO.target,
        title="RandConv as in the dual-task framework",
        paper=INFO.paper,
        year=INFO.year,
        config=RandConvConfig,
        defaults={
            "kernel_sizes": (3, 5, 7),
            "bias": True,
            "rescale": "clamp-minmax",
            "draw": "case",
            "views": 2,
            "supervise": "all",
            "consistency": "mse",
            "consistency_weight": 1.0,
        },
        space={"consistency_weight": Range(low=0.1, high=30.0, log=True), "mix": (True, False)},
    ),
)
