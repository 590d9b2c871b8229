"""COCO's instances: one JSON, masks as compressed RLE."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..rle import coco_string, mask_runs
from .annotated import Annotated, box_of


def write_coco(folder: Path, images: Iterable[Annotated]) -> None:
    """
    Write `annotations.json`, which [`~data.readers.coco.find_coco`] reads to the same masks.

    Args:
        folder (`Path`): of the export; the images lie there.
        images (iterable of [`Annotated`]): taken one at a time.
    """
    listed, annotations, labels = [], [], {}
    for number, (name, (width, height), objects, _) in enumerate(images, start=1):
        listed.append({"id": number, "file_name": name.removeprefix("images/"), "width": width, "height": height})
        for label, mask, score in objects:
            category = labels.setdefault(label, len(labels) + 1)
            if mask.any():
                counts = coco_string(mask_runs(mask, columns=True))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category,
                        "segmentation": {"size": [height, width], "counts": counts},
                        "area": int(mask.sum()),
                        "bbox": list(box_of(mask)),
                        "iscrowd": 0,
                        **({} if score is None else {"score": score}),
                    }
                )
    categories = [{"id": number, "name": label, "supercategory": ""} for label, number in labels.items()]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
