"""SAML (Liu et al., MICCAI 2020): meta-learning over centers with losses on the shape of the structure."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dgbench.info import MethodConfig, MethodInfo, Range

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class SamlConfig(MethodConfig):
    """The defaults are the publication's where the protocol leaves them open; README.md explains each key."""

    inner_lr: Weight = 1e-4
    outer_lr_factor: Positive = 1.0
    metric_lr_factor: Positive = 1.0
    clip: Positive = 10.0
    dice_only: bool = False
    compact_weight: Weight = 1.0
    compact_mode: Literal["slice2d", "volume3d"] = "slice2d"
    smooth_weight: Weight = 0.005
    margin: Positive = 10.0
    ring: Annotated[int, Field(ge=1)] = 5
    hidden: Annotated[int, Field(ge=1)] = 24
    embedding: Annotated[int, Field(ge=1)] = 16
    release_split: bool = False

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {
        "inner_lr": Range(low=1e-4, high=1e-1, log=True),
        "outer_lr_factor": Range(low=0.1, high=10.0, log=True),
        "compact_weight": Range(low=0.1, high=10.0, log=True),
        "smooth_weight": Range(low=5e-4, high=5e-2, log=True),
        "compact_mode": ("slice2d", "volume3d"),
    }


INFO = MethodInfo(
    name="saml",
    target="dgbench_methods.saml.method:Saml",
    title="SAML",
    paper="Liu et al., Shape-aware Meta-learning for Generalizing Prostate MRI Segmentation to Unseen Domains, MICCAI 2020",
    year=2020,
    config=SamlConfig,
    needs=frozenset({"domain-batch"}),
    min_sources=2,
)
