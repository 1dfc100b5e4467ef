"""Boxes: widened, padded, pasted; and the component filter."""

import numpy as np
import pytest

from dgbench.inference.roi import Box, bounding_box, keep_components, paste, widen


def test_widened_boxes_keep_every_promise() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        shape = rng.integers(3, 90, 3)
        lo = np.array([rng.integers(0, n) for n in shape])
        hi = np.array([rng.integers(low, n) + 1 for low, n in zip(lo, shape, strict=True)])
        margin, minimum, multiple = rng.integers(0, 20, 3), rng.integers(0, 50, 3), int(rng.choice([8, 16]))
        box = widen(Box(tuple(lo), tuple(hi)), margin, minimum, shape, multiple)
        size = np.array(box.size)
        asked = np.maximum(hi - lo + 2 * margin, minimum)
        assert not (size % multiple).any()
        assert (size >= asked).all()
        assert (size < asked + multiple).all(), "rounded up no further than needed"
        fits = size <= shape
        low, high = np.array(box.lo), np.array(box.hi)
        assert (low[fits] >= 0).all()
        assert (high[fits] <= shape[fits]).all()
        below, above = -low[~fits], (high - shape)[~fits]
        assert (below >= 0).all()
        assert (abs(below - above) <= 1).all(), "a volume that is too short is padded evenly on both sides"
        assert (low <= lo).all()
        assert (high >= hi).all(), "what was asked for is inside"


def test_extra_voxels_go_half_below_and_the_rest_above() -> None:
    assert widen(Box((30,), (41,)), (2,), (0,), (100,), 8) == Box((28,), (44,))  # 15 → 16: 2 below, 3 above
    assert widen(Box((30,), (42,)), (2,), (0,), (100,), 8) == Box((28,), (44,))
    assert widen(Box((1,), (9,)), (4,), (0,), (100,), 8) == Box((0,), (16,)), "moved, not cut"
    assert widen(Box((95,), (100,)), (4,), (0,), (100,), 8) == Box((84,), (100,))


@pytest.mark.parametrize(("depth", "low", "high"), [(60, 1, 58), (41, 0, 41)])
def test_short_volumes_are_padded_where_the_release_wraps_around(depth: int, low: int, high: int) -> None:
    """Dual-task sheet 7.3: a start below zero made crops of 4 and 7 slices."""
    box = widen(Box((low,), (high,)), (0,), (0,), (depth,), 8)
    assert box.size[0] % 8 == 0
    assert box.size[0] >= high - low
    wide = widen(Box((low,), (high,)), (5,), (0,), (depth,), 8)
    assert wide.lo[0] < 0
    assert wide.hi[0] > depth


def test_bounding_box_holds_every_voxel_of_all_parts() -> None:
    mask = np.zeros((6, 7, 8), bool)
    assert bounding_box(mask) is None
    mask[1, 2, 3] = mask[4, 2, 6] = True
    assert bounding_box(mask) == Box((1, 2, 3), (5, 3, 7))


def test_paste_puts_a_part_in_its_place_and_drops_what_is_outside() -> None:
    part = np.arange(1, 61, dtype=np.float32).reshape(3, 4, 5)
    full = paste(part, Box((-1, 2, 3), (2, 6, 8)), (4, 5, 6))
    assert full.dtype == np.float32
    np.testing.assert_array_equal(full[0:2, 2:5, 3:6], part[1:3, 0:3, 0:3])
    assert np.count_nonzero(full) == 18


def test_components_up_to_half_of_the_largest_are_dropped() -> None:
    mask = np.zeros((3, 3, 30), bool)
    mask[1, 1, 0:8] = mask[1, 1, 10:15] = mask[1, 1, 20:24] = True  # 8, 5 and 4 voxels
    kept = keep_components(mask, 0.5)
    assert kept[1, 1, 0:8].all()
    assert kept[1, 1, 10:15].all()
    assert kept.sum() == 13
    assert keep_components(mask, None) is mask
    assert keep_components(mask, 0.0).sum() == 17
    assert not keep_components(np.zeros((2, 2), bool), 0.5).any()


def test_voxels_that_touch_at_a_corner_are_one_component() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    mask[0, 3, 3] = True
    assert keep_components(mask, 0.5).sum() == 3
