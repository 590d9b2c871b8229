"""Rows with masks made by hand, and what is predicted of them."""

import numpy as np
from datasets import Dataset, Features, Value
from PIL import Image
from rows import FEATURES as ROW_FEATURES


FEATURES = Features(
    {
        **ROW_FEATURES,
        "patient_id": Value("string"),
        "video_id": Value("string"),
        "frame_index": Value("int64"),
    }
)


def stored(rows):
    return Dataset.from_list([{name: row.get(name) for name in FEATURES} for row in rows], features=FEATURES)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def as_image(mask):
    return Image.fromarray((255 * np.asarray(mask)).astype(np.uint8))


def box(shape, rows, columns):
    mask = np.zeros(shape, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def sample(name, *masks, **columns):
    """A row with an image of the size of its masks, which need not be square."""
    height, width = masks[0].shape
    return {
        "image": noise(width, height),
        "masks": [as_image(mask) for mask in masks],
        "phrases": [f"vessel {number}" for number in range(len(masks))],
        "sample_id": name,
        **columns,
    }


TARGET = box((12, 20), (2, 10), (5, 15))  # 80 of 240 pixels


def answers(dataset, *predictions):
    """What an evaluation iterates over, made by hand."""
    for row, prediction in zip(dataset, predictions, strict=True):
        yield row, np.asarray(prediction, dtype=np.float32)


def text_only(name="text"):
    messages = [{"role": "user", "content": "What is a stent?"}, {"role": "assistant", "content": "A small tube."}]
    return {"messages": messages, "sample_id": name}
