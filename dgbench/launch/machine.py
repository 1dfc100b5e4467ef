"""What of this machine can change the bytes of a run: device class, precision, threads, torch release. Part of every train key."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dgbench.errors import DgbenchError
from dgbench.processor import available_cores

MAX_DEFAULT_THREADS = 8


@dataclass(frozen=True)
class Machine:
    """One device class with its settings; nothing here is a name of a host or a user."""

    device: str
    precision: str
    threads: int
    torch: str
    devices: int = 1

    def identity(self) -> dict[str, Any]:
        """Plain JSON for keys and spec.json."""
        return asdict(self)


def this_machine(precisions: Mapping[Any, str], *, device: str | None, threads: int | None, devices: int) -> Machine:
    """The machine as asked for, or as found: a GPU where torch sees one, else the CPU with at most eight threads, which the ``devices`` of
    a run divide among them.

    torch is only imported where the operating system shows an NVIDIA device. Raises DgbenchError for what is not there.
    """
    if device not in (None, "cpu", "cuda"):
        raise DgbenchError(f"unknown device {device!r} — known: cpu, cuda")
    if devices < 1:
        raise DgbenchError(f"--devices {devices}: a run has one device or more")
    chosen = device or ("cuda" if _cuda() else "cpu")
    if device == "cuda" and not _cuda():
        raise DgbenchError("--device cuda: torch sees no CUDA device on this machine — see `dgbench doctor`")
    cores = available_cores()
    if devices > 1 and devices > (present := cores if chosen == "cpu" else len(visible_gpus())):
        what = "CPU core" if chosen == "cpu" else "GPU"
        raise DgbenchError(f"--devices {devices}: this machine has {present} {what}{'s' if present > 1 else ''}")
    count = threads or max(devices, min(cores, MAX_DEFAULT_THREADS))
    if count < devices:
        raise DgbenchError(
            f"--threads {count}: {devices} devices divide the threads of a run — give at least {devices}"
        )
    return Machine(chosen, precisions.get(chosen, "fp32"), count, ".".join(version("torch").split(".")[:2]), devices)


def visible_gpus() -> list[str]:
    """The GPUs that may be used, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [word for word in (part.strip() for part in named.split(",")) if word]
    if not _cuda():
        return []
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _cuda() -> bool:
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()):
        return False
    import torch

    return torch.cuda.is_available()
