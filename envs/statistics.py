"""Batch-norm statistics of clean images, for networks that have learnt from images with parts hidden."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import nn

from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import to_float
from maskaug.envs.rows import ImageArray

Network = TypeVar("Network", bound=nn.Module)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def has_statistics(model: nn.Module) -> bool:
    """Whether `model` has batch norms, whose statistics depend on what it has seen."""
    return any(isinstance(m, _NORMS) for m in model.modules())


@torch.no_grad()
def reestimate_statistics(model: Network, images: ImageArray, *, most: int = 1024, batch: int = 64) -> Network:
    """Give a network's batch norms the statistics of clean images, in place: so far it has seen hidden parts.

    All else stays, the mode it is in included; nothing happens to a network without batch norms.

    Args:
        model: (N, C, H, W) float in [0, 1] → anything: a judge, or a reconstructor's `encoder()`.
        images: (N, C, H, W) uint8, of the training split, N ≥ 1; evenly spaced ones where there are more than `most`.
        most: images that are looked at.
        batch: images at once.

    Raises:
        ConfigurationError: no image was given.
    """
    count = min(most, len(images))
    if count < 1 or batch < 1:
        raise ConfigurationError("the statistics of no images at all are unknown; give at least one")
    norms = [m for m in model.modules() if isinstance(m, _NORMS)]
    if not norms:
        return model
    modes = {m: m.training for m in model.modules()}
    kept = [m.momentum for m in norms]
    device = next(model.parameters()).device
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        nn.Module.train(norm, True)
    # Batches of one size, so that all images weigh the same. Each goes through the whole data set: where images stand
    # class by class, the variance within a batch of neighbours is not that of the images.
    batches = max(1, count // batch)
    chosen = np.linspace(0, len(images) - 1, batches * min(batch, count)).astype(int)
    for first in range(batches):
        model(to_float(torch.from_numpy(np.array(images[chosen[first::batches]])).to(device)))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
    return model
