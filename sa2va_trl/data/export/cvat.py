"""CVAT for images 1.1: one XML, masks as the RLE of their boxes."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

from ..rle import mask_runs
from .annotated import Annotated, box_of


def write_cvat(folder: Path, images: Iterable[Annotated]) -> None:
    """
    Write `annotations.xml`, which [`~data.readers.cvat.find_cvat`] reads to the same masks.

    Args:
        folder (`Path`): of the export; the images lie there.
        images (iterable of [`Annotated`]): taken one at a time.
    """
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    labels = ET.SubElement(ET.SubElement(ET.SubElement(root, "meta"), "task"), "labels")
    known = set()
    for number, (name, (width, height), objects, _) in enumerate(images):
        facts = {"id": number, "name": name.removeprefix("images/"), "width": width, "height": height}
        image = ET.SubElement(root, "image", {key: str(value) for key, value in facts.items()})
        for label, mask, _ in objects:
            if label not in known:
                known.add(label)
                ET.SubElement(ET.SubElement(labels, "label"), "name").text = label
            if mask.any():
                left, top, width, height = box_of(mask)
                runs = mask_runs(mask[top : top + height, left : left + width], columns=False)
                facts = {"label": label, "source": "auto", "occluded": 0, "rle": ", ".join(map(str, runs))}
                facts |= {"left": left, "top": top, "width": width, "height": height, "z_order": 0}
                ET.SubElement(image, "mask", {key: str(value) for key, value in facts.items()})
    ET.indent(root)
    ET.ElementTree(root).write(folder / "annotations.xml", encoding="utf-8", xml_declaration=True)
