"""DAM (Zhang and Ma, IEEE TCSVT 2022): weakly and strongly augmented cases train one trunk through two heads."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from dgbench.info import MethodConfig, MethodInfo, Range

Operation = Literal[
    "shear",
    "translate",
    "rotate",
    "brightness",
    "contrast",
    "gamma",
    "solarize",
    "posterize",
    "equalize",
    "autocontrast",
    "invert",
    "sharpness",
    "blur",
    "noise",
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)


class DAMConfig(MethodConfig):
    """The defaults are the publication's policy on the 3D operations; README.md explains each key."""

    operations: Annotated[tuple[Operation, ...], Field(min_length=1)] = OPERATIONS
    per_view: Annotated[int, Field(ge=0)] = 2

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {"per_view": (1, 2, 3)}


INFO = MethodInfo(
    name="dam",
    target="dgbench_methods.dam.method:DAM",
    title="Data augmentation as multi-task learning",
    paper="Zhang and Ma, A Good Data Augmentation Policy Is Not All You Need: A Multi-Task Learning Perspective, IEEE TCSVT 2022",
    year=2022,
    config=DAMConfig,
)
