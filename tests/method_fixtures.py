"""What the tests of methods share: building one, a few cases, the method sheet's fixtures, and questions that many are asked."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from dgbench.evaluation.run_cost import method_cost
from dgbench.method import Batch, Method, Setup
from dgbench.protocol import load_protocol
from dgbench.registry import find_method
from dgbench.testing import small_setup

MethodT = TypeVar("MethodT", bound=Method[Any])

ERM_GFLOPS, ERM_PARAMS = 945.2347, 37_915_650
"""Coarse and fine stage of the plain backbone by the convention of Table VI (945.23, 3.79e7)."""


def make(cls: type[MethodT], setup: Setup | None = None, **overrides: object) -> MethodT:
    """A method with reproducible weights; ``overrides`` as values, or as the texts of the command line."""
    torch.manual_seed(0)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in overrides.items()}
    return cls(cls.info.configure(texts), setup or small_setup())


def cases(domains: tuple[int, ...] = (0, 1), sides: tuple[int, ...] = (8, 16, 16), channels: int = 1) -> Batch:
    """Noise in [0, 1], labelled where its first channel is bright; one case for each of ``domains``."""
    image = torch.rand(len(domains), channels, *sides, generator=torch.Generator().manual_seed(1))
    return Batch(image, (image[:, :1] > 0.7).float(), torch.tensor(domains))


def sheet_x(*sides: int) -> Tensor:
    """X(B, C, D, H, W) of the method sheet, float64; by default X(2, 3, 4, 5, 6)."""
    axes = [torch.arange(n, dtype=torch.float64) for n in sides or (2, 3, 4, 5, 6)]
    b, c, d, h, w = torch.meshgrid(*axes, indexing="ij")
    wave = torch.sin(0.7 * (c + 1) + 0.3 * d + 0.2 * h + 0.11 * w + b)
    return 0.5 * (b + 1) * wave + 0.1 * (b + 1) * (c + 1)


def sheet_u() -> Tensor:
    """U of the method sheet: X(1, 1, 8, 10, 12) between its minimum and maximum, float64."""
    x = sheet_x(1, 1, 8, 10, 12)
    return (x - x.min()) / (x.max() - x.min())


def paper_cost(name: str, **overrides: str) -> Mapping[str, Any]:
    """By convention, the cost of a method's two networks at the paper's sizes, with two source centers."""
    info = find_method(name)
    return method_cost(info, info.configure(overrides), load_protocol("pancreas-tumor").resolve("paper", {}), 2)


def assert_prediction_changes_nothing(method: Method[Any], image: Tensor) -> Tensor:
    """Predict with ``method``; its state must be what it was, to the bit. Gives the prediction."""
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with torch.no_grad():
        answer = method.predict(image)
    after = method.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    return answer


def assert_predicts_as_the_backbone(method: Method[Any], image: Tensor) -> None:
    """Before and after it is deployed, and nothing of training is left then."""
    with torch.no_grad():
        expected = torch.sigmoid(method.backbone(image))
        assert torch.equal(assert_prediction_changes_nothing(method, image), expected)
        method.deploy()
        assert torch.equal(assert_prediction_changes_nothing(method, image), expected)
    assert all(name.startswith("backbone.") for name in method.state_dict())
