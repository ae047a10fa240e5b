"""Reconstruction networks: images with a part hidden, (N, C, H, W) float in [0, 1] → whole images of the same kind.

Inside they work on [−1, 1], as the paper does. `encoder()` gives the part that pre-training is for.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor, nn

from maskaug.envs.networks import channels_last

#: channels of the paper's stages, down and up (arXiv 2203.13865; papers.md §2).
_DOWN = (16, 32, 64, 64, 128, 128)
_UP = (128, 64, 64, 32, 16)


class FrozenEncoder(nn.Module):
    """A copy of an encoder that never changes again: no gradients, and batch-norm statistics that stay (`train` too).

    Args:
        stages: (N, C, H, W) in [−1, 1] → (N, F, h, w).
        out_channels: F.
    """

    def __init__(self, stages: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.stages = copy.deepcopy(stages)
        self.out_channels = out_channels
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: statistics that still move are weights that still change (papers.md §2, 5)."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → feature maps (N, F, h, w)."""
        maps: Tensor = self.stages(channels_last(2 * images - 1))
        return maps


def _stage(inside: int, outside: int) -> nn.Sequential:
    # Bias is the batch norm's.
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
        nn.Conv2d(outside, outside, 3, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


class PaperEncoder(nn.Sequential):
    """The paper's encoder: six stages of two 3×3 convolutions, halved in between: (N, C, H, W) → (N, 128, H/32, W/32).

    Args:
        in_channels: C.
    """

    out_channels = _DOWN[-1]

    def __init__(self, in_channels: int = 1) -> None:
        stages: list[nn.Module] = []
        last = in_channels
        for channels in _DOWN:
            stages.append(
                _stage(last, channels) if not stages else nn.Sequential(nn.MaxPool2d(2), _stage(last, channels))
            )
            last = channels
        super().__init__(*stages)


class ContextEncoder(nn.Module):
    """The paper's context encoder: a U-Net with a channel-wise bottleneck, 1.49 million parameters.

    Heights and widths are multiples of 32, so that up and down meet exactly: at the paper's 300 the authors' output was
    stretched from 288 and its skips were cropped, up to 6 pixels out of place (papers.md §2, 3).

    Args:
        in_channels: C of the images.
    """

    #: heights and widths are multiples of it.
    multiple = 32

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.down = PaperEncoder(in_channels)
        # One filter a channel ("channel-wise"): with 3×3 the network has the paper's 1.49 million parameters.
        last = _DOWN[-1]
        self.bottleneck = nn.Sequential(
            nn.Conv2d(last, last, 3, padding=1, groups=last, bias=False), nn.BatchNorm2d(last), nn.ReLU(inplace=True)
        )
        self.ups, self.stages = nn.ModuleList(), nn.ModuleList()
        for channels, skip in zip(_UP, _DOWN[-2::-1], strict=True):
            self.ups.append(nn.ConvTranspose2d(last, channels, 2, stride=2))
            self.stages.append(_stage(channels + skip, channels))
            last = channels
        self.head = nn.Conv2d(last, in_channels, 1)
        self.out_channels = self.down.out_channels

    @property
    def recipe(self) -> dict[str, int]:
        """The keywords that build it again."""
        return {"in_channels": self.head.out_channels}

    def encode(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → (N, 128, H/32, W/32)."""
        maps: Tensor = self.down(2 * images - 1)
        return maps

    def encoder(self) -> FrozenEncoder:
        """A frozen copy of the six stages down."""
        return FrozenEncoder(self.down, self.out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → the same shape and scale, not clipped."""
        x, skips = 2 * images - 1, []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        x = self.bottleneck(skips.pop())
        for up, stage in zip(self.ups, self.stages, strict=True):
            x = stage(torch.cat([up(x), skips.pop()], 1))
        result: Tensor = (self.head(x) + 1) / 2
        return result


def _block(inside: int, outside: int, size: int, stride: int = 1, *, batch_norm: bool = False) -> nn.Sequential:
    norm = nn.BatchNorm2d(outside) if batch_norm else nn.GroupNorm(8, outside)
    return nn.Sequential(nn.Conv2d(inside, outside, size, stride, size // 2, bias=False), norm, nn.ReLU(inplace=True))


class SmallContextEncoder(nn.Module):
    """A small context encoder for 36 to 128 pixels; sizes are multiples of 8.

    Three strided convolutions and one more, a channel-wise 7×7 convolution over the map of H/8 × W/8, and three times
    up again. No skips: all that the output knows has gone through the part that is kept. That part has batch norm:
    GroupNorm takes away how bright an image is as a whole, and its features were worth less to every read-out
    (benchmarks/results); the rest has GroupNorm.

    Args:
        in_channels: C of the images.
        width: channels of the first stage, a multiple of 8; the last has four times as many.
    """

    #: heights and widths are multiples of it.
    multiple = 8

    def __init__(self, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.in_channels, self.width = in_channels, width
        self.out_channels = 4 * width
        self.down = nn.Sequential(
            _block(in_channels, width, 5, 2, batch_norm=True),
            _block(width, 2 * width, 3, 2, batch_norm=True),
            _block(2 * width, 4 * width, 3, 2, batch_norm=True),
            _block(4 * width, 4 * width, 3, batch_norm=True),
        )
        self.bottleneck = nn.Sequential(
            nn.Conv2d(4 * width, 4 * width, 7, padding=3, groups=4 * width, bias=False), _block(4 * width, 4 * width, 1)
        )
        # A convolution to four times the channels, shuffled to twice the size, costs a quarter of one at that size.
        self.up = nn.Sequential(
            _block(4 * width, 8 * width, 3),
            nn.PixelShuffle(2),
            _block(2 * width, 4 * width, 3),
            nn.PixelShuffle(2),
            nn.Conv2d(width, 4 * in_channels, 3, padding=1),
            nn.PixelShuffle(2),
        )

    @property
    def recipe(self) -> dict[str, int]:
        """The keywords that build it again."""
        return {"in_channels": self.in_channels, "width": self.width}

    def encode(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → (N, 4 · width, H/8, W/8)."""
        maps: Tensor = self.down(channels_last(2 * images - 1))
        return maps

    def encoder(self) -> FrozenEncoder:
        """A frozen copy of the four stages down."""
        return FrozenEncoder(self.down, self.out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → the same shape and scale, not clipped."""
        result: Tensor = (self.up(self.bottleneck(self.encode(images))) + 1) / 2
        return result
