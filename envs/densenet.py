"""DenseNet-169 (Huang et al., CVPR 2017), the judge of APGA: MONAI's network behind our judges' interface."""

from __future__ import annotations

import os
import re

import torch
from torch import Tensor, nn

from maskaug.envs.weights import put_weights, read_weights, to_channels

_LAYER = re.compile(r"denselayer(\d+)\.(norm|relu|conv)\.?(\d)\.")


class DenseNet169(nn.Module):
    """A classifier for pictures of about 224 pixels, at least 32: 12.5 M parameters.

    Batch norm sees clean images and aiding views alike while it learns: before an evaluation its statistics are to be
    those of clean images, see `maskaug.envs.statistics.reestimate_statistics`.

    Args:
        in_channels: C of the images.
        classes: number of logits.
    """

    def __init__(self, in_channels: int = 1, classes: int = 2) -> None:
        super().__init__()
        # Not at the top: MONAI takes a second to import, and most judges do without.
        from monai.networks.nets.densenet import DenseNet169 as MonaiDenseNet169

        self.in_channels, self.classes = in_channels, classes
        self.net = MonaiDenseNet169(spatial_dims=2, in_channels=in_channels, out_channels=classes)

    @property
    def recipe(self) -> dict[str, int]:
        """The keywords that build it again."""
        return {"in_channels": self.in_channels, "classes": self.classes}

    def maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → the last feature maps, (N, 1664, H/32, W/32)."""
        maps: Tensor = self.net.features(images)
        return torch.relu(maps)

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → (N, 1664), the mean of the last feature maps."""
        return self.maps(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → logits (N, classes)."""
        logits: Tensor = self.net(images)
        return logits

    def load_imagenet(self, path: str | os.PathLike[str]) -> None:
        """Start from ImageNet weights in a local file, as torchvision publishes them (densenet169-….pth), in place.

        The first convolution is fitted to the images' channels, and the last layer keeps its own first weights where
        the number of classes differs.
        """
        found = {name: value for name, value in read_weights(path).items() if not name.startswith("classifier.")}
        first = "features.conv0.weight"
        if first in found and found[first].ndim == 4:
            found[first] = to_channels(found[first], self.in_channels)
        own = {f"classifier.{n}": v for n, v in self.net.get_submodule("class_layers.out").state_dict().items()}
        put_weights(self.net, {**found, **own}, _monai_name, str(path))


def _monai_name(name: str) -> str | None:
    if name.startswith("classifier."):
        return name.replace("classifier.", "class_layers.out.")
    return _LAYER.sub(r"denselayer\1.layers.\2\3.", name)
