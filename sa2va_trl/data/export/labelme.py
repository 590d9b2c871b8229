"""LabelMe: a JSON beside each image, with polygons."""

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from .annotated import Annotated, box_of
from .outlines import outlines


def write_labelme(folder: Path, images: Iterable[Annotated]) -> None:
    """
    Write a JSON beside each image, which [`~data.readers.labelme.find_labelme`] reads to the same masks. Parts of an
    object are polygons with one `group_id`, see [`outlines`]. Only an object that lies in the picture's first pixel is
    a `mask`, since its polygon could be taken for one in shares of the picture.

    Args:
        folder (`Path`): of the export; the images lie there.
        images (iterable of [`Annotated`]): taken one at a time.
    """
    for name, (width, height), objects, _ in images:
        shapes: list[dict[str, Any]] = []
        for number, (label, mask, _) in enumerate(objects, start=1):
            drawn = _shapes(mask)
            group = number if len(drawn) > 1 else None
            shapes += [{"label": label, "group_id": group, "description": "", "flags": {}, **own} for own in drawn]
        facts = {"imagePath": name.rsplit("/", 1)[-1], "imageData": None, "imageHeight": height, "imageWidth": width}
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, **facts}
        file = (folder / name).with_suffix(".json")
        file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _shapes(mask: np.ndarray) -> list[dict[str, Any]]:
    if mask.any() and box_of(mask) == (0, 0, 1, 1):
        buffer = io.BytesIO()
        PIL.Image.fromarray(mask[:1, :1]).save(buffer, format="PNG")
        drawn = base64.b64encode(buffer.getvalue()).decode()
        return [{"shape_type": "mask", "points": [[0, 0], [0, 0]], "mask": drawn}]
    return [{"shape_type": "polygon", "points": ring.tolist(), "mask": None} for ring in outlines(mask)]
