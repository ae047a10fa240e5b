"""A game with a known answer, for tests of Intelligent Masking: what is bright is hard to fill in."""

from typing import Any

import numpy as np
from env_helpers import reconstructor
from torch import Tensor, nn

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskVectorEnv

SIZE, GRID, CELL = 40, 5, 8


def square_images(n: int, seed: int, *, labels: bool = True) -> ImageDataset:
    """Noise, a dim chequered square that means nothing, and a bright one of 2×2 whole cells: the region."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 70, (n, 1, SIZE, SIZE)).astype(np.uint8)
    regions = np.zeros((n, SIZE, SIZE), np.bool_)
    chequered = np.indices((2 * CELL, 2 * CELL)).sum(0) % 4 < 2
    for i in range(n):
        for low, high in ((0, 110), (150, 255)):
            top, left = rng.integers(0, GRID - 1, 2) * CELL
            block = np.s_[top : top + 2 * CELL, left : left + 2 * CELL]
            images[i, 0][block] = np.where(chequered, high, low)
        regions[i][block] = True
    names = tuple(f"square {i}" for i in range(n))
    known = np.arange(n) % 2 if labels else None
    return ImageDataset("squares", images, known, regions, np.arange(n), ("a", "b") if labels else (), names)


def corners_of(dataset: ImageDataset) -> Any:
    """(N,) the number of the patch that is exactly the region."""
    assert dataset.regions is not None
    first = np.asarray(dataset.regions).reshape(len(dataset), -1).argmax(1)
    return first // SIZE // CELL * (GRID - 1) + first % SIZE // CELL


class Copy(nn.Module):
    """Returns what it is shown: with hidden pixels at 0, the error is the square of their brightness."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def frozen_env(num_envs: int = 16, images: int = 256, seed: int = 0, **keywords: Any) -> MaskVectorEnv:
    """The frozen game; patches of 2×2 cells unless told otherwise."""
    play = {"joint": False, "reward_model": Copy(), **keywords}
    return joint_env(num_envs, images, seed, **play)


def joint_env(num_envs: int = 4, images: int = 30, seed: int = 0, **keywords: Any) -> MaskVectorEnv:
    """The joint game with a small reconstructor that learns often."""
    dataset = keywords.pop("dataset", None) or square_images(images, seed)
    play = {"objective": "reconstruction", "action": "patch", "grid": GRID, "device": "cpu", **keywords}
    if play.get("joint", True):
        play = {"reward_model": reconstructor(dataset), "judge_batch": 6, **play}
    return MaskVectorEnv(num_envs, dataset=dataset, **play)
