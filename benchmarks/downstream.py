"""What an encoder's features are worth with few labels: the downstream proof of Intelligent Masking.

The encoder is frozen. Its features are computed once; small read-outs are then fitted to a few labelled training
images, chosen on labelled validation images and scored on test images that neither pre-training nor any choice has
seen. Draws of labels depend on the seed alone, so that two encoders are compared on the same ones.

Source: "Intelligent Masking: Deep Q-Learning for Context Encoding in Medical Image Analysis" (arXiv 2203.13865). Two
things differ from the authors' code: class weights go by class, not by frequency, and what is frozen stays frozen.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import seeded_weights, to_float

READOUTS = ("paper", "logistic")
METRICS = ("accuracy", "f1", "auroc")
POOLINGS = {
    "mean": lambda maps: maps.mean((2, 3)),
    "max": lambda maps: maps.amax((2, 3)),
    "std": lambda maps: maps.std((2, 3), correction=0),
}
CHUNK = 64


@dataclasses.dataclass(frozen=True)
class DownstreamSettings:
    """How features are read out. Every arm of a comparison gets the same.

    Attributes:
        budgets: numbers of labelled training images in all, over all classes; None takes every one of them. A number
            above the size of the training split is an error, so that no table says 500 and means 300.
        draws: how often the labelled images are drawn anew, for each budget.
        readouts: of `READOUTS`: "paper", the paper's small network on the feature maps; "logistic", a logistic
            regression on the pooled maps.
        validation: at most so many labelled validation images, drawn anew each time, choose the epoch and the
            regularisation (the paper has 100); None takes all. They come on top of the budget.
        epochs: of the paper's head, over the labelled images.
        most_updates: where the paper's head stops in any case; 100 labels need 1 400 updates for 200 epochs.
        batch_size: images an update of the paper's head.
        lr: of its Adam.
        dropout: share of its 16 hidden units that an update leaves out.
        pooling: what "logistic" is given of every feature map, of `POOLINGS`.
        strengths: values of C that "logistic" chooses from (smaller: more regularised).
        seed: of draws, first weights, order and dropout.
    """

    budgets: tuple[int | None, ...] = (10, 50, 100, None)
    draws: int = 5
    readouts: tuple[str, ...] = READOUTS
    validation: int | None = 100
    epochs: int = 200
    most_updates: int = 2000
    batch_size: int = 16
    lr: float = 1e-3
    dropout: float = 0.3
    pooling: tuple[str, ...] = ("mean", "max")
    strengths: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("readouts", READOUTS), ("pooling", tuple(POOLINGS))):
            chosen = getattr(self, name)
            if not chosen or set(chosen) - set(known) or len(set(chosen)) < len(chosen):
                raise ConfigurationError(f"{name}={chosen!r} cannot be used; name each of {known} at most once")
        if not self.budgets or len(set(self.budgets)) < len(self.budgets):
            raise ConfigurationError(f"budgets={self.budgets!r} cannot be used; give different numbers, None for all")
        for name in ("draws", "epochs", "most_updates", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1")
        if self.lr <= 0 or not self.strengths or min(self.strengths) <= 0:
            raise ConfigurationError(f"lr={self.lr} and strengths={self.strengths} must be above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.seed < 0:
            raise ConfigurationError(f"seed={self.seed} cannot be used; give an integer of at least 0")


class Row(TypedDict):
    """One read-out of one draw, scored on the test split.

    Keys:
        readout: "paper" or "logistic".
        budget: "10", …, or "all".
        draw: its number, from 0.
        labels: how many labelled training images it had.
        chosen: the epoch (from 1) or the C that the validation images chose.
        accuracy: share of right answers.
        f1: mean over the classes of F1; 0 for a class that is never found.
        auroc: with two classes as usual, with more the mean of each class against the rest.
    """

    readout: str
    budget: str
    draw: int
    labels: int
    chosen: float
    accuracy: float
    f1: float
    auroc: float


class PaperHead(nn.Module):
    """The paper's head: 3×3 convolution to 32, global average, 16 hidden units with dropout, classes.

    Args:
        in_channels: F of the feature maps.
        classes: number of logits.
        dropout: share of the hidden units that training leaves out.
    """

    def __init__(self, in_channels: int, classes: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 32, 3, padding=1)
        self.hidden = nn.Linear(32, 16)
        self.out = nn.Linear(16, classes)
        self.dropout = dropout

    def forward(self, maps: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, F, h, w) float → logits (N, classes). With a generator (on the CPU) hidden units are left out."""
        pooled = torch.relu(self.conv(maps)).mean((2, 3))
        hidden = torch.relu(self.hidden(pooled))
        if generator is not None:
            # Not nn.Dropout: that one draws from the global generator.
            kept = (torch.rand(hidden.shape, generator=generator) >= self.dropout).to(hidden.device)
            hidden = hidden * kept / (1 - self.dropout)
        logits: Tensor = self.out(hidden)
        return logits


