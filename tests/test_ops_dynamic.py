"""Convolutions of each case: the same as one convolution per case, and the order of the controllers' numbers."""

import pytest
import torch
import torch.nn.functional as F

from dgbench.ops.dynamic import layer_sizes, pointwise, split_layers


def test_batch_is_the_same_as_case_by_case() -> None:
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=g) for shape in ((2, 4, 3, 5, 6), (2, 3, 4), (2, 3)))
    for case in range(2):
        alone = F.conv3d(x[case : case + 1], weight[case].view(3, 4, 1, 1, 1), bias[case])
        assert torch.allclose(pointwise(x, (weight, bias))[case : case + 1], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "count"),
    [((4, 4), 20), ((4, 4, 4, 2), 50), ((2, 2), 6), ((2, 2, 2, 1), 15), ((6, 6), 42), ((6, 6, 6, 2), 98)],
)
def test_numbers_of_a_chain(widths: tuple[int, ...], count: int) -> None:
    assert sum(map(sum, layer_sizes(widths))) == count
    assert len(split_layers(torch.zeros(3, count), widths)) == len(widths) - 1
    with pytest.raises(RuntimeError):
        split_layers(torch.zeros(3, count + 1), widths)


def test_weights_come_before_biases() -> None:
    (first, first_bias), (last, last_bias) = split_layers(torch.arange(9.0)[None], (2, 2, 1))
    assert first.tolist() == [[[0, 1], [2, 3]]]
    assert last.tolist() == [[[4, 5]]]
    assert first_bias.tolist() == [[6, 7]]
    assert last_bias.tolist() == [[8]]
