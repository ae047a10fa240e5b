"""The judges' networks. They take (N, C, H, W) float in [0, 1] and return logits (N, classes)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallClassifier(nn.Module):
    """A small convolutional classifier for 36 to 128 pixels, about 74 000 parameters at the default width.

    GroupNorm instead of batch norm: a batch of one is a batch like any other, training and evaluation mode agree, and
    no statistics drift when the judge sees masked images.

    Args:
        in_channels: C of the images.
        classes: number of logits.
        width: channels of the first stage; the last has four times as many.
    """

    def __init__(self, in_channels: int = 1, classes: int = 2, width: int = 16) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        last = in_channels
        for i, channels in enumerate(widths):
            size = 5 if i == 0 else 3
            layers += [
                nn.Conv2d(last, channels, size, stride=2 if i == 0 else 1, padding=size // 2, bias=False),
                nn.GroupNorm(8, channels),
                nn.ReLU(),
            ]
            if i in (1, 2):
                layers.append(nn.MaxPool2d(2))
            last = channels
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(2 * last, classes)

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → (N, F), the mean and the maximum of the last feature map."""
        maps: Tensor = self.trunk(images)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → logits (N, classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits
