import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from sa2va_trl.data.angiography import generate_video
from sa2va_trl.preferences.corruptions import (
    CORRUPTIONS,
    bridged_vessels,
    broken_branch,
    dilated,
    eroded,
    lost_branches,
)


MASKS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=16), elements=st.integers(0, 1))
ONES = np.ones((3, 3))


def components(mask):
    return ndimage.label(mask, ONES)[1]


@pytest.fixture(scope="module")
def angiograms():
    masks = [generate_video(0, video, 3, 128).masks[2].astype(np.uint8) for video in range(6)]
    assert all(mask.any() for mask in masks)
    return masks


def tree():
    """A thick trunk with two thick arms and one thin twig."""
    mask = np.zeros((80, 80), dtype=np.uint8)
    mask[5:75, 38:45] = 1
    mask[30:35, 5:40] = 1
    mask[50:55, 42:75] = 1
    mask[20:22, 44:70] = 1
    return mask


@pytest.mark.parametrize("name", CORRUPTIONS)
@given(mask=MASKS, seed=st.integers(0, 2**32 - 1))
def test_whatever_can_change_changes(name, mask, seed):
    before = mask.copy()
    corrupted = CORRUPTIONS[name](mask, np.random.default_rng(seed))
    assert corrupted.dtype == np.uint8 and corrupted.shape == mask.shape and set(np.unique(corrupted)) <= {0, 1}
    assert np.array_equal(mask, before) and corrupted is not mask
    assert np.array_equal(corrupted, mask) == (not mask.any() or bool(mask.all()))
    assert np.array_equal(corrupted, CORRUPTIONS[name](mask, np.random.default_rng(seed)))
    if name in ("bridged_vessels", "dilated"):
        assert (corrupted >= mask).all()
    else:
        assert (corrupted <= mask).all()
        assert corrupted.any() or mask.sum() < 2


def test_seeds_matter(angiograms):
    for corrupt in CORRUPTIONS.values():
        drawn = {corrupt(angiograms[0], np.random.default_rng(seed)).tobytes() for seed in range(8)}
        assert len(drawn) >= 2


def test_a_broken_branch_falls_apart_and_loses_little(angiograms):
    for seed, mask in enumerate(angiograms):
        broken = broken_branch(mask, np.random.default_rng(seed))
        assert components(broken) > components(mask)
        lost = ndimage.label(mask & ~broken & 1, ONES)[1]
        assert lost <= 2  # one place
        assert 0 < (mask - broken).sum() < 0.25 * mask.sum()


def test_thin_branches_are_lost_first():
    mask = tree()
    for seed in range(6):
        remaining = lost_branches(mask, np.random.default_rng(seed))
        assert not remaining[20:22, 50:70].any()  # the twig
        assert remaining[36:48, 39:44].all()  # the trunk stays
    assert {components(lost_branches(mask, np.random.default_rng(seed))) for seed in range(6)} == {1}


def test_a_bridge_joins_what_was_apart():
    apart = np.zeros((40, 60), dtype=np.uint8)
    apart[10:13, 5:55] = apart[20:23, 5:55] = 1
    joined = [components(bridged_vessels(apart, np.random.default_rng(seed))) for seed in range(20)]
    assert set(joined) == {1}


def test_bridges_cross_background(angiograms):
    for seed, mask in enumerate(angiograms):
        added = bridged_vessels(mask, np.random.default_rng(seed)) - mask
        assert 3 <= added.sum() < mask.sum()
        # in one place, and it touches what was there
        assert components(bridged_vessels(mask, np.random.default_rng(seed))) <= components(mask)


def test_borders_move_a_little_on_all_sides(angiograms):
    for seed, mask in enumerate(angiograms):
        inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(mask == 0)
        wide, narrow = (corrupt(mask, np.random.default_rng(seed)) for corrupt in (dilated, eroded))
        assert wide[outside <= 1].all() and not wide[outside > inside.max()].any()
        assert not narrow[(inside > 0) & (inside <= 1)].any() and narrow.any()
