"""Rollouts: masks that a policy has drawn, their rewards, and what training needs of them."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..features.encoding import unwrapped
from ..losses import advantages
from ..mask_logits import mask_probabilities, upsample_mask_logits
from ..models.outputs import SegFeatures
from ..rewards import CREDITS, CheckedReward, GroupScorer, RankNormalizer
from ..sampling import MaskSampler


@dataclass
class Rollouts:
    """
    Masks of a batch, K for each, and what they are worth. Nothing has a gradient.

    Args:
        embeddings (`torch.Tensor` of shape `(masks, E, C)`): what was drawn of the embedding; E is 0 or up to K.
        embedding_std (`torch.Tensor` of shape `(masks,)`): their standard deviation.
        noise (`float`): the same as a share of the embedding's root mean square.
        candidates (`torch.Tensor` of shape `(masks, K, h, w)`): bool, on the decoder's grid.
        greedy (`torch.Tensor` of shape `(masks, h, w)`): bool; the policy's own masks.
        rewards (`torch.Tensor` of shape `(masks, K)`): float32, as they were given.
        ranked (`torch.Tensor` of shape `(masks, K)`): what advantages are taken of: the rewards or their ranks.
        greedy_rewards (`torch.Tensor` of shape `(masks,)`): of the policy's own masks.
        components (`dict[str, torch.Tensor]`): parts of `rewards`, of the same shape, unweighted.
        advantages (`torch.Tensor` of shape `(masks, K)`):
            float32; 0 in groups without spread, unless they are against a value head.
        credit (`torch.Tensor` of shape `(masks, K, rows, columns)`): what the likelihood of a cell is weighted by.
        has_spread (`torch.Tensor` of shape `(masks,)`):
            bool; whether the group's rewards differ, of one mask alone whether from that of the greedy mask.
        log_prob (`torch.Tensor` of shape `(masks, E)`): of `embeddings` under the policy that has drawn them.
    """

    embeddings: torch.Tensor
    embedding_std: torch.Tensor
    noise: float
    candidates: torch.Tensor
    greedy: torch.Tensor
    rewards: torch.Tensor
    ranked: torch.Tensor
    greedy_rewards: torch.Tensor
    components: dict[str, torch.Tensor]
    advantages: torch.Tensor
    credit: torch.Tensor
    has_spread: torch.Tensor
    log_prob: torch.Tensor


def local_weights(reward: CheckedReward) -> dict[str, float]:
    """
    Which parts of a reward have local credit, and their weights in it.

    Args:
        reward ([`~rewards.CheckedReward`]): of the run.

    Returns:
        `dict[str, float]`: by the names of [`~rewards.CREDITS`]; empty where the reward has no such part.
    """
    return {name: weight for name, weight in reward.linear_weights().items() if name in CREDITS}


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
    columns: list[dict[str, Any]],
    scorer: GroupScorer,
    ranks: RankNormalizer | None = None,
    advantage: str = "group",
    scale: str = "none",
    cells: int | None = 16,
    values: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Rollouts:
    """
    Draw masks and score them, at their images' own sizes. Under `torch.distributed` all processes call it together.

    Args:
        model (`nn.Module`): the policy, or what wraps it.
        features (`SegFeatures`): of a batch.
        sampler (`MaskSampler`): of `embedding` and `field` candidates alone.
        generators (`list[torch.Generator]`): one a mask, see [`mask_generators`].
        targets (`list[torch.Tensor]`): for each mask `(H, W)`, {0, 1}.
        columns (`list[dict]`): for each mask what its row has beside pictures; `sample_id` at least.
        scorer ([`~rewards.GroupScorer`]): of the reward.
        ranks ([`~rewards.RankNormalizer`], *optional*):
            Makes ranks of rewards; of them advantages are taken then. It remembers nothing here.
        advantage, scale (`str`): see [`~losses.advantages`].
        cells (`int`, *optional*, defaults to 16):
            Along a side of the grid of local credit; `None` for the advantage of the whole mask.
        values (`Callable`, *optional*):
            With `advantage="value"`: makes what is expected of masks, `(masks,)`, of their embeddings, `(masks, C)`.

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
    for own, target, row in zip(logits, targets, columns, strict=True):
        masks = drawn(upsample_mask_logits(own, size, target.shape[-2:])).cpu().numpy()
        groups.append((masks, target.cpu().numpy() > 0, row))
    scores = scorer(groups)
    count = logits.shape[1] - 1
    table = np.array([score.rewards for score in scores], dtype=np.float32).reshape(-1, count + 1)
    scored = torch.from_numpy(table).to(device)
    greedy_rewards, rewards = scored[:, 0], scored[:, 1:]
    has_spread = (rewards != (rewards[:, :1] if count > 1 else scored[:, :1])).any(1)
    ranked = rewards
    if ranks is not None:
        # Of each group by itself: among rewards of the past and its own.
        places = [ranks.rank(group) for group in table[:, 1:]]
        ranked = torch.tensor(places, dtype=torch.float32, device=device).reshape(rewards.shape)
    # Embeddings and fields are two policies: each has a baseline, and a scale, of its own.
    kinds = [kind for kind in (sampler.embedding, sampler.field) if kind]
    expected = None if values is None else values(candidates.prompts)
    gains = ranked
    if len(ranked):
        parts = [advantages(part, advantage, scale, values=expected) for part in ranked.split(kinds, dim=1)]
        gains = torch.cat(parts, dim=1)
    if expected is None:
        gains = gains * has_spread[:, None]
    drawn_at = candidates.log_prob[:, 1 : 1 + candidates.embeddings.shape[1]]
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
        pairs = zip(torch.from_numpy(maps).to(device).split(kinds, dim=1), rest.split(kinds, dim=1), strict=True)
        parts = [cell_advantages(own, other, scale) for own, other in pairs]
        credit = torch.cat(parts, dim=1) * has_spread[:, None, None, None]
    masks = drawn(logits)
    return Rollouts(
        embeddings=candidates.embeddings,
        embedding_std=candidates.embedding_std,
        noise=sampler.embedding_noise,
        candidates=masks[:, 1:],
        greedy=masks[:, 0],
        rewards=rewards,
        ranked=ranked,
        greedy_rewards=greedy_rewards,
        components=components,
        advantages=gains,
        credit=credit,
        has_spread=has_spread,
        log_prob=drawn_at,
    )


