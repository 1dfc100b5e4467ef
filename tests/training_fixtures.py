"""A protocol of three tiny centers on synthetic NIfTI, whose training jobs take about a second, and what two runs must have in common."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import yaml

from dgbench.atomic import write_json
from dgbench.launch.plan import RunPlan, RunRequest, plan_run
from dgbench.launch.worker import PRELOADED
from dgbench.store.checkpoint_file import load_checkpoint
from dgbench.store.folder import RunFolder
from dgbench.training import loop
from dgbench.training.job import TrainJob
from dgbench.training.loop import PREPARING

SIZE = (16, 24, 24)
BRIGHTNESS = {"ALPHA": 0.2, "BETA": 0.5, "GAMMA": 0.8}
"""Mean normalised intensity of each center: an image tells where it comes from."""
STEPS = 8

PROTOCOL: dict[str, Any] = {
    "name": "mini",
    "version": 1,
    "title": "Three tiny centers",
    "kind": "patient",
    "centers": list(BRIGHTNESS),
    "labels": {"organ": 1, "lesion": 2},
    "task": {"ndim": 3, "spacing": [2.0, 1.0, 1.0], "intensity": {"kind": "window", "low": 0, "high": 1000}},
    "stages": {
        "organ": {"code": "C", "target": [1, 2]},
        "lesion": {
            "code": "F",
            "target": [2],
            "roi": {"source": "organ", "labels": [1, 2], "margin_mm": [2, 2, 2], "mask_margin_mm": [2, 2, 2]},
        },
    },
    "inference": {"whole_roi_voxels": 100000},
    "presets": {
        "mini": {
            "ranked": False,
            "width": 8,
            "validations": 2,
            "checkpoint_every": 4,
            "tta": False,
            "thresholds": [0.5],
            "stages": {
                "organ": {"crop": [8, 16, 16], "draws": 2 * STEPS, "lr": 3.0e-3},
                "lesion": {"crop": [8, 16, 16], "draws": 2 * STEPS, "lr": 3.0e-3},
            },
        }
    },
}


@dataclass(frozen=True)
class Mini:
    """The centers on disk, the protocol that names them, and the cache of prepared cases."""

    data: Path
    protocol: Path
    cache: Path

    @classmethod
    def write(cls, folder: Path) -> "Mini":
        """Five cases in each of ALPHA and BETA and two in GAMMA, which is held out."""
        for name in BRIGHTNESS:
            _write_center(folder / "data" / name, name, cases=2 if name == "GAMMA" else 5)
        protocol = folder / "mini.yaml"
        protocol.write_text(yaml.safe_dump(PROTOCOL, sort_keys=False), encoding="utf-8")
        return cls(folder / "data", protocol, folder / "cache")

    def plan(self, runs: Path, method: str = "erm", seed: int = 0, devices: int = 1, **preset: Any) -> RunPlan:
        """The run of ``method`` on one CPU thread a device; ``preset`` overrides keys of the preset (``workers=2``)."""
        return plan_run(
            RunRequest(
                method=method,
                heldout="GAMMA",
                protocol=str(self.protocol),
                preset="mini",
                data=self.data,
                seed=seed,
                devices=devices,
                device="cpu",
                threads=devices,
                overrides=tuple(f"preset.{key}={value}" for key, value in preset.items()),
                runs=runs,
                cache=self.cache,
            )
        )

    def job(self, runs: Path, method: str = "erm", seed: int = 0, devices: int = 1, **preset: Any) -> TrainJob:
        """The training of the stage ``lesion``, which looks around the organ."""
        return self.plan(runs, method, seed, devices, **preset).own.training[-1]


def _write_center(folder: Path, name: str, cases: int) -> None:
    write_json(folder / "dataset.json", {"name": name, "labels": {"background": 0, "organ": 1, "lesion": 2}})
    for number in range(cases):
        rng = np.random.Generator(np.random.PCG64([list(BRIGHTNESS).index(name), number]))
        z, y, x = np.indices(SIZE)
        dz, dy, dx = rng.integers(-1, 2, 3)
        organ = abs(z - 8 - dz) + abs(y - 12 - dy) + abs(x - 12 - dx) <= 5
        lesion = np.maximum(np.maximum(2 * abs(z - 8 - dz), abs(y - 11 - dy)), abs(x - 13 - dx)) <= 3
        label = organ.astype(np.uint8) + (organ & lesion)
        image = 1000 * BRIGHTNESS[name] - 60 * organ + 120 * lesion + rng.integers(-30, 31, SIZE)
        for kind, array in (("imagesTr", image.astype(np.int16)), ("labelsTr", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing((1.0, 1.0, 2.0))
            sitk.WriteImage(volume, str(folder / kind / f"case_{number:02d}.nii.gz"))


def outcome(folder: Path) -> dict[str, Any]:
    """Everything of a stage folder that a resumed run must share with an uninterrupted one (protocol.md §3): the bytes of weights,
    optimiser states and logs, without ``times.jsonl`` and without the running numbers of the checkpoint files."""
    found: dict[str, Any] = {
        name: (folder / name).read_bytes() for name in ("steps.jsonl", "validation.jsonl", "result.json")
    }
    for name in ("best", "last"):
        checkpoint = load_checkpoint(folder / name)
        found[f"{name} tensors"] = checkpoint.file.read_bytes()
        found[f"{name} meta"] = checkpoint.meta
    return found


def results(run: RunFolder) -> dict[str, Any]:
    """Everything of a run that must not depend on how often it was interrupted."""
    found: dict[str, Any] = {
        f"{stage} {name}": value for stage in run.own_stages for name, value in outcome(run.stage_folder(stage)).items()
    }
    found["cases"] = (run.evaluation / "cases.parquet").read_bytes()
    found["evaluation"] = (run.evaluation / "spec.json").read_bytes()
    found["cost"] = (run.path / "cost.json").read_bytes()
    return found


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Names of the parts of two outcomes that differ."""
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def quiet(done: int, total: int, text: str = "") -> None:
    """A report that goes nowhere."""


