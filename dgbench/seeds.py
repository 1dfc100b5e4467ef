"""Counter-based seeds: every random draw is a pure function of (base seed, axis, step, sample), so that no generator stream has to
survive a step and a draw does not depend on workers, devices or restarts (protocol.md §3)."""

import hashlib

import numpy as np


def derive_seed(base: int, *axes: str | int) -> int:
    """A 63-bit seed from ``base`` and named axes, by sha256; equal on every platform and Python version."""
    text = "/".join([str(base), *map(str, axes)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(base: int, *axes: str | int) -> np.random.Generator:
    """A fresh numpy generator for one draw along ``axes``."""
    return np.random.Generator(np.random.PCG64(derive_seed(base, *axes)))
