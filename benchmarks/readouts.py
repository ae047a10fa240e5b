"""Small read-outs of frozen features: the paper's head, and a logistic regression on pooled maps."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import seeded_weights

READOUTS = ("paper", "logistic")
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


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Feature maps (N, F, h, w) with their labels (N,)."""

    maps: Tensor
    labels: npt.NDArray[np.int64]

    def at(self, index: npt.NDArray[np.int64]) -> Labelled:
        """Those at `index` (M,)."""
        return Labelled(self.maps[torch.from_numpy(index)], self.labels[index])


def class_weights(labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float64]:
    """(classes,) weights in the order of the classes, n / (classes · count), so that every class counts the same.

    >>> class_weights(np.array([0, 0, 0, 1]), 2).round(3).tolist()
    [0.667, 2.0]
    """
    return len(labels) / (classes * np.bincount(labels, minlength=classes))


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


def paper(
    labelled: Labelled,
    choice: Labelled,
    test: Labelled,
    classes: int,
    settings: DownstreamSettings,
    seed: int,
    device: str | torch.device,
) -> tuple[npt.NDArray[np.float64], float]:
    """Train a `PaperHead`; the epoch with the lowest loss on `choice`, weighted by class, is kept.

    Args:
        labelled: what it learns from.
        choice: what chooses the epoch.
        test: what is answered.
        classes: K.
        settings: see `DownstreamSettings`.
        seed: of first weights, order and dropout.
        device: where it runs.

    Returns:
        (probabilities (N, K) of the test images, the epoch from 1).
    """
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


def logistic(
    labelled: Labelled, choice: Labelled, test: Labelled, classes: int, settings: DownstreamSettings
) -> tuple[npt.NDArray[np.float64], float]:
    """A logistic regression on standardised pooled maps; the C with the lowest loss on `choice` is kept.

    Arguments as in `paper`.

    Returns:
        (probabilities (N, K) of the test images, the C).
    """
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
