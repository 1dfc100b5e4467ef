"""``dgbench cost --time``: methods timed in turns in one process, their memory measured in one process each."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from dgbench import __version__
from dgbench.atomic import read_json, write_json
from dgbench.data.case import Case, load_centers
from dgbench.info import MethodConfig, MethodInfo
from dgbench.launch.environment import environment
from dgbench.launch.machine import Machine
from dgbench.launch.phantom import draw_once
from dgbench.launch.plan import data_folder, phantom_place, phantom_recipe
from dgbench.launch.worker import run_job
from dgbench.protocol import ResolvedProtocol

if TYPE_CHECKING:
    from dgbench.evaluation.timing import StageSeconds

Methods = Mapping[str, tuple[MethodInfo, MethodConfig]]


KINDS = {"step_ms": "training_step", "loaded_step_ms": "loaded_step", "prediction_ms": "prediction", "case_ms": "case"}
"""What the sum over a method's stages is called, and the measurement it is of."""
BUSY = 0.5
"""From how many cores, used by others before the measurement, times are not to be trusted: one busy process uses one core."""


def timed_cases(resolved: ResolvedProtocol, data: Path | None, cache: Path) -> list[Case]:
    """One case of every center that can be held out, to time inference on: of ``data``, or of the preset's phantom, of which no more is
    drawn into the cache; none where the protocol is of patient data and there are no ``data``.

    Raises:
        DgbenchError: ``data`` is not of the protocol.
    """
    if data is not None:
        folder, _ = data_folder(data, cache, resolved)
    elif resolved.preset.phantom is not None:
        recipe = replace(phantom_recipe(resolved.preset.phantom), cases=1)
        folder, _ = phantom_place(recipe, cache)
        draw_once(recipe, folder)
    else:
        return []
    centers = load_centers(folder, resolved.protocol)
    return [centers[name].cases[0] for name in resolved.protocol.centers]


def time_methods(
    methods: Methods,
    resolved: ResolvedProtocol,
    n_sources: int,
    machine: Machine,
    repeats: int,
    cases: Sequence[Case] = (),
    cache: Path | None = None,
) -> dict[str, Any]:
    """Times and peak memory of every method's stages under a protocol, with what they depend on; plain JSON.

    ``machine`` is the key of every row: processor or GPU with its driver, precision, threads, torch and dgbench; ``busy_cores`` is how
    many cores were in use before (a GPU is not asked for other jobs). Times are in milliseconds, each stage's and their sum, as quartiles;
    memory in MiB. ``cases`` are prepared in ``cache``, for the time of a case (``case_ms``, None without any), whose quartiles are the
    spread of the cases.
    """
    stages = [name for name in resolved.protocol.stages if name not in resolved.protocol.shared_stages]
    busy = (psutil.cpu_count() or 1) * psutil.cpu_percent(interval=1.0) / 100
    with tempfile.TemporaryDirectory(prefix="dgbench-timing-") as folder:
        times, logs = Path(folder) / "times.json", Path(folder)
        content = (methods, resolved, stages, n_sources, machine, repeats, tuple(cases), cache or Path(folder), times)
        run_job(_time_job, content, "timing", logs)
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
        "busy_cores": busy,
        "cases": [case.id for case in cases],
        "methods": [{"method": name, **measured["methods"][name], "peak_mib": memory[name]} for name in methods],
    }


def _time_job(content: tuple[Any, ...], report: Any) -> None:
    import torch

    from dgbench.data.preparation import prepare_case
    from dgbench.evaluation.timing import time_stage

    methods, resolved, stages, n_sources, machine, repeats, cases, cache, target = content
    torch.set_num_threads(machine.threads)
    device = torch.device(machine.device)
    prepared = [prepare_case(case, resolved.protocol, cache) for case in cases]
    options = {"device": device, "precision": machine.precision, "repeats": repeats, "report": report}
    found = {stage: time_stage(methods, resolved, stage, n_sources, **options, cases=prepared) for stage in stages}
    gpu = device.type == "cuda"
    write_json(
        target,
        {
            "device": torch.cuda.get_device_name(device) if gpu else environment()["processor"],
            "driver": environment().get("driver", "unknown") if gpu else None,
            "methods": {name: _summary({stage: found[stage][name] for stage in stages}) for name in methods},
        },
    )


def _summary(stages: "Mapping[str, StageSeconds]") -> dict[str, Any]:
    """Quartiles of each stage, and of the sums over stages of what was measured in the same turn."""
    from dgbench.evaluation.timing import Quartiles

    def quartiles(seconds: Iterable[float]) -> dict[str, float] | None:
        measured = list(seconds)
        return asdict(Quartiles.of(measured)) if measured else None

    sums = {
        name: quartiles(map(sum, zip(*(getattr(stage, kind) for stage in stages.values()), strict=True)))
        for name, kind in KINDS.items()
    }
    each = {name: {kind: quartiles(getattr(stage, kind)) for kind in KINDS.values()} for name, stage in stages.items()}
    return {**sums, "stages": each}


def _memory_job(content: tuple[Any, ...], report: Any) -> None:
    from dgbench.evaluation.timing import measure_memory

    measure_memory(content, report)
