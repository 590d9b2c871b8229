import gudhi
import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image
from reward_batches import batches, blob_group
from scipy.ndimage import label
from skimage.measure import label as skimage_label
from skimage.morphology import skeletonize, thin

from sa2va_trl.rewards import (
    PRESETS,
    REWARDS,
    WeightedReward,
    betti0_reward,
    betti_matching_reward,
    cldice_reward,
    dice_reward,
    iou_reward,
    precision_reward,
    recall_reward,
    topology_reward,
    vessel_length_reward,
)


WEIGHTED = WeightedReward({"dice": 3, "cldice": 2, "betti0": 0.5})
ALL = [*REWARDS.values(), WEIGHTED, PRESETS["default"]]
# Not symmetric: what is a miss one way round is a false alarm the other way.
ONE_WAY = {recall_reward: precision_reward, precision_reward: recall_reward}
EMPTY = np.zeros((9, 12), dtype=bool)


@given(batches())
@pytest.mark.parametrize("reward", ALL)
def test_rewards_are_bounded_symmetric_and_1_for_equal_masks(reward, batch):
    pred, target = batch
    values = reward(pred_masks=pred, mask=target)
    assert all(type(value) is float and 0 <= value <= 1 for value in values) and len(values) == len(pred)
    other = ONE_WAY.get(reward, reward)
    np.testing.assert_allclose(values, other(pred_masks=target, mask=pred))
    np.testing.assert_allclose(reward(pred_masks=target, mask=target), 1)


@given(batches())
def test_rewards_match_independent_formulas(batch):
    pred, target = batch
    for p, t, dice, betti0 in zip(
        *batch, dice_reward(pred_masks=pred, mask=target), betti0_reward(pred_masks=pred, mask=target), strict=True
    ):
        total = int(p.sum()) + int(t.sum())
        assert dice == pytest.approx(2 * int((p * t).sum()) / total if total else 1)
        numbers = [label(mask, structure=np.ones((3, 3)))[1] for mask in (p, t)]
        error = abs(numbers[0] - numbers[1])
        assert betti0 == pytest.approx(1 - error / max(*numbers, 1))


def test_cldice_agrees_with_another_thinning():
    target = np.zeros((60, 60), dtype=np.uint8)
    target[28:33, 5:55] = 1
    pred = target.copy()
    pred[:, 20:35] = 0
    pred[40:45, 5:25] = 1
    ours, theirs = (np.argwhere(thin(mask)) for mask in (pred, target))
    precision = np.mean([target[tuple(pixel)] for pixel in ours])
    sensitivity = np.mean([pred[tuple(pixel)] for pixel in theirs])
    (value,) = cldice_reward(pred_masks=[pred], mask=[target])
    assert value == pytest.approx(2 * precision * sensitivity / (precision + sensitivity), abs=0.03)


def test_cldice_minds_breaks_and_not_widths():
    target = np.zeros((60, 60), dtype=np.uint8)
    target[28:33, 5:55] = 1
    wide = np.zeros_like(target)
    wide[25:36, 5:55] = 1
    assert cldice_reward(pred_masks=[wide], mask=[target])[0] > 0.95
    assert dice_reward(pred_masks=[wide], mask=[target])[0] < 0.7


@pytest.mark.parametrize("reward", ALL)
def test_all_forms_of_a_mask_count_alike(reward):
    rng = np.random.default_rng(0)
    pred, target = rng.random((2, 20, 30)) > 0.6
    (expected,) = reward(pred_masks=[pred], mask=[target])
    for form in (
        lambda mask: mask.astype(np.uint8),
        lambda mask: mask.astype(np.uint8) * 255,
        torch.from_numpy,
        lambda mask: mask[None],
        lambda mask: Image.fromarray(mask.astype(np.uint8) * 255),
        lambda mask: [Image.fromarray(mask.astype(np.uint8) * 255)],
    ):
        assert reward(pred_masks=[form(pred)], mask=[form(target)]) == [expected]
    assert reward(pred_masks=[pred], mask=[None], masks=[[target]], phrase=["vessel"], prompts=[""]) == [expected]


def test_several_objects_count_with_their_mean():
    one, none = np.ones((4, 4), dtype=np.uint8), np.zeros((4, 4), dtype=np.uint8)
    pred = np.stack([one, one])
    assert dice_reward(pred_masks=[pred, one], mask=[None, one], masks=[[one, none], None]) == [0.5, 1.0]


