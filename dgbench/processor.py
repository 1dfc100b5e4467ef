"""What the system says about its processor."""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor_name() -> str:
    """The model of the processor, ``unknown`` where the system does not tell."""
    return _cpuinfo("model name") or platform.processor() or "unknown"


def has_bf16() -> bool | None:
    """Whether this processor computes bfloat16 itself; None where the system does not tell."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return None if flags is None else bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


def available_cores() -> int:
    """How many cores this process may use, at least 1."""
    return len(os.sched_getaffinity(0))


def _cpuinfo(field: str) -> str | None:
    """The first line of that name in Linux's list of processors."""
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if CPUINFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), None)
