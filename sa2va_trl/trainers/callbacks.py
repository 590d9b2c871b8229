"""What the mask trainers do at the beginning of training and of an epoch."""

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..data.collator import SegCollator
from .hard_sample_config import _never


class _EpochToCollator(TrainerCallback):
    def __init__(self, collator: SegCollator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        # The epoch is a float that has just reached the next whole number.
        self.collator.epoch = int((state.epoch or 0) + 1e-6)


class _BuildFeatures(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    # Not earlier: DeepSpeed and mixed precision have wrapped the model, and a resumed run has its weights.
    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.build_features()


class _Progress(TrainerCallback, ExportableState):
    """
    What a resumed run needs to go on alike; it becomes a part of `trainer_state.json`.

    Args:
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


class _Guide(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if args.remine_every is not None and args.remine_every >= state.num_train_epochs:
            raise ValueError(_never(args.remine_every, state.num_train_epochs))
        self.trainer.evaluate_start()

    def on_epoch_begin(self, args, state, control, **kwargs):
        # The epoch is a float that has just reached the next whole number.
        self.trainer.begin_epoch(int((state.epoch or 0) + 1e-6))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self.trainer.easy_has_regressed(metrics or {}) and args.easy_regression == "stop":
            control.should_training_stop = True
