"""What a study searches: the keys that a method declares, and for every method the learning rate, the weight decay and the strength of the
protocol's augmentation (protocol.md §8). Needs no torch and no optuna."""

import json
from collections.abc import Mapping
from typing import Any

from dgbench.errors import DgbenchError
from dgbench.info import MethodConfig, MethodInfo, Range
from dgbench.protocol import ResolvedProtocol
from dgbench.store.study import own_stages

LR, WEIGHT_DECAY, AUGMENTATION = "lr_factor", "weight_decay", "augmentation"
HARNESS: Mapping[str, Range] = {
    LR: Range(low=0.1, high=3.0, log=True),
    WEIGHT_DECAY: Range(low=1e-6, high=1e-2, log=True),
    AUGMENTATION: Range(low=0.0, high=2.0),
}
"""Searched for every method: a factor on the learning rate of each of its stages, their weight decay, and how strong the protocol's
augmentation is."""
MEANINGS: Mapping[str, str] = {
    LR: "factor on the learning rate of the method's stages",
    WEIGHT_DECAY: "weight decay of the method's stages",
    AUGMENTATION: "strength of the protocol's rotation and noise",
}
DIGITS = 4
"""Significant digits of a number that a study tries."""

Param = float | int | str
"""A number of a range, or a choice as JSON."""
Space = dict[str, Range | tuple[Any, ...]]


def space_of(info: MethodInfo, fixed: Mapping[str, str]) -> Space:
    """The search space of a method without the keys that are ``fixed`` by hand.

    Raises:
        DgbenchError: the method declares a key that its configuration does not have, or one that is the harness's.
    """
    for key in info.searched:
        if key not in info.config.model_fields:
            raise DgbenchError(
                f"method {info.name}: its search space names {key!r}, which its configuration does not have"
            )
        if key in HARNESS:
            raise DgbenchError(
                f"method {info.name}: {key!r} is searched for every method — give its own key another name"
            )
    return {**HARNESS, **{key: domain for key, domain in info.searched.items() if key not in fixed}}


def default_params(space: Space, config: MethodConfig, resolved: ResolvedProtocol) -> dict[str, Param]:
    """The point of ``space`` that stands for the run as it is, without tuning: every study tries it first.

    Raises:
        DgbenchError: it lies outside of the space.
    """
    values: dict[str, Any] = {LR: 1.0, WEIGHT_DECAY: resolved.preset.weight_decay, AUGMENTATION: 1.0}
    values |= {key: value for key, value in config.model_dump(mode="json").items() if key in space}
    params: dict[str, Param] = {}
    for key, domain in space.items():
        value = values[key]
        inside = (
            domain.low <= value <= domain.high if isinstance(domain, Range) else value in json.loads(json.dumps(domain))
        )
        if not inside:
            raise DgbenchError(
                f"{key}={json.dumps(value)} lies outside of what is searched ({describe(domain)}) — `--set {key}=…` fixes a key of the "
                "method; else correct its search space"
            )
        params[key] = value if isinstance(domain, Range) else json.dumps(value)
    return params


def settings_of(
    params: Mapping[str, Param], space: Space, default: Mapping[str, Param], resolved: ResolvedProtocol
) -> tuple[dict[str, Any], dict[str, float]]:
    """What a point of the space changes: settings of the method, and overrides of the preset (dotted paths) for each of the method's own
    stages. Where the point agrees with ``default`` nothing is changed, so that its key is that of the run without tuning."""
    config: dict[str, Any] = {}
    preset: dict[str, float] = {}
    for key in space:
        param = params[key]
        if param == default[key]:
            continue
        value: Any = json.loads(str(param)) if isinstance(param, str) else rounded(param)
        if key not in HARNESS:
            config[key] = value
            continue
        for stage in own_stages(resolved.protocol):
            if key == LR:
                preset[f"stages.{stage}.lr"] = rounded(resolved.preset.stages[stage].lr * float(value))
            else:
                preset[f"stages.{stage}.{key}"] = float(value)
    return config, preset


def rounded(value: float) -> float:
    """``value`` with as many digits as a study tries; a whole number as it is."""
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def describe(domain: Range | tuple[Any, ...]) -> str:
    """A range or choices in words."""
    return str(domain) if isinstance(domain, Range) else ", ".join(json.dumps(choice) for choice in domain)


def plain(space: Space) -> dict[str, Any]:
    """The space as plain JSON."""
    return {
        key: {"low": domain.low, "high": domain.high, "log": domain.log}
        if isinstance(domain, Range)
        else {"choices": json.loads(json.dumps(domain))}
        for key, domain in space.items()
    }


def rows(space: Space, default: Mapping[str, Param]) -> list[dict[str, str]]:
    """The space for people: a line per key."""
    return [{"key": key, "search": describe(domain), "default": str(default[key])} for key, domain in space.items()]
