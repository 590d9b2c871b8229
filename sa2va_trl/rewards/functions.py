"""
The rewards, one function each: metrics that training can climb. All lie in [0, 1] and are defined of every mask:

| prediction | target | all rewards |
|---|---|---|
| empty | empty | 1 |
| empty | not empty | 0 |
| not empty | empty | 0 |

So of a frame before the contrast medium comes the empty mask is right, and nothing else is worth anything. That holds
for recall and precision too, which are 0 / 0 there (see [`~metrics.segmentation`]): painting over an empty frame has
no recall of 1.
"""

from collections.abc import Callable
from typing import Any

from ..metrics import (
    MaskPair,
    betti_matching_error,
    betti_numbers,
    centreline_dice,
    dice,
    endpoint_count,
    iou,
    junction_count,
    precision,
    recall,
    skeleton_components,
)
from .samples import score_samples


def dice_reward(pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any) -> list[float]:
    """
    Dice coefficient, see [`~metrics.dice`].

    Args:
        pred_masks (`list`):
            For each sample a mask of shape `(H, W)`, or `(objects, H, W)`: arrays, tensors or PIL images. In arrays
            and tensors anything but 0 is foreground (threshold probabilities first); PIL images are judged like a
            dataset's masks ([`~media.masks.binary_mask`]).
        mask (`list`, *optional*):
            For each sample its target of the same size, or `None` where the row has `masks`.
        masks (`list`, *optional*):
            For each sample the targets of its objects.
        kwargs:
            Other columns, which do not matter here.

    Returns:
        `list[float]`: in [0, 1]; 1 if both masks are empty, 0 if only one is.

    Raises:
        `ValueError`: a sample has no target, or another number or size of masks than predicted.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.rewards import dice_reward

        >>> target = np.zeros((8, 8), dtype=np.uint8)
        >>> target[:4] = 1
        >>> dice_reward(pred_masks=[target, 1 - target], mask=[target, target])
        [1.0, 0.0]

        ```
    """
    return _score("dice", pred_masks, mask, masks)


def iou_reward(pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any) -> list[float]:
    """Intersection over union, see [`~metrics.iou`]; 1 if both masks are empty. Arguments as [`dice_reward`]."""
    return _score("iou", pred_masks, mask, masks)


def recall_reward(pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any) -> list[float]:
    """
    Share of the target that is found, see [`~metrics.recall`]: of an empty target 1 if nothing is predicted, else 0.
    Alone it is best where everything is foreground: use it beside a reward that minds precision. Arguments as
    [`dice_reward`].
    """
    return _score("recall", pred_masks, mask, masks)


def precision_reward(
    pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any
) -> list[float]:
    """
    Share of the prediction that is right, see [`~metrics.precision`]: of an empty prediction 1 if the target is empty
    too, else 0. Arguments as [`dice_reward`].
    """
    return _score("precision", pred_masks, mask, masks)


def cldice_reward(pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any) -> list[float]:
    """
    Centreline Dice on hard skeletons, see [`~metrics.cldice`]; 1 if both masks are empty, 0 if only one is. Arguments
    as [`dice_reward`].
    """
    return _score("cldice", pred_masks, mask, masks)


def betti0_reward(pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any) -> list[float]:
    """
    Agreement of the numbers of components, see [`~metrics.betti0_score`]; 1 if both masks are empty, 0 if only one is.
    Arguments as [`dice_reward`].
    """
    return _score("betti0", pred_masks, mask, masks)


def betti_matching_reward(
    pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any
) -> list[float]:
    """
    Share of the components and holes of both masks that have a partner in the other, `1 - error / features`, with
    [`~metrics.betti_matching_error`] and the number of features of both: a Dice coefficient of features. 1 if both
    masks are empty, 0 if only one is. Arguments as [`dice_reward`].
    """
    return _score("betti_matching", pred_masks, mask, masks)


def topology_reward(
    pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any
) -> list[float]:
    """
    Agreement of the skeletons' numbers of ends, junctions and components: the mean over the three of
    `1 - |a - b| / max(a, b, 1)`. Where they are does not matter. 1 if both masks are empty, 0 if only one is (whatever
    ends and junctions would say of a ring, which has none). Arguments as [`dice_reward`].
    """
    return _score("topology", pred_masks, mask, masks)


def vessel_length_reward(
    pred_masks: list, mask: list | None = None, masks: list | None = None, **kwargs: Any
) -> list[float]:
    """
    Ratio of the shorter to the longer skeleton, in pixels that they count, wherever they lie; 1 if both masks are
    empty, 0 if only one is. Arguments as [`dice_reward`].
    """
    return _score("vessel_length", pred_masks, mask, masks)


REWARDS = {
    "dice": dice_reward,
    "iou": iou_reward,
    "recall": recall_reward,
    "precision": precision_reward,
    "cldice": cldice_reward,
    "betti0": betti0_reward,
    "betti_matching": betti_matching_reward,
    "topology": topology_reward,
    "vessel_length": vessel_length_reward,
}


def agreement_of_counts(one: int, other: int) -> float:
    """`1 - |a - b| / max(a, b, 1)` of two counts: the ratio of the smaller to the larger, and 1 if both are 0."""
    return min(one, other) / max(one, other) if one or other else 1.0


def _cldice(pair: MaskPair) -> float:
    return centreline_dice(pair.pred.mask, pair.target.mask, pair.pred.skeleton, pair.target.skeleton)


def _betti0(pair: MaskPair) -> float:
    return agreement_of_counts(pair.pred.components[1], pair.target.components[1])


def _betti_matching(pair: MaskPair) -> float:
    features = sum(betti_numbers(pair.pred)) + sum(betti_numbers(pair.target))
    return 1 - betti_matching_error(pair) / features if features else 1.0


def _topology(pair: MaskPair) -> float:
    if pair.pred.is_empty or pair.target.is_empty:
        return float(pair.pred.is_empty == pair.target.is_empty)
    counts = (endpoint_count, junction_count, skeleton_components)
    return sum(agreement_of_counts(count(pair.pred), count(pair.target)) for count in counts) / len(counts)


def _vessel_length(pair: MaskPair) -> float:
    return agreement_of_counts(len(pair.pred.centres), len(pair.target.centres))


#: What the rewards measure of one pair of masks, by name: several of one pair share its skeletons and components.
PAIR_SCORES: dict[str, Callable[[MaskPair], float]] = {
    "dice": lambda pair: dice(pair.counts),
    "iou": lambda pair: iou(pair.counts),
    "recall": lambda pair: recall(pair.counts),
    "precision": lambda pair: precision(pair.counts),
    "cldice": _cldice,
    "betti0": _betti0,
    "betti_matching": _betti_matching,
    "topology": _topology,
    "vessel_length": _vessel_length,
}


def _score(name: str, pred_masks: list, mask: list | None, masks: list | None) -> list[float]:
    return score_samples({name: PAIR_SCORES[name]}, pred_masks, mask, masks)[name]
