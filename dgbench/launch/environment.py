"""What a run folder says about where it was made: versions and hardware, no names of hosts or people."""

import platform
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from dgbench import __version__
from dgbench.processor import has_bf16, processor_name

PACKAGES = ("torch", "numpy", "scipy", "monai", "SimpleITK", "pandas", "pydantic", "mlflow", "scikit-image", "edt")


def environment() -> dict[str, Any]:
    """Plain JSON: dgbench, Python, packages, operating system, processor, cores, memory; where there is a GPU, its model (``gpu``, several
    with commas) and ``driver``."""
    return {
        "dgbench": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "bf16_instructions": has_bf16(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "executable": Path(sys.executable).name,
        **_gpu(),
    }


@cache
def _gpu() -> dict[str, str]:
    """What the NVIDIA driver tells, without CUDA: a process that forks others must not start it. Empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    words = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found = [line.rpartition(", ") for line in told.splitlines() if ", " in line]
    if not found:
        return {}
    return {"gpu": ", ".join(sorted({name for name, _, _ in found})), "driver": found[0][2]}
