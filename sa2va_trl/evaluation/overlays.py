"""Pictures of predictions: masks drawn on their images."""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from PIL import Image, ImageDraw, ImageFont

from ..data.layout import normalize_row
from ..files import file_name
from ..postprocessing import IDENTITY, Postprocessing
from .results import drawn_masks


# Found, invented and missed pixels; distinguishable without red-green vision.
COLOURS = {"tp": (60, 200, 90), "fp": (235, 90, 40), "fn": (70, 130, 255)}


def overlay(image: Image.Image, prediction: np.ndarray, target: np.ndarray | None = None) -> Image.Image:
    """
    The image beside itself with a mask drawn on it.

    Args:
        image (`PIL.Image.Image`): any mode.
        prediction (`np.ndarray` of shape `(H, W)`): bool, at the image's size.
        target (`np.ndarray` of shape `(H, W)`, *optional*):
            bool. With it, found pixels are green, invented ones orange and missed ones blue; without it, all are
            green.

    Returns:
        `PIL.Image.Image`: RGB, twice as wide as the image.
    """
    plain = np.asarray(image.convert("RGB"))
    drawn = plain.astype(np.float32)
    target = prediction if target is None else target
    parts = {"tp": prediction & target, "fp": prediction & ~target, "fn": ~prediction & target}
    for name, part in parts.items():
        drawn[part] = 0.35 * drawn[part] + 0.65 * np.array(COLOURS[name], dtype=np.float32)
    return Image.fromarray(np.concatenate([plain, drawn.round().astype(np.uint8)], axis=1))


def by_frame(masks: np.ndarray, row: dict) -> np.ndarray:
    """
    All objects of a row in one mask a frame.

    Args:
        masks (`np.ndarray` of shape `(objects x frames, H, W)`): bool, one an object and frame, frames of an object
            one after the other.
        row (`dict`): that they are of; an image counts as one frame.

    Returns:
        `np.ndarray` of shape `(frames, H, W)`: bool.
    """
    frames = len(row.get("images") or [None])
    return masks.reshape(-1, frames, *masks.shape[1:]).any(0)


class KeptMasks:
    """
    Masks that an evaluation has seen, one bit a pixel of each image, compressed, so that the worst can be drawn once
    all are known. Give it to [`~evaluation.evaluate`] as `on_row`.

    Args:
        threshold (`float`, *optional*, defaults to 0.5): probability above which a pixel belongs to a mask.
        postprocessing ([`~postprocessing.Postprocessing`], *optional*): of the masks.
    """

    def __init__(self, threshold: float = 0.5, postprocessing: Postprocessing = IDENTITY):
        self.threshold, self.postprocessing, self.bits = threshold, postprocessing, {}

    def __call__(self, row: dict, probabilities: np.ndarray, scores: dict) -> None:
        masks = drawn_masks(row, probabilities, self.threshold, self.postprocessing)
        self.bits[row["sample_id"]] = zlib.compress(np.packbits(by_frame(masks, row)), level=1)

    def masks(self, sample_id: str, shape: tuple[int, int, int]) -> np.ndarray:
        """
        Args:
            sample_id (`str`): of a row that was seen.
            shape (`tuple[int, int, int]`): frames, height and width of its images.

        Returns:
            `np.ndarray` of this shape: bool, all objects in one mask a frame.
        """
        bits = np.frombuffer(zlib.decompress(self.bits[sample_id]), dtype=np.uint8)
        return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def draw_samples(
    dataset: Dataset, samples: pd.DataFrame, kept: KeptMasks, by: str = "dice", most_frames: int | None = None
) -> Iterator[tuple[str, Image.Image]]:
    """
    Pictures of evaluated samples. The frames of a clip stand below each other.

    Args:
        dataset (`datasets.Dataset`): the rows that were evaluated.
        samples (`pandas.DataFrame`): those to draw, such as [`~evaluation.results.from_worst_to_best`] chooses.
        kept (`KeptMasks`): what was predicted of them.
        by (`str`, *optional*, defaults to `"dice"`): the score that names tell.
        most_frames (`int`, *optional*): of a longer clip as many, spread over it.

    Yields:
        A name that begins with the score, and a picture as of [`overlay`].
    """
    positions = {sample_id: position for position, sample_id in enumerate(dataset["sample_id"])}
    for sample_id, score in zip(samples["sample_id"], samples[by], strict=True):
        row = normalize_row(dataset[positions[sample_id]])
        target = by_frame(np.stack([np.asarray(mask) > 0 for mask in row["masks"]]), row)
        prediction = kept.masks(sample_id, target.shape)
        frames = np.arange(len(target))
        if most_frames is not None and len(frames) > most_frames:
            frames = np.linspace(0, len(frames) - 1, most_frames).round().astype(int)
        panels = [np.asarray(overlay(row["images"][index], prediction[index], target[index])) for index in frames]
        yield f"{by}_{score:.3f}_{file_name(sample_id)}", Image.fromarray(np.concatenate(panels))


