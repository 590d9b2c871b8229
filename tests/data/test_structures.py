from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import disk

from sa2va_trl.data import angiography
from sa2va_trl.data.angiography import generate_video
from sa2va_trl.data.structures import OPTIONAL, STRUCTURES
from sa2va_trl.data.vessels import FIRST_MAIN, SIDE


RUNS = 10


def make(number, hospital, frames=8, size=192, **changed):
    """A named run, with something about it changed before it is filmed."""
    return angiography._film(replace(angiography._draw_run(21, number, frames, size, "named", hospital), **changed))


@pytest.fixture(scope="module")
def runs():
    return [make(number, hospital) for hospital in (1, 2) for number in range(RUNS)]


def swept(points, radii, segments, shape):
    """Discs along segments: an independent way to draw a tube."""
    drawn = np.zeros(shape, dtype=bool)
    for a, b in segments:
        for u in np.linspace(0, 1, 25):
            x, y = (1 - u) * points[a] + u * points[b]
            drawn[disk((y, x), (1 - u) * radii[a] + u * radii[b], shape=shape)] = True
    return drawn


def nearly_equal(mask, drawn, share=0.02):
    return (mask != drawn).sum() <= max(share * mask.sum(), 2)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    number=st.integers(0, 9999),
    frames=st.integers(1, 4),
    size=st.integers(32, 90),
    scene=st.sampled_from([("plain", 1), ("named", 1), ("named", 2)]),
)
def test_masks_of_any_run_are_well_formed_and_repeatable(seed, number, frames, size, scene):
    first, second = (generate_video(seed, number, frames, size, *scene) for _ in range(2))
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(second, name), err_msg=name)
    assert list(first.structures) == [name for name in STRUCTURES if name in first.structures]
    assert set(STRUCTURES) - set(first.structures) == (set() if first.sides else {STRUCTURES[2], STRUCTURES[3]})
    for name, masks in first.structures.items():
        np.testing.assert_array_equal(masks, second.structures[name])
        assert masks.shape == first.frames.shape and masks.dtype == np.uint8 and masks.max(initial=0) <= 1
    for name in ("main trunk", "side branches", "narrowing", "left main branch", "right main branch"):
        assert not (first.structures.get(name, first.masks) & ~first.masks & 1).any(), name
    assert (first.structures["blood vessel"] == first.masks).all()


def test_scenes_and_hospitals_are_other_runs():
    runs = [generate_video(0, 3, 1, 64), *(generate_video(0, 3, 1, 64, "named", hospital) for hospital in (1, 2))]
    for index, run in enumerate(runs):
        for other in runs[:index]:
            assert run.points.shape != other.points.shape or np.abs(run.points - other.points).max() > 1


def test_trunk_main_and_side_branches_are_the_tree(runs):
    trees = [run for run in runs if run.sides or not (run.part == FIRST_MAIN).any()]
    assert len(trees) > RUNS
    for run in trees:
        found = run.structures
        trunk, sides = found["main trunk"], found["side branches"]
        mains = [found[name] for name in ("left main branch", "right main branch") if name in found]
        assert len(mains) in (0, 2)
        np.testing.assert_array_equal(np.maximum.reduce([trunk, sides, *mains]), run.masks)
        for main in mains:
            assert not (main & (trunk | sides)).any()
        assert not (trunk & sides).any()


def test_parts_lie_where_their_segments_are(runs):
    for run in (runs[0], runs[1], runs[RUNS], runs[RUNS + 1]):
        index = len(run.frames) - 1
        side = run.segments[run.visible[index] & (run.part == SIDE)]
        other = run.segments[run.visible[index] & (run.part != SIDE)]
        drawn = [swept(run.points[index], run.radii, part, run.opening.shape) & run.opening for part in (side, other)]
        assert nearly_equal(run.structures["side branches"][index] > 0, drawn[0] & ~drawn[1])


def test_left_is_left_of_right(runs):
    both = [run for run in runs if run.sides]
    assert len(both) > 4
    column = np.arange(runs[0].frames.shape[2])
    for run in both:
        left, right = (run.structures[f"{side} main branch"][-1].sum(axis=0) for side in ("left", "right"))
        if left.any() and right.any():
            assert (left * column).sum() / left.sum() < (right * column).sum() / right.sum() - 4


def test_the_main_vessel_runs_to_the_side_that_is_said(runs):
    said = [run for run in runs if run.runs_to]
    assert {run.runs_to for run in said} == {"left", "right"} and len(said) < len(runs)
    for run in said:
        rows, columns = np.nonzero((run.masks[-1] > 0) & (run.structures["side branches"][-1] == 0))
        way = columns.mean() - run.points[-1, 0, 0]
        assert (way > 0) == (run.runs_to == "right") and abs(way) > 8


def test_what_a_run_may_lack_is_there_in_some(runs):
    for name in OPTIONAL:
        there = [run.structures[name].any() for run in runs]
        assert 0.2 < np.mean(there) < 0.95, name


