"""The agents' networks: images (N, C, H, W) float in [0, 1] → one score per cell (N, g, g)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskaug.envs.ensemble import kind_of, members_of
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import ConvTrunk, SmallClassifier, channels_last, lean_pass
from maskaug.envs.reconstructors import PaperEncoder


def _on_grid(maps: Tensor, grid: int) -> Tensor:
    # (N, F, h, w) → (N, F, g, g); a copy only where the trunk's map is not the grid already.
    return maps if maps.shape[-2:] == (grid, grid) else functional.adaptive_avg_pool2d(maps, grid)


def smoothed(maps: Tensor, times: int) -> Tensor:
    """Maps (N, g, g) after `times` passes of a 3×3 binomial kernel, the border repeated.

    >>> smoothed(torch.tensor([[[0.0, 0.0, 0.0], [0.0, 16.0, 0.0], [0.0, 0.0, 0.0]]]), 1)[0, 1]
    tensor([2., 4., 2.])
    """
    kernel = maps.new_tensor([1.0, 2.0, 1.0]) / 4
    maps = maps[:, None]
    for _ in range(times):
        maps = functional.pad(maps, (1, 1, 1, 1), mode="replicate")
        maps = functional.conv2d(maps, (kernel[:, None] * kernel)[None, None])
    return maps[:, 0]


class GridPolicy(nn.Module):
    """Fully convolutional scores over a g×g grid: the judge's trunk, a 1×1 convolution, and a resize to the grid.

    Fully convolutional on purpose: one set of weights looks at every place, so what a lesion looks like is learnt once
    and not once per cell; and a policy that cannot know where a cell lies cannot learn mere position.

    The map is smoothed with a 3×3 binomial kernel: what matters is rarely one cell alone, and neighbours that are drawn
    together make better draws to learn from.

    Args:
        in_channels: C of the images.
        grid: g.
        smooth: whether to smooth.
        width: channels of the first stage, a multiple of 8.
        level: start with equal scores everywhere; not for a policy whose action is a threshold on them.
    """

    def __init__(self, in_channels: int, grid: int, width: int = 16, smooth: bool = True, level: bool = True) -> None:
        super().__init__()
        self.grid = grid
        self.smooth = smooth
        self.trunk = ConvTrunk(in_channels, width)
        self.head = nn.Conv2d(self.trunk.out_channels, 1, 1)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        if level:
            # Every mask equally likely at first.
            nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → (N, g, g)."""
        maps: Tensor = self.head(self.trunk(images))
        maps = _on_grid(maps, self.grid)
        return smoothed(maps[:, 0], int(self.smooth))


def take_trunk(policy: GridPolicy, judge: nn.Module, init: str) -> None:
    """Start the policy's trunk from a copy of the judge's weights.

    Args:
        policy: changed in place.
        judge: a `SmallClassifier` of the same width has a trunk that fits; of several judges the first that does.
        init: "judge" refuses any other judge, "auto" leaves the policy as it is then, and "random" always does.
    """
    if init == "random":
        return
    width = policy.trunk.out_channels // 4
    fitting = (j for j in members_of(judge) if isinstance(j, SmallClassifier) and j.width == width)
    if (first := next(fitting, None)) is not None:
        policy.trunk.load_state_dict(first.trunk.state_dict())
    elif init == "judge":
        raise ConfigurationError(
            f"init='judge' needs a SmallClassifier of width {width} as the judge, not {kind_of(judge)}; use "
            "init='random'"
        )


