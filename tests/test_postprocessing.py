import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from skimage.filters import apply_hysteresis_threshold
from skimage.measure import label
from skimage.morphology import closing, disk

from sa2va_trl.metrics.clips import backward_flows
from sa2va_trl.postprocessing import (
    Postprocessing,
    bridge_gaps,
    close_gaps,
    draw_clip,
    draw_mask,
    draw_row,
    drop_small,
    smoothed,
)


MAPS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=24),
    elements=st.sampled_from([float(np.float32(step / 20)) for step in range(21)]),
)
MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24))
EIGHT = np.ones((3, 3))
# Each step by itself and all of them. (A skeleton is not symmetric, so nor are its bridges.)
SYMMETRIC = [
    Postprocessing(min_size=4),
    Postprocessing(min_share=0.05),
    Postprocessing(closing_radius=2),
    Postprocessing(hysteresis=0.5),
    Postprocessing(hysteresis=0.4, closing_radius=1, min_size=5, min_share=0.01),
]
ALL = [*SYMMETRIC, Postprocessing(bridge_length=6), Postprocessing(0.5, 1, 5, 3)]


def lines(*pieces, shape=(60, 90)):
    mask = np.zeros(shape, bool)
    for rows, columns in pieces:
        mask[rows, columns] = True
    return mask


# Settings


@given(probabilities=MAPS, threshold=st.floats(0.01, 0.99))
def test_without_settings_a_mask_is_what_exceeds_the_threshold(probabilities, threshold):
    assert Postprocessing().is_identity and Postprocessing().to_dict() == {}
    expected = probabilities > threshold
    assert np.array_equal(draw_mask(probabilities, threshold, Postprocessing()), expected)
    assert np.array_equal(draw_clip(probabilities[None], threshold)[0], expected)
    assert np.array_equal(draw_row(probabilities[None], threshold)[0], expected)


@pytest.mark.parametrize("one", ALL + [Postprocessing(flow_weight=0.5), Postprocessing(majority_frames=3)])
def test_settings_go_to_a_dict_and_back(one):
    assert Postprocessing.from_dict(one.to_dict()) == one and not one.is_identity and str(one) != "none"
    assert one.is_temporal == bool({"flow_weight", "majority_frames"} & one.to_dict().keys())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 3}, "has no size, only hysteresis, closing_radius"),
        ({"min_size": -1}, "min_size of a post-processing must be at least 0, got -1"),
        ({"min_size": 2.0}, "min_size of a post-processing must be an integer, got 2.0"),
        ({"min_size": True}, "min_size of a post-processing must be an integer, got True"),
        ({"min_share": 1.0}, "min_share of a post-processing must be at least 0 and below 1"),
        ({"min_share": "much"}, "min_share of a post-processing must be a number, got 'much'"),
        ({"hysteresis": 0.0}, "hysteresis of a post-processing must be above 0"),
        ({"hysteresis": 1.5}, "hysteresis of a post-processing must be above 0"),
        ({"hysteresis": math.nan}, "hysteresis of a post-processing must be above 0"),
        ({"closing_radius": -2}, "closing_radius"),
        ({"bridge_length": -2}, "bridge_length"),
        ({"majority_frames": 4}, "majority_frames of a post-processing must be odd"),
        ({"exponential_weight": 1.0}, "exponential_weight"),
        ({"flow_weight": -0.5}, "flow_weight"),
        ({"flow_weight": 0.5, "majority_frames": 3}, "majority_frames and flow_weight are ways"),
        ([("min_size", 3)], "must be names with values"),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Postprocessing.from_dict(values)


# One mask


@settings(deadline=None)
@given(probabilities=MAPS, threshold=st.sampled_from([0.25, 0.5, 0.6]), one=st.sampled_from(SYMMETRIC))
def test_flips_and_turns_of_a_map_are_those_of_its_mask(probabilities, threshold, one):
    drawn = draw_mask(probabilities, threshold, one)
    for change in (np.flipud, np.fliplr, np.transpose, np.rot90):
        assert np.array_equal(draw_mask(np.ascontiguousarray(change(probabilities)), threshold, one), change(drawn))


@settings(deadline=None)
@given(mask=MASKS, least=st.integers(0, 12))
def test_what_stays_are_the_components_of_that_size(mask, least):
    labels, count = ndimage.label(mask, EIGHT)
    expected = np.zeros_like(mask)
    for number in range(1, count + 1):
        if (labels == number).sum() >= least:
            expected |= labels == number
    assert np.array_equal(drop_small(mask, least), expected)


def test_a_share_counts_pixels_of_the_image():
    mask = lines((slice(0, 1), slice(0, 9)), (slice(3, 4), slice(0, 10)), shape=(20, 50))  # of 1000 pixels
    assert draw_mask(mask * 1.0, 0.5, Postprocessing(min_share=0.01)).sum() == 10
    assert draw_mask(mask * 1.0, 0.5, Postprocessing(min_share=0.009)).sum() == 19
    assert draw_mask(mask * 1.0, 0.5, Postprocessing(min_share=0.001, min_size=10)).sum() == 10


@settings(deadline=None)
@given(probabilities=MAPS, share=st.sampled_from([0.2, 0.5, 0.9]), threshold=st.sampled_from([0.25, 0.5, 0.6]))
def test_hysteresis_is_that_of_scikit_image(probabilities, share, threshold):
    expected = apply_hysteresis_threshold(probabilities, share * threshold, threshold)
    drawn = draw_mask(probabilities, threshold, Postprocessing(hysteresis=share))
    assert np.array_equal(drawn, expected)
    assert (drawn >= (probabilities > threshold)).all()


@settings(deadline=None)
@given(mask=MASKS, radius=st.integers(1, 5))
def test_closing_is_that_of_a_disc_with_nothing_around_the_image(mask, radius):
    wide = 2 * radius + 1
    expected = closing(np.pad(mask, wide), disk(radius))[wide:-wide, wide:-wide]
    assert np.array_equal(close_gaps(mask, radius), expected) and (expected >= mask).all()


@settings(deadline=None)
@given(mask=MASKS, length=st.integers(1, 20))
def test_bridges_only_add_and_never_part_anything(mask, length):
    bridged = bridge_gaps(mask, length)
    assert (bridged >= mask).all()
    assert label(bridged, connectivity=2).max() <= label(mask, connectivity=2).max()


