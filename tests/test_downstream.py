"""The downstream proof: fair draws, weights by class, known answers, and an encoder that stays as it was."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import pictures, same
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from maskaug.benchmarks import downstream as downstream_module
from maskaug.benchmarks import readouts as module
from maskaug.benchmarks.downstream import Row, downstream, draw_labelled, features, scores, summarise, table
from maskaug.benchmarks.intervals import paired_interval
from maskaug.benchmarks.readouts import DownstreamSettings, PaperHead, class_weights
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import seeded_weights
from maskaug.envs.reconstructors import ContextEncoder, SmallContextEncoder

QUICK = DownstreamSettings(budgets=(6,), draws=2, epochs=4, batch_size=4)


class Pixels(nn.Module):
    """The images themselves, a quarter of the size, are the features."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, 4)


class ByRow(Pixels):
    """Its rows as channels: no pooling can then lose them."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).transpose(1, 2)


Splits = tuple[ImageDataset, ImageDataset, ImageDataset]


def splits(classes: int = 2, sizes: tuple[int, int, int] = (30, 20, 20), shown: bool = True) -> Splits:
    """Train, val, test; where `shown`, a bar whose brightness and place are the class's."""
    parts = []
    for i, n in enumerate(sizes):
        data = pictures(n, classes=classes, seed=i)
        images = np.asarray(data.images) // 2
        assert data.labels is not None
        if shown:
            for cls in range(classes):
                images[data.labels == cls, :, 4 * cls : 4 * cls + 4] = 255
        groups = data.groups + 1000 * i
        parts.append(dataclasses.replace(data, images=images, groups=groups, split=("train", "val", "test")[i]))
    return parts[0], parts[1], parts[2]


def unlearnable(n: int = 200) -> Splits:
    """Labels that no image knows anything of, unbalanced and in no order."""
    rng = np.random.default_rng(5)
    parts = splits(sizes=(60, 60, n), shown=False)
    one, two, three = (
        dataclasses.replace(p, labels=rng.permutation(np.arange(len(p)) % 2).astype(np.int64)) for p in parts
    )
    return one, two, three


def encoder() -> nn.Module:
    with seeded_weights(0):
        return SmallContextEncoder(width=8).encoder()


def test_class_weights_go_by_class_not_by_frequency() -> None:
    labels = np.array([2] * 6 + [0] * 3 + [1], np.int64)
    # 10 / (3 · 3), 10 / (3 · 1), 10 / (3 · 6): the authors' order, by frequency, would give the first to the last
    assert class_weights(labels, 3).tolist() == pytest.approx([10 / 9, 10 / 3, 10 / 18])
    assert (class_weights(labels, 3) * np.bincount(labels)).tolist() == pytest.approx([10 / 3] * 3)


@pytest.mark.parametrize(
    ("budget", "expected"), [(3, [1, 1, 1]), (4, [1, 1, 2]), (10, [1, 2, 7]), (50, [1, 10, 39]), (None, [2, 20, 78])]
)
def test_draws_are_stratified_with_one_of_each_class(budget: int | None, expected: list[int]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [2, 20, 78])).astype(np.int64)
    drawn = draw_labelled(labels, budget, np.random.default_rng(1))
    assert np.bincount(labels[drawn]).tolist() == expected
    assert (np.diff(drawn) > 0).all()


def test_draws_differ_and_reach_every_image() -> None:
    labels = np.arange(12, dtype=np.int64) % 2
    rng = np.random.default_rng(0)
    drawn = [tuple(draw_labelled(labels, 4, rng)) for _ in range(40)]
    assert len(set(drawn)) > 30
    assert set(np.concatenate(drawn)) == set(range(12))


def spied(monkeypatch: pytest.MonkeyPatch, name: str, call: Callable[[], object]) -> list[tuple[Any, Any]]:
    # What the read-out `name` is given: (labelled training images, validation images) of each call.
    seen: list[tuple[Any, Any]] = []
    real = getattr(module, name)

    def spy(labelled: Any, choice: Any, *more: Any) -> Any:
        seen.append((labelled, choice))
        return real(labelled, choice, *more)

    monkeypatch.setattr(module, name, spy)
    call()
    monkeypatch.undo()
    return seen


def test_every_encoder_and_read_out_gets_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = splits(3, sizes=(30, 30, 15))
    settings = dataclasses.replace(QUICK, validation=9, epochs=1)

    def images(name: str, code: nn.Module) -> list[list[int]]:
        own = features(code, parts[0])
        return [
            [int((own == one).flatten(1).all(1).nonzero()[0, 0]) for one in labelled.maps]
            for labelled, _ in spied(monkeypatch, name, lambda: downstream(code, *parts, settings))
        ]

    drawn = images("logistic", Pixels())
    assert len(drawn) == 2
    assert drawn[0] != drawn[1]
    assert drawn == images("paper", Pixels())
    assert drawn == images("logistic", encoder())


