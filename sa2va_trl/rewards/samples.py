"""What a trainer passes to a reward, as pairs of masks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from ..media.masks import binary_mask
from ..metrics import MaskPair


def score_samples(
    scores: dict[str, Callable[[MaskPair], float]],
    pred_masks: list,
    mask: list | None = None,
    masks: list | None = None,
) -> dict[str, list[float]]:
    """
    Scores of samples, of several objects the mean.

    Args:
        scores (`dict[str, Callable]`): functions of a pair of masks, by name.
        pred_masks, mask, masks (`list`): as of [`~rewards.dice_reward`].

    Returns:
        `dict[str, list[float]]`: for each name a value a sample.

    Raises:
        `ValueError`: a sample has no target, or another number or size of masks than predicted.
    """
    found = {name: [] for name in scores}
    for pairs in _pairs(pred_masks, mask, masks):
        for name, score in scores.items():
            found[name].append(float(np.mean([score(pair) for pair in pairs])))
    return found


def planes(masks: Any) -> np.ndarray:
    """
    One mask, or the masks of several objects.

    Args:
        masks (`Any`): of shape `(H, W)` or `(objects, H, W)`, or a list of such: arrays, tensors or PIL images.

    Returns:
        `np.ndarray` of shape `(objects, H, W)`: bool.

    Raises:
        `ValueError`: floats of more than two values, or that are no numbers: probabilities or logits.
    """
    if isinstance(masks, list | tuple):
        return np.concatenate([planes(mask) for mask in masks])
    if isinstance(masks, Image):
        masks = np.asarray(binary_mask(masks))
    if isinstance(masks, torch.Tensor):
        masks = masks.detach()
        masks = (masks.float() if masks.is_floating_point() else masks).cpu().numpy()
    array = np.asarray(masks)
    if array.dtype.kind == "f":
        largest = array.max(initial=0)
        if not ((array == 0) | ((array == largest) & (largest in (1, 255)))).all():  # (NaN is neither)
            raise ValueError("masks are floats other than 0 and 1: apply the threshold to probabilities first.")
    # Booleans as bytes: to compare them to a number takes eight times as long.
    array = (array.view(np.uint8) if array.dtype == bool else array) != 0
    return array[None] if array.ndim == 2 else array


def one_target(target: Any) -> np.ndarray:
    """
    The target of a group.

    Args:
        target (`Any`): of shape `(H, W)`, as of [`planes`].

    Returns:
        `np.ndarray` of shape `(1, H, W)`: bool.

    Raises:
        `ValueError`: it holds several objects, each of which is a group of its own.
    """
    found = planes(target)
    if len(found) != 1:
        raise ValueError(f"a group has one target (H, W), got {found.shape}: score each object by itself.")
    return found


def _pairs(pred_masks: list, mask: list | None, masks: list | None):
    """The pairs of each sample's objects."""
    count = len(pred_masks)
    singles = [None] * count if mask is None else mask
    groups = [None] * count if masks is None else masks
    if len(singles) != count or len(groups) != count:
        raise ValueError(f"{count} predictions, but {len(singles)} `mask` and {len(groups)} `masks`.")
    targets = []
    for number, (single, group) in enumerate(zip(singles, groups, strict=True)):
        if single is not None and group is not None and len(group):
            raise ValueError(f"sample {number} has both `mask` and `masks`: keep one.")
        if single is None and (group is None or not len(group)):
            raise ValueError(f"sample {number} has no target: neither `mask` nor `masks`.")
        targets.append(group if single is None else single)
    start = 0
    while start < count:
        end = start + 1
        while end < count and targets[end] is targets[start]:
            end += 1
        target = planes(targets[start])
        preds = [planes(pred) for pred in pred_masks[start:end]]
        for number, pred in enumerate(preds, start):
            if pred.shape != target.shape:
                raise ValueError(
                    f"sample {number}: predicted masks are {pred.shape}, targets {target.shape} "
                    "(objects, height, width)."
                )
        yield from zip(*map(MaskPair.group, zip(*preds, strict=True), target), strict=True)
        start = end
