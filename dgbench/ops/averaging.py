"""Averages of networks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def mean_state(networks: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The mean over networks of one architecture of each parameter and floating-point buffer, without gradient; other buffers are those of
    the first."""
    states = [network.state_dict() for network in networks]
    return {
        name: torch.stack([state[name].detach() for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def unite(networks: Sequence[nn.Module]) -> None:
    """Give every network the mean of all, in place; optimiser moments stay as they are."""
    mean = mean_state(networks)
    for network in networks:
        network.load_state_dict(mean)
