"""HOG (Bhattarai et al., Medical Image Analysis 2023): segmentation beside the regression of gradient histograms of the input."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dgbench.info import MethodConfig, MethodInfo, Range


class HOGConfig(MethodConfig):
    """The defaults suit crops of any size; README.md explains each key."""

    target: Literal["dense", "vector"] = "dense"
    cell: Literal[8, 16] = 16
    orientations: Annotated[int, Field(ge=2)] = 9
    hidden: Annotated[int, Field(ge=1)] = 64
    weight: Annotated[float, Field(ge=0)] = 1.0
    normalise: bool = True
    literal_bug: bool = False

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {"weight": Range(low=0.1, high=10.0, log=True)}


INFO = MethodInfo(
    name="hog",
    target="dgbench_methods.hog.method:HOG",
    title="Segmentation with a HOG auxiliary task",
    paper="Bhattarai et al., Histogram of Oriented Gradients Meet Deep Learning, Medical Image Analysis 2023",
    year=2023,
    config=HOGConfig,
)
