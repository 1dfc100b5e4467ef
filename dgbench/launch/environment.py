"""What a run folder says about where it was made: versions and hardware, no names of hosts or people."""

import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from dgbench import __version__

PACKAGES = ("torch", "numpy", "scipy", "monai", "SimpleITK", "pandas", "pydantic", "mlflow", "scikit-image", "edt")
CPUINFO = Path("/proc/cpuinfo")


def environment() -> dict[str, Any]:
    """Plain JSON: dgbench, Python, packages, operating system, processor, cores, memory."""
    return {
        "dgbench": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "bf16_instructions": has_bf16(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "executable": Path(sys.executable).name,
    }


def has_bf16() -> bool | None:
    """Whether this processor computes bfloat16 itself (without that, torch emulates it, slowly); None where the system does not tell."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return None if flags is None else bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown"


def _cpuinfo(field: str) -> str | None:
    """The first line of that name in Linux's list of processors."""
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if CPUINFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), None)
