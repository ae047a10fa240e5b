"""Scores by study: what doctors judge together counts once, by the mean of its images' probabilities.

Source: Rajpurkar et al., "MURA", MIDL 2018 (arXiv:1712.06957), whose measure is Cohen's κ between studies' labels and
predictions.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.metrics import cohen_kappa_score

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import DatasetError
from maskaug.envs.files import atomic_write
from maskaug.envs.pretrain import auroc


@dataclasses.dataclass(frozen=True, eq=False)
class StudyScores:
    """What `study_scores` returns, M studies in the order of their numbers.

    Attributes:
        numbers: (M,) int64.
        labels: (M,) int64.
        probabilities: (M, C) float64.
        images: (M,) int64, how many each has.
    """

    numbers: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    images: npt.NDArray[np.int64]

    def metrics(self) -> dict[str, float]:
        """{"n", "accuracy", "auroc", "kappa"}; the class predicted is the most probable one, the first of equal ones.

        AUROC is macro one-against-rest with more than two classes, and NaN where a class is missing. κ (Cohen 1960) is
        NaN where all studies have one label: then there is nothing to agree on. All three are NaN where a probability
        is not finite.
        """
        figures = {"n": float(len(self.numbers)), "accuracy": np.nan, "auroc": np.nan, "kappa": np.nan}
        if not np.isfinite(self.probabilities).all():
            return figures
        predicted = self.probabilities.argmax(axis=1)
        figures["accuracy"] = float(np.equal(predicted, self.labels).mean())
        figures["auroc"] = auroc(self.probabilities, self.labels)
        if len(np.unique(self.labels)) > 1:
            figures["kappa"] = float(cohen_kappa_score(self.labels, predicted))
        return figures

    def write(self, path: Path, dataset: ImageDataset) -> None:
        """One row a study: study, label, p_<class> for each class, images; with the names that `dataset` has."""

        def rows(temporary: Path) -> None:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["study", "label", *(f"p_{name}" for name in dataset.class_names), "images"])
                for number, label, p, n in zip(self.numbers, self.labels, self.probabilities, self.images, strict=True):
                    study = dataset.study_names[number] if dataset.study_names else number
                    writer.writerow([study, dataset.class_names[label], *(f"{value:.6f}" for value in p), n])

        atomic_write(path, rows)


def study_scores(
    probabilities: npt.NDArray[np.float64], studies: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> StudyScores:
    """Images' probabilities → their studies': the mean over each study's images.

    Args:
        probabilities: (N, C), of each class for each image.
        studies: (N,), images of one study share a number.
        labels: (N,), 0 … C − 1.

    Raises:
        DatasetError: a study's images have different labels.
    """
    if len(mixed := mixed_studies(studies, labels)):
        raise DatasetError(
            f"images of one study have different labels in {len(mixed)} studies (number {mixed[0]}, …), so that these "
            "have none; give each label a study of its own"
        )
    numbers, first, inverse, images = np.unique(studies, return_index=True, return_inverse=True, return_counts=True)
    sums = np.zeros((len(numbers), probabilities.shape[1]))
    np.add.at(sums, inverse, probabilities)
    return StudyScores(numbers, labels[first], sums / images[:, None], images.astype(np.int64))


def mixed_studies(studies: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers of the studies whose images have different labels, ascending; both arguments (N,)."""
    pairs = np.unique(np.stack([studies, labels]), axis=1)
    numbers, counts = np.unique(pairs[0], return_counts=True)
    mixed: npt.NDArray[np.int64] = numbers[counts > 1]
    return mixed
