"""Scores without labels: how well a frame fits its neighbours."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from PIL import Image
from torch import nn

from ..data.prompts import ANSWERS
from ..data.stored import plain_rows
from ..errors import MiningError
from ..features.encoding import unwrapped
from ..media.pictures import read_image
from ..metrics import NearMask, agreement, dices, measure, motion
from ..models import Sa2VAProcessor, Segmentation
from ..postprocessing import Postprocessing
from ..questions import ask, question_of
from .pieces import check_score_options, nanmean, neighbours, partial_folder, rows_of, score_pieces, stored_temperature
from .score_files import fingerprint_of


@dataclass
class _Unlabelled:
    """Rows to values, without their masks: how well a row's prediction agrees with what its neighbours predict."""

    model: nn.Module
    processor: Sa2VAProcessor
    dataset: Dataset
    batch_size: int
    progress: bool
    method: str
    threshold: float
    tolerance: float

    @torch.no_grad()
    def __call__(self, piece: pd.DataFrame, generator: torch.Generator) -> list["_Seen"]:
        rows = [self.dataset[int(number)] for number in piece["row"]]
        model = unwrapped(self.model)
        images, questions = _requests(rows, question_of(model.config))
        results = _segment(model, self.processor, images, questions, self.threshold)
        frames = []
        for image, question, result in zip(images, questions, results, strict=True):
            mask = result.masks[0].cpu().numpy()
            grey = np.asarray(image.convert("L"), dtype=np.float32) / 255
            values = {"predicted_iou": float(result.iou_scores[0]), **measure(grey, mask)}
            reach = self.tolerance * max(mask.shape)
            frames.append(_Seen(values, grey, NearMask.of(mask, reach), image, question))
        return frames

    def finish(self, piece: pd.DataFrame, frames: list["_Seen"]) -> dict[str, dict]:
        for position, (before, after) in enumerate(neighbours(piece)):
            frame, values = frames[position], frames[position].values
            values.update(motion=math.nan, consistency=math.nan)
            if before is not None:
                values["motion"] = motion(frame.grey, frames[before].grey)
            near = [frames[index] for index in (before, after) if index is not None]
            near = [other for other in near if other.grey.shape == frame.grey.shape]
            if near and self.method == "tracking":
                values["consistency"] = self._tracked(frame, before, after, frames)
            elif near:
                values["consistency"] = nanmean([agreement(frame.prediction, other.prediction) for other in near])
        return {name: frame.values for name, frame in zip(piece["sample_id"], frames, strict=True)}

    def _tracked(self, frame: "_Seen", before: int | None, after: int | None, frames: list["_Seen"]) -> float:
        """Dice of the frame's own mask with the one that SAM 2 carries over from its neighbours."""
        clip = [frames[before]] if before is not None else []
        own = len(clip)
        clip += [frame, *([frames[after]] if after is not None else [])]
        result = unwrapped(self.model).segment(
            video=[part.image for part in clip],
            text=frame.question,
            processor=self.processor,
            threshold=self.threshold,
            answer=ANSWERS[0],
            postprocessing=Postprocessing(),
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


def _requests(rows: list[dict], question: str) -> tuple[list[Image.Image], list[str]]:
    values = [row["image"] if row.get("image") is not None else row["images"][0] for row in rows]
    images = [read_image(value).convert("RGB") for value in values]
    phrases = [row["phrase"] if row.get("phrase") is not None else row["phrases"][0] for row in rows]
    return images, [ask(question, phrase) for phrase in phrases]


def _segment(
    model: nn.Module, processor: Sa2VAProcessor, images: list[Image.Image], questions: list[str], threshold: float
) -> list[Segmentation]:
    request = {"processor": processor, "threshold": threshold, "answer": ANSWERS[0]}
    # What is trained on next is the network: its masks are judged as they are, here as where there are labels.
    return model.segment(images=images, text=questions, postprocessing=Postprocessing(), **request)


@torch.no_grad()
def predict_unlabelled(
    model: nn.Module, processor: Sa2VAProcessor, rows: Iterable[dict], threshold: float = 0.5
) -> list[np.ndarray]:
    """
    The masks that [`score_unlabelled`] judges.

    Args:
        model, processor, threshold: see there.
        rows (iterable of `dict`): few enough for one pass.

    Returns:
        `list[np.ndarray]` of shape `(1, H, W)`: bool, at the images' sizes.
    """
    results = _segment(model, processor, *_requests(list(rows), question_of(model.config)), threshold)
    return [result.masks.cpu().numpy() for result in results]


def score_unlabelled(
    model: nn.Module,
    processor: Sa2VAProcessor,
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
            `"neighbours"`: mean [`~metrics.tolerant_dice`] of the frame's own mask with those of its neighbours,
            which costs no more than the masks.
        threshold (`float`, *optional*, defaults to 0.5): probability above which a pixel belongs to a mask.
        tolerance (`float`, *optional*, defaults to 0.02): of `"neighbours"`, as a share of the longer side.

    Returns:
        `pandas.DataFrame`: one row a row, in the order of the data set: identifiers, `predicted_iou`, what
        [`~metrics.measure`] says of the model's own mask, `motion`, and `consistency` in [0, 1], which is NaN of
        a frame that has no neighbour at the video's usual step.

    Raises:
        `MiningError`: rows without an image or with another number of phrases than one, no video, or videos without an
            order.
        `ValueError`: an option out of its range.
    """
    if method not in ("tracking", "neighbours"):
        raise ValueError(f"method must be tracking or neighbours, got {method!r}.")
    check_score_options(batch_size, threshold, tolerance)
    dataset = plain_rows(dataset)
    table = rows_of(dataset)
    bad = table[(table["images"] != 1) | (table["phrases"] != 1)]
    if len(bad):
        names = ", ".join(repr(name) for name in bad["sample_id"][:10]) + (", ..." if len(bad) > 10 else "")
        raise MiningError(f"{len(bad)} rows have not exactly one image and one phrase: {names}.")
    if "video_id" not in table or table["video_id"].isna().all():
        raise MiningError("Without labels frames are judged by their neighbours: the rows need video_id, frame_index.")
    options = ["unlabelled", method, threshold, tolerance, *stored_temperature(model)]
    partial = partial_folder(partial_dir, lambda: prints or fingerprint_of(model, processor, dataset), options)
    scorer = _Unlabelled(model, processor, dataset, batch_size, progress, method, threshold, tolerance)
    return score_pieces(scorer, table, 0, partial)
