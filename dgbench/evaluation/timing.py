"""How long methods take on this machine: a training step and a prediction of every stage, on crops that are in memory already.

Methods take turns, so that what else the machine does hits all of them alike; the first rounds are dropped, the device is waited for, and
medians with quartiles are reported. Times of a busy machine are wrong: run this on an idle one.
"""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dgbench.atomic import write_json
from dgbench.inference.predictor import Predictor
from dgbench.info import MethodConfig, MethodInfo
from dgbench.method import Batch, Method
from dgbench.protocol import ResolvedProtocol
from dgbench.seeds import derive_seed
from dgbench.training.build import build_method, stage_setup
from dgbench.training.loop import Report
from dgbench.training.step import AdamMaker, TrainingContext, run_step
from dgbench.training.validation import stage_predictor

WARM_UP = 2
"""Rounds that are not counted: kernels are chosen, caches filled."""


@dataclass(frozen=True)
class Quartiles:
    """Milliseconds: median and the quartiles around it, of ``n`` measurements."""

    median: float
    q25: float
    q75: float
    n: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Quartiles":
        """Of measurements in seconds, at least one."""
        q25, median, q75 = (float(value) for value in 1000 * np.percentile(seconds, (25, 50, 75)))
        return cls(median, q25, q75, len(seconds))


@dataclass(frozen=True)
class StageTiming:
    """One stage of one method: a training step of the protocol's crop and number of cases, with the optimiser, and the prediction of one
    crop, flips included where the preset has them."""

    training_step: Quartiles
    prediction: Quartiles


class _Subject:
    """A method in the middle of its budget, and the same method deployed."""

    def __init__(
        self,
        info: MethodInfo,
        config: MethodConfig,
        resolved: ResolvedProtocol,
        stage: str,
        n_sources: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.device, self.precision = device, precision
        self.total = resolved.steps(stage, info.draws_factor)
        self.step = self.total // 2
        setup = stage_setup(resolved, stage, n_sources, self.total)
        self.method: Method[Any] = build_method(info, config, setup, 0, device)
        make = AdamMaker(resolved.preset.stages[stage].lr, resolved.weight_decay(stage))
        self.optimizers = list(self.method.configure_optimizers(make))
        self.batch = synthetic_batch(info, resolved, stage, n_sources).to(device)
        deployed: Method[Any] = build_method(info, config, setup, 0, device)
        deployed.deploy()
        self.predictor: Predictor = stage_predictor(
            deployed.eval(), stage, resolved, device, precision, tta=resolved.preset.tta
        )
        self.roi = self.batch.image[0].cpu().numpy()

    def train(self) -> float:
        """Seconds of one step."""
        torch.manual_seed(derive_seed(0, "timing", self.step))
        context = TrainingContext(
            step=self.step % self.total,
            total_steps=self.total,
            optimizers=self.optimizers,
            device=self.device,
            precision=self.precision,
        )
        started = _clock(self.device)
        run_step(self.method, self.batch, context)
        seconds = _clock(self.device) - started
        self.step += 1
        return seconds

    def predict(self) -> float:
        """Seconds of one prediction."""
        started = _clock(self.device)
        self.predictor(self.roi)
        return _clock(self.device) - started


def time_stage(
    methods: Mapping[str, tuple[MethodInfo, MethodConfig]],
    resolved: ResolvedProtocol,
    stage: str,
    n_sources: int,
    *,
    device: torch.device,
    precision: str,
    repeats: int,
    report: Report,
) -> dict[str, StageTiming]:
    """Time ``stage`` of every method, in turns. ``repeats`` (at least 1) measurements each, after :data:`WARM_UP` that are dropped."""
    subjects = {
        name: _Subject(info, config, resolved, stage, n_sources, device, precision)
        for name, (info, config) in methods.items()
    }
    trained: dict[str, list[float]] = {name: [] for name in subjects}
    predicted: dict[str, list[float]] = {name: [] for name in subjects}
    rounds = WARM_UP + repeats
    for turn in range(rounds):
        for name, subject in subjects.items():
            trained[name].append(subject.train())
            predicted[name].append(subject.predict())
        report(turn + 1, rounds, stage)
    return {
        name: StageTiming(Quartiles.of(trained[name][WARM_UP:]), Quartiles.of(predicted[name][WARM_UP:]))
        for name in subjects
    }


def synthetic_batch(info: MethodInfo, resolved: ResolvedProtocol, stage: str, n_sources: int) -> Batch:
    """As many random cases as a step of ``stage`` holds, one source center after the other, each with a block as its lesion."""
    task, crop = resolved.protocol.task, resolved.preset.stages[stage].crop
    n_cases = resolved.cases_per_step(stage)
    generator = torch.Generator().manual_seed(derive_seed(0, "timing", stage))
    image = torch.rand((n_cases, task.in_channels, *crop), generator=generator)
    label = torch.ones(n_cases, 1, *(side - side // 2 - side // 4 for side in crop))
    margins = [part for side in reversed(crop) for part in (side // 4, side // 2)]
    label = torch.nn.functional.pad(label, margins)
    donor = image.roll(1, 0) if "donor" in info.needs else None
    return Batch(image, label, torch.arange(n_cases) % n_sources, donor)


def measure_memory(content: tuple[Any, ...], report: Report) -> None:
    """In a process of its own: write the peak memory of training steps of one method, MiB above what the built method takes, to a file.

    On a GPU it is what torch allocated, on the CPU what the operating system gave the process.
    """
    info, config, resolved, stage, n_sources, device_name, precision, threads, target = content
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    subject = _Subject(info, config, resolved, stage, n_sources, device, precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        subject.train()
        peak = torch.cuda.max_memory_allocated(device) - before
    else:
        before = _resident_peak()
        subject.train()
        peak = _resident_peak() - before
    write_json(Path(target), {"peak_mib": peak / 2**20})
    report(1, 1, stage)


def _resident_peak() -> int:
    """The most memory that this process ever had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
