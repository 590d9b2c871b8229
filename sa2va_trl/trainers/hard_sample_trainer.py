"""Supervised fine-tuning on hard samples, which the trainer draws and may score again."""

import logging
import math
import os
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from .. import losses, mining
from ..data.collator import SegCollator
from ..mask_logits import mask_probabilities, resize_mask_logits
from ..mining.hardness import what_is_hard
from ..models import Sa2VAProcessor
from ..models.outputs import Sa2VAOutput
from ..questions import QUESTIONS
from .base_trainer import RowSets
from .callbacks import Guide, _Progress
from .checkpoints_to_resume import read_state, resolve_checkpoint
from .epoch_plan import check_columns, check_marks, match_scores, plan_epoch, row_weights, select_rows
from .hard_sample_config import HardSampleConfig
from .numbered import EpochSampler, WithRowNumbers
from .run_record import check_same_rows
from .sft_trainer import SegSFTTrainer


# What a resumed run cannot change: its rows have been chosen, and it is in the middle of a plan.
FIXED = ("hard_below", "worst", "include_review", "difficulty", "weight_cap", "easy_share", "curriculum")


class HardSampleTrainer(SegSFTTrainer):
    """
    Supervised fine-tuning on hard samples, with a share of ordinary ones in every epoch.

    Every row of the training set has a Dice, of the model that training starts from. Those below `args.hard_below` (or
    the worst share; without either, what mining has decided) are hard. An epoch holds them once and as many ordinary
    rows as `args.easy_share` asks for, rounded up to whole updates, and keeps that length when `args.remine_every`
    scores the rows again. Its order is a pure function of scores, options, seed and epoch: processes, resumed and
    repeated runs all see the same rows.

    Logged: the losses of [`SegSFTTrainer`], `masks/dice_hard` and `masks/dice_easy` (Dice of the drawn masks on the
    grid of the loss), and from every evaluation `eval_dice_hard` and `eval_dice_easy`, where evaluation rows are told
    apart, once, by the Dice that the starting model reaches on them.

    Args:
        model (`str`, `Sa2VAForConditionalGeneration` or `PeftModel`): what to train.
        args (`HardSampleConfig`): options.
        scores (`pandas.DataFrame` or path, *optional*):
            One row a training row with masks: `sample_id`, `dice` and, where an option needs them, `spread`,
            `cluster`, `thickness` and `review`; those of [`~mining.selection.mine`] say what is hard where `args` do
            not. Without them the trainer scores the rows itself before it starts.
        train_dataset (`datasets.Dataset`): rows as in [`~data.checks.check_dataset`]; those without masks are left
            out.
        data_collator, eval_dataset, processing_class, compute_metrics, callbacks, optimizers,
        optimizer_cls_and_kwargs, quantization_config, peft_config, mask_metrics: as in [`SegSFTTrainer`].

    Raises:
        `DatasetError`: bad rows, all at once, splits that share something, or scores of other rows.
        `ValueError`: options that contradict each other, lack a column of the scores, or select nothing or everything.
        `TypeError`: a config of another trainer, or a stream to train on.

    Example:

    ```python
    >>> import tempfile

    >>> import pandas as pd
    >>> from sa2va_trl import HardSampleConfig, HardSampleTrainer, tiny_sa2va
    >>> from sa2va_trl.data import synthetic_splits

    >>> model, processor = tiny_sa2va(image_size=64)
    >>> data = synthetic_splits(1, 1, 1, frames_per_video=4, size=64)
    >>> scores = pd.DataFrame({"sample_id": data["train"]["sample_id"], "dice": [0.8, 0.5, 0.9, 0.7]})
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = HardSampleTrainer(
    ...     model=model,
    ...     args=HardSampleConfig(
    ...         folder.name,
    ...         worst=0.5,
    ...         max_steps=1,
    ...         cache_dir=folder.name,
    ...         use_cpu=True,
    ...         report_to="none",
    ...         logging_strategy="no",
    ...     ),
    ...     scores=scores,
    ...     train_dataset=data["train"],
    ...     eval_dataset=data["validation"],
    ...     processing_class=processor,
    ... )
    >>> trainer.progress.hard
    [1, 3]
    >>> trainer.train().global_step  # doctest: +ELLIPSIS
    {'train_runtime': ...}
    1
    >>> folder.cleanup()

    ```
    """

    _tag_names = [*SegSFTTrainer._tag_names[:-1], "hard-samples"]
    _name = "HardSample"
    _stage = "training on hard samples"
    _further_metrics = ("dice_hard", "dice_easy")
    _trainable = "head"
    _plans = True

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: HardSampleConfig | None = None,
        data_collator: SegCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: RowSets | None = None,
        processing_class: Sa2VAProcessor | None = None,
        scores: pd.DataFrame | str | os.PathLike | None = None,
        **kwargs: Any,
    ):
        if args is None:
            args = HardSampleConfig("sa2va-hard-sample")
        if not isinstance(args, HardSampleConfig):
            raise TypeError(f"args must be a HardSampleConfig, got {type(args).__name__}.")
        if not isinstance(train_dataset, Dataset):
            raise TypeError(
                f"train_dataset must be a datasets.Dataset, got {type(train_dataset).__name__}: hard samples are "
                "drawn by number, which a stream has not."
            )
        self._given_scores = scores
        # What was hard when they were mined.
        self._recorded = None
        self._evaluates_training = scores is None or args.remine_every is not None
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if args.eval_strategy != "no" and args.easy_regression == "stop" and eval_dataset is None:
            raise ValueError("easy_regression=stop needs an eval_dataset to watch.")
        self.data_collator = WithRowNumbers(self.data_collator)
        self.add_callback(_Progress())
        self.add_callback(Guide(self))
        if self._given_scores is not None:
            self._adopt(self._given_scores, epoch=0)

    # Scores

    @property
    def progress(self) -> _Progress:
        """What a resumed run goes on with: the scores, which rows are hard, and when they were found to be."""
        return self.restored(_Progress)

    def prepare_run(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: HardSampleConfig,
        data_collator: SegCollator | None,
        train_dataset: Dataset,
        *rest: Any,
    ) -> dict[str, Any]:
        prepared = super().prepare_run(model, args, data_collator, train_dataset, *rest)
        if self._given_scores is not None:
            scores = mining.scores_for(
                self._given_scores, prepared["model"], prepared["processing_class"], train_dataset
            )
            self._recorded = mining.decided(scores)
            check_marks(args, self._recorded)
            self._given_scores = match_scores(scores, prepared["train_dataset"])
            check_columns(self._given_scores, args)
        return prepared

    def score(self) -> pd.DataFrame:
        """
        Score the training rows with the present model, see [`~mining.score_dataset`], and mark runs of hard frames and
        rows for review. All processes call it together.

        Returns:
            `pandas.DataFrame`: one row a training row with masks, as [`~mining.mine`] leaves it.

        Raises:
            `ValueError`: DeepSpeed holds the weights and training has not begun.
            `MiningError`: no row, or every row, is hard.
        """
        if self.is_deepspeed_enabled and not self.is_in_train:
            raise ValueError("With DeepSpeed, give the trainer scores: `sa2va-trl mine_hard_samples` makes them.")
        # Under mixed precision the model computes as it does in training only once Trainer has wrapped it.
        if self.features is not None and not self._features_ready and self._feature_dtypes == (None, None):
            self.build_features()
        ready = self.features is not None and self._features_ready
        # Not Trainer's evaluation: a model that was evaluated before it trained is not wrapped for DDP any more, and
        # trains without its gradients being averaged.
        with self.compute_loss_context_manager():
            scores = mining.score_dataset(
                self.model_wrapped,
                self.processing_class,
                self.train_dataset,
                batch_size=self.args.per_device_eval_batch_size,
                features=(self.features, self._keys[self.train_dataset._fingerprint]) if ready else None,
                threshold=self.model.config.mask_threshold,
                progress=not self.args.disable_tqdm,
                question=(self.args.question_templates or QUESTIONS)[0],  # that of its features
            )
        return mining.mine(scores, **self._what_is_hard())

    def _what_is_hard(self) -> dict:
        return what_is_hard(self.args.hard_below, self.args.worst, self._recorded)

    def _decision(self) -> str:
        """What is hard and who has decided it, in words."""
        ((name, value),) = self._what_is_hard().items()
        words = f"Dice below {value:g}" if name == "hard_below" else f"the worst {value:.0%}"
        if self.args.hard_below is None and self.args.worst is None:
            words += ", as the scores say" if self._recorded else ", the default"
        return words

    def _fixed(self) -> dict:
        """What a resumed run cannot change, as it is here."""
        options = {name: getattr(self.args, name) for name in FIXED}
        return options | {"hard_below": None, "worst": None} | self._what_is_hard()

    def _score_again(self) -> pd.DataFrame:
        """The present scores, with what the present model changes of them."""
        scores, difficulty = pd.DataFrame(self.progress.columns), self.args.difficulty
        if difficulty == "spread":
            return scores.assign(**match_scores(self.score(), self.train_dataset)[["dice", "spread"]])
        # The model's own masks are all that is needed, which evaluation draws.
        values = self.predict(self.train_dataset, metric_key_prefix="mining").predictions
        self._metrics["eval"].clear()
        scores["dice"] = np.asarray(values, dtype=float)[:, 0]
        if difficulty == "cluster":
            names = ("sample_id", "video_id", "frame_index")
            rows = self.train_dataset.select_columns([name for name in names if name in self.train_dataset.features])
            rows = rows.to_pandas().assign(dice=scores["dice"])
            scores["cluster"] = mining.mark_clusters(rows, mining.hard_limit(rows, **self._what_is_hard()))
        return scores

    def _adopt(self, scores: pd.DataFrame, epoch: int) -> None:
        """Take scores for the plans from `epoch` on."""
        args, progress = self.args, self.progress
        hard, ordinary = select_rows(scores, **self._what_is_hard(), include_review=args.include_review)
        row_weights(scores[hard], args.difficulty, args.weight_cap)  # raises before anything is taken over
        progress.digest = self._rows_digest()["digest"]
        progress.options = self._fixed()
        if "cluster" in scores:  # numbers: their names are those of videos, and checkpoints are pushed
            scores = scores.assign(cluster=pd.Series(pd.factorize(scores["cluster"])[0]).replace(-1, None).to_numpy())
        progress.columns = {
            name: scores[name].astype(object).where(scores[name].notna(), None).tolist() for name in scores
        }
        progress.hard, progress.ordinary = np.flatnonzero(hard).tolist(), np.flatnonzero(ordinary).tolist()
        progress.mined_at = epoch
        if progress.length is None:
            update = self.get_total_train_batch_size(args)
            progress.length = update * math.ceil(len(progress.hard) / (1 - args.easy_share) / update)
        easy = round(args.easy_share * progress.length)
        self._tell(
            f"Hard samples: {len(progress.hard)} of {len(scores)} rows are hard ({self._decision()}), "
            f"{len(progress.ordinary)} ordinary. "
            f"An epoch: {progress.length} rows, {progress.length - easy} hard and {easy} ordinary."
        )

    def _plan(self, epoch: int) -> list[int]:
        args, progress = self.args, self.progress
        scores = pd.DataFrame(progress.columns)
        masks = np.zeros((2, len(scores)), dtype=bool)
        for mask, numbers in zip(masks, (progress.hard, progress.ordinary), strict=True):
            mask[numbers] = True
        options = {name: getattr(args, name) for name in ("difficulty", "weight_cap", "easy_share", "curriculum")}
        return plan_epoch(scores, *masks, progress.length, epoch, args.data_seed, **options)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        resume_from_checkpoint = resolve_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if resume_from_checkpoint is None and self.progress.columns is None:
            self._tell("Hard samples: no scores were given; the training rows are scored first.")
            scores = match_scores(self.score(), self.train_dataset)
            check_columns(scores, self.args)
            self._adopt(scores, epoch=0)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def finished(self, checkpoint: str) -> str | None:
        self._restore(checkpoint)
        return super().finished(checkpoint)

    def _restore(self, checkpoint: str) -> None:
        state = read_state(checkpoint)
        if _Progress.__name__ not in state.stateful_callbacks:
            raise ValueError(f"resume_from_checkpoint={checkpoint!r} is no checkpoint of training on hard samples.")
        for name, value in state.stateful_callbacks[_Progress.__name__]["attributes"].items():
            setattr(self.progress, name, value)
        saved = {"count": len(self.progress.columns["dice"]), "digest": self.progress.digest}
        check_same_rows(checkpoint, saved, self._rows_digest())
        began = self.progress.options
        if "threshold" in began:  # of an earlier version, which had it beside `worst` too
            limit = began.pop("threshold")
            began["hard_below"] = limit if began["worst"] is None else None
        if self._given_scores is None:  # those of the checkpoint say it
            self._recorded = {name: began[name] for name in ("hard_below", "worst") if began[name] is not None}
        own = self._fixed()
        changed = [f"{name}={began[name]}" for name in FIXED if began[name] != own[name]]
        if changed:
            raise ValueError(f"{checkpoint} was begun with {', '.join(changed)}: resume it with the same options.")

    def begin_epoch(self, epoch: int) -> None:
        """Score the rows again where it is time to, and set the sampler to an epoch."""
        every, progress = self.args.remine_every, self.progress
        if every is not None and epoch and epoch % every == 0 and progress.mined_at != epoch:
            try:
                self._adopt(self._score_again(), epoch)
            except mining.MiningError as error:
                progress.mined_at = epoch
                self._tell(f"Hard samples: those of before stay. {error}", logging.WARNING)
        self._sampler.epoch = epoch

    def setup_plan(self) -> None:
        """Nothing: here a curriculum is the order of an epoch's hard rows."""

    def make_sampler(self) -> EpochSampler:
        return EpochSampler(self.progress.length, self._plan)

    # Hard and easy apart

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Sa2VAOutput]:
        numbers = inputs.pop("row_numbers", None)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if numbers is not None:
            self._record_rows(outputs, inputs["masks"], numbers)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _record_rows(self, outputs, masks, numbers) -> None:
        logits = resize_mask_logits(outputs.mask_logits, masks.shape[-2:])
        config = self.accelerator.unwrap_model(self.model).config
        drawn = mask_probabilities(logits, config.mask_temperature) > config.mask_threshold
        dice = losses.soft_dice(drawn.float(), masks)
        rows = outputs.row_index
        sums = dice.new_zeros(len(numbers)).index_add(0, rows, dice)
        dice = sums / torch.bincount(rows, minlength=len(numbers)).clamp(min=1)
        is_hard = torch.isin(numbers, torch.tensor(self.progress.hard, device=numbers.device))
        # Row by row, so that the logged mean is over rows, whatever the batches.
        for value, flag in self.accelerator.gather(torch.stack([dice, is_hard.float()], 1)).tolist():
            self._metrics["train"]["masks/dice_hard" if flag else "masks/dice_easy"].append(value)

    def evaluate_start(self) -> None:
        """Evaluate the model that training starts from, unless that has been done or is to be done by Trainer."""
        args = self.args
        if args.eval_strategy == "no" or args.eval_on_start or self.eval_dataset is None or self.progress.start:
            return
        if self.state.global_step == 0:
            self.evaluate()

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        # Points that losses are computed on are drawn at random, and a resumed run does not evaluate or mine again.
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
            )
        if not (self.is_in_train and metric_key_prefix.startswith("eval")) or output.predictions is None:
            return output
        dice = np.asarray(output.predictions, dtype=float)[:, 0]
        progress = self.progress
        if metric_key_prefix not in progress.start:
            progress.start[metric_key_prefix] = [None if np.isnan(value) else value for value in dice.tolist()]
        for name, rows in self._eval_parts(metric_key_prefix).items():
            if rows.any():
                output.metrics[f"{metric_key_prefix}_dice_{name}"] = float(dice[rows].mean())
        return output

    def _eval_parts(self, prefix: str) -> dict[str, np.ndarray]:
        start = np.array(self.progress.start[prefix], dtype=float)
        known = ~np.isnan(start)
        hard = self._what_is_hard()
        limit = hard.get("hard_below", mining.HARD_BELOW)
        if "worst" in hard and known.any():
            limit = np.quantile(start[known], hard["worst"])
        return {"hard": known & (start < limit), "easy": known & ~(start < limit)}

    def easy_has_regressed(self, metrics: dict) -> bool:
        """
        Compare the easy evaluation rows with what they were at the start, and say so where they got worse.

        Args:
            metrics (`dict`): of an evaluation, by their names with its prefix.

        Returns:
            `bool`: whether they are worse by more than `easy_margin`.
        """
        if self.args.easy_regression == "ignore":
            return False
        worse = False
        for prefix, start in self.progress.start.items():
            now = metrics.get(f"{prefix}_dice_easy")
            if now is None:
                continue
            before = float(np.array(start, dtype=float)[self._eval_parts(prefix)["easy"]].mean())
            if before - now > self.args.easy_margin:
                worse = True
                self._tell(
                    f"{prefix}_dice_easy fell from {before:.4f} at the start to {now:.4f}, by more than "
                    f"easy_margin={self.args.easy_margin}: training on hard samples costs ordinary ones. Raise "
                    "easy_share or lower learning_rate."
                    + (" Training stops." if self.args.easy_regression == "stop" else ""),
                    logging.WARNING,
                )
        return worse
