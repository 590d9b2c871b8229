"""One pair of masks, and pairs mined from the policy as it is."""

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from datasets import Image
from scipy import ndimage
from torch import nn

from ..mask_logits import mask_probabilities, resize_mask_logits
from ..models.outputs import SegFeatures
from ..rewards import get_reward
from ..sampling import MaskSampler
from .corruptions import CORRUPTIONS


#: What can be preferred, and to what. `"corrupted"` is any of the corruptions, drawn anew for every object.
CHOSEN = ("ground_truth", "stitched", "best")
REJECTED = ("greedy", "worst", *CORRUPTIONS, "corrupted")


class MaskPair(NamedTuple):
    """Two masks of shape `(H, W)`, uint8 {0, 1}, and their rewards."""

    chosen: np.ndarray
    rejected: np.ndarray
    chosen_reward: float
    rejected_reward: float

    @property
    def gap(self) -> float:
        """By how much the chosen mask's reward is higher."""
        return self.chosen_reward - self.rejected_reward


def disagreement_regions(mask: np.ndarray, target: np.ndarray) -> np.ndarray:
    """
    Connected components (8-connectivity) of the pixels where two masks differ.

    Args:
        mask, target (`np.ndarray` of shape `(H, W)`): uint8 {0, 1}.

    Returns:
        `np.ndarray` of shape `(H, W)`, integers: 0 where they agree, 1 in the largest region, 2 in the next, ...
    """
    labels, _ = ndimage.label(mask != target, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    rank = np.zeros(len(sizes) + 1, dtype=labels.dtype)
    rank[1 + np.argsort(-sizes, kind="stable")] = np.arange(1, len(sizes) + 1)
    return rank[labels]


def stitch(mask: np.ndarray, target: np.ndarray, reward: Callable[..., list[float]], min_gap: float) -> np.ndarray:
    """
    Put the target into a mask region by region, the largest disagreement first, until the reward has risen by
    `min_gap`: a correction as local as that allows.

    The number of regions is found by bisection, which gives the smallest one where the reward rises with every region.
    Dice does: no region that becomes right can lower it.

    Args:
        mask, target (`np.ndarray` of shape `(H, W)`): uint8 {0, 1}.
        reward (`Callable`): see [`~rewards.get_reward`].
        min_gap (`float`): of the reward.

    Returns:
        `np.ndarray` of shape `(H, W)`, uint8 {0, 1}; the whole target where even that gains less.
    """
    regions = disagreement_regions(mask, target)
    count = int(regions.max())

    def stitched(number: int) -> np.ndarray:
        return np.where((regions > 0) & (regions <= number), target, mask)

    before = _reward(reward, mask, target)
    # The first region is always stitched: without it, there is no pair.
    number = 1 + bisect_left(
        range(1, count), min_gap, key=lambda number: _reward(reward, stitched(number), target) - before
    )
    return stitched(number)


def make_pair(
    chosen: str,
    rejected: str,
    target: np.ndarray,
    candidates: np.ndarray,
    reward: Callable[..., list[float]],
    min_gap: float,
    rng: np.random.Generator,
) -> MaskPair:
    """
    One pair of masks of one object.

    Args:
        chosen (`str`):
            `"ground_truth"`; `"stitched"`, the ground truth stitched into the rejected mask (see [`stitch`]); or
            `"best"`, the candidate with the highest reward.
        rejected (`str`):
            `"greedy"`, the model's own mask; `"worst"`, the candidate with the lowest reward; a corruption of the
            ground truth by its name in [`~preferences.corruptions`]; or `"corrupted"`, any of them.
        target (`np.ndarray` of shape `(H, W)`): uint8 {0, 1}.
        candidates (`np.ndarray` of shape `(K, H, W)`): uint8 {0, 1}; the model's own mask first.
        reward (`Callable`): see [`~rewards.get_reward`].
        min_gap (`float`): how far a stitched mask goes.
        rng (`np.random.Generator`): of the corruptions.

    Returns:
        [`MaskPair`]. Nothing is promised of the gap: even the best candidate may be worse than a corrupted mask.
    """
    rewards = None
    if "best" in chosen or "worst" in rejected:
        rewards = reward(pred_masks=list(candidates), mask=[target] * len(candidates))
    if rejected == "greedy":
        worse = candidates[0]
    elif rejected == "worst":
        worse = candidates[int(np.argmin(rewards))]
    else:
        name = str(rng.choice(list(CORRUPTIONS))) if rejected == "corrupted" else rejected
        worse = CORRUPTIONS[name](target, rng)
    if chosen == "ground_truth":
        better = target
    elif chosen == "best":
        better = candidates[int(np.argmax(rewards))]
    else:
        better = stitch(worse, target, reward, min_gap)
    return MaskPair(better, worse, _reward(reward, better, target), _reward(reward, worse, target))


def _reward(reward: Callable[..., list[float]], mask: np.ndarray, target: np.ndarray) -> float:
    return float(reward(pred_masks=[mask], mask=[target])[0])


def sampler_of(chosen: tuple[str, ...], rejected: tuple[str, ...], sampler: MaskSampler | None) -> MaskSampler:
    """
    The sampler that pairs of these kinds need; of the model's own mask alone where none of them looks at others.

    Args:
        chosen, rejected (`tuple[str, ...]`): of `CHOSEN` and `REJECTED`.
        sampler (`MaskSampler`, *optional*): that was asked for.

    Returns:
        `MaskSampler`.

    Raises:
        `ValueError`: an unknown kind of mask, none, or one twice; or a sampler that nothing would ask.
    """
    for option, names, known in (("chosen", chosen, CHOSEN), ("rejected", rejected, REJECTED)):
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{option}: unknown {', '.join(unknown)}; there are {', '.join(known)}.")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{option} needs at least one entry and none twice, got {', '.join(names) or 'none'}.")
    if "best" in chosen or "worst" in rejected:
        return MaskSampler() if sampler is None else sampler
    if sampler is not None:
        raise ValueError("sampler has no effect: only chosen='best' and rejected='worst' look at candidates.")
    return MaskSampler(embedding=0, field=0, tokens=False, thresholds=())


