import numpy as np
import pytest
from hypothesis import given
from reward_batches import batches, blob_group

from sa2va_trl.rewards import (
    PRESETS,
    REWARDS,
    CompositeReward,
    PublishedReward,
    WeightedReward,
    betti0_reward,
    cldice_reward,
    component_weights,
    dice_reward,
    get_reward,
    recall_reward,
    topology_reward,
    vessel_length_reward,
    with_weights,
)


WEIGHTED = WeightedReward({"dice": 3, "cldice": 2, "betti0": 0.5})
PUBLISHED = PRESETS["published"]


def test_a_weighted_reward_is_the_weighted_mean():
    rng = np.random.default_rng(1)
    batch = {"pred_masks": list(rng.random((3, 12, 12)) > 0.5), "mask": list(rng.random((3, 12, 12)) > 0.5)}
    parts = [np.array(reward(**batch)) for reward in (dice_reward, cldice_reward, betti0_reward)]
    np.testing.assert_allclose(WEIGHTED(**batch), (3 * parts[0] + 2 * parts[1] + 0.5 * parts[2]) / 5.5)
    assert get_reward('{"dice": 3, "cldice": 2, "betti0": 0.5}')(**batch) == WEIGHTED(**batch)
    assert WEIGHTED.__name__ == "weighted_reward"


@given(batches())
def test_parts_are_the_rewards_themselves(batch):
    pred, target = batch
    every = WeightedReward(dict.fromkeys(REWARDS, 1.0))
    parts = every.components(pred_masks=pred, mask=target, phrase=["vessel"] * len(pred))
    assert list(parts) == list(REWARDS)
    for name, values in parts.items():
        assert values == REWARDS[name](pred_masks=pred, mask=target)
    assert every(pred_masks=pred, mask=target) == every.combine(parts)


def test_the_default_is_dice_and_centreline_dice():
    preds, target = blob_group()
    batch = {"pred_masks": list(preds), "mask": [target] * len(preds)}
    default = get_reward("default")
    np.testing.assert_allclose(
        default(**batch), 0.6 * np.array(dice_reward(**batch)) + 0.4 * np.array(cldice_reward(**batch))
    )
    assert (default.__name__, PUBLISHED.__name__) == ("default_reward", "published_reward")


@given(batches())
def test_the_published_reward_is_the_published_sum(batch):
    columns = dict(zip(("pred_masks", "mask"), batch, strict=True))
    dice, recall, topology, length = (
        np.array(reward(**columns)) for reward in (dice_reward, recall_reward, topology_reward, vessel_length_reward)
    )
    expected = 5 * dice + np.minimum(recall, 0.85) + 0.4 * topology + 0.3 * length
    np.testing.assert_allclose(PUBLISHED(**columns), expected)
    assert all(type(value) is float and 0 <= value <= 6.55 + 1e-9 for value in PUBLISHED(**columns))
    columns["mask"] = columns["pred_masks"]
    np.testing.assert_allclose(PUBLISHED(**columns), 6.55)


def test_the_published_reward_likes_a_swollen_mask_better_than_dice_does():
    target, thin, swollen = np.zeros((3, 60, 60), dtype=bool)
    target[27:33, 5:55] = True
    thin[28:32, 5:55] = True  # a row lost on either side
    swollen[25:34, 5:55] = swollen[34, 5:25] = True  # over three rows too many
    columns = {"pred_masks": [thin, swollen], "mask": [target, target]}
    dice, default, published = (get_reward(name)(**columns) for name in ("dice", "default", "published"))
    assert dice[0] > dice[1] and default[0] > default[1] and published[0] < published[1]


def test_rewards_by_name():
    assert get_reward("cldice") is cldice_reward
    assert all(get_reward(name) is reward for name, reward in {**REWARDS, **PRESETS}.items())
    assert isinstance(get_reward("published"), CompositeReward)
    assert get_reward(max) is max
    for bad in (
        "jaccard",
        {"jaccard": 1},
        {"dice": 0},
        {"dice": -1, "cldice": 3},
        {"dice": float("nan")},
        {},
        '{"dice": ',
    ):
        with pytest.raises(ValueError, match="reward: "):
            get_reward(bad)
    with pytest.raises(
        ValueError, match="unknown 'jaccard'; there are dice, iou, .*vessel_length, default, published"
    ):
        get_reward("jaccard")


def test_other_weights_leave_the_reward_that_they_are_of_as_it_is():
    scores = {name: [0.25 * number] for number, name in enumerate(PublishedReward.TERMS)}
    published = with_weights(PRESETS["published"], {"recall": 0.4})
    gained = published.combine(scores)[0] - PRESETS["published"].combine(scores)[0]
    assert gained == pytest.approx(0.2 * 5 * 0.25)
    assert component_weights(published)["recall"] == 0.4 and PublishedReward.TERMS["recall"] == (0.2, 5.0)
    default = with_weights(PRESETS["default"], {"cldice": 0.6})
    assert component_weights(default) == {"dice": 0.6, "cldice": 0.6}
    assert default.linear_weights() == pytest.approx({"dice": 0.5, "cldice": 0.5})
    assert component_weights(PRESETS["default"]) == {"dice": 0.6, "cldice": 0.4}
    assert component_weights(cldice_reward) == {}
    with pytest.raises(ValueError, match="iou is none of its parts, which are dice, cldice"):
        with_weights(PRESETS["default"], {"iou": 0.6})


def test_weights_are_kept_as_they_are_given():
    """A rule that says what a weight is already changes nothing."""
    reward = get_reward({"dice": 3, "cldice": 2})
    assert component_weights(reward) == {"dice": 3, "cldice": 2}
    scores = {"dice": [0.5, 0.25], "cldice": [0.75, 1.0]}
    assert with_weights(reward, {"cldice": 2}).combine(scores) == reward.combine(scores) == pytest.approx([0.6, 0.55])


@pytest.mark.parametrize("reward", [None, 5, ["dice"]])
def test_what_is_no_function_is_refused(reward):
    with pytest.raises(ValueError, match="is no name, no weights and no function"):
        get_reward(reward)
