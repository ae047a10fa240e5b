"""TernausNet-11 (Iglovikov & Shvets, arXiv 1801.05746), APGA's policy: a U-Net whose encoder is VGG11.

Written from the paper's figure. The encoder's eight convolutions are VGG11's, so that its ImageNet weights fit; the
decoder has a 3×3 convolution and a transposed one at each of five levels, and is given the encoder's map of the same
size from beside it.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskaug.envs.weights import put_weights, read_weights, to_channels

#: channels after each of VGG11's convolutions, level by level; a pooling follows each level.
LEVELS = ((64,), (128,), (256, 256), (512, 512), (512, 512))
#: where VGG11's convolutions stand among its layers, in torchvision's names.
_VGG = (0, 3, 6, 8, 11, 13, 16, 18)
#: (inside, outside) channels of the decoder's blocks, from the middle outwards.
DECODER = ((512, 256), (512, 256), (512, 128), (256, 64), (128, 32))


class TernausNet11(nn.Module):
    """Scores of pixels, or of the cells of a grid: 22.9 M parameters. Sizes are multiples of 32.

    Args:
        in_channels: C of the images.
        grid: g; the scores of pixels are averaged over each of g×g cells. 0: scores of pixels.
    """

    def __init__(self, in_channels: int = 3, grid: int = 0) -> None:
        super().__init__()
        self.in_channels, self.grid = in_channels, grid
        encoder, last = [], in_channels
        for level in LEVELS:
            layers: list[nn.Module] = []
            for channels in level:
                layers += [nn.Conv2d(last, channels, 3, padding=1), nn.ReLU()]
                last = channels
            encoder.append(nn.Sequential(*layers))
        self.encoder = nn.ModuleList(encoder)
        decoder = []
        for (inside, outside), beside in zip(DECODER, (0, *(level[-1] for level in reversed(LEVELS[1:]))), strict=True):
            upwards = nn.ConvTranspose2d(inside, outside, 3, stride=2, padding=1, output_padding=1)
            convolution = nn.Conv2d(last + beside, inside, 3, padding=1)
            decoder.append(nn.Sequential(convolution, nn.ReLU(), upwards, nn.ReLU()))
            last = outside
        self.decoder = nn.ModuleList(decoder)
        self.last = nn.Conv2d(last + LEVELS[0][-1], 32, 3, padding=1)
        self.head = nn.Conv2d(32, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → scores (N, H, W), or (N, g, g)."""
        beside, maps = [], images
        for level in self.encoder:
            beside.append(level(maps))
            maps = functional.max_pool2d(beside[-1], 2)
        for i, block in enumerate(self.decoder):
            maps = block(torch.cat([maps, beside[-i]], 1) if i else maps)
        maps = torch.relu(self.last(torch.cat([maps, beside[0]], 1)))
        scores: Tensor = self.head(maps)
        return (functional.adaptive_avg_pool2d(scores, self.grid) if self.grid else scores)[:, 0]

    def load_vgg11(self, path: str | os.PathLike[str]) -> None:
        """Start the encoder from VGG11's ImageNet weights in a local file, as torchvision publishes them, in place."""
        names = {f"features.{place}": own for place, own in zip(_VGG, self._encoder_names(), strict=True)}
        found = self._fitted(read_weights(path), "features.0.weight")
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("encoder.")}
        put_weights(
            self, {**found, **own}, lambda name: _renamed(name, names) or (name if name in own else None), str(path)
        )

    def load_whole(self, path: str | os.PathLike[str]) -> None:
        """Start from whole weights in a local file: our own names, or those that its authors publish (Carvana)."""
        found = read_weights(path)
        names = {f"encoder.{place}": own for place, own in zip(_VGG, self._encoder_names(), strict=True)}
        for i, block in enumerate(("center", "dec5", "dec4", "dec3", "dec2")):
            names |= {f"{block}.block.0.conv": f"decoder.{i}.0", f"{block}.block.1": f"decoder.{i}.2"}
        names |= {"dec1.conv": "last", "final": "head"}
        if "final.weight" not in found:
            names = {name.rsplit(".", 1)[0]: name.rsplit(".", 1)[0] for name in self.state_dict()}
        first = "encoder.0.weight" if "final.weight" in found else "encoder.0.0.weight"
        put_weights(self, self._fitted(found, first), lambda name: _renamed(name, names), str(path))

    def _encoder_names(self) -> list[str]:
        return [f"encoder.{i}.{2 * j}" for i, level in enumerate(LEVELS) for j in range(len(level))]

    def _fitted(self, found: dict[str, Tensor], first: str) -> dict[str, Tensor]:
        kernel = found.get(first)
        if kernel is None or kernel.ndim != 4:
            return found
        return {**found, first: to_channels(kernel, self.in_channels)}


def _renamed(name: str, names: dict[str, str]) -> str | None:
    place, _, kind = name.rpartition(".")
    return f"{names[place]}.{kind}" if place in names else None
