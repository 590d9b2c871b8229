"""Label Studio: tasks with predictions as brush strokes, and the labelling interface that shows them."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from ..rle import brush_bytes
from .annotated import Annotated


def write_label_studio(folder: Path, images: Iterable[Annotated]) -> None:
    """
    Write `tasks.json` and `labels.xml`, the labelling interface. The masks are predictions
    (https://labelstud.io/guide/predictions): once an annotator has taken them over, the project's JSON export has
    them as annotations, which [`~data.readers.label_studio.find_label_studio`] reads to the same masks.

    Pictures are named as Label Studio serves them from a local storage whose root is the export's folder.

    Args:
        folder (`Path`): of the export; the images lie there.
        images (iterable of [`Annotated`]): taken one at a time.
    """
    labels: dict[str, None] = {}
    tasks = []
    for name, (width, height), objects, _ in images:
        labels.update(dict.fromkeys(label for label, _, _ in objects))
        regions = [
            {
                "id": f"region{number}",
                "from_name": "label",
                "to_name": "image",
                "type": "brushlabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {"format": "rle", "rle": list(brush_bytes(mask)), "brushlabels": [label]},
                **({} if score is None else {"score": score}),
            }
            for number, (label, mask, score) in enumerate(objects)
            if mask.any()
        ]
        prediction = {"model_version": "sa2va_trl", "result": regions}
        if scores := [region["score"] for region in regions if "score" in region]:
            prediction["score"] = sum(scores) / len(scores)
        tasks.append({"data": {"image": f"/data/local-files/?d={quote(name)}"}, "predictions": [prediction]})
    (folder / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")

    view = ET.Element("View")
    ET.SubElement(view, "Image", name="image", value="$image", zoom="true")
    brushes = ET.SubElement(view, "BrushLabels", name="label", toName="image")
    for label in labels:
        ET.SubElement(brushes, "Label", value=label)
    ET.indent(view)
    ET.ElementTree(view).write(folder / "labels.xml", encoding="utf-8")
