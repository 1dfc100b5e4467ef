"""DART (Jain et al., CVPR 2023): branches that train on different mixtures of the sources and are averaged from time to time."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dgbench.info import MethodConfig, MethodInfo, Range


class DARTConfig(MethodConfig):
    """The defaults are the publication's; README.md explains each key."""

    deploy: Literal["weights", "ensemble"] = "weights"
    mixtures: Literal["published", "own-center"] | None = None
    interval: Annotated[float, Field(gt=0, le=1)] = 0.1

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {"interval": (0.05, 0.1, 0.2)}


INFO = MethodInfo(
    name="dart",
    target="dgbench_methods.dart.method:DART",
    title="Diversify-Aggregate-Repeat Training",
    paper="Jain et al., DART: Diversify-Aggregate-Repeat Training Improves Generalization of Neural Networks, CVPR 2023",
    year=2023,
    config=DARTConfig,
    needs=frozenset({"domain-batch"}),
    min_sources=2,
)
