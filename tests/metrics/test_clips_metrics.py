import math

import numpy as np
import pytest
from pairs import blobs
from scipy import ndimage

from sa2va_trl.metrics import backward_flows, flicker, warped_iou


MASK = blobs(0, shape=(64, 64), smooth=4.0)


def moving(frames=4, step=2):
    """A textured picture that moves to the right, and the mask of something in it."""
    texture = ndimage.gaussian_filter(np.random.default_rng(0).random((64, 64)), 2)
    texture = (texture - texture.min()) / np.ptp(texture)
    roll = [np.roll(texture, step * number, axis=1).astype(np.float32) for number in range(frames)]
    return np.stack(roll), np.stack([np.roll(MASK, step * number, axis=1) for number in range(frames)])


def test_what_stays_does_not_flicker_and_what_blinks_does():
    assert flicker(np.stack([MASK] * 3)) == 0
    assert flicker(np.stack([MASK, ~MASK, MASK])) == 1
    assert flicker(np.stack([MASK, np.zeros_like(MASK), np.zeros_like(MASK)])) == 0.5
    halves = np.zeros((2, 4, 4), bool)
    halves[0, :2], halves[1, 1:3] = True, True
    assert flicker(halves) == pytest.approx(1 - 1 / 3)
    assert math.isnan(flicker(MASK[None])) and math.isnan(flicker(np.zeros((0, 4, 4), bool)))


def test_what_moves_with_the_picture_is_steady_once_warped():
    frames, masks = moving()
    flows = backward_flows(frames)
    assert flows.shape == (3, 2, 64, 64)
    # Where a pixel was: two to the left.
    assert np.median(flows[:, 1]) == pytest.approx(-2, abs=0.2) and abs(np.median(flows[:, 0])) < 0.2
    assert warped_iou(masks, flows) > 0.9 > 1 - flicker(masks)
    still = np.zeros_like(flows)
    assert warped_iou(masks, still) == pytest.approx(1 - flicker(masks))
    assert warped_iou(np.stack([MASK] * 4), still) == 1


def test_flows_and_masks_must_pair_up():
    assert math.isnan(warped_iou(MASK[None], backward_flows(np.zeros((1, 64, 64), np.float32))))
    with pytest.raises(ValueError, match="4 masks need 3 flows, got 2"):
        warped_iou(np.stack([MASK] * 4), np.zeros((2, 2, 64, 64)))
