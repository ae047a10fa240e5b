"""Training a classifier: reproducible, keeps its best weights, and treats both views of an image alike."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import BrightnessJudge, FlatJudge, pictures, small
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from maskaug.envs import pretrain
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import seeded_weights, to_float
from maskaug.envs.pretrain import FitSettings, evaluate_classifier, fit_classifier, predict_logits

QUICK = FitSettings(updates=12, batch_size=8, checks=4)


def fit(settings: FitSettings, seed: int = 0, **more: Any) -> tuple[nn.Module, dict[str, float]]:
    data = pictures(24)
    model = small(data, seed)
    return model, fit_classifier(model, data, pictures(16, seed=1), settings, **more)


def bits(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def test_one_seed_gives_the_same_bits_whatever_was_drawn_before() -> None:
    torch.manual_seed(0)
    one, scores = fit(QUICK)
    torch.manual_seed(9)
    two, again = fit(QUICK)
    assert bits(one) == bits(two)
    assert scores == again
    assert bits(one) != bits(fit(dataclasses.replace(QUICK, seed=1))[0])


@pytest.mark.parametrize(
    "change", [{"lr": 1e-4}, {"weight_decay": 5.0}, {"shift": 0.3}, {"flip": False}, {"batch_size": 4}, {"updates": 13}]
)
def test_every_setting_changes_the_result(change: dict[str, Any]) -> None:
    assert bits(fit(dataclasses.replace(QUICK, checks=0))[0]) != bits(
        fit(dataclasses.replace(QUICK, checks=0, **change))[0]
    )


def test_the_best_checkpoint_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.5, 0.2, 0.9, 0.4])
    kept: list[bytes] = []

    def judged(model: nn.Module, *args: Any, **keywords: Any) -> dict[str, float]:
        kept.append(bits(model))
        return {"accuracy": 0.5, "auroc": 0.5, "loss": next(losses)}

    monkeypatch.setattr(pretrain, "evaluate_classifier", judged)
    model, scores = fit(QUICK)
    assert scores == {"accuracy": 0.5, "auroc": 0.5, "loss": 0.2, "update": 6.0}
    assert len(set(kept)) == 4
    assert bits(model) == kept[1]
    assert not model.training


@pytest.mark.parametrize(("updates", "checks", "moments"), [(12, 4, 4), (3, 10, 3), (19, 10, 10), (5, 0, 0)])
def test_validation_is_looked_at_as_often_as_asked_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, updates: int, checks: int, moments: int
) -> None:
    steps: list[int] = []
    seen: list[int] = []

    def judged(*args: Any, **keywords: Any) -> dict[str, float]:
        seen.append(steps[-1] if steps else 0)
        return {"loss": 1 / len(seen)}

    monkeypatch.setattr(pretrain, "evaluate_classifier", judged)
    settings = dataclasses.replace(QUICK, updates=updates, checks=checks)
    _, scores = fit(settings, progress=lambda step, metrics: steps.append(step))
    assert steps == list(range(1, updates + 1))
    assert len(seen) == moments
    assert set(scores) == ({"loss", "update"} if checks else {"loss"})
    if checks:
        assert (seen[-1], scores["update"]) == (updates, updates)


def test_it_learns() -> None:
    striped: list[ImageDataset] = []
    for seed in (0, 1):
        data = pictures(64, seed=seed)
        assert data.labels is not None
        images = np.asarray(data.images).copy()
        images[data.labels == 1, :, ::2] //= 2
        striped.append(dataclasses.replace(data, images=images))
    scores = fit_classifier(small(data), striped[0], striped[1], FitSettings(updates=40, checks=2))
    assert scores["accuracy"] > 0.8
    assert scores["auroc"] > 0.9


def test_the_second_view_doubles_the_batch_and_shares_the_augmentation() -> None:
    data = pictures(8)
    batches: list[Tensor] = []
    asked: list[tuple[Tensor, Tensor]] = []

    class Spy(FlatJudge):
        def forward(self, images: Tensor) -> Tensor:
            batches.append(images.detach().clone())
            return super().forward(images)

    def view(images: Tensor, index: Tensor) -> Tensor:
        asked.append((images.clone(), index))
        return images / 2

    settings = FitSettings(updates=4, batch_size=8, shift=0.2, flip=True)
    fit_classifier(Spy(data), data, None, settings, view=view)
    assert [len(batch) for batch in batches] == [16] * 4
    for batch, (images, index) in zip(batches, asked, strict=True):
        assert torch.equal(batch[:8] / 2, batch[8:])
        # The view is asked before anything is flipped or shifted.
        assert torch.equal(images, torch.from_numpy(data.images[index.numpy()]).float() / 255)
        assert not torch.equal(images, batch[:8])


def test_every_image_is_seen_once_an_epoch() -> None:
    data = pictures(10)
    seen: list[int] = []

    def view(images: Tensor, index: Tensor) -> Tensor:
        seen.extend(index.tolist())
        return images

    fit_classifier(FlatJudge(data), data, None, FitSettings(updates=5, batch_size=4), view=view)
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_augmentation_moves_and_mirrors_but_invents_nothing() -> None:
    x = torch.zeros(64, 1, 10, 10)
    x[:, 0, 4, 2] = 1
    generator = torch.Generator().manual_seed(0)
    moved = pretrain._augment(x, 64, FitSettings(shift=0.2, flip=True), generator)
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert moved.sum() == 64
    assert {row for row, _ in places} == {2, 3, 4, 5, 6}
    assert {column for _, column in places} == {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
    still = pretrain._augment(x, 64, FitSettings(shift=0, flip=False), generator)
    assert torch.equal(still, x)


def test_auroc_of_two_classes_by_hand() -> None:
    data = pictures(4)
    levels = np.array([10, 200, 100, 50], np.uint8)
    data = dataclasses.replace(data, images=np.tile(levels[:, None, None, None], (1, 1, 4, 4)), regions=None)
    # labels 0 1 0 1: of the four pairs of one positive and one negative, three are in order
    scores = evaluate_classifier(BrightnessJudge(1.0), data)
    assert scores["auroc"] == 0.75
    assert scores["accuracy"] == 0.5
    logit = levels / 255
    expected = np.mean([math.log1p(math.exp(-z if y else z)) for z, y in zip(logit, (0, 1, 0, 1), strict=True)])
    assert scores["loss"] == pytest.approx(expected, rel=1e-5)


def test_auroc_of_many_classes_is_macro_one_against_rest() -> None:
    data = pictures(30, classes=3)
    assert data.labels is not None
    model = FlatJudge(data)
    probabilities = predict_logits(model, data.images).softmax(1).double().numpy()
    alone = [roc_auc_score(data.labels == c, probabilities[:, c]) for c in range(3)]
    assert evaluate_classifier(model, data)["auroc"] == pytest.approx(np.mean(alone))
    missing = data.subset(data.labels != 2)
    assert math.isnan(evaluate_classifier(model, missing)["auroc"])
    assert math.isfinite(evaluate_classifier(model, missing)["accuracy"])


def test_predictions_do_not_depend_on_the_batch_and_leave_the_mode_alone() -> None:
    data = pictures(9)
    model = small(data).train()
    together = predict_logits(model, data.images)
    assert torch.allclose(together, predict_logits(model, data.images, batch_size=2), atol=1e-5)
    assert model.training
    assert not together.requires_grad


def test_a_cache_that_cannot_be_written_to_will_do() -> None:
    # One image a batch is contiguous, and a memory map is read-only: torch would warn of the two together.
    data = pictures(9)
    images = np.asarray(data.images).copy()
    images.setflags(write=False)
    locked = dataclasses.replace(data, images=images)
    model = FlatJudge(data)
    assert torch.allclose(predict_logits(model, images, batch_size=4), predict_logits(model, images), atol=1e-5)
    fit_classifier(FlatJudge(data), locked, locked, QUICK)
    assert np.array_equal(images, data.images)


def test_without_labels_there_is_nothing_to_learn() -> None:
    data = dataclasses.replace(pictures(4), labels=None)
    with pytest.raises(ConfigurationError, match="has no labels"):
        fit_classifier(FlatJudge(data), data, None, QUICK)


class _Normed(nn.Module):
    """A batch norm before a linear layer; what its statistics were whenever it was asked in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        with seeded_weights(0):
            self.norm, self.linear = nn.BatchNorm2d(1), nn.Linear(256, 2)
        self.asked: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            self.asked.append(float(self.norm.running_mean))  # type: ignore[arg-type]
        logits: Tensor = self.linear(self.norm(images).flatten(1))
        return logits