class PlacePolicy(nn.Module):
    """Scores over a g×g grid from three strided convolutions that see where each pixel lies.

    Args:
        in_channels: C of the images.
        grid: g.
        width: channels of the first stage, a multiple of 8; the others have twice as many.
        place: whether rows and columns, from −1 to 1, are inputs too.
    """

    def __init__(self, in_channels: int, grid: int, width: int = 32, place: bool = True) -> None:
        super().__init__()
        self.grid, self.place = grid, place
        layers: list[nn.Module] = []
        last = in_channels + 2 * place
        for channels in (width, 2 * width, 2 * width):
            layers += [nn.Conv2d(last, channels, 5, 2, 2, bias=False), nn.GroupNorm(8, channels), nn.ReLU()]
            last = channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(last, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → (N, g, g)."""
        if self.place:
            n, _, h, w = images.shape
            rows, columns = (torch.linspace(-1, 1, side, device=images.device) for side in (h, w))
            places = torch.stack([rows[:, None].expand(h, w), columns.expand(h, w)])
            images = torch.cat([images, places.expand(n, -1, -1, -1)], 1)
        return _on_grid(self.layers(channels_last(images)), self.grid)[:, 0]


class QMap(nn.Module):
    """A plain fully convolutional Q-map for 36 to 128 pixels: the small judge's trunk and a 1×1 convolution.

    Args:
        in_channels: C of the images.
        grid: g.
        width: channels of the first stage, a multiple of 8.
        roles: R, maps in the output.
        lean: whether passes without gradient are `lean_pass`es, which differ in their last bits from those with.
    """

    def __init__(self, in_channels: int, grid: int, width: int = 16, roles: int = 1, lean: bool = False) -> None:
        super().__init__()
        self.grid, self.lean = grid, lean
        self.trunk = ConvTrunk(in_channels, width)
        self.head = nn.Conv2d(self.trunk.out_channels, roles, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → (N, R, g, g)."""
        inputs = 2 * images - 1
        if self.lean and images.device.type == "cpu" and not torch.is_grad_enabled():
            maps: Tensor = self.head(lean_pass(self.trunk, inputs))
        else:
            maps = self.head(self.trunk(inputs))
        return _on_grid(maps, self.grid)


class ImaginingQMap(nn.Module):
    """A Q-map shaped like what it predicts, for 36 to 128 pixels: the error of a guess.

    The trunk imagines h, what a reconstructor would put into each cell, as 2×2 values for each role; Q is the logarithm
    of a · mean over the cell of (x − h)² + b, with a and b > 0 from the trunk as well. The image itself says how far a
    smooth guess is off; the network has to learn only what is guessed.

    Args:
        in_channels: C of the images.
        grid: g.
        width: channels of the first stage, a multiple of 8.
        roles: R, maps in the output.
    """

    def __init__(self, in_channels: int, grid: int, width: int = 16, roles: int = 1) -> None:
        super().__init__()
        self.grid, self.roles = grid, roles
        self.trunk = ConvTrunk(in_channels, width)
        self.guess = nn.Conv2d(self.trunk.out_channels, 4 * roles, 3, padding=1)
        self.scales = nn.Conv2d(self.trunk.out_channels, 2 * roles, 1)
        nn.init.zeros_(self.scales.weight)
        nn.init.zeros_(self.scales.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → (N, R, g, g), logarithms."""
        x = 2 * images - 1
        maps = self.trunk(x)
        maps = _on_grid(maps, self.grid)
        guess = functional.pixel_shuffle(self.guess(maps), 2)
        size = x.shape[-2:]
        guess = functional.interpolate(guess, size, mode="bilinear", align_corners=False)
        # Against the mean of the channels: nearly all images here are grey.
        error = (x.mean(1, keepdim=True) - guess).square()
        error = functional.avg_pool2d(error, (size[0] // self.grid, size[1] // self.grid))
        a, b = functional.softplus(self.scales(maps)).chunk(2, 1)
        # 10, .1 and .01: so that the first answers are near those of an untrained reconstructor, and never log 0.
        result: Tensor = (10 * a * error + 0.1 * b + 0.01).log()
        return result


class PaperQMap(nn.Module):
    """The paper's Q-network (arXiv 2203.13865): its encoder and a 1×1 convolution, 0.66 million parameters.

    A cell has 32×32 pixels: 288×288 pixels are 9×9 cells.

    Args:
        in_channels: C of the images.
        roles: R, maps in the output.
    """

    def __init__(self, in_channels: int, roles: int = 1) -> None:
        super().__init__()
        self.down = PaperEncoder(in_channels)
        self.head = nn.Conv2d(self.down.out_channels, roles, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → (N, R, H/32, W/32)."""
        maps: Tensor = self.head(self.down(2 * images - 1))
        return maps
