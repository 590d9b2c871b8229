import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pairs import FIXED, TURNS, blobs, mask, mask_pairs
from scipy import ndimage
from skimage.morphology import disk

from sa2va_trl.metrics import contour_accuracy, region_similarity, track_scores
from sa2va_trl.metrics.tracks import contour_pixels


def contour_by_the_loop(mask):
    """`seg2bmap`, written from its definition: a pixel unlike one of three neighbours, those that there are."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            near = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            near = [place for place in near if place[0] < height and place[1] < width]
            found[y, x] = any(mask[place] != mask[y, x] for place in near)
    return found


def f_by_dilation(pred, target, share=0.008):
    """F from its definition: contours that lie in the other one, dilated by a disk."""
    size = disk(math.ceil(share * math.hypot(*pred.shape)) if share < 1 else int(share))
    ours, theirs = contour_by_the_loop(pred), contour_by_the_loop(target)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    precision = (ours & ndimage.binary_dilation(theirs, size)).sum() / ours.sum()
    recall = (theirs & ndimage.binary_dilation(ours, size)).sum() / theirs.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def moving_tracks(frames=6, shape=(90, 120)):
    """A disk that moves, grows, leaves the picture and comes back, and what a tracker might have drawn."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    targets, preds = [], []
    for frame in range(frames):
        centre, radius = (30 + 4 * frame, -10 + 22 * frame), 12 + frame
        target = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
        targets.append(target & (frame not in (2, 3)))
        near = (rows - centre[0] - 2) ** 2 + (columns - centre[1] + 1) ** 2 <= (radius - 1) ** 2
        preds.append((near ^ blobs(frame, shape, share=0.02)) & (frame != 3))
    return np.stack(preds), np.stack(targets)


@pytest.mark.parametrize("name", FIXED)
def test_f_is_that_of_contours_dilated_by_a_disk(name):
    pred, target = FIXED[name]
    assert (contour_pixels(target) == contour_by_the_loop(target)).all()
    for share in (0.008, 0.03, 2):
        assert contour_accuracy(pred, target, share) == pytest.approx(f_by_dilation(pred, target, share), abs=1e-9)


@given(mask_pairs(), st.sampled_from((0.008, 0.2, 1, 3)))
def test_f_of_any_masks(pair, share):
    assert contour_accuracy(*pair, share) == pytest.approx(f_by_dilation(*pair, share), abs=1e-9)


@given(mask_pairs())
def test_both_are_symmetric_and_in_range(pair):
    for measure in (region_similarity, contour_accuracy):
        assert measure(*pair) == pytest.approx(measure(*pair[::-1])) and 0 <= measure(*pair) <= 1
        assert measure(pair[0], pair[0]) == 1


def test_a_track_has_the_numbers_of_other_evaluations():
    # Of these tracks, by TrackEval 1.3.0 (metrics/j_and_f.py, after davis2017-evaluation), frame by frame,
    # and by vos-benchmark 0.1.0, the means.
    found = track_scores(*moving_tracks())
    j = [0.0041841004184100415, 0.5691056910569106, 0, 1, 0.6573628488931665, 0.6725352112676056]
    f = [0.014224751066856329, 0.31127339114559555, 0, 1, 0.4182072877574668, 0.3803317535545023]
    assert found.j_frames == pytest.approx(j, abs=1e-12) and found.f_frames == pytest.approx(f, abs=1e-12)
    assert (found.j, found.f) == pytest.approx((0.4838646419393488, 0.3540061972540702), abs=1e-12)


def test_a_track_is_the_mean_of_its_frames():
    preds, targets = moving_tracks()
    found = track_scores(preds, targets)
    j = [(p & t).sum() / (p | t).sum() if (p | t).any() else 1 for p, t in zip(preds, targets, strict=True)]
    f = [f_by_dilation(p, t) for p, t in zip(preds, targets, strict=True)]
    assert j[3] == f[3] == 1 and j[2] == f[2] == 0  # nothing where nothing is, something where nothing is
    assert found.j_frames == pytest.approx(j, abs=1e-9) and found.f_frames == pytest.approx(f, abs=1e-9)
    assert found.j_and_f == pytest.approx((np.mean(j) + np.mean(f)) / 2, abs=1e-9)
    inner = track_scores(preds, targets, without_ends=True)
    assert inner.j == pytest.approx(np.mean(j[1:-1]), abs=1e-9) and len(inner.f_frames) == 4


def test_by_hand():
    # Squares of 3 x 3 in a picture whose diagonal is 13: the disk has a radius of 1.
    target, near, far = np.zeros((3, 5, 12), dtype=bool)
    target[1:4, 1:4] = near[1:4, 2:5] = far[1:4, 3:6] = True
    drawn = mask("####........", "#..#........", "#..#........", "####........", "............")
    assert (contour_pixels(target) == drawn).all()
    assert region_similarity(near, target) == 6 / 12 and contour_accuracy(near, target) == 1
    # Two pixels away, of the 12 of either contour the 4 on the far side are not met.
    assert region_similarity(far, target) == 3 / 15 and contour_accuracy(far, target) == pytest.approx(8 / 12)


def test_a_mask_of_the_whole_picture_has_no_contour():
    full, empty = np.ones((9, 12), dtype=bool), np.zeros((9, 12), dtype=bool)
    one = empty.copy()
    one[4, 5] = True
    assert not contour_pixels(full).any()
    assert contour_accuracy(full, empty) == 1 and region_similarity(full, empty) == 0
    assert contour_accuracy(full, one) == contour_accuracy(one, empty) == 0


@pytest.mark.parametrize(
    ("preds", "targets", "options", "words"),
    [
        (np.zeros((2, 4, 4)), np.zeros((3, 4, 4)), {}, "same shape"),
        (np.zeros((4, 4)), np.zeros((4, 4)), {}, r"\(frames, H, W\)"),
        (np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), {"without_ends": True}, "No frame counts of the 2"),
        (np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), {"tolerance": 0}, "above 0"),
        (np.full((1, 4, 4), 2), np.zeros((1, 4, 4)), {}, "hold only 0 and 1"),
    ],
)
def test_what_is_no_track_is_refused(preds, targets, options, words):
    with pytest.raises(ValueError, match=words):
        track_scores(preds, targets, **options)


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_picture_has_the_same_j(turn):
    preds, targets = moving_tracks()
    assert region_similarity(turn(preds[1]), turn(targets[1])) == region_similarity(preds[1], targets[1])
