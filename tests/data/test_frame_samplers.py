import json
from functools import cache

import numpy as np
import pytest
from PIL import Image

from sa2va_trl.data.angiography import generate_video
from sa2va_trl.data.frame_samplers import SAMPLERS, repeats, sample_frames, unusable
from sa2va_trl.data.frame_signals import measure_frames
from sa2va_trl.data.near_duplicates import thumbnail
from sa2va_trl.models.frame_policy import select_frames


@pytest.fixture(scope="module")
def runs():
    """Runs of whole injections, with what was measured of them."""
    videos = [generate_video(11, number, 60, 192, injection=True) for number in range(3)]
    return [(video, measure_frames(video.frames)) for video in videos]


@pytest.fixture(scope="module")
def clip(runs):
    return runs[0][0].frames


@pytest.mark.parametrize("count", [3, 8])
def test_contrast_covers_three_phases_and_most_are_filled(runs, count):
    for video, signals in runs:
        level = video.filling / video.filling.max()
        full = np.flatnonzero(level >= 0.9)
        sample = sample_frames(signals, count, "contrast")
        chosen = np.array(sample.frames)
        assert len(chosen) == count and not sample.report["reasons"]
        assert ((chosen < full[0]) & (level[chosen] >= 0.05)).any() and (chosen > full[-1]).any()
        filled = ((chosen >= full[0]) & (chosen <= full[-1])).sum()
        assert filled >= (1 if count == 3 else count / 2)
        assert full[0] <= sample.report["key_frame"] <= full[-1]


def test_one_frame_of_contrast_is_the_key_frame_and_two_are_with_inflow(runs):
    for _, signals in runs:
        one, two = (sample_frames(signals, count, "contrast") for count in (1, 2))
        assert one.frames == [one.report["key_frame"]]
        assert set(one.frames) < set(two.frames) and two.frames[0] in range(*two.report["phases"]["inflow"])


def test_a_clip_without_inflow_says_so(runs):
    video, _ = runs[1]
    first = int(np.flatnonzero(video.filling > 0.95 * video.filling.max())[0]) + 3
    later = measure_frames(video.frames[first:])
    sample = sample_frames(later, 6, "contrast")
    assert sample.report["reasons"] == ["no inflow found: the clip begins with filled vessels"]
    assert len(sample.frames) == 6


def test_cardiac_finds_the_period_and_spreads_over_the_cycle(runs):
    for video, signals in runs:
        sample = sample_frames(signals, 8, "cardiac")
        assert abs(sample.report["period"] - video.beat_period) <= 1
        phase = np.sort(video.beat[sample.frames])
        assert np.diff(np.append(phase, phase[0] + 1)).max() < 0.4


def test_the_first_frame_of_cardiac_is_at_end_diastole(runs):
    off = [(video.beat[sample_frames(signals, 1, "cardiac").frames[0]] + 0.5) % 1 - 0.5 for video, signals in runs]
    assert np.median(np.abs(off)) < 0.15


def test_diverse_covers_more_appearance_than_uniform(runs):
    for video, signals in runs:
        looks = np.stack([thumbnail(Image.fromarray(frame)) for frame in video.frames])
        left = {}
        for name in ("diverse", "uniform"):
            frames = sample_frames(signals, 6, name).frames
            left[name] = (((looks[:, None] - looks[frames][None]) ** 2).sum(axis=2)).min(axis=1).sum()
        assert left["diverse"] < left["uniform"]


def test_uniform_is_the_rule_of_inference(runs):
    for count in (1, 2, 5, 59, 60):
        assert sample_frames(runs[0][1], count).frames == select_frames("uniform", 60, count)


def test_frames_may_come_one_by_one_and_as_pictures(clip):
    pictures = (Image.fromarray(frame).convert("RGB") for frame in clip[:20])
    assert sample_frames(iter(clip[:20]), 5).report == sample_frames(pictures, 5).report


