"""YOLO's segmentation labels: a text file an image, a line an object."""

from collections.abc import Iterable
from pathlib import Path

import yaml

from .annotated import Annotated
from .outlines import one_ring, outlines


def write_yolo(folder: Path, images: Iterable[Annotated]) -> None:
    """
    Write `labels/train/` and `data.yaml`, which [`~data.readers.yolo.find_yolo`] reads to the same masks. Parts of an
    object are one ring, see [`outlines`] and [`one_ring`].

    Args:
        folder (`Path`): of the export; the images lie in `images/train/`.
        images (iterable of [`Annotated`]): taken one at a time.
    """
    labels: dict[str, int] = {}
    place = folder / "labels" / "train"
    place.mkdir(parents=True)
    for name, size, objects, _ in images:
        lines = []
        for label, mask, _ in objects:
            number = labels.setdefault(label, len(labels))
            if mask.any():
                shares = (one_ring(outlines(mask)) / size).ravel()
                lines.append(" ".join([str(number), *(f"{share:.9g}" for share in shares)]) + "\n")
        (place / Path(name).with_suffix(".txt").name).write_text("".join(lines), encoding="utf-8")
    content = {"train": "images/train", "names": {number: label for label, number in labels.items()}}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
