import numpy as np
import pytest
import torch
from hypothesis import given
from reward_batches import blob_group, groups

from sa2va_trl.rewards import (
    PRESETS,
    REWARDS,
    GroupScorer,
    RewardError,
    WeightedReward,
    dice_credit,
    dice_reward,
    score_group,
)


EVERY = WeightedReward(dict.fromkeys(REWARDS, 1.0))


def one_by_one(reward, preds, target):
    """Each mask by a call of its own, which shares nothing."""
    return [reward(pred_masks=[pred], mask=[target])[0] for pred in preds]


@given(groups())
def test_a_group_has_the_rewards_of_its_masks_one_by_one(group):
    preds, target = group
    scores = score_group(EVERY, preds, target)
    assert scores.rewards.tolist() == one_by_one(EVERY, preds, target)
    for name, values in scores.components.items():
        assert values.tolist() == one_by_one(REWARDS[name], preds, target)


@pytest.mark.parametrize("name", [*REWARDS, *PRESETS])
def test_any_reward_scores_groups_of_larger_masks(name):
    preds, target = blob_group()
    reward = {**REWARDS, **PRESETS}[name]
    scores = score_group(name, torch.from_numpy(preds), torch.from_numpy(target))
    assert scores.rewards.tolist() == one_by_one(reward, preds, target)
    assert scores.rewards.dtype == float and scores.rewards.shape == (4,)


def test_a_reward_of_ones_own_gets_the_row():
    def odd_ones(pred_masks, mask, sample_id, **kwargs):
        assert len(pred_masks) == len(mask) == len(sample_id)
        return [float(identifier == "a") + pred.sum() for pred, identifier in zip(pred_masks, sample_id, strict=True)]

    preds, target = blob_group()
    scores = score_group(odd_ones, preds, target, sample_id="a")
    assert scores.rewards.tolist() == [1.0 + pred.sum() for pred in preds]
    assert list(scores.components) == ["odd_ones"]
    with pytest.raises(RewardError, match=r"sample 0 of the batch \(sample_id x\)"):
        score_group("default", preds, target.T, sample_id="x")


def test_no_masks_have_no_rewards():
    scores = score_group("published", np.zeros((0, 4, 5), dtype=bool), np.zeros((4, 5), dtype=bool))
    assert scores.rewards.shape == (0,) and scores.components["dice"].shape == (0,)


def drawn(count=3):
    return [(*blob_group(seed=seed, count=3 + seed), {"sample_id": f"row {seed}"}) for seed in range(count)]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.rewards, other.rewards)
        assert one.components.keys() == other.components.keys()
        for name, values in one.components.items():
            np.testing.assert_array_equal(values, other.components[name])


def test_workers_find_the_same():
    own = [score_group("published", *group[:2]) for group in drawn()]
    with GroupScorer("published") as scorer:
        assert_equal(scorer(drawn()), own)
    with GroupScorer("published", workers=2) as scorer:
        assert_equal(scorer(drawn()), own)
        assert_equal(scorer(drawn(1)), own[:1])  # shared out between both
        assert scorer([]) == []
        preds, target, columns = drawn(1)[0]
        with pytest.raises(RewardError, match="reward published_reward, .*sample_id row 0"):
            scorer([(preds, target.T, columns)])
        assert_equal(scorer(drawn(1)), own[:1])


def test_what_workers_cannot_be_given_is_refused():
    with pytest.raises(ValueError, match="workers must be 0 or more, got -1"):
        GroupScorer("dice", workers=-1)
    with pytest.raises(ValueError, match=r"reward <lambda> cannot be given to workers .* use workers=0"):
        GroupScorer(lambda pred_masks, **kwargs: [0.0] * len(pred_masks), workers=1)
    with pytest.raises(ValueError, match="reward: unknown"):
        GroupScorer("jaccard")


def test_the_target_is_looked_at_once(monkeypatch):
    from sa2va_trl.metrics import pair

    seen = []
    monkeypatch.setattr(pair, "skeletons", lambda masks: seen.append(len(masks)) or masks)
    preds, target = blob_group(count=5)
    EVERY(pred_masks=list(preds), mask=[target] * 5)
    assert seen == [6]
    seen.clear()
    EVERY(pred_masks=list(preds), mask=[target.copy() for _ in preds])
    assert seen == [2] * 5


def test_several_objects_share_their_targets_too():
    one, two = blob_group(count=3, seed=1), blob_group(count=3, seed=2)
    preds = [np.stack(pair) for pair in zip(one[0], two[0], strict=True)]
    targets = [one[1], two[1]]
    found = dice_reward(pred_masks=preds, mask=[None] * 3, masks=[targets] * 3)
    expected = [dice_reward(pred_masks=[pred[i] for pred in preds], mask=[targets[i]] * 3) for i in (0, 1)]
    np.testing.assert_allclose(found, np.mean(expected, axis=0))


def test_a_target_of_several_objects_is_refused():
    target = np.ones((2, 4, 5), dtype=bool)
    with pytest.raises(ValueError, match=r"one target \(H, W\), got \(2, 4, 5\): score each object by itself"):
        score_group("dice", target, target)
    with pytest.raises(ValueError, match="score each object by itself"):
        dice_credit(target, target, grid=(2, 2))