def test_validation_draws_come_from_val_alone_and_are_as_large_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = splits()
    own = features(Pixels(), parts[1])
    for most, expected in ((8, 8), (20, 20), (100, 20), (None, 20)):
        settings = dataclasses.replace(QUICK, validation=most, readouts=("logistic",))
        seen = spied(monkeypatch, "logistic", lambda s=settings: downstream(Pixels(), *parts, s))  # type: ignore[misc]
        for _, choice in seen:
            assert len(choice.labels) == expected
            assert all(bool((own == one).flatten(1).all(1).any()) for one in choice.maps)


def test_one_seed_gives_the_same_bits_whatever_was_drawn_before() -> None:
    parts = splits()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = downstream(encoder(), *parts, QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert downstream(encoder(), *parts, QUICK) == one
    assert len(one) == 4


@pytest.mark.parametrize(
    ("readout", "change"),
    [
        ("paper", {"epochs": 3}),
        ("paper", {"most_updates": 3}),
        ("paper", {"batch_size": 3}),
        ("paper", {"lr": 1e-2}),
        ("paper", {"dropout": 0.9}),
        ("paper", {"seed": 1}),
        ("paper", {"budgets": (7,)}),
        ("paper", {"draws": 1}),
        ("paper", {"readouts": ("logistic",)}),
        ("logistic", {"pooling": ("std",)}),
        ("logistic", {"pooling": ("mean",)}),
        ("logistic", {"strengths": (1e-5,)}),
        ("logistic", {"validation": 4}),
        ("logistic", {"seed": 1}),
    ],
)
def test_every_setting_changes_the_result(
    readout: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    probabilities: list[bytes] = []

    def keep(p: Any, labels: Any) -> dict[str, float]:
        probabilities.append(p.tobytes())
        return {"accuracy": 0.0, "f1": 0.0, "auroc": 0.0}

    monkeypatch.setattr(downstream_module, "scores", keep)
    parts = unlearnable(20)
    settings = dataclasses.replace(QUICK, readouts=(readout,))
    found = []
    for one in (settings, dataclasses.replace(settings, **change)):
        probabilities.clear()
        downstream(encoder(), *parts, one)
        found.append(tuple(probabilities))
    assert found[0] != found[1]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("readout", ["paper", "logistic"])
def test_features_that_separate_the_classes_are_read_out_perfectly(classes: int, readout: str) -> None:
    settings = DownstreamSettings(budgets=(12, None), draws=1, readouts=(readout,), lr=1e-2, epochs=60)

    rows = downstream(ByRow(), *splits(classes), settings)
    assert [row["labels"] for row in rows] == [12, 30]
    for row in rows:
        assert (row["accuracy"], row["f1"], row["auroc"]) == (1, 1, 1)


@pytest.mark.parametrize("readout", ["paper", "logistic"])
def test_noise_is_read_out_at_chance(readout: str) -> None:
    settings = DownstreamSettings(budgets=(40,), draws=4, readouts=(readout,), epochs=15)
    mean = summarise(downstream(Pixels(), *unlearnable(), settings))
    # Four draws on the same 200 images: far beyond three standard errors (.035) only if something leaks.
    assert abs(mean[f"downstream.{readout}.40.auroc"] - 0.5) < 0.12
    assert abs(mean[f"downstream.{readout}.40.accuracy"] - 0.5) < 0.12


def test_a_frozen_encoder_with_batch_norm_does_not_move() -> None:
    train, val, test = (
        dataclasses.replace(p, images=np.repeat(np.repeat(p.images, 2, 2), 2, 3), regions=None) for p in splits()
    )
    with seeded_weights(0):
        frozen = ContextEncoder().encoder()
    frozen.train()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    assert any("running_mean" in name for name in before)
    downstream(frozen, train, val, test, dataclasses.replace(QUICK, draws=1))
    assert same(before, frozen.state_dict())


def test_features_are_made_in_evaluation_mode_and_the_mode_is_put_back() -> None:
    data = pictures(70)
    code = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in code.state_dict().items()}
    maps = features(code, data)
    assert maps.shape == (70, 3, 14, 14)
    assert code.training
    assert same(before, code.state_dict())
    assert not maps.requires_grad
    assert torch.allclose(maps, code.eval()(torch.from_numpy(data.images).float() / 255), atol=1e-6)


def test_the_head_is_the_papers() -> None:
    head = PaperHead(5, 3)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "conv.weight": (32, 5, 3, 3),
        "conv.bias": (32,),
        "hidden.weight": (16, 32),
        "hidden.bias": (16,),
        "out.weight": (3, 16),
        "out.bias": (3,),
    }
    maps = torch.rand(4, 5, 6, 6)
    hidden = torch.relu(head.hidden(torch.relu(head.conv(maps)).mean((2, 3))))
    assert torch.allclose(head(maps), head.out(hidden))


