"""Rewards of predicted masks, with the signature of TRL's reward functions.

A reward function takes keyword arguments, each a list with one entry a sample: `pred_masks`, the columns of the
dataset (`mask`, or `masks` where a row has several objects) and whatever else the trainer passes, and returns one
float a sample. 1 is best, and of several objects the mean counts. All rewards but the preset `published` lie in
[0, 1]. Samples that follow one another and are given the very same target share what is found of it.
"""

from .checks import CheckedReward, RewardError, checked
from .composites import (
    PRESETS,
    CompositeReward,
    PublishedReward,
    WeightedReward,
    component_weights,
    get_reward,
    with_weights,
)
from .credit import CREDITS, cldice_cell_map, cldice_credit, dice_cell_map, dice_credit
from .functions import (
    REWARDS,
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
from .groups import GroupScorer, GroupScores, score_group
from .ranks import RankNormalizer


__all__ = [
    "CREDITS",
    "PRESETS",
    "REWARDS",
    "CheckedReward",
    "CompositeReward",
    "GroupScorer",
    "GroupScores",
    "PublishedReward",
    "RankNormalizer",
    "RewardError",
    "WeightedReward",
    "betti0_reward",
    "betti_matching_reward",
    "checked",
    "cldice_cell_map",
    "cldice_credit",
    "cldice_reward",
    "component_weights",
    "dice_cell_map",
    "dice_credit",
    "dice_reward",
    "get_reward",
    "iou_reward",
    "precision_reward",
    "recall_reward",
    "score_group",
    "topology_reward",
    "vessel_length_reward",
    "with_weights",
]
