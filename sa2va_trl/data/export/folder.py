"""The folder of an export: its images, and the annotations of the format."""

import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from ...errors import DatasetError
from ...media.clips import Picture
from ...media.suffixes import IMAGE_SUFFIXES, stem_of
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


class Images:
    """
    The images of an export. An image file is copied as it is, under its own name; frames of clips are PNG; beside
    DICOM segmentations lies their whole DICOM file. Of files of one name, those after the first have a number
    (`IM0001-2`).
    (Where two images differ in their suffixes alone, a format that pairs by the rest has the whole name of one and a
    second suffix.)

    Args:
        folder (`Path`): of the export, which is new.
        format (`str`): of [`WRITERS`].
    """

    def __init__(self, folder: Path, format: str):
        self.folder, self.format = folder, format
        self.kept: dict[Path, str] = {}  # DICOM files, of which one may hold many pictures
        self.counts: Counter[str] = Counter()

    def keep(self, picture: Picture) -> str:
        """
        Put the image of a picture into the export.

        Args:
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
        if self.format == "dicom_seg":
            source = picture.file.resolve()
            if source not in self.kept:
                self.kept[source] = self._free(stem_of(picture.file), picture.file.name)
                shutil.copyfile(source, self.folder / self.kept[source])
            return self.kept[source]
        if picture.frame is None and picture.file.suffix.lower() in IMAGE_SUFFIXES:
            stem = picture.name if self.format in _BY_STEM else picture.file.stem
            kept = self._free(stem, stem + picture.file.suffix)
            shutil.copyfile(picture.file, self.folder / kept)
        else:
            kept = self._free(picture.name, f"{picture.name}.png")
            picture.image.save(self.folder / kept)
        return kept

    def _free(self, stem: str, name: str) -> str:
        """The place of an image of this name, or of the next number that is free."""
        place = _IMAGES.get(self.format, "images/")
        (self.folder / place).mkdir(parents=True, exist_ok=True)
        free = name
        while (self.folder / place / free).exists():
            self.counts[name] += 1
            free = f"{stem}-{self.counts[name] + 1}{name.removeprefix(stem)}"
        return place + free
