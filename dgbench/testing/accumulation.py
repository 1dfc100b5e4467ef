"""One device accumulating micro-steps: what a step on several devices must be equal to (protocol.md §7)."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, TypeVar

from torch import Tensor
from torch.optim import Optimizer

from dgbench.errors import DgbenchError
from dgbench.method import Method
from dgbench.training.distributed import Ranks

ResultT = TypeVar("ResultT")


class _Exchange(BaseException):
    """Carries out of a step what it wants to have summed. No Exception: a method may catch those."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def accumulated(micro_step: Callable[[Ranks], ResultT], size: int, restart: Callable[[], None]) -> list[ResultT]:
    """Do one step of ``size`` micro-steps one after another, in this process and with one set of weights.

    What a micro-step must know of all of them (a gradient's mean before the optimiser steps) is not known when it is done first. So every
    micro-step runs to its first exchange, which gives the first sum; then all begin again, and run to the second one with the first sum in
    hand; and so on, to the end.

    Args:
        micro_step: does the micro-step of a rank; what it draws must depend on the rank alone.
        restart: brings method and optimisers back to the start of the step.

    Returns:
        What ``micro_step`` gave for each rank, at the end; method and optimisers are left as the last one leaves them.

    Raises:
        DgbenchError: not all of them make the same exchanges.
    """
    sums: list[Tensor] = []
    while True:
        results: list[ResultT] = []
        parts: list[Tensor] = []
        for rank in range(size):
            restart()
            try:
                results.append(micro_step(Ranks(rank, size, _replay(sums))))
            except _Exchange as exchange:
                parts.append(exchange.tensor)
        if not parts:
            return results
        if results or len({part.shape for part in parts}) > 1:
            raise DgbenchError(
                f"exchange {len(sums)} of the step is not made alike on every device — what a step exchanges must not depend on its batch"
            )
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        sums.append(total)


def restart_of(method: Method[Any], optimizers: Sequence[Optimizer]) -> Callable[[], None]:
    """What brings both back to the state in which they are now, however often."""
    start = deepcopy((method.state_dict(), [optimizer.state_dict() for optimizer in optimizers]))

    def restart() -> None:
        method.load_state_dict(start[0])
        for optimizer, saved in zip(optimizers, start[1], strict=True):
            optimizer.load_state_dict(deepcopy(saved))  # it keeps the tensors that it is given

    return restart


def _replay(sums: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """The sums that are known, in their order; then an :class:`_Exchange`."""
    known = iter(sums)

    def reduce(tensor: Tensor) -> Tensor:
        total = next(known, None)
        if total is None:
            raise _Exchange(tensor.clone())
        return total.clone()

    return reduce
