"""LA-Net (Uslu et al., IEEE TMI 2022), a reconstruction: segmentation and its edge, joined by gates."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dgbench.info import MethodConfig, MethodInfo, Range


class LANetConfig(MethodConfig):
    """README.md explains each key."""

    size: Literal["full", "lite"] = "full"
    edge: Literal["inner", "band"] = "inner"
    edge_weight: Annotated[float, Field(ge=0)] = 1.0
    edge_channels: Annotated[int, Field(ge=1)] = 4

    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {
        "edge_weight": Range(low=0.1, high=3.0, log=True),
        "edge": ("inner", "band"),
    }


INFO = MethodInfo(
    name="lanet",
    target="dgbench_methods.lanet.method:LANet",
    title="LA-Net (reconstruction)",
    paper="Uslu et al., LA-Net: A Multi-Task Deep Network for the Segmentation of the Left Atrium, IEEE TMI 2022",
    year=2022,
    config=LANetConfig,
)
