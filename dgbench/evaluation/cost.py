"""Parameters and operations of a network, counted on ``meta`` tensors: no memory, no arithmetic, any input size.

Convention "table-vi" is the one behind the paper's Table VI (fvcore's): a multiply-accumulate of a convolution, linear
layer or matrix product is one operation, bias ignored; an affine normalisation costs 5 per element (4 without affine,
a batch norm in evaluation 2 and 1); an adaptive pooling 1 per input element; all else is free. "macs" keeps the
multiply-accumulates only, "flops" counts each of them twice.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dgbench.errors import DgbenchError, suggest
from dgbench.nets import InPlaneMean

Convention = Literal["table-vi", "macs", "flops"]

FUNCTIONAL = "(functional)"
"""Key of ``Cost.by_module`` for products computed outside a counted layer, such as a dynamic convolution."""

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, InPlaneMean)
_FREE = (nn.Embedding, nn.PReLU)
_COUNTED = (*_CONVS, *_TRANSPOSED, nn.Linear, *_BATCH_NORMS, *_NORMS, *_POOLS)


@dataclass(frozen=True)
class Cost:
    """``params`` counts all parameters of the model; ``gflops`` is in 1e9 operations of the chosen convention for the
    whole batch; ``by_module`` splits it by qualified layer name, layers without cost left out."""

    params: int
    gflops: float
    by_module: Mapping[str, float]


def count_cost(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    convention: Convention,
    call: Callable[[nn.Module, Tensor], object] | None = None,
) -> Cost:
    """Cost of one evaluation-mode pass of ``model`` over a float input of ``input_shape`` (B, C, *spatial).

    ``call(model, x)`` runs the pass, ``model(x)`` by default; the model may live on any device and is left as it was.
    Heads count as far as the pass runs them, parameters in any case. Raises :class:`DgbenchError` when the pass runs a
    layer that owns parameters and has no counting rule, when layers of a known class skip their product, or for an
    unknown ``convention``.
    """
    if convention not in get_args(Convention):
        raise DgbenchError(f"cost: unknown convention {convention!r}{suggest(convention, get_args(Convention))}")
    macs: defaultdict[str, int] = defaultdict(int)
    other: defaultdict[str, int] = defaultdict(int)
    handles = [
        module.register_forward_hook(_counter(name or "(root)", macs, other))
        for name, module in model.named_modules()
        if isinstance(module, _COUNTED) or next(module.parameters(recurse=False), None) is not None
    ]
    x = torch.empty(tuple(input_shape), device="meta")
    try:
        with _on_meta(model), torch.no_grad(), FlopCounterMode(display=False) as products:
            (call or _forward)(model, x)
    finally:
        for handle in handles:
            handle.remove()
    functional = products.get_total_flops() // 2 - sum(macs.values())
    if functional < 0:
        raise DgbenchError(f"cost: layers promise {-functional} products more than ran — a subclass skips its product")
    if functional:
        macs[FUNCTIONAL] = functional
    counts = {name: float(n) for name, n in macs.items()}
    if convention == "table-vi":
        counts |= {name: float(n) for name, n in other.items()}
    scale = 2e-9 if convention == "flops" else 1e-9
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        gflops=sum(counts.values()) * scale,
        by_module={name: n * scale for name, n in counts.items()},
    )


@contextmanager
def _on_meta(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with meta tensors in place of all parameters and buffers; shared modules and tensors included."""
    saved = [(m, m.training, dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    try:
        for module, _, parameters, buffers in saved:
            module.training = False
            module._parameters.update(
                {n: None if p is None else nn.Parameter(_meta(p), False) for n, p in parameters.items()}
            )
            module._buffers.update({n: None if b is None else _meta(b) for n, b in buffers.items()})
        yield
    finally:
        for module, training, parameters, buffers in saved:
            module.training = training
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def _forward(model: nn.Module, x: Tensor) -> object:
    return model(x)


def _counter(
    name: str, macs: defaultdict[str, int], other: defaultdict[str, int]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """Forward hook that adds the cost of one call of a layer under ``name``."""

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, _CONVS):
            macs[name] += output.numel() * (module.in_channels // module.groups) * math.prod(module.kernel_size)
        elif isinstance(module, _TRANSPOSED):
            macs[name] += inputs[0].numel() * (module.out_channels // module.groups) * math.prod(module.kernel_size)
        elif isinstance(module, nn.Linear):
            macs[name] += output.numel() * module.in_features
        elif isinstance(module, _BATCH_NORMS):
            other[name] += inputs[0].numel() * (2 if module.affine else 1)
        elif isinstance(module, _NORMS):
            affine = next(module.parameters(recurse=False), None) is not None
            other[name] += inputs[0].numel() * (5 if affine else 4)
        elif isinstance(module, _POOLS):
            other[name] += inputs[0].numel()
        elif not isinstance(module, _FREE):
            raise DgbenchError(
                f"cost: no counting rule for layer {name} ({type(module).__name__}), which owns parameters — "
                "build it from convolution, linear and norm layers"
            )

    return count
