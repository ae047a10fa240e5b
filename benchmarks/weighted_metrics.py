"""Metrics of a classifier whose test images have weights, for many weightings at once: what a bootstrap needs.

With all weights 1 they are those of `sklearn.metrics` (the tests compare), with whole numbers those of images repeated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
#: (labels, probabilities, weights (B, n)) → (B,)
Measure = Callable[[Labels, Array, Array], Array]


def auroc(labels: Labels, probabilities: Array, weights: Array) -> Array:
    """Area under the ROC curve: (B,); with more than two classes the mean of each against the rest.

    Args:
        labels: (n,), 0 … C − 1.
        probabilities: (n, C).
        weights: (B, n), not negative.

    Returns:
        NaN where a class has no weight.
    """
    classes = probabilities.shape[1]
    columns = [1] if classes == 2 else range(classes)
    areas: Array = np.mean([_area(labels == c, probabilities[:, c], weights) for c in columns], axis=0)
    return areas


def accuracy(labels: Labels, probabilities: Array, weights: Array) -> Array:
    """Share of the weight that is predicted right: (B,); arguments of `auroc`. NaN where there is no weight at all."""
    right = probabilities.argmax(axis=1) == labels
    return _ratio(weights @ right, weights.sum(axis=1))


def balanced_accuracy(labels: Labels, probabilities: Array, weights: Array) -> Array:
    """Mean over the classes of the share of each that is predicted right: (B,); arguments and NaN as `auroc`."""
    found, true, _ = _counts(labels, probabilities, weights)
    return _means(found, true)


def macro_f1(labels: Labels, probabilities: Array, weights: Array) -> Array:
    """Mean over the classes of F1 = 2·found ÷ (true + predicted): (B,); arguments and NaN as `auroc`."""
    found, true, predicted = _counts(labels, probabilities, weights)
    # A class without weight that is predicted has F1 = 0 by the formula, and no recall that it could be the F1 of.
    return _means(2 * found, np.where(true > 0, true + predicted, 0))


METRICS: dict[str, Measure] = {
    "auroc": auroc,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}


def _area(positive: npt.NDArray[np.bool_], scores: Array, weights: Array) -> Array:
    """The weight of pairs whose positive image scores above the negative one, ties half, ÷ that of all pairs: (B,)."""
    order = np.argsort(scores, kind="stable")
    # Images with one score count together; they lie side by side after sorting.
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan))
    positive, weights = positive[order], weights[:, order]
    above = np.add.reduceat(weights * positive, starts, axis=1)
    below = np.add.reduceat(weights * ~positive, starts, axis=1)
    pairs = np.sum(above * (np.cumsum(below, axis=1) - below / 2), axis=1)
    return _ratio(pairs, above.sum(axis=1) * below.sum(axis=1))


def _counts(labels: Labels, probabilities: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Of every class the weight that is found, that is true and that is predicted: three (B, C)."""
    classes = np.arange(probabilities.shape[1])
    true = labels[:, None] == classes
    predicted = probabilities.argmax(axis=1)[:, None] == classes
    return weights @ (true & predicted), weights @ true, weights @ predicted


def _means(above: Array, below: Array) -> Array:
    means: Array = _ratio(above, below).mean(axis=1)
    return means


def _ratio(above: Array, below: Array) -> Array:
    """What `above` is divided by `below`, NaN where that is 0."""
    ratio: Array = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return ratio
