"""The judges' networks. They take (N, C, H, W) float in [0, 1] and return logits (N, classes)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def to_float(images: Tensor) -> Tensor:
    """(…) uint8 → float32 in [0, 1], the scale that every network here expects."""
    return images.float().div_(255)


def at_once(height: int, width: int) -> int:
    """How many images go through a large network in one pass where only time and memory depend on it: 64 small ones.

    >>> at_once(64, 64), at_once(224, 224)
    (64, 10)
    """
    return max(1, min(64, 2**19 // (height * width)))


def channels_last(images: Tensor) -> Tensor:
    """The same images (N, C, H, W), channels last in memory: passes through small nets on a CPU are a third faster.

    With one channel torch cannot tell the two layouts apart and takes the slow one, so the strides are written out;
    nothing is copied then.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    n, c, h, w = images.shape
    return images.as_strided((n, c, h, w), (h * w, 1, w, 1)) if c == 1 else images


class ConvTrunk(nn.Sequential):
    """Four convolutions at strides 2, (pool 2), 1, 2, 1: (N, C, H, W) → (N, 4 · width, about H/8, about W/8).

    GroupNorm instead of batch norm: a batch of one is a batch like any other, training and evaluation mode agree, and
    no statistics drift when the network sees masked images. The one pooling is worth its price: on radiographs with a
    small break it learns in half the updates of a trunk with strides alone.
    """

    def __init__(self, in_channels: int = 1, width: int = 16) -> None:
        layers: list[nn.Module] = []
        last = in_channels
        for channels, size, stride in ((width, 5, 2), (2 * width, 3, 1), (4 * width, 3, 2), (4 * width, 3, 1)):
            layers += [
                nn.Conv2d(last, channels, size, stride, size // 2, bias=False),
                nn.GroupNorm(8, channels),
                nn.ReLU(),
            ]
            if len(layers) == 3:
                layers.append(nn.MaxPool2d(2))
            last = channels
        super().__init__(*layers)
        self.out_channels = last

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float → (N, 4 · width, about H/8, about W/8), channels last in memory."""
        maps: Tensor = super().forward(channels_last(images))  # type: ignore[no-untyped-call]
        return maps


@torch.no_grad()
def lean_pass(trunk: nn.Sequential, images: Tensor) -> Tensor:
    """What a `ConvTrunk` says, up to its last bits, for a pass on a CPU that nobody learns from.

    A fifth less time than channels last with 16 channels in the first stage, a third less with 8: GroupNorm is slow in
    that layout, and in the other one the pooling alone, whose way back would be slow too.

    Args:
        trunk: its layers; pools are of 2×2 pixels.
        images: (N, C, H, W) float.

    Returns:
        (N, 4 · width, about H/8, about W/8).
    """
    maps = images.contiguous()
    for layer in trunk:
        maps = _pooled(maps) if isinstance(layer, nn.MaxPool2d) else layer(maps)
    return maps


def _pooled(maps: Tensor) -> Tensor:
    # 2×2 pixels each; an odd last row or column is left out, as by torch's own.
    height, width = (side // 2 * 2 for side in maps.shape[2:])
    rows = torch.maximum(maps[:, :, 0:height:2], maps[:, :, 1:height:2])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


class SmallClassifier(nn.Module):
    """A small convolutional classifier for 36 to 128 pixels: 60 914 parameters with one channel and two classes.

    Args:
        in_channels: C of the images.
        classes: number of logits.
        width: channels of the first stage, a multiple of 8; the last has four times as many.
    """

    def __init__(self, in_channels: int = 1, classes: int = 2, width: int = 16) -> None:
        super().__init__()
        self.in_channels, self.classes, self.width = in_channels, classes, width
        self.trunk = ConvTrunk(in_channels, width)
        self.head = nn.Linear(2 * self.trunk.out_channels, classes)

    @property
    def recipe(self) -> dict[str, int]:
        """The keywords that build it again."""
        return {"in_channels": self.in_channels, "classes": self.classes, "width": self.width}

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → (N, F), the mean and the maximum of the last feature map."""
        maps: Tensor = self.trunk(images)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → logits (N, classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Inside, new modules draw their first weights from `seed`; the global generator is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