def cell_advantages(cells: torch.Tensor, rest: torch.Tensor, scale: str = "none") -> torch.Tensor:
    """
    How much better a sampled mask is around each cell than those of its group are.

    Args:
        cells (`torch.Tensor` of shape `(groups, K, rows, columns)`): the part of the reward that lies in each cell.
        rest (`torch.Tensor` of shape `(groups, K)`): the part that lies nowhere, which counts in every cell.
        scale (`str`, *optional*, defaults to `"none"`):
            As of [`~losses.advantages`]. What it is divided by is the deviation that the whole reward would have if
            cells were independent. (Where gains and losses cancel out, the reward's own one is next to nothing.)

    Returns:
        `torch.Tensor` of the shape of `cells`.
    """
    cells = cells - cells.mean(1, keepdim=True)
    rest = rest - rest.mean(1, keepdim=True)
    found = cells + rest[..., None, None]
    if scale == "none":
        return found
    squares = cells.square().sum((-2, -1)) + rest.square()
    if scale == "group":
        variance = squares.sum(1, keepdim=True) / (squares.shape[1] - 1)
    else:
        variance = squares.sum() / max(squares.numel() - 1, 1)
    return found / (variance.sqrt() + 1e-4)[..., None, None]


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


def rollout_means(found: Rollouts) -> dict[str, torch.Tensor]:
    """
    What is logged of rollouts.

    Args:
        found ([`Rollouts`]): of a batch.

    Returns:
        `dict[str, torch.Tensor]`: means over masks, by the names of the log, each of shape `()`. Deviations are those
        within groups; one mask alone has none.
    """

    def deviation(values: torch.Tensor) -> torch.Tensor:
        return values.std(1).mean() if len(values) else values.sum()

    means = {
        "reward": found.rewards.mean(),
        "frac_reward_zero_std": (~found.has_spread).float().mean(),
        "rewards/greedy": found.greedy_rewards.mean(),
    }
    means |= {f"rewards/{name}/mean": values.mean() for name, values in found.components.items()}
    if found.rewards.shape[1] > 1:
        means["reward_std"] = deviation(found.rewards)
        means |= {f"rewards/{name}/std": deviation(values) for name, values in found.components.items()}
    return means


def why_no_spread(found: Rollouts, policy: str) -> str:
    """
    The cause that no group of a batch has any spread of rewards.

    Args:
        found ([`Rollouts`]): of the batch, with a mask at least.
        policy (`str`): what was drawn, see [`~trainers.SegGRPOConfig`].
    """
    if (found.candidates == found.greedy[:, None]).all():
        why = "every drawn mask equals the greedy one: the noise is too small (embedding_noise, field_noise)"
        if policy == "embedding":
            why += ", or the decoder does not listen to its prompt, as of a model that was only ever asked for "
            why += "one thing (policy=field draws masks without it)"
        return why
    if found.candidates.shape[1] > 1 and (found.candidates == found.candidates[:, :1]).all():
        return "all masks of a group are equal, and not the greedy one: the noise takes them all to one place"
    return (
        "the drawn masks differ and their rewards do not: the parts of the reward cancel out, or it is at its bound "
        "for all of them"
    )
