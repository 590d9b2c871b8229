"""
Generated coronary angiography as a dataset: runs of [`~data.angiography.generate_video`], with identifiers and splits.

Nothing here is clinical data, and no score on it says anything about patients: it is for tests, demos and debugging.
"""

import io

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


def _png(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


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
    for name, value, minimum in (
        ("num_videos", num_videos, 1),
        ("frames_per_video", frames_per_video, 1),
        ("size", size, 32),
        ("seed", seed, 0),
        ("first_video", first_video, 0),
        ("videos_per_patient", videos_per_patient, 1),
    ):
        check_integer(name, value, minimum)
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError(f"`phrase` must be a non-empty string, but is {phrase!r}.")

    columns = {name: [] for name in FEATURES}
    for number in range(first_video, first_video + num_videos):
        video = generate_video(seed, number, frames_per_video, size)
        for index in range(frames_per_video):
            row = {
                "image": _png(video.frames[index]),
                "mask": _png(video.masks[index] * np.uint8(255)),
                "phrase": phrase,
                "sample_id": f"v{number:04d}_f{index:03d}",
                "video_id": f"v{number:04d}",
                "frame_index": index,
                "patient_id": f"p{number // videos_per_patient:04d}",
                "hard": bool(video.hard[index]),
            }
            for name, value in row.items():
                columns[name].append(value)
    return datasets.Dataset.from_dict(columns, features=FEATURES)


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
    counts = {"test": test_videos, "validation": validation_videos, "train": train_videos}
    for split, count in counts.items():
        check_integer(f"{split}_videos", count, 1)
    check_integer("videos_per_patient", videos_per_patient, 1)

    splits, first_video = {}, 0
    for split, count in counts.items():
        splits[split] = synthetic_dataset(count, frames_per_video, size, seed, first_video, phrase, videos_per_patient)
        first_video += -(-count // videos_per_patient) * videos_per_patient
    return datasets.DatasetDict({split: splits[split] for split in ("train", "validation", "test")})
