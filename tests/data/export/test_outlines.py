import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sa2va_trl.data.export.outlines import one_ring, outlines
from sa2va_trl.data.masks import polygons_to_mask
from sa2va_trl.data.readers.yolo import draw_ring


masks = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def drawn(mask):
    text = [[picture == "#" for picture in row] for row in mask.split()]
    return np.array(text)


def check(mask):
    size = mask.shape[::-1]
    rings = outlines(mask)
    parts = [polygons_to_mask([ring.ravel()], size) for ring in rings]
    assert np.array_equal(np.sum(parts, axis=0) if parts else 0 * mask, mask)  # none twice
    if rings:
        shares = np.array([[float(f"{value:.9g}") for value in point] for point in one_ring(rings) / size])
        assert np.array_equal(draw_ring(shares, size), mask)


@given(masks)
@settings(max_examples=100, deadline=None)
def test_outlines_are_of_the_very_mask(mask):
    check(mask)


@pytest.mark.parametrize(
    ("mask", "count"),
    [
        ("#", 1),
        ("##. .#. ###", 1),
        ("#. .#", 2),
        ("### #.# ###", 1),
        (".## #.# ###", 1),  # the hole opens at a corner
        (".#. #.# .#.", 4),
        ("##### #...# #.#.# #...# #####", 2),
        ("####### #.#.#.# ####### #..##.# #######", 1),
        ("######## #......# #.####.# #.#..#.# #.####.# #......# ########", 2),
    ],
)
def test_parts_and_holes(mask, count):
    mask = drawn(mask)
    check(mask)
    assert len(outlines(mask)) == count


def test_a_smooth_outline_has_few_points():
    rows, columns = np.mgrid[:200, :200]
    mask = (rows - 100) ** 2 + (columns - 90) ** 2 < 80**2
    (ring,) = outlines(mask)
    assert len(ring) < 100  # of 640 edges
    check(mask)
    check(mask & ((rows - 90) ** 2 + (columns - 80) ** 2 > 40**2))
