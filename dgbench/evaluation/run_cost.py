"""What a run's networks cost: parameters and operations of its stages, by counting convention."""

from dataclasses import replace
from typing import Any

import torch

from dgbench.evaluation.cost import Convention, Cost, count_cost
from dgbench.evaluation.job import EvaluationJob
from dgbench.method import Method
from dgbench.training.job import TrainJob
from dgbench.training.loop import build_method

CONVENTIONS: tuple[Convention, ...] = ("table-vi", "macs", "flops")


def run_cost(job: EvaluationJob) -> dict[str, dict[str, Any]]:
    """By convention: parameters and operations of the run's stages, each at its own crop and width, and their sum. ``table-vi`` counts the
    training network with all heads, as the paper does; the other conventions count what is deployed."""
    stages = {training.stage: stage_cost(training) for training in job.training}
    return {
        convention: {
            "params": sum(costs[convention]["params"] for costs in stages.values()),
            "gflops": sum(costs[convention]["gflops"] for costs in stages.values()),
            "stages": {stage: costs[convention] for stage, costs in stages.items()},
        }
        for convention in CONVENTIONS
    }


def stage_cost(training: TrainJob) -> dict[Convention, dict[str, Any]]:
    """One stage's parameters and operations (1e9) by convention, for one crop."""
    method = meta_method(training)
    shape = (1, training.resolved.protocol.task.in_channels, *training.resolved.preset.stages[training.stage].crop)
    whole = count_cost(method, shape, convention="table-vi")
    method.deploy()
    deployed = count_cost(method, shape, convention="macs", call=_predict)
    doubled = replace(deployed, gflops=2 * deployed.gflops)
    costs: dict[Convention, Cost] = {"table-vi": whole, "macs": deployed, "flops": doubled}
    return {name: {"params": c.params, "gflops": c.gflops, "input": list(shape)} for name, c in costs.items()}


def meta_method(training: TrainJob) -> Method[Any]:
    """The method of a training job on the ``meta`` device: shapes without numbers."""
    return build_method(replace(training, device="cpu"), torch.device("meta"))


def _predict(method: Any, image: torch.Tensor) -> Any:
    return method.predict(image)
