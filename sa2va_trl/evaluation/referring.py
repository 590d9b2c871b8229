"""Referring sets as their official evaluations ask: whole clips tracked, images by expression; and cIoU and gIoU."""

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm

from ..batches import Batches
from ..data.layout import normalize_row, read_pictures, row_layout
from ..data.stored import iter_undecoded, plain_rows
from ..errors import BadRow, DatasetError
from ..media.pictures import quiet_pillow
from ..metrics import Counts, cumulative_iou
from ..metrics.sets import PRESENCE_METRICS, PROTOCOL_METRICS
from ..models import Sa2VAProcessor, Segmentation
from .clusters import Clusters, sample_clusters
from .differences import summarize
from .intervals import interval_of
from .results import aggregate


#: What each protocol asks with, as Sa2VA's own evaluation does (the space before the second one is its own).
REFERRING_QUESTIONS = {"rvos": "<image>\nPlease segment {}.", "refcoco": "<image>\n Please segment {} in this image."}
# What Sa2VA's training data ask questions about a clip with.
_ASKED = "<image>\n{} Please respond with segmentation mask."


def referring_question(protocol: str, expression: str) -> str:
    """
    What a model is asked for an expression.

    Args:
        protocol (`str`): of [`~metrics.sets.PROTOCOL_METRICS`].
        expression (`str`): as the set has it. Of a clip it may be a question, and is asked as such then.

    Returns:
        `str`, with `<image>` in the image's place.

    Example:

    ```python
    >>> from sa2va_trl.evaluation.referring import referring_question

    >>> referring_question("rvos", "the cat that jumps")
    '<image>\\nPlease segment the cat that jumps.'
    >>> referring_question("rvos", "Which cat jumps?")
    '<image>\\nWhich cat jumps? Please respond with segmentation mask.'

    ```
    """
    if protocol == "rvos" and "?" in expression:
        return _ASKED.format(expression)
    return REFERRING_QUESTIONS[protocol].format(expression)


def check_expressions(dataset: Dataset, protocol: str) -> bool:
    """
    Check that rows are of the kind that a protocol is for, before anything is predicted.

    Args:
        dataset (`datasets.Dataset`): none of its pictures is decoded.
        protocol (`str`): of [`~metrics.sets.PROTOCOL_METRICS`].

    Returns:
        `bool`: whether the rows have masks; all of them, or none.

    Raises:
        `DatasetError`: rows of another kind; the first of each reason.
    """
    bad: dict[str, BadRow] = {}
    with_masks, number = 0, 0
    for row in (row for rows in iter_undecoded(dataset) for row in rows):
        layout, reasons = row_layout(row), []
        if protocol == "rvos" and row.get("images") is None:
            reasons.append("is no clip (`images`), which protocol=rvos is for")
        if protocol == "refcoco" and len(layout.images) != 1:
            reasons.append("is not one image, which protocol=refcoco is for")
        if not layout.phrases:
            reasons.append("has no phrase to ask for")
        elif protocol == "refcoco" and len(layout.phrases) != 1:
            reasons.append("has several phrases: protocol=refcoco is for rows of one expression each")
        with_masks += bool(layout.masks)
        for reason in reasons:
            bad.setdefault(reason, BadRow(number, row.get("sample_id"), None, reason))
        number += 1
    if 0 < with_masks < number:
        bad["mixed"] = BadRow(None, None, None, f"{with_masks} of {number} rows have masks: score those by themselves")
    if bad:
        raise DatasetError(f"protocol={protocol} does not fit the rows:", list(bad.values()))
    return bool(with_masks)


def check_pictures(dataset: Dataset) -> None:
    """
    Check rows whose masks are not public, as [`~data.checks.check_dataset`] checks others.

    Args:
        dataset (`datasets.Dataset`): clips.

    Raises:
        `DatasetError`: with every row one of whose frames cannot be read, or is of another size than the others.
    """
    bad, number = [], 0
    with quiet_pillow():
        for row in (row for rows in iter_undecoded(dataset, 1) for row in rows):
            layout = row_layout(row)._replace(masks=[], problems=[])
            if reasons := read_pictures(layout, keep=False).problems:
                bad.append(BadRow(number, row.get("sample_id"), None, "; ".join(reasons)))
            number += 1
    if bad:
        raise DatasetError(f"dataset: {len(bad)} of {number} rows cannot be used:", bad)


def predict_clips(
    model: nn.Module, processor: Sa2VAProcessor, dataset: Dataset, progress: bool = True, **options: Any
) -> Iterator[tuple[dict, np.ndarray]]:
    """
    Masks of whole clips, an expression at a time: the model answers, and its first `[SEG]` is tracked. Without one
    there is nothing, as in the official evaluation. One clip is in memory.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): in evaluation mode afterwards.
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): rows of clips.
        progress (`bool`, *optional*, defaults to `True`): show a bar.
        options: for `segment`.

    Yields:
        The decoded row and its masks, `np.ndarray` of shape `(phrases x frames, H, W)`, bool.
    """
    model.eval()
    for row in tqdm(plain_rows(dataset), desc="predict", unit="clip", disable=not progress):
        images = row["images"]
        found = []
        for phrase in row_layout(row).phrases:
            text = referring_question("rvos", phrase)
            result = model.segment(video=images, text=text, processor=processor, **options)
            none = np.zeros((len(images), *images[0].size[::-1]), dtype=bool)
            found.append(result.masks[0].cpu().numpy() if len(result.phrases) else none)
        yield row, np.concatenate(found)