class Crash(BaseException):
    """Ends a training in this process without a word to it, as a kill does."""


@dataclass
class AfterStep:
    """A report that, when ``step`` is done, sends ``signal_number`` to this process (which then stops a step later) or crashes with
    None."""

    step: int
    signal_number: signal.Signals | None = None

    def __call__(self, done: int, total: int, text: str = "") -> None:
        if text == PREPARING or done != self.step:
            return
        if self.signal_number is None:
            raise Crash
        os.kill(os.getpid(), self.signal_number)


@dataclass(frozen=True)
class KillAfterStep:
    """SIGKILL of the own process ``seconds`` after step ``step`` was done, wherever it is then."""

    step: int
    seconds: float

    def arm(self, folder: Path) -> None:
        """Nothing to prepare."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        if text != PREPARING and done == self.step:
            threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


@dataclass(frozen=True)
class KillAtWrite:
    """SIGKILL of the own process before it opens a file to write, renames or removes one in the job's folder for the ``count``-th time."""

    count: int

    def arm(self, folder: Path) -> None:
        """Count from now on."""
        left = self.count

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            writes = event in ("os.rename", "os.remove") or (
                event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if writes and str(arguments[0]).startswith(str(folder)):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Progress does not matter."""


Kill = KillAfterStep | KillAtWrite


def train_and_die(job: TrainJob, kill: Kill | None) -> None:
    """What a process of its own does: train ``job`` until killed, or to the end, with the log ahead of the checkpoints."""
    loop.LOG_EVERY = 1
    if kill is not None:
        kill.arm(job.folder)
    loop.train(job, kill or quiet)


def alone(function: Callable[..., None], *arguments: Any) -> int | None:
    """Call ``function`` in a process like a job's, which shares nothing with this one; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def life(job: TrainJob, kill: Kill | None) -> int | None:
    """Train ``job`` in a process of its own; its exit code, -SIGKILL when the kill came first."""
    return alone(train_and_die, job, kill)
