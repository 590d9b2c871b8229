from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from sa2va_trl.metrics import measure, motion, segmentation_metrics, spread, tolerant_dice


def disc(radius, centre=(32, 32), size=64):
    y, x = np.mgrid[:size, :size]
    return np.hypot(y - centre[0], x - centre[1]) <= radius


def test_measurements_of_a_drawn_bar():
    mask = np.zeros((64, 64), dtype=bool)
    mask[30:35, 10:54] = True
    grey = np.where(mask, 0.3, 0.6)
    values = measure(grey, mask)
    assert values["contrast"] == pytest.approx(0.5)
    assert values["area"] == pytest.approx(5 * 44 / 64**2)
    assert values["thickness"] == pytest.approx(5, abs=1)
    thin = np.zeros_like(mask)
    thin[31:34, 10:54] = True
    assert measure(grey, thin)["thickness"] < values["thickness"]


def test_measurements_go_the_way_of_what_they_measure():
    mask = disc(12)
    picture = np.where(mask, 0.3, 0.6)
    sharp, blurred = measure(picture, mask), measure(gaussian_filter(picture, 3), mask)
    assert blurred["sharpness"] < 0.5 * sharp["sharpness"]
    faint = measure(0.6 - 0.3 * (0.6 - picture), mask)
    assert faint["sharpness"] == pytest.approx(sharp["sharpness"]) and faint["contrast"] < 0.5 * sharp["contrast"]
    assert measure(picture, disc(12, (14, 32)))["border_distance"] < measure(picture, mask)["border_distance"]
    still, moved = motion(picture, picture), motion(np.roll(picture, 3, 0), picture)
    assert still == 0 and moved > 0
    assert np.isnan(motion(picture, picture[:32]))
    empty = measure(picture, np.zeros_like(mask))
    assert empty["area"] == 0 and all(np.isnan(empty[name]) for name in ("contrast", "thickness", "border_distance"))


@given(st.integers(0, 2**20), st.floats(0, 3))
def test_tolerant_dice(seed, tolerance):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(size=(2, 9, 9)) < rng.uniform(0, 0.5)
    value = tolerant_dice(a, b, tolerance)
    total = a.sum() + b.sum()
    plain = 2 * (a & b).sum() / total if total else 1.0
    assert value == tolerant_dice(b, a, tolerance)
    assert plain - 1e-12 <= value <= 1
    assert tolerant_dice(a, b, 0) == pytest.approx(plain)


def test_tolerance_forgives_a_shift_and_no_more():
    mask = disc(5)
    assert tolerant_dice(mask, np.roll(mask, 2, 0), 2) == 1
    assert tolerant_dice(mask, np.roll(mask, 20, 0), 2) == 0
    assert tolerant_dice(mask, np.zeros_like(mask), 2) == 0


@given(seed=st.integers(0, 1000), count=st.integers(0, 5), share=st.sampled_from([0.0, 0.1, 0.6]))
def test_spread_is_one_less_the_mean_dice_of_pairs(seed, count, share):
    masks = np.random.default_rng(seed).random((count, 6, 7)) < share
    pairs = [segmentation_metrics(one, other)["dice"] for one, other in combinations(masks, 2)]
    assert spread(masks) == pytest.approx(1 - np.mean(pairs) if pairs else 0.0)
