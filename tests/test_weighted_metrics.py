from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from maskaug.benchmarks.weighted_metrics import METRICS

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def predictions(classes: int, n: int = 60, decimals: int = 1) -> tuple[Labels, Array]:
    """Labels (n,) of every class and probabilities (n, C), so coarse that many are equal."""
    rng = np.random.default_rng(classes)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    odds = np.exp(rng.normal(size=(n, classes)) + np.eye(classes)[labels])
    return labels, np.round(odds / odds.sum(axis=1, keepdims=True), decimals)


def by_sklearn(metric: str, labels: Labels, probabilities: Array, weights: Array) -> float:
    predicted = probabilities.argmax(axis=1)
    if metric == "accuracy":
        return float(accuracy_score(labels, predicted, sample_weight=weights))
    if metric == "balanced_accuracy":
        return float(balanced_accuracy_score(labels, predicted, sample_weight=weights))
    if metric == "macro_f1":
        return float(f1_score(labels, predicted, average="macro", sample_weight=weights))
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return float(np.mean([roc_auc_score(labels == c, probabilities[:, c], sample_weight=weights) for c in classes]))


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("metric", METRICS)
def test_sklearn_says_the_same(metric: str, classes: int) -> None:
    labels, probabilities = predictions(classes)
    rng = np.random.default_rng(1)
    weights = np.concatenate(
        [np.ones((1, 60)), rng.integers(4, size=(6, 60)) + np.eye(60)[0] / 2, rng.exponential(size=(3, 60))]
    )
    found = METRICS[metric](labels, probabilities, weights)
    expected = [by_sklearn(metric, labels, probabilities, row) for row in weights]
    assert found.shape == (10,)
    assert found == pytest.approx(np.array(expected), abs=1e-12)
    assert len(set(found)) > 5
    # A weight of 3 is the image three times.
    whole = rng.integers(1, 4, size=60)
    repeated = METRICS[metric](labels.repeat(whole), probabilities.repeat(whole, axis=0), np.ones((1, whole.sum())))
    assert METRICS[metric](labels, probabilities, whole[None].astype(float)) == pytest.approx(repeated, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_a_class_without_weight_leaves_only_the_accuracy(metric: str) -> None:
    labels, probabilities = predictions(3)
    without = np.ones((3, 60))
    without[1, labels == 2] = 0
    without[2] = 0
    found = METRICS[metric](labels, probabilities, without)
    assert np.isfinite(found[0])
    assert np.isfinite(found[1]) == (metric == "accuracy")
    assert np.isnan(found[2])


def test_no_score_says_nothing_and_a_perfect_one_all() -> None:
    labels = np.array([0, 1, 1, 0, 1])
    weights = np.array([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert METRICS["auroc"](labels, np.full((5, 2), 0.5), weights) == 0.5
    assert METRICS["auroc"](labels, np.eye(2)[labels], weights) == 1
    assert METRICS["auroc"](labels, np.eye(2)[1 - labels], weights) == 0
