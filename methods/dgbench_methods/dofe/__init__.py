"""DoFE (Wang et al., IEEE TMI 2020): features enriched by a pool of domain prototypes, mixed by similarity."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dgbench.info import MethodConfig, MethodInfo, Range


class DoFEConfig(MethodConfig):
    """README.md explains each key."""

    pool_update: Literal["ema", "frozen"] = "ema"
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    lambda_mode: Literal["image", "batch"] = "image"
    code_weight: Annotated[float, Field(ge=0)] = 0.1
    pretrain: Annotated[float, Field(ge=0, lt=0.9)] = 1 / 3
    prototypes: Annotated[float, Field(gt=0, le=0.1)] = 0.05
    reduce: bool = False

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {
        "code_weight": Range(low=0.01, high=1.0, log=True),
        "momentum": (0.8, 0.9, 0.99),
    }


INFO = MethodInfo(
    name="dofe",
    target="dgbench_methods.dofe.method:DoFE",
    title="Domain-oriented feature embedding",
    paper="Wang et al., DoFE: Domain-Oriented Feature Embedding for Generalizable Fundus Image Segmentation, IEEE TMI 2020",
    year=2020,
    config=DoFEConfig,
    needs=frozenset({"domain-batch"}),
    min_sources=2,
)
