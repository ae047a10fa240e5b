"""How sure a mean over seeds is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from maskaug.envs.errors import ConfigurationError


def paired_interval(
    differences: Sequence[float], confidence: float = 0.95, *, test_share: float = 0.0
) -> tuple[float, float, float]:
    """(mean, low, high): the mean difference and its Student t interval.

    Splits of one data set share images, and their differences are not independent: with `test_share` the variance of
    the mean is s²·(1/n + test ÷ train) instead of s²/n (Nadeau & Bengio, Machine Learning 52, 2003, eq. 9).

    Args:
        differences: one of each independent repetition (a seed of pre-training, a split), of two arms that had the
            same images, updates and labels. Draws of labels within one repetition are not independent: average first.
        confidence: of the interval.
        test_share: test images ÷ training images where the repetitions split the same images anew; 0 where each has
            images of its own.

    Raises:
        ConfigurationError: fewer than two differences, or one that is not finite.

    >>> [round(x, 3) for x in paired_interval([0.01, 0.03, 0.02])]
    [0.02, -0.005, 0.045]
    >>> [round(x, 3) for x in paired_interval([0.01, 0.03, 0.02], test_share=0.2)]
    [0.02, -0.011, 0.051]
    """
    if len(differences) < 2:
        raise ConfigurationError(
            f"an interval needs at least two differences, got {len(differences)}; run more seeds or splits"
        )
    if not all(math.isfinite(d) for d in differences) or not 0 < confidence < 1 or not 0 <= test_share < math.inf:
        raise ConfigurationError(
            f"differences must be finite, confidence={confidence} between 0 and 1, and test_share={test_share} at "
            "least 0"
        )
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) * math.sqrt(1 / len(differences) + test_share)
    reach = float(stats.t.ppf((1 + confidence) / 2, len(differences) - 1)) * error
    return mean, mean - reach, mean + reach
