"""Masks of referring videos as their evaluation servers take them: `VIDEO/EXPRESSION/FRAME.png`, in one archive."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image

from ..data.masks import decode_mask
from ..data.stored import plain_rows
from ..errors import DatasetError
from ..files import whole_file


FOLDER = "Annotations"
#: By set, the folder of its archive that holds those of videos: MeViS's README has them at the top, and what evaluates
#: Ref-YouTube-VOS sends `Annotations/`.
SERVERS = {"mevis": "", "ref_youtube_vos": FOLDER}
_NAMES = ("video_id", "exp_id", "frames")


def check_submittable(dataset: Dataset, option: str) -> None:
    """
    Args:
        dataset (`datasets.Dataset`): rows of clips.
        option (`str`): what needs their names, for the message.

    Raises:
        `DatasetError`: rows do not say which video, expression and frames they are of, or two are of the same.
    """
    if missing := [name for name in _NAMES if name not in dataset.column_names]:
        raise DatasetError(
            f"{option} needs the columns {', '.join(_NAMES)}, and {', '.join(missing)} is missing: read the set as "
            "MeViS or Ref-YouTube-VOS have it."
        )
    names = list(zip(dataset["video_id"], dataset["exp_id"], strict=True))
    if len(set(names)) < len(names):
        raise DatasetError(f"{option}: two rows are of one expression of one video.")
    if odd := [own for pair in names for own in pair if own in (None, "", "..") or Path(own).name != own]:
        raise DatasetError(f"{option}: {odd[0]!r} cannot name a folder.")


def _files(folder: Path, row: dict) -> list[Path]:
    return [folder / row["video_id"] / row["exp_id"] / f"{frame}.png" for frame in row["frames"]]


def write_masks(folder: Path, row: dict, masks: np.ndarray) -> None:
    """
    Write the masks of an expression.

    Args:
        folder (`Path`): gets `Annotations/`.
        row (`dict`): that [`check_submittable`] accepts.
        masks (`np.ndarray` of shape `(frames, H, W)`): bool.
    """
    for file, mask in zip(_files(folder / FOLDER, row), masks, strict=True):
        with whole_file(file) as temporary:
            Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(temporary, "PNG")


def zip_masks(folder: Path, file: Path, server: str) -> None:
    """
    Put all masks into one archive, in the order of their names.

    Args:
        folder (`Path`): with `Annotations/`.
        file (`Path`): of the archive, which appears whole.
        server (`str`): whose, of `SERVERS`.
    """
    masks = folder / FOLDER
    with whole_file(file) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path in sorted(masks.rglob("*.png")):
            # (PNG is compressed already.)
            archive.write(path, Path(SERVERS[server], path.relative_to(masks)).as_posix())


def read_masks(folder: Path, dataset: Dataset) -> Iterator[tuple[dict, np.ndarray]]:
    """
    Masks that another tool has written for a server, as [`~evaluation.referring.predict_clips`] yields them.

    Args:
        folder (`Path`): with `Annotations/`, or with the folders of videos.
        dataset (`datasets.Dataset`): rows that [`check_submittable`] accepts.

    Yields:
        The decoded row and its masks, `np.ndarray` of shape `(frames, H, W)`, bool.

    Raises:
        `DatasetError`: files are missing, before any is read; or one is no mask of its frame's size.
    """
    place = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    names = dataset.select_columns([*_NAMES])
    missing = [file for row in names for file in _files(place, row) if not file.is_file()]
    if missing:
        raise DatasetError(f"{place} lacks {len(missing)} masks, the first {missing[0].relative_to(place)}.")
    for row in plain_rows(dataset):
        size, found = row["images"][0].size, []
        for file in _files(place, row):
            try:
                found.append(np.asarray(decode_mask({"path": str(file), "bytes": None}, size)) > 0)
            except DatasetError as error:
                raise DatasetError(f"{file}: {error}") from error
        yield row, np.stack(found)
