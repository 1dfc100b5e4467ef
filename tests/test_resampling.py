"""Resampling equals SimpleITK's; labels keep their volume and borders."""

import numpy as np
import pytest
from scans import SIZE, SPACING, itk_linear, mask, scan

from dgbench.data import resampling


@pytest.mark.parametrize("new", [(2.0, 1.1, 1.0), (5.0, 0.9, 0.7), (11.0, 0.4, 3.0), (100.0, 100.0, 0.7)])
def test_linear_equals_itk(new: tuple[float, ...]) -> None:
    size = resampling.grid_size(SIZE, SPACING, new)
    mine = resampling.linear(scan(), resampling.coordinates(size, new, SPACING))
    reference = itk_linear(scan(), SPACING, size, new)
    known = np.isfinite(reference)
    assert known.mean() > 0.9
    np.testing.assert_allclose(mine[known], reference[known], atol=2e-3)


def test_grid_size_rounds_to_the_nearest() -> None:
    assert resampling.grid_size((120, 512, 512), (2.5, 0.7, 0.7), (1.5, 0.8, 0.8)) == (200, 448, 448)
    assert resampling.grid_size((3, 5, 1), (1, 1, 1), (2, 2, 10)) == (2, 3, 1)


def test_linear_reproduces_a_plane_exactly() -> None:
    z, y, x = np.mgrid[:6, :7, :8]
    at = [np.array([0, 0.25, 4.75]), np.array([1.5, 6.0]), np.array([0.5, 6.9])]
    expected = 3 * at[0][:, None, None] - 2 * at[1][:, None] + 5 * at[2]
    np.testing.assert_allclose(resampling.linear(3 * z - 2 * y + 5 * x, at), expected, rtol=1e-6)
    np.testing.assert_allclose(resampling.linear(y[0], at[1:]), np.broadcast_to(at[1][:, None], (2, 2)), rtol=1e-6)


def test_labels_take_the_largest_membership_of_the_whole_map() -> None:
    new = (2.0, 1.1, 1.0)
    size = resampling.grid_size(SIZE, SPACING, new)
    at = resampling.coordinates(size, new, SPACING)
    memberships = np.stack([itk_linear(mask() == value, SPACING, size, new) for value in (0, 1, 2)])
    clear = np.sort(memberships, axis=0)[-1] - np.sort(memberships, axis=0)[-2] > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(resampling.labels(mask(), at)[clear], memberships.argmax(0)[clear])


def test_label_ties_keep_the_volume_and_borders_are_kept() -> None:
    half = [np.arange(0, 3.6, 0.5)]
    row = np.array([[0, 1, 1, 2]], np.uint8)
    assert resampling.labels(row, [np.zeros(1), *half]).tolist() == [[0, 0, 1, 1, 1, 1, 2, 2]]
    assert not resampling.labels(np.zeros((2, 2), np.uint8), [np.arange(3.0), np.arange(3.0)]).any()
    full = np.full((2, 3), 2, np.uint8)
    assert resampling.labels(full, [np.arange(0, 2, 0.5), np.arange(0, 3, 0.5)]).tolist() == [[2] * 6] * 4


def test_volume_of_a_structure_survives() -> None:
    new = (2.0, 1.1, 1.0)
    at = resampling.coordinates(resampling.grid_size(SIZE, SPACING, new), new, SPACING)
    before = (mask() > 0).sum() * np.prod(SPACING)
    after = (resampling.labels(mask(), at) > 0).sum() * np.prod(new)
    assert after == pytest.approx(before, rel=0.03)
