"""``dgbench cost --time``: methods timed in turns in one process, their memory measured in one process each."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgbench import __version__
from dgbench.atomic import read_json, write_json
from dgbench.info import MethodConfig, MethodInfo
from dgbench.launch.environment import environment
from dgbench.launch.machine import Machine
from dgbench.launch.worker import run_job
from dgbench.protocol import ResolvedProtocol

Methods = Mapping[str, tuple[MethodInfo, MethodConfig]]


def time_methods(
    methods: Methods, resolved: ResolvedProtocol, n_sources: int, machine: Machine, repeats: int
) -> dict[str, Any]:
    """Times and peak memory of every method's stages under a protocol, with what they depend on; plain JSON.

    ``machine`` is the key of every row: processor or GPU with its driver, precision, threads, torch and dgbench. Times are in
    milliseconds, memory in MiB.
    """
    stages = [name for name in resolved.protocol.stages if name not in resolved.protocol.shared_stages]
    with tempfile.TemporaryDirectory(prefix="dgbench-timing-") as folder:
        times, logs = Path(folder) / "times.json", Path(folder)
        run_job(_time_job, (methods, resolved, stages, n_sources, machine, repeats, times), "timing", logs)
        measured = read_json(times)
        memory: dict[str, float] = {}
        for name, (info, config) in methods.items():
            peaks = []
            for stage in stages:
                target = Path(folder) / f"{name}-{stage}.json"
                ran = (machine.device, machine.precision, machine.threads)
                run_job(
                    _memory_job, (info, config, resolved, stage, n_sources, *ran, target), f"memory of {name}", logs
                )
                peaks.append(read_json(target)["peak_mib"])
            memory[name] = max(peaks)
    rows = []
    for name in methods:
        own = {stage: measured["stages"][stage][name] for stage in stages}
        sums = {
            kind: sum(one[kind]["median"] for one in own.values())
            for kind in ("training_step", "loaded_step", "prediction")
        }
        summed = {
            "step_ms": sums["training_step"],
            "loaded_step_ms": sums["loaded_step"],
            "prediction_ms": sums["prediction"],
            "peak_mib": memory[name],
        }
        rows.append({"method": name, **summed, "stages": own})
    described = environment()
    return {
        "machine": {
            "device": measured["device"],
            "driver": measured["driver"],
            "precision": machine.precision,
            "threads": machine.threads,
            "workers": resolved.preset.workers,
            "torch": described["packages"]["torch"],
            "dgbench": __version__,
        },
        "methods": rows,
    }


def _time_job(content: tuple[Any, ...], report: Any) -> None:
    import torch

    from dgbench.evaluation.timing import time_stage

    methods, resolved, stages, n_sources, machine, repeats, target = content
    torch.set_num_threads(machine.threads)
    device = torch.device(machine.device)
    options = {"device": device, "precision": machine.precision, "repeats": repeats, "report": report}
    found = {stage: time_stage(methods, resolved, stage, n_sources, **options) for stage in stages}
    gpu = device.type == "cuda"
    write_json(
        target,
        {
            "device": torch.cuda.get_device_name(device) if gpu else environment()["processor"],
            "driver": _driver() if gpu else None,
            "stages": {
                stage: {name: asdict(timing) for name, timing in by_method.items()}
                for stage, by_method in found.items()
            },
        },
    )


def _driver() -> str:
    """The release of the NVIDIA driver, as the kernel module tells; "unknown" where it does not."""
    version = Path("/sys/module/nvidia/version")
    return version.read_text(encoding="utf-8").strip() if version.is_file() else "unknown"


def _memory_job(content: tuple[Any, ...], report: Any) -> None:
    from dgbench.evaluation.timing import measure_memory

    measure_memory(content, report)
