"""Averages of networks: the mean, in place, and nothing of integers."""

import torch
from torch import nn

from dgbench.ops.averaging import mean_state, unite


def test_mean_of_parameters_and_buffers() -> None:
    networks = [nn.BatchNorm1d(2) for _ in range(3)]
    for index, network in enumerate(networks):
        nn.init.constant_(network.weight, float(index))
        network.running_mean += index  # type: ignore[operator]
        network.num_batches_tracked += index  # type: ignore[operator]
    mean = mean_state(networks)
    assert mean["weight"].tolist() == [1, 1]
    assert mean["running_mean"].tolist() == [1, 1]
    assert mean["num_batches_tracked"].item() == 0
    assert not mean["weight"].requires_grad
    unite(networks)
    assert all(torch.equal(network.weight, torch.ones(2)) for network in networks)
    assert networks[0].weight is not networks[1].weight
