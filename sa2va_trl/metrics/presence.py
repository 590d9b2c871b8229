"""
Whether a model says so where there is nothing: absent structures, by image.

"Nothing there" is the positive finding. Of an image both values are 1 or 0, or NaN where the question does not arise,
so that their means over images are the sensitivity (of the images without the structure, the share whose mask is
empty) and the specificity (of the images with it, the share whose mask is not).
"""

import math

from .segmentation import Counts


def absence_sensitivity(counts: Counts) -> float:
    """
    Whether nothing was found where nothing is.

    Args:
        counts (`Counts`): of one image.

    Returns:
        `float`: 1 or 0; NaN if the target is not empty.
    """
    return math.nan if counts.tp + counts.fn else float(counts.fp == 0)


def absence_specificity(counts: Counts) -> float:
    """
    Whether something, wherever it is, was found where something is.

    Args:
        counts (`Counts`): of one image.

    Returns:
        `float`: 1 or 0; NaN if the target is empty.
    """
    return float(counts.tp + counts.fp > 0) if counts.tp + counts.fn else math.nan
