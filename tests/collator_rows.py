"""Rows whose masks are magnified patterns: what a batch holds of them is known."""

import numpy as np
from PIL import Image


GRID = 32  # a quarter of SAM 2's 128 pixels


MANY_QUESTIONS = ["Please segment the {phrase}.", "Where is the {phrase}?", "Show me the {phrase}, please."]


MANY_ANSWERS = ["Sure, [SEG].", "[SEG]", "It is [SEG].", "The segmentation is [SEG]."]


def patterns(count, seed=0):
    """Masks on the decoder's grid, none like the other."""
    return (np.random.default_rng(seed).random((count, GRID, GRID)) < 0.3).astype(np.uint8)


def magnified(pattern, height=2, width=6):
    """The same, 64 high and 192 wide: every cell of the grid is a block, so resizing back is exact."""
    return Image.fromarray(255 * np.kron(pattern, np.ones((height, width), np.uint8)))


def colour(number, size=(192, 64)):
    return Image.new("RGB", size, (20 + 11 * number, 200 - 7 * number, 5 * number))


def still(objects=1, seed=0, name="still", **columns):
    return {
        "image": colour(seed),
        "masks": [magnified(pattern) for pattern in patterns(objects, seed)],
        "phrases": [f"vessel {number}" for number in range(objects)],
        "sample_id": f"{name}-{seed}",
        **columns,
    }


def clip(frames=3, objects=2, seed=0):
    return {
        "images": [colour(seed + frame) for frame in range(frames)],
        "masks": [magnified(pattern) for pattern in patterns(frames * objects, seed)],
        "phrases": [f"artery {number}" for number in range(objects)],
        "sample_id": f"clip-{seed}",
    }


def text_only(name="text"):
    messages = [{"role": "user", "content": "What is a stent?"}, {"role": "assistant", "content": "A small tube."}]
    return {"image": None, "messages": messages, "sample_id": name}
