"""Pictures for reports: an image, what was asked for, and the probabilities that were predicted, in few bytes."""

import heapq
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..data.layout import normalize_row
from ..files import file_name


# Longer sides are reduced.
LONGEST = 768


class Picture(NamedTuple):
    """
    One picture of a gallery.

    Args:
        name (`str`): of the sample.
        facts (`Mapping[str, float | str]`): what is written below it.
        image (`bytes`): JPEG.
        maps (`bytes`):
            PNG of the same size with the probabilities of the first run (0 to 255) in red, those of the second in blue
            and the target (0 or 255) in green.
        size (`tuple[int, int]`): width and height of both.
        runs (`int`): how many have drawn on it.
        is_binary (`bool`): whether all probabilities are 0 or 1, so that no threshold changes anything.
    """

    name: str
    facts: Mapping[str, float | str]
    image: bytes
    maps: bytes
    size: tuple[int, int]
    runs: int
    is_binary: bool


def make_picture(row: dict, probabilities: Sequence[np.ndarray], facts: Mapping[str, float | str]) -> Picture:
    """
    Args:
        row (`dict`): with masks. Of a clip the frame is shown on which most is wrong.
        probabilities (`Sequence[np.ndarray]` of shape `(objects x frames, H, W)`):
            In [0, 1], or bool, of one run or two; the objects are shown as one.
        facts (`Mapping[str, float | str]`): what is to be written below it.

    Returns:
        `Picture`, reduced to 768 pixels where the image is larger.
    """
    read = normalize_row(row)
    frames = len(read["images"])
    target = np.stack([np.asarray(mask) > 0 for mask in read["masks"]])
    target = target.reshape(-1, frames, *target.shape[1:]).any(0)
    chances = [own.reshape(-1, frames, *own.shape[1:]).max(0) for own in probabilities]
    frame = int(sum(_wrong(own, target) for own in chances).argmax())
    facts = {**facts, **({"frame": f"{frame + 1} of {frames}"} if frames > 1 else {})}
    image = read["images"][frame].convert("RGB")
    values = [np.rint(255 * own[frame]).astype(np.uint8) for own in chances]
    layers = [Image.fromarray(own) for own in (values[0], 255 * target[frame].astype(np.uint8), values[-1])]
    if max(image.size) > LONGEST:
        facts["shown"] = f"reduced from {image.width} x {image.height}"
        size = tuple(max(round(side * LONGEST / max(image.size)), 1) for side in image.size)
        how = (Image.Resampling.BILINEAR, Image.Resampling.NEAREST, Image.Resampling.BILINEAR)
        image = image.resize(size, Image.Resampling.LANCZOS)
        layers = [layer.resize(size, own) for layer, own in zip(layers, how, strict=True)]
    is_binary = all(bool(((own == 0) | (own == 1)).all()) for own in probabilities)
    maps = _bytes(Image.merge("RGB", layers), "PNG", optimize=True)
    image_bytes = jpeg(image)
    return Picture(str(row["sample_id"]), facts, image_bytes, maps, image.size, len(probabilities), is_binary)


