"""How good a classifier is, from the probabilities it gave to held-out images: one function for every table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score, recall_score

from maskaug.benchmarks.studies import study_scores
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.pretrain import auroc

#: bins of the calibration error: those of Guo et al.
BINS = 15
#: a probability of the true class below this counts as this, so that one sure mistake does not make the loss infinite.
LEAST = 1e-12
#: how far the sum of an image's probabilities may be from 1: what bfloat16's rounding makes of it.
_SLACK = 1e-2


def classification_metrics(
    probabilities: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    studies: npt.NDArray[np.integer] | None = None,
) -> dict[str, float]:
    """All figures of a classifier on N images of C classes; the class predicted is the first of the most probable.

    Args:
        probabilities: (N, C), of each class for each image, rows that sum to 1.
        labels: (N,), 0 … C − 1.
        studies: (N,), images of one study share a number; None: there are none.

    Returns:
        "accuracy", the share of images that are predicted right; "balanced_accuracy", the mean over classes of the
        share of each class's images that are (its recall); "auroc", the area under the ROC curve, with more than two
        classes the plain mean of each against the rest; "macro_f1", the plain mean over classes of the harmonic mean of
        precision and recall; "ece", see `expected_calibration_error`; "loss", the mean cross-entropy in nats, where a
        probability below 1e-12 counts as 1e-12. With studies also "study.n", "study.accuracy", "study.auroc" and
        "study.kappa", Cohen's κ, of the mean of each study's images (see `StudyScores.metrics`).

        NaN: "balanced_accuracy", "auroc" and "macro_f1" where a class has no image, since its recall is unknown, and a
        mean over fewer classes is another measure; κ where all studies have one label; everything but "study.n" where
        a probability is not finite.

    Raises:
        ConfigurationError: the arrays do not fit together, or rows are no probabilities.
        DatasetError: a study's images have different labels; see `mixed_studies`.
    """
    p, y = _checked(probabilities, labels)
    if studies is not None and np.shape(studies) != y.shape:
        raise ConfigurationError(f"studies must name the study of each of the {len(y)} images, got {np.shape(studies)}")
    names = ("accuracy", "balanced_accuracy", "auroc", "macro_f1", "ece", "loss")
    figures = dict.fromkeys(names, float("nan"))
    if np.isfinite(p).all():
        predicted = p.argmax(axis=1)
        figures["accuracy"] = float(np.equal(predicted, y).mean())
        figures["auroc"] = auroc(p, y)
        figures["ece"] = expected_calibration_error(p, y)
        figures["loss"] = float(-np.log(p[np.arange(len(y)), y].clip(LEAST, 1)).mean())
        if len(np.unique(y)) == p.shape[1]:
            figures["balanced_accuracy"] = float(recall_score(y, predicted, average="macro"))
            figures["macro_f1"] = float(f1_score(y, predicted, average="macro"))
    if studies is not None:
        by_study = study_scores(p, np.asarray(studies, np.int64), y).metrics()
        figures |= {f"study.{name}": value for name, value in by_study.items()}
    return figures


def expected_calibration_error(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], bins: int = BINS
) -> float:
    """How far a classifier's probabilities are from how often it is right: 0 (calibrated) to 1.

    The images are sorted by the probability of the class predicted into bins of equal width over 0 to 1, bin m from
    (m − 1) ÷ bins, exclusive, to m ÷ bins, inclusive; the error is the mean over all images of their bin's
    |share predicted right − mean probability|. With two classes no probability is below ½, and half of the bins stay
    empty. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv:1706.04599), eq. 3, with 15 bins.

    Args:
        probabilities: (N, C), rows that sum to 1.
        labels: (N,), 0 … C − 1.
        bins: how many.

    Returns:
        NaN where a probability is not finite.

    Raises:
        ConfigurationError: the arrays do not fit together, rows are no probabilities, or there are no bins.

    >>> expected_calibration_error(np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([0, 0]))
    0.375
    """
    if bins < 1:
        raise ConfigurationError(f"bins={bins} must be at least 1")
    p, y = _checked(probabilities, labels)
    if not np.isfinite(p).all():
        return float("nan")
    sure = p.max(axis=1).clip(max=1)
    # The upper edges as quotients: .6 is in the bin that ends at 3/5, which a step of 1/5 taken three times is above.
    which = np.searchsorted(np.arange(1, bins + 1) / bins, sure)
    # A bin's n · |its mean of right − its mean of sure| is the absolute value of the sum of what they differ by.
    off = np.bincount(which, np.equal(p.argmax(axis=1), y) - sure, bins)
    return float(np.abs(off).sum() / len(y))


def _checked(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 2 or p.shape[0] < 1 or p.shape[1] < 2:
        raise ConfigurationError(
            f"probabilities must be (N, C) of at least one image and two classes, got {p.shape}; two classes need two "
            "columns"
        )
    if y.shape != p.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ConfigurationError(f"labels must be {p.shape[:1]} integers, got {y.dtype} of shape {y.shape}")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise ConfigurationError(f"labels run from {y.min()} to {y.max()}, but there are {p.shape[1]} classes, from 0")
    known = p[np.isfinite(p).all(axis=1)]
    if (known < 0).any() or (np.abs(known.sum(axis=1) - 1) > _SLACK).any():
        raise ConfigurationError("the rows are no probabilities: some are negative or do not sum to 1; softmax logits")
    return p, y.astype(np.int64)
