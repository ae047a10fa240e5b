"""Training until it has converged, early stopping, and the batch-norm statistics of clean images."""

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import pictures, same
from torch import Tensor, nn

from maskaug.envs.convergence import ConvergeSettings, Patience, fit_until_converged
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.networks import SmallClassifier, seeded_weights, to_float
from maskaug.envs.pretrain import evaluate_classifier, evaluate_on_clean
from maskaug.envs.statistics import has_statistics, reestimate_statistics


class Normed(nn.Module):
    """A classifier with batch norm that keeps what it was shown while it learns."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with seeded_weights(seed):
            self.layers = nn.Sequential(
                nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 2)
            )
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.detach().clone())
        result: Tensor = self.layers(images)
        return result


def data(n: int = 20, seed: int = 0) -> ImageDataset:
    """Class b is brighter."""
    found = pictures(n, seed=seed)
    assert found.labels is not None
    images = np.clip(np.asarray(found.images) // 2 + 90 * found.labels[:, None, None, None], 0, 255).astype(np.uint8)
    return dataclasses.replace(found, images=images)


QUICK = ConvergeSettings(epochs=6, patience=6, batch_size=5, lr=1e-3)


# ---- patience --------------------------------------------------------------------------------------------------------


def test_patience_waits_for_a_lower_loss() -> None:
    patience = Patience(2)
    losses = [0.5, 0.6, 0.4, 0.4, float("nan")]
    found = [(patience.better({"loss": x, "auroc": float("nan")}), patience.waited, patience.over) for x in losses]
    assert found == [(True, 0, False), (False, 1, False), (True, 0, False), (False, 1, False), (False, 2, True)]
    assert patience.best == {"loss": 0.4}
    assert patience.looks == 5


def test_a_loss_that_is_not_finite_is_never_the_best() -> None:
    patience = Patience(3)
    assert [patience.better({"loss": x}) for x in (float("nan"), float("inf"), 9.0)] == [False, False, True]
    with pytest.raises(ConfigurationError, match="patience=0"):
        Patience(0)


# ---- until it has converged ------------------------------------------------------------------------------------------


def test_the_best_epochs_weights_are_kept() -> None:
    train, val = data(20), data(12, seed=1)
    told: list[tuple[int, float]] = []
    model = Normed()
    scores = fit_until_converged(model, train, val, QUICK, progress=lambda e, s: told.append((e, s["loss"])))
    losses = [loss for _, loss in told]
    assert [e for e, _ in told] == list(range(1, len(told) + 1))
    assert scores["loss"] == min(losses)
    assert scores["epoch"] == 1 + losses.index(min(losses))
    assert scores["epochs"] == len(told) == 6
    assert not model.training
    # Its own statistics are those of clean images already.
    assert evaluate_classifier(model, val)["loss"] == pytest.approx(scores["loss"], rel=1e-6)
    assert losses[-1] < losses[0]


def test_it_ends_when_nothing_gets_better() -> None:
    train, val = data(20), data(12, seed=1)
    assert val.labels is not None
    wrong = dataclasses.replace(val, labels=1 - val.labels)
    scores = fit_until_converged(Normed(), train, wrong, dataclasses.replace(QUICK, epochs=50, patience=3, lr=1e-2))
    # What is learnt is always worse for labels that are the wrong way round.
    assert (scores["epoch"], scores["epochs"]) == (1, 4)


def test_an_epoch_goes_through_all_images_and_batches_are_whole() -> None:
    train = data(20)
    for batch, sizes in ((5, [5] * 4), (8, [8] * 3), (25, [25])):
        model = Normed()
        one = dataclasses.replace(QUICK, epochs=1, batch_size=batch)
        fit_until_converged(model, train, data(6, seed=1), one)
        learnt = model.seen[: len(sizes)]
        assert [len(x) for x in learnt] == sizes
        means = torch.cat(learnt)[: len(train)].mean((1, 2, 3)).sort().values
        torch.testing.assert_close(means, to_float(torch.from_numpy(train.images)).mean((1, 2, 3)).sort().values)


@pytest.mark.parametrize("change", [{"epochs": 2}, {"batch_size": 10}, {"lr": 1e-2}, {"seed": 1}, {"patience": 1}])
def test_every_setting_counts_and_all_else_is_equal(change: dict[str, Any]) -> None:
    train, val = data(20), data(12, seed=1)
    assert val.labels is not None
    if "patience" in change:
        val = dataclasses.replace(val, labels=1 - val.labels)

    def told(settings: ConvergeSettings) -> list[float]:
        losses: list[float] = []
        fit_until_converged(Normed(), train, val, settings, progress=lambda _, s: losses.append(s["loss"]))
        return losses

    assert told(QUICK) == told(QUICK) != told(dataclasses.replace(QUICK, **change))


def test_what_cannot_converge_says_so() -> None:
    train = data(20)
    with pytest.raises(ConfigurationError, match="no labels"):
        fit_until_converged(Normed(), dataclasses.replace(train, labels=None), data(6), QUICK)
    with pytest.raises(JudgeError, match="lower the learning rate"):
        fit_until_converged(Normed(), train, data(6), dataclasses.replace(QUICK, lr=1e38, epochs=2))


def test_an_environment_sees_that_its_judge_has_changed() -> None:
    model = SmallClassifier(width=8)
    before = sum(p._version for p in model.parameters())
    sized = [pictures(6, size=40, seed=s) for s in (0, 1)]
    fit_until_converged(model, sized[0], sized[1], dataclasses.replace(QUICK, epochs=1))
    assert sum(p._version for p in model.parameters()) > before


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_a_network_is_scored_with_the_statistics_of_clean_images_and_left_alone() -> None:
    train, val, model = data(20), data(12, seed=1), Normed().train()
    model(torch.rand(4, 1, 16, 16) * 5)
    before = copy.deepcopy(dict(model.state_dict()))
    found = evaluate_on_clean(model, val, train.images)
    assert same(before, dict(model.state_dict()))
    assert model.training
    expected = evaluate_classifier(reestimate_statistics(copy.deepcopy(model), train.images), val)
    assert found == expected
    assert not math.isclose(found["loss"], evaluate_classifier(model, val)["loss"], rel_tol=1e-3)


def test_modes_stay_and_networks_without_batch_norm_are_not_even_asked() -> None:
    model = Normed().train()
    model.layers[1].eval()
    reestimate_statistics(model, data().images)
    assert model.training
    assert not model.layers[1].training
    # Only the batch norms were in training mode while they looked.
    assert model.seen == []

    class Untouchable(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError

    assert not has_statistics(Untouchable())
    assert has_statistics(model)
    reestimate_statistics(Untouchable(), data().images)
