"""Contact sheets of pairs."""

import numpy as np
from datasets import Dataset
from PIL import Image

from ..data.layout import normalize_row
from ..evaluation import overlay


def contact_sheet(pairs: Dataset, count: int) -> Image.Image:
    """
    Pairs from the smallest to the largest gap, one below the other: image, chosen and rejected mask, coloured as in
    [`~evaluation.overlay`].

    Args:
        pairs (`datasets.Dataset`): from [`build_preferences`].
        count (`int`): how many; of fewer pairs all.

    Returns:
        `PIL.Image.Image`: RGB, 768 pixels wide.
    """
    gaps = np.array(pairs["chosen_reward"]) - np.array(pairs["rejected_reward"])
    picked = np.argsort(gaps)[np.linspace(0, len(gaps) - 1, min(count, len(gaps))).round().astype(int)]
    strips = []
    for row in pairs.select(picked):
        (image,), (target,) = (normalize_row(row)[name] for name in ("images", "masks"))
        chosen, rejected, target = (np.asarray(m) > 0 for m in (row["chosen_mask"], row["rejected_mask"], target))
        right = np.asarray(overlay(image, rejected, target))[:, image.width :]
        strip = Image.fromarray(np.concatenate([np.asarray(overlay(image, chosen, target)), right], axis=1))
        strips.append(strip.resize((768, max(round(256 * image.height / image.width), 1))))
    return Image.fromarray(np.concatenate([np.asarray(strip) for strip in strips]))
