"""One run on several devices: what its ranks, one process a device, tell each other (protocol.md §7).

Every exchange is a sum over ranks, begun by all of them in the same order. A run on one device has one rank, for which each function here
gives back what it got, without ``torch.distributed``. A rank whose process died or hangs is found by the process that started the ranks
(``dgbench/launch/ranks.py``).
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgbench.errors import DgbenchError

Reduce = Callable[[Tensor], Tensor]
NEVER = timedelta(days=365)
"""How long an exchange waits by itself: whoever started the ranks watches over them, and knows which one is to blame."""


class LostRank(Exception):
    """An exchange failed because another rank went away."""


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Ranks:
    """The devices of a run as one of them sees them: its ``rank`` of ``size``, how a tensor is summed over ranks (``reduce``: a new
    tensor, the same on every rank), and what is called where work goes on between exchanges (``beat``)."""

    rank: int = 0
    size: int = 1
    reduce: Reduce = _itself
    beat: Callable[[], None] = _nothing

    @property
    def leads(self) -> bool:
        """Whether this rank validates, and writes logs and checkpoints."""
        return self.rank == 0

    def micro_step(self, step: int) -> int:
        """The place of this rank's batch of ``step`` in the run's sequence of draws."""
        return step * self.size + self.rank

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over ranks. Raises DgbenchError where a gradient would have to pass."""
        if self.size == 1:
            return tensor
        if tensor.requires_grad and torch.is_grad_enabled():
            raise DgbenchError("all_reduce and all_gather pass no gradient between devices — detach the tensor")
        return self.reduce(tensor.detach())

    def stack(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, which have one shape, as (size, *shape). Raises DgbenchError where a gradient would have to pass."""
        if self.size == 1:
            return tensor[None]
        rows = tensor.new_zeros(self.size, *tensor.shape)
        rows[self.rank] = tensor
        return self.total(rows)

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, in order of rank."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.stack(torch.tensor(len(text))).tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(text)] = text
        rows = self.stack(padded)
        return [json.loads(bytes(row[:length].tolist())) for row, length in zip(rows, lengths, strict=True)]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over ranks, in one bucket; a rank without one counts as zero, and where no rank has one
        there is none afterwards."""
        if self.size == 1:
            return
        own = list({id(parameter): parameter for parameter in parameters}.values())
        present = torch.tensor([parameter.grad is not None for parameter in own], device=own[0].device)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in own]
        total = self.reduce(torch.cat([present.to(torch.float32), *(part.flatten() for part in parts)]))
        anywhere, *means = torch.split(total / self.size, [len(own), *(parameter.numel() for parameter in own)])
        for parameter, found, mean in zip(own, anywhere.tolist(), means, strict=True):
            parameter.grad = mean.view_as(parameter).to(parameter.dtype) if found else None


def check_agreement(ranks: Ranks, tensors: Mapping[str, Tensor], values: Any, what: str) -> None:
    """DgbenchError, beginning with ``what``, unless every rank holds the same tensors to the bit and the same JSON ``values``."""
    if ranks.size == 1:
        return
    held = {name: hashlib.sha256(_bytes(tensor)).hexdigest() for name, tensor in tensors.items()}
    (first, told), *others = ranks.gather([held, values])
    differing = sorted({name for other, _ in others for name in first | other if first.get(name) != other.get(name)})
    if differing or any(values != told for _, values in others):
        raise DgbenchError(
            f"{what} differs between devices ({', '.join(differing[:3]) or 'values that are no tensors'}) — gradients must go through "
            "ctx.backward, and what a method keeps of its batches through ctx.all_reduce or ctx.all_gather"
        )


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


@contextmanager
def joined(rank: int, size: int, device: str, meeting: Path, exchanging: Callable[[int], None]) -> Iterator[Ranks]:
    """Be rank ``rank`` of ``size`` inside the block: gloo for tensors on the CPU, nccl for those on GPUs.

    Args:
        device: ``cpu``, or ``cuda``; then rank r takes GPU r.
        meeting: a file that does not exist yet, the same for all ranks, by which they find each other.
        exchanging: is told how many exchanges this rank has begun, before each and wherever work goes on.
    """
    import torch.distributed as dist

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: nothing listens to the network
    if device == "cuda":
        torch.cuda.set_device(rank)
    count = 0

    def beat() -> None:
        exchanging(count)

    def reduce(tensor: Tensor) -> Tensor:
        nonlocal count
        count += 1
        beat()
        total = tensor.clone(memory_format=torch.contiguous_format)
        try:
            dist.all_reduce(total)
        except RuntimeError as error:
            raise LostRank(" ".join(str(error).split())) from error
        return total

    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=meeting.absolute().as_uri(), rank=rank, world_size=size, timeout=NEVER)
    yield Ranks(rank, size, reduce, beat)
    dist.destroy_process_group()