@torch.no_grad()
def features(encoder: nn.Module, dataset: ImageDataset, device: str | torch.device = "cpu") -> Tensor:
    """Every image's feature maps, (N, F, h, w) float32 on the CPU, computed in evaluation mode.

    Args:
        encoder: (N, C, H, W) float in [0, 1] → (N, F, h, w); moved to `device`, its mode is put back.
        dataset: N images.
        device: where the encoder runs.

    Raises:
        ConfigurationError: the encoder returns something else, or numbers that are not finite.
    """
    was_training = encoder.training
    encoder.to(device).eval()
    parts = []
    for start in range(0, len(dataset), CHUNK):
        # A copy: torch warns of arrays that cannot be written to, and a cache's memory map is one.
        images = torch.from_numpy(np.array(dataset.images[start : start + CHUNK]))
        parts.append(encoder(to_float(images.to(device))).float().cpu())
    encoder.train(was_training)
    maps = torch.cat(parts)
    if maps.ndim != 4 or len(maps) != len(dataset):
        raise ConfigurationError(
            f"the encoder made {tuple(maps.shape)} of {len(dataset)} images; it must return feature maps (N, F, h, w)"
        )
    if not bool(maps.isfinite().all()):
        raise ConfigurationError("the encoder returned NaN or infinity; look at its pre-training's loss")
    return maps


def class_weights(labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float64]:
    """(classes,) weights in the order of the classes, n / (classes · count), so that every class counts the same.

    >>> class_weights(np.array([0, 0, 0, 1]), 2).round(3).tolist()
    [0.667, 2.0]
    """
    return len(labels) / (classes * np.bincount(labels, minlength=classes))


