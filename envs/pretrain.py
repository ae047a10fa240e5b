"""Training a classifier on an `ImageDataset`: the judge before the game, and the classifier after it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import at_once, to_float
from maskaug.envs.rows import ImageArray
from maskaug.envs.statistics import has_statistics, reestimate_statistics

#: (images (N, C, H, W) float, indices (N,) int64) → another view of the images, of the same shape.
View = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """How a classifier is trained. Every arm of a comparison gets the same.

    Attributes:
        updates: optimiser steps.
        batch_size: images a step.
        lr: peak learning rate of AdamW, one-cycle cosine with 10 % warm-up.
        weight_decay: of AdamW.
        shift: largest random translation, as a share of the image side; 0 switches it off.
        flip: random left-right mirroring.
        checks: how often the validation split is looked at, evenly spaced; the best weights are kept. 0: the last.
        seed: of the initial order and the augmentation.
    """

    updates: int = 600
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05
    shift: float = 0.06
    flip: bool = True
    checks: int = 10
    seed: int = 0


def aiding_view(masks: Tensor) -> View:
    """The decoupled use of a masker: a `view` for `fit_classifier` that hides everything but each image's mask.

    Args:
        masks: (N, H, W) bool, one for each training image in order, e.g. from `maskaug.load_masker(path)(images)`.
    """

    def view(images: Tensor, index: Tensor) -> Tensor:
        return images * masks[index.to(masks.device)].to(images.device)[:, None]

    return view


def fit_classifier(
    model: nn.Module,
    train: ImageDataset,
    val: ImageDataset | None,
    settings: FitSettings,
    *,
    view: View | None = None,
    clean: bool = False,
    device: str | torch.device = "cpu",
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Train `model` in place with cross-entropy on `train`; keep the weights that did best on `val`.

    Args:
        model: images (N, C, H, W) float in [0, 1] → logits (N, classes).
        train: needs labels.
        val: used to choose among `settings.checks` moments; None keeps the last weights.
        settings: see `FitSettings`.
        view: a second view that is trained on beside the clean image with equal weight (APGA's aiding view). It sees
            the images before augmentation; flips and shifts then hit both alike.
        clean: give batch norms the statistics of the clean images of `train` whenever `val` is looked at, and at the
            end. With a view that hides parts they would else be those of hidden and clean images mixed, and choose
            other moments than where there is none.
        device: where to train.
        progress: called after every step with its number and {"loss": …}.

    Returns:
        {"accuracy", "auroc", "loss", "update"} of the kept weights on `val`, or {"loss"} of the last step without one.
    """
    if train.labels is None:
        raise ConfigurationError(f"{train.name} has no labels, and a classifier needs them")
    generator = torch.Generator().manual_seed(settings.seed)
    labels = as_writable(train.labels)
    model.to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
    warm = max(1, settings.updates // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda i: min((i + 1) / warm, 0.5 * (1 + float(np.cos(np.pi * min(1.0, i / settings.updates))))),
    )
    checks = 0 if val is None else min(settings.checks, settings.updates)
    moments = {settings.updates * (i + 1) // checks for i in range(checks)}
    best: dict[str, float] = {}
    kept: dict[str, Tensor] | None = None
    order = torch.empty(0, dtype=torch.int64)
    loss = torch.zeros(())
    for step in range(settings.updates):
        while len(order) < settings.batch_size:
            order = torch.cat([order, torch.randperm(len(train), generator=generator)])
        index, order = order[: settings.batch_size], order[settings.batch_size :]
        x, y = to_float(as_writable(train.images[index.numpy()]).to(device)), labels[index].to(device)
        if view is not None:
            x = torch.cat([x, view(x, index)])
            y = torch.cat([y, y])
        x = _augment(x, len(index), settings, generator)
        loss = functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, {"loss": float(loss.detach())})
        if val is not None and step + 1 in moments:
            if clean:
                scores = evaluate_on_clean(model, val, train.images, device=device)
            else:
                scores = evaluate_classifier(model, val, device=device)
            model.train()
            if not best or scores["loss"] < best["loss"]:
                best = {**scores, "update": float(step + 1)}
                kept = copy.deepcopy(model.state_dict())
    # A fused optimiser leaves no trace, and an environment that has this module as its judge must see that it changed.
    torch.autograd.graph.increment_version(model.parameters())
    if kept is not None:
        model.load_state_dict(kept)
    if clean:
        reestimate_statistics(model, train.images, batch=at_once(*train.shape[1:]))
    model.eval()
    return best or {"loss": float(loss.detach())}


