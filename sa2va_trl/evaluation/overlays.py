import re
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


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


def file_name(sample_id: str) -> str:
    """
    A file name (without suffix) for a sample: its identifier, where that is a plain one; otherwise what is left of it
    without the characters that a path or a shell could take amiss, and a checksum, so that no two samples share one.
    """
    sample_id = str(sample_id)
    plain = re.sub(r"[^\w.\-]+", "_", sample_id).strip("._-")
    if plain and plain == sample_id and len(plain.encode()) <= 200:
        return plain
    short = plain.encode()[:180].decode(errors="ignore") or "sample"
    return f"{short}-{zlib.crc32(sample_id.encode(errors='surrogatepass')):08x}"


def save_overlays(rows: list[tuple[str, Image.Image]], folder: Path) -> None:
    """
    Args:
        rows (`list[tuple[str, PIL.Image.Image]]`): identifiers and pictures.
        folder (`Path`): made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for sample_id, picture in rows:
        picture.save(folder / f"{file_name(sample_id)}.png")