def test_samples_that_do_not_fit_are_named():
    mask = np.ones((4, 5), dtype=np.uint8)
    with pytest.raises(ValueError, match="sample 1 has no target"):
        dice_reward(pred_masks=[mask, mask], mask=[mask, None], masks=[None, []])
    with pytest.raises(ValueError, match=r"sample 0: predicted masks are \(1, 4, 5\), targets \(1, 5, 4\)"):
        dice_reward(pred_masks=[mask], mask=[mask.T])
    with pytest.raises(ValueError, match="2 predictions, but 1 `mask`"):
        dice_reward(pred_masks=[mask, mask], mask=[mask])


@pytest.mark.parametrize("reward", ALL)
def test_an_empty_mask_is_right_of_an_empty_target_and_of_no_other(reward):
    masks = {"one": EMPTY.copy(), "ring": EMPTY.copy(), "full": ~EMPTY}
    masks["one"][4, 5] = True
    masks["ring"][2:7, 2:9] = True
    masks["ring"][3:6, 3:8] = False
    assert reward(pred_masks=[EMPTY], mask=[EMPTY]) == [1]
    for mask in masks.values():
        assert reward(pred_masks=[EMPTY, mask, mask], mask=[mask, EMPTY, mask]) == [0, 0, 1]


def test_overlap_by_hand():
    target, pred = np.zeros((2, 10, 10), dtype=bool)
    target[:4], pred[2:8] = True, True  # 40 and 60 pixels, 20 of them in both
    found = [
        reward(pred_masks=[pred], mask=[target])[0]
        for reward in (dice_reward, iou_reward, recall_reward, precision_reward)
    ]
    assert found == pytest.approx([0.4, 0.25, 0.5, 1 / 3])


def test_topology_counts_ends_junctions_and_components_of_skeletons():
    line, cross = np.zeros((2, 21, 21), dtype=bool)
    line[10, 2:19] = True
    cross[10, 2:19] = cross[2:19, 10] = True
    two = line.copy()
    two[15, 2:19] = True
    # 2 ends, no junction, 1 component against 4 ends, 1 junction, 1 component.
    assert topology_reward(pred_masks=[line], mask=[cross]) == pytest.approx([(2 / 4 + 0 + 1) / 3])
    assert topology_reward(pred_masks=[two], mask=[line]) == pytest.approx([(2 / 4 + 1 + 1 / 2) / 3])
    assert topology_reward(pred_masks=[cross], mask=[cross]) == [1]
    moved = np.roll(cross, 2, axis=0)
    assert topology_reward(pred_masks=[moved], mask=[cross]) == [1]


def test_vessel_length_is_that_of_the_skeleton_whatever_the_width():
    long, short, wide = np.zeros((3, 40, 60), dtype=bool)
    long[20, 5:45] = True
    short[20, 5:15] = True
    wide[18:23, 5:45] = True
    assert vessel_length_reward(pred_masks=[short, long], mask=[long, short]) == [0.25, 0.25]
    assert vessel_length_reward(pred_masks=[wide], mask=[long])[0] > 0.85


def test_betti_matching_is_not_fooled_by_as_many_features_elsewhere():
    target, pred = np.zeros((2, 20, 30), dtype=bool)
    target[2:7, 2:7], pred[12:17, 20:25] = True, True
    target[4, 4] = pred[14, 22] = False
    assert betti0_reward(pred_masks=[pred], mask=[target]) == [1]
    assert betti_matching_reward(pred_masks=[pred], mask=[target]) == [0]
    # A hole that is closed: both components are partners, and one of three features has none.
    closed = target.copy()
    closed[4, 4] = True
    assert betti_matching_reward(pred_masks=[closed], mask=[target]) == pytest.approx([2 / 3])


def betti_numbers(mask):
    """Components and holes, by gudhi."""
    cells = gudhi.CubicalComplex(top_dimensional_cells=(~np.pad(mask, 1)).astype(float))
    cells.compute_persistence()
    return cells.persistent_betti_numbers(0, 0)[:2]