def _augment(x: Tensor, n: int, settings: FitSettings, generator: torch.Generator) -> Tensor:
    # The same flips and shifts for the clean images and their second views: row i and row n + i are one image.
    side = x.shape[-1]
    most = round(settings.shift * side)
    repeats = len(x) // n
    if settings.flip:
        flip = (torch.rand(n, generator=generator) < 0.5).repeat(repeats).to(x.device)
        x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    if most:
        shifts = torch.randint(-most, most + 1, (2, n), generator=generator).repeat(1, repeats).to(x.device)
        rows = (torch.arange(x.shape[2], device=x.device) + shifts[0][:, None]).clamp(0, x.shape[2] - 1)
        cols = (torch.arange(side, device=x.device) + shifts[1][:, None]).clamp(0, side - 1)
        batch = torch.arange(len(x), device=x.device)[:, None, None]
        x = x.transpose(0, 1)[:, batch, rows[:, :, None], cols[:, None, :]].transpose(0, 1)
    return x


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    images: ImageArray,
    *,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
) -> Tensor:
    """(N, C, H, W) uint8 → logits (N, classes) on the CPU, in evaluation mode; `batch_size` None: see `at_once`."""
    batch_size = at_once(*images.shape[2:]) if batch_size is None else batch_size
    was_training = model.training
    model.eval()
    parts = [
        model(to_float(as_writable(images[i : i + batch_size]).to(device))).cpu()
        for i in range(0, len(images), batch_size)
    ]
    model.train(was_training)
    return torch.cat(parts)


def evaluate_classifier(
    model: nn.Module, dataset: ImageDataset, *, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """{"accuracy", "auroc", "loss"} on `dataset`. AUROC is macro one-against-rest with more than two classes.

    AUROC is NaN where a class is missing, or an answer is not finite.
    """
    assert dataset.labels is not None
    return score_logits(predict_logits(model, dataset.images, device=device), dataset)


def score_logits(logits: Tensor, dataset: ImageDataset) -> dict[str, float]:
    """What `evaluate_classifier` returns, from the logits (N, classes) of all images of `dataset`."""
    assert dataset.labels is not None
    labels = as_writable(dataset.labels)
    finite = bool(logits.isfinite().all())
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "auroc": auroc(logits.softmax(1).double().numpy(), dataset.labels) if finite else float("nan"),
        "loss": float(functional.cross_entropy(logits, labels)),
    }


def auroc(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """The area under the ROC curve, macro one-against-rest with more than two classes; NaN where a class is missing.

    Args:
        probabilities: (N, C), finite, rows that sum to 1.
        labels: (N,), 0 … C − 1.
    """
    classes = probabilities.shape[1]
    if len(np.unique(labels)) < classes:
        return float("nan")
    if classes == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    return float(roc_auc_score(labels, probabilities, multi_class="ovr"))


def evaluate_on_clean(
    model: nn.Module, dataset: ImageDataset, images: ImageArray, *, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """`evaluate_classifier` with the batch-norm statistics of clean `images` (N, C, H, W) uint8, of the training split.

    On a copy: `model` stays as it is, its own statistics included.
    """
    if has_statistics(model):
        model = reestimate_statistics(copy.deepcopy(model), images, batch=at_once(*images.shape[2:]))
    return evaluate_classifier(model, dataset, device=device)


def as_writable(array: npt.NDArray[Any]) -> Tensor:
    """An array as a tensor; a copy where nobody may write to it, of which torch would warn."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
