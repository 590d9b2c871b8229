"""Features of what is frozen, computed once, in place of the images of a run."""

from typing import Any

import torch
from datasets import Dataset

from ..data.collator import SegCollator
from ..data.columns import IMAGE_COLUMNS, REGIONS
from ..features.decision import Rows, decide_features
from ..features.encoding import FeatureCollator, encoder
from ..features.fingerprint import before_the_cut, fingerprint, random_before_the_cut
from ..features.packed_masks import MASK_COLUMNS, PackedMasks, mask_keys, mask_prints, pack_masks
from ..features.rows import NumberedRows, View, feature_bytes, item_sizes, row_facts, view_key
from ..features.store import FeatureStore, features_folder
from .callbacks import BuildFeatures


class FrozenFeaturesMixin:
    """
    Whether a run reads features in place of images (`cache_features`), and computing those that are missing.

    Of the trainer it needs what `Trainer` has; a config with `cache_features`, `cache_dir` and `cache_views`; the
    collators `data_collator` and `eval_collator`; and `_tell`.
    """

    features: FeatureStore | None = None
    _features_ready = False
    # Of the rows of each set that has features, by its fingerprint.
    _keys: dict[str, list[str]] = {}
    # Of their masks.
    _mask_keys: dict[str, list[str]] = {}
    # Whether the training rows are evaluated, too: then they have features as they are, beside their augmented views.
    _evaluates_training = False

    def reasons_against_features(self) -> list[str]:
        """Why features cannot stand in for the pixels of this run; a trainer adds its own reasons."""
        reasons = []
        trained = [name for name, parameter in before_the_cut(self.model) if parameter.requires_grad]
        if trained:
            reasons.append(
                f"{len(trained)} weights before the mask head train, such as {trained[0]} (trainable=head trains none)"
            )
        if dropouts := random_before_the_cut(self.model):
            reasons.append(f"{len(dropouts)} dropout layers before the mask head, such as {dropouts[0]}")
        collator = self.data_collator
        if not isinstance(collator, SegCollator):
            reasons.append(f"the data_collator is a {type(collator).__name__} and not a SegCollator")
        else:
            if collator.augmentation is not None and collator.views is None:
                reasons.append("augmentation changes the images (cache_views takes a number of views of each)")
            for name, option in (("questions", "question_templates"), ("answers", "answer_templates")):
                own = list(getattr(collator, name))
                if len(own) > 1:
                    reasons.append(f"each epoch draws from {len(own)} {option}")
                elif own != list(getattr(self.eval_collator, name)):
                    reasons.append(f"training and evaluation have other {option}")
        for name, dataset in self._feature_datasets():
            if not isinstance(dataset, Dataset):
                reasons.append(f"{name} is a {type(dataset).__name__}, whose length is not known")
            elif dataset.format["type"] is not None:
                reasons.append(f"{name} has a transform, which may change the images")
        if self.is_fsdp_enabled:
            reasons.append("FSDP shards the model in a way that features are not tested with")
        return reasons

    def _feature_datasets(self) -> list[tuple[str, Dataset]]:
        parts = [("train_dataset", self.train_dataset)]
        if isinstance(self.eval_dataset, dict):
            parts += [(f"eval_dataset[{name}]", part) for name, part in self.eval_dataset.items()]
        else:
            parts.append(("eval_dataset", self.eval_dataset))
        return [(name, part) for name, part in parts if part is not None]

    def setup_features(self) -> None:
        """
        Call at the end of `__init__`: decide about `args.cache_features`, say so, and prepare data and collators.

        Raises:
            `ValueError`: `cache_features="on"` and something that needs the pixels.
            `FeatureError`: `cache_features="on"` and no room for them.
        """
        parts, keys = self._feature_datasets(), {}

        def find() -> Rows:
            question, answer = self.eval_collator.questions[0], self.eval_collator.answers[0]
            self._feature_rows, self._feature_sizes = {}, {}
            for name, dataset in parts:
                # Repeated rows stand one after the other, repetition by repetition.
                repeats = getattr(self.args, "dataset_repeats", 1) if name == "train_dataset" else 1
                once = dataset.select(range(len(dataset) // repeats))
                own = row_facts(once, question, answer)
                for index, row in enumerate(own):
                    self._feature_rows.setdefault(row.key, (dataset, index))
                    self._feature_sizes[row.key] = (row.images, row.segs)
                keys[name] = [row.key for row in own] * repeats
            if self.data_collator.augmentation is not None:
                self._add_views(keys)
            return Rows(self._open_features(), self._feature_rows, self._feature_need)

        why = "nothing before the mask head trains or varies and no language loss is asked for"
        decision = decide_features(self.args.cache_features, self.reasons_against_features, find, why=why)
        if decision.message is not None:
            self._tell(decision.message)
        if decision.rows is None:
            if self.args.cache_views is not None:
                self.data_collator.views = None  # then there is no reason for a few views only
            return

        self._keys = {dataset._fingerprint: keys[name] for name, dataset in parts}
        self._encoding_collator = self.eval_collator
        store = decision.rows.store
        self.features, self._features_ready = store, not decision.missing
        self._mask_keys = {dataset._fingerprint: self._masks_of(name, dataset) for name, dataset in parts}
        self.data_collator = self._from_stores(self.data_collator)
        self.eval_collator = self._from_stores(self.eval_collator)
        # (A trainer may wrap the first.)
        self._stored_collators = self.data_collator, self.eval_collator
        self.add_callback(BuildFeatures(self))

    def _masks_of(self, name: str, dataset: Dataset) -> list[str]:
        repeats = getattr(self.args, "dataset_repeats", 1) if name == "train_dataset" else 1
        return mask_keys(dataset.select(range(len(dataset) // repeats))) * repeats

    def _from_stores(self, collator: SegCollator) -> FeatureCollator:
        packed = PackedMasks(self.features.root, mask_prints(collator)).open()
        return FeatureCollator(collator, self.features, packed)

    def _add_views(self, keys: dict[str, list[str]]) -> None:
        """Views of the training rows, in place of the rows, are what training reads."""
        names = [name for name in keys if name != "train_dataset" or self._evaluates_training]
        evaluated = {key for name in names for key in keys[name]}
        rows = keys["train_dataset"]
        sizes = {key: self._feature_sizes[key] for key in rows}
        for key in sizes.keys() - evaluated:
            del self._feature_rows[key], self._feature_sizes[key]
        for number in range(self.data_collator.views):
            view = View(NumberedRows(self.train_dataset), self.data_collator, number)
            for index, key in enumerate(rows):
                seen = view_key(key, view.collator, index)
                self._feature_rows[seen], self._feature_sizes[seen] = (view, index), sizes[key]

    @property
    def _feature_dtypes(self) -> tuple[torch.dtype | None, str | None]:
        """What DeepSpeed casts weights to, and what mixed precision computes in."""
        kind = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else None
        if self.is_deepspeed_enabled:
            return getattr(torch, kind) if kind else None, None
        return None, kind

    def _open_features(self) -> FeatureStore:
        root = self.args.cache_dir or features_folder(self._feature_datasets()[0][1])
        dtype, autocast = self._feature_dtypes
        return FeatureStore(root, fingerprint(self.model, self.processing_class, dtype, autocast)).open()

    def _feature_need(self, keys) -> int:
        dtype, autocast = self._feature_dtypes
        sizes = (2, 2) if autocast or dtype else item_sizes(self.accelerator.unwrap_model(self.model))
        config = self.model.config
        return sum(feature_bytes(config, *self._feature_sizes[key], *sizes) for key in keys)

    def build_features(self) -> None:
        """
        Compute the features that are missing. All processes call it together, with a model that is ready to train.

        Raises:
            `FeatureError`: see [`~features.store.FeatureStore.build`].
        """
        dtype, autocast = self._feature_dtypes
        prints = fingerprint(self.model, self.processing_class, dtype, autocast)
        if prints != self.features.prints:  # other weights since, such as a resumed run's
            self.features.change(prints)
        self.features.build(
            self._feature_rows,
            encoder(self.model_wrapped, self._encoding_collator, self._prepare_inputs),
            self.args.per_device_eval_batch_size,
            self._feature_need,
            progress=not self.args.disable_tqdm,
        )
        self._pack_masks()
        self._features_ready = True
        # Workers that live on know the features of the time when they were started.
        getattr(self, "_eval_dataloaders", {}).clear()

    def _pack_masks(self) -> None:
        training, evaluation = self._stored_collators
        parts = [(name, dataset, self._mask_keys[dataset._fingerprint]) for name, dataset in self._feature_datasets()]
        for collator, names in (
            (training, {"train_dataset"}),
            (evaluation, {name for name, *_ in parts if name != "train_dataset" or self._evaluates_training}),
        ):
            own = [(dataset, keys) for name, dataset, keys in parts if name in names]
            rows = pack_masks(collator.packed, collator.collator, own, progress=not self.args.disable_tqdm)
            size = sum(record.size for record in collator.packed.find(rows))
            if rows:
                self._tell(f"Masks packed: {size:,} bytes for {len(rows)} rows in {collator.packed.folder}.")

    def _remove_unused_columns(self, dataset, description=None):
        fingerprint_of_rows = dataset._fingerprint
        keys = self._keys.get(fingerprint_of_rows)
        # A transform may read any column.
        if dataset.format["type"] is None:
            dataset = super()._remove_unused_columns(dataset, description)
        # Training computes what is missing before it reads a row; an evaluation on its own does not.
        if keys is None or not (self._features_ready or description == "Training"):
            return NumberedRows(dataset)
        drop, masks = IMAGE_COLUMNS, self._mask_keys[fingerprint_of_rows]
        # Likewise of masks.
        if description == "Training" or not self.eval_collator.packed.missing(masks):
            drop = (*drop, *MASK_COLUMNS, REGIONS)
        else:
            masks = None
        return NumberedRows(dataset.remove_columns([name for name in drop if name in dataset.features]), keys, masks)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        # (Nothing of the language model, whose operations Trainer counts, runs on features.)
        return 0 if "features" in inputs else super().floating_point_ops(inputs)
