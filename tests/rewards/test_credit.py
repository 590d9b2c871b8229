import numpy as np
import pytest
from hypothesis import given
from reward_batches import blob_group, groups
from skimage.morphology import skeletonize

from sa2va_trl.rewards import (
    CREDITS,
    cldice_cell_map,
    cldice_credit,
    cldice_reward,
    dice_cell_map,
    dice_credit,
    dice_reward,
)


@given(groups(max_side=6))
def test_the_map_of_dice_is_what_turning_each_pixel_on_gains(group):
    (pred, *_), target = group
    expected = np.empty(pred.shape)
    for place in np.ndindex(pred.shape):
        on, off = pred.copy(), pred.copy()
        on[place], off[place] = True, False
        with_it, without = dice_reward(pred_masks=[on, off], mask=[target, target])
        expected[place] = with_it - without
    np.testing.assert_allclose(dice_cell_map(pred, target), expected, atol=1e-12)


def cldice_of(pred, target, ours, theirs):
    """Centreline Dice where masks and skeletons are given, and may be fractions."""
    precision, sensitivity = (ours * target).sum() / ours.sum(), (theirs * pred).sum() / theirs.sum()
    return 2 * precision * sensitivity / (precision + sensitivity)


@pytest.mark.parametrize("seed", range(2))
def test_the_map_of_centreline_dice_is_its_derivative_with_skeletons_held(seed):
    (pred, *_), target = blob_group(count=1, seed=seed, shape=(30, 36))
    found = cldice_cell_map(pred, target)
    ours, theirs = skeletonize(pred).astype(float), skeletonize(target).astype(float)
    value = cldice_of(pred, target, ours, theirs)
    assert value == pytest.approx(cldice_reward(pred_masks=[pred], mask=[target])[0])
    step = 1e-5
    for place in np.ndindex(pred.shape):
        # A little more, and a little less, of the pixel; of a skeleton's pixel its place there comes along.
        sides = []
        for sign in (1, -1):
            mask, skeleton = pred.astype(float), ours.copy()
            mask[place] += sign * step
            skeleton[place] += sign * step * (ours[place] > 0)
            sides.append(cldice_of(mask, target, skeleton, theirs))
        assert found[place] == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-8)
    # Whole pixels, of the target's skeleton: the first order is off by the second.
    for place in np.argwhere((theirs > 0) & (ours == 0)):
        on, off = pred.astype(float), pred.astype(float)
        on[tuple(place)], off[tuple(place)] = 1, 0
        gain = cldice_of(on, target, ours, theirs) - cldice_of(off, target, ours, theirs)
        assert found[tuple(place)] == pytest.approx(gain, abs=4 / theirs.sum() ** 2) and gain > 0


def cells(side, count):
    """Where the cells of a side begin and end."""
    edges = [number * side // count for number in range(count + 1)]
    return list(zip(edges, edges[1:], strict=False))


@pytest.mark.parametrize("grid", [(1, 1), (4, 5), (7, 3), (60, 80)])
def test_credit_is_the_formula_cell_by_cell(grid):
    preds, target = blob_group()
    skeletons, spine = [skeletonize(pred) for pred in preds], skeletonize(target)
    area, size = preds.sum() / 4, target.sum()
    mean_dice = 2 * (preds & target).sum() / 4 / (area + size)
    length = sum(skeleton.sum() for skeleton in skeletons) / 4
    p = sum((skeleton & target).sum() for skeleton in skeletons) / 4 / length
    t = sum((spine & pred).sum() for pred in preds) / 4 / spine.sum()
    dice, cldice = np.zeros((2, 4, *grid))
    for i, (top, bottom) in enumerate(cells(60, grid[0])):
        for j, (left, right) in enumerate(cells(80, grid[1])):
            cell = (slice(top, bottom), slice(left, right))
            for k, (pred, skeleton) in enumerate(zip(preds, skeletons, strict=True)):
                tp, own = (pred & target)[cell].sum(), pred[cell].sum()
                dice[k, i, j] = (2 * tp - mean_dice * own) / (area + size)
                h, n, covered = (skeleton & target)[cell].sum(), skeleton[cell].sum(), (spine & pred)[cell].sum()
                cldice[k, i, j] = (
                    2 * t**2 / (p + t) ** 2 * (h - p * n) / length + 2 * p**2 / (p + t) ** 2 * covered / spine.sum()
                )
    for expected, credit in ((dice, dice_credit), (cldice, cldice_credit)):
        np.testing.assert_allclose(credit(preds, target, grid, neighbours=False), expected, atol=1e-12)
        around = np.pad(expected, ((0, 0), (1, 1), (1, 1)))
        summed = sum(around[:, i : i + grid[0], j : j + grid[1]] for i in range(3) for j in range(3))
        np.testing.assert_allclose(credit(preds, target, grid), summed, atol=1e-12)


@pytest.mark.parametrize(("name", "reward"), [("dice", dice_reward), ("cldice", cldice_reward)])
def test_cells_add_up_to_the_reward_to_first_order(name, reward):
    preds, target = blob_group(count=8, seed=3)
    credit = CREDITS[name](preds, target, (6, 8), neighbours=False).sum((1, 2))
    rewards = np.array(reward(pred_masks=list(preds), mask=[target] * 8))
    spread = rewards - rewards.mean()
    assert np.abs(spread).max() > 0.01
    np.testing.assert_allclose(credit - credit.mean(), spread, atol=0.1 * np.abs(spread).max())


@given(groups(max_side=5))
def test_maps_and_credit_are_finite_whatever_is_empty(group):
    preds, target = group
    nothing = np.zeros_like(target)
    for masks, truth in ((preds, target), (preds, nothing), (np.zeros_like(preds), target), (preds & False, nothing)):
        for credit in CREDITS.values():
            found = credit(masks, truth, (1, 1))
            assert found.shape == (len(masks), 1, 1) and np.isfinite(found).all()
        for function in (dice_cell_map, cldice_cell_map):
            found = function(masks[0], truth)
            assert found.shape == truth.shape and (np.abs(found) <= 2).all()
    assert (cldice_cell_map(nothing, target) == 0).all() and (dice_cell_map(nothing, nothing) == -1).all()


def test_masks_and_grids_that_do_not_fit_are_refused():
    preds, target = blob_group()
    for credit in CREDITS.values():
        with pytest.raises(ValueError, match=r"masks of shape \(4, 60, 80\) do not fit a target of \(80, 60\)"):
            credit(preds, target.T)
        with pytest.raises(ValueError, match="a side of 60 pixels has from 1 to 60 cells, not 61"):
            credit(preds, target, (61, 2))
        with pytest.raises(ValueError, match="do not fit"):
            credit(preds[:0], target)
    with pytest.raises(ValueError, match="do not fit"):
        dice_cell_map(target, target.T)
