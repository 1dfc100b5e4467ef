"""Tone operations: fixed points, steps and monotony."""

import torch

from dgbench.ops.tones import equalize, posterize, solarize


def test_solarize_turns_what_is_bright() -> None:
    x = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert solarize(x, 0.5).tolist() == [0.0, 0.25, 0.5, 0.0]
    assert solarize(x, 0.0).tolist() == [1.0, 0.75, 0.5, 0.0]
    assert torch.equal(solarize(x, 1.1), x)


def test_posterize_leaves_as_many_values_as_bits_allow() -> None:
    x = torch.linspace(0, 1, 1001)
    assert len(posterize(x, 4).unique()) == 16
    assert posterize(torch.tensor([0.0, 0.499, 0.5, 1.0]), 1).tolist() == [0.0, 0.0, 0.5, 0.5]
    assert (x - posterize(x, 8)).max() <= 1 / 256 + 1e-6


def test_equalize_spreads_and_keeps_the_order() -> None:
    x = (torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) ** 4).float()
    y = equalize(x)
    assert y.amin((1, 2, 3, 4)).tolist() == [0, 0]
    assert y.amax((1, 2, 3, 4)).tolist() == [1, 1]
    order = x[0].flatten().argsort()
    assert (y[0].flatten()[order].diff() >= 0).all()
    assert y.median() > x.median() + 0.2


def test_equalize_leaves_a_constant_channel() -> None:
    x = torch.full((1, 2, 4, 4), 0.3)
    assert torch.equal(equalize(x), x)
