"""
Generated coronary angiography as a dataset: runs of [`~data.angiography.generate_video`], with identifiers and splits.

Nothing here is clinical data, and no score on it says anything about patients: it is for tests, demos and debugging.
"""

import io
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
from PIL import Image as PILImage

from .angiography import check_integer, generate_video


# They could be imported from here before they had a file of their own.
from .angiography import VISIBLE_FILLING, SyntheticVideo  # noqa: F401  # isort: skip


FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "mask": datasets.Image(mode="L"),
        "phrase": datasets.Value("string"),
        "sample_id": datasets.Value("string"),
        "video_id": datasets.Value("string"),
        "frame_index": datasets.Value("int32"),
        "patient_id": datasets.Value("string"),
        "hard": datasets.Value("bool"),
    }
)


def png_cell(array: np.ndarray) -> dict:
    """A grey picture (H, W), uint8, as the cell of a column of images."""
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def check_runs(
    num_videos: int, frames_per_video: int, size: int, seed: int, first_video: int, videos_per_patient: int
) -> None:
    """
    Check which runs are to be generated.

    Args:
        num_videos, frames_per_video, size, seed, first_video, videos_per_patient (`int`): as in [`synthetic_dataset`].

    Raises:
        `ValueError`: If an argument is out of range; the message names it.
    """
    for name, value, minimum in (
        ("num_videos", num_videos, 1),
        ("frames_per_video", frames_per_video, 1),
        ("size", size, 32),
        ("seed", seed, 0),
        ("first_video", first_video, 0),
        ("videos_per_patient", videos_per_patient, 1),
    ):
        check_integer(name, value, minimum)


def run_cells(video: int, index: int, hard: bool, videos_per_patient: int, prefix: str = "") -> dict[str, Any]:
    """
    What a row says of the run and the frame that it is of.

    Args:
        video (`int`): number of the run.
        index (`int`): number of the frame.
        hard (`bool`): whether the frame is of the hard stretch.
        videos_per_patient (`int`): as in [`synthetic_dataset`].
        prefix (`str`, *optional*, defaults to `""`): of the names of runs and patients.

    Returns:
        `dict`: `video_id`, `frame_index`, `patient_id` and `hard`.
    """
    return {
        "video_id": f"{prefix}v{video:04d}",
        "frame_index": index,
        "patient_id": f"{prefix}p{video // videos_per_patient:04d}",
        "hard": bool(hard),
    }


def dataset_of(rows: list[dict[str, Any]], features: datasets.Features) -> datasets.Dataset:
    """Rows, each with all of the columns, as a `datasets.Dataset` held in memory."""
    columns = {name: [row[name] for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=features)


def synthetic_dataset(
    num_videos: int = 24,
    frames_per_video: int = 16,
    size: int = 256,
    seed: int = 0,
    first_video: int = 0,
    phrase: str = "blood vessel",
    videos_per_patient: int = 2,
) -> datasets.Dataset:
    """
    Generated runs as a dataset with one row a frame, ordered by video and frame.

    Args:
        num_videos (`int`, *optional*, defaults to `24`):
            Number of runs, at least 1. More runs leave the earlier ones as they were.
        frames_per_video (`int`, *optional*, defaults to `16`):
            Frames of every run, at least 1.
        size (`int`, *optional*, defaults to `256`):
            Width and height in pixels, at least 32.
        seed (`int`, *optional*, defaults to `0`):
            Non-negative seed.
        first_video (`int`, *optional*, defaults to `0`):
            Number of the first run; a multiple of `videos_per_patient` starts with a new patient.
        phrase (`str`, *optional*, defaults to `"blood vessel"`):
            What the mask shows.
        videos_per_patient (`int`, *optional*, defaults to `2`):
            Consecutive runs that share a `patient_id`. It is a label for grouped splits: anatomy is drawn per run.

    Returns:
        `datasets.Dataset`: columns `image` (8-bit grey PNG), `mask` (PNG, 0 or 255), `phrase`, `sample_id`
        (`"v0003_f007"`), `video_id` (`"v0003"`), `frame_index`, `patient_id` (`"p0001"`) and `hard`, held in memory.

    Raises:
        `ValueError`: If an argument is out of range; the message names it.
    """
    check_runs(num_videos, frames_per_video, size, seed, first_video, videos_per_patient)
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError(f"`phrase` must be a non-empty string, but is {phrase!r}.")

    rows = []
    for number in range(first_video, first_video + num_videos):
        video = generate_video(seed, number, frames_per_video, size)
        for index in range(frames_per_video):
            row = {
                "image": png_cell(video.frames[index]),
                "mask": png_cell(video.masks[index] * np.uint8(255)),
                "phrase": phrase,
                "sample_id": f"v{number:04d}_f{index:03d}",
                **run_cells(number, index, video.hard[index], videos_per_patient),
            }
            rows.append(row)
    return dataset_of(rows, FEATURES)


def synthetic_splits(
    train_videos: int = 24,
    validation_videos: int = 6,
    test_videos: int = 8,
    frames_per_video: int = 16,
    size: int = 256,
    seed: int = 0,
    phrase: str = "blood vessel",
    videos_per_patient: int = 2,
) -> datasets.DatasetDict:
    """
    Train, validation and test sets that share no video and no patient.

    Videos are numbered test first, then validation, then train, each split starting with a new patient: a larger
    training set adds runs and leaves all others, the test set above all, as they were.

    Args:
        train_videos (`int`, *optional*, defaults to `24`):
            Runs to train on, at least 1.
        validation_videos (`int`, *optional*, defaults to `6`):
            Runs to validate on, at least 1.
        test_videos (`int`, *optional*, defaults to `8`):
            Runs to test on, at least 1.
        frames_per_video, size, seed, phrase, videos_per_patient:
            As in [`synthetic_dataset`].

    Returns:
        `datasets.DatasetDict` with `train`, `validation` and `test`.

    Raises:
        `ValueError`: If an argument is out of range; the message names it.
    """

    def make(count: int, first_video: int) -> datasets.Dataset:
        return synthetic_dataset(count, frames_per_video, size, seed, first_video, phrase, videos_per_patient)

    return numbered_splits(make, train_videos, validation_videos, test_videos, videos_per_patient)


def numbered_splits(
    make: Callable[[int, int], datasets.Dataset],
    train_videos: int,
    validation_videos: int,
    test_videos: int,
    videos_per_patient: int,
) -> datasets.DatasetDict:
    """
    Splits of numbered runs, numbered as [`synthetic_splits`] says.

    Args:
        make (`Callable`): from a number of runs and the number of the first to their rows.
        train_videos, validation_videos, test_videos, videos_per_patient (`int`): as in [`synthetic_splits`].

    Returns:
        `datasets.DatasetDict` with `train`, `validation` and `test`.

    Raises:
        `ValueError`: If an argument is out of range; the message names it.
    """
    counts = {"test": test_videos, "validation": validation_videos, "train": train_videos}
    for split, count in counts.items():
        check_integer(f"{split}_videos", count, 1)
    check_integer("videos_per_patient", videos_per_patient, 1)

    splits, first_video = {}, 0
    for split, count in counts.items():
        splits[split] = make(count, first_video)
        first_video += -(-count // videos_per_patient) * videos_per_patient
    return datasets.DatasetDict({split: splits[split] for split in ("train", "validation", "test")})
