"""How long methods take on this machine: a training step and a prediction of every stage, on crops that are in memory already, a step
whose crops the loader cuts and augments, with as many workers as the preset has, and a case in the ROI around its reference.

Methods take turns, so that what else the machine does hits all of them alike; the first rounds are dropped, the device is waited for, and
medians with quartiles are reported. Times of a busy machine are wrong: run this on an idle one.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dgbench.atomic import write_json
from dgbench.data.augmentation import strengthened
from dgbench.data.case import Case
from dgbench.data.preparation import PreparedCase
from dgbench.data.reading import Grid
from dgbench.data.sampling import CropDataset
from dgbench.inference.cascade import label_roi, predict_box
from dgbench.inference.predictor import Predictor
from dgbench.info import MethodConfig, MethodInfo
from dgbench.method import Batch, Method
from dgbench.protocol import ResolvedProtocol
from dgbench.seeds import derive_seed
from dgbench.training.build import build_method, stage_setup
from dgbench.training.loop import Report, crop_loader
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
class StageSeconds:
    """Measurements of one stage of one method: a training step of the protocol's crop and number of cases, with the optimiser, on a batch
    in memory and with the loader; the prediction of one crop, flips included where the preset has them; and that of a case, in the stage's
    ROI around the reference (empty where no cases were given). The cases take turns and differ in size: quartiles of ``case`` are the
    spread of the cases, not of a measurement."""

    training_step: tuple[float, ...]
    loaded_step: tuple[float, ...]
    prediction: tuple[float, ...]
    case: tuple[float, ...]


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
        self.device, self.precision, self.resolved, self.stage = device, precision, resolved, stage
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

    def train(self, batch: Callable[[], Batch] | None = None) -> float:
        """Seconds of one step on ``batch``, its making included; on the one in memory by default."""
        torch.manual_seed(derive_seed(0, "timing", self.step))
        context = TrainingContext(
            step=self.step % self.total,
            total_steps=self.total,
            optimizers=self.optimizers,
            device=self.device,
            precision=self.precision,
        )
        started = _clock(self.device)
        run_step(self.method, self.batch if batch is None else batch(), context)
        seconds = _clock(self.device) - started
        self.step += 1
        return seconds

    def train_loaded(self, cases: Sequence[PreparedCase], repeats: int) -> list[float]:
        """Seconds of a step on crops of ``cases`` that the loader makes as in training, ``repeats`` times the mean over as many
        consecutive steps as there are workers: these finish together, and only their rounds are even. To be called after :meth:`train`, as
        workers would get ahead of a slow first step."""
        workers = self.resolved.preset.workers
        block = max(1, workers)
        dataset = CropDataset(
            cases=cases,
            domains=[int(case.case.center) for case in cases],
            stage=self.resolved.protocol.stages[self.stage],
            crop=self.resolved.preset.stages[self.stage].crop,
            k=self.resolved.cases_per_step(self.stage),
            seed=derive_seed(0, "timing", self.stage),
            augmentation=strengthened(
                self.resolved.protocol.augmentation, self.resolved.preset.stages[self.stage].augmentation
            ),
            plan=[self.method.sampling(step % self.total, self.total) for step in range((WARM_UP + repeats) * block)],
            donors=self.batch.donor is not None,
        )
        batches = iter(crop_loader(dataset, range(len(dataset)), workers, self.device))
        seconds = [self.train(lambda: Batch(**next(batches)).to(self.device)) for _ in dataset.plan]
        return [sum(seconds[first : first + block]) / block for first in range(WARM_UP * block, len(seconds), block)]

    def predict(self) -> float:
        """Seconds of one prediction."""
        started = _clock(self.device)
        self.predictor(self.roi)
        return _clock(self.device) - started

    def answer(self, case: PreparedCase) -> float:
        """Seconds of the stage's passes over a case, as many as the chain `Seg` has at most, each in the ROI of source validation: the
        network is untrained, so no stage before it says where to look. No masks are made of the answers or resampled to the scan."""
        started = _clock(self.device)
        box = label_roi(case, self.stage, self.resolved)
        for _ in range(self.resolved.rounds(self.stage, oracle=False)):
            predict_box(case, box, self.predictor, self.resolved.protocol.stages[self.stage].downsample)
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
    cases: Sequence[PreparedCase] = (),
) -> dict[str, StageSeconds]:
    """Time ``stage`` of every method, in turns, and then with the loader one after the other, as workers that make batches ahead would
    help a method while others have their turn. ``repeats`` (at least 1) measurements each, after :data:`WARM_UP` that are dropped, of every
    case one; the k-th of a case is of the same one of ``cases`` for every stage and method."""
    subjects = {
        name: _Subject(info, config, resolved, stage, n_sources, device, precision)
        for name, (info, config) in methods.items()
    }
    trained: dict[str, list[float]] = {name: [] for name in subjects}
    predicted: dict[str, list[float]] = {name: [] for name in subjects}
    answered: dict[str, list[float]] = {name: [] for name in subjects}
    turns = WARM_UP + repeats
    work = turns + len(subjects)
    for case in cases:
        for subject in subjects.values():
            subject.answer(case)
    for turn in range(turns):
        for name, subject in subjects.items():
            trained[name].append(subject.train())
            predicted[name].append(subject.predict())
            if cases and turn >= WARM_UP:
                answered[name].append(subject.answer(cases[turn % len(cases)]))
        report(turn + 1, work, stage)
    loaded: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="dgbench-timing-") as folder:
        random_cases = synthetic_cases(resolved, stage, n_sources, Path(folder))
        for number, (name, subject) in enumerate(subjects.items(), start=1):
            loaded[name] = subject.train_loaded(random_cases, repeats)
            report(turns + number, work, stage)
    return {
        name: StageSeconds(
            tuple(trained[name][WARM_UP:]),
            tuple(loaded[name]),
            tuple(predicted[name][WARM_UP:]),
            tuple(answered[name]),
        )
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


def synthetic_cases(resolved: ResolvedProtocol, stage: str, n_sources: int, folder: Path) -> list[PreparedCase]:
    """Two prepared cases of random voxels per source center (named by its index) in ``folder``, half as long again as a crop of ``stage``
    on every axis, with a block in the middle that is what the stage looks at and for."""
    task, settings = resolved.protocol.task, resolved.protocol.stages[stage]
    crop = [length * settings.downsample for length in resolved.preset.stages[stage].crop]
    size = tuple(length + length // 2 for length in crop)
    low, high = tuple(length // 3 for length in size), tuple(2 * length // 3 for length in size)
    label = np.zeros(size, np.uint8)
    label[tuple(slice(*ends) for ends in zip(low, high, strict=True))] = settings.target[0]
    looked_at = {*settings.target, *(settings.roi.labels if settings.roi else ())}
    grid = Grid(size, task.spacing, (0.0,) * len(size), tuple(np.eye(len(size)).ravel().tolist()))
    cases = []
    for number in range(2 * n_sources):
        place = folder / str(number)
        place.mkdir()
        voxels = np.random.Generator(np.random.PCG64(derive_seed(0, "timing", stage, number)))
        np.save(place / "image.npy", voxels.integers(0, 2**16, (1, *size), np.uint16))
        np.save(place / "label.npy", label)
        case = Case(str(number % n_sources), f"random_{number}", place / "image.npy", place / "label.npy")
        boxes = dict.fromkeys(looked_at, (low, high))
        cases.append(PreparedCase(case, place, size, task.spacing, grid, boxes))
    return cases


def measure_memory(content: tuple[Any, ...], report: Report) -> None:
    """In a process of its own: write the peak memory of training steps of one method, MiB above what the built method takes, to a file.

    It is the peak over :data:`WARM_UP` steps and one more: the first has neither the optimiser's moments nor the gradients of a step
    before it. On a GPU it is what torch allocated, on the CPU what the operating system gave the process.
    """
    info, config, resolved, stage, n_sources, device_name, precision, threads, target = content
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    subject = _Subject(info, config, resolved, stage, n_sources, device, precision)
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if gpu else _resident_peak()
    for _ in range(WARM_UP + 1):
        subject.train()
    peak = (torch.cuda.max_memory_allocated(device) if gpu else _resident_peak()) - before
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
