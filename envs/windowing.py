"""More than eight bits → eight: the values that become 0 and 255 are always chosen and never guessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.envs.errors import ConfigurationError

Window = str | tuple[float, float] | None
Floats = npt.NDArray[np.float64]

#: Pixels that are converted at a time: what a conversion needs besides is a few times as many bytes.
_BAND = 1 << 19


def parse_window(window: Any) -> Window:
    """None, "minmax", (low, high) or "LOW,HIGH" → the same with numbers.

    Raises:
        ConfigurationError: anything else, or not low < high.
    """
    if window is None or window == "minmax":
        return None if window is None else "minmax"
    ends = window.split(",") if isinstance(window, str) else window
    try:
        low, high = (float(end) for end in ends)
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"window={window!r} is no window; use two numbers (low, high) or 'LOW,HIGH', or 'minmax'"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigurationError(f"window={window!r}: low must be less than high, both finite; turn them round?")
    return low, high


def linear(low: float, high: float) -> Callable[[Floats], Floats]:
    """Low → 0, high → 255, linearly and clipped; with low == high (a picture of one value) everything → 0."""
    return lambda x: np.clip((x - low) / (high - low) * 255, 0, 255) if high > low else np.zeros_like(x)


def bands(height: int, width: int) -> Iterator[slice]:
    """Slices of rows that cover `height`, each of about half a million pixels."""
    step = max(1, _BAND // max(1, width))
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def span(height: int, width: int, values: Callable[[slice], Floats]) -> tuple[float, float]:
    """Least and greatest of `values` (a slice of rows → float64) over all rows.

    Raises:
        ValueError: one of them is NaN or infinite.
    """
    low, high = math.inf, -math.inf
    for rows in bands(height, width):
        part = values(rows)
        if not np.isfinite(part).all():
            raise ValueError("NaN or infinite values")
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    return low, high


def to_bytes(values: Floats, *, inverted: bool = False) -> npt.NDArray[np.uint8]:
    """Float64 in [0, 255] → uint8, rounded to the nearest; inverted: 255 − it."""
    rounded = np.rint(values).astype(np.uint8)
    return 255 - rounded if inverted else rounded
