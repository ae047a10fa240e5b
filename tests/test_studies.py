"""Figures by study: the arithmetic checked by hand, and what a run's folder says of them."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskaug.benchmarks import evaluation
from maskaug.benchmarks.classifiers import classifier_scores, sentence
from maskaug.benchmarks.evaluation import evaluate
from maskaug.benchmarks.pretraining import pretrain_judge
from maskaug.benchmarks.studies import mixed_studies, study_scores
from maskaug.benchmarks.training import dataset_of, train
from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import DatasetError
from maskaug.envs.mura import write_example

# Five studies of ten images, in no order: number, label, probability of class 1.
STUDIES = np.array([7, 2, 9, 4, 7, 5, 9, 5, 5, 4])
LABELS = np.array([1, 0, 1, 0, 1, 0, 1, 0, 0, 0])
POSITIVE = np.array([0.9, 0.2, 0.5, 0.8, 0.3, 0.1, 0.5, 0.2, 0.3, 0.6])
BOTH = np.stack([1 - POSITIVE, POSITIVE], axis=1)


def test_a_studys_probability_is_the_mean_of_its_images() -> None:
    found = study_scores(BOTH, STUDIES, LABELS)
    assert found.numbers.tolist() == [2, 4, 5, 7, 9]
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.images.tolist() == [1, 2, 3, 2, 2]
    assert found.probabilities[:, 1].tolist() == pytest.approx([0.2, 0.7, 0.2, 0.6, 0.5])
    assert found.probabilities.sum(axis=1) == pytest.approx(1)


def test_the_figures_are_those_computed_by_hand() -> None:
    found = study_scores(BOTH, STUDIES, LABELS).metrics()
    # Predicted are 0, 1, 0, 1, 0 (equal probabilities: the first class), so that three of five agree. Both hands say 0
    # three times and 1 twice: by chance .6 · .6 + .4 · .4 = .52 would agree.
    assert found["n"] == 5
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["kappa"] == pytest.approx((0.6 - 0.52) / (1 - 0.52))
    # .6 and .5 of the positive studies are above two of the negative ones' .2, .7, .2.
    assert found["auroc"] == pytest.approx(4 / 6)
    # Image by image it is something else.
    assert np.mean(BOTH.argmax(axis=1) == LABELS) == 0.5


def test_three_classes_by_hand() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7], [0.1, 0.6, 0.3]])
    found = study_scores(probabilities, np.arange(5), np.array([0, 1, 1, 2, 2])).metrics()
    # Predicted are 0, 1, 0, 2, 1; chance: (1 · 2 + 2 · 2 + 2 · 1) / 25.
    assert found["kappa"] == pytest.approx((3 / 5 - 8 / 25) / (1 - 8 / 25))
    # One against the rest: class 0 is 1; class 1: .5 and .4 against .3, .2, .6; class 2: .7 and .3 against .1, .3, .1.
    assert found["auroc"] == pytest.approx((1 + 4 / 6 + 5.5 / 6) / 3)


def test_what_cannot_be_known_is_nan() -> None:
    perfect = study_scores(np.eye(2)[LABELS], STUDIES, LABELS).metrics()
    assert (perfect["accuracy"], perfect["auroc"], perfect["kappa"]) == (1, 1, 1)
    # Who always says the same agrees as often as by chance.
    constant = study_scores(np.tile([0.7, 0.3], (10, 1)), STUDIES, LABELS).metrics()
    assert (constant["accuracy"], constant["auroc"], constant["kappa"]) == (0.6, 0.5, 0)
    one_class = study_scores(BOTH, STUDIES, np.zeros(10, np.int64)).metrics()
    assert one_class["accuracy"] == pytest.approx(3 / 5)
    assert math.isnan(one_class["auroc"])
    assert math.isnan(one_class["kappa"])
    broken = BOTH.copy()
    broken[3] = np.nan
    figures = study_scores(broken, STUDIES, LABELS).metrics()
    assert figures["n"] == 5
    assert all(math.isnan(figures[name]) for name in ("accuracy", "auroc", "kappa"))


def test_a_study_with_two_labels_is_an_error() -> None:
    labels = LABELS.copy()
    labels[[4, 8]] = 0, 1
    assert mixed_studies(STUDIES, LABELS).tolist() == []
    assert mixed_studies(STUDIES, labels).tolist() == [5, 7]
    with pytest.raises(DatasetError, match=r"different labels in 2 studies \(number 5, …\)"):
        study_scores(BOTH, STUDIES, labels)


# ---- of a classifier -------------------------------------------------------------------------------------------------


class TopLeft(nn.Module):
    """Reads the logit of class 1 from the first pixel."""

    def forward(self, images: Tensor) -> Tensor:
        logit = (images[:, 0, 0, 0] - 0.5) * 8
        return torch.stack([torch.zeros_like(logit), logit], 1)


def pictures(studies: Any, labels: Any = LABELS) -> ImageDataset:
    images = np.zeros((10, 1, 36, 36), np.uint8)
    logits = np.log(POSITIVE / (1 - POSITIVE))
    images[:, 0, 0, 0] = np.round((logits / 8 + 0.5) * 255)
    groups = np.arange(10)
    return ImageDataset(
        "made", images, np.asarray(labels), None, groups, ("no", "yes"), tuple("abcdefghij"), "test", studies=studies
    )


def test_a_classifiers_figures_by_image_and_by_study() -> None:
    found = classifier_scores(TopLeft(), pictures(STUDIES), torch.device("cpu"))
    by_hand = study_scores(BOTH, STUDIES, LABELS)
    # The pixels are whole numbers: probabilities come back within a few thousandths, and .5 falls on either side.
    np.testing.assert_allclose(found.studies["judge.test"].probabilities, by_hand.probabilities, atol=0.01)
    assert found.flat["judge.test.study.n"] == 5
    assert found.flat["judge.test.study.auroc"] == pytest.approx(4 / 6)
    assert {"judge.test.accuracy", "judge.test.auroc", "judge.test.loss"} < found.flat.keys()
    assert found.note == ""
    assert sentence(found.flat, "judge.test.study").startswith("5 studies, accuracy 0.")
    assert sentence(found.flat, "judge.val") == ""
    one_class = classifier_scores(TopLeft(), pictures(STUDIES, 0 * LABELS), torch.device("cpu")).flat
    assert {"judge.test.study.accuracy", "judge.test.study.n"} <= one_class.keys()
    assert not {"judge.test.study.auroc", "judge.test.study.kappa"} & one_class.keys()


def test_without_studies_or_with_mixed_ones_there_are_no_figures_by_study() -> None:
    for studies, words in ((None, ""), (np.arange(10) // 2, "different labels in 4 studies")):
        found = classifier_scores(TopLeft(), pictures(studies), torch.device("cpu"))
        assert found.flat.keys() == {f"judge.test.{name}" for name in ("accuracy", "auroc", "loss")}
        assert found.studies == {}
        assert words in found.note


def test_study_names_belong_to_studies() -> None:
    data = pictures(STUDIES)
    with pytest.raises(DatasetError, match="9 study names need studies that are numbers of these"):
        dataclasses.replace(data, study_names=tuple("abcdefghi"))
    named = dataclasses.replace(data, study_names=tuple("abcdefghij"))
    assert named.digest == data.digest
    assert named.subset([3, 0]).study_names == named.study_names
    with pytest.raises(DatasetError, match="study names"):
        dataclasses.replace(named, studies=None)


# ---- of a run --------------------------------------------------------------------------------------------------------

ENV = {"image_size": 40, "grid": 5, "repeat": 2, "judge_batch": 6}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    root = write_example(folder, n=84, side=(40, 60))
    arguments: dict[str, Any] = {
        "num_envs": 4, "seed": 0, "device": "cpu", "env": {**ENV, "root": str(root)}, "settings": {},
        "checkpoint_every": 16, "resume": False, "progress_bar": False, "say": lambda _: None,
    }  # fmt: skip
    results = train("APGA", "MaskAug-MURA-v0", out=folder / "run", total_timesteps=32, **arguments)
    # What is known at the end of training has the studies of the validation split.
    assert results["judge.val.study.n"] >= 2
    return folder / "run"


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_evaluate_scores_studies_and_lists_them(run: Path) -> None:
    said: list[str] = []
    evaluate(run, "test", "cpu", said.append, tta=True)
    stored = json.loads((run / "results.json").read_text())
    held_out = load_dataset("mura", root=run.parent / "MURA-v1.1", split="test", image_size=40)
    folders = sorted({name.rpartition("/")[0] for name in held_out.names})
    for file, prefix, title in (
        ("studies.test.csv", "judge.test", "the judge"),
        ("studies.test.tta.csv", "judge.test.tta", "with its aiding views"),
    ):
        rows = table(run / file)
        assert [row["study"] for row in rows] == folders
        assert sum(int(row["images"]) for row in rows) == len(held_out)
        assert list(rows[0]) == ["study", "label", "p_normal", "p_abnormal", "images"]
        truth = np.array([row["study"].endswith("_positive") for row in rows])
        assert [row["label"] for row in rows] == ["abnormal" if label else "normal" for label in truth]
        says = np.array([float(row["p_abnormal"]) > float(row["p_normal"]) for row in rows])
        chance = truth.mean() * says.mean() + (1 - truth.mean()) * (1 - says.mean())
        agree = np.mean(truth == says)
        assert stored[f"{prefix}.study.n"] == len(rows)
        assert stored[f"{prefix}.study.accuracy"] == pytest.approx(agree)
        assert stored[f"{prefix}.study.kappa"] == pytest.approx((agree - chance) / (1 - chance), abs=1e-9)
        assert 0 <= stored[f"{prefix}.study.auroc"] <= 1
        line = next(words for words in said if words.startswith(f"{title}, by study: "))
        assert f"{len(rows)} studies" in line
        assert f"κ {stored[f'{prefix}.study.kappa']:.3f}" in line
    assert table(run / "studies.test.csv") != table(run / "studies.test.tta.csv")


def test_evaluate_goes_on_where_studies_are_mixed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed(keywords: Any, split: str | None) -> ImageDataset:
        data = dataset_of(keywords, split)
        return dataclasses.replace(data, studies=np.zeros(len(data), np.int64), study_names=("all",))

    monkeypatch.setattr(evaluation, "dataset_of", mixed)
    said: list[str] = []
    found = evaluate(run, "val", "cpu", said.append)
    assert "judge.val.accuracy" in found
    assert not any(".study." in name for name in found)
    assert not (run / "studies.val.csv").exists()
    assert any("different labels in 1 studies" in words for words in said)


def test_pretrain_tells_the_studies_of_its_validation_split(run: Path, tmp_path: Path) -> None:
    for env_id, env, expected in (
        ("MaskAug-MURA-v0", {"root": str(run.parent / "MURA-v1.1"), "image_size": 40}, 1),
        ("MaskAug-Synthetic-v0", {"n": 60, "image_size": 40}, 0),
    ):
        said: list[str] = []
        pretrain_judge(
            tmp_path / f"{env_id}.safetensors", env_id, env, updates=4, batch_size=8, lr=1e-3, seed=0, device="cpu",
            progress_bar=False, say=said.append,
        )  # fmt: skip
        told = [words for words in said if words.startswith("validation, by study: ")]
        assert len(told) == expected
        assert all(" studies, accuracy " in words and "κ " in words for words in told)