@pytest.mark.parametrize("one", ALL)
def test_empty_and_full_maps_stay_so(one):
    for value in (0.0, 1.0):
        maps = np.full((17, 23), value, np.float32)
        assert np.array_equal(draw_mask(maps, 0.5, one), maps > 0.5)


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_line_that_was_cut_is_joined_with_its_own_width(width, turn):
    rows = slice(30 - width // 2, 31 + width // 2)
    whole = np.rot90(lines((rows, slice(5, 80))), turn)
    cut = np.rot90(lines((rows, slice(5, 35)), (rows, slice(44, 80))), turn)
    assert np.array_equal(bridge_gaps(cut, 12), whole)
    assert np.array_equal(bridge_gaps(cut, 6), cut)  # nine pixels are too far


def test_a_slanting_line_is_joined():
    steps = np.arange(5, 25)
    cut = np.zeros((60, 60), bool)
    cut[steps, steps] = cut[steps + 25, steps + 25] = True
    joined = bridge_gaps(cut, 10)
    assert label(cut, connectivity=2).max() == 2 and label(joined, connectivity=2).max() == 1
    rows, columns = np.nonzero(joined & ~cut)
    assert np.abs(rows - columns).max() <= 1 and rows.min() >= 24 and rows.max() <= 30


@pytest.mark.parametrize(
    "mask",
    [
        lines((20, slice(5, 70)), (27, slice(5, 70))),  # beside each other, and both ends near
        lines((20, slice(5, 40)), (slice(28, 55), 40)),  # at right angles
        lines((20, slice(5, 40)), (20, slice(60, 80))),  # too far
        lines((20, slice(5, 40)), (20, slice(44, 46))),  # a speck, which points nowhere
        lines((20, slice(5, 40)), (26, slice(30, 60))),  # past each other
    ],
)
def test_what_does_not_point_at_each_other_stays_apart(mask):
    assert np.array_equal(bridge_gaps(mask, 10), mask)


def test_every_end_is_joined_once_and_no_ring_is_closed():
    cut = lines((20, slice(5, 20)), (20, slice(26, 50)), (20, slice(56, 80)))
    assert np.array_equal(bridge_gaps(cut, 10), lines((20, slice(5, 80))))
    ring = np.hypot(*(np.indices((61, 61)) - 30))
    ring = (ring > 23.5) & (ring < 26.5)
    ring[28:33, 50:] = False  # one gap: still one component
    assert np.array_equal(bridge_gaps(ring, 10), ring)


def test_pieces_that_were_joined_are_one_component():
    cut = lines((20, slice(5, 20)), (20, slice(25, 40))).astype(np.float32)
    assert draw_mask(cut, 0.5, Postprocessing(bridge_length=8, min_size=30)).sum() == 35
    assert draw_mask(cut, 0.5, Postprocessing(min_size=30)).sum() == 0


# Clips


def clip(frames=6, seed=0, shape=(24, 30)):
    return np.random.default_rng(seed).random((frames, *shape)).astype(np.float32)


def test_a_vote_is_of_the_frames_that_are_there():
    maps = clip()
    masks = maps > 0.5
    drawn = draw_clip(maps, 0.5, Postprocessing(majority_frames=3))
    assert np.array_equal(drawn[0], masks[0]) and np.array_equal(drawn[-1], masks[-1])  # one against one
    assert all(np.array_equal(drawn[middle], masks[middle - 1 : middle + 2].sum(0) >= 2) for middle in range(1, 5))
    five = draw_clip(maps, 0.5, Postprocessing(majority_frames=5))
    assert np.array_equal(five[0], masks[:3].sum(0) >= 2) and np.array_equal(five[2], masks[:5].sum(0) >= 3)
    assert np.array_equal(five[1], masks[:4].sum(0) + masks[1] / 2 > 2)


def test_the_exponential_mean_is_its_recursion():
    maps = clip()
    found = smoothed(maps, Postprocessing(exponential_weight=0.25))
    expected = maps[0].astype(float)
    for number in range(1, len(maps)):
        expected = 0.75 * maps[number] + 0.25 * expected
        assert np.allclose(found[number], expected, atol=1e-6)
    assert found.dtype == np.float32 and np.array_equal(found[0], maps[0])


def test_the_mean_along_the_motion_follows_it():
    rng = np.random.default_rng(1)
    picture = ndimage.gaussian_filter(rng.random((64, 96)), 2)
    picture = (picture - picture.min()) / np.ptp(picture)
    still = np.zeros((64, 96), np.float32)
    still[28:36, 20:70] = 0.8
    frames = np.stack([np.roll(picture, 3 * step, axis=0) for step in range(4)])
    maps = np.stack([np.roll(still, 3 * step, axis=0) for step in range(4)])
    truth = maps > 0.5
    maps[2] *= 0.3  # once the model is unsure
    flows = backward_flows(frames)
    followed = draw_clip(maps, 0.5, Postprocessing(flow_weight=0.6), flows)[2]
    blind = draw_clip(maps, 0.5, Postprocessing(exponential_weight=0.6))[2]

    def dice(drawn):
        return 2 * (drawn & truth[2]).sum() / (drawn.sum() + truth[2].sum())

    assert not draw_mask(maps[2], 0.5).any() and dice(followed) > 0.9 > dice(blind)


def test_flows_of_another_clip_are_refused():
    for flows in (None, np.zeros((2, 2, 24, 30), np.float32)):
        with pytest.raises(ValueError, match="flow_weight needs 5 flows"):
            draw_clip(clip(), 0.5, Postprocessing(flow_weight=0.5), flows)


@pytest.mark.parametrize(
    "one", [Postprocessing(majority_frames=5), Postprocessing(exponential_weight=0.5), Postprocessing(flow_weight=0.5)]
)
def test_a_clip_of_one_frame_is_an_image(one):
    (maps,) = clip(1)
    assert np.array_equal(draw_clip(maps[None], 0.5, one)[0], maps > 0.5)
    assert np.array_equal(draw_mask(maps, 0.5, one), maps > 0.5)


def test_objects_of_a_clip_are_smoothed_each_by_itself():
    first, second, one = clip(4, 1), clip(4, 2), Postprocessing(majority_frames=3, min_size=3)
    drawn = draw_row(np.concatenate([first, second]), 0.5, one, frames=4)
    assert np.array_equal(drawn, np.concatenate([draw_clip(maps, 0.5, one) for maps in (first, second)]))