def test_a_view_that_hides_much_does_not_choose_the_moment_where_clean_statistics_are_wanted() -> None:
    data, val = pictures(24), pictures(16, seed=1)
    clean_mean = float(to_float(torch.from_numpy(np.array(data.images))).mean())
    found = {}
    for clean in (False, True):
        model = _Normed()
        fit_classifier(model, data, val, QUICK, view=lambda x, index: torch.zeros_like(x), clean=clean)
        found[clean] = model
    assert float(found[True].norm.running_mean) == pytest.approx(clean_mean)  # type: ignore[arg-type]
    assert float(found[False].norm.running_mean) < 0.8 * clean_mean  # type: ignore[arg-type]


def test_validation_sees_the_clean_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, val = pictures(24), pictures(16, seed=1)
    clean_mean = float(to_float(torch.from_numpy(np.array(data.images))).mean())
    seen: list[float] = []
    original = pretrain.evaluate_classifier

    def look(model: Any, *args: Any, **more: Any) -> dict[str, float]:
        seen.append(float(model.norm.running_mean))
        return original(model, *args, **more)

    monkeypatch.setattr(pretrain, "evaluate_classifier", look)
    model = _Normed()
    fit_classifier(model, data, val, QUICK, view=lambda x, index: torch.zeros_like(x), clean=True)
    assert seen == [pytest.approx(clean_mean)] * 4


def test_networks_without_batch_norms_are_the_same_to_the_bit() -> None:
    one, two = (fit(QUICK, clean=clean)[0] for clean in (False, True))
    assert bits(one) == bits(two)
