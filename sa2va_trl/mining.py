"""
Hard samples: how well the present model does on every row, which rows are hard, where they come in runs, and which
of them look like faulty labels.
"""

import hashlib
import json
import math
import os
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from .data.collator import ANSWERS, QUESTIONS
from .data.columns import IDENTIFIERS, BadRow, check_dataset, iter_undecoded, normalize_row, plain_rows, read_image
from .data.features import FeatureStore, RowEncoder, everywhere, fingerprint, raise_first, row_keys
from .measurements import NearMask, agreement, dices, measure, motion, spread
from .metrics import cldice, segmentation_metrics
from .models.grounding import upsample_mask_logits
from .preferences import MaskSampler


#: Dice below which a sample is hard. (A frame at the threshold is not.)
THRESHOLD = 0.75
METRICS = ("dice", "iou", "precision", "recall", "cldice")

# Of the scores' file and of what the columns mean: raise it when either changes.
FORMAT = 1
_METADATA = b"sa2va_trl.mining"
_WRITER = "recipes/mine_hard_samples.py"
# Rows that are scored, and written, as one piece of work; a piece never ends within a video.
_PIECE = 32


class MiningError(ValueError):
    """Scores, or a choice among them, that cannot be used. The message says what to do."""


# ---------------------------------------------------------------------------------------------------------------------
# Runs of hard frames
# ---------------------------------------------------------------------------------------------------------------------


def temporal_clusters(
    dice, threshold: float = THRESHOLD, max_gap: int = 0, min_length: int = 2, smoothing: int = 1
) -> list[tuple[int, int]]:
    """
    Runs of hard frames in one video: frames with `dice < threshold`.

    A frame without a score (NaN) is not hard: it ends a run, as an easy frame does, unless the gap that it is part of
    is at most `max_gap` long. No run begins or ends with a frame that is not hard.

    Args:
        dice (array-like of shape `(frames,)`): in temporal order; higher is easier. NaN where a frame has no score.
        threshold (`float`, *optional*, defaults to 0.75): a frame at the threshold is easy.
        max_gap (`int`, *optional*, defaults to 0): runs that at most so many other frames lie between become one.
        min_length (`int`, *optional*, defaults to 2): hard frames that a run needs; those in its gaps do not count.
        smoothing (`int`, *optional*, defaults to 1):
            Odd width of a running median over the frames with a score, narrower at the ends of the video; 1 leaves
            `dice` as it is. (A median, as a mean would move the ends of runs.) Frames without a score keep none.

    Returns:
        `list[tuple[int, int]]`: first and last position of every run, both inclusive, in order. Runs do not overlap
        and are more than `max_gap` frames apart.

    Raises:
        `ValueError`: an option out of its range, or `dice` is not one sequence.
    """
    dice = np.asarray(dice, dtype=np.float64)
    if dice.ndim != 1:
        raise ValueError(f"dice must be the sequence of one video, got shape {dice.shape}.")
    check_options(threshold, None, max_gap, min_length, smoothing)
    reach = smoothing // 2
    if reach:
        reaches = np.minimum(reach, np.minimum(np.arange(len(dice)), np.arange(len(dice))[::-1]))
        windows = [dice[position - own : position + own + 1] for position, own in enumerate(reaches)]
        smooth = [np.nan if np.isnan(own) else np.nanmedian(near) for own, near in zip(dice, windows, strict=True)]
        dice = np.array(smooth, dtype=np.float64)
    runs = []  # [first, last, hard frames]
    for position in np.flatnonzero(dice < threshold).tolist():
        if runs and position - runs[-1][1] - 1 <= max_gap:
            runs[-1][1:] = [position, runs[-1][2] + 1]
        else:
            runs.append([position, position, 1])
    return [(first, last) for first, last, hard in runs if hard >= min_length]