@pytest.mark.parametrize("hospital", [1, 2])
def test_a_catheter_darkens_its_mask_and_nothing_else(hospital):
    number = next(n for n in range(9) if make(n, hospital, 1, 64).catheter.size)
    run, without = make(number, hospital, frames=3), make(number, hospital, frames=3, catheter=None)
    assert not without.structures["catheter"].any() and without.catheter.shape == (3, 0, 2)
    for index in range(3):
        mask, radii = run.structures["catheter"][index] > 0, np.full(24, run.catheter_radius)
        pairs = np.stack([np.arange(23), np.arange(1, 24)], axis=1)
        assert nearly_equal(mask, swept(run.catheter[index], radii, pairs, mask.shape) & run.opening)
        change = run.frames[index].astype(int) - without.frames[index]
        assert change[mask].mean() < -8 and (change[mask] <= 0).mean() > 0.97
        # Not beyond what blur and sharpening reach.
        near = swept(run.catheter[index], radii + 14, pairs, mask.shape)
        assert not change[~near].any()
        # Whole, where it lies over the vessel as well.
        assert (mask & (run.masks[index] > 0)).any()


@pytest.mark.parametrize("hospital", [1, 2])
def test_a_diaphragm_darkens_what_lies_below_its_edge(hospital):
    number = next(n for n in range(9) if make(n, hospital, 1, 64).structures["diaphragm"].any())
    run, without = make(number, hospital, frames=2), make(number, hospital, frames=2, dome=None)
    assert not without.structures["diaphragm"].any()
    change = run.frames.astype(int) - without.frames
    mask = run.structures["diaphragm"] > 0
    assert change[mask].mean() < 4 * change[~mask].mean() < 0
    # All that is open below its edge, in every column.
    assert ((np.diff(mask.astype(int), axis=1) >= 0) | ~run.opening[1:]).all()


def test_narrowings_are_in_the_tree_and_narrower_than_the_vessel_around_them(runs):
    stretches = 0
    for run in runs:
        narrow = np.flatnonzero(run.narrow)
        for stretch in np.split(narrow, np.flatnonzero(np.diff(narrow) > 1) + 1) if len(narrow) else []:
            first, last = run.segments[stretch[0], 0], run.segments[stretch[-1], 1]
            # (Vessels taper, so each end is compared with what goes on there.)
            assert run.radii[first] < 0.8 * run.radii[first - 2] and run.radii[last] < 0.8 * run.radii[last + 2]
            assert run.radii[first : last + 1].min() < 0.62 * min(run.radii[first - 2], run.radii[last + 2])
            stretches += 1
        mask = run.structures["narrowing"]
        assert not (mask & ~run.masks & 1).any()
        for index in (0, len(mask) - 1):
            chosen = run.segments[run.narrow & run.visible[index]]
            drawn = swept(run.points[index], run.radii, chosen, run.opening.shape) & run.opening
            # (Discs that grow quickly reach a little further than a tube whose radius is linear along its axis.)
            assert nearly_equal(mask[index] > 0, drawn, share=0.06)
    assert stretches > 8


def test_narrowings_take_from_the_tree_and_are_only_seen_when_filled():
    number = next(n for n in range(30) if len(np.flatnonzero(make(n, 1, 1, 128).narrow)) > 2)
    run = angiography._draw_run(21, number, 8, 192, "named", 1)
    scale = 192 / 256
    narrow, whole = angiography._film(run), angiography._film(replace(run, radii=run.tree.whole * scale))
    assert not (narrow.masks & ~whole.masks & 1).any()
    lost = (whole.masks[-1] > 0) & (narrow.masks[-1] == 0)
    assert 4 < lost.sum() < 0.1 * whole.masks[-1].sum()
    unfilled = angiography._film(replace(run, filling=np.zeros_like(run.filling)))
    assert not unfilled.structures["narrowing"].any() and not unfilled.masks.any()


def test_nothing_that_a_collimator_hides_is_in_a_mask(runs):
    for run in runs[RUNS:]:
        assert 0.6 < run.opening.mean() < 0.99
        for name, masks in run.structures.items():
            assert not masks[:, ~run.opening].any(), name
        assert run.frames[:, ~run.opening].mean() < 0.3 * run.frames[:, run.opening].mean()
    assert all(run.opening.all() for run in runs[:RUNS])


def test_the_second_hospital_has_thinner_vessels_in_brighter_pictures(runs):
    first, second = runs[:RUNS], runs[RUNS:]
    radius = [np.mean([run.radii.mean() for run in group]) for group in (first, second)]
    assert radius[1] < 0.9 * radius[0]
    open_grey = [np.mean([run.frames[:, run.opening].mean() for run in group]) for group in (first, second)]
    assert open_grey[1] > 1.1 * open_grey[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scene": "odd"}, "`scene` must be one of plain, named"),
        ({"scene": "named", "hospital": 3}, "`hospital` must be one of 1, 2"),
        ({"scene": "named", "hospital": True}, "`hospital` must be one of 1, 2"),
        ({"hospital": 2}, "`hospital` must be 1 with scene 'plain'"),
    ],
)
def test_no_such_scene_or_hospital(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_video(0, 0, 1, 32, **arguments)