def draw_labelled(labels: npt.NDArray[np.int64], budget: int | None, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The indices, ascending, of `budget` images drawn class by class in proportion, at least one of each class.

    Args:
        labels: (N,) with every class at least once.
        budget: from the number of classes up to N; None: all N.
        rng: what is drawn from.
    """
    counts = np.bincount(labels)
    if budget is None or budget == len(labels):
        return np.arange(len(labels))
    share = counts * budget / len(labels)
    take = np.maximum(1, np.floor(share)).astype(np.int64)
    while take.sum() < budget:
        take[(share - take).argmax()] += 1
    while take.sum() > budget:
        take[np.where(take > 1, take - share, -np.inf).argmax()] -= 1
    drawn = [rng.permutation(np.flatnonzero(labels == cls))[:k] for cls, k in enumerate(take)]
    return np.sort(np.concatenate(drawn))


@dataclasses.dataclass(frozen=True)
class _Labelled:
    """Feature maps (N, F, h, w) with their labels (N,)."""

    maps: Tensor
    labels: npt.NDArray[np.int64]

    def at(self, index: npt.NDArray[np.int64]) -> _Labelled:
        return _Labelled(self.maps[torch.from_numpy(index)], self.labels[index])


def downstream(
    encoder: nn.Module,
    train: ImageDataset,
    val: ImageDataset,
    test: ImageDataset,
    settings: DownstreamSettings = DownstreamSettings(),
    device: str | torch.device = "cpu",
) -> list[Row]:
    """Read an encoder's features out with few labels: one row for each read-out, budget and draw.

    On a CPU one seed gives the same bits; labelled images are the same whatever the encoder.

    Args:
        encoder: images (N, C, H, W) float in [0, 1] → feature maps (N, F, h, w), e.g. a `FrozenEncoder`. Not trained.
        train: labels are drawn from here.
        val: chooses the epoch and the regularisation.
        test: is scored, once for each row.
        settings: see `DownstreamSettings`.
        device: where encoder and heads run.

    Raises:
        ConfigurationError: splits without labels, without one of the classes, or that share a group; a budget that the
            training split cannot fill.
    """
    classes = _check(train, val, test, settings)
    parts = []
    for dataset in (train, val, test):
        assert dataset.labels is not None
        parts.append(_Labelled(features(encoder, dataset, device), dataset.labels))
    rows: list[Row] = []
    for readout in settings.readouts:
        for budget in settings.budgets:
            for draw in range(settings.draws):
                # Not of the read-out: both get the same labelled images.
                source = np.random.SeedSequence([settings.seed, draw, budget or 0])
                rng = np.random.default_rng(source)
                labelled = parts[0].at(draw_labelled(parts[0].labels, budget, rng))
                most = settings.validation
                few = None if most is None or most >= len(val) else most
                choice = parts[1].at(draw_labelled(parts[1].labels, few, rng))
                if readout == "paper":
                    number = int(source.generate_state(1)[0])
                    probabilities, chosen = _paper(labelled, choice, parts[2], classes, settings, number, device)
                else:
                    probabilities, chosen = _logistic(labelled, choice, parts[2], classes, settings)
                rows.append(
                    Row(
                        readout=readout,
                        budget="all" if budget is None else str(budget),
                        draw=draw,
                        labels=len(labelled.labels),
                        chosen=chosen,
                        **scores(probabilities, parts[2].labels),  # type: ignore[typeddict-item]
                    )
                )
    return rows


def scores(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """{"accuracy", "f1", "auroc"} of (N, classes) probabilities; see `Row`. Every class must be among the labels."""
    answers = probabilities.argmax(1)
    if probabilities.shape[1] == 2:
        auroc = roc_auc_score(labels, probabilities[:, 1])
    else:
        auroc = roc_auc_score(labels, probabilities, multi_class="ovr")
    return {
        "accuracy": float((answers == labels).mean()),
        "f1": float(f1_score(labels, answers, average="macro", zero_division=0)),
        "auroc": float(auroc),
    }


def summarise(rows: Sequence[Row], prefix: str = "downstream") -> dict[str, float]:
    """{"downstream.logistic.100.accuracy": mean over the draws, "….accuracy.sd": their SD (0 of one draw), …}.

    The SD is that of the draws of labels, with one encoder and one test split: no measure of what a comparison of two
    ways of pre-training can be trusted with. For that see `paired_interval`.
    """
    result: dict[str, float] = {}
    for readout, budget in dict.fromkeys((row["readout"], row["budget"]) for row in rows):
        same = [row for row in rows if (row["readout"], row["budget"]) == (readout, budget)]
        for metric, values in (
            ("accuracy", [row["accuracy"] for row in same]),
            ("f1", [row["f1"] for row in same]),
            ("auroc", [row["auroc"] for row in same]),
        ):
            name = f"{prefix}.{readout}.{budget}.{metric}"
            result[name] = float(np.mean(values))
            result[f"{name}.sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return result


def table(arms: Mapping[str, Sequence[Row]]) -> str:
    """A plain text table for the terminal: for each read-out and budget one line an arm, mean ± SD over the draws.

    Args:
        arms: the encoder's name → its rows.
    """
    summaries = {arm: summarise(rows) for arm, rows in arms.items()}
    width = max(len(arm) for arm in arms) + 2
    lines = [f"{'read-out':<10}{'labels':>7}  {'encoder':<{width}}" + "".join(f"{m:>15}" for m in METRICS)]
    cells = dict.fromkeys((row["readout"], row["budget"]) for rows in arms.values() for row in rows)
    for readout, budget in cells:
        for arm, summary in summaries.items():
            name = f"downstream.{readout}.{budget}"
            if f"{name}.accuracy" in summary:
                values = "".join(f"{summary[f'{name}.{m}']:>9.3f} ±{summary[f'{name}.{m}.sd']:.2f}" for m in METRICS)
                lines.append(f"{readout:<10}{budget:>7}  {arm:<{width}}{values}")
    return "\n".join(lines)


def paired_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high): the mean difference and its Student t interval.

    Args:
        differences: one of each independent repetition (a seed of pre-training, a split), of two arms that had the
            same images, updates and labels. Draws of labels within one repetition are not independent: average first.
        confidence: of the interval.

    Raises:
        ConfigurationError: fewer than two differences, or one that is not finite.

    >>> [round(x, 3) for x in paired_interval([0.01, 0.03, 0.02])]
    [0.02, -0.005, 0.045]
    """
    if len(differences) < 2:
        raise ConfigurationError(
            f"an interval needs at least two differences, got {len(differences)}; run more seeds or splits"
        )
    if not all(math.isfinite(d) for d in differences) or not 0 < confidence < 1:
        raise ConfigurationError(f"differences must be finite and confidence={confidence} between 0 and 1")
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(differences) - 1)) * error
    return mean, mean - reach, mean + reach