def test_dropout_leaves_out_its_share_and_keeps_the_mean() -> None:
    head = PaperHead(1, 2, dropout=0.3)
    with torch.no_grad():
        head.hidden.weight.zero_()
        head.hidden.bias.fill_(1)
        head.out.weight.fill_(1)
        head.out.bias.zero_()
    left = head(torch.zeros(4000, 1, 2, 2), torch.Generator().manual_seed(0))[:, 0] * 0.7
    assert left.mean().item() == pytest.approx(16 * 0.7, rel=0.02)
    assert left.std().item() == pytest.approx(math.sqrt(16 * 0.3 * 0.7), rel=0.05)
    assert torch.equal(head(torch.zeros(1, 1, 2, 2)), torch.full((1, 2), 16.0))


def test_the_best_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # Validation labels that contradict the training labels: what is learnt makes it worse.
    train, val, test = splits()
    assert val.labels is not None
    liars = dataclasses.replace(val, labels=1 - val.labels)
    settings = dataclasses.replace(QUICK, readouts=("paper",), lr=1e-2, epochs=30, draws=1)
    probabilities: list[bytes] = []

    def keep(p: Any, labels: Any) -> dict[str, float]:
        probabilities.append(p.tobytes())
        return scores(p, labels)

    monkeypatch.setattr(downstream_module, "scores", keep)
    [worse] = downstream(ByRow(), train, liars, test, settings)
    [better] = downstream(ByRow(), train, val, test, settings)
    assert worse["chosen"] < better["chosen"]
    # Stopped at that epoch, it has the same weights.
    shorter = dataclasses.replace(settings, epochs=int(worse["chosen"]))
    assert downstream(ByRow(), train, liars, test, shorter) == [worse]
    assert probabilities[0] == probabilities[2] != probabilities[1]


def test_logistic_is_scikit_learns_on_standardised_pooled_maps() -> None:
    parts = unlearnable(30)
    settings = DownstreamSettings(budgets=(None,), draws=1, readouts=("logistic",), validation=None)
    [row] = downstream(Pixels(), *parts, settings)
    x = [m.double() for m in (features(Pixels(), p) for p in parts)]
    pooled = [torch.cat([m.mean((2, 3)), m.amax((2, 3))], 1).numpy() for m in x]
    centre, scale = pooled[0].mean(0), pooled[0].std(0)
    found = {}
    for strength in settings.strengths:
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=5000)
        model.fit((pooled[0] - centre) / scale, parts[0].labels)
        log = model.predict_log_proba((pooled[1] - centre) / scale)
        found[strength] = -log[np.arange(60), parts[1].labels].mean(), model
    best = min(found, key=lambda s: found[s][0])
    expected = scores(found[best][1].predict_proba((pooled[2] - centre) / scale), np.asarray(parts[2].labels))
    assert row["chosen"] == best
    assert {m: row[m] for m in expected} == pytest.approx(expected)  # type: ignore[literal-required]


def test_a_model_that_is_certain_and_wrong_does_not_break_the_choice() -> None:
    train, val, test = splits(3)
    assert val.labels is not None
    liars = dataclasses.replace(val, labels=(val.labels + 1) % 3)
    settings = dataclasses.replace(QUICK, readouts=("logistic",), strengths=(1e9, 1.0), draws=1)
    [row] = downstream(ByRow(), train, liars, test, settings)
    assert row["chosen"] == 1


def test_a_channel_that_is_the_same_everywhere_does_no_harm() -> None:
    class WithFlat(Pixels):
        def forward(self, images: Tensor) -> Tensor:
            maps = super().forward(images)
            return torch.cat([maps, torch.full_like(maps, 0.1)], 1)

    settings = dataclasses.replace(QUICK, readouts=("logistic",))
    both = [summarise(downstream(code, *splits(), settings)) for code in (WithFlat(), Pixels())]
    assert both[0] == pytest.approx(both[1])


def test_metrics_by_hand() -> None:
    labels = np.array([0, 0, 0, 1])
    found = scores(np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.45, 0.55]]), labels)
    # F1: 2·2/(2+3) = .8 and 2·1/(2+1) = 2/3; of the three pairs two are in order
    assert found == pytest.approx({"accuracy": 0.75, "f1": (0.8 + 2 / 3) / 2, "auroc": 2 / 3})
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 40)
    labels = np.arange(40) % 3
    found = scores(probabilities, labels)
    assert found["auroc"] == pytest.approx(np.mean([roc_auc_score(labels == c, probabilities[:, c]) for c in range(3)]))
    assert found["f1"] == pytest.approx(f1_score(labels, probabilities.argmax(1), average="macro"))


