"""The dual-task framework: segmentation and distance regression on pairs of randomly convolved views, and its ablations."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dgbench.info import MethodConfig, MethodInfo, Range

Stages = Literal["off", "fine", "all"]
Weight = Annotated[float, Field(gt=0)]

RELEASE: Mapping[str, Any] = {
    "upsample": "nearest",
    "cls": "fine",
    "cos_distance": "fine",
    "task_conversion": "release",
    "denominator": "release",
    "corner_negatives": True,
}
"""What ``profile=release`` changes, each still open to an explicit value."""


class DualTaskConfig(MethodConfig):
    """The defaults are the full framework with ``profile=paper``; README.md explains each key."""

    profile: Literal["paper", "release"] = "paper"
    upsample: Literal["protocol", "nearest"] = "protocol"

    views: Literal[1, 2] = 2
    cls: Stages = "all"
    dis: bool = True
    tran: bool = True
    con: bool = True
    cos: bool = True
    cos_distance: Stages = "all"

    weight_cls: Weight = 1.0
    weight_dis: Weight = 1.0
    weight_tran: Weight = 1.0
    weight_con: Weight = 0.1
    weight_cos: Weight = 1.0

    task_conversion: Literal["hard", "smooth", "release"] = "hard"
    conversion_k: Annotated[float, Field(gt=0)] = 10.0
    temperature: Annotated[float, Field(gt=0)] = 0.05
    denominator: Literal["paper", "release"] = "paper"
    corner_negatives: bool = False

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {
        "weight_dis": Range(low=0.1, high=3.0, log=True),
        "weight_con": Range(low=0.01, high=1.0, log=True),
        "weight_cos": Range(low=0.1, high=10.0, log=True),
        "task_conversion": ("hard", "smooth"),
        "conversion_k": Range(low=3.0, high=50.0, log=True),
    }

    @model_validator(mode="before")
    @classmethod
    def _profile(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("profile") == "release":
            return {**RELEASE, **values}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tran and not self.dis:
            raise ValueError("tran converts the distance map, so it needs dis=true")
        if self.cos and self.views != 2:
            raise ValueError("cos compares two views, so it needs views=2")
        return self


def _variant(name: str, title: str, searched: tuple[str, ...] | None = None, **defaults: Any) -> MethodInfo:
    """A configuration with a name; tuning searches the keys of the space that ``searched`` names, all by default."""
    space = None if searched is None else {key: DualTaskConfig.space[key] for key in searched}
    return MethodInfo(
        name=name,
        target="dgbench_methods.dualtask.method:DualTask",
        title=title,
        paper="Li et al., A Dual-Task Synergy-Driven Generalization Framework for Pancreatic Cancer Segmentation in CT Scans",
        year=2025,
        config=DualTaskConfig,
        defaults=defaults,
        dims=frozenset({3}),
        space=space,
    )


_NOTHING = {"views": 1, "cls": "off", "dis": False, "tran": False, "con": False, "cos": False}

INFO = _variant("dualtask", "Dual-task framework")
VARIANTS = (
    _variant(
        "dualtask_smooth",
        "Dual-task framework, differentiable conversion",
        ("weight_dis", "weight_con", "weight_cos", "conversion_k"),
        task_conversion="smooth",
    ),
    _variant("dualtask_bl", "Dual-task ablation BL", (), **_NOTHING),
    _variant("dualtask_idr", "Dual-task ablation BL+IDR", ("weight_dis",), **_NOTHING | {"dis": True}),
    _variant("dualtask_dtl", "Dual-task ablation BL+DTL", ("weight_dis",), **_NOTHING | {"dis": True, "tran": True}),
    _variant(
        "dualtask_dtl_smooth",
        "Dual-task ablation BL+DTL, differentiable conversion",
        ("weight_dis", "conversion_k"),
        **_NOTHING | {"dis": True, "tran": True, "task_conversion": "smooth"},
    ),
    _variant(
        "dualtask_dsl",
        "Dual-task ablation BL+DSL",
        ("weight_con", "weight_cos"),
        **_NOTHING | {"views": 2, "con": True, "cos": True},
    ),
)