class MinedPairs(NamedTuple):
    """
    Args:
        chosen (`torch.Tensor` of shape `(pairs, h, w)`): uint8 {0, 1}, on the grid of the masks that were given.
        rejected (`torch.Tensor` of shape `(pairs, h, w)`): likewise.
        index (`torch.LongTensor` of shape `(pairs,)`): the mask of the features that each pair is of, in order.
        chosen_reward (`torch.Tensor` of shape `(pairs,)`): float32.
        rejected_reward (`torch.Tensor` of shape `(pairs,)`): float32.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    index: torch.Tensor
    chosen_reward: torch.Tensor
    rejected_reward: torch.Tensor


@torch.no_grad()
def mine_pairs(
    model: nn.Module,
    features: SegFeatures,
    masks: torch.Tensor,
    chosen: str = "ground_truth",
    rejected: str = "greedy",
    reward: str | dict[str, float] | Callable[..., list[float]] = "dice",
    min_gap: float = 0.15,
    sampler: MaskSampler | None = None,
    generator: torch.Generator | None = None,
) -> MinedPairs:
    """
    Pairs of a batch from the model's present masks.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): left as it is.
        features (`SegFeatures`): from its `encode`.
        masks (`torch.Tensor` of shape `(masks, h, w)`): the ground truth, uint8 {0, 1}, at any size.
        chosen, rejected (`str`, *optional*): how pairs are made, see [`make_pair`].
        reward (*optional*, defaults to `"dice"`): see [`~rewards.get_reward`].
        min_gap (`float`, *optional*, defaults to 0.15): pairs whose rewards differ by less are left out.
        sampler (`MaskSampler`, *optional*): of the candidates of `"best"` and `"worst"`.
        generator (`torch.Generator`, *optional*): source of all randomness; seeded with 0 by default.

    Returns:
        [`MinedPairs`], on the masks' device; there may be none.

    Raises:
        `ValueError`: masks that do not pair with the features, or a bad option.
    """
    if len(masks) != len(features.seg_index):
        raise ValueError(f"{len(masks)} masks for {len(features.seg_index)} masks of the features.")
    check_gap(min_gap)
    reward = get_reward(reward)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    drawn = sampler_of((chosen,), (rejected,), sampler)(model, features, generator).mask_logits
    seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    drawn = resize_mask_logits(drawn, masks.shape[-2:])
    drawn = mask_probabilities(drawn, model.config.mask_temperature) > model.config.mask_threshold
    candidates = drawn.byte().cpu().numpy()
    kept = []
    for number, (target, own) in enumerate(zip(masks.cpu().numpy(), candidates, strict=True)):
        target = (target > 0).astype(np.uint8)
        pair = make_pair(chosen, rejected, target, own, reward, min_gap, np.random.default_rng([seed, number]))
        if pair.gap >= min_gap and not np.array_equal(pair.chosen, pair.rejected):
            kept.append((number, pair))
    planes = [
        torch.from_numpy(np.stack([getattr(pair, name) for _, pair in kept]).astype(np.uint8))
        if kept
        else torch.zeros((0, *masks.shape[-2:]), dtype=torch.uint8)
        for name in ("chosen", "rejected")
    ]
    index = torch.tensor([number for number, _ in kept], dtype=torch.long)
    rewards = [
        torch.tensor([getattr(pair, f"{name}_reward") for _, pair in kept], dtype=torch.float32)
        for name in ("chosen", "rejected")
    ]
    return MinedPairs(*(value.to(masks.device) for value in (*planes, index, *rewards)))


def check_online(chosen: str, rejected: str, min_gap: float) -> None:
    """
    Check options of [`mine_pairs`] before there is a model.

    Args:
        chosen, rejected (`str`): how pairs are made, see [`make_pair`].
        min_gap (`float`): of the rewards of a pair.

    Raises:
        `ValueError`: an unknown kind of mask, or a gap below 0.
    """
    sampler_of((chosen,), (rejected,), None)
    check_gap(min_gap)


def check_gap(min_gap: float) -> None:
    """
    Check the least difference of the rewards of a pair.

    Args:
        min_gap (`float`): 0 or more.

    Raises:
        `ValueError`: it is negative, or no finite number.
    """
    if not 0 <= min_gap < math.inf:
        raise ValueError(f"min_gap must be 0 or more, got {min_gap}.")


def encoded_mask(mask: np.ndarray) -> dict:
    """A mask of shape `(H, W)`, uint8 {0, 1}, as `datasets.Image` stores it, 0 and 255."""
    return Image().encode_example(mask.astype(np.uint8) * 255)
