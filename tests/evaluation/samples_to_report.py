"""Samples with pictures and scores, as an evaluation has them, made without any model."""

import numpy as np
import pandas as pd
from PIL import Image

from sa2va_trl.evaluation.results import aggregate, score


MARKUP = '<script>alert("1")</script>'


def rows_with_probabilities(count=24, size=32, seed=0):
    """Rows of two patients with three clips each, and probabilities that are worse from clip to clip."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        target = np.zeros((size, size), dtype=bool)
        target[8:24, 4 + number % 8 : 20] = True
        row = {
            "sample_id": f"clip{number // 4}_{number % 4}",
            "patient_id": MARKUP if number < count // 2 else "p & <b>",
            "video_id": f"clip{number // 4}",
            "frame_index": number % 4,
            "image": Image.fromarray(rng.integers(0, 255, (size, size), dtype=np.uint8)),
            "mask": Image.fromarray(255 * target.astype(np.uint8)),
            "phrase": "vessel",
        }
        noise = rng.random((size, size)) * (0.3 + 0.12 * (number // 4))
        yield row, np.clip(0.7 * target + noise - 0.1, 0, 1).astype(np.float32)[None]


def scored(seed=0, on_row=None):
    """Metrics and the table of samples."""
    samples = []
    for row, probabilities in rows_with_probabilities(seed=seed):
        samples.append(score(row, probabilities, 0.5))
        if on_row is not None:
            on_row(row, probabilities, samples[-1])
    samples = pd.DataFrame(samples)
    return aggregate(samples), samples
