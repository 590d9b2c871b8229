"""Contact sheets of runs of hard frames."""

import numpy as np
import pandas as pd
from datasets import Dataset
from PIL import Image
from torch import nn

from ..data.layout import normalize_row
from ..evaluation import film_strip, predict_probabilities
from ..models import Sa2VAProcessor
from .unlabelled import predict_unlabelled


def run_frames(mined: pd.DataFrame, video_id: str, cluster: str) -> pd.DataFrame:
    """
    The frames of a run, with one more on either side where the video has it.

    Args:
        mined (`pandas.DataFrame`): from [`~mining.selection.mine`].
        video_id (`str`): the run's video.
        cluster (`str`): the run.

    Returns:
        `pandas.DataFrame`: rows of `mined`, in the order of their frames.
    """
    frames = mined[mined["video_id"] == video_id].sort_values("frame_index")
    inside = np.flatnonzero(frames["cluster"] == cluster)
    return frames.iloc[max(inside[0] - 1, 0) : inside[-1] + 2]


def draw_run(
    model: nn.Module,
    processor: Sa2VAProcessor,
    dataset: Dataset,
    frames: pd.DataFrame,
    *,
    by: str = "dice",
    labels: bool = True,
    threshold: float = 0.5,
    batch_size: int = 4,
) -> Image.Image:
    """
    A contact sheet of consecutive frames, of clips their first frames; those of a run have a star.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): draws the masks.
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): the rows of `frames`, in their order.
        frames (`pandas.DataFrame`): from [`run_frames`].
        by (`str`, *optional*, defaults to `"dice"`): column that the run was judged by.
        labels (`bool`, *optional*, defaults to `True`): whether to look at the rows' masks.
        threshold (`float`, *optional*, defaults to 0.5): probability above which a pixel belongs to a mask.
        batch_size (`int`, *optional*, defaults to 4): rows a pass.

    Returns:
        `PIL.Image.Image`: as of [`~evaluation.film_strip`].
    """
    rows = [normalize_row(row) for row in dataset]
    images = [row["images"] for row in rows]

    def first(masks, clip) -> np.ndarray:  # all objects of it, from one mask an object and frame
        return np.any(np.stack(masks)[:: len(clip)], axis=0)

    if labels:
        drawn = predict_probabilities(model, processor, dataset, batch_size, progress=False)
        predictions = [first(maps > threshold, clip) for (_, maps), clip in zip(drawn, images, strict=True)]
        targets = [first([np.asarray(mask) > 0 for mask in row["masks"]], row["images"]) for row in rows]
    else:
        predictions = [mask.any(0) for mask in predict_unlabelled(model, processor, dataset, threshold)]
        targets = None
    stars = np.where(frames["cluster"].notna(), "*", " ")
    titles = zip(stars, frames["frame_index"], frames[by], strict=True)
    titles = [f"{star} frame {int(index)}: {value:.3f}" for star, index, value in titles]
    return film_strip([clip[0] for clip in images], predictions, targets, titles)
