"""The figures of a classifier, each computed by hand, and what there is no figure for."""

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score

from maskaug.benchmarks.metrics import classification_metrics, expected_calibration_error
from maskaug.benchmarks.studies import study_scores
from maskaug.envs.errors import ConfigurationError, DatasetError

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# Six images of two classes: predicted are 0, 0, 1, 1, 0 (a tie: the first class), 1.
POSITIVE = np.array([0.1, 0.4, 0.7, 0.9, 0.5, 0.8])
BOTH = np.stack([1 - POSITIVE, POSITIVE], axis=1)
LABELS = np.array([0, 0, 0, 1, 1, 0])
FIGURES = {"accuracy", "balanced_accuracy", "auroc", "macro_f1", "ece", "loss"}


def test_two_classes_by_hand() -> None:
    found = classification_metrics(BOTH, LABELS)
    assert set(found) == FIGURES
    # Right are images 0, 1 and 3: two of the four of class 0, and one of the two of class 1.
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["balanced_accuracy"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    # .9 is above all four of class 0, .5 above two of them (.1 and .4).
    assert found["auroc"] == pytest.approx((4 + 2) / 8)
    # F1 = 2 right ÷ (images of the class + predictions of it): 4 ÷ (4 + 3) and 2 ÷ (2 + 3).
    assert found["macro_f1"] == pytest.approx((4 / 7 + 2 / 5) / 2)
    assert found["loss"] == pytest.approx(-math.log(0.9 * 0.6 * 0.3 * 0.9 * 0.5 * 0.2) / 6)
    # The top probabilities .9, .6, .7, .9, .5, .8 are 13.5, 9, 10.5, 13.5, 7.5 and 12 fifteenths: only the two of .9
    # share a bin, and both are right. Of the others only .6 is.
    assert found["ece"] == pytest.approx(((1 - 0.9) * 2 + (1 - 0.6) + 0.7 + 0.5 + 0.8) / 6)


def test_unequal_classes_tell_accuracy_from_balanced_accuracy() -> None:
    p = np.array([[0.9, 0.1]] * 10)
    found = classification_metrics(p, np.array([0] * 9 + [1]))
    assert found["accuracy"] == pytest.approx(0.9)
    assert found["balanced_accuracy"] == pytest.approx(0.5)
    # A class that is never predicted has an F1 of 0: (18 ÷ (9 + 10) + 0) ÷ 2.
    assert found["macro_f1"] == pytest.approx(9 / 19)
    assert found["auroc"] == pytest.approx(0.5)
    # Right nine times of ten, and sure of it by .9: perfectly calibrated.
    assert found["ece"] == pytest.approx(0, abs=1e-12)


def test_three_classes_by_hand() -> None:
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7], [0.1, 0.6, 0.3]])
    y = np.array([0, 1, 1, 2, 2])
    found = classification_metrics(p, y)
    # Predicted 0, 1, 0, 2, 1.
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 4 + 2 / 3) / 3)
    # Each class against the rest: .6 above all four; of .5 and .4 against .3, .2 and .6 two each; of .7 and .3 against
    # .1, .3 and .1 all three, and two and a half.
    assert found["auroc"] == pytest.approx((1 + 4 / 6 + 5.5 / 6) / 3)
    assert found["loss"] == pytest.approx(-np.log([0.6, 0.5, 0.4, 0.7, 0.3]).mean())


