"""Small reconstructors and games for the tests of the reconstruction game."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from env_helpers import pictures
from torch import Tensor, nn

from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.networks import seeded_weights
from maskaug.envs.reconstruction import ReconstructionReward

DATA = pictures(8, channels=3)
GRID = 4
CPU = torch.device("cpu")
Game = dict[str, Any]
Cells = npt.NDArray[np.int64]


class Constant(nn.Module):
    """One grey value everywhere, whatever it sees."""

    def __init__(self, answer: float = 0.25) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer))
        #: the number of images of each forward pass
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return torch.zeros_like(images) + self.answer


class Smooth(nn.Module):
    """Two convolutions without any norm: each image's answer is its own, in training as in evaluation mode."""

    def __init__(self, channels: int = 3, seed: int = 0) -> None:
        super().__init__()
        with seeded_weights(seed):
            self.layers = nn.Sequential(
                nn.Conv2d(channels, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, channels, 3, padding=1)
            )

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.layers(images)
        return answer


class Normed(nn.Module):
    """Batch norm, whose statistics move with every training pass; and it can sulk.

    Attributes:
        sulks: at this forward pass, counted from 0 on, the answer is NaN in the image's first pixel.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        with seeded_weights(0):
            self.layers = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.sulks: int | None = None

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.layers(images)
        if self.sulks is not None:
            self.sulks -= 1
            if self.sulks < 0:
                answer = torch.where(torch.arange(16) == 0, torch.nan, answer)
        return answer


def frozen(**more: Any) -> Game:
    reconstructs: Game = {"objective": "reconstruction", "joint": False, "reward_model": Smooth()}
    return {"dataset": DATA, "grid": GRID, "device": "cpu", **reconstructs, **more}


def joint(**more: Any) -> Game:
    return frozen(**{"joint": True, "reward_model": Smooth(), **more})


def chosen(steps: int, num_envs: int, seed: int = 0) -> Cells:
    """Grid actions (steps, num_envs, 16)."""
    return np.random.default_rng(seed).integers(0, 2, (steps, num_envs, GRID**2))


def judge_of(env: MaskVectorEnv | MaskEnv) -> ReconstructionReward:
    reward_model = env.game.reward_model
    assert isinstance(reward_model, ReconstructionReward)
    return reward_model


def everything(module: nn.Module) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def by_hand(image: npt.NDArray[np.uint8], answer: npt.NDArray[Any], cells: Cells) -> tuple[float, Cells]:
    """(gain, error of each hidden cell (g, g)), pixel by pixel in double precision, pixels in [−1, 1]."""
    square = ((2.0 * answer - 1) - (image / 127.5 - 1.0)) ** 2
    side = image.shape[-1] // GRID
    errors = np.full((GRID, GRID), np.nan)
    hidden: list[float] = []
    for row, column in np.argwhere(cells.reshape(GRID, GRID)):
        block = square[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        errors[row, column] = block.mean()
        hidden += block.ravel().tolist()
    return float(np.mean(hidden)) if hidden else 0.0, errors
