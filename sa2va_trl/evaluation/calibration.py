"""Whether probabilities mean what they say, over all pixels of a split, and the temperature that makes them."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from ..errors import DatasetError
from ..metrics import Reliability
from .thresholds import SortedMap, tempered


#: Intervals of probability, all of one width, as in Guo et al. (2017).
BINS = 15
#: Where a temperature is looked for.
TEMPERATURES = (0.2, 20.0)
# Log-odds are counted between these, in so many intervals. (In float32 a sigmoid is 1 from 16.6 on.)
_LIMIT, _INTERVALS = 17.0, 8192
_EDGES = expit(np.linspace(-_LIMIT, _LIMIT, _INTERVALS + 1)[1:-1])


class Calibration:
    """
    Calibration over the pixels of any number of maps, each pixel counting alike. Sums are kept, never maps.

    Args:
        temperature (`float`, *optional*, defaults to 1.0): that the maps' log-odds are divided by first.
        bins (`int`, *optional*, defaults to `BINS`): intervals of probability.
    """

    def __init__(self, temperature: float = 1.0, bins: int = BINS):
        self.temperature = temperature
        counts = np.zeros(bins, dtype=np.int64)
        self.sums = Reliability(counts, np.zeros(bins), counts, 0.0)

    def add(self, ordered: SortedMap) -> None:
        """Count a map in, for `on_map` of [`~evaluation.thresholds.sweep`]."""
        everything, inside = (tempered(values, self.temperature).astype(np.float64) for values in ordered)
        bins = len(self.sums.pixels)
        edges = np.arange(1, bins) / bins
        starts = np.concatenate([[0], np.searchsorted(everything, edges), [len(everything)]])
        sums = np.concatenate([[0.0], np.cumsum(everything)])
        own = Reliability(
            np.diff(starts),
            np.diff(sums[starts]),
            np.diff(np.concatenate([[0], np.searchsorted(inside, edges), [len(inside)]])),
            float(everything @ everything - 2 * inside.sum() + len(inside)),
        )
        self.sums = self.sums.merge(own)

    @property
    def ece(self) -> float:
        """Expected calibration error, see [`~metrics.calibration.Reliability`]. In [0, 1]."""
        return self.sums.ece

    @property
    def brier(self) -> float:
        """Brier score, see [`~metrics.calibration.Reliability`]. In [0, 1]."""
        return self.sums.brier

    def report(self) -> dict:
        """
        Returns:
            `dict`, ready for JSON: `temperature`, `ece`, `brier`, and `reliability`: for each interval with pixels its
            `from` and `to`, `pixels`, mean `probability` and `frequency` (the share within the target).
        """
        filled, bins = np.flatnonzero(self.sums.pixels), len(self.sums.pixels)
        probability, frequency = self.sums.curve
        return {
            "temperature": self.temperature,
            "ece": self.ece,
            "brier": self.brier,
            "reliability": [
                {
                    "from": place / bins,
                    "to": (place + 1) / bins,
                    "pixels": int(self.sums.pixels[place]),
                    "probability": float(probability[place]),
                    "frequency": float(frequency[place]),
                }
                for place in filled.tolist()
            ],
        }


class TemperatureScaling:
    """
    The one temperature that makes the targets of any number of maps likeliest (Guo et al., ICML 2017, arXiv
    1706.04599): of the least mean negative log-likelihood over pixels.

    Only counts and sums are kept: pixels are counted in intervals of log-odds of 0.004, each with the mean probability
    of what it holds, and the error is of second order: at temperature 1 less than 1e-5 nats a pixel.

    Example:

        ```python
        >>> import numpy as np
        >>> from sa2va_trl.evaluation.calibration import TemperatureScaling
        >>> from sa2va_trl.evaluation.thresholds import sort_map, tempered

        >>> rng = np.random.default_rng(0)
        >>> truth = rng.random((400, 400))
        >>> scaling = TemperatureScaling()
        >>> scaling.add(sort_map(tempered(truth, 0.5), rng.random(truth.shape) < truth))  # twice too sure of itself
        >>> round(scaling.fit(), 1)
        2.0

        ```
    """

    def __init__(self):
        self.pixels, self.sums, self.positive = np.zeros(_INTERVALS), np.zeros(_INTERVALS), np.zeros(2)

    def add(self, ordered: SortedMap) -> None:
        """Count a map in, for `on_map` of [`~evaluation.thresholds.sweep`]."""
        everything = ordered.everything.astype(np.float64)
        starts = np.concatenate([[0], np.searchsorted(everything, _EDGES), [len(everything)]])
        self.pixels += np.diff(starts)
        self.sums += np.diff(np.concatenate([[0.0], np.cumsum(everything)])[starts])
        self.positive += len(ordered.inside), _log_odds(ordered.inside).sum()

    def negative_log_likelihood(self, temperature: float) -> float:
        """The mean over pixels, in nats, at a temperature."""
        filled = self.pixels > 0
        odds = _log_odds(self.sums[filled] / self.pixels[filled]) / temperature
        total = self.pixels[filled] @ np.logaddexp(0, odds) - self.positive[1] / temperature
        return float(total / self.pixels.sum())

    def fit(self) -> float:
        """
        Returns:
            `float`: within `TEMPERATURES`.

        Raises:
            `DatasetError`: the maps' targets are all empty or all full, which any confidence would fit best.
        """
        if self.positive[0] in (0, self.pixels.sum()):
            raise DatasetError("The masks are all empty or all full: no temperature can be fitted on them.")
        # (In the inverse temperature it is convex; the logarithm of the temperature has the same one minimum.)
        found = minimize_scalar(
            lambda value: self.negative_log_likelihood(float(np.exp(value))),
            bounds=np.log(TEMPERATURES),
            method="bounded",
            options={"xatol": 1e-6},
        )
        return float(np.exp(found.x))


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    return np.clip(logit(np.clip(probabilities.astype(np.float64), 0, 1)), -_LIMIT, _LIMIT)
