"""
Whether probabilities mean what they say: of the pixels given 0.8, are 80 % foreground?

Everything comes from [`Reliability`], sums over bins of equal width, which add up over images: a figure of a whole
dataset is that of the sum.
"""

from typing import NamedTuple

import numpy as np

from .segmentation import as_bool


class Reliability(NamedTuple):
    """
    Sums over the pixels of each bin of predicted probability. Those of several images add up with `merge`.

    Args:
        pixels (`np.ndarray` of shape `(bins,)`): how many, int64.
        predicted (`np.ndarray` of shape `(bins,)`): sum of their probabilities.
        positive (`np.ndarray` of shape `(bins,)`): how many are foreground, int64.
        squares (`float`): sum of the squared differences of probability and truth over all pixels.
    """

    pixels: np.ndarray
    predicted: np.ndarray
    positive: np.ndarray
    squares: float

    def merge(self, other: "Reliability") -> "Reliability":
        """The sums over the pixels of both; neither is changed."""
        return Reliability(*(mine + its for mine, its in zip(self, other, strict=True)))

    @property
    def ece(self) -> float:
        """
        Expected calibration error (Guo et al., ICML 2017, arXiv 1706.04599), of the foreground's probability: the mean
        over pixels of |mean probability - share of foreground| of their bin. In [0, 1], lower is better.
        """
        return float(np.abs(self.predicted - self.positive).sum() / self.pixels.sum())

    @property
    def brier(self) -> float:
        """Brier score (1950): the mean squared difference of probability and truth. In [0, 1], lower is better."""
        return self.squares / int(self.pixels.sum())

    @property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """For a diagram: mean probability and share of foreground of every bin, `(bins,)`; NaN of empty bins."""
        with np.errstate(invalid="ignore"):
            return self.predicted / self.pixels, self.positive / self.pixels


def reliability(probabilities: np.ndarray, target: np.ndarray, bins: int = 15) -> Reliability:
    """
    Sums from which calibration is told.

    Args:
        probabilities (`np.ndarray`): of any shape, in [0, 1].
        target (`np.ndarray`, same shape): `bool` or numbers 0 and 1.
        bins (`int`, *optional*, defaults to 15): of equal width; a probability on an edge belongs to the upper one.

    Returns:
        [`Reliability`] of the pixels.

    Raises:
        `ValueError`: the shapes differ, there are no pixels, probabilities outside [0, 1] or NaN, a target that is not
            binary, or no bins.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.metrics import reliability

        >>> found = reliability(np.array([0.25, 0.25, 0.75, 0.75]), np.array([0, 1, 1, 1]), bins=2)
        >>> found.ece, found.brier
        (0.25, 0.1875)

        ```
    """
    probabilities, target = np.asarray(probabilities, dtype=np.float64), np.asarray(target)
    if probabilities.shape != target.shape or not target.size:
        raise ValueError(
            f"`probabilities` {probabilities.shape} and `target` {target.shape} must have one shape, with pixels."
        )
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1, got {bins}.")
    probabilities, target = probabilities.ravel(), as_bool(target, "target").ravel()
    if not (probabilities.min() >= 0 and probabilities.max() <= 1):  # NaN is refused too
        raise ValueError("`probabilities` must lie in [0, 1].")
    number = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    difference = probabilities - target
    return Reliability(
        np.bincount(number, minlength=bins),
        np.bincount(number, probabilities, bins),
        np.bincount(number[target], minlength=bins),
        float(difference @ difference),
    )
