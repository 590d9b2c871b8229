"""Folders of images and masks, as each reader expects them."""

import json

import numpy as np
import PIL.Image


SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]  # columns 2-5, rows 1-3: 12 pixels


WIDTH, HEIGHT = 12, 8


def write_image(path, width=WIDTH, height=HEIGHT, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((height, width), value, dtype=np.uint8)).save(path)
    return path


def write_mask(path, width=WIDTH, height=HEIGHT, value=255):
    array = np.zeros((height, width), dtype=np.uint8)
    array[1:4, 2:6] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(array).save(path)
    return path


def entry(name="a.png", **changes):
    return {"image": name, "mask": [[SQUARE]], "text": ["vessel"], **changes}


def write_json(folder, *entries, images=None):
    """Write annotations.json, and the images that it names unless told which."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in {e["image"] for e in entries} if images is None else images:
        write_image(folder / "images" / name)
    (folder / "annotations.json").write_text(json.dumps(entries))
    return folder


def write_pairs(folder, *stems, names=("image", "mask")):
    for stem in stems:
        write_image(folder / names[0] / f"{stem}.png")
        write_mask(folder / names[1] / f"{stem}.png")
    return folder


def arrays(dataset):
    return [[np.asarray(mask) for mask in masks] for masks in dataset["masks"]]


def write_metadata(folder, *rows, name="metadata.jsonl"):
    if name.endswith(".csv"):
        text = "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])
    else:
        text = "\n".join(map(json.dumps, rows))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
