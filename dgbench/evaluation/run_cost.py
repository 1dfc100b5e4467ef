"""What the networks of a run or of a method cost: parameters and operations of its stages, by counting convention."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from dgbench.evaluation.cost import Convention, Cost, count_cost
from dgbench.evaluation.job import EvaluationJob
from dgbench.info import MethodConfig, MethodInfo
from dgbench.method import Method
from dgbench.protocol import ResolvedProtocol
from dgbench.training.build import build_method, stage_setup

CONVENTIONS: tuple[Convention, ...] = ("table-vi", "macs", "flops")


def run_cost(job: EvaluationJob) -> dict[str, dict[str, Any]]:
    """By convention: parameters and operations of the run's stages, each at its own crop and width, and their sum. ``table-vi`` counts the
    training network with all heads, as the paper does; the other conventions count what is deployed."""
    return _summed(
        {
            training.stage: stage_cost(
                training.info, training.config, training.resolved, training.stage, len(training.split.sources)
            )
            for training in job.training
        }
    )


def method_cost(
    info: MethodInfo, config: MethodConfig, resolved: ResolvedProtocol, n_sources: int
) -> dict[str, dict[str, Any]]:
    """As :func:`run_cost`, of a method that need not have been run, over its own stages of a protocol."""
    shared = resolved.protocol.shared_stages
    stages = [stage for stage in resolved.protocol.stages if stage not in shared]
    return _summed({stage: stage_cost(info, config, resolved, stage, n_sources) for stage in stages})


def stage_cost(
    info: MethodInfo, config: MethodConfig, resolved: ResolvedProtocol, stage: str, n_sources: int
) -> dict[Convention, dict[str, Any]]:
    """One stage's parameters and operations (1e9) by convention, for one crop."""
    method = meta_method(info, config, resolved, stage, n_sources)
    shape = (1, resolved.protocol.task.in_channels, *resolved.preset.stages[stage].crop)
    whole = count_cost(method, shape, convention="table-vi")
    method.deploy()
    deployed = count_cost(method, shape, convention="macs", call=_predict)
    doubled = replace(deployed, gflops=2 * deployed.gflops)
    costs: dict[Convention, Cost] = {"table-vi": whole, "macs": deployed, "flops": doubled}
    return {name: {"params": c.params, "gflops": c.gflops, "input": list(shape)} for name, c in costs.items()}


def meta_method(
    info: MethodInfo, config: MethodConfig, resolved: ResolvedProtocol, stage: str, n_sources: int
) -> Method[MethodConfig]:
    """The method on the ``meta`` device: shapes without numbers."""
    setup = stage_setup(resolved, stage, n_sources, resolved.steps(stage, info.draws_factor))
    return build_method(info, config, setup, 0, torch.device("meta"))


def _summed(stages: Mapping[str, Mapping[Convention, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return {
        convention: {
            "params": sum(costs[convention]["params"] for costs in stages.values()),
            "gflops": sum(costs[convention]["gflops"] for costs in stages.values()),
            "stages": {stage: costs[convention] for stage, costs in stages.items()},
        }
        for convention in CONVENTIONS
    }


def _predict(method: Any, image: torch.Tensor) -> Any:
    method.begin_case(image)
    try:
        return method.predict(image)
    finally:
        method.end_case()
