"""The checks that run on every row of a dataset before training starts."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from datasets import Dataset, IterableDataset

from ..errors import BadRow, DatasetError
from ..media.pictures import MAX_PIXELS, file_of, quiet_pillow
from .columns import REGIONS, check_columns, check_features, mask_mode
from .known import is_good, remember, row_key
from .layout import read_pictures, row_layout, row_mask_mode
from .sightings import remember_sight
from .stored import iter_undecoded


logger = logging.getLogger(__name__)


def check_dataset(
    dataset: Dataset | IterableDataset,
    name: str = "train_dataset",
    max_pixels: int = MAX_PIXELS,
    num_proc: int | None = None,
) -> None:
    """
    Check every row of a dataset before training starts, and report all bad rows at once.

    Each image is refused from its header where it is too large, and otherwise decoded in full, once: a truncated file
    shows nowhere else. What was found good before is not decoded again in the same process, in whatever set it comes
    back, unless its file has changed.

    The rows are checked as stored: what a `with_transform` makes of them, and the rows of an `IterableDataset`, which
    checking would consume, are checked by the collator (by [`~data.layout.normalize_row`]), batch by batch as they
    come. Of an `IterableDataset` only the names of the columns are checked here, where they are known.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Rows in the styles of `ACCEPTED_COLUMNS`; styles may differ from row to row.
        name (`str`, *optional*, defaults to `"train_dataset"`):
            What the messages call it.
        max_pixels (`int`, *optional*, defaults to `100_000_000`):
            The largest width x height of an image or mask.
        num_proc (`int`, *optional*):
            Number of workers that decode. They are threads, as Pillow decodes outside the interpreter lock; 1 when
            None.

    Raises:
        `DatasetError`: If the dataset is empty, lacks columns, or has rows that cannot be trained on: a missing,
            truncated or too large image, or one of several pages; a mask of another size than its image, or whose raw
            pixels are none ([`~media.masks.binary_mask`]); a number of masks other than that of the phrases or of the
            [SEG]s (times the frames); an empty phrase; malformed `messages`; regions of a clip or beyond their image,
            or empty ones; a `sample_id` that is empty or used twice. An all-zero mask is legal. `problems` holds every
            bad row.
        `TypeError`: If it is no `datasets.Dataset`.
    """
    if isinstance(dataset, IterableDataset):
        logger.info("%s is an IterableDataset: its rows are checked as they come, not before training.", name)
        if dataset.features:
            check_columns(dataset.features, name)
        return
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"{name} must be a datasets.Dataset, not {type(dataset).__name__}; of a DatasetDict pass one split"
        )
    if len(dataset) == 0:
        raise DatasetError(f"{name} is empty: it has no rows")
    check_features(dataset.features, name)

    first_row: dict[str, int] = {}
    bad, start = [], 0
    region_mode = mask_mode(dataset.features, REGIONS)

    def check(row: dict[str, Any]) -> list[str]:
        layout, mode = row_layout(row), row_mask_mode(row, dataset.features)
        key = row_key(layout, mode, max_pixels, region_mode)
        if is_good(key):
            return layout.problems
        read = read_pictures(layout, mode, max_pixels, keep=False, seen=remember_sight, region_mode=region_mode)
        problems = read.problems
        if len(problems) == len(layout.problems):
            remember(key)
        return problems

    with quiet_pillow(), ThreadPoolExecutor(num_proc or 1) as pool:
        for rows in iter_undecoded(dataset):
            for number, (row, reasons) in enumerate(zip(rows, pool.map(check, rows), strict=True), start):
                sample_id = row["sample_id"]
                if sample_id is None or not str(sample_id).strip():
                    reasons.append("sample_id is missing or empty")
                elif first_row.setdefault(sample_id, number) != number:
                    reasons.append(f"duplicate sample_id, first used in row {first_row[sample_id]}")
                if reasons:
                    images = [row.get("image"), *(row.get("images") or [])]
                    file = next(filter(None, map(file_of, images)), None)
                    bad.append(BadRow(number, sample_id, file, "; ".join(reasons)))
            start += len(rows)
    if bad:
        raise DatasetError(f"{name}: {len(bad)} of {len(dataset)} rows cannot be used:", bad)