def check_options(
    threshold: float | None = None,
    worst: float | None = None,
    max_gap: int = 0,
    min_length: int = 2,
    smoothing: int = 1,
    tau_low: float = 0.3,
) -> None:
    """
    Check the options of [`mine`], before anything is scored.

    Raises:
        `ValueError`: an option out of its range, or both `threshold` and `worst`.
    """
    if threshold is not None and worst is not None:
        raise ValueError("threshold and worst both say what is hard: give one of them.")
    if threshold is not None and math.isnan(threshold):
        raise ValueError("threshold must be a number, got nan.")
    if worst is not None and not 0 < worst < 1:
        raise ValueError(f"worst is the share of hard samples, between 0 and 1; got {worst}.")
    for name, value, least in (("max_gap", max_gap, 0), ("min_length", min_length, 1), ("smoothing", smoothing, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
    if smoothing % 2 == 0:
        raise ValueError(f"smoothing must be odd, so that its window has a middle; got {smoothing}.")
    if not 0 <= tau_low <= 1:
        raise ValueError(f"tau_low must lie in [0, 1], got {tau_low}.")


def check_frames(table: pd.DataFrame) -> None:
    """
    Check that the frames of every video have an order. Rows without a video need none.

    Args:
        table (`pandas.DataFrame`): with `sample_id` and, where there are videos, `video_id` and `frame_index`.

    Raises:
        `MiningError`: a row of a video without `frame_index`, or two rows with the same one; all of them are named.
    """
    if "video_id" not in table:
        return
    table = table[table["video_id"].notna()]
    index = table["frame_index"] if "frame_index" in table else pd.Series(np.nan, table.index)
    twice = pd.DataFrame({"video": table["video_id"], "index": index}).duplicated(keep=False) & index.notna()
    bad = [
        BadRow(None, name, None, f"video_id {video!r} without a frame_index")
        for name, video in zip(table["sample_id"][index.isna()], table["video_id"][index.isna()], strict=True)
    ]
    bad += [
        BadRow(None, name, None, f"frame_index {number:g} of video_id {video!r} is used more than once")
        for name, video, number in zip(
            table["sample_id"][twice], table["video_id"][twice], index[twice].astype(float), strict=True
        )
    ]
    if bad:
        listed = "\n".join(f"  {problem}" for problem in bad[:50])
        more = f"\n  ... and {len(bad) - 50} more" if len(bad) > 50 else ""
        raise MiningError(
            f"{len(bad)} rows have no place in their video. Give each frame its own frame_index, or rows that are no "
            f"frames no video_id:\n{listed}{more}"
        )


def videos(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """
    The videos of a table, in the order in which they first appear, each sorted by `frame_index`.

    Args:
        table (`pandas.DataFrame`): see [`check_frames`].

    Yields:
        `video_id` and the rows of the video.

    Raises:
        `MiningError`: see [`check_frames`].
    """
    check_frames(table)
    if "video_id" in table:
        for video, rows in table.groupby("video_id", sort=False):  # (leaves out rows without a video)
            yield video, rows.sort_values("frame_index", kind="stable")


def usual_step(frame_index) -> float:
    """
    What a video's frames are usually apart, so that a video of which every third frame is kept has no gaps.

    Args:
        frame_index (array-like of shape `(frames,)`): sorted, all different.

    Returns:
        `float`: the most frequent difference, the smallest one of several; 1 of a single frame.
    """
    steps, counts = np.unique(np.diff(np.asarray(frame_index, dtype=np.float64)), return_counts=True)
    return float(steps[counts.argmax()]) if len(steps) else 1.0


def on_the_grid(frame_index, longest: int) -> np.ndarray:
    """
    Positions of a video's frames with room for those that are missing.

    Args:
        frame_index (array-like of shape `(frames,)`): sorted, all different.
        longest (`int`): no gap gets more room than that.

    Returns:
        `np.ndarray` of shape `(frames,)`: integers from 0 on. Two frames are one position apart at the video's usual
        step (or less), and `n + 1` where `n` frames are missing between them.
    """
    frame_index = np.asarray(frame_index, dtype=np.float64)
    steps = np.rint(np.diff(frame_index) / usual_step(frame_index)).clip(1, longest + 1)
    return np.concatenate([[0], steps.cumsum()]).astype(np.int64)[: len(frame_index)]


# ---------------------------------------------------------------------------------------------------------------------
# Scores of a data set
# ---------------------------------------------------------------------------------------------------------------------


def default_sampler() -> MaskSampler:
    """
    The candidates that difficulty is judged by: all but SAM 2's own other two masks. A model that was trained on masks
    has only ever been asked for its best mask, so the other two may be anything; their distance would measure
    untrained outputs and not the picture.
    """
    return MaskSampler(tokens=False)


def score_dataset(
    model: nn.Module,
    processor,
    dataset: Dataset,
    *,
    batch_size: int = 4,
    features: tuple[FeatureStore, list[str]] | None = None,
    sampler: MaskSampler | None = None,
    threshold: float = 0.5,
    tolerance: float = 0.02,
    seed: int = 0,
    prints: dict | None = None,
    partial_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """
    Score every row that has masks with the model as it is, at the image's own size: one encoding (or stored features)
    and two passes of the mask decoder.

    Under `torch.distributed` all processes call it together, each scores its share of the videos, and all get the
    whole table. It does not depend on their number, nor on `batch_size` but for rounding. The global random state is
    left alone, and so is the model, its mode included.

    Args:
        model (`nn.Module`): `Sa2VAForConditionalGeneration`, a `PeftModel`, or what wraps one (DDP, DeepSpeed).
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): rows as in [`~data.columns.check_dataset`].
        batch_size (`int`, *optional*, defaults to 4): rows a pass.
        features (*optional*): from [`~evaluation.stored_features`] of the same model and rows.
        sampler (`MaskSampler`, *optional*): of the candidates; see [`default_sampler`].
        threshold (`float`, *optional*, defaults to 0.5): probability above which a pixel belongs to the model's mask.
        tolerance (`float`, *optional*, defaults to 0.02):
            How far a vessel may move from frame to frame, as a share of the longer side, for `mask_agreement` and
            `prediction_agreement`.
        seed (`int`, *optional*, defaults to 0): of the candidates.
        prints (`dict`, *optional*): from [`fingerprint_of`], if it is known; needed for `partial_dir` only.
        partial_dir (`str` or `os.PathLike`, *optional*):
            Where scores are kept as they come, in a folder for each model, data set and set of options. A call that
            was killed takes up where it ended. What is there is never more than a start: remove it when done.
        progress (`bool`, *optional*, defaults to `True`): show a bar.

    Returns:
        `pandas.DataFrame`: one row a row with masks, in the order of the data set, with
            - `sample_id` and those of `patient_id`, `video_id`, `frame_index` that the data set has;
            - `dice`, `iou`, `precision`, `recall`, `cldice` of the model's own mask, averaged over the row's masks;
            - `predicted_iou`: what the model expects of its mask;
            - `spread`: 1 - mean Dice of the candidates with each other, 0 where all are equal;
            - `best_dice`: the highest Dice of any candidate;
            - what [`~measurements.measure`] says of all the row's masks together, and [`~measurements.motion`] from
            the frame before;
            - `mask_agreement`: the better of the two values of [`~measurements.tolerant_dice`] of the row's mask with
            the masks of its neighbouring frames, and `prediction_agreement`: the worse of those of the model's mask
            with the same two masks. NaN where a frame has no neighbour on both sides at the video's usual step.

    Raises:
        `DatasetError`: bad rows.
        `MiningError`: no row with a mask, or videos without an order (see [`check_frames`]).
        `ValueError`: an option out of its range.
    """
    _check_score_options(batch_size, threshold, tolerance)
    sampler = default_sampler() if sampler is None else sampler
    check_dataset(dataset, name="dataset")
    table = _rows_of(dataset)
    table = table[table["masks"] > 0]
    if table.empty:
        raise MiningError("The dataset has no row with a mask, so there is nothing to score.")
    scorer = _Scorer(model, processor, dataset, features, sampler, threshold, tolerance)
    options = [repr(sampler), threshold, tolerance, seed]
    return _score(scorer, model, processor, dataset, table, options, batch_size, seed, prints, partial_dir, progress)


def _check_score_options(batch_size: int, threshold: float, tolerance: float) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is a share of the image's side in [0, 1), got {tolerance}.")


def _score(scorer, model, processor, dataset, table, options, batch_size, seed, prints, partial_dir, progress):
    """The table of scores, piece by piece, on all processes."""
    pieces = _pieces(table)
    partial = None
    if partial_dir is not None:
        prints = fingerprint_of(model, processor, dataset) if prints is None else prints
        content = json.dumps([FORMAT, prints, *options])
        partial = Path(partial_dir) / hashlib.sha256(content.encode()).hexdigest()[:16]
    scores = _partial_scores(partial)
    missing = [piece for piece in pieces if not all(name in scores for name in piece["sample_id"])]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        found = _score_pieces(scorer, _share(missing), missing, batch_size, seed, partial, progress)
    finally:
        for module, training in modes.items():
            module.training = training
    for share in everywhere(found):
        scores |= share
    names = [name for name in IDENTIFIERS if name in table]
    rest = pd.DataFrame([scores[name] for name in table["sample_id"]])
    return pd.concat([table[names].reset_index(drop=True), rest], axis=1)


def _rows_of(dataset: Dataset) -> pd.DataFrame:
    """Identifiers of all rows, with the number of masks, images and phrases; `row` is the position."""
    names = [name for name in IDENTIFIERS if name in dataset.column_names]
    found = {name: [] for name in (*names, "masks", "images", "phrases")}
    for rows in iter_undecoded(dataset):
        for row in rows:
            for name in names:
                found[name].append(row[name])
            for one, many in (("mask", "masks"), ("image", "images"), ("phrase", "phrases")):
                found[many].append(1 if row.get(one) is not None else len(row.get(many) or ()))
    table = pd.DataFrame(found).assign(row=np.arange(len(dataset)))
    check_frames(table)
    return table


def _pieces(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows that are scored together: whole videos in the order of their frames, then rows without a video."""
    groups = [rows for _, rows in videos(table)]
    loose = table[table["video_id"].isna()] if "video_id" in table else table
    groups += [loose.iloc[[position]] for position in range(len(loose))]
    pieces, waiting = [], []
    for group in groups:
        waiting.append(group)
        if sum(map(len, waiting)) >= _PIECE:
            pieces.append(pd.concat(waiting))
            waiting = []
    return [*pieces, pd.concat(waiting)] if waiting else pieces


def _share(pieces: list[pd.DataFrame]) -> list[list[int]]:
    """Numbers of the pieces that each process scores: always the next largest to the one with least to do."""
    shares = [[] for _ in everywhere(None)]
    load = [0] * len(shares)
    for number in sorted(range(len(pieces)), key=lambda number: -len(pieces[number])):
        target = load.index(min(load))
        shares[target].append(number)
        load[target] += len(pieces[number])
    return shares


def _score_pieces(scorer, shares, pieces, batch_size, seed, partial, progress) -> dict[str, dict]:
    rank = torch.distributed.get_rank() if len(shares) > 1 else 0
    batches = [
        [(number, start) for number in share for start in range(0, len(pieces[number]), batch_size)]
        for share in shares
    ]
    # As many passes on every process, the last ones for form's sake: ZeRO-3 gathers weights together.
    steps = max(map(len, batches), default=0)
    found, frames, generator = {}, [], None
    for step in tqdm(range(steps), desc="score", disable=not progress or rank != 0):
        idle = step >= len(batches[rank])
        number, start = (0, 0) if idle else batches[rank][step]
        piece, failure = pieces[number], None
        if start == 0:
            # Of its own for each piece, so that neither the number of processes nor a restart changes a candidate.
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{piece['sample_id'].iloc[0]}".encode()))
        try:
            scored = scorer(piece.iloc[start : start + batch_size], generator)
            if not idle:
                frames = scored if start == 0 else frames + scored
                if start + batch_size >= len(piece):
                    rows = scorer.finish(piece, frames)
                    found |= rows
                    _keep(partial, rows)
        except Exception as error:  # the other processes have to hear of it
            failure = error
        raise_first(failure)
    return found


class _Frame(NamedTuple):
    """What is kept of a row until its neighbours are known."""

    values: dict[str, float]
    grey: np.ndarray | None
    target: NearMask | None
    prediction: NearMask | None


class _Scorer:
    """Rows to values."""

    def __init__(self, model, processor, dataset, features, sampler, threshold, tolerance):
        self.encode = RowEncoder(model, processor, dataset, features)
        self.sampler, self.threshold, self.tolerance = sampler, threshold, tolerance

    @torch.no_grad()
    def __call__(self, piece: pd.DataFrame, generator: torch.Generator) -> list[_Frame]:
        rows, targets, features = self.encode(piece["row"])
        candidates = self.sampler(self.encode.bare, features, generator)
        size = self.encode.bare.config.grounding_config.image_size
        frames = []
        for position, (row, target) in enumerate(zip(rows, targets, strict=True)):
            chosen = features.row_index == position
            drawn = [
                (upsample_mask_logits(logits, size, target.shape[-2:]).sigmoid() > self.threshold).cpu().numpy()
                for logits in candidates.mask_logits[chosen]
            ]
            expected = float(candidates.iou_scores[chosen].mean())
            frames.append(self._frame(row, target.numpy() > 0, drawn, expected))
        return frames

    def _frame(self, row, targets, drawn, expected) -> _Frame:
        """From masks of shape `(masks, H, W)` and for each its candidates, `(K, H, W)`."""
        images = normalize_row(row)["images"]
        greys = [np.asarray(image.convert("L"), dtype=np.float32) / 255 for image in images]
        each = []
        for target, own in zip(targets, drawn, strict=True):
            values = {**segmentation_metrics(own[0], target), "cldice": cldice(own[0], target)}
            each.append(
                {name: values[name] for name in METRICS}
                | {"predicted_iou": expected, "spread": spread(own), "best_dice": float(dices(own, target).max())}
            )
        values = {name: float(np.mean([entry[name] for entry in each])) for name in each[0]}
        # All objects of a frame together; one mask an object and frame.
        target, prediction = (
            masks.reshape(-1, len(images), *targets.shape[1:]).any(0)
            for masks in (targets, np.stack([own[0] for own in drawn]))
        )
        measured = [measure(grey, mask) for grey, mask in zip(greys, target, strict=True)]
        values |= {name: _nanmean([entry[name] for entry in measured]) for name in measured[0]}
        if len(images) > 1:
            return _Frame(values, None, None, None)
        reach = self.tolerance * max(target[0].shape)
        return _Frame(values, greys[0], NearMask.of(target[0], reach), NearMask.of(prediction[0], reach))

    def finish(self, piece: pd.DataFrame, frames: list[_Frame]) -> dict[str, dict]:
        """Values of all rows of a piece, those that need neighbours included."""
        for position, (before, after) in enumerate(_neighbours(piece)):
            frame, values = frames[position], frames[position].values
            values.update(motion=math.nan, mask_agreement=math.nan, prediction_agreement=math.nan)
            near = [None if index is None else frames[index] for index in (before, after)]
            if frame.grey is None or any(other is not None and other.grey is None for other in near):
                continue  # clips are rows, not frames
            if near[0] is not None:
                values["motion"] = motion(frame.grey, near[0].grey)
            if None not in near:
                values["mask_agreement"] = max(agreement(frame.target, other.target) for other in near)
                values["prediction_agreement"] = min(agreement(frame.prediction, other.target) for other in near)
        return {name: frame.values for name, frame in zip(piece["sample_id"], frames, strict=True)}


class _Unlabelled:
    """Rows to values, without their masks: how well a row's prediction agrees with what its neighbours predict."""

    def __init__(self, model, processor, dataset, method, threshold, tolerance):
        self.model, self.processor, self.dataset = extract_model_from_parallel(model), processor, dataset
        self.method, self.threshold, self.tolerance = method, threshold, tolerance

    @torch.no_grad()
    def __call__(self, piece: pd.DataFrame, generator: torch.Generator) -> list["_Seen"]:
        rows = [self.dataset[int(number)] for number in piece["row"]]
        images, questions = _requests(rows)
        results = _segment(self.model, self.processor, images, questions, self.threshold)
        frames = []
        for image, question, result in zip(images, questions, results, strict=True):
            mask = result.masks[0].cpu().numpy()
            grey = np.asarray(image.convert("L"), dtype=np.float32) / 255
            values = {"predicted_iou": float(result.iou_scores[0]), **measure(grey, mask)}
            reach = self.tolerance * max(mask.shape)
            frames.append(_Seen(values, grey, NearMask.of(mask, reach), image, question))
        return frames

    def finish(self, piece: pd.DataFrame, frames: list["_Seen"]) -> dict[str, dict]:
        for position, (before, after) in enumerate(_neighbours(piece)):
            frame, values = frames[position], frames[position].values
            values.update(motion=math.nan, consistency=math.nan)
            if before is not None:
                values["motion"] = motion(frame.grey, frames[before].grey)
            near = [frames[index] for index in (before, after) if index is not None]
            near = [other for other in near if other.grey.shape == frame.grey.shape]
            if near and self.method == "tracking":
                values["consistency"] = self._tracked(frame, before, after, frames)
            elif near:
                values["consistency"] = _nanmean([agreement(frame.prediction, other.prediction) for other in near])
        return {name: frame.values for name, frame in zip(piece["sample_id"], frames, strict=True)}

    def _tracked(self, frame: "_Seen", before: int | None, after: int | None, frames: list["_Seen"]) -> float:
        """Dice of the frame's own mask with the one that SAM 2 carries over from its neighbours."""
        clip = [frames[before]] if before is not None else []
        own = len(clip)
        clip += [frame, *([frames[after]] if after is not None else [])]
        result = self.model.segment(
            video=[part.image for part in clip],
            text=frame.question,
            processor=self.processor,
            threshold=self.threshold,
            answer=ANSWERS[0],
            frames=[index for index in range(len(clip)) if index != own],
        )
        tracked = result.frame(own).masks[0].cpu().numpy()
        return float(dices(tracked[None], frame.prediction.mask)[0])


class _Seen(NamedTuple):
    """What is kept of an unlabelled row until its neighbours are known."""

    values: dict[str, float]
    grey: np.ndarray
    prediction: NearMask
    image: Image.Image
    question: str


def _requests(rows: list[dict]) -> tuple[list[Image.Image], list[str]]:
    values = [row["image"] if row.get("image") is not None else row["images"][0] for row in rows]
    images = [read_image(value).convert("RGB") for value in values]
    phrases = [row["phrase"] if row.get("phrase") is not None else row["phrases"][0] for row in rows]
    return images, [QUESTIONS[0].replace("{phrase}", phrase) for phrase in phrases]


def _segment(model, processor, images, questions, threshold):
    return model.segment(images=images, text=questions, processor=processor, threshold=threshold, answer=ANSWERS[0])


@torch.no_grad()
def predict_unlabelled(model: nn.Module, processor, rows, threshold: float = 0.5) -> list[np.ndarray]:
    """
    The masks that [`score_unlabelled`] judges.

    Args:
        model, processor, threshold: see there.
        rows (iterable of `dict`): few enough for one pass.

    Returns:
        `list[np.ndarray]` of shape `(1, H, W)`: bool, at the images' sizes.
    """
    results = _segment(model, processor, *_requests(list(rows)), threshold)
    return [result.masks.cpu().numpy() for result in results]


def score_unlabelled(
    model: nn.Module,
    processor,
    dataset: Dataset,
    *,
    method: str = "tracking",
    batch_size: int = 4,
    threshold: float = 0.5,
    tolerance: float = 0.02,
    prints: dict | None = None,
    partial_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """
    Score the frames of videos without looking at their masks: a frame is easy if what its neighbours predict fits what
    it predicts itself. That finds frames that the model is of two minds about; where it makes the same mistake on
    every frame of a run, it agrees with itself.

    Distributed and resumable as [`score_dataset`], but not for weights that ZeRO-3 has shared out.

    Args:
        model, processor, batch_size, prints, partial_dir, progress: see [`score_dataset`].
        dataset (`datasets.Dataset`):
            Rows with `image`, one phrase, `sample_id`, `video_id` and `frame_index`. Masks are not read.
        method (`str`, *optional*, defaults to `"tracking"`):
            `"tracking"`: Dice of the frame's own mask with the one that SAM 2's memory carries over from the two
            neighbouring frames (from one, at the ends of a video), in the model's own way (`config.tracking`).
            `"neighbours"`: mean [`~measurements.tolerant_dice`] of the frame's own mask with those of its neighbours,
            which costs no more than the masks.
        threshold (`float`, *optional*, defaults to 0.5): probability above which a pixel belongs to a mask.
        tolerance (`float`, *optional*, defaults to 0.02): of `"neighbours"`, as a share of the longer side.

    Returns:
        `pandas.DataFrame`: one row a row, in the order of the data set: identifiers, `predicted_iou`, what
        [`~measurements.measure`] says of the model's own mask, `motion`, and `consistency` in [0, 1], which is NaN of
        a frame that has no neighbour at the video's usual step.

    Raises:
        `MiningError`: rows without an image or with another number of phrases than one, no video, or videos without an
            order.
        `ValueError`: an option out of its range.
    """
    if method not in ("tracking", "neighbours"):
        raise ValueError(f"method must be tracking or neighbours, got {method!r}.")
    _check_score_options(batch_size, threshold, tolerance)
    dataset = plain_rows(dataset)
    table = _rows_of(dataset)
    bad = table[(table["images"] != 1) | (table["phrases"] != 1)]
    if len(bad):
        names = ", ".join(repr(name) for name in bad["sample_id"][:10]) + (", ..." if len(bad) > 10 else "")
        raise MiningError(f"{len(bad)} rows have not exactly one image and one phrase: {names}.")
    if "video_id" not in table or table["video_id"].isna().all():
        raise MiningError("Without labels frames are judged by their neighbours: the rows need video_id, frame_index.")
    scorer = _Unlabelled(model, processor, dataset, method, threshold, tolerance)
    options = ["unlabelled", method, threshold, tolerance]
    return _score(scorer, model, processor, dataset, table, options, batch_size, 0, prints, partial_dir, progress)


def _neighbours(piece: pd.DataFrame) -> list[tuple[int | None, int | None]]:
    """Of every row the positions of the frames just before and after it, at the video's usual step."""
    near = [[None, None] for _ in range(len(piece))]
    place = dict(zip(piece["sample_id"], range(len(piece)), strict=True))
    for _, rows in videos(piece):
        positions = [place[name] for name in rows["sample_id"]]
        steps = np.diff(on_the_grid(rows["frame_index"], 1))
        for one, other, step in zip(positions[:-1], positions[1:], steps, strict=True):
            if step == 1:
                near[one][1], near[other][0] = other, one
    return [tuple(pair) for pair in near]


def _nanmean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _keep(folder: Path | None, rows: dict[str, dict]) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # A file of its own that appears whole: neither another process nor a kill can spoil it.
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    temporary.write_text(json.dumps(rows))
    temporary.replace(folder / f"{temporary.name[1:-4]}.json")


def _partial_scores(folder: Path | None) -> dict[str, dict]:
    """What an earlier call has left, the same on all processes."""
    scores = {}
    for file in sorted(folder.glob("*.json")) if folder is not None else ():
        scores |= json.loads(file.read_text())
    return everywhere(scores)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def fingerprint_of(model: nn.Module, processor, dataset: Dataset) -> dict:
    """
    What scores depend on: every weight of the model, adapters included, the processor, and the rows.

    An adapter that is folded into the weights makes another fingerprint than the same adapter beside them. Under
    ZeRO-3 all processes have to call it together.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): the rows, in any order: images, masks, texts and identifiers count.

    Returns:
        `dict` of strings and numbers, which JSON can hold.
    """
    prints = fingerprint(extract_model_from_parallel(model), processor, parts=("",))
    # Not the versions of packages: scores stay what they were measured to be.
    kept = {name: prints[name] for name in ("weights", "config", "processor", "dtype")}
    return {"format": FORMAT, "model": kept, "dataset": _dataset_digest(dataset), "rows": len(dataset)}


def _dataset_digest(dataset: Dataset) -> str:
    keys, entries = row_keys(dataset, QUESTIONS[0], ANSWERS[0]), []
    number = 0
    for rows in iter_undecoded(dataset):
        for row in rows:
            found = hashlib.sha256(keys[number].encode())
            masks = [row["mask"]] if row.get("mask") is not None else row.get("masks") or []
            for mask in masks:
                stored = mask["bytes"] if mask["bytes"] is not None else Path(mask["path"]).read_bytes()
                found.update(hashlib.sha256(stored).digest())
            names = [None if row.get(name) is None else str(row[name]) for name in IDENTIFIERS]
            found.update(json.dumps(names).encode())
            entries.append(found.hexdigest())
            number += 1
    return hashlib.sha256("".join(sorted(entries)).encode()).hexdigest()


def save_scores(scores: pd.DataFrame, path: str | os.PathLike, fingerprint: dict) -> None:
    """
    Write scores as Parquet, with the fingerprint in the file's metadata: beside, then renamed.

    Args:
        scores (`pandas.DataFrame`): from [`score_dataset`].
        path (`str` or `os.PathLike`): of the file; its folder is made if it is not there.
        fingerprint (`dict`): from [`fingerprint_of`].
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pandas(scores, preserve_index=False)
    table = table.replace_schema_metadata({**table.schema.metadata, _METADATA: json.dumps(fingerprint).encode()})
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)


def read_scores(path: str | os.PathLike, fingerprint: dict | None = None) -> pd.DataFrame:
    """
    Scores from a file of [`save_scores`].

    Args:
        path (`str` or `os.PathLike`): of the file.
        fingerprint (`dict`, *optional*): of the model and the data set that the scores have to be of.

    Returns:
        `pandas.DataFrame`.

    Raises:
        `MiningError`: there is no such file, it holds no scores, or those of another model or data set.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise MiningError(
            f"{path} cannot be read as scores: {error}. recipes/mine_hard_samples.py writes them."
        ) from error
    metadata = table.schema.metadata or {}
    if _METADATA not in metadata:
        raise MiningError(
            f"{path} holds no scores of recipes/mine_hard_samples.py: it says of no model what it is of."
        )
    own = json.loads(metadata[_METADATA])
    if fingerprint is not None:
        wrong = []
        if own.get("format") != fingerprint["format"]:
            wrong.append("they were written by another version of this package")
        if own.get("model") != fingerprint["model"]:
            parts = [name for name, part in fingerprint["model"].items() if own.get("model", {}).get(name) != part]
            wrong.append(f"they are of another model (its {', '.join(parts)} differ)")
        if own.get("dataset") != fingerprint["dataset"]:
            rows = f"{own.get('rows')} rows, not {fingerprint['rows']}"
            same = own.get("rows") == fingerprint["rows"]
            wrong.append(f"they are of another data set ({'as many other rows' if same else rows})")
        if wrong:
            raise MiningError(
                f"{path} holds scores that do not fit: {' and '.join(wrong)}. Mine again with this model."
            )
    return table.to_pandas()


# ---------------------------------------------------------------------------------------------------------------------
# What is hard, and what may be a faulty label
# ---------------------------------------------------------------------------------------------------------------------

#: Lower bounds of the buckets, each of which ends just before the next: [0, 0.5), [0.5, 0.65), [0.65, 0.75) and the
#: rest, [0.75, 1].
BUCKETS = (0.0, 0.5, 0.65, 0.75)
#: What a measurement says of a run, and which values of it make a frame hard: low (-1) or high (1) ones.
CAUSES = {
    "contrast": ("faint contrast", -1),
    "area": ("little filling", -1),
    "sharpness": ("blur", -1),
    "motion": ("motion", 1),
    "thickness": ("thin vessels", -1),
    "border_distance": ("near the border", -1),
}
UNCLEAR = "unclear"
#: With its neighbours, from which on a mask agrees with them.
AGREEMENT = 0.8


def hard_threshold(
    scores: pd.DataFrame, threshold: float | None = None, worst: float | None = None, by: str = "dice"
) -> float:
    """
    The threshold below which samples are hard.

    Args:
        scores (`pandas.DataFrame`): from [`score_dataset`].
        threshold (`float`, *optional*): 0.75 where neither it nor `worst` is given.
        worst (`float`, *optional*):
            In its place, the share of the samples that is to be hard, in (0, 1). Samples that tie with the last of
            them are hard, too.
        by (`str`, *optional*, defaults to `"dice"`): column to judge by; higher is easier, NaN is never hard.

    Returns:
        `float`.

    Raises:
        `MiningError`: no sample, or every sample, would be hard; the message says which thresholds select what.
        `ValueError`: both options, or one out of its range.
    """
    check_options(threshold, worst)
    if by not in scores:
        raise ValueError(f"by={by!r}: the scores have no such column, only {', '.join(scores)}.")
    values = np.sort(scores[by].dropna().to_numpy(dtype=np.float64))
    if not len(values):
        raise MiningError(f"No sample has a {by}, so none can be hard.")
    if worst is not None:
        count = round(worst * len(values))
        if count == 0:
            raise MiningError(
                f"worst={worst:g} of {len(values)} samples is none: give {1 / len(values):.2g}, or a threshold."
            )
        threshold, option = float(np.nextafter(values[count - 1], np.inf)), f"worst={worst:g}"
    else:
        threshold = THRESHOLD if threshold is None else threshold
        option = f"threshold={threshold:g}"
    hard = int(np.count_nonzero(values < threshold))
    if 0 < hard < len(values):
        return threshold
    what = "selects none" if hard == 0 else "selects all"
    raise MiningError(f"{option} {what} of {len(values)} samples. {_what_would(values, by)}")


def _what_would(values: np.ndarray, by: str) -> str:
    """Which thresholds select some samples and not all; `values` are sorted."""
    found = f"Their {by} goes from {values[0]:.4f} to {values[-1]:.4f}."
    if values[0] == values[-1]:
        return f"{found} As it is the same everywhere, no threshold tells hard from easy."
    offers = {}
    for share in (0.05, 0.1, 0.2, 0.3, 0.5):
        # Rounded up, so that the value as it is printed does select its sample.
        value = math.floor(np.quantile(values, share) * 1e4 + 1) / 1e4
        selected = int(np.count_nonzero(values < value))
        if 0 < selected < len(values):
            offers[selected] = f"{value:.4f} selects {selected}"
    if not offers:
        offers[1] = f"{float(np.nextafter(values[0], np.inf))!r} selects {np.count_nonzero(values == values[0])}"
    return f"{found} A threshold of {', '.join(offers.values())}."


def select_hard(
    scores: pd.DataFrame, threshold: float | None = None, worst: float | None = None, by: str = "dice"
) -> pd.Series:
    """
    Which samples are hard.

    Args:
        scores, threshold, worst, by: see [`hard_threshold`].

    Returns:
        `pandas.Series` of bool, like `scores`: some are `True` and some are not.

    Raises:
        `MiningError`, `ValueError`: see [`hard_threshold`].
    """
    threshold = hard_threshold(scores, threshold, worst, by)
    return (scores[by] < threshold).rename("hard")


def buckets(scores: pd.DataFrame, threshold: float = THRESHOLD, by: str = "dice") -> list[dict]:
    """
    How the samples are distributed over `BUCKETS`.

    Args:
        scores (`pandas.DataFrame`): from [`score_dataset`].
        threshold (`float`, *optional*, defaults to 0.75): of the hard samples.
        by (`str`, *optional*, defaults to `"dice"`): in [0, 1]; samples without a value are in no bucket.

    Returns:
        `list[dict]`, a bucket each, from the hardest: `from` (inclusive), `to` (exclusive, but for the last), `count`,
        and the `sample_id` and score of the `hardest` sample and of the `borderline` one, which is nearest to the
        threshold; `None` in an empty bucket.
    """
    ends = [*BUCKETS[1:], math.inf]
    found = []
    for low, high in zip(BUCKETS, ends, strict=True):
        own = scores[(scores[by] >= low) & (scores[by] < high)]
        own = own.sort_values([by, "sample_id"], kind="stable")
        picked = {"hardest": None, "borderline": None}
        if len(own):
            rows = {"hardest": own.iloc[0], "borderline": own.iloc[int((own[by] - threshold).abs().argmin())]}
            picked = {name: {"sample_id": row["sample_id"], by: float(row[by])} for name, row in rows.items()}
        found.append({"from": low, "to": min(high, 1.0), "count": len(own), **picked})
    return found


def mark_clusters(
    scores: pd.DataFrame,
    threshold: float = THRESHOLD,
    max_gap: int = 0,
    min_length: int = 2,
    smoothing: int = 1,
    by: str = "dice",
) -> pd.Series:
    """
    The run of hard frames that every sample belongs to, see [`temporal_clusters`].

    Frames are put in the order of their `frame_index`. Where it jumps by more than the video's usual step, frames are
    missing: each counts as one without a score, so a run goes over at most `max_gap` of them.

    Args:
        scores (`pandas.DataFrame`): from [`score_dataset`].
        threshold, max_gap, min_length, smoothing: see [`temporal_clusters`].
        by (`str`, *optional*, defaults to `"dice"`): column to judge by; higher is easier.

    Returns:
        `pandas.Series` of str, like `scores`: video and number of the run (`"v0003/0"`); `None` outside of runs.

    Raises:
        `MiningError`: see [`check_frames`].
        `ValueError`: see [`temporal_clusters`].
    """
    check_options(threshold, None, max_gap, min_length, smoothing)
    marks = _none_of(scores, "cluster")
    for video, rows in videos(scores):
        # A gap that is too long for a run and for the window needs no more room than that.
        grid = on_the_grid(rows["frame_index"], max(max_gap, smoothing) + 1)
        values = np.full(grid[-1] + 1, np.nan)
        values[grid] = rows[by]
        for number, (first, last) in enumerate(temporal_clusters(values, threshold, max_gap, min_length, smoothing)):
            marks[rows.index[(grid >= first) & (grid <= last)]] = f"{video}/{number}"
    return marks


def _none_of(scores: pd.DataFrame, name: str) -> pd.Series:
    return pd.Series([None] * len(scores), index=scores.index, dtype=object, name=name)


def describe_clusters(scores: pd.DataFrame, by: str = "dice") -> pd.DataFrame:
    """
    The runs, each with its likely cause.

    Args:
        scores (`pandas.DataFrame`): with `cluster` from [`mark_clusters`] and the measurements.
        by (`str`, *optional*, defaults to `"dice"`): column they were judged by.

    Returns:
        `pandas.DataFrame`, one row a run, the hardest first: `cluster`, `video_id`, `first_frame`, `last_frame`
        (`frame_index`, inclusive), `frames`, the mean (`mean`) and the lowest score (`lowest`), `hardest` (the
        `sample_id` of the latter), `sample_ids`, `cause` and `cause_ratio` (see [`likely_cause`]).
    """
    found = []
    for video, rows in videos(scores):
        for cluster, own in rows.dropna(subset=["cluster"]).groupby("cluster", sort=False):
            cause, ratio = likely_cause(own, rows[rows["cluster"].isna()])
            hardest = own.loc[own[by].idxmin()]
            found.append(
                {
                    "cluster": cluster,
                    "video_id": video,
                    "first_frame": int(own["frame_index"].min()),
                    "last_frame": int(own["frame_index"].max()),
                    "frames": len(own),
                    "mean": float(own[by].mean()),
                    "lowest": float(hardest[by]),
                    "hardest": hardest["sample_id"],
                    "sample_ids": own["sample_id"].tolist(),
                    "cause": cause,
                    "cause_ratio": ratio,
                }
            )
    columns = ["cluster", "video_id", "first_frame", "last_frame", "frames", "mean", "lowest", "hardest", "sample_ids"]
    return pd.DataFrame(found, columns=[*columns, "cause", "cause_ratio"]).sort_values("mean", ignore_index=True)


def likely_cause(own: pd.DataFrame, others: pd.DataFrame) -> tuple[str, float]:
    """
    What a run of hard frames differs in most from the other frames of its video.

    A measurement counts if its median in the run is worse than that of the others by a factor of 1.2, and by two
    robust standard deviations (1.4826 x the median absolute deviation, of logarithms, and at least 0.05) of the
    others. Of those that count, the one with the most standard deviations is named; but blur only where the contrast
    does not count, as over a structured background faint vessels alone lower the sharpness.

    It is a hint, not a finding: what differs need not be what the model fails at.

    Args:
        own (`pandas.DataFrame`): rows of the run, with the measurements that `CAUSES` names.
        others (`pandas.DataFrame`): rows of the same video in no run.

    Returns:
        `str` from `CAUSES`, and the ratio of the two medians; `"unclear"` and NaN where nothing counts, or fewer than
        three other frames can be compared with.
    """
    found = {}
    for name, (_, sign) in CAUSES.items():
        if name not in own:
            continue
        near, far = (np.log(table[name][table[name] > 0].to_numpy(dtype=np.float64)) for table in (own, others))
        if not len(near) or len(far) < 3:
            continue
        change = float(np.median(near) - np.median(far))
        deviation = 1.4826 * float(np.median(np.abs(far - np.median(far))))
        effect = sign * change / max(deviation, 0.05)
        if sign * change > math.log(1.2) and effect > 2:
            found[name] = (effect, math.exp(change))
    if "contrast" in found:
        found.pop("sharpness", None)
    if not found:
        return UNCLEAR, math.nan
    name = max(found, key=found.get)
    return CAUSES[name][0], found[name][1]


def review_reasons(scores: pd.DataFrame, tau_low: float = 0.3) -> pd.Series:
    """
    Rows whose label may be wrong, and why. They are for a person to look at, and not to be trained on until then.

    - No candidate explains the mask: `best_dice < tau_low`. (A model that fails everywhere lists everything here.)
    - The mask disagrees with both neighbours' (`mask_agreement` below 0.8) while the model's mask agrees with them
      (`prediction_agreement` of 0.8 or more), and better by 0.1. A vessel that moves by less than the tolerance of
      [`score_dataset`] still agrees.

    Args:
        scores (`pandas.DataFrame`): from [`score_dataset`].
        tau_low (`float`, *optional*, defaults to 0.3): in [0, 1]; 0 turns the first rule off.

    Returns:
        `pandas.Series` of str, like `scores`; `None` for rows that nothing speaks against.

    Raises:
        `ValueError`: `tau_low` is out of its range.
    """
    check_options(tau_low=tau_low)
    unexplained = scores["best_dice"] < tau_low
    own, model = scores["mask_agreement"], scores["prediction_agreement"]
    alone = (own < AGREEMENT) & (model >= AGREEMENT) & (model - own >= 0.1)
    reasons = _none_of(scores, "review_reason")
    reasons[alone] = "the mask disagrees with both neighbours', the model's mask agrees with them"
    reasons[unexplained] = f"no candidate has a Dice of {tau_low:g}"
    return reasons


def mine(
    scores: pd.DataFrame,
    threshold: float | None = None,
    worst: float | None = None,
    max_gap: int = 0,
    min_length: int = 2,
    smoothing: int = 1,
    tau_low: float = 0.3,
    by: str = "dice",
) -> pd.DataFrame:
    """
    Scores with what follows from them.

    Args:
        scores (`pandas.DataFrame`): from [`score_dataset`] or [`score_unlabelled`].
        threshold, worst, by: see [`hard_threshold`].
        max_gap, min_length, smoothing: see [`mark_clusters`].
        tau_low (`float`, *optional*, defaults to 0.3): see [`review_reasons`]; without labels there is no review.

    Returns:
        `pandas.DataFrame`: a copy with `hard` (bool), `cluster` (str or `None`), `review` (bool) and `review_reason`
        (str or `None`). A row can be both hard and for review.

    Raises:
        `MiningError`, `ValueError`: see there.
    """
    threshold = hard_threshold(scores, threshold, worst, by)
    reasons = review_reasons(scores, tau_low) if "best_dice" in scores else _none_of(scores, "review_reason")
    return scores.assign(
        hard=scores[by] < threshold,
        cluster=mark_clusters(scores, threshold, max_gap, min_length, smoothing, by),
        review=reasons.notna(),
        review_reason=reasons,
    )


def summary(mined: pd.DataFrame, threshold: float, by: str = "dice") -> dict:
    """
    What mining has found, for people and for JSON.

    Args:
        mined (`pandas.DataFrame`): from [`mine`].
        threshold (`float`): of the hard samples, see [`hard_threshold`].
        by (`str`, *optional*, defaults to `"dice"`): column they were judged by.

    Returns:
        `dict` with `samples` (their number), `hard` (`sample_id`s), `buckets` (see [`buckets`]), `clusters` (see
        [`describe_clusters`]; no ratio is `None`) and `review` (`sample_id` and `review_reason` of each row).
    """
    clusters = describe_clusters(mined, by).to_dict("records")
    for cluster in clusters:
        cluster["cause_ratio"] = None if math.isnan(cluster["cause_ratio"]) else cluster["cause_ratio"]
    return {
        "samples": len(mined),
        "hard": mined["sample_id"][mined["hard"]].tolist(),
        "buckets": buckets(mined, threshold, by),
        "clusters": clusters,
        "review": mined[mined["review"]][["sample_id", "review_reason"]].to_dict("records"),
    }
