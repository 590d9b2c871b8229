"""Probability maps of the rows of a dataset: of a model, or of another tool's files."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import nn

from ..batches import AUTO, CPU_ROWS
from ..data.checks import check_dataset
from ..data.fit import check_fit
from ..data.layout import normalize_row
from ..data.masks import decode_mask
from ..data.stored import plain_rows
from ..errors import DatasetError
from ..features.decision import Rows, decide_features
from ..features.encoding import RowEncoder, Stored, encoder, row_collator, to_model
from ..features.fingerprint import fingerprint
from ..features.rows import feature_bytes, item_sizes, row_facts
from ..features.store import FeatureStore, features_folder
from ..files import file_name
from ..mask_logits import mask_probabilities, upsample_mask_logits
from ..models import Sa2VAProcessor
from ..models.outputs import Sa2VAOutput, SegFeatures


logger = logging.getLogger(__name__)


def stored_features(
    model: nn.Module,
    processor: Sa2VAProcessor,
    dataset: Dataset,
    cache_features: str = "auto",
    cache_dir: str | os.PathLike | None = None,
    batch_size: int | str = 4,
    progress: bool = True,
) -> Stored | None:
    """
    Frozen features of a data set, for [`predict_probabilities`]. One pass over the data gains nothing from computing
    them first, so `"auto"` takes those that training or an earlier evaluation has left, and computes none.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): on its device.
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): checked before anything is computed.
        cache_features (`str`, *optional*, defaults to `"auto"`): `"auto"`, `"on"` (computes what is missing), `"off"`.
        cache_dir (`str` or `os.PathLike`, *optional*): of the features; beside the data set by default.
        batch_size (`int` or `"auto"`, *optional*, defaults to 4): rows a pass; a few with `"auto"`.
        progress (`bool`, *optional*, defaults to `True`): show a bar, and log what was decided.

    Returns:
        The store and the key of each row, or `None` where the pixels are to be used.

    Raises:
        `DatasetError`: bad rows.
        `ValueError`: an unknown `cache_features`, a `cache_dir` without a cache, or `"on"` with a transform.
        `FeatureError`: `"on"` and no room.
    """
    if cache_features == "off":
        if cache_dir is not None:
            raise ValueError("cache_dir has no meaning with cache_features=off.")
        return None
    dataset, keys = plain_rows(dataset), []
    collator = row_collator(model, processor)

    def root() -> Path:
        return Path(cache_dir or features_folder(dataset))

    def reasons() -> list[str]:
        if dataset.format["type"] is not None:
            return ["the dataset has a transform, which may change the images"]
        return [f"there are no features in {root()}"] if cache_features == "auto" and not root().is_dir() else []

    def find() -> Rows:
        check_dataset(dataset, name="dataset")
        check_fit(dataset, collator, name="dataset")
        facts = row_facts(dataset, collator.questions[0], collator.answers[0])
        keys.extend(row.key for row in facts)
        sizes = {row.key: (row.images, row.segs) for row in facts}

        def need(which: Iterable[str]) -> int:
            return sum(feature_bytes(model.config, *sizes[key], *item_sizes(model)) for key in which)

        return Rows(FeatureStore(root(), fingerprint(model, processor)).open(), list(sizes), need)

    decision = decide_features(cache_features, reasons, find, compute=False)
    if progress and decision.message is not None:
        logger.info(decision.message)
    if decision.rows is None:
        return None
    store, rows = decision.rows.store, {key: (dataset, index) for index, key in enumerate(keys)}
    encode = encoder(model, collator, lambda batch: to_model(model, batch))
    store.build(rows, encode, CPU_ROWS if batch_size == AUTO else batch_size, decision.rows.need, progress)
    return store, keys


def predict_probabilities(
    model: nn.Module,
    processor: Sa2VAProcessor,
    dataset: Dataset,
    batch_size: int | str = 4,
    progress: bool = True,
    features: Stored | None = None,
) -> Iterator[tuple[dict, np.ndarray]]:
    """
    Probability maps of every row, teacher-forced: the answer is given, one forward pass a batch.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): in evaluation mode afterwards.
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): rows as in [`~data.checks.check_dataset`].
        batch_size (`int` or `"auto"`, *optional*, defaults to 4): rows a batch; as many as memory takes. Those of a
            batch that are of like size go through the model together.
        progress (`bool`, *optional*, defaults to `True`): show a bar.
        features (*optional*): from [`stored_features`] of the same model and rows; only the mask head runs then.

    Yields:
        The decoded row and its probabilities, `np.ndarray` of shape `(masks, H, W)`, float32 in [0, 1], at the image's
        own size. Rows without masks are left out.
    """
    yield from probabilities(RowEncoder(model, processor, dataset, features, batch_size, progress, by_size=True))


@torch.no_grad()
def probabilities(rows: RowEncoder) -> Iterator[tuple[dict, np.ndarray]]:
    """What [`predict_probabilities`] yields of these rows through their model."""
    for _, decoded, targets, _, outputs in passes(rows):
        for position, (row, target) in enumerate(zip(decoded, targets, strict=True)):
            if len(target):
                yield row, probabilities_of(rows.model, outputs, position, target)


@torch.no_grad()
def passes(
    rows: RowEncoder,
) -> Iterator[tuple[int, list[dict], list[torch.Tensor], SegFeatures, Sa2VAOutput]]:
    """
    Forward passes over rows, in batches.

    Args:
        rows (`RowEncoder`): rows and their model, which is in evaluation mode afterwards.

    Yields:
        For every batch the position of its first row, the decoded rows, their masks of shape `(masks, H, W)`, features
        and what the mask head made of them.
    """
    rows.model.eval()
    for start, decoded, targets, encoded in rows.batches("predict"):
        yield start, decoded, targets, encoded, rows.model(features=encoded)


def probabilities_of(model: nn.Module, outputs: Sa2VAOutput, position: int, target: torch.Tensor) -> np.ndarray:
    """
    Probabilities of one row of a batch.

    Args:
        model (`nn.Module`): that has drawn them.
        outputs (`Sa2VAOutput`): of the batch.
        position (`int`): of the row in the batch.
        target (`torch.Tensor` of shape `(masks, H, W)`): its masks, whose size counts.

    Returns:
        `np.ndarray` of shape `(masks, H, W)`, float32 in [0, 1], calibrated where the model's config says how.
    """
    logits = outputs.mask_logits[outputs.row_index == position]
    size = model.config.grounding_config.image_size
    maps = upsample_mask_logits(logits, size, target.shape[-2:])
    return mask_probabilities(maps, model.config.mask_temperature).cpu().numpy()


def read_predictions(folder: str | os.PathLike, dataset: Dataset) -> Iterator[tuple[dict, np.ndarray]]:
    """
    Masks that another tool has written, as [`predict_probabilities`] would yield them.

    Args:
        folder (`str` or `os.PathLike`):
            With one mask `SAMPLE_ID.png` a row, 0 and 255. Where the identifier is not fit for a file name, the file
            has it to the letter, or the name that [`~files.file_name`] makes of it.
        dataset (`datasets.Dataset`): rows with one object each.

    Yields:
        The decoded row and an array of shape `(1, H, W)` with 0 and 1.

    Files that belong to no row are left out, with a warning that names them.

    Raises:
        `DatasetError`: masks are missing, there twice, of another size than their image, or not binary; all of a kind
            in one error, those that have to be read after the last row.
    """

    def read(file: Path, size: tuple[int, int]) -> np.ndarray:
        return (np.asarray(decode_mask({"path": str(file), "bytes": None}, size)) > 0).astype(np.float32)

    yield from _read_folder(folder, dataset, (".png",), read)


def read_probabilities(
    folder: str | os.PathLike, dataset: Dataset, beside: Sequence[Dataset] = ()
) -> Iterator[tuple[dict, np.ndarray]]:
    """
    Probability maps that another tool has written, as [`predict_probabilities`] would yield them.

    Args:
        folder (`str` or `os.PathLike`):
            With one map a row, named as for [`read_predictions`]: `SAMPLE_ID.npy`, floating point in [0, 1] of shape
            `(H, W)`, or `SAMPLE_ID.png`, grey, whose largest number (255, or 65535 of 16 bits) is probability 1.
        dataset (`datasets.Dataset`): rows with one object each.
        beside (`Sequence[datasets.Dataset]`, *optional*): other rows whose maps lie there too.

    Yields:
        The decoded row and an array of shape `(1, H, W)`, floating point in [0, 1].

    Raises:
        `DatasetError`: maps are missing, there twice, of another size than their image, or hold no probabilities.
    """
    yield from _read_folder(folder, dataset, (".npy", ".png"), _read_map, beside)


def _read_folder(
    folder: str | os.PathLike,
    dataset: Dataset,
    suffixes: tuple[str, ...],
    read: Callable[[Path, tuple[int, int]], np.ndarray],
    beside: Sequence[Dataset] = (),
) -> Iterator[tuple[dict, np.ndarray]]:
    folder, dataset = Path(folder), plain_rows(dataset)
    found = {name: _prediction_files(folder, name, suffixes) for name in dataset["sample_id"]}
    if missing := [name for name, files in found.items() if not files]:
        names = " or ".join(f"SAMPLE_ID{suffix}" for suffix in suffixes)
        raise DatasetError(
            f"{folder} lacks {len(missing)} of {len(dataset)} masks, named {names}: "
            f"{_listed([f'{file_name(name)}{suffixes[-1]}' for name in missing])}."
        )
    if twice := [files for files in found.values() if len(files) > 1]:
        names = "; ".join(" and ".join(file.name for file in files) for files in twice[:10])
        raise DatasetError(f"{folder} holds two masks for {len(twice)} samples ({names}): keep one of each.")
    known = {file for files in found.values() for file in files}
    known |= {
        file for rows in beside for name in rows["sample_id"] for file in _prediction_files(folder, name, suffixes)
    }
    own = [file for suffix in suffixes for file in sorted(folder.glob(f"*{suffix}"))]
    if extra := [file.name for file in own if file not in known]:
        logger.warning(f"{folder} holds {len(extra)} files of no sample, which are left out: {_listed(extra)}.")
    faults = []
    for row in dataset:
        masks = normalize_row(row)["masks"]
        if len(masks) != 1:
            raise DatasetError(f"sample_id {row['sample_id']!r} has {len(masks)} masks; a folder holds one a sample.")
        (file,) = found[row["sample_id"]]
        try:
            values = read(file, masks[0].size)
        except (DatasetError, OSError, ValueError) as error:
            faults.append(f"{file}, the mask of sample_id {row['sample_id']!r}: {error}")
            continue
        yield row, values[None]
    if faults:
        raise DatasetError("\n".join([*faults[:10], *([f"and {len(faults) - 10} more"] if len(faults) > 10 else [])]))


def _listed(names: list[str]) -> str:
    """Up to ten of the names, and how many more."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _prediction_files(folder: Path, sample_id: str, suffixes: tuple[str, ...]) -> list[Path]:
    names = {f"{file_name(sample_id)}{suffix}" for suffix in suffixes}
    # (No path to elsewhere.)
    names |= {name for suffix in suffixes if Path(name := f"{sample_id}{suffix}").name == name}
    return [folder / name for name in sorted(names) if os.path.isfile(folder / name)]


def _read_map(file: Path, size: tuple[int, int]) -> np.ndarray:
    if file.suffix == ".npy":
        values = np.load(file, allow_pickle=False)
        if not np.issubdtype(values.dtype, np.floating):
            raise DatasetError(f"holds {values.dtype} and not floating-point probabilities")
        if not ((values >= 0) & (values <= 1)).all():  # NaN is refused too
            raise DatasetError("holds values outside [0, 1], so they are no probabilities")
        values = values[0] if values.ndim == 3 and len(values) == 1 else values
    else:
        with Image.open(file) as picture:
            if picture.mode not in ("L", "I;16"):
                raise DatasetError(f"is a picture of mode {picture.mode}, and not grey of 8 or 16 bits")
            raw = np.asarray(picture)
        values = raw.astype(np.float32) / np.float32(np.iinfo(raw.dtype).max)
    if values.shape != size[::-1]:
        shown = " x ".join(map(str, values.shape[::-1]))
        raise DatasetError(f"is {shown}, its image {size[0]} x {size[1]} (width x height)")
    return values
