"""Reinforcement learning on masks: groups of drawn masks, their rewards, and a clipped policy gradient."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Audio, Dataset, Image, List, Video
from datasets.features import LargeList
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from .. import losses, mining
from ..data.collator import TARGETS, SegCollator
from ..features.fingerprint import before_the_cut
from ..models import Sa2VAProcessor
from ..models.outputs import Sa2VAOutput, SegFeatures
from ..rewards import GroupScorer, checked, component_weights, get_reward, with_weights
from ..sampling import gaussian_log_prob
from .actor_critic import STATE, ActorCritic
from .base_trainer import RowSets
from .callbacks import EpochToSampler, RankHistory, UpdateActorCritic
from .epoch_plan import capped, match_scores
from .grpo_config import SegGRPOConfig
from .numbered import WithRowNumbers
from .rollout_sheets import save_rollouts
from .rollouts import Rollouts, mask_generators, roll_out, rollout_means, spread_over, why_no_spread
from .row_sampling import WEIGHT_CAP, choose_rows, sampling_weights
from .sft_trainer import SegSFTTrainer


# Options of the rollouts that a resumed run must have as they were, beside those of its rows.
RECORDED = (
    *("num_iterations", "sample_by", "policy", "num_generations", "embedding_noise", "field_noise", "noise_end"),
    *("advantage", "scale_rewards", "credit", "rank_history"),
)


def _is_plain(feature: Any) -> bool:
    """Whether a column holds no pictures, so that reading it is cheap."""
    inner = feature.feature if isinstance(feature, List | LargeList) else feature
    return not isinstance(inner, Image | Video | Audio)


class SegGRPOTrainer(SegSFTTrainer):
    """
    Group relative policy optimisation over masks.

    The words of an answer are the same whatever is drawn, so their policy has nothing to explore; the action is what
    the mask is drawn from. For every mask of a batch, encoded once, K embeddings are drawn from a Gaussian around the
    projected `[SEG]` embedding, or K smooth fields that shift the greedy mask's logits, and each is one pass of the
    mask decoder. The reward of the drawn mask is taken at the image's own size. Three losses are added up:

    - of drawn embeddings PPO's clipped surrogate (arXiv 1707.06347) with the advantage of their mask; it trains what
      makes the embedding, `text_hidden_fcs` and the language model's LoRA, if there is one;
    - of all drawn masks their likelihood under independent pixels, where they differ from the greedy mask, weighted by
      the part of the reward that lies around a pixel (`credit="local"`) or by the advantage; it trains the decoder and
      through it what makes the embedding;
    - the supervised mask losses, `sft_weight` times: an anchor without which a mask decoder is soon worse than before.

    A group whose rewards are all equal teaches nothing and is left out of the first two. Such a mask cannot do worse
    than it does, or its decoder does not listen to its prompt: see `skip_patience`.

    With `advantage="value"` it is PPO as published: a value head, which is no part of the model, takes the place of
    the group (see [`~trainers.actor_critic.ActorCritic`]).

    Other ways to a policy over masks: SAMTok (arXiv 2601.16093) writes a mask as two tokens.

    Logged, by TRL's names: `reward`, `reward_std` (within groups), `rewards/<name>/mean` and `/std`,
    `frac_reward_zero_std`, `clip_ratio/low_mean`, `clip_ratio/high_mean`, `clip_ratio/region_mean`, `kl`; beside them
    `rewards/greedy` (of the policy's own masks: what an evaluation would see), `policy_loss`, `decoder_loss`,
    `value_loss` (with `advantage="value"`), `embedding_noise` (with `learn_noise`) and the supervised losses.
    Evaluation is that of [`SegSFTTrainer`].

    Args:
        model (`str`, `Sa2VAForConditionalGeneration` or `PeftModel`): what to train.
        args (`SegGRPOConfig`): options.
        reward_funcs (`Callable`, *optional*):
            In place of `args.reward`: a function with TRL's signature, which is given `pred_masks`, `mask` and
            `sample_id`, one a drawn mask.
        train_dataset (`datasets.Dataset`): rows as in [`~data.checks.check_dataset`].
        scores (`pandas.DataFrame` or path, *optional*):
            With `args.sample_by`: one row a training row with masks, of `sample_id`, `dice` and `reward_spread`, see
            [`~mining.score_dataset`].
        data_collator, eval_dataset, processing_class, kwargs: as in [`SegSFTTrainer`].

    Raises:
        `DatasetError`: bad rows, all at once, or splits that share something.
        `ValueError`: options that contradict each other, or `beta` without an adapter that can be switched off.
        `TypeError`: a config of another trainer, or a stream, whose rows have no numbers.
        `RewardError`: while training, a reward raises or is no finite number; it names reward, sample and step.

    Example:

    ```python
    >>> import tempfile

    >>> from sa2va_trl import SegGRPOConfig, SegGRPOTrainer, tiny_sa2va
    >>> from sa2va_trl.data import synthetic_splits

    >>> model, processor = tiny_sa2va(image_size=64)
    >>> data = synthetic_splits(1, 1, 1, frames_per_video=2, size=64)
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = SegGRPOTrainer(
    ...     model=model,
    ...     args=SegGRPOConfig(
    ...         folder.name,
    ...         num_generations=2,
    ...         max_steps=1,
    ...         cache_dir=folder.name,
    ...         use_cpu=True,
    ...         report_to="none",
    ...         logging_strategy="no",
    ...     ),
    ...     train_dataset=data["train"],
    ...     eval_dataset=data["validation"],
    ...     processing_class=processor,
    ... )
    >>> trainer.train().global_step  # doctest: +ELLIPSIS
    {'train_runtime': ...}
    1
    >>> folder.cleanup()

    ```
    """

    _tag_names = [*SegSFTTrainer._tag_names[:-1], "grpo"]
    _name = "SegGRPO"
    _stage = "reinforcement learning on masks"
    _trainable = "head"
    _plans = True
    _watched = "rewards/{}/mean"
    _logged_weight = "reward_weights/{}"

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: SegGRPOConfig | None = None,
        data_collator: SegCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: RowSets | None = None,
        processing_class: Sa2VAProcessor | None = None,
        reward_funcs: Callable[..., list[float]] | None = None,
        scores: pd.DataFrame | str | os.PathLike | None = None,
        **kwargs: Any,
    ):
        if args is None:
            args = SegGRPOConfig("sa2va-grpo")
        if not isinstance(args, SegGRPOConfig):
            raise TypeError(f"args must be a SegGRPOConfig, got {type(args).__name__}.")
        if not isinstance(train_dataset, Dataset):
            raise TypeError(
                f"train_dataset must be a datasets.Dataset, got {type(train_dataset).__name__}: what is drawn for a "
                "row depends on its number, which a stream has not."
            )
        if isinstance(reward_funcs, list | tuple):
            if len(reward_funcs) != 1:
                raise TypeError(
                    "reward_funcs takes one function: add several up in one, or give args.reward weights by name."
                )
            (reward_funcs,) = reward_funcs
        if reward_funcs is not None and args.reward != "default":
            raise ValueError("Give either reward_funcs or args.reward: both say what masks are worth.")
        if scores is not None and args.sample_by == "uniform":
            raise ValueError("scores have no effect with sample_by=uniform: use spread or hardness.")
        if scores is None and args.sample_by != "uniform":
            raise ValueError(
                f"sample_by={args.sample_by} needs scores of the training rows, which sa2va-trl mine_hard_samples "
                "makes."
            )
        self._given_scores, self._left_out, self._reward_weights = scores, 0, {}
        self._reward = get_reward(args.reward if reward_funcs is None else reward_funcs)
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if args.beta and not isinstance(self.model, PeftModel):
            raise ValueError(
                "beta needs an adapter that can be switched off for the reference: trainable=head has one."
            )
        dropping = [name for name, own in self.model.named_modules() if isinstance(own, nn.Dropout) and own.p]
        if dropping := [name for name in dropping if "lora_dropout" in name]:
            raise ValueError(
                f"{dropping[0]} drops units: a ratio is of one network, so that LoRA must have a dropout of 0."
            )
        self.data_collator = WithRowNumbers(self.data_collator)
        self.scorer = GroupScorer(self._reward, args.reward_workers)
        if args.rank_history:
            self.add_callback(RankHistory(args.rank_history))
        # What PPO learns beside the model, if anything; no part of it.
        self.actor_critic = None
        if args.learn_noise or args.advantage == "value":
            self.actor_critic = ActorCritic(
                self.model.config.grounding_config.hidden_dim,
                args.embedding_noise if args.learn_noise else None,
                args.advantage == "value",
                args.ppo_learning_rate,
                args.seed,
            ).to(self.accelerator.device)
            self.add_callback(UpdateActorCritic(self))
        self._columns = self.train_dataset.with_format(None).select_columns(
            [name for name, feature in self.train_dataset.features.items() if _is_plain(feature)]
        )
        # Whether all passes of a step see the same features.
        self._shared_encoding = not any(parameter.requires_grad for _, parameter in before_the_cut(self.model))
        self._rolled_out_at, self._kept, self._sheet = (None, 0), [], None
        # The set of rollouts that last had any spread, and whether it has been said that there is none.
        self._spread_at, self._told_of_spread = None, False
        self.add_callback(EpochToSampler(self))
        if self._left_out:
            rows = len(self.train_dataset)
            self._tell(f"max_samples: training has {rows} rows; {self._left_out} are left out.", shown=True)

    def prepare_run(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: SegGRPOConfig,
        data_collator: SegCollator | None,
        train_dataset: Dataset,
        *rest: Any,
    ) -> dict[str, Any]:
        prepared = super().prepare_run(model, args, data_collator, train_dataset, *rest)
        rows, scores, weights = prepared["train_dataset"], self._given_scores, None
        if scores is not None:
            scores = mining.scores_for(scores, prepared["model"], prepared["processing_class"], train_dataset)
            weights = sampling_weights(match_scores(scores, rows), args.sample_by)
        if args.max_samples is not None:
            kept = choose_rows(weights, len(rows), args.max_samples, args.data_seed)
            self._left_out = len(rows) - len(kept)
            prepared["train_dataset"] = rows.select(kept)
            weights = None if weights is None else weights[kept]
        if weights is not None:
            self.row_weights = capped(weights, WEIGHT_CAP)
        return prepared

    def run_record(self) -> dict:
        """As of any mask trainer, with what else decides which rows come in which order."""
        record, weights = super().run_record(), self.row_weights
        drawn = None if weights is None else hashlib.sha256(weights.tobytes()).hexdigest()
        own = {name: getattr(self.args, name) for name in RECORDED}
        own["reward"] = json.dumps(component_weights(self._reward)) + checked(self._reward).__name__
        return {**record, "options": {**record["options"], **own, "scores": drawn}}

    # Rows: every update's again and again, while its rollouts last

    def plan(self, epoch: int) -> list[int]:
        """
        The rows of an epoch in their order: those of each update `num_iterations` times, the last one filled up from
        the beginning of the epoch.

        Args:
            epoch (`int`): its number.
        """
        order = super().plan(epoch)
        times, update = self.args.num_iterations, self.get_total_train_batch_size(self.args)
        if times == 1:
            return order
        chunks = [order[start : start + update] for start in range(0, len(order), update)]
        while len(chunks[-1]) < update:
            chunks[-1] += order[: update - len(chunks[-1])]
        return [row for chunk in chunks for row in times * chunk]

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        self._rolled_out_at, self._kept = (None, 0), []
        self._spread_at, self._told_of_spread, self._sheet = None, False, None
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.scorer.close()

    def _save_checkpoint(self, model, trial):
        if self.actor_critic is not None and self.args.should_save:
            self.actor_critic.save(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _check_checkpoint(self, checkpoint: str) -> None:
        super()._check_checkpoint(checkpoint)
        step, times = (
            TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step,
            self.args.num_iterations,
        )
        if step % times:
            raise ValueError(
                f"{checkpoint} was saved after step {step}, in the middle of rollouts that last for "
                f"num_iterations={times} steps and are gone: resume an earlier one."
            )
        if self.actor_critic is not None:
            self.actor_critic.load(checkpoint)
        elif (Path(checkpoint) / STATE).exists():
            raise ValueError(f"{checkpoint} was begun with learn_noise=True or advantage=value: resume it with those.")

    # Weights of the reward that follow its parts

    def check_component(self, name: str) -> None:
        """
        Raises:
            `ValueError`: the reward has no such part with a weight of its own.
        """
        weights = component_weights(self._reward)
        if name not in weights:
            raise ValueError(
                f"adaptive_weights: {name!r} is no part of the reward with a weight; there are "
                f"{', '.join(weights) or 'none: give reward as weights'}."
            )

    def component_weight(self, name: str) -> float:
        """The present weight of a part of the reward, as it was given."""
        return self._reward_weights.get(name, component_weights(self._reward)[name])

    def set_component_weight(self, name: str, weight: float) -> None:
        """Give a part of the reward another weight, from the next rollouts on."""
        self._reward_weights[name] = weight
        self.scorer.close()
        self.scorer = GroupScorer(with_weights(self._reward, self._reward_weights), self.args.reward_workers)

    def may_adapt(self) -> bool:
        """Between sets of rollouts."""
        return self.state.global_step % self.args.num_iterations == 0

    # Rollouts

    def _roll_out(
        self, model: nn.Module, inputs: dict[str, Any], numbers: torch.Tensor
    ) -> tuple[Rollouts, SegFeatures | None]:
        """New rollouts and what they are of, or those of this micro-batch while they last."""
        args, step = self.args, self.state.global_step
        # (The last update of an epoch may have fewer micro-batches.)
        before, micro = self._rolled_out_at
        micro = micro + 1 if before == step else 0
        self._rolled_out_at = step, micro
        if step % args.num_iterations:
            return self._kept[micro], inputs.get("features")
        if micro == 0:
            self._kept = []
        features = inputs.get("features")
        given = {name: value for name, value in inputs.items() if name not in TARGETS}
        with torch.no_grad(), disable_gradient_checkpointing(self.model, args.gradient_checkpointing_kwargs):
            if features is None:
                features = model(**given, encode_only=True).features
            sampler = args.sampler(1 - (1 - args.noise_end) * step / max(self.state.max_steps - 1, 1))
            if args.learn_noise:
                sampler = replace(sampler, embedding_noise=self.actor_critic.noise)
            rows = numbers.tolist()
            columns = {row: self._columns[rows[row]] | {"trainer_state": self.state} for row in range(len(rows))}
            columns = [columns[row] for row in features.row_index.tolist()]
            targets = [mask for group in inputs["original_masks"] for mask in group]
            history = self.restored(RankHistory) if args.rank_history else None
            found = roll_out(
                model,
                features,
                sampler,
                mask_generators(args.seed, step, rows, features.row_index),
                targets,
                columns,
                self.scorer,
                history.ranks if history else None,
                args.advantage,
                args.scale_rewards,
                args.credit_cells if args.credit == "local" and args.decoder_weight else None,
                self.actor_critic.values if args.advantage == "value" else None,
            )
        if args.num_iterations > 1:
            self._kept.append(found)
        if history is not None:
            history.of_step += found.rewards.flatten().tolist()
        self._record_rollouts(found)
        # (With `num_iterations` not every step has rollouts, and not every micro-batch a mask.)
        due = None if args.rollout_steps is None else step // args.rollout_steps
        if due != self._sheet and targets and self.is_world_process_zero():
            names = [row["sample_id"] for row in columns]
            save_rollouts(Path(args.output_dir) / "rollouts", step, found, names)
            self._sheet = due
        return found, features

    def record_of_masks(self, count: int, **means: torch.Tensor) -> dict[str, float]:
        """
        Log means over masks: every one counts alike, whichever process and micro-batch it is in, and rows without any
        do not count. All processes call it together.

        Args:
            count (`int`): masks of this process.
            means (`torch.Tensor` of shape `()`): over them, by name; with no mask anything.

        Returns:
            `dict[str, float]`: over the masks of all processes; empty where there are none.
        """
        local = torch.stack([torch.ones_like(next(iter(means.values()))), *means.values()]).detach().float() * count
        total, *sums = self.accelerator.reduce(local.nan_to_num() if count == 0 else local, reduction="sum").tolist()
        found = {name: value / total for name, value in zip(means, sums, strict=True)} if total else {}
        for name, value in found.items():
            self._metrics["train"][name].extend(round(total) * [value])  # each counts as much as it has masks
            self.watch(name, value, round(total))
        return found

    def _record_rollouts(self, found: Rollouts) -> None:
        means, now = self.record_of_masks(len(found.rewards), **rollout_means(found)), self._rollout_set()
        self._spread_at = now - 1 if self._spread_at is None else self._spread_at
        if means and means["frac_reward_zero_std"] < 1:  # of all processes
            self._spread_at, self._told_of_spread = now, False
        elif now - self._spread_at >= self.args.skip_patience and len(found.rewards) and not self._told_of_spread:
            self._told_of_spread = True
            what = "steps" if self.args.num_iterations == 1 else "sets of rollouts"
            self._tell(
                f"No group of the last {self.args.skip_patience} {what} had any spread of rewards, so that nothing is "
                f"learned from them: {why_no_spread(found, self.args.policy)}.",
                logging.WARNING,
            )

    def _rollout_set(self) -> int:
        return self.state.global_step // self.args.num_iterations

    # Losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Sa2VAOutput]:
        numbers = inputs.pop("row_numbers", None)
        if numbers is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        args, (found, features) = self.args, self._roll_out(model, inputs, numbers)
        given = {name: value for name, value in inputs.items() if name not in TARGETS}
        if self._shared_encoding and features is not None:
            given = {"features": features}
        elif "features" not in given:
            given["logits_to_keep"] = 1  # nothing is learned from them
        outputs = model(**given, output_candidates=True)
        # As in `mask_losses`, every row of a micro-batch counts alike.
        share = losses.mask_shares(outputs.row_index, len(inputs["original_masks"]))
        # (The sum of all logits and embeddings keeps every rank's backward pass the same, with or without masks.)
        loss = 0.0 * (outputs.mask_logits.sum() + outputs.prompts.sum())
        record, learns = {}, self.state.global_step >= args.critic_warmup
        if args.policy != "field":
            each, clipped = self._policy_loss(outputs.prompts, self._std(found).detach(), found)
            record["policy_loss"] = (each * share).sum()
            self.record_of_masks(len(each), **clipped)
            loss = loss + learns * record["policy_loss"]
        if args.decoder_weight:
            credit = spread_over(found.credit, outputs.mask_logits.shape[-2:])
            each = losses.region_surrogate(outputs.mask_logits, found.candidates, found.greedy, credit).mean(1)
            record["decoder_loss"] = (each * share).sum()
            loss = loss + learns * args.decoder_weight * record["decoder_loss"]
        if args.beta:
            record["kl"] = (self._divergence(model, given, outputs, found) * share).sum()
            loss = loss + args.beta * record["kl"]
        if args.sft_weight:
            supervised = self.mask_losses(outputs, inputs)
            record |= supervised
            loss = loss + args.sft_weight * self._weighted(supervised)
        if self.actor_critic is not None:
            record |= self._learn_beside(outputs.prompts.detach(), found, share)
        self.record(**record)
        return (loss, outputs) if return_outputs else loss

    def _std(self, found: Rollouts) -> torch.Tensor:
        """The policy's present deviation by mask: as the masks were drawn with, unless it has been learned since."""
        if not self.args.learn_noise:
            return found.embedding_std
        return self.actor_critic.std(found.embedding_std, found.noise)

    def _policy_loss(
        self, prompts: torch.Tensor, std: torch.Tensor, found: Rollouts
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        log_prob = gaussian_log_prob(found.embeddings, prompts, std)
        ratio, gains = log_prob - found.log_prob, found.advantages[:, : log_prob.shape[1]]
        bounds = (self.args.epsilon, self.args.epsilon_high)
        each = losses.clipped_surrogate(ratio, gains, *bounds)
        low, high = losses.clip_fractions(ratio, gains, *bounds)
        clipped = {"low_mean": low, "high_mean": high, "region_mean": low + high}
        return each.mean(1), {f"clip_ratio/{name}": value for name, value in clipped.items()}

    def _learn_beside(
        self, prompts: torch.Tensor, found: Rollouts, share: torch.Tensor
    ) -> dict[str, torch.Tensor | float]:
        """
        Gather the gradients of the learned noise and of the value head. They have a backward pass of their own, of
        embeddings without a gradient: the surrogate's two partial derivatives are the same taken apart.
        """
        record, own = {}, 0.0
        if self.args.learn_noise:
            record["embedding_noise"] = self.actor_critic.log_noise.detach().exp()
            each, _ = self._policy_loss(prompts, self._std(found), found)
            own = own + (self.state.global_step >= self.args.critic_warmup) * (each * share).sum()
        if self.args.advantage == "value":
            each = losses.value_loss(self.actor_critic.values(prompts), found.ranked)
            record["value_loss"] = (each * share).sum()
            own = own + record["value_loss"]
        (own / self.current_gradient_accumulation_steps).backward()
        return record

    def _divergence(self, model, given, outputs, found: Rollouts) -> torch.Tensor:
        """
        From the model without its adapter, by mask: of the embedding by coordinate, of the mask by pixel. Both draw
        with the same noise, so that it has no pull on one that is learned.
        """
        adapted = self.accelerator.unwrap_model(self.model)
        checkpointing = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
        with torch.no_grad(), checkpointing, use_adapter(adapted, adapter_name=None):
            base = model(**given, output_candidates=True)
        kl = losses.bernoulli_kl(outputs.mask_logits, base.mask_logits)
        if self.args.policy != "field":
            of_embedding = losses.gaussian_kl(outputs.prompts, base.prompts, self._std(found).detach())
            kl = kl + of_embedding / outputs.prompts.shape[-1]
        return kl
