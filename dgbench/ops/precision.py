"""Where a computation leaves the run's mixed precision."""

import torch
from torch import Tensor


def full_precision(like: Tensor) -> torch.autocast:
    """A context without automatic casts on the device of ``like``: float32 inputs of statistics and small heads stay float32.

    A tensor on the ``meta`` device counts as one on the CPU.
    """
    return torch.autocast("cuda" if like.is_cuda else "cpu", enabled=False)