def odd_clips():
    rng = np.random.default_rng(0)
    flat, noise = np.full((24, 32), 90, np.uint8), rng.integers(0, 255, (40, 24, 32), dtype=np.uint8)
    return {
        "one frame": [flat],
        "one of noise": noise[:1],
        "two": noise[:2],
        "three": noise[:3],
        "constant": [flat] * 40,
        "black": [flat * 0] * 40,
        "of one pixel": [frame[:1, :1] for frame in noise],
        "one picture": [noise[0]] * 40,
        "noise": noise,
        "noise about a picture": [
            np.clip(noise[0] // 2 + 40 + rng.normal(0, 3, flat.shape), 0, 255).astype(np.uint8) for _ in range(40)
        ],
        "black and white": [flat * 0, flat * 0 + 255] * 20,
        "mostly black": [flat * 0] * 30 + list(noise[:10]),
    }


@cache
def odd_signals(name):
    return measure_frames(odd_clips()[name])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("alike", [None, 0.9999])
@pytest.mark.parametrize("name", list(odd_clips()))
def test_odd_clips_have_a_sample_and_a_reason(name, alike, sampler):
    signals = odd_signals(name)
    total = len(signals.spread)
    for count in (1, 3, 8):
        sample = sample_frames(signals, count, sampler, alike=alike)
        assert sample.frames == sorted(set(sample.frames)) and set(sample.frames) <= set(range(total))
        left = sum(map(len, sample.report["left_out"].values()))
        assert len(sample.frames) == min(count, total - left) > 0
        json.dumps(sample.report, allow_nan=False)
        if len(sample.frames) < count:
            assert "no more than" in sample.report["reasons"][0]
    if name in ("constant", "noise", "one picture") and alike is None and sampler in ("contrast", "cardiac"):
        assert sample.report["reasons"][0].endswith("found, spread uniformly")


def test_repeated_frames_are_left_out(clip):
    sample = sample_frames(np.repeat(clip[:20], 3, axis=0), 20)
    assert sample.frames == list(range(0, 60, 3)) and len(sample.report["left_out"]["repeats"]) == 40
    assert sample_frames(np.repeat(clip[:20], 3, axis=0), 60, alike=None).frames == list(range(60))


def test_a_slow_drift_does_not_repeat_itself_forever(clip):
    weights = np.linspace(0, 1, 80)
    signals = measure_frames((clip[0] * (1 - weight) + clip[30] * weight).astype(np.uint8) for weight in weights)
    again = repeats(signals, list(range(80)))
    kept = np.setdiff1d(np.arange(80), again)
    assert 3 < len(kept) < 40 and np.diff(kept).max() < 40


@pytest.fixture(scope="module")
def spoiled(clip):
    """What is measured of a clip with a black frame, a flash and a torn frame."""
    frames = clip.copy()
    frames[10] = 0
    frames[30] = np.minimum(frames[30].astype(int) + 200, 255)
    frames[50, 96:] = np.roll(frames[50, 96:], 60, axis=1)
    return measure_frames(frames)


def test_only_spoiled_frames_are_below_the_floor(runs, spoiled):
    assert not any(unusable(signals) for _, signals in runs)
    assert unusable(spoiled) == {10: "blank", 30: "blank", 50: "unlike its neighbours"}


@pytest.mark.parametrize("sampler", ["contrast", "cardiac", "diverse"])
def test_spoiled_frames_change_little(runs, spoiled, sampler):
    sample, clean = sample_frames(spoiled, 8, sampler), sample_frames(runs[0][1], 8, sampler)
    assert not {10, 30, 50} & set(sample.frames)
    if sampler == "cardiac":
        assert abs(sample.report["period"] - clean.report["period"]) < 0.3
    if sampler == "contrast":
        assert abs(sample.report["key_frame"] - clean.report["key_frame"]) <= 2
    assert sum(map(len, sample_frames(spoiled, 8, floor=False).report["left_out"].values())) == 0


def test_faint_and_blurred_frames_stay_in_proportion(runs):
    for sampler in SAMPLERS:
        chosen = np.mean([video.hard[sample_frames(signals, 12, sampler).frames].mean() for video, signals in runs])
        assert abs(chosen - np.mean([video.hard.mean() for video, _ in runs])) < 0.13, sampler


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"count": 0}, "count"),
        ({"count": True}, "count"),
        ({"count": 2.5}, "count"),
        ({"sampler": "best"}, "uniform, contrast, cardiac, diverse"),
        ({"fps": 0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"alike": 0.0}, "alike"),
        ({"alike": 1.5}, "alike"),
    ],
)
def test_options_out_of_range_are_refused(clip, options, named):
    with pytest.raises(ValueError, match=named):
        sample_frames(clip, **{"count": 3, **options})
