"""Candidate masks of a policy, and preference pairs made of them."""

import logging
import math
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Image, Value
from datasets.table import embed_table_storage
from huggingface_hub import DatasetCard
from pyarrow.parquet import ParquetWriter
from scipy import ndimage
from torch import nn
from tqdm.auto import tqdm

from .data.columns import (
    PAIR_COLUMNS,
    BadRow,
    DatasetError,
    check_dataset,
    decode_image,
    iter_undecoded,
    plain_rows,
    quiet_pillow,
    read_pair,
    worse_pair,
)
from .data.corruptions import CORRUPTIONS
from .data.features import FeatureStore, RowEncoder
from .models.checkpoints import written_beside
from .models.grounding import upsample_mask_logits
from .models.modeling import SegFeatures, _at_least_one
from .rewards import get_reward


logger = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------------------
# Candidate masks
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Candidates:
    """
    K candidate masks for every mask of some features; the model's own comes first.

    Args:
        mask_logits (`torch.Tensor` of shape `(masks, K, S/4, S/4)`):
            float32. A candidate is foreground where its probability exceeds the model's `mask_threshold`.
        log_prob (`torch.Tensor` of shape `(masks, K)`):
            Log-density of what was drawn for the candidate, in its own coordinates: of `embedding` those of the
            projected `[SEG]` embedding, of `field` those of the grids. NaN where nothing was drawn.
        source (`tuple[str, ...]` of length K): `"greedy"`, `"embedding"`, `"field"`, `"token"` or `"threshold"`.
        embeddings (`torch.Tensor` of shape `(masks, E, C)`):
            What was drawn for the `embedding` candidates, without a gradient: the actions of a policy.
        embedding_std (`torch.Tensor` of shape `(masks,)`): their standard deviation.
        iou_scores (`torch.Tensor` of shape `(masks,)`): predicted IoU in [0, 1] of the model's own mask.
    """

    mask_logits: torch.Tensor
    log_prob: torch.Tensor
    source: tuple[str, ...]
    embeddings: torch.Tensor
    embedding_std: torch.Tensor
    iou_scores: torch.Tensor


