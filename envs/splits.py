"""Which part of a data set a group of images belongs to: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maskaug.envs.errors import ConfigurationError


def deal_groups(
    groups: npt.NDArray[np.int64], labels: npt.NDArray[np.int64] | None, seed: int, fractions: Sequence[float]
) -> npt.NDArray[np.int64]:
    """The part, 0 … len(fractions) − 1, that each image belongs to, (N,) int64.

    Whole groups are dealt out, class by class (a group counts for its most frequent label), in an order drawn from
    `seed`, so that every part holds about its fraction of each class. Depends on the groups' numbers and the seed
    alone, not on the order of the images.

    Args:
        groups: (N,), images of one patient share a number.
        labels: (N,), each at least 0; None counts as one class.
        seed: at least 0.
        fractions: at least two shares that sum to 1.

    Raises:
        ConfigurationError: fractions that are none.
    """
    if len(fractions) < 2 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigurationError(f"fractions must be at least two numbers ≥ 0 that sum to 1, got {fractions}")
    numbers, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    classes = np.zeros(len(groups), np.int64) if labels is None else labels
    votes = np.zeros((len(numbers), int(classes.max()) + 1), np.int64)
    np.add.at(votes, (inverse, classes), 1)
    stratum = votes.argmax(axis=1)
    part = np.zeros(len(numbers), np.int64)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x5EED]))
    edges = np.cumsum(fractions)
    for cls in range(votes.shape[1]):
        members = rng.permutation(np.flatnonzero(stratum == cls))
        middles = (np.cumsum(sizes[members]) - sizes[members] / 2) / max(1, sizes[members].sum())
        part[members] = np.minimum(np.searchsorted(edges, middles, side="right"), len(fractions) - 1)
    return part[inverse]


def crossing_groups(groups: npt.NDArray[np.int64], part: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers of the groups that have images in more than one part, ascending; empty where all is well.

    Args:
        groups: (N,), images of one patient share a number.
        part: (N,), the part of each image.
    """
    pairs = np.unique(np.stack([groups, part]), axis=1)
    numbers, counts = np.unique(pairs[0], return_counts=True)
    crossing: npt.NDArray[np.int64] = numbers[counts > 1]
    return crossing
