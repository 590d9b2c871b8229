"""Rollouts: masks that a policy has drawn, their rewards, and what training needs of them."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..features.encoding import unwrapped
from ..losses import advantages
from ..mask_logits import mask_probabilities, upsample_mask_logits
from ..models.outputs import SegFeatures
from ..processes import everywhere, process_rank
from ..rewards import CREDITS, CheckedReward, GroupScorer, RankNormalizer
from ..rewards.composites import PublishedReward, WeightedReward
from ..sampling import MaskSampler


@dataclass
class Rollouts:
    """
    Masks of a batch, K for each, and what they are worth. Nothing has a gradient.

    Args:
        embeddings (`torch.Tensor` of shape `(masks, E, C)`): what was drawn of the embedding; E is 0 or up to K.
        embedding_std (`torch.Tensor` of shape `(masks,)`): their standard deviation.
        candidates (`torch.Tensor` of shape `(masks, K, h, w)`): bool, on the decoder's grid.
        greedy (`torch.Tensor` of shape `(masks, h, w)`): bool; the policy's own masks.
        rewards (`torch.Tensor` of shape `(masks, K)`): float32, as they were given.
        greedy_rewards (`torch.Tensor` of shape `(masks,)`): of the policy's own masks.
        components (`dict[str, torch.Tensor]`): parts of `rewards`, of the same shape, unweighted.
        advantages (`torch.Tensor` of shape `(masks, K)`): float32; 0 in groups that are left out.
        credit (`torch.Tensor` of shape `(masks, K, rows, columns)`): what the likelihood of a cell is weighted by.
        has_spread (`torch.Tensor` of shape `(masks,)`): bool; whether the group's rewards differ.
        log_prob (`torch.Tensor` of shape `(masks, E)`, *optional*):
            Of `embeddings` under the policy that has drawn them, known from the first pass of training on.
    """

    embeddings: torch.Tensor
    embedding_std: torch.Tensor
    candidates: torch.Tensor
    greedy: torch.Tensor
    rewards: torch.Tensor
    greedy_rewards: torch.Tensor
    components: dict[str, torch.Tensor]
    advantages: torch.Tensor
    credit: torch.Tensor
    has_spread: torch.Tensor
    log_prob: torch.Tensor | None = None


def local_weights(reward: CheckedReward) -> dict[str, float]:
    """
    Which parts of a reward have local credit, and their weights in it.

    Args:
        reward ([`~rewards.CheckedReward`]): of the run.

    Returns:
        `dict[str, float]`: by the names of [`~rewards.CREDITS`]; empty where the reward has no such part.
    """
    inner = reward.reward
    if isinstance(inner, WeightedReward):
        weights = inner.weights
    elif isinstance(inner, PublishedReward):
        weights = {name: weight * scale for name, (weight, scale) in inner.TERMS.items()}
    else:
        weights = dict.fromkeys(reward.names, 1.0)
    return {name: weight for name, weight in weights.items() if name in CREDITS}


def mask_generators(seed: int, step: int, rows: Sequence[int], row_index: torch.Tensor) -> list[torch.Generator]:
    """
    Sources of noise that depend on nothing but the row and the step, however rows are batched and shared out.

    Args:
        seed (`int`): of the run.
        step (`int`): the global one.
        rows (`Sequence[int]`): number in the training set of each row of the batch.
        row_index (`torch.Tensor` of shape `(masks,)`): the row of the batch that each mask belongs to, ascending.

    Returns:
        `list[torch.Generator]`: one a mask.
    """
    found, seen = [], {}
    for row in row_index.tolist():
        number = seen[row] = seen.get(row, -1) + 1
        content = f"{seed}:{step}:{rows[row]}:{number}"
        found.append(torch.Generator().manual_seed(zlib.crc32(content.encode())))
    return found


@torch.no_grad()
def roll_out(
    model: nn.Module,
    features: SegFeatures,
    sampler: MaskSampler,
    generators: list[torch.Generator],
    targets: list[torch.Tensor],
    sample_ids: list[str],
    scorer: GroupScorer,
    ranks: RankNormalizer | None = None,
    advantage: str = "group",
    scale: str = "none",
    cells: int | None = 16,
) -> Rollouts:
    """
    Draw masks and score them, at their images' own sizes. Under `torch.distributed` all processes call it together.

    Args:
        model (`nn.Module`): the policy, or what wraps it.
        features (`SegFeatures`): of a batch.
        sampler (`MaskSampler`): of `embedding` and `field` candidates alone.
        generators (`list[torch.Generator]`): one a mask, see [`mask_generators`].
        targets (`list[torch.Tensor]`): for each mask `(H, W)`, {0, 1}.
        sample_ids (`list[str]`): for each mask that of its row.
        scorer ([`~rewards.GroupScorer`]): of the reward.
        ranks ([`~rewards.RankNormalizer`], *optional*): makes ranks of rewards; of them advantages are taken then.
        advantage, scale (`str`): see [`~losses.advantages`].
        cells (`int`, *optional*, defaults to 16):
            Along a side of the grid of local credit; `None` for the advantage of the whole mask.

    Returns:
        [`Rollouts`], on the features' device.

    Raises:
        `RewardError`: the reward fails; it names the sample.
        `ValueError`: the batch has another number of masks than the model drew.
    """
    config = unwrapped(model).config
    candidates = sampler(model, features, generators)
    logits = candidates.mask_logits  # the greedy one first
    device, size = logits.device, config.grounding_config.image_size
    if len(targets) != len(logits):
        raise ValueError(f"The batch has {len(targets)} masks, and the model drew {len(logits)}.")

    def drawn(maps: torch.Tensor) -> torch.Tensor:
        return mask_probabilities(maps, config.mask_temperature) > config.mask_threshold

    groups = []
    for own, target, name in zip(logits, targets, sample_ids, strict=True):
        masks = drawn(upsample_mask_logits(own, size, target.shape[-2:])).cpu().numpy()
        groups.append((masks, target.cpu().numpy() > 0, {"sample_id": name}))
    scores = scorer(groups)
    count = logits.shape[1] - 1
    table = np.array([score.rewards for score in scores], dtype=np.float32).reshape(-1, count + 1)
    rewards = torch.from_numpy(table[:, 1:]).to(device)
    has_spread = (rewards != rewards[:, :1]).any(1)
    ranked = rewards
    if ranks is not None:
        # Among those of all processes, which so have one history.
        shares = everywhere(table[:, 1:].flatten().tolist())
        start = sum(map(len, shares[: process_rank()]))
        values = ranks(sum(shares, []))[start : start + table[:, 1:].size]
        ranked = torch.tensor(values, dtype=torch.float32, device=device).reshape(rewards.shape)
    # Embeddings and fields are two policies: each has a baseline, and a scale, of its own.
    kinds = [kind for kind in (sampler.embedding, sampler.field) if kind]
    gains = ranked
    if len(ranked):
        gains = torch.cat([advantages(part, advantage, scale) for part in ranked.split(kinds, dim=1)], dim=1)
    gains = gains * has_spread[:, None]
    names = scorer.reward.names
    components = {
        name: torch.tensor(
            np.array([score.components[name] for score in scores], dtype=np.float32).reshape(-1, count + 1)[:, 1:],
            device=device,
        )
        for name in names
    }
    credit = gains[..., None, None]
    local = local_weights(scorer.reward) if cells is not None and ranks is None else {}
    if local and len(groups):
        maps = np.zeros((len(groups), count, cells, cells), dtype=np.float32)
        for number, (masks, target, _) in enumerate(groups):
            if has_spread[number]:
                for name, weight in local.items():
                    maps[number] += weight * CREDITS[name](masks[1:], target, (cells, cells))
        # What has no place in the image counts everywhere.
        rest = rewards - sum(weight * components[name] for name, weight in local.items())
        maps = torch.from_numpy(maps).to(device) + rest[..., None, None]
        parts = [part - part.mean(1, keepdim=True) for part in maps.split(kinds, dim=1)]
        if scale != "none":
            over = {"group": {"dim": 1, "keepdim": True}, "batch": {}}[scale]
            deviations = [part.std(**over) + 1e-4 for part in rewards.split(kinds, dim=1)]
            parts = [part / own[..., None, None] for part, own in zip(parts, deviations, strict=True)]
        credit = torch.cat(parts, dim=1) * has_spread[:, None, None, None]
    masks = drawn(logits)
    return Rollouts(
        embeddings=candidates.embeddings,
        embedding_std=candidates.embedding_std,
        candidates=masks[:, 1:],
        greedy=masks[:, 0],
        rewards=rewards,
        greedy_rewards=torch.from_numpy(table[:, 0]).to(device),
        components=components,
        advantages=gains,
        credit=credit,
        has_spread=has_spread,
    )


def spread_over(credit: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Credit of cells as that of their pixels.

    Args:
        credit (`torch.Tensor` of shape `(masks, K, rows, columns)`): of [`Rollouts`].
        size (`tuple[int, int]`): height and width of the decoder's grid.

    Returns:
        `torch.Tensor` of shape `(masks, K, height, width)`.
    """
    return (
        F.interpolate(credit, size=size, mode="nearest")
        if len(credit)
        else credit.new_zeros((*credit.shape[:2], *size))
    )
