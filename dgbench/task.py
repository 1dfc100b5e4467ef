"""What is segmented: dimensions, channels, spacing, and how intensities become [0, 1], of any task (protocol.md §1)."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dgbench.frozen import Frozen


class Window(Frozen):
    """Clip to [low, high] in the image's own units (HU for CT) and scale linearly to [0, 1]."""

    kind: Literal["window"] = "window"
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"window low {self.low} must be below high {self.high}")
        return self


class Percentile(Frozen):
    """Clip each image to its own percentiles and scale linearly to [0, 1]; for intensities without a unit (MRI)."""

    kind: Literal["percentile"] = "percentile"
    low: Annotated[float, Field(ge=0, lt=50)] = 0.5
    high: Annotated[float, Field(gt=50, le=100)] = 99.5


class Task(Frozen):
    """What a network sees and answers: dimensions, channels, voxel spacing (mm, z y x) and intensity normalisation."""

    ndim: Literal[2, 3] = 3
    in_channels: Annotated[int, Field(ge=1)] = 1
    out_channels: Annotated[int, Field(ge=1)] = 1
    spacing: tuple[Annotated[float, Field(gt=0)], ...]
    intensity: Annotated[Window | Percentile, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _dimensions(self) -> Self:
        if len(self.spacing) != self.ndim:
            raise ValueError(f"spacing has {len(self.spacing)} entries, the task has {self.ndim} dimensions")
        return self

    def voxels(self, millimetres: Sequence[float]) -> tuple[int, ...]:
        """Lengths in mm per axis as whole voxels of this task, rounded up."""
        return tuple(int(-(-mm // step)) for mm, step in zip(millimetres, self.spacing, strict=True))
