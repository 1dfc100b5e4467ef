"""The mixed precision of a run, where a computation leaves it, and bfloat16 on processors that have no instructions for it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ContextDecorator, ExitStack
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from dgbench.processor import has_bf16

PRODUCTS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        *(F.linear, F.scaled_dot_product_attention, torch.einsum, torch.matmul, torch.mm, torch.bmm),
        *(torch.addmm, torch.addbmm, torch.baddbmm),
        *(getattr(Tensor, name) for name in ("matmul", "__matmul__", "__rmatmul__", "mm", "bmm")),
        *(getattr(Tensor, name) for name in ("addmm", "addbmm", "baddbmm")),
    }
)
"""Of what autocast on the CPU computes in bfloat16, what networks are made of; the rest keeps PyTorch's own slow kernels."""


def mixed_precision(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Autocast of a run on ``device``: ``bf16`` computes products in bfloat16, ``fp32`` nothing. It can be entered again.

    On a CPU without bfloat16 instructions PyTorch's own kernels for it are 11 to 20 times slower than those for float32. There a product
    takes operands that are rounded to bfloat16, is summed in float32, and rounded; so are its gradients. That is what the instructions do:
    results differ from theirs by the order of sums. Checkpointed activations that are computed again during the backward pass would not be
    rounded: wrap what is checkpointed in ``ctx.autocast()`` itself.
    """
    if precision == "bf16" and device.type == "cpu" and rounds_products():
        return RoundedAutocast()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class RoundedAutocast(ContextDecorator, AbstractContextManager[None]):
    """Autocast on the CPU to bfloat16, computed by :class:`RoundedProducts`."""

    def __init__(self) -> None:
        self._entered: list[ExitStack] = []

    def __enter__(self) -> None:
        contexts = ExitStack()
        contexts.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
        contexts.enter_context(RoundedProducts())
        self._entered.append(contexts)

    def __exit__(self, *_: object) -> None:
        self._entered.pop().close()


@cache
def rounds_products() -> bool:
    """Whether this processor is known to lack bfloat16 instructions."""
    return has_bf16() is False


def full_precision(like: Tensor) -> torch.autocast:
    """A context without automatic casts on the device of ``like``: float32 inputs of statistics and small heads stay float32.

    A tensor on the ``meta`` device counts as one on the CPU.
    """
    return torch.autocast("cuda" if like.is_cuda else "cpu", enabled=False)


class RoundedProducts(TorchFunctionMode):
    """Where autocast is on, :data:`PRODUCTS` of tensors on the CPU as float32 products of operands rounded to bfloat16, rounded.

    Differentiable as often as the product: a gradient passes the same roundings.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The product, or what else ``func`` computes."""
        kwargs = kwargs or {}
        if func not in PRODUCTS or not torch.is_autocast_enabled("cpu") or _left_alone(func, args, kwargs):
            return func(*args, **kwargs)
        rounded, named = tree_map(_rounded, (tuple(args), dict(kwargs)))
        with torch.autocast("cpu", enabled=False):
            out: Tensor = func(*rounded, **named)
        return out.to(torch.bfloat16) if out.device.type == "cpu" and out.dtype == torch.float32 else out


def _left_alone(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """What autocast leaves in float32 itself: what is written into a given tensor, and sums without a product."""
    return "out" in kwargs or (func is torch.einsum and not _contracts(args[0]))


def _contracts(equation: Any) -> bool:
    """Whether an index that is summed over belongs to two operands; an equation that is not text is left to PyTorch."""
    if not isinstance(equation, str):
        return False
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    indices = {index for index in left if index.isalpha()}
    kept = set(right) if arrow else {index for index in indices if left.count(index) == 1}
    return any(sum(index in operand for operand in operands) > 1 for index in indices - kept)


def _rounded(value: Any) -> Any:
    """A float32 tensor of bfloat16 numbers; what autocast leaves as it is, is left."""
    if (
        not isinstance(value, Tensor)
        or value.device.type != "cpu"
        or value.dtype not in (torch.float32, torch.bfloat16, torch.float16)
    ):
        return value
    return value.to(torch.bfloat16).float()