def predict_expressions(
    model: nn.Module,
    processor: Sa2VAProcessor,
    dataset: Dataset,
    batch_size: int | str = 4,
    progress: bool = True,
    **options: Any,
) -> Iterator[tuple[dict, np.ndarray]]:
    """
    Masks of images: the model answers, and all that it draws is one mask.

    Args:
        model, processor, progress, options: as in [`predict_clips`].
        dataset (`datasets.Dataset`): rows of one image and one phrase.
        batch_size (`int` or `"auto"`, *optional*, defaults to 4): rows that are answered together, at most.

    Yields:
        The decoded row and its mask, `np.ndarray` of shape `(1, H, W)`, bool.
    """
    model.eval()
    dataset = plain_rows(dataset)
    batches = Batches(batch_size, model.device)
    window = batches.most
    with tqdm(total=len(dataset), desc="predict", unit="image", disable=not progress) as bar:
        for start in range(0, len(dataset), window):
            rows = [dataset[number] for number in range(start, min(start + window, len(dataset)))]
            read = [normalize_row(row) for row in rows]
            texts = [referring_question("refcoco", own["phrases"][0]) for own in read]
            images = [own["images"][0] for own in read]

            def segment(numbers: list[int], images=images, texts=texts) -> list[Segmentation]:
                asked = {
                    "images": [images[number] for number in numbers],
                    "text": [texts[number] for number in numbers],
                }
                return model.segment(**asked, processor=processor, **options)

            results = batches.in_order(segment, [processor.num_image_tokens(image.size) for image in images])
            for row, image, result in zip(rows, images, results, strict=True):
                masks = result.masks.cpu().numpy()
                yield row, (masks.any(0) if len(masks) else np.zeros(image.size[::-1], dtype=bool))[None]
                bar.update()


def picture_names(dataset: Dataset) -> list[str]:
    """
    What tells the pictures of rows apart, since expressions of one picture are no independent samples.

    Args:
        dataset (`datasets.Dataset`): rows of one image, with `sample_id`.

    Returns:
        `list[str]`: one a row, the `sample_id` of the first row whose picture is the same file, or the same bytes.
    """
    first: dict[str | bytes, str] = {}
    found = []
    for row in (row for rows in iter_undecoded(dataset) for row in rows):
        image = row.get("image") or row["images"][0]
        key = image["path"] if image["bytes"] is None else hashlib.sha256(image["bytes"]).digest()
        found.append(first.setdefault(key, row["sample_id"]))
    return found


def aggregate_protocol(samples: pd.DataFrame, protocol: str) -> dict[str, dict]:
    """
    What a protocol reports.

    Args:
        samples (`pandas.DataFrame`):
            One row a sample, with the columns of [`~metrics.sets.PROTOCOL_METRICS`], and those that
            [`~evaluation.sample_clusters`] resamples by. Of `refcoco` `picture` is one of these, see
            [`picture_names`].
        protocol (`str`): which.

    Returns:
        `dict[str, dict]`, entries as of [`~evaluation.results.aggregate`]. Of `rvos` `j_and_f`, `j` and `f`, means
        over expressions, and `by_video`. Of `refcoco` `ciou` (in which `std` is `None`), `giou`, and, where some
        expressions have no target, `n_acc` and `t_acc` (Liu et al., CVPR 2023).
    """
    if protocol == "rvos":
        return aggregate(samples, PROTOCOL_METRICS["rvos"])
    clusters = sample_clusters(samples)
    sums = _by_cluster(samples["intersection"], samples["union"], clusters)
    counts = [
        Counts(int(own), int(whole - own), 0, 0)
        for own, whole in zip(samples["intersection"], samples["union"], strict=True)
    ]
    found = {"ciou": {"mean": cumulative_iou(counts), "std": None, "ci95": [None, None], "n": len(samples)}}
    if len(sums.sizes):
        interval = interval_of(sums, bounds=(0, 1))
        found["ciou"] |= {"ci95": interval.ends(), "ci95_method": interval.method}
    found["giou"] = summarize(samples["iou"].to_numpy(), clusters, (0, 1))
    if samples["absence_sensitivity"].notna().any():
        for name, column in zip(("n_acc", "t_acc"), PRESENCE_METRICS, strict=True):
            is_known = samples[column].notna().to_numpy()
            own = None if clusters is None else [key for key, known in zip(clusters, is_known, strict=True) if known]
            if is_known.any():
                found[name] = summarize(samples[column][is_known].to_numpy(dtype=np.float64), own, (0, 1))
    return found


def _by_cluster(intersections: pd.Series, unions: pd.Series, clusters: Sequence[Hashable] | None) -> Clusters:
    """
    Intersections over unions, summed by cluster, in an order that does not depend on that of the rows. Clusters in
    which nothing is and nothing was drawn say nothing of cIoU.
    """
    labels = range(len(unions)) if clusters is None else clusters
    sums = pd.DataFrame({"sums": intersections, "sizes": unions}).groupby(list(labels))[["sums", "sizes"]].sum()
    sums = sums[sums["sizes"] > 0]
    order = np.lexsort((sums["sums"], sums["sizes"]))
    return Clusters(*(sums[name].to_numpy(dtype=np.float64)[order] for name in ("sums", "sizes")))
