"""How the process of a job is set up: what torch computes with, and what can still be opened once code of a method runs."""

from collections.abc import Iterable

import torch

from dgbench.data.guard import seal
from dgbench.data.preparation import PreparedCase, prepared_root
from dgbench.training.job import TrainJob


def set_up_torch(job: TrainJob, n_ranks: int = 1) -> None:
    """Share the threads of ``job`` among its ranks, and have a GPU compute deterministically."""
    torch.set_num_threads(job.threads // n_ranks)
    if (
        job.device == "cuda"
    ):  # on the CPU every operation used here is deterministic already, and the switch costs seconds of imports
        torch.use_deterministic_algorithms(True)


def seal_others(job: TrainJob, prepared: Iterable[PreparedCase]) -> None:
    """Let nothing be opened any more of other prepared cases than these, nor of other runs; to be called before any code of the method
    runs."""
    seal(prepared_root(job.cache), (case.folder for case in prepared))
    if job.runs is not None:
        seal(job.runs, (job.folder.parent,))  # its own run: a lock, logs and checkpoints
