"""Random generators that are saved and go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def generator_of(state: Mapping[str, Any]) -> np.random.Generator:
    """A generator that goes on from a saved state."""
    rng = np.random.Generator(np.random.PCG64())
    rng.bit_generator.state = dict(state)
    return rng
