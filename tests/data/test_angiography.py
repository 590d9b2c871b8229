import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage.draw import disk

from sa2va_trl.data.angiography import VISIBLE_FILLING, generate_video


RUNS = 5


@pytest.fixture(scope="module")
def runs():
    return [generate_video(seed=3, video=number) for number in range(RUNS)]


def vessel_contrast(frame, mask):
    """Grey values by which a ring around the vessels is brighter than the vessels."""
    ring = ndimage.binary_dilation(mask, iterations=6) & ~ndimage.binary_dilation(mask, iterations=2)
    return frame[ring].mean() - frame[mask.astype(bool)].mean()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), video=st.integers(0, 9999), num_frames=st.integers(1, 6), size=st.integers(32, 80))
def test_any_run_is_well_formed_and_repeatable(seed, video, num_frames, size):
    first, second = (generate_video(seed, video, num_frames, size) for _ in range(2))
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(second, name), err_msg=name)
    assert first.frames.shape == first.masks.shape == (num_frames, size, size)
    assert first.frames.dtype == first.masks.dtype == np.uint8
    assert set(np.unique(first.masks)) == {0, 1}
    assert first.masks.any(axis=(1, 2)).all()
    assert first.hard.dtype == bool
    assert first.hard.any() == (num_frames > 1)
    assert not first.hard.all()
    assert ((first.filling > 0) & (first.filling <= 1)).all()


def test_seed_and_video_number_both_change_the_run():
    base = generate_video(0, 0, 2, 64)
    for other in (generate_video(1, 0, 2, 64), generate_video(0, 1, 2, 64)):
        assert (base.masks != other.masks).any()
        assert (base.frames != other.frames).mean() > 0.5


def test_mask_is_the_union_of_discs_along_the_visible_centre_lines(runs):
    # Independent oracle: sweep discs along the segments instead of testing the distance to them.
    run = runs[0]
    for index in (0, 8, 15):
        swept = np.zeros(run.masks.shape[1:], dtype=np.uint8)
        for a, b in run.segments[run.visible[index]]:
            for u in np.linspace(0, 1, 25):
                x, y = (1 - u) * run.points[index, a] + u * run.points[index, b]
                radius = (1 - u) * run.radii[a] + u * run.radii[b]
                swept[disk((y, x), radius, shape=swept.shape)] = 1
        assert not (swept & ~run.masks[index] & 1).any()
        assert run.masks[index].sum() - swept.sum() <= 0.01 * swept.sum()


def test_contrast_front_decides_what_is_in_the_mask(runs):
    assert 0 < VISIBLE_FILLING < 0.5
    for run in runs:
        # What has been reached stays: wash-out makes vessels faint and removes none.
        assert (run.visible[1:] >= run.visible[:-1]).all()
        assert not run.visible[0].all()
        assert run.visible[-1].all()
        assert run.filling[0] < run.filling[7]
        assert run.filling[-1] < run.filling[7]


def test_visible_vessels_are_darker_than_their_surroundings(runs):
    for run in runs:
        for index in np.flatnonzero(~run.hard):
            assert vessel_contrast(run.frames[index], run.masks[index]) > 5


def test_vessels_are_the_dark_things_at_the_place_of_the_mask(runs):
    # Image and mask are aligned: moving the mask in any direction lowers the contrast.
    for run in runs:
        index = np.flatnonzero(~run.hard & (run.filling > 0.9))[0]
        here = vessel_contrast(run.frames[index], run.masks[index])
        for shift in ((3, 0), (-3, 0), (0, 3), (0, -3)):
            assert vessel_contrast(run.frames[index], np.roll(run.masks[index], shift, axis=(0, 1))) < here


def test_hard_stretch_is_contiguous_and_not_the_whole_run(runs):
    for run in runs:
        where = np.flatnonzero(run.hard)
        assert 2 <= len(where) <= 8
        assert (np.diff(where) == 1).all()


