"""What the mask trainers do when training or an epoch begins and, on hard samples, after an evaluation."""

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..data.collator import SegCollator
from ..processes import everywhere
from ..rewards import RankNormalizer
from .hard_sample_config import never_mined


class EpochToCollator(TrainerCallback):
    """Tells the collator of the training rows which epoch begins."""

    def __init__(self, collator: SegCollator):
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The epoch is a float that has just reached the next whole number.
        self.collator.epoch = int((state.epoch or 0) + 1e-6)


class EpochToSampler(TrainerCallback):
    """Tells a trainer that plans its epochs which one begins."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The epoch is a float that has just reached the next whole number.
        self.trainer.begin_epoch(int((state.epoch or 0) + 1e-6))


class BuildFeatures(TrainerCallback):
    """Has the features that are missing computed when training begins."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    # Not earlier: DeepSpeed and mixed precision have wrapped the model, and a resumed run has its weights.
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.build_features()


class UpdateActorCritic(TrainerCallback):
    """Has what a trainer learns beside its model take a step with it."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    # (Not those of a try of `auto_find_batch_size` that failed.)
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.critic_warmup >= state.max_steps:
            raise ValueError(f"critic_warmup={args.critic_warmup} leaves the policy none of {state.max_steps} steps.")
        self.trainer.actor_critic.zero_grad()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.actor_critic.update(self.trainer.accelerator)


class RankHistory(TrainerCallback, ExportableState):
    """
    The rewards that others become their rank among; it becomes a part of `trainer_state.json`. Those of a step are
    remembered at its end, from the least to the largest, so that nothing depends on how a step is divided among
    micro-batches and processes.

    Args:
        size (`int`): how many are remembered.

    Attributes:
        of_step (`list[float]`): rewards of this process since the last step.
    """

    def __init__(self, size: int):
        self.ranks, self.of_step = RankNormalizer(size), []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.ranks.remember(sorted(sum(everywhere(self.of_step), [])))
        self.of_step = []

    @property
    def values(self) -> list[float]:
        """The history, the eldest first."""
        return self.ranks.state_dict()["values"]

    @values.setter
    def values(self, values: list[float]) -> None:
        self.ranks.load_state_dict({"size": self.ranks.size, "values": values})

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"args": {"size": self.ranks.size}, "attributes": {"values": self.values}}


# Its name, underscore and all, is a key in the `trainer_state.json` of checkpoints.
class _Progress(TrainerCallback, ExportableState):
    """
    What a resumed run on hard samples needs to go on alike; it becomes a part of `trainer_state.json`.

    Attributes:
        digest (`str`): of the training rows' identifiers.
        options (`dict`): those of `FIXED`.
        columns (`dict[str, list]`): the present scores.
        mined_at (`int`): epoch of the present scores.
        hard, ordinary (`list[int]`): row numbers.
        length (`int`): rows of an epoch.
        start (`dict[str, list]`): Dice of the evaluation rows at the start, by prefix.
    """

    NAMES = ("digest", "options", "columns", "mined_at", "hard", "ordinary", "length", "start")

    def __init__(self):
        self.digest, self.options, self.columns, self.mined_at = None, None, None, 0
        self.hard, self.ordinary, self.length, self.start = [], [], None, {}

    def state(self) -> dict:
        return {"args": {}, "attributes": {name: getattr(self, name) for name in self.NAMES}}


class Guide(EpochToSampler):
    """Has a trainer on hard samples evaluate its start, plan its epochs and watch its ordinary rows."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.remine_every is not None and args.remine_every >= state.num_train_epochs:
            raise ValueError(never_mined(args.remine_every, state.num_train_epochs))
        self.trainer.evaluate_start()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.trainer.easy_has_regressed(metrics or {}) and args.easy_regression == "stop":
            control.should_training_stop = True