def _paper(
    labelled: _Labelled,
    choice: _Labelled,
    test: _Labelled,
    classes: int,
    settings: DownstreamSettings,
    seed: int,
    device: str | torch.device,
) -> tuple[npt.NDArray[np.float64], float]:
    generator = torch.Generator().manual_seed(seed)
    with seeded_weights(seed):
        head = PaperHead(labelled.maps.shape[1], classes, settings.dropout)
    head.to(device)
    weights = torch.from_numpy(class_weights(labelled.labels, classes)).float().to(device)
    maps, labels = labelled.maps.to(device), torch.from_numpy(labelled.labels).to(device)
    val_maps, val_labels = choice.maps.to(device), torch.from_numpy(choice.labels).to(device)
    optimiser = torch.optim.Adam(head.parameters(), settings.lr)
    best, kept, chosen, update = math.inf, head.state_dict(), 0, 0
    for epoch in range(1, settings.epochs + 1):
        order = torch.randperm(len(maps), generator=generator).to(device)
        for start in range(0, len(order), settings.batch_size):
            if update == settings.most_updates:
                break
            index = order[start : start + settings.batch_size]
            loss = functional.cross_entropy(head(maps[index], generator), labels[index], weights)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            update += 1
        with torch.no_grad():
            held_out = float(functional.cross_entropy(head(val_maps), val_labels, weights))
        if held_out < best:
            best, kept, chosen = held_out, copy.deepcopy(head.state_dict()), epoch
        if update == settings.most_updates:
            break
    if not chosen:
        raise ConfigurationError(f"the head's validation loss was never finite; a smaller lr than {settings.lr} may do")
    head.load_state_dict(kept)
    with torch.no_grad():
        parts = [test.maps[start : start + CHUNK] for start in range(0, len(test.maps), CHUNK)]
        logits = torch.cat([head(part.to(device)).cpu() for part in parts])
    return logits.double().softmax(1).numpy(), float(chosen)


def _logistic(
    labelled: _Labelled, choice: _Labelled, test: _Labelled, classes: int, settings: DownstreamSettings
) -> tuple[npt.NDArray[np.float64], float]:
    pooled = [_pool(part.maps, settings.pooling) for part in (labelled, choice, test)]
    centre, scale = pooled[0].mean(0), pooled[0].std(0)
    # A map that is the same everywhere says nothing, and must not be divided by nothing.
    scale[scale < 1e-12] = 1
    x, x_val, x_test = ((part - centre) / scale for part in pooled)
    weights = class_weights(labelled.labels, classes)
    held_out = weights[choice.labels] / weights[choice.labels].sum()
    best, kept, chosen = math.inf, None, math.nan
    for strength in settings.strengths:
        model: Any = LogisticRegression(C=strength, class_weight=dict(enumerate(weights)), max_iter=5000)
        model.fit(x, labelled.labels)
        # The loss that the paper's head is chosen by. Whoever was certain of another class pays 708, not infinity.
        probability = model.predict_proba(x_val)[np.arange(len(x_val)), choice.labels]
        loss = -float(held_out @ np.log(np.maximum(probability, np.finfo(np.float64).tiny)))
        if loss < best:
            best, kept, chosen = loss, model, strength
    assert kept is not None
    probabilities: npt.NDArray[np.float64] = kept.predict_proba(x_test)
    return probabilities, chosen


def _pool(maps: Tensor, pooling: Sequence[str]) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = torch.cat([POOLINGS[name](maps.double()) for name in pooling], 1).numpy()
    return values


def _check(train: ImageDataset, val: ImageDataset, test: ImageDataset, settings: DownstreamSettings) -> int:
    """The number of classes, or the one clear error."""
    classes = len(train.class_names)
    if classes < 2:
        raise ConfigurationError(f"{train.name} has {classes} class; a read-out needs at least two to tell apart")
    named = {"train": train, "val": val, "test": test}
    for split, dataset in named.items():
        if dataset.labels is None:
            raise ConfigurationError(f"the {split} split of {dataset.name} has no labels, and a read-out needs them")
        if dataset.class_names != train.class_names:
            raise ConfigurationError(
                f"the {split} split has the classes {dataset.class_names}, the train split {train.class_names}; "
                "give three splits of one data set"
            )
        missing = [train.class_names[c] for c in range(classes) if not (dataset.labels == c).any()]
        if missing:
            raise ConfigurationError(
                f"the {split} split of {dataset.name} ({len(dataset)} images) has no {', '.join(missing)}; split with "
                "another seed, or bring more images"
            )
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = np.intersect1d(named[one].groups, named[other].groups)
        if len(shared):
            raise ConfigurationError(
                f"{one} and {other} share {len(shared)} groups, such as number {shared[0]}; split by group, and number "
                "the groups of separate data sets differently"
            )
    for what, number in (*(("budget", budget) for budget in settings.budgets), ("validation", settings.validation)):
        if number is not None and number < classes:
            raise ConfigurationError(f"{what} {number} is less than one label for each of the {classes} classes")
    for budget in settings.budgets:
        if budget is not None and budget > len(train):
            raise ConfigurationError(
                f"budget {budget} is more than the {len(train)} training images of {train.name}; None takes all"
            )
    return classes
