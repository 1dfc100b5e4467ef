"""Choosing case by case in a batch."""

import torch
from torch import Tensor


def per_case(values: Tensor, like: Tensor) -> Tensor:
    """(B,) values, shaped to broadcast over ``like`` (B, C, *spatial)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def where_case(flags: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """The cases of ``chosen`` (B, C, *spatial) where ``flags`` (B,) bool is set, those of ``other`` elsewhere."""
    return torch.where(per_case(flags, chosen), chosen, other)
