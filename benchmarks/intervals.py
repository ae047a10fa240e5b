"""How sure a mean over seeds is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from maskaug.envs.errors import ConfigurationError


def paired_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high): the mean difference and its Student t interval.

    Args:
        differences: one of each independent repetition (a seed of pre-training, a split), of two arms that had the
            same images, updates and labels. Draws of labels within one repetition are not independent: average first.
        confidence: of the interval.

    Raises:
        ConfigurationError: fewer than two differences, or one that is not finite.

    >>> [round(x, 3) for x in paired_interval([0.01, 0.03, 0.02])]
    [0.02, -0.005, 0.045]
    """
    if len(differences) < 2:
        raise ConfigurationError(
            f"an interval needs at least two differences, got {len(differences)}; run more seeds or splits"
        )
    if not all(math.isfinite(d) for d in differences) or not 0 < confidence < 1:
        raise ConfigurationError(f"differences must be finite and confidence={confidence} between 0 and 1")
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(differences) - 1)) * error
    return mean, mean - reach, mean + reach
