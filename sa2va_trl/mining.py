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
from scipy import ndimage
from skimage.morphology import skeletonize
from torch import nn
from tqdm.auto import tqdm

from .data.collator import ANSWERS, QUESTIONS, SegCollator
from .data.columns import BadRow, check_dataset, iter_undecoded, normalize_row
from .data.features import KEY, FeatureCollator, FeatureStore, everywhere, fingerprint, row_keys
from .metrics import cldice, segmentation_metrics
from .models.grounding import upsample_mask_logits
from .preferences import MaskSampler


#: Dice below which a sample is hard. (A frame at the threshold is not.)
THRESHOLD = 0.75
IDENTIFIERS = ("sample_id", "patient_id", "video_id", "frame_index")
METRICS = ("dice", "iou", "precision", "recall", "cldice")
MEASUREMENTS = ("contrast", "area", "sharpness", "motion", "thickness", "border_distance")

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
    _check_run_options(threshold, max_gap, min_length, smoothing)
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


def _check_run_options(threshold, max_gap, min_length, smoothing) -> None:
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, got nan.")
    for name, value, least in (("max_gap", max_gap, 0), ("min_length", min_length, 1), ("smoothing", smoothing, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
    if smoothing % 2 == 0:
        raise ValueError(f"smoothing must be odd, so that its window has a middle; got {smoothing}.")


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
# Measurements of a frame
# ---------------------------------------------------------------------------------------------------------------------


def measure(grey: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """
    Simple measurements that may say why a frame is hard.

    Args:
        grey (`np.ndarray` of shape `(H, W)`): in [0, 1].
        mask (`np.ndarray` of shape `(H, W)`): bool.

    Returns:
        `dict[str, float]`; NaN of an empty mask where there is nothing to measure:
            - `contrast`: difference of the mean grey values of the mask and of a ring around it, over the ring's;
            - `area`: share of the picture that the mask covers (vessels that no contrast agent fills are not in it);
            - `sharpness`: variance of the Laplacian, after a Gaussian of 1 pixel, which spares it most of the noise;
            - `thickness`: mean diameter along the skeleton, in pixels, from the distance transform;
            - `border_distance`: mean distance of the mask's pixels to the border, over the shorter side.
    """
    values = dict.fromkeys(("contrast", "area", "sharpness", "thickness", "border_distance"), math.nan)
    values["area"] = float(mask.mean())
    values["sharpness"] = float(ndimage.gaussian_laplace(grey, 1.0).var())
    if mask.any():
        side = min(mask.shape)
        away = ndimage.distance_transform_edt(~mask)
        ring = (away > 1.5) & (away <= 1.5 + max(3.0, 0.02 * side))
        if ring.any():
            around = grey[ring].mean()
            values["contrast"] = float(abs(grey[mask].mean() - around) / max(around, 1e-6))
        # Padded, or a vessel that is cut off by the border would seem to grow thicker there.
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        values["thickness"] = float(2 * depth[skeletonize(mask)].mean())
        y, x = np.nonzero(mask)
        edge = np.minimum.reduce([y, x, mask.shape[0] - 1 - y, mask.shape[1] - 1 - x])
        values["border_distance"] = float(edge.mean() / side)
    return values


def motion(grey: np.ndarray, previous: np.ndarray) -> float:
    """
    Mean absolute difference of two frames after a Gaussian of 2 pixels, which spares it most of the noise.

    Args:
        grey, previous (`np.ndarray` of shape `(H, W)`): in [0, 1].

    Returns:
        `float` in [0, 1]; NaN if the frames differ in size.
    """
    if grey.shape != previous.shape:
        return math.nan
    return float(np.abs(ndimage.gaussian_filter(grey - previous, 2.0)).mean())


def tolerant_dice(a: np.ndarray, b: np.ndarray, tolerance: float) -> float:
    """
    Dice coefficient that forgives a shift: a pixel counts as found if the other mask is within `tolerance` of it.

    Args:
        a, b (`np.ndarray` of shape `(H, W)`): bool.
        tolerance (`float`): in pixels.

    Returns:
        `float` in [0, 1]: with a tolerance of 0 the Dice coefficient; 1 of two empty masks, 0 if only one is.
    """
    return _agreement(_Blurred.of(a, tolerance), _Blurred.of(b, tolerance))


class _Blurred(NamedTuple):
    """A mask, and what is near it."""

    mask: np.ndarray
    near: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, tolerance: float) -> "_Blurred":
        return cls(mask, ndimage.distance_transform_edt(~mask) <= tolerance if mask.any() else mask)


def _agreement(a: _Blurred, b: _Blurred) -> float:
    if a.mask.shape != b.mask.shape:
        return math.nan
    total = int(a.mask.sum()) + int(b.mask.sum())
    return (int((a.mask & b.near).sum()) + int((b.mask & a.near).sum())) / total if total else 1.0


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
            - the measurements of [`measure`], of all the row's masks together, and [`motion`] since the frame before;
            - `mask_agreement`: the better of the [`tolerant_dice`]s of the row's mask with the masks of the two
            neighbouring frames, and `prediction_agreement`: the worse of those of the model's mask with the same two
            masks. NaN where a frame has no neighbour on both sides at the video's usual step.

    Raises:
        `DatasetError`: bad rows.
        `MiningError`: no row with a mask, or videos without an order (see [`check_frames`]).
        `ValueError`: an option out of its range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is a share of the image's side in [0, 1), got {tolerance}.")
    sampler = default_sampler() if sampler is None else sampler
    check_dataset(dataset, name="dataset")
    table = _rows_of(dataset)
    table = table[table["masks"] > 0]
    if table.empty:
        raise MiningError("The dataset has no row with a mask, so there is nothing to score.")
    pieces = _pieces(table)

    partial = None
    if partial_dir is not None:
        prints = fingerprint_of(extract_model_from_parallel(model), processor, dataset) if prints is None else prints
        options = [FORMAT, prints, repr(sampler), threshold, tolerance, seed]
        partial = Path(partial_dir) / hashlib.sha256(json.dumps(options).encode()).hexdigest()[:16]
    scores = _partial_scores(partial)
    missing = [piece for piece in pieces if not all(name in scores for name in piece["sample_id"])]
    own = _share(missing)

    scorer = _Scorer(model, processor, dataset, features, sampler, threshold, tolerance)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        found = _score_pieces(scorer, own, missing, batch_size, seed, partial, progress)
    finally:
        for module, training in modes.items():
            module.training = training
    for share in everywhere(found):
        scores |= share
    names = [name for name in IDENTIFIERS if name in table]
    rest = pd.DataFrame([scores[name] for name in table["sample_id"]])
    return pd.concat([table[names].reset_index(drop=True), rest], axis=1)


def _rows_of(dataset: Dataset) -> pd.DataFrame:
    """Identifiers of all rows, with the number of masks and of images; `row` is the position."""
    names = [name for name in IDENTIFIERS if name in dataset.column_names]
    found = {name: [] for name in (*names, "masks", "images")}
    for rows in iter_undecoded(dataset):
        for row in rows:
            for name in names:
                found[name].append(row[name])
            for one, many in (("mask", "masks"), ("image", "images")):
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
        FeatureStore._raise_first(failure)
    return found


class _Frame(NamedTuple):
    """What is kept of a row until its neighbours are known."""

    values: dict[str, float]
    grey: np.ndarray | None
    target: _Blurred | None
    prediction: _Blurred | None


class _Scorer:
    """Rows to values."""

    def __init__(self, model, processor, dataset, features, sampler, threshold, tolerance):
        self.model, self.bare = model, extract_model_from_parallel(model)
        self.dataset, self.sampler = dataset, sampler
        self.threshold, self.tolerance = threshold, tolerance
        self.collator, self.keys = SegCollator(processor), None
        if features is not None:
            store, self.keys = features
            self.collator = FeatureCollator(self.collator, store)

    @torch.no_grad()
    def __call__(self, piece: pd.DataFrame, generator: torch.Generator) -> list[_Frame]:
        rows = [self.dataset[int(number)] for number in piece["row"]]
        device, dtype = self.bare.device, self.bare.dtype
        if self.keys is None:
            batch = self.collator(rows)
            inputs = {
                name: value.to(device, dtype if value.is_floating_point() else None)
                for name, value in batch.items()
                if name not in ("original_masks", "masks", "labels")
            }
            features = self.model(**inputs, encode_only=True).features
        else:
            keyed = zip(rows, piece["row"], strict=True)
            batch = self.collator([{**row, KEY: self.keys[int(number)]} for row, number in keyed])
            features = batch["features"].to(device)
        candidates = self.sampler(self.bare, features, generator)
        size = self.bare.config.grounding_config.image_size
        frames = []
        for position, (row, target) in enumerate(zip(rows, batch["original_masks"], strict=True)):
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
                | {"predicted_iou": expected, "spread": spread(own), "best_dice": float(_dices(own, target).max())}
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
        return _Frame(values, greys[0], _Blurred.of(target[0], reach), _Blurred.of(prediction[0], reach))

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
                values["mask_agreement"] = max(_agreement(frame.target, other.target) for other in near)
                values["prediction_agreement"] = min(_agreement(frame.prediction, other.target) for other in near)
        return {name: frame.values for name, frame in zip(piece["sample_id"], frames, strict=True)}


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


def _dices(masks: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Dice of masks of shape `(K, H, W)` with a target; 1 of two empty ones."""
    total = masks.sum((1, 2)) + target.sum()
    return np.where(total > 0, 2 * (masks & target).sum((1, 2)) / np.maximum(total, 1), 1.0)


def spread(masks: np.ndarray) -> float:
    """
    How much candidate masks differ.

    Args:
        masks (`np.ndarray` of shape `(K, H, W)`): bool.

    Returns:
        `float` in [0, 1]: 1 - mean Dice of all pairs; 0 of fewer than two.
    """
    if len(masks) < 2:
        return 0.0
    pairs = [_dices(masks[number + 1 :], masks[number]) for number in range(len(masks) - 1)]
    return float(1 - np.concatenate(pairs).mean())


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
