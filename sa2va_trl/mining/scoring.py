"""Scores of a data set, from its masks."""

import math
import os
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import nn

from ..data.checks import check_dataset
from ..data.layout import normalize_row
from ..errors import MiningError
from ..features.encoding import RowEncoder, Stored
from ..mask_logits import mask_probabilities, upsample_mask_logits
from ..metrics import NearMask, agreement, cldice, dices, measure, motion, segmentation_metrics, spread
from ..models import Sa2VAProcessor
from ..sampling import MaskSampler, default_sampler
from .pieces import check_score_options, nanmean, neighbours, partial_folder, rows_of, score_pieces, stored_temperature
from .score_files import SCORE_METRICS, fingerprint_of


def score_dataset(
    model: nn.Module,
    processor: Sa2VAProcessor,
    dataset: Dataset,
    *,
    batch_size: int = 4,
    features: Stored | None = None,
    sampler: MaskSampler | None = None,
    threshold: float = 0.5,
    tolerance: float = 0.02,
    seed: int = 0,
    prints: dict | None = None,
    partial_dir: str | os.PathLike | None = None,
    progress: bool = True,
    question: str | None = None,
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
        dataset (`datasets.Dataset`): rows as in [`~data.checks.check_dataset`].
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
        question (`str`, *optional*):
            Template to ask with; by default the model's own, see [`~questions.question_of`], which is that of
            `features` too.

    Returns:
        `pandas.DataFrame`: one row a row with masks, in the order of the data set, with (numbers are float64)
            - `sample_id` and those of `patient_id`, `video_id`, `frame_index` that the data set has;
            - `dice`, `iou`, `precision`, `recall`, `cldice` of the model's own mask, averaged over the row's masks;
            - `predicted_iou`: what the model expects of its mask;
            - `spread`: 1 - mean Dice of the candidates with each other, 0 where all are equal;
            - `reward_spread`: standard deviation of the Dice of the candidates with the row's mask, the model's own
            among them: what reinforcement learning has to choose from, see [`~trainers.SegGRPOConfig`]. (Candidates
            may differ and be equally good.) Scores of earlier versions do not have it;
            - `best_dice`: the highest Dice of any candidate;
            - what [`~metrics.measure`] says of all the row's masks together, and [`~metrics.motion`] from
            the frame before;
            - `mask_agreement`: the better of the two values of [`~metrics.tolerant_dice`] of the row's mask with
            the masks of its neighbouring frames, and `prediction_agreement`: the worse of those of the model's mask
            with the same two masks. NaN where a frame has no neighbour on both sides at the video's usual step.

    Raises:
        `DatasetError`: bad rows.
        `MiningError`: no row with a mask, or videos without an order (see [`check_frames`]).
        `ValueError`: an option out of its range.

    Example:

        ```python
        >>> from sa2va_trl import tiny_sa2va
        >>> from sa2va_trl.data import synthetic_dataset
        >>> from sa2va_trl.mining import mine, score_dataset

        >>> model, processor = tiny_sa2va(image_size=128)
        >>> dataset = synthetic_dataset(num_videos=1, frames_per_video=4, size=64)
        >>> scores = score_dataset(model, processor, dataset, progress=False)
        >>> mined = mine(scores, worst=0.5)
        >>> len(mined), int(mined["hard"].sum())
        (4, 2)

        ```
    """
    check_score_options(batch_size, threshold, tolerance)
    sampler = default_sampler() if sampler is None else sampler
    check_dataset(dataset, name="dataset")
    table = rows_of(dataset)
    table = table[table["masks"] > 0]
    if table.empty:
        raise MiningError("The dataset has no row with a mask, so there is nothing to score.")
    # (The name of the latest column: what an earlier version has left in pieces does not have it.)
    options = [repr(sampler), threshold, tolerance, seed, "reward_spread", *stored_temperature(model)]
    options += [] if question is None else [question]
    partial = partial_folder(partial_dir, lambda: prints or fingerprint_of(model, processor, dataset), options)
    encode = RowEncoder(model, processor, dataset, features, batch_size, progress, question)
    return score_pieces(_Scorer(encode, sampler, threshold, tolerance), table, seed, partial)


class _Frame(NamedTuple):
    """What is kept of a row until its neighbours are known."""

    values: dict[str, float]
    grey: np.ndarray | None
    target: NearMask | None
    prediction: NearMask | None


class _Scorer:
    """Rows to values."""

    def __init__(self, encode: RowEncoder, sampler: MaskSampler, threshold: float, tolerance: float):
        self.encode, self.sampler, self.threshold, self.tolerance = encode, sampler, threshold, tolerance
        self.model, self.batch_size, self.progress = encode.model, encode.batch_size, encode.progress

    @torch.no_grad()
    def __call__(self, piece: pd.DataFrame, generator: torch.Generator) -> list[_Frame]:
        rows, targets, features = self.encode(piece["row"])
        candidates = self.sampler(self.encode.bare, features, generator)
        config = self.encode.bare.config
        size, temperature = config.grounding_config.image_size, config.mask_temperature
        frames = []
        for position, (row, target) in enumerate(zip(rows, targets, strict=True)):
            chosen = features.row_index == position
            maps = (upsample_mask_logits(logits, size, target.shape[-2:]) for logits in candidates.mask_logits[chosen])
            drawn = [(mask_probabilities(own, temperature) > self.threshold).cpu().numpy() for own in maps]
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
            reached = dices(own, target)
            each.append(
                {name: values[name] for name in SCORE_METRICS}
                | {"predicted_iou": expected, "spread": spread(own), "reward_spread": float(reached.std())}
                | {"best_dice": float(reached.max())}
            )
        values = {name: float(np.mean([entry[name] for entry in each])) for name in each[0]}
        # All objects of a frame together; one mask an object and frame.
        target, prediction = (
            masks.reshape(-1, len(images), *targets.shape[1:]).any(0)
            for masks in (targets, np.stack([own[0] for own in drawn]))
        )
        measured = [measure(grey, mask) for grey, mask in zip(greys, target, strict=True)]
        values |= {name: nanmean([entry[name] for entry in measured]) for name in measured[0]}
        if len(images) > 1:
            return _Frame(values, None, None, None)
        reach = self.tolerance * max(target[0].shape)
        return _Frame(values, greys[0], NearMask.of(target[0], reach), NearMask.of(prediction[0], reach))

    def finish(self, piece: pd.DataFrame, frames: list[_Frame]) -> dict[str, dict]:
        """Values of all rows of a piece, those that need neighbours included."""
        for position, (before, after) in enumerate(neighbours(piece)):
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
