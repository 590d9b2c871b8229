import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import file_name


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


def save_overlays(rows: list[tuple[str, Image.Image]], folder: Path) -> None:
    """
    Args:
        rows (`list[tuple[str, PIL.Image.Image]]`): identifiers and pictures.
        folder (`Path`): made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for sample_id, picture in rows:
        picture.save(folder / f"{file_name(sample_id)}.png")
