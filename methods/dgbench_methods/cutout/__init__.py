"""Cutout (DeVries and Taylor, 2017): a box of every training image is erased."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dgbench.info import MethodConfig, MethodInfo, Range


class CutoutConfig(MethodConfig):
    """README.md explains each key; the publication gives no edge for segmentation."""

    edge: Annotated[float, Field(gt=0, le=1)] = 0.25
    holes: Annotated[int, Field(ge=1)] = 1
    fill: Literal["mean", "min"] = "mean"

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {"edge": (0.125, 0.25, 0.5), "fill": ("mean", "min")}


INFO = MethodInfo(
    name="cutout",
    target="dgbench_methods.cutout.method:Cutout",
    title="Cutout",
    paper="DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, arXiv 1708.04552, 2017",
    year=2017,
    config=CutoutConfig,
)
