import numpy as np
from scipy import ndimage

from sa2va_trl.motion import backward_flows, carried


def test_what_moves_is_carried_to_where_it_is_now():
    picture = ndimage.gaussian_filter(np.random.default_rng(0).random((64, 64)), 2)
    picture = (picture - picture.min()) / np.ptp(picture)
    (flow,) = backward_flows(np.stack([picture, np.roll(picture, (2, -1), axis=(0, 1))]))
    inner = (slice(8, -8), slice(8, -8))
    assert np.abs(np.median(flow[(slice(None), *inner)], axis=(1, 2)) - (-2, 1)).max() < 0.2
    moved = carried(picture, flow, order=1, outside=0.0)
    assert np.abs(moved - np.roll(picture, (2, -1), axis=(0, 1)))[inner].mean() < 0.02


def test_what_comes_from_outside_is_what_is_said():
    flow = np.zeros((2, 4, 5), np.float32)
    flow[0] = -1  # everything came from one row further up
    ones = np.ones((4, 5), np.float32)
    assert np.isnan(carried(ones, flow, 1, np.nan)[0]).all() and (carried(ones, flow, 1, np.nan)[1:] == 1).all()
    assert not carried(ones > 0, flow, 0, 0)[0].any()
    assert backward_flows(np.zeros((1, 4, 5))).shape == (0, 2, 4, 5)