def row(value: float, readout: str = "paper", budget: str = "10") -> Row:
    return Row(
        readout=readout, budget=budget, draw=0, labels=10, chosen=1.0, accuracy=value, f1=value / 2, auroc=value / 4
    )


def test_summary_and_table() -> None:
    rows = [row(0.4), row(0.8), row(0.5, "logistic", "all")]
    summary = summarise(rows)
    assert summary["downstream.paper.10.accuracy"] == pytest.approx(0.6)
    assert summary["downstream.paper.10.accuracy.sd"] == pytest.approx(0.2 * math.sqrt(2))
    assert summary["downstream.paper.10.f1"] == pytest.approx(0.3)
    assert summary["downstream.paper.10.auroc"] == pytest.approx(0.15)
    assert summary["downstream.logistic.all.accuracy"] == 0.5
    assert summary["downstream.logistic.all.accuracy.sd"] == 0
    assert len(summary) == 12
    assert summarise(rows[:1], "test").keys() == {
        f"test.paper.10.{metric}{sd}" for metric in ("accuracy", "f1", "auroc") for sd in ("", ".sd")
    }
    lines = table({"none": rows, "masked": [row(0.9)]}).splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        ["paper", "10", "none", "0.600"],
        ["paper", "10", "masked", "0.900"],
        ["logistic", "all", "none", "0.500"],
    ]


def test_paired_interval_by_hand() -> None:
    mean, low, high = paired_interval([1.0, 2.0, 3.0, 6.0])
    # SD √(14/3), standard error half of it, t(.975, 3) = 3.18245
    assert mean == 3
    assert (high - mean, mean - low) == pytest.approx((3.18245 * math.sqrt(14 / 3) / 2,) * 2, rel=1e-5)
    narrow = paired_interval([1.0, 2.0, 3.0, 6.0], confidence=0.5)
    assert (narrow[2] - narrow[0]) == pytest.approx(0.76489 * math.sqrt(14 / 3) / 2, rel=1e-4)


@pytest.mark.parametrize("wrong", [[], [0.1], [0.1, math.nan]])
def test_an_interval_of_too_little_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ConfigurationError, match=r"at least two differences|must be finite"):
        paired_interval(wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"readouts": ("svm",)}, "readouts"),
        ({"readouts": ()}, "readouts"),
        ({"pooling": ("median",)}, "pooling"),
        ({"pooling": ("mean", "mean")}, "pooling"),
        ({"budgets": ()}, "budgets"),
        ({"budgets": (10, 10)}, "budgets"),
        ({"draws": 0}, "draws=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"most_updates": 0}, "most_updates=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": 0.0}, "above 0"),
        ({"strengths": ()}, "above 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DownstreamSettings(**change)


def test_data_that_cannot_be_read_out_is_refused() -> None:
    train, val, test = splits(3)
    assert train.labels is not None
    assert val.labels is not None

    def refused(message: str, *parts: *Splits, **change: Any) -> None:
        with pytest.raises(ConfigurationError, match=message):
            downstream(Pixels(), *parts, dataclasses.replace(QUICK, **change))

    refused("test split of pictures has no labels", train, val, dataclasses.replace(test, labels=None))
    refused(r"val split of pictures \(13 images\) has no b", train, val.subset(val.labels != 1), test)
    refused("val split has the classes", train, splits(2)[1], test)
    refused("budget 2 is less", train, val, test, budgets=(2,))
    refused("validation 2 is less", train, val, test, validation=2)
    refused("budget 31 is more than the 30 training images", train, val, test, budgets=(31,))
    refused("train and test share 20 groups", train, val, dataclasses.replace(test, groups=train.groups[:20]))
    refused("has 1 class", dataclasses.replace(train, labels=train.labels * 0, class_names=("a",)), val, test)


def test_an_encoder_that_makes_no_maps_is_refused() -> None:
    data = pictures(5)
    with pytest.raises(ConfigurationError, match=r"made \(5, 256\) of 5 images"):
        features(nn.Flatten(), data)

    class Broken(Pixels):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) / 0

    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        features(Broken(), data)


def test_a_head_that_diverges_says_so() -> None:
    with pytest.raises(ConfigurationError, match="never finite"):
        downstream(Pixels(), *splits(), dataclasses.replace(QUICK, readouts=("paper",), lr=1e30))