def _wrong(chances: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How much of each frame is wrong, in pixels. (Masks may be bool, whose difference numpy does not take.)"""
    pairs = zip(chances, target, strict=True)
    return np.array([np.abs(np.subtract(*pair, dtype=np.float32)).sum() for pair in pairs])


class KeptExtremes:
    """
    Pictures of the samples that an evaluation finds worst and best, made while it runs, so that no others are held in
    memory. Give it to [`~evaluation.evaluate`] as `on_row`.

    Args:
        count (`int`): how many of each.
        by (`str`, *optional*, defaults to `"dice"`): score to judge by; higher is better.
    """

    def __init__(self, count: int, by: str = "dice"):
        self.count, self.by, self.seen = count, by, 0
        self._worst, self._best = [], []  # heaps: what is given up first is at the top

    def __call__(self, row: dict, probabilities: np.ndarray, scores: dict) -> Picture | None:
        """The row's picture, if it is among the worst or the best so far."""
        value = scores[self.by]
        if not any(self._takes(heap, key) for heap, key in self._places(value)):
            self.seen += 1
            return None
        picture = make_picture(row, [probabilities], {self.by: value})
        self.add(picture)
        return picture

    def add(self, picture: Picture) -> None:
        """Take a picture that such an object has made, if it is among the worst or the best so far."""
        self.seen += 1
        for heap, key in self._places(picture.facts[self.by]):
            if self._takes(heap, key):
                push = heapq.heappush if len(heap) < self.count else heapq.heappushpop
                push(heap, (key, -self.seen, picture))  # of equal ones the earlier stays

    def _places(self, value: float) -> tuple[tuple[list, float], tuple[list, float]]:
        return (self._worst, -value), (self._best, value)

    def _takes(self, heap: list, key: float) -> bool:
        return len(heap) < self.count or (self.count > 0 and key > heap[0][0])

    @property
    def worst(self) -> list[Picture]:
        """From the worst on."""
        return [picture for *_, picture in sorted(self._worst, reverse=True)]

    @property
    def best(self) -> list[Picture]:
        """From the best on, without those that are among the worst of few."""
        names = {picture.name for *_, picture in self._worst}
        return [picture for *_, picture in sorted(self._best, reverse=True) if picture.name not in names]


def save_picture(folder: Path, picture: Picture) -> None:
    """Write what [`read_kept`] and [`read_changed`] read: the image and the maps, under the name of the sample."""
    stem = file_name(picture.name)
    (folder / f"{stem}.jpg").write_bytes(picture.image)
    (folder / f"{stem}.png").write_bytes(picture.maps)


def read_kept(folder: Path, name: str, facts: Mapping[str, float | str]) -> Picture | None:
    """
    A sample as one evaluation has drawn it.

    Args:
        folder (`Path`): with what [`save_picture`] has written.
        name (`str`): of the sample.
        facts (`Mapping[str, float | str]`): what is to be written below it.

    Returns:
        `Picture`; `None` where it is not there.
    """
    file = folder / f"{file_name(name)}.png"
    if not (file.is_file() and file.with_suffix(".jpg").is_file()):
        return None
    maps = Image.open(file).convert("RGB")
    is_binary = set(np.unique(np.asarray(maps.getchannel("R")))) <= {0, 255}
    return Picture(name, facts, file.with_suffix(".jpg").read_bytes(), file.read_bytes(), maps.size, 1, is_binary)


def read_changed(folders: tuple[Path, Path], name: str, facts: Mapping[str, float | str]) -> Picture | None:
    """
    A sample as two evaluations have drawn it.

    Args:
        folders (`tuple[Path, Path]`): with what [`save_picture`] has written of the first and of the second one.
        name (`str`): of the sample.
        facts (`Mapping[str, float | str]`): what is to be written below it.

    Returns:
        `Picture` with the probabilities of both; `None` where either lacks it, or they are not of the same target.
    """
    files = [folder / f"{file_name(name)}.png" for folder in folders]
    if not all(file.is_file() and file.with_suffix(".jpg").is_file() for file in files):
        return None
    first, second = (Image.open(file).convert("RGB") for file in files)
    if first.size != second.size or first.getchannel("G").tobytes() != second.getchannel("G").tobytes():
        return None
    layers = (first.getchannel("R"), first.getchannel("G"), second.getchannel("R"))
    is_binary = all(set(np.unique(np.asarray(layer))) <= {0, 255} for layer in (layers[0], layers[2]))
    maps = _bytes(Image.merge("RGB", layers), "PNG", optimize=True)
    return Picture(name, facts, files[0].with_suffix(".jpg").read_bytes(), maps, first.size, 2, is_binary)


def jpeg(image: Image.Image) -> bytes:
    """A picture in few bytes, in grey where it has no colour."""
    pixels = np.asarray(image.convert("RGB"))
    is_grey = bool((pixels == pixels[..., :1]).all())
    return _bytes(image.convert("L" if is_grey else "RGB"), "JPEG", quality=88)


def _bytes(image: Image.Image, kind: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()
