"""Building a method for a stage: its setup, and initial weights from the run's seed."""

from typing import Any

import torch

from dgbench.info import MethodConfig, MethodInfo
from dgbench.method import Method, Setup
from dgbench.nets import Backbone
from dgbench.protocol import ResolvedProtocol
from dgbench.registry import load_class
from dgbench.seeds import derive_seed
from dgbench.training.job import TrainJob


def stage_setup(resolved: ResolvedProtocol, stage: str, n_sources: int, total_steps: int) -> Setup:
    """What a method may know of ``stage`` of a protocol."""
    task = resolved.protocol.task

    def build_backbone(**changes: Any) -> Backbone:
        options = {
            "ndim": task.ndim,
            "in_channels": task.in_channels,
            "out_channels": task.out_channels,
            "width": resolved.preset.width,
            "upsample": resolved.protocol.upsample,
        }
        return Backbone(**{**options, **changes})

    stages = resolved.protocol.stages
    roi = stages[stage].roi
    is_fine = roi is not None and stages[roi.source].target == stages[stage].target
    return Setup(task, stage, is_fine, n_sources, total_steps, build_backbone)


def build_method(
    info: MethodInfo, config: MethodConfig, setup: Setup, seed: int, device: torch.device
) -> Method[MethodConfig]:
    """The method with initial weights drawn from the run's ``seed``."""
    torch.manual_seed(derive_seed(seed, "initialisation", setup.stage))
    method: Method[MethodConfig] = load_class(info)(config, setup)
    return method.to(device)


def method_of(job: TrainJob, device: torch.device) -> Method[MethodConfig]:
    """The method of a training job, untrained."""
    setup = stage_setup(job.resolved, job.stage, len(job.split.sources), job.steps)
    return build_method(job.info, job.config, setup, job.seed, device)