def test_hard_frames_have_less_contrast_and_more_noise(runs):
    for run in runs:
        contrast = np.array([vessel_contrast(*pair) for pair in zip(run.frames, run.masks, strict=True)])
        noise = np.array([(frame - ndimage.gaussian_filter(frame.astype(float), 2)).std() for frame in run.frames])
        assert contrast[run.hard].mean() < 0.75 * contrast[~run.hard].mean()
        assert noise[run.hard].mean() > noise[~run.hard].mean()
        assert run.contrast[run.hard].max() < run.contrast[~run.hard].min()


def test_vessel_fraction_is_that_of_an_angiogram(runs):
    fraction = np.stack([run.masks for run in runs]).mean(axis=(2, 3))
    assert fraction.min() > 0.025
    assert fraction.max() < 0.12
    assert 0.05 < fraction.mean() < 0.10


def test_quarter_resolution_can_still_express_the_masks(runs):
    masks = np.concatenate([run.masks[::5] for run in runs]).astype(np.float32)
    coarse = masks.reshape(len(masks), 64, 4, 64, 4).mean(axis=(2, 4))
    dice = []
    for mask, small in zip(masks, coarse, strict=True):
        restored = np.asarray(Image.fromarray(small).resize((256, 256), Image.Resampling.BILINEAR)) > 0.5
        dice.append(2 * (restored * mask).sum() / (restored.sum() + mask.sum()))
    assert np.mean(dice) > 0.88


def test_consecutive_masks_differ_but_overlap(runs):
    for run in runs:
        before, after = run.masks[:-1].astype(bool), run.masks[1:].astype(bool)
        iou = (before & after).sum(axis=(1, 2)) / (before | after).sum(axis=(1, 2))
        assert (iou < 1).all()
        assert (iou > 0.2).all()


def test_heart_beat_is_periodic_and_smooth():
    run = generate_video(0, 0, num_frames=60, size=64)
    travel = run.points - run.points.mean(axis=0)
    speed = np.linalg.norm(np.diff(run.points, axis=0), axis=2).max(axis=1)
    acceleration = np.linalg.norm(np.diff(run.points, n=2, axis=0), axis=2).max(axis=1)
    assert speed.max() < 0.05 * 64
    assert acceleration.max() < speed.max() * 1.2
    # After breathing (slow) is removed, the strongest frequency is one beat in 9 to 14 frames.
    spectrum = (np.abs(np.fft.rfft(travel, axis=0)) ** 2).sum(axis=(1, 2))
    spectrum[:3] = 0
    assert 60 / 15 <= spectrum.argmax() <= 60 / 8


def test_an_injection_begins_before_the_agent_and_ends_with_little_of_it():
    usual, whole = (generate_video(0, 1, num_frames=50, size=48, injection=injection) for injection in (False, True))
    assert not whole.masks[0].any() and usual.masks[0].any()
    assert whole.filling[0] < 0.02 and whole.filling.max() > 0.97 and 0.04 < whole.filling[-1] < 0.6
    # All but the agent's course is the same run.
    np.testing.assert_array_equal(whole.points, usual.points)
    np.testing.assert_array_equal(whole.hard, usual.hard)


def test_beat_and_breath_are_those_of_the_points():
    run = generate_video(0, 2, num_frames=120, size=48)
    np.testing.assert_allclose(np.diff(np.unwrap(run.beat, period=1)), 1 / run.beat_period)
    still = run.points - run.breath[:, None]
    # The heart is widest, and hardly moves, at end-diastole.
    wide = still.std(axis=1).sum(axis=1)
    speed = np.linalg.norm(np.gradient(still, axis=0), axis=2).mean(axis=1)
    near = np.minimum(run.beat, 1 - run.beat) < 0.06
    assert wide[near].min() > np.quantile(wide, 0.7) and speed[near].mean() < 0.7 * speed.mean()
