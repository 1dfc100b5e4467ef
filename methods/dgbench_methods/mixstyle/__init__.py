"""MixStyle (Zhou et al., ICLR 2021): features of one source case with the style of another."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dgbench.info import MethodConfig, MethodInfo, Range

Layer = Literal["stem", "layer0", "layer1", "layer2", "layer3", "layer4"]


class MixStyleConfig(MethodConfig):
    """The defaults are the publication's, with the partner from another center; README.md explains each key."""

    p: Annotated[float, Field(ge=0, le=1)] = 0.5
    alpha: Annotated[float, Field(gt=0)] = 0.1
    mix: Literal["crossdomain", "random", "bank"] = "crossdomain"
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)] = ("layer0", "layer1")
    eps: Annotated[float, Field(gt=0)] = 1e-6
    bank_size: Annotated[int, Field(ge=1)] = 64

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {
        "p": Range(low=0.1, high=1.0),
        "alpha": Range(low=0.05, high=1.0, log=True),
        "layers": (("layer0",), ("layer0", "layer1"), ("layer0", "layer1", "layer2")),
    }


INFO = MethodInfo(
    name="mixstyle",
    target="dgbench_methods.mixstyle.method:MixStyle",
    title="MixStyle",
    paper="Zhou et al., Domain Generalization with MixStyle, ICLR 2021",
    year=2021,
    config=MixStyleConfig,
    needs=frozenset({"domain-batch"}),
    min_sources=2,
)