@pytest.mark.parametrize("seed", range(3))
def test_rewards_match_gudhi_and_scikit_image(seed):
    preds, target = blob_group(seed=seed)
    for pred in preds:
        columns = {"pred_masks": [pred], "mask": [target]}
        ours, theirs = betti_numbers(pred), betti_numbers(target)
        assert betti0_reward(**columns) == [min(ours[0], theirs[0]) / max(ours[0], theirs[0])]
        # Components that are one in the union; holes of equal masks are partners.
        union = skimage_label(pred | target, connectivity=2)
        joined = len(np.intersect1d(union[pred], union[target]))
        holes = round((betti_matching_reward(**columns)[0] * (sum(ours) + sum(theirs)) - 2 * joined) / 2, 6)
        assert holes == int(holes) and 0 <= holes <= min(ours[1], theirs[1])
        skeletons = skeletonize(pred), skeletonize(target)
        lengths = sorted(int(skeleton.sum()) for skeleton in skeletons)
        assert vessel_length_reward(**columns) == [lengths[0] / lengths[1]]
        precision, sensitivity = target[skeletons[0]].mean(), pred[skeletons[1]].mean()
        assert cldice_reward(**columns) == pytest.approx([2 * precision * sensitivity / (precision + sensitivity)])


def ends_junctions_components(skeleton):
    """Pixel by pixel: how often the ring of neighbours goes from none to some; components by gudhi."""
    padded = np.pad(skeleton, 1)
    ring = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
    ends, junctions = 0, np.zeros_like(padded)
    for row, column in np.argwhere(padded):
        around = [padded[row + down, column + right] for down, right in ring]
        starts = sum(not one and other for one, other in zip(around, around[1:], strict=False))
        ends += starts == 1 and sum(around[1:]) <= 2
        junctions[row, column] = starts > 2
    return [ends, betti_numbers(junctions)[0] if junctions.any() else 0, betti_numbers(skeleton)[0]]


@pytest.mark.parametrize("seed", range(2))
def test_topology_matches_counts_pixel_by_pixel(seed):
    preds, target = blob_group(seed=seed)
    found = [ends_junctions_components(skeletonize(mask)) for mask in (target, *preds)]
    expected = [
        np.mean([1 - abs(one - other) / max(one, other, 1) for one, other in zip(own, found[0], strict=True)])
        for own in found[1:]
    ]
    assert min(found[0]) > 0 and max(expected) < 1
    np.testing.assert_allclose(topology_reward(pred_masks=list(preds), mask=[target] * len(preds)), expected)


def test_overlap_matches_monai():
    metrics = pytest.importorskip("monai.metrics")
    preds, target = blob_group(count=3)
    pred, many = (
        torch.from_numpy(preds)[:, None].float(),
        torch.from_numpy(target)[None, None].float().repeat(3, 1, 1, 1),
    )
    counts = metrics.get_confusion_matrix(pred, many)[:, 0]
    columns = {"pred_masks": list(preds), "mask": [target] * 3}
    for reward, name in ((recall_reward, "sensitivity"), (precision_reward, "precision")):
        expected = metrics.compute_confusion_matrix_metric(name, counts)
        np.testing.assert_allclose(reward(**columns), expected, rtol=1e-6)
    np.testing.assert_allclose(dice_reward(**columns), metrics.compute_dice(pred, many)[:, 0], rtol=1e-6)
    np.testing.assert_allclose(iou_reward(**columns), metrics.compute_iou(pred, many)[:, 0], rtol=1e-6)


def test_overlap_and_centrelines_match_panoptica():
    metrics = pytest.importorskip("panoptica.metrics")
    preds, target = blob_group(count=3)
    for metric, reward in (
        (metrics.Metric.DSC, dice_reward),
        (metrics.Metric.IOU, iou_reward),
        (metrics.Metric.clDSC, cldice_reward),
    ):
        expected = [metric(target.astype(np.uint8), pred.astype(np.uint8)) for pred in preds]
        np.testing.assert_allclose(reward(pred_masks=list(preds), mask=[target] * 3), expected, rtol=1e-6)


@pytest.mark.parametrize("value", [0.01, np.nan, -3.0])
def test_probabilities_are_no_masks(value):
    with pytest.raises(ValueError, match="apply the threshold to probabilities first"):
        dice_reward(pred_masks=[np.full((4, 4), value)], mask=[np.ones((4, 4))])
    assert dice_reward(pred_masks=[np.ones((4, 4), np.float32)], mask=[np.full((4, 4), 255.0)]) == [1.0]


def test_two_targets_of_a_sample_are_refused():
    mask = np.ones((4, 4), bool)
    with pytest.raises(ValueError, match="sample 0 has both `mask` and `masks`"):
        dice_reward(pred_masks=[mask], mask=[mask], masks=[mask[None]])
