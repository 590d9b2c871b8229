"""Probability maps of the rows of a dataset: of a model, or of another tool's files."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from ..data.checks import check_dataset
from ..data.collator import SegCollator
from ..data.fit import check_fit
from ..data.layout import normalize_row
from ..data.masks import decode_mask
from ..data.stored import plain_rows
from ..errors import DatasetError
from ..features.encoding import MODES, RowEncoder, encoder, max_positions, to_model
from ..features.fingerprint import fingerprint
from ..features.rows import feature_bytes, row_facts
from ..features.store import FeatureStore, features_folder
from ..files import file_name
from ..models.grounding import upsample_mask_logits
from ..models.outputs import Sa2VAOutput, SegFeatures


def stored_features(
    model,
    processor,
    dataset: Dataset,
    cache_features: str = "auto",
    cache_dir: str | os.PathLike | None = None,
    batch_size: int = 4,
    progress: bool = True,
) -> tuple[FeatureStore, list[str]] | None:
    """
    Frozen features of a data set, for [`predict_probabilities`]. One pass over the data gains nothing from computing
    them first, so `"auto"` takes those that training or an earlier evaluation has left, and computes none.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): on its device.
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): checked before anything is computed.
        cache_features (`str`, *optional*, defaults to `"auto"`): `"auto"`, `"on"` (computes what is missing), `"off"`.
        cache_dir (`str` or `os.PathLike`, *optional*): of the features; beside the data set by default.
        batch_size (`int`, *optional*, defaults to 4): rows a pass.
        progress (`bool`, *optional*, defaults to `True`): show a bar, and say what was decided.

    Returns:
        The store and the key of each row, or `None` where the pixels are to be used.

    Raises:
        `DatasetError`: bad rows.
        `ValueError`: an unknown `cache_features`, a `cache_dir` without a cache, or `"on"` with a transform.
        `FeatureError`: `"on"` and no room.
    """
    if cache_features not in MODES:
        raise ValueError(f"cache_features must be one of {', '.join(MODES)}, got {cache_features!r}.")
    if cache_features == "off":
        if cache_dir is not None:
            raise ValueError("cache_dir has no meaning with cache_features=off.")
        return None
    tell = print if progress else lambda message: None
    dataset = plain_rows(dataset)
    if dataset.format["type"] is not None:
        if cache_features == "on":
            raise ValueError("cache_features=on: the dataset has a transform, which may change the images.")
        tell("cache_features=auto: off, the dataset has a transform.")
        return None
    root = Path(cache_dir or features_folder(dataset))
    if cache_features == "auto" and not root.is_dir():
        tell(f"cache_features=auto: off, there are no features in {root}.")
        return None
    check_dataset(dataset, name="dataset")
    collator = SegCollator(processor, max_length=max_positions(model))
    check_fit(dataset, collator, name="dataset")
    facts = row_facts(dataset, collator.questions[0], collator.answers[0])
    keys, sizes = [row.key for row in facts], {row.key: (row.images, row.segs) for row in facts}
    store = FeatureStore(root, fingerprint(model, processor)).open()
    missing = store.missing(keys)
    if cache_features == "auto" and missing:
        tell(f"cache_features=auto: off, {root} lacks the features of {len(missing)} rows with this model.")
        return None

    def need(which: list[str]) -> int:
        return sum(feature_bytes(model.config, *sizes[key], model.dtype.itemsize) for key in which)

    size = f"{len(missing)} rows to compute, {need(missing):,} bytes"
    tell(f"cache_features={cache_features}: on, from {store.folder}; {size}.")
    rows = {key: (dataset, index) for index, key in enumerate(keys)}
    store.build(rows, encoder(model, collator, lambda batch: to_model(model, batch)), batch_size, need, progress)
    return store, keys


@torch.no_grad()
def predict_probabilities(
    model,
    processor,
    dataset: Dataset,
    batch_size: int = 4,
    progress: bool = True,
    features: tuple[FeatureStore, list[str]] | None = None,
) -> Iterator[tuple[dict, np.ndarray]]:
    """
    Probability maps of every row, teacher-forced: the answer is given, one forward pass a batch.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): in evaluation mode afterwards.
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): rows as in [`~data.checks.check_dataset`].
        batch_size (`int`, *optional*, defaults to 4): rows a forward pass.
        progress (`bool`, *optional*, defaults to `True`): show a bar.
        features (*optional*): from [`stored_features`] of the same model and rows; only the mask head runs then.

    Yields:
        The decoded row and its probabilities, `np.ndarray` of shape `(masks, H, W)`, float32 in [0, 1], at the image's
        own size. Rows without masks are left out.
    """
    for _, rows, targets, _, outputs in passes(model, processor, dataset, batch_size, progress, features):
        for position, (row, target) in enumerate(zip(rows, targets, strict=True)):
            if len(target):
                yield row, probabilities_of(model, outputs, position, target)


@torch.no_grad()
def passes(
    model,
    processor,
    dataset: Dataset,
    batch_size: int,
    progress: bool,
    features: tuple[FeatureStore, list[str]] | None,
) -> Iterator[tuple[int, list[dict], list[torch.Tensor], SegFeatures, Sa2VAOutput]]:
    """
    The forward passes of [`predict_probabilities`].

    Args:
        model, processor, dataset, batch_size, progress, features: as there.

    Yields:
        For every batch the position of its first row, the decoded rows, their masks of shape `(masks, H, W)`, features
        and what the mask head made of them.
    """
    model.eval()
    encode = RowEncoder(model, processor, dataset, features)
    for start in tqdm(range(0, len(dataset), batch_size), desc="predict", disable=not progress):
        rows, targets, encoded = encode(range(start, min(start + batch_size, len(dataset))))
        yield start, rows, targets, encoded, model(features=encoded)


def probabilities_of(model, outputs: Sa2VAOutput, position: int, target: torch.Tensor) -> np.ndarray:
    """Probabilities of one row of a batch, `(masks, H, W)`, at the size of its masks `target`."""
    logits = outputs.mask_logits[outputs.row_index == position]
    size = model.config.grounding_config.image_size
    return upsample_mask_logits(logits, size, target.shape[-2:]).sigmoid().cpu().numpy()


def read_predictions(folder: str | os.PathLike, dataset: Dataset) -> Iterator[tuple[dict, np.ndarray]]:
    """
    Masks that another tool has written, as [`predict_probabilities`] would yield them.

    Args:
        folder (`str` or `os.PathLike`):
            With one mask `SAMPLE_ID.png` a row, 0 and 255. Where the identifier is not fit for a file name, the file
            has it to the letter, or the name that [`~evaluation.overlays.file_name`] makes of it.
        dataset (`datasets.Dataset`): rows with one object each.

    Yields:
        The decoded row and an array of shape `(1, H, W)` with 0 and 1.

    Raises:
        `DatasetError`: masks are missing, there twice, of another size than their image, or not binary.
    """
    folder, dataset = Path(folder), plain_rows(dataset)
    found = {name: _prediction_files(folder, name) for name in dataset["sample_id"]}
    if missing := [name for name, files in found.items() if not files]:
        raise DatasetError(
            f"{folder} lacks {len(missing)} of {len(dataset)} masks, named SAMPLE_ID.png; the first is "
            f"{file_name(missing[0])}.png."
        )
    if twice := [files for files in found.values() if len(files) > 1]:
        names = "; ".join(" and ".join(file.name for file in files) for files in twice[:10])
        raise DatasetError(f"{folder} holds two masks for {len(twice)} samples ({names}): keep one of each.")
    for row in dataset:
        masks = normalize_row(row)["masks"]
        if len(masks) != 1:
            raise DatasetError(f"sample_id {row['sample_id']!r} has {len(masks)} masks; a folder holds one a sample.")
        (file,) = found[row["sample_id"]]
        try:
            mask = decode_mask({"path": str(file), "bytes": None}, masks[0].size)
        except (DatasetError, OSError, ValueError) as error:
            raise DatasetError(f"{file}, the mask of sample_id {row['sample_id']!r}: {error}") from error
        yield row, (np.asarray(mask) > 0).astype(np.float32)[None]


def _prediction_files(folder: Path, sample_id: str) -> list[Path]:
    names = {f"{file_name(sample_id)}.png"}
    if Path(f"{sample_id}.png").name == f"{sample_id}.png":  # no path to elsewhere
        names.add(f"{sample_id}.png")
    return [folder / name for name in sorted(names) if os.path.isfile(folder / name)]
