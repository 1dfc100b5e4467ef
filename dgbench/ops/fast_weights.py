"""Fast weights of a meta-learning step: where the weights would be after a gradient step, taken to first order."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def clip_each(tensors: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Each tensor scaled down to Euclidean norm ``max_norm`` where it is longer; new tensors, of the shapes and dtypes given."""
    return [tensor * (max_norm / torch.linalg.vector_norm(tensor).clamp(min=max_norm)) for tensor in tensors]


def descend(weights: Mapping[str, Tensor], gradients: Sequence[Tensor], rate: float) -> dict[str, Tensor]:
    """Weights after one gradient step, ``w - rate * g``, for :func:`torch.func.functional_call`.

    The gradient is taken as a constant (first-order MAML: Finn et al., ICML 2017, section 5.2), so that the derivative of the result with
    respect to ``w`` is the identity: backpropagating a loss at the result leaves its gradient in ``w.grad``.

    Args:
        weights: tensors by name; they stay as they are.
        gradients: one for each, in the same order.
        rate: length of the step; 0 gives the weights themselves.

    Returns:
        Tensors by the same names.
    """
    return {
        name: weight - rate * gradient.detach()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