def test_against_sklearn_on_many() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 300)
    logits = rng.normal(size=(300, 4)) + 1.5 * np.eye(4)[y]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = classification_metrics(p, y)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, p.argmax(axis=1)))
    assert found["auroc"] == pytest.approx(roc_auc_score(y, p, multi_class="ovr"))
    assert found["loss"] == pytest.approx(log_loss(y, p))
    # The definition of the paper, bin by bin.
    sure, right = p.max(axis=1), p.argmax(axis=1) == y
    ece = 0.0
    for m in range(15):
        inside = (sure > m / 15) & (sure <= (m + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert found["ece"] == pytest.approx(ece)
    assert 0.01 < ece < 0.5
    # float32 says the same.
    single = classification_metrics(p.astype(np.float32), y.astype(np.int32))
    assert single == pytest.approx(found, abs=1e-6)


def test_what_lies_on_a_bins_edge_belongs_to_the_bin_below() -> None:
    """With five bins .6 is in that of .5; were it in that of .7, the errors would add up instead of cancelling out."""
    p = np.array([[0.6, 0.4], [0.5, 0.5], [0.7, 0.3]])
    right = np.array([1, 0, 0])
    # Bin 3: (right 0 − .6) + (1 − .5) = −.1; bin 4: 1 − .7 = .3.
    assert expected_calibration_error(p, right, bins=5) == pytest.approx((0.1 + 0.3) / 3)
    # One bin: |2 − 1.8|; bins so narrow that each has its own: .6 + .5 + .3.
    assert expected_calibration_error(p, right, bins=1) == pytest.approx(0.2 / 3)
    assert expected_calibration_error(p, right, bins=1000) == pytest.approx(1.4 / 3)
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert expected_calibration_error(certain, np.array([0, 1])) == 0
    assert expected_calibration_error(certain, np.array([1, 0])) == 1


def test_a_sure_mistake_is_dear_but_not_infinite() -> None:
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert classification_metrics(certain, np.array([0, 1]))["loss"] == 0
    assert classification_metrics(certain, np.array([0, 0]))["loss"] == pytest.approx(-math.log(1e-12) / 2)


def test_a_class_without_images_leaves_three_figures_unknown() -> None:
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    found = classification_metrics(p, np.array([0, 1, 1]))
    assert {name for name, value in found.items() if math.isnan(value)} == {"auroc", "balanced_accuracy", "macro_f1"}
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_what_is_not_finite_leaves_every_figure_unknown() -> None:
    p = BOTH.copy()
    p[2] = np.nan
    found = classification_metrics(p, LABELS, np.arange(6))
    assert {name for name, value in found.items() if not math.isnan(value)} == {"study.n"}
    assert found["study.n"] == 6
    assert math.isnan(expected_calibration_error(p, LABELS))


def test_studies_add_their_own_figures() -> None:
    studies = np.array([5, 5, 3, 8, 8, 3])
    found = classification_metrics(BOTH, LABELS, studies)
    assert {name for name in found if "." not in name} == FIGURES
    # Means .25 (study 5), .75 (study 3), .7 (study 8): predicted 0, 1, 1 of 0, 0, 1. κ: chance (2 · 1 + 1 · 2) ÷ 9.
    assert found["study.n"] == 3
    assert found["study.accuracy"] == pytest.approx(2 / 3)
    assert found["study.auroc"] == pytest.approx(1 / 2)
    assert found["study.kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    direct = study_scores(BOTH, studies, LABELS).metrics()
    assert {f"study.{name}": value for name, value in direct.items()}.items() <= found.items()
    with pytest.raises(DatasetError, match="different labels"):
        classification_metrics(BOTH, LABELS, np.zeros(6, np.int64))


@pytest.mark.parametrize(
    ("probabilities", "labels", "said"),
    [
        (BOTH[:, 1], LABELS, "two columns"),
        (BOTH[:, 1:], LABELS, "two classes"),
        (BOTH[:0], LABELS[:0], "at least one image"),
        (BOTH, LABELS[:5], "integers"),
        (BOTH, LABELS / 1, "integers"),
        (BOTH, LABELS + 1, "from 1 to 2"),
        (BOTH, LABELS - 1, "from -1 to 0"),
        (np.log(BOTH), LABELS, "softmax"),
        (2 * BOTH, LABELS, "softmax"),
        (np.array([[1.5, -0.5]] * 6), LABELS, "softmax"),
    ],
)
def test_what_cannot_be_scored_is_refused(probabilities: Array, labels: Array, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        classification_metrics(probabilities, labels)
    with pytest.raises(ConfigurationError, match=said):
        expected_calibration_error(probabilities, labels)


def test_studies_and_bins_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="each of the 6 images"):
        classification_metrics(BOTH, LABELS, np.arange(5))
    with pytest.raises(ConfigurationError, match="bins=0"):
        expected_calibration_error(BOTH, LABELS, bins=0)