def draw_beside(
    predictions: Iterable[Iterable[tuple[dict, np.ndarray]]], threshold: float = 0.5
) -> dict[str, Image.Image]:
    """
    What several models draw on the same images, side by side.

    Args:
        predictions (iterable):
            For each model what [`~evaluation.predict_probabilities`] yields of the same rows of one image each.
        threshold (`float`, *optional*, defaults to 0.5): probability above which a pixel belongs to a mask.

    Returns:
        `dict[str, PIL.Image.Image]`: by `sample_id` the image, then the same one with each model's masks, coloured as
        in [`overlay`].
    """
    strips = {}
    for predicted in predictions:
        for row, probabilities in predicted:
            read = normalize_row(row)
            target = np.any([np.asarray(mask) > 0 for mask in read["masks"]], axis=0)
            image = read["images"][0]
            drawn = np.asarray(overlay(image, (probabilities > threshold).any(0), target))
            own = strips.setdefault(row["sample_id"], [drawn[:, : image.width]])
            own.append(drawn[:, image.width :])
    return {name: Image.fromarray(np.concatenate(parts, axis=1)) for name, parts in strips.items()}


def film_strip(
    images: list[Image.Image],
    predictions: list[np.ndarray],
    targets: list[np.ndarray] | None,
    titles: list[str],
    width: int = 192,
) -> Image.Image:
    """
    Frames side by side: each with its title, and below it the same frame with the masks drawn as in [`overlay`].

    Args:
        images (`list[PIL.Image.Image]`): at least one, any mode and size.
        predictions (`list[np.ndarray]` of shape `(H, W)`): bool, at the images' sizes.
        targets (`list[np.ndarray]`, *optional*): likewise.
        titles (`list[str]`): one a frame, short.
        width (`int`, *optional*, defaults to 192): of a frame, in pixels.

    Returns:
        `PIL.Image.Image`: RGB, `width` pixels a frame.
    """
    targets = [None] * len(images) if targets is None else targets
    strips, bar = [], 20
    for image, prediction, target, title in zip(images, predictions, targets, titles, strict=True):
        pair = overlay(image, prediction, target)
        height = max(round(width * image.height / image.width), 1)
        strip = Image.new("RGB", (width, bar + 2 * height))
        ImageDraw.Draw(strip).text((4, 3), title, fill="white", font=ImageFont.load_default(13))
        for number in range(2):
            half = pair.crop((number * image.width, 0, (number + 1) * image.width, image.height))
            strip.paste(half.resize((width, height)), (0, bar + number * height))
        strips.append(strip)
    sheet = Image.new("RGB", (width * len(strips), max(strip.height for strip in strips)))
    for number, strip in enumerate(strips):
        sheet.paste(strip, (number * width, 0))
    return sheet


def object_names(name: str, objects: int, taken: set[str]) -> list[str]:
    """
    File names (without suffix) for the masks of a picture that no other picture's masks have.

    Args:
        name (`str`): of the picture.
        objects (`int`): how many masks it has.
        taken (`set[str]`): the file names given so far; these are added.

    Returns:
        `list[str]`: [`file_name`] of the one object, or with `.object0`, `.object1` ... behind; where one of them is
        taken, a checksum comes between.
    """
    stem = file_name(name)
    while True:
        names = [stem] if objects == 1 else [f"{stem}.object{index}" for index in range(objects)]
        if taken.isdisjoint(names):
            taken.update(names)
            return names
        stem += f"-{zlib.crc32(name.encode(errors='surrogatepass')):08x}"


def save_overlays(rows: Iterable[tuple[str, Image.Image]], folder: Path) -> None:
    """
    Args:
        rows (iterable of `tuple[str, PIL.Image.Image]`): identifiers and pictures.
        folder (`Path`): made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for sample_id, picture in rows:
        picture.save(folder / f"{file_name(sample_id)}.png")
