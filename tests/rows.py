"""Rows of every kind that training takes, small."""

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image


FEATURES = Features(
    {
        "image": ImageFeature(),
        "images": List(ImageFeature()),
        "masks": List(ImageFeature(mode="L")),
        "phrases": List(Value("string")),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "sample_id": Value("string"),
    }
)


def noise(seed, size=(48, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


def mask(seed, size=(48, 40)):
    return Image.fromarray(255 * np.random.default_rng(seed).integers(0, 2, size[::-1], np.uint8))


def chat(answer):
    return [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer}]


def make(rows):
    return Dataset.from_list([{name: row.get(name) for name in FEATURES} for row in rows], features=FEATURES)


def every_kind():
    """A still image, two objects, a clip with two objects, text only, an image without an object, one object more."""
    return make(
        [
            {"image": noise(0), "masks": [mask(0)], "phrases": ["vessel"], "sample_id": "still"},
            {"image": noise(1), "masks": [mask(1), mask(2)], "phrases": ["left", "right side"], "sample_id": "two"},
            {
                "images": [noise(seed) for seed in (2, 3, 4)],
                "masks": [mask(seed) for seed in range(3, 9)],
                "phrases": ["one", "other"],
                "sample_id": "clip",
            },
            {"messages": chat("A text."), "masks": [], "phrases": [], "sample_id": "text"},
            {"image": noise(5), "messages": chat("Nothing here."), "masks": [], "phrases": [], "sample_id": "empty"},
            {"image": noise(6), "messages": chat("It is [SEG]."), "masks": [mask(9)], "sample_id": "messages"},
        ]
    )
