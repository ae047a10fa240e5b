"""The proof that learning works at the size that the README reports; `make slow` runs it."""

from __future__ import annotations

import numpy as np
import pytest

from maskaug.benchmarks.retention import RetentionSettings, retention
from maskaug.envs.judges import make_judge
from maskaug.envs.pretrain import FitSettings, evaluate_classifier, fit_classifier
from maskaug.envs.synthetic import DIFFICULTIES, make_synthetic


@pytest.mark.slow
def test_apga_finds_the_break_on_medium_radiographs() -> None:
    play = {"action": "grid", "repeat": 4, "fill": "blur", "n": 3000}
    summary = retention(RetentionSettings("MaskAug-Synthetic-v0", play), seeds=2)
    assert summary["retention.apga.mean"] >= 0.90
    assert summary["paired_difference.min"] >= -0.01  # against |input × gradient| of the same judge
    assert summary["retention.swapped.mean"] < 0.40  # image-specific, not a favourite place
    assert summary["cpu_ratio.mean"] <= 2


@pytest.mark.slow
def test_difficulties_are_what_they_are_called() -> None:
    mean = {}
    test = {d: make_synthetic(difficulty=d, n=1000, start=100_000) for d in DIFFICULTIES}
    for difficulty in DIFFICULTIES:
        accuracies = []
        for seed in range(5):
            train = make_synthetic(difficulty=difficulty, n=200, start=1000 * seed)
            judge = make_judge("small", 1, 2, seed)
            fit_classifier(judge, train, None, FitSettings(seed=seed))
            accuracies.append(evaluate_classifier(judge, test[difficulty])["accuracy"])
        mean[difficulty] = float(np.mean(accuracies))
        print(difficulty, f"{mean[difficulty]:.3f} ± {np.std(accuracies, ddof=1):.3f}")
    assert 0.65 <= mean["medium"] <= 0.75
    assert mean["hard"] < mean["medium"] - 0.05
    assert mean["easy"] > mean["medium"] + 0.1
