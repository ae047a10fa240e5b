"""Small data sets and judges whose answers can be computed by hand, and the comparison of two states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.networks import SmallClassifier, seeded_weights
from maskaug.envs.reconstructors import SmallContextEncoder


def pictures(n: int = 8, size: int = 16, channels: int = 1, classes: int = 2, seed: int = 0) -> ImageDataset:
    """n noisy images of differing brightness; a region in the top left corner of every second one."""
    rng = np.random.default_rng(seed)
    bright = rng.integers(40, 200, (n, channels, 1, 1))
    images = np.clip(bright + rng.integers(-40, 41, (n, channels, size, size)), 0, 255).astype(np.uint8)
    regions = np.zeros((n, size, size), np.bool_)
    regions[1::2, : size // 4, : size // 4] = True
    return ImageDataset(
        name="pictures",
        images=images,
        labels=np.arange(n, dtype=np.int64) % classes,
        regions=regions,
        groups=np.arange(n, dtype=np.int64),
        class_names=tuple("abcdefgh"[:classes]),
        names=tuple(f"picture {i}" for i in range(n)),
    )


class BrightnessJudge(nn.Module):
    """Two classes; logits (0, slope · mean of the image), so that every loss can be computed by hand."""

    def __init__(self, slope: float = 4.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        #: the number of images of each forward pass
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        score = self.slope * images.mean((1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], 1)


class FlatJudge(nn.Module):
    """Logits linear in every pixel of every channel."""

    def __init__(self, dataset: ImageDataset, seed: int = 0) -> None:
        super().__init__()
        with seeded_weights(seed):
            pixels = math.prod(dataset.shape)
            self.linear = nn.Linear(pixels, len(dataset.class_names))
            nn.init.normal_(self.linear.weight, std=2 / math.sqrt(pixels))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def small(dataset: ImageDataset, seed: int = 0) -> SmallClassifier:
    """The small judge with first weights drawn from `seed`."""
    with seeded_weights(seed):
        return SmallClassifier(dataset.shape[0], len(dataset.class_names), 8)


def reconstructor(dataset: ImageDataset, seed: int = 0) -> SmallContextEncoder:
    """The small reconstruction network with first weights drawn from `seed`."""
    with seeded_weights(seed):
        return SmallContextEncoder(dataset.shape[0], 8)


def judge_for(objective: str, dataset: ImageDataset, seed: int = 0) -> nn.Module:
    """A small judge of the kind that plays `objective`."""
    return reconstructor(dataset, seed) if objective == "reconstruction" else small(dataset, seed)


def values(tensor: Tensor) -> list[Any]:
    """The different values of a tensor, in ascending order."""
    return sorted(set(tensor.flatten().tolist()))


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit; NaN equals NaN."""
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor):
        return same(a.detach().numpy(), b.detach().numpy())
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return bool(a == b or (a != a and b != b))
