"""The folder of an export: its images, and the annotations of the format."""

import filecmp
import shutil
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from ...errors import DatasetError
from ...media.clips import Picture
from ...media.suffixes import IMAGE_SUFFIXES
from .annotated import Annotated
from .coco import write_coco
from .cvat import write_cvat
from .dicom_seg import write_dicom_seg
from .label_studio import write_label_studio
from .labelme import write_labelme
from .yolo import write_yolo


# A format is a file here and a line.
WRITERS: dict[str, Callable[[Path, Iterable[Annotated]], None]] = {
    "coco": write_coco,
    "cvat": write_cvat,
    "dicom_seg": write_dicom_seg,
    "label_studio": write_label_studio,
    "labelme": write_labelme,
    "yolo": write_yolo,
}
_BY_STEM = ("labelme", "yolo")  # pair images and annotations by their names without suffixes
_IMAGES = {"labelme": "", "yolo": "images/train/"}


def keep_image(folder: Path, format: str, picture: Picture) -> str:
    """
    Put the image of a picture into an export. An image file is copied as it is, under its own name; frames of clips
    are PNG; beside DICOM segmentations lies their whole DICOM file. (Where two images differ in their suffixes alone,
    a format that pairs by the rest has the whole name of one and a second suffix.)

    Args:
        folder (`Path`): of the export.
        format (`str`): of [`WRITERS`].
        picture ([`~media.clips.Picture`]): of a file or a frame.

    Returns:
        `str`: its file, from the folder, with `/`.

    Raises:
        `DatasetError`: its name holds what no annotation file can.
    """
    if any(
        unicodedata.category(letter) in ("Cc", "Cs") for letter in picture.name
    ):  # (Cs: of names that are no UTF-8)
        raise DatasetError(f"{str(picture.file)!a}: rename it: its name holds what annotation files cannot.")
    place = _IMAGES.get(format, "images/")
    (folder / place).mkdir(parents=True, exist_ok=True)
    if format == "dicom_seg":
        name = picture.file.name
        while (folder / place / name).exists():  # of a frame before, or of a file in another folder
            if filecmp.cmp(picture.file, folder / place / name):
                return place + name
            name = f"_{name}"
        shutil.copy2(picture.file, folder / place / name)  # with its times, by which `cmp` knows it
    elif picture.frame is None and picture.file.suffix.lower() in IMAGE_SUFFIXES:
        name = picture.name + picture.file.suffix if format in _BY_STEM else picture.file.name
        shutil.copyfile(picture.file, folder / place / name)
    else:
        name = f"{picture.name}.png"
        picture.image.save(folder / place / name)
    return place + name
