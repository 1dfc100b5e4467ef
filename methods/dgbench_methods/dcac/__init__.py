"""DCAC (Hu et al., IEEE TMI 2023): a segmentation head whose filters are computed from the domain and from the content of each case."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dgbench.info import MethodConfig, MethodInfo, Range


class DCACConfig(MethodConfig):
    """README.md explains each key."""

    answer: Literal["softmax", "sigmoid"] = "softmax"
    combine: Literal["subtract", "add"] = "subtract"
    head_norm: bool = True
    means: Literal["normalised", "plain"] = "normalised"
    domain_weight: Annotated[float, Field(ge=0)] = 1.0

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {"domain_weight": Range(low=0.1, high=3.0, log=True)}


INFO = MethodInfo(
    name="dcac",
    target="dgbench_methods.dcac.method:DCAC",
    title="Domain- and content-adaptive convolution",
    paper="Hu et al., Domain and Content Adaptive Convolution Based Multi-Source Domain Generalization, IEEE TMI 2023",
    year=2023,
    config=DCACConfig,
)
