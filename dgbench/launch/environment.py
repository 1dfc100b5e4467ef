"""What a run folder says about where it was made: versions and hardware, no names of hosts or people."""

import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from dgbench import __version__
from dgbench.processor import has_bf16, processor_name

PACKAGES = ("torch", "numpy", "scipy", "monai", "SimpleITK", "pandas", "pydantic", "mlflow", "scikit-image", "edt")


def environment() -> dict[str, Any]:
    """Plain JSON: dgbench, Python, packages, operating system, processor, cores, memory."""
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
    }
