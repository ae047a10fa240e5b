"""Early stopping, and training a classifier until it has converged: the warm start of the published APGA."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.networks import at_once, to_float
from maskaug.envs.pretrain import as_writable, evaluate_on_clean
from maskaug.envs.statistics import reestimate_statistics


class Patience:
    """Early stopping: whether a validation loss is the best so far, and for how long there was none better.

    Args:
        patience: looks without a better loss after which it is enough.
    """

    def __init__(self, patience: int) -> None:
        if patience < 1:
            raise ConfigurationError(f"patience={patience} must be at least 1")
        self.patience = patience
        #: the scores of the best look, empty before one was finite; looks since then; and all looks.
        self.best: dict[str, float] = {}
        self.waited = self.looks = 0

    def better(self, scores: Mapping[str, float]) -> bool:
        """Take note of a look's {"loss", …}; True if that loss is below every one before."""
        self.looks += 1
        self.waited += 1
        if not math.isfinite(scores["loss"]) or (self.best and scores["loss"] >= self.best["loss"]):
            return False
        self.best, self.waited = {k: v for k, v in scores.items() if math.isfinite(v)}, 0
        return True

    @property
    def over(self) -> bool:
        """Whether it is enough."""
        return self.waited >= self.patience


@dataclasses.dataclass(frozen=True)
class ConvergeSettings:
    """How a classifier is trained until it has converged, as APGA's authors do before the game.

    Attributes:
        epochs: at most so many.
        patience: epochs without a better validation loss after which it has converged.
        batch_size: images a step.
        lr: of Adam; constant.
        seed: of the images' order.
    """

    epochs: int = 100
    patience: int = 15
    batch_size: int = 25
    lr: float = 1e-5
    seed: int = 0


def fit_until_converged(
    model: nn.Module,
    train: ImageDataset,
    val: ImageDataset,
    settings: ConvergeSettings,
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Train `model` in place with cross-entropy on clean images until `val` gets no better; keep the best weights.

    Plain Adam on the images as they are (no augmentation). Its batch norms end with the statistics of clean images.

    Args:
        model: images (N, C, H, W) float in [0, 1] → logits (N, classes).
        train: needs labels.
        val: looked at after every epoch.
        settings: see `ConvergeSettings`.
        device: where to train.
        progress: called after every epoch with its number and its scores.

    Returns:
        {"accuracy", "auroc", "loss", "epoch", "epochs"} of the kept weights on `val`; "epochs" were trained in all.

    Raises:
        JudgeError: the validation loss was never finite.
    """
    if train.labels is None:
        raise ConfigurationError(f"{train.name} has no labels, and a classifier needs them")
    patience = Patience(settings.patience)
    generator = torch.Generator().manual_seed(settings.seed)
    model.to(device)
    optimiser = torch.optim.Adam(model.parameters(), settings.lr, fused=True)
    kept: dict[str, Tensor] = {}
    epoch, order = 0, torch.empty(0, dtype=torch.int64)
    while patience.looks < settings.epochs and not patience.over:
        model.train()
        for _ in range(math.ceil(len(train) / settings.batch_size)):
            # Whole batches, the last one of an epoch too: batch norm has no use for one of a single image.
            while len(order) < settings.batch_size:
                order = torch.cat([order, torch.randperm(len(train), generator=generator)])
            index, order = order[: settings.batch_size].numpy(), order[settings.batch_size :]
            x, y = to_float(as_writable(train.images[index]).to(device)), as_writable(train.labels[index]).to(device)
            optimiser.zero_grad()
            functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        scores = evaluate_on_clean(model, val, train.images, device=device)
        if patience.better(scores):
            epoch, kept = patience.looks, copy.deepcopy(model.state_dict())
        if progress is not None:
            progress(patience.looks, scores)
    if not kept:
        raise JudgeError(f"the validation loss was not finite in {patience.looks} epochs; lower the learning rate")
    model.load_state_dict(kept)
    # A fused optimiser leaves no trace, and an environment that has this module as its judge must see that it changed.
    torch.autograd.graph.increment_version(model.parameters())
    reestimate_statistics(model, train.images, batch=at_once(*train.shape[1:])).eval()
    return {**patience.best, "epoch": float(epoch), "epochs": float(patience.looks)}
