"""Epochs whose rows a mask trainer chooses, in place of a random order of all of them."""

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler

from .callbacks import EpochToSampler
from .numbered import EpochSampler
from .row_sampling import STAGES, drawn_rows, mask_widths, stage_of, stage_weights, width_classes


class PlanningMixin:
    """
    How a mask trainer draws the rows of an epoch: at random, by weights, by the stages of a curriculum. A plan is a
    pure function of rows, options, seed and epoch: processes, resumed and repeated runs all see the same rows.

    Of the trainer it needs what `Trainer` has, a config with `curriculum` and `data_seed`, `_tell`, and a call to
    [`~PlanningMixin.setup_plan`] at the end of its constructor.
    """

    # Whether the trainer always has plans, and a callback that begins their epochs.
    _plans = False
    # How often each training row is drawn, relative to the others; all alike without.
    row_weights: np.ndarray | None = None
    # Positions in `STAGES`, with `curriculum="thickness"`.
    _classes: np.ndarray | None = None
    _sampler = _loader = _told = None

    def setup_plan(self) -> None:
        """
        Measure what a curriculum needs.

        Raises:
            `TypeError`: a stream, whose rows cannot be drawn.
            `ValueError`: all rows that are drawn are of one class.
        """
        if self.args.curriculum != "thickness":
            return
        if not isinstance(self.train_dataset, Dataset):
            raise TypeError(
                f"curriculum=thickness needs a datasets.Dataset, got {type(self.train_dataset).__name__}: the rows "
                "of a stream cannot be drawn."
            )
        classes, weights = width_classes(mask_widths(self.train_dataset)), self.row_weights
        # (A class of which no row is drawn has no turn.)
        self._classes = classes if weights is None else np.where(weights > 0, classes, -1)
        # Raises where it has no effect. (With max_steps the epochs are known once training begins.)
        stage_of(0, len(STAGES) if self.args.max_steps > 0 else int(self.args.num_train_epochs), self._classes)
        counts = ", ".join(f"{(self._classes == number).sum()} {name}" for number, name in enumerate(STAGES))
        self._tell(
            f"Curriculum: {counts}, {(self._classes < 0).sum()} rows without a width"
            f"{'' if weights is None else ' or never drawn'}."
        )
        if not self._plans:
            self.add_callback(EpochToSampler(self))

    def plan(self, epoch: int) -> list[int]:
        """
        The rows of an epoch in their order.

        Args:
            epoch (`int`): its number.

        Raises:
            `ValueError`: the run has fewer epochs than the curriculum stages.
        """
        seed, weights, rows = self.args.data_seed, self.row_weights, len(self.train_dataset)
        if self._classes is not None:
            # (Known from the beginning of training on; till then only the length of a plan matters.)
            epochs = int(self.state.num_train_epochs) or len(STAGES)
            weights = stage_weights(self._classes, stage_of(epoch, epochs, self._classes), weights)
        if weights is not None:
            return drawn_rows(weights, rows, epoch, seed)
        return torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()

    def begin_epoch(self, epoch: int) -> None:
        """Set the sampler to an epoch."""
        self._sampler.epoch = epoch
        if self._classes is not None:
            stage = stage_of(epoch, int(self.state.num_train_epochs), self._classes)
            if stage != self._told:
                self._tell(f"Curriculum: {STAGES[stage]} vessels from epoch {epoch + 1} on.")
            self._told = stage

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if not (self._plans or self._classes is not None):
            return super()._get_train_sampler(train_dataset)
        self._sampler = self.make_sampler()
        return self._sampler

    def make_sampler(self) -> EpochSampler:
        """Of the training rows, by plan."""
        return EpochSampler(len(self.plan(0)), self.plan)

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`."""
        self._loader = super().get_train_dataloader()
        return self._loader

    def num_examples(self, dataloader: DataLoader) -> int:
        """As in `Trainer`; of a plan its rows."""
        planned = self._sampler is not None and dataloader is self._loader
        return len(self._sampler) if planned else super().num_examples(dataloader)
