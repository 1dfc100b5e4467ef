"""The mixed precision of a run, where a computation leaves it, and bfloat16 on processors that have no instructions for it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
        *(
            F.linear,
            F.bilinear,
            F.scaled_dot_product_attention,
            torch.einsum,
            torch.matmul,
            torch.mm,
            torch.bmm,
            torch.mv,
        ),
        *(torch.addmm, torch.addbmm, torch.baddbmm, torch.addmv),
        *(getattr(Tensor, name) for name in ("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv")),
        *(getattr(Tensor, name) for name in ("addmm", "addbmm", "baddbmm", "addmv")),
    }
)
"""What autocast on the CPU computes in bfloat16."""


@contextmanager
def mixed_precision(device: torch.device, precision: str) -> Iterator[None]:
    """Autocast of a run on ``device``: ``bf16`` computes products in bfloat16, ``fp32`` nothing.

    On a CPU without bfloat16 instructions PyTorch's own kernels for it are 12 to 19 times slower than those for float32. There a product
    takes operands that are rounded to bfloat16, is summed in float32, and rounded; so are its gradients. That is what the instructions do:
    results differ from theirs by the order of sums.
    """
    with ExitStack() as contexts:
        contexts.enter_context(torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"))
        if precision == "bf16" and device.type == "cpu" and rounds_products():
            contexts.enter_context(RoundedProducts())
        yield


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
        if func not in PRODUCTS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        rounded, named = tree_map(_rounded, (tuple(args), dict(kwargs)))
        with torch.autocast("cpu", enabled=False):
            out: Tensor = func(*rounded, **named)
        return out.to(torch.bfloat16) if out.device.type == "cpu" and out.dtype == torch.float32 else out


def _rounded(value: Any) -> Any:
    """A float32 tensor of bfloat16 numbers; what autocast leaves as it is, is left."""
    if (
        not isinstance(value, Tensor)
        or value.device.type != "cpu"
        or value.dtype not in (torch.float32, torch.bfloat16, torch.float16)
    ):
        return value
    return value.to(torch.bfloat16).float()
