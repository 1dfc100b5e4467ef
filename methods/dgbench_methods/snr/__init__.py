"""SNR (Jin et al., IEEE TMM 2022): normalise the style of early features away, and give back what the task needs of it."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dgbench.info import MethodConfig, MethodInfo, Range


class SNRConfig(MethodConfig):
    """The defaults place the modules as the dual-task paper's cost table shows; README.md explains each key."""

    site: Literal["output", "normalised"] = "output"
    points: Annotated[int, Field(ge=1, le=4)] = 3
    reduction: Annotated[int, Field(ge=1)] = 16
    restitution: bool = True
    restitution_weight: Annotated[float, Field(ge=0)] = 0.01
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.01

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {
        "restitution_weight": Range(low=0.001, high=0.1, log=True),
        "points": (1, 2, 3),
        "site": ("output", "normalised"),
    }

    @model_validator(mode="after")
    def _site_has_as_many_points(self) -> Self:
        if self.site == "normalised" and self.points > 3:
            raise ValueError("site=normalised has three points: there is no strided convolution after layer3")
        return self


INFO = MethodInfo(
    name="snr",
    target="dgbench_methods.snr.method:SNR",
    title="Style normalization and restitution",
    paper="Jin et al., Style Normalization and Restitution for Domain Generalization and Adaptation, IEEE TMM 2022",
    year=2022,
    config=SNRConfig,
)
