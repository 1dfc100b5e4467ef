"""Convolutions whose weights are computed for each case."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

Layer = tuple[Tensor, Tensor]
"""Weights (B, out, in) and biases (B, out) of a 1x1x1 convolution for each case."""


def pointwise(x: Tensor, layer: Layer) -> Tensor:
    """1x1x1 convolution of each case of ``x`` (B, in, *spatial) with its own weights: (B, out, *spatial)."""
    weight, bias = layer
    answer = torch.baddbmm(bias[:, :, None], weight, x.flatten(2))
    return answer.view(len(x), weight.shape[1], *x.shape[2:])


def layer_sizes(widths: Sequence[int]) -> tuple[list[int], list[int]]:
    """Numbers of weights and of biases of each layer of a chain with these numbers of channels."""
    pairs = list(pairwise(widths))
    return [cin * cout for cin, cout in pairs], [cout for _, cout in pairs]


def split_layers(values: Tensor, widths: Sequence[int]) -> list[Layer]:
    """The layers of a chain from one vector for each case: all weights first, then all biases (DCAC's order).

    Args:
        values: (B, sum of :func:`layer_sizes`).
        widths: channels of the input and of each layer's output.

    Returns:
        One layer for each pair of widths.

    Raises:
        RuntimeError: ``values`` has another length.
    """
    weights, biases = layer_sizes(widths)
    parts = torch.split(values, [*weights, *biases], 1)
    return [
        (weight.view(len(values), cout, cin), bias)
        for weight, bias, (cin, cout) in zip(
            parts[: len(weights)], parts[len(weights) :], pairwise(widths), strict=True
        )
    ]