def gaussian_log_prob(values: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """
    Log-density of an isotropic Gaussian.

    Args:
        values (`torch.Tensor` of shape `(masks, E, C)`): see [`Candidates`].
        mean (`torch.Tensor` of shape `(masks, C)`): a policy's projected `[SEG]` embeddings.
        std (`torch.Tensor` of shape `(masks,)`): positive.

    Returns:
        `torch.Tensor` of shape `(masks, E)`, float32.
    """
    mean, std = mean.float()[:, None], std.float()[:, None]
    squares = (values.float() - mean).square().sum(-1)
    return -0.5 * squares / std.square() - values.shape[-1] * (std.log() + 0.5 * math.log(2 * math.pi))


@dataclass(frozen=True)
class MaskSampler:
    """
    Draws candidate masks from one encoding: passes of the mask decoder only, two of them however many candidates.

    The candidates are, in this order: the model's own mask (`greedy`, what `decode_masks` gives); masks of embeddings
    drawn around the projected `[SEG]` embedding (`embedding`); the model's own mask under a smooth random shift of its
    logits (`field`); SAM 2's other two candidates (`token`); and the model's own mask at other thresholds
    (`threshold`). Independent noise on every pixel is left out on purpose: it shatters vessels instead of varying
    them.

    Under autograd `mask_logits` are differentiable throughout (of `embedding` candidates also with respect to the
    embedding that they were drawn around), and `log_prob` of `embedding` candidates is the policy's: its gradient with
    respect to the mean is that of a score function, what was drawn being held fixed. That of `field` has no gradient,
    as the field does not depend on the model.

    Args:
        embedding (`int`, *optional*, defaults to 2): number of `embedding` candidates.
        field (`int`, *optional*, defaults to 2): number of `field` candidates.
        tokens (`bool`, *optional*, defaults to `True`): the two `token` candidates.
        thresholds (`tuple[float, ...]`, *optional*, defaults to `(0.3, 0.7)`): probabilities in (0, 1).
        embedding_noise (`float`, *optional*, defaults to 0.1):
            Standard deviation of each coordinate as a share of the embedding's root mean square. A decoder that was
            only ever asked for one thing may ignore its prompt, and these candidates then equal the model's own mask.
        field_noise (`float`, *optional*, defaults to 1.0): standard deviation at the grid points, in logits.
        field_grids (`tuple[int, ...]`, *optional*, defaults to `(16, 4)`):
            Points a side of the grids that a field is the sum of; on SAM 2's own 256 x 256 logits their cells measure
            16 and 64 pixels. Between the points the field is bilinear.

    Raises:
        `ValueError`: an option out of its range, or noise without candidates that use it.
    """

    embedding: int = 2
    field: int = 2
    tokens: bool = True
    thresholds: tuple[float, ...] = (0.3, 0.7)
    embedding_noise: float = 0.1
    field_noise: float = 1.0
    field_grids: tuple[int, ...] = (16, 4)

    def __post_init__(self):
        object.__setattr__(self, "thresholds", tuple(self.thresholds))
        object.__setattr__(self, "field_grids", tuple(self.field_grids))
        for name in ("embedding", "field"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a number of candidates, got {getattr(self, name)}.")
        for name in ("embedding_noise", "field_noise"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if not self.field_grids or min(self.field_grids) < 1:
            raise ValueError(f"field_grids needs at least one grid of at least one point, got {self.field_grids}.")
        if not all(0 < threshold < 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds must lie between 0 and 1, got {self.thresholds}.")

    @property
    def source(self) -> tuple[str, ...]:
        """Where each candidate comes from, in order."""
        counts = {"greedy": 1, "embedding": self.embedding, "field": self.field}
        counts |= {"token": 2 * self.tokens, "threshold": len(self.thresholds)}
        return tuple(name for name, count in counts.items() for _ in range(count))

    def __call__(
        self, model: nn.Module, features: SegFeatures, generator: torch.Generator | None = None
    ) -> Candidates:
        """
        Args:
            model (`Sa2VAForConditionalGeneration` or `PeftModel`): left as it is, in its own mode.
            features (`SegFeatures`): from its `encode`.
            generator (`torch.Generator`, *optional*):
                Source of all randomness, on any device; seeded with 0 by default. The noise of one mask after the
                other is drawn from it, so that masks one by one get what they get in one batch.

        Returns:
            [`Candidates`].
        """
        count = len(features.seg_index)
        size = model.config.grounding_config.mask_size
        if count == 0 and not model._must_run_everything:
            return self._none(features.seg_states, model.config.grounding_config.hidden_dim, size)
        features = _at_least_one(features)
        generator = torch.Generator().manual_seed(0) if generator is None else generator

        three, ious = model.decode_candidates(features)
        masks = torch.arange(len(ious), device=ious.device)
        best = ious.argmax(dim=-1)
        greedy = three[masks, best]
        mean = model._prompts(features.seg_states)[features.seg_index]
        # (As the embedding's own scale, so that the noise means the same to every checkpoint.)
        std = self.embedding_noise * mean.detach().float().square().mean(-1).sqrt().clamp(min=1e-6)
        embedding_noise, grids = self._draw(len(masks), mean.shape[-1], generator, mean.device)

        parts = [greedy[:, None]]
        log_prob = [torch.full_like(greedy[:, :1, 0], math.nan)]
        drawn = mean[:, None].float() + std[:, None, None] * embedding_noise
        if self.embedding:
            decoded, scores, _ = model.grounding_encoder.decode(
                features.pyramid, drawn.flatten(end_dim=1), features.image_index.repeat_interleave(self.embedding)
            )
            chosen = decoded[torch.arange(len(decoded), device=decoded.device), scores.argmax(dim=-1)]
            parts.append(chosen.unflatten(0, (len(masks), self.embedding)))
            log_prob.append(gaussian_log_prob(drawn.detach(), mean, std))
        if self.field:
            parts.append(greedy[:, None] + self._upsample(grids, size))
            squares = sum(grid.square().sum((-2, -1)) for grid in grids) / self.field_noise**2
            points = sum(side**2 for side in self.field_grids)
            log_prob.append(-0.5 * squares - points * (math.log(self.field_noise) + 0.5 * math.log(2 * math.pi)))
        if self.tokens:
            others = (best[:, None] + torch.arange(1, 3, device=best.device)) % 3
            parts.append(three[masks[:, None], others.sort(dim=-1).values])
        if self.thresholds:
            own = _logit(model.config.mask_threshold)
            shifts = greedy.new_tensor([own - _logit(threshold) for threshold in self.thresholds])
            parts.append(greedy[:, None] + shifts[:, None, None])
        densities = torch.cat(log_prob, dim=1)
        rest = len(self.source) - densities.shape[1]
        return Candidates(
            mask_logits=torch.cat(parts, dim=1)[:count],
            log_prob=F.pad(densities, (0, rest), value=math.nan)[:count],
            source=self.source,
            embeddings=drawn.detach()[:count],
            embedding_std=std[:count],
            iou_scores=ious[masks, best][:count],
        )

    def _draw(
        self, masks: int, width: int, generator: torch.Generator, device: torch.device
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Standard noise of shape `(masks, E, C)`, and the fields' grids, each of shape `(masks, F, side, side)`."""
        sizes = [self.embedding * width, *(self.field * side**2 for side in self.field_grids)]
        noise = [
            torch.randn(sum(sizes), generator=generator, device=generator.device).to(device) for _ in range(masks)
        ]
        embedding, *fields = torch.stack(noise).split(sizes, dim=1)
        grids = [
            self.field_noise * values.reshape(masks, self.field, side, side)
            for values, side in zip(fields, self.field_grids, strict=True)
        ]
        return embedding.reshape(masks, self.embedding, width), grids

    @staticmethod
    def _upsample(grids: list[torch.Tensor], size: int) -> torch.Tensor:
        return sum(F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False) for grid in grids)

    def _none(self, states: torch.Tensor, width: int, size: int) -> Candidates:
        count = len(self.source)
        return Candidates(
            mask_logits=states.new_zeros((0, count, size, size), dtype=torch.float32),
            log_prob=states.new_zeros((0, count), dtype=torch.float32),
            source=self.source,
            embeddings=states.new_zeros((0, self.embedding, width), dtype=torch.float32),
            embedding_std=states.new_zeros(0, dtype=torch.float32),
            iou_scores=states.new_zeros(0, dtype=torch.float32),
        )


def _logit(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)


# ---------------------------------------------------------------------------------------------------------------------
# One pair
# ---------------------------------------------------------------------------------------------------------------------

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
            ground truth by its name in [`~data.corruptions`]; or `"corrupted"`, any of them.
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


def _sampler(chosen: tuple[str, ...], rejected: tuple[str, ...], sampler: MaskSampler | None) -> MaskSampler:
    """The sampler that pairs of these kinds need; the model's own mask alone where none of them looks at others."""
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


# ---------------------------------------------------------------------------------------------------------------------
# Pairs of a batch, mined from the policy as it is
# ---------------------------------------------------------------------------------------------------------------------


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
    _check_gap(min_gap)
    reward = get_reward(reward)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    drawn = _sampler((chosen,), (rejected,), sampler)(model, features, generator).mask_logits
    seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    if drawn.shape[-2:] != masks.shape[-2:] and len(drawn):
        drawn = F.interpolate(drawn, size=masks.shape[-2:], mode="bilinear", align_corners=False)
    candidates = (drawn.sigmoid() > model.config.mask_threshold).byte().cpu().numpy()
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

    Raises:
        `ValueError`: an unknown kind of mask, or a gap below 0.
    """
    _sampler((chosen,), (rejected,), None)
    _check_gap(min_gap)


def _check_gap(min_gap: float) -> None:
    if not 0 <= min_gap < math.inf:
        raise ValueError(f"min_gap must be 0 or more, got {min_gap}.")


# ---------------------------------------------------------------------------------------------------------------------
# Pairs of a dataset
# ---------------------------------------------------------------------------------------------------------------------


def build_preferences(
    dataset: Dataset,
    model: nn.Module,
    processor,
    chosen: str | list[str] = "ground_truth",
    rejected: str | list[str] = "greedy",
    reward: str | dict[str, float] | Callable[..., list[float]] = "dice",
    min_gap: float = 0.15,
    allow_worse: bool = False,
    sampler: MaskSampler | None = None,
    batch_size: int = 4,
    seed: int = 0,
    progress: bool = True,
    features: tuple[FeatureStore, list[str]] | None = None,
) -> Dataset:
    """
    Preference pairs of every object of a dataset, at the size of its image.

    Args:
        dataset (`datasets.Dataset`):
            Rows as in [`~data.columns.check_dataset`]. Rows with several objects become one row an object, with its
            phrase; rows without masks are left out.
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): draws the masks; in evaluation mode afterwards.
        processor (`Sa2VAProcessor`): of the model.
        chosen, rejected (`str` or `list[str]`, *optional*):
            How pairs are made, see [`make_pair`]. Of several, all combinations are made.
        reward (*optional*, defaults to `"dice"`): see [`~rewards.get_reward`].
        min_gap (`float`, *optional*, defaults to 0.15):
            Pairs whose rewards differ by less are left out. The default suits Dice and the model's own mask; faults of
            the topology (`"broken_branch"`) hardly change Dice, so give them another reward or a gap near 0.
        allow_worse (`bool`, *optional*, defaults to `False`):
            Keep pairs whose chosen mask is worse than the rejected one by at least `min_gap`, too.
        sampler (`MaskSampler`, *optional*): of the candidates of `"best"` and `"worst"`.
        batch_size (`int`, *optional*, defaults to 4): rows a forward pass.
        seed (`int`, *optional*, defaults to 0): of candidates and corruptions. The global random state is left alone.
        progress (`bool`, *optional*, defaults to `True`): show a bar.
        features (*optional*):
            From [`~evaluation.stored_features`] of the same model and of `one_object_a_row(dataset)`; only the mask
            head runs then.

    Returns:
        `datasets.Dataset`: the columns of the dataset and
            - `chosen_mask` and `rejected_mask` (`Image(mode="L")`, 0 and 255), of the image's size;
            - `chosen_reward` and `rejected_reward` (`float64`);
            - `pair_kind` (`string`): `"ground_truth_vs_greedy"` and so on.
        Where a row gives several, `sample_id` gets `#` and the object's number and `:` and the kind behind it.

    Raises:
        `DatasetError`: bad rows, clips, conversations about several objects, no row with a mask, or no pair with a gap
            of `min_gap`; the message says how many pairs other gaps would give.
        `ValueError`: a bad option, or features of other rows.
    """
    chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    rejected = (rejected,) if isinstance(rejected, str) else tuple(rejected)
    sampler = _sampler(chosen, rejected, sampler)
    reward = get_reward(reward)
    _check_gap(min_gap)
    dataset = plain_rows(dataset)
    check_dataset(dataset, name="dataset")
    dataset = one_object_a_row(dataset)
    if features is not None and len(features[1]) != len(dataset):
        raise ValueError(
            f"features are of {len(features[1])} rows, the dataset has {len(dataset)} objects: compute them of "
            "one_object_a_row(dataset)."
        )
    kinds = [(better, worse) for better in chosen for worse in rejected]

    columns = {name: [] for name in PREFERENCE_FEATURES}
    indices, gaps, counts = [], [], Counter()
    drawn = _draw_candidates(model, processor, dataset, sampler, batch_size, seed, progress, features)
    for position, (target, candidates) in enumerate(drawn):
        for better, worse in kinds:
            rng = np.random.default_rng([seed, position])
            pair = make_pair(better, worse, target, candidates, reward, min_gap, rng)
            if np.array_equal(pair.chosen, pair.rejected):
                counts["identical"] += 1
                continue
            gaps.append(abs(pair.gap) if allow_worse else pair.gap)
            counts["worse"] += pair.gap < 0
            if gaps[-1] < min_gap:
                continue
            indices.append(position)
            columns["chosen_mask"].append(_encode(pair.chosen))
            columns["rejected_mask"].append(_encode(pair.rejected))
            columns["chosen_reward"].append(pair.chosen_reward)
            columns["rejected_reward"].append(pair.rejected_reward)
            columns["pair_kind"].append(f"{better}_vs_{worse}")
    total = len(dataset) * len(kinds)
    logger.info("%d of %d pairs have a reward gap of at least %g.", len(indices), total, min_gap)
    if counts["worse"]:
        logger.warning(
            "%d of %d pairs have a chosen mask that is worse than the rejected one; %s.",
            counts["worse"],
            total,
            "allow_worse keeps those with a large enough gap" if allow_worse else "they were left out",
        )
    if not indices:
        raise DatasetError(_no_pairs(np.array(gaps), total, counts, min_gap))
    pairs = dataset.remove_columns([name for name in columns if name in dataset.column_names]).select(indices)
    if len(kinds) > 1:
        names = [f"{name}:{kind}" for name, kind in zip(pairs["sample_id"], columns["pair_kind"], strict=True)]
        pairs = _replace_column(pairs, "sample_id", names)
    for name, values in columns.items():
        pairs = pairs.add_column(name, values, feature=PREFERENCE_FEATURES[name])
    return pairs.select_columns([name for name in dataset.column_names if name not in columns] + list(columns))


PREFERENCE_FEATURES = {
    "chosen_mask": Image(mode="L"),
    "rejected_mask": Image(mode="L"),
    "chosen_reward": Value("float64"),
    "rejected_reward": Value("float64"),
    "pair_kind": Value("string"),
}


def one_object_a_row(dataset: Dataset) -> Dataset:
    """
    Split rows with several objects into one row an object, with its phrase.

    Args:
        dataset (`datasets.Dataset`): checked rows, see [`~data.columns.check_dataset`].

    Returns:
        `datasets.Dataset`: the same columns. Rows without masks are left out; `sample_id` gets `#` and the object's
        number behind it where a row is split.

    Raises:
        `DatasetError`: clips, conversations about several objects (all of them are named), or no row with a mask.
    """
    indices, numbers, masks, phrases, bad, start = [], [], [], [], [], 0
    for rows in iter_undecoded(dataset):
        for position, row in enumerate(rows, start):
            own = [row["mask"]] if row.get("mask") is not None else row.get("masks") or []
            reason = None
            if len(row.get("images") or []) > 1 and own:
                reason = "a clip: preferences are over the masks of still images, so give its frames as rows"
            elif len(own) > 1 and row.get("messages"):
                reason = f"one conversation about {len(own)} objects: give each a row of its own"
            if reason is not None:
                bad.append(BadRow(position, row["sample_id"], None, reason))
                continue
            for number in range(len(own)):
                indices.append(position)
                numbers.append(number if len(own) > 1 else None)
                masks.append([own[number]] if row.get("mask") is None else row.get("masks"))
                names = row.get("phrases")
                phrases.append([names[number]] if names and row.get("mask") is None else names)
        start += len(rows)
    if bad:
        raise DatasetError(f"{len(bad)} of {len(dataset)} rows cannot become preference pairs:", bad)
    if not indices:
        raise DatasetError("The dataset has no row with a mask, so there is nothing to prefer.")
    order = dataset.column_names
    if indices != list(range(len(dataset))):
        dataset = dataset.select(indices)
    if any(number is not None for number in numbers):
        names = [
            name if number is None else f"{name}#{number}"
            for name, number in zip(dataset["sample_id"], numbers, strict=True)
        ]
        for name, values in (("masks", masks), ("phrases", phrases), ("sample_id", names)):
            if name in order:
                dataset = _replace_column(dataset, name, values)
    return dataset.select_columns(order)


def _replace_column(dataset: Dataset, name: str, values: list) -> Dataset:
    feature = dataset.features[name]
    return dataset.remove_columns(name).add_column(name, values, feature=feature)


@torch.no_grad()
def _draw_candidates(model, processor, dataset, sampler, batch_size, seed, progress, features):
    """For each row its mask of shape `(H, W)` and its candidates of shape `(K, H, W)`, both uint8 {0, 1}."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    encode = RowEncoder(model, processor, dataset, features)
    size, threshold = model.config.grounding_config.image_size, model.config.mask_threshold
    for start in tqdm(range(0, len(dataset), batch_size), desc="draw candidates", disable=not progress):
        _, targets, encoded = encode(range(start, min(start + batch_size, len(dataset))))
        mask_logits = sampler(model, encoded, generator).mask_logits
        for own, target in zip(mask_logits, targets, strict=True):
            probabilities = upsample_mask_logits(own, size, target.shape[-2:]).sigmoid()
            yield target[0].numpy(), (probabilities > threshold).byte().cpu().numpy()


def _encode(mask: np.ndarray) -> dict:
    return Image().encode_example(mask.astype(np.uint8) * 255)


def _no_pairs(gaps: np.ndarray, total: int, counts: Counter, min_gap: float) -> str:
    lines = [
        f"None of {total} pairs has a reward gap of at least min_gap={min_gap:g}: {counts['identical']} have two "
        f"equal masks, {counts['worse']} a chosen mask that is worse than the rejected one."
    ]
    if len(gaps) and gaps.max() > 0:
        lines.append(f"The largest gap is {gaps.max():.4g}. Pairs by min_gap:")
        steps = [step for step in (0.5, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01, 0.001, 0) if step < min_gap]
        lines += [f"  {step:<6g}{np.count_nonzero(gaps >= step):>8}" for step in steps]
    return "\n".join(lines)


def check_preferences(dataset: Dataset, name: str = "train_dataset", allow_worse: bool = False) -> None:
    """
    Check what pairs have beyond other rows (which [`~data.columns.check_dataset`] checks) before training starts.

    Args:
        dataset (`datasets.Dataset`):
            With `chosen_mask` and `rejected_mask`. A pair is worse than it should be by `chosen_reward` and
            `rejected_reward` where there are these columns, and otherwise by the Dice coefficients of its masks with
            the row's one mask.
        name (`str`, *optional*, defaults to `"train_dataset"`): what the messages call it.
        allow_worse (`bool`, *optional*, defaults to `False`):
            Only warn of pairs whose chosen mask is worse than the rejected one.

    Raises:
        `DatasetError`: columns are missing, masks are unreadable, not binary, of another size than their image or
            equal, or pairs are the wrong way round. `problems` holds every such row.
    """
    if missing := [column for column in PAIR_COLUMNS if not isinstance(dataset.features.get(column), Image)]:
        raise DatasetError(
            f"{name} has no image column {' and '.join(f'`{column}`' for column in missing)}: pairs need both; "
            "recipes/build_preferences.py makes them from images and masks."
        )
    bad, worse, position = [], [], 0
    with quiet_pillow():
        for table in dataset.with_format("arrow").iter(64):
            for row in table.to_pylist():
                reason, wrong = _pair_faults(row, dataset.features)
                for problems, fault in ((bad, reason), (worse, wrong)):
                    if fault is not None:
                        problems.append(BadRow(position, row["sample_id"], None, fault))
                position += 1
    if bad:
        raise DatasetError(f"{name}: {len(bad)} of {len(dataset)} pairs cannot be used:", bad)
    if worse and not allow_worse:
        raise DatasetError(
            f"{name}: the chosen mask is worse than the rejected one in {len(worse)} of {len(dataset)} pairs. Leave "
            "them out, or allow them with allow_worse:",
            worse,
        )
    if worse:
        logger.warning("%s: %d of %d chosen masks are worse than the rejected ones.", name, len(worse), len(dataset))


def _pair_faults(row: dict, features: Features) -> tuple[str | None, str | None]:
    """What makes an undecoded row no pair, and how it is the wrong way round."""
    images = [row["image"]] if row.get("image") is not None else row.get("images") or []
    masks = [row["mask"]] if row.get("mask") is not None else row.get("masks") or []
    if len(images) != 1:
        return f"has {len(images)} images; pairs are of one", None
    try:
        pair = read_pair(row, decode_image(images[0]).size, features)
    except DatasetError as error:
        return str(error), None
    if not pair:
        return "chosen_mask is missing (None)", None
    if len(masks) != 1:
        return f"has {len(masks)} masks; pairs are of one object", None
    return None, worse_pair(row, pair, masks[0])


def save_preferences(dataset: Dataset, folder: str | os.PathLike, split: str = "train") -> None:
    """
    Write pairs so that `datasets.load_dataset(folder)` opens them: a Parquet file that holds every image, and a
    `README.md`.

    Args:
        dataset (`datasets.Dataset`): from [`build_preferences`].
        folder (`str` or `os.PathLike`): made if it is not there; appears, or changes, only when all is written.
        split (`str`, *optional*, defaults to `"train"`): its name in the folder.
    """
    kinds = Counter(dataset["pair_kind"])
    card = DatasetCard(
        "---\n"
        "tags:\n- sa2va_trl\n- preference\n"
        "---\n\n# Preference pairs of masks\n\n"
        "Each row has an image, its mask, and a `chosen_mask` that is preferred to a `rejected_mask`, with the reward "
        "of both and how they were made (`pair_kind`).\n\n"
        "| `pair_kind` | pairs |\n|---|---|\n"
        + "".join(f"| `{kind}` | {count} |\n" for kind, count in sorted(kinds.items()))
    )
    with written_beside(folder) as temporary:
        # A name that says the split. A card that says it instead would have `datasets` cache all folders of one name,
        # whatever they hold, in one place.
        (temporary / "data").mkdir()
        file = temporary / "data" / f"{split}-00000-of-00001.parquet"
        # `Dataset.to_parquet` would keep only the paths of images that are files.
        with ParquetWriter(file, dataset.features.arrow_schema) as writer:
            for table in dataset.with_format("arrow").iter(64):
                writer.write_table(embed_table_storage(table))
        (temporary / "README.md").write_text(str(card), encoding="utf-8")
