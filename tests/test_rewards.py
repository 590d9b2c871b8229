import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.ndimage import label
from skimage.morphology import thin

from sa2va_trl.rewards import REWARDS, WeightedReward, betti0_reward, cldice_reward, dice_reward, get_reward


WEIGHTED = WeightedReward({"dice": 3, "cldice": 2, "betti0": 0.5})
ALL = [*REWARDS.values(), WEIGHTED]


@st.composite
def batches(draw):
    """Predictions and targets of a few samples, each sample at a size of its own."""
    shapes = draw(st.lists(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), min_size=1, max_size=3))
    return tuple(
        [draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 1))) for shape in shapes] for _ in ("pred", "target")
    )


@given(batches())
@pytest.mark.parametrize("reward", ALL)
def test_rewards_are_bounded_symmetric_and_1_for_equal_masks(reward, batch):
    pred, target = batch
    values = reward(pred_masks=pred, mask=target)
    assert all(type(value) is float and 0 <= value <= 1 for value in values) and len(values) == len(pred)
    np.testing.assert_allclose(values, reward(pred_masks=target, mask=pred))
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


def test_a_weighted_reward_is_the_weighted_mean():
    rng = np.random.default_rng(1)
    batch = {"pred_masks": list(rng.random((3, 12, 12)) > 0.5), "mask": list(rng.random((3, 12, 12)) > 0.5)}
    parts = [np.array(reward(**batch)) for reward in (dice_reward, cldice_reward, betti0_reward)]
    np.testing.assert_allclose(WEIGHTED(**batch), (3 * parts[0] + 2 * parts[1] + 0.5 * parts[2]) / 5.5)
    assert get_reward('{"dice": 3, "cldice": 2, "betti0": 0.5}')(**batch) == WEIGHTED(**batch)
    assert WEIGHTED.__name__ == "weighted_reward"


def test_rewards_by_name():
    assert get_reward("cldice") is cldice_reward
    assert get_reward(max) is max
    for bad in ("iou", {"iou": 1}, {"dice": 0}, {"dice": -1, "cldice": 3}, {"dice": float("nan")}, {}, '{"dice": '):
        with pytest.raises(ValueError, match="reward: "):
            get_reward(bad)


def test_samples_that_do_not_fit_are_named():
    mask = np.ones((4, 5), dtype=np.uint8)
    with pytest.raises(ValueError, match="sample 1 has no target"):
        dice_reward(pred_masks=[mask, mask], mask=[mask, None], masks=[None, []])
    with pytest.raises(ValueError, match=r"sample 0: predicted masks are \(1, 4, 5\), targets \(1, 5, 4\)"):
        dice_reward(pred_masks=[mask], mask=[mask.T])
    with pytest.raises(ValueError, match="2 predictions, but 1 `mask`"):
        dice_reward(pred_masks=[mask, mask], mask=[mask])
