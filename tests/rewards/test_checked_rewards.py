from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reward_batches import blob_group

from sa2va_trl.rewards import RewardError, checked, dice_reward, get_reward
from sa2va_trl.rewards.composites import CompositeReward


MASKS = [np.ones((2, 3), dtype=bool), np.zeros((2, 3), dtype=bool), np.ones((2, 3), dtype=bool)]
STEP = SimpleNamespace(global_step=7)


def test_a_checked_reward_is_the_reward():
    preds, target = blob_group()
    columns = {"pred_masks": list(preds), "mask": [target] * len(preds)}
    for name in ("dice", "default", "published", '{"recall": 1, "iou": 2}', dice_reward):
        reward, ours = get_reward(name), checked(name)
        assert ours(**columns) == reward(**columns) and ours.__name__ == reward.__name__
        assert checked(ours) is ours
    assert checked("dice").components(**columns) == {"dice": dice_reward(**columns)}
    assert checked("default").components(**columns) == get_reward("default").components(**columns)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1"])
def test_what_is_no_number_names_reward_sample_and_step(value):
    def odd(pred_masks, **kwargs):
        return [0.5 if mask.any() else value for mask in pred_masks]

    with pytest.raises(
        RewardError, match=r"reward odd, sample 1 of the batch \(sample_id b\), step 7: .* in place of"
    ):
        checked(odd)(pred_masks=MASKS, sample_id=["a", "b", "c"], trainer_state=STEP)
    with pytest.raises(RewardError, match=r"reward odd, sample 1 of the batch: "):
        checked(odd)(pred_masks=MASKS)
    assert checked(odd)(pred_masks=MASKS[:1]) == [0.5]


def test_a_reward_that_raises_names_the_sample_at_which_it_does():
    def strict(pred_masks, sample_id, **kwargs):
        if not all(mask.any() for mask in pred_masks):
            raise ZeroDivisionError("nothing there")
        return [1.0] * len(pred_masks)

    match = r"reward strict, sample 1 of the batch \(sample_id b\): ZeroDivisionError: nothing there"
    with pytest.raises(RewardError, match=match) as caught:
        checked(strict)(pred_masks=MASKS, sample_id=["a", "b", "c"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def by_batch(pred_masks, **kwargs):
        raise RuntimeError("too many") if len(pred_masks) > 1 else KeyError("alone")

    with pytest.raises(RewardError, match="reward by_batch, sample 0 of the batch: RuntimeError: too many"):
        checked(by_batch)(pred_masks=MASKS)

    def not_alone(pred_masks, **kwargs):
        if len(pred_masks) > 1:
            raise RuntimeError("too many")
        return [1.0]

    with pytest.raises(RewardError, match="reward not_alone: RuntimeError: too many"):
        checked(not_alone)(pred_masks=MASKS)


def test_a_mask_of_another_size_names_the_composite_and_the_sample():
    with pytest.raises(
        RewardError, match=r"reward default_reward, sample 2 of the batch \(sample_id c\): ValueError: "
    ):
        checked("default")(pred_masks=MASKS, mask=[*MASKS[:2], MASKS[2].T], sample_id=["a", "b", "c"])


@pytest.mark.parametrize("values", [[1.0], [1.0] * 4, None, 0.5])
def test_another_number_of_values_than_samples_is_refused(values):
    def short(pred_masks, **kwargs):
        return values

    with pytest.raises(RewardError, match="reward short: .* in place of 3 values"):
        checked(short)(pred_masks=MASKS)


def test_a_reward_is_told_from_ours_of_the_same_name():
    """Credit of a place in the image is that of our function alone, and of a sum whose weights are known."""

    def dice(pred_masks, **columns):
        return [-float(np.mean(mask)) for mask in pred_masks]

    class Product(CompositeReward):
        def combine(self, components):
            return [one * other for one, other in zip(*components.values(), strict=True)]

    assert checked(dice).linear_weights() == {} == checked(Product(("dice", "cldice"), "product")).linear_weights()
    assert checked("dice").linear_weights() == {"dice": 1.0}
    assert checked("default").linear_weights() == pytest.approx({"dice": 0.6, "cldice": 0.4})
    assert checked("published").linear_weights()["dice"] == 5.0


def test_a_value_in_a_tensor_is_a_number_and_text_is_none():
    masks = [np.ones((2, 2))]
    assert checked(lambda pred_masks, **columns: torch.tensor([0.5]))(pred_masks=masks) == [0.5]
    with pytest.raises(RewardError, match="0.5 in place of a finite number"):
        checked(lambda pred_masks, **columns: ["0.5"])(pred_masks=masks)
