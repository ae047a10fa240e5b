"""A game with a known answer, for tests of agents: a judge that looks for one bright square and for nothing else."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskVectorEnv

SIZE, GRID, SIDE = 32, 4, 4


def marker_images(n: int, seed: int, label: int = 1) -> ImageDataset:
    """Noise, four bright bars that mean nothing, and one 4×4 square inside one cell: the region."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 90, (n, 1, SIZE, SIZE)).astype(np.uint8)
    regions = np.zeros((n, SIZE, SIZE), np.bool_)
    cell = SIZE // GRID
    for i in range(n):
        where = rng.permutation(GRID * GRID)
        for place in where[1:5]:
            top, left = divmod(int(place), GRID)
            images[i, 0, top * cell + 2, left * cell + 1 : left * cell + 7] = 255
        top, left = (int(v) * cell + int(rng.integers(0, cell - SIDE + 1)) for v in divmod(int(where[0]), GRID))
        images[i, 0, top : top + SIDE, left : left + SIDE] = 255
        regions[i, top : top + SIDE, left : left + SIDE] = True
    names = tuple(f"marker {i}" for i in range(n))
    labels = np.full(n, label, np.int64)
    return ImageDataset("markers", images, labels, regions, np.arange(n), ("absent", "present"), names)


class MarkerJudge(nn.Module):
    """Logits (0, ±3): + where a whole bright square is somewhere in the image."""

    def forward(self, images: Tensor) -> Tensor:
        darkest = -functional.max_pool2d(-images, SIDE, 1)
        seen = (darkest.amax((1, 2, 3)) > 0.9).float()
        return torch.stack([torch.zeros_like(seen), 6 * seen - 3], 1)


def marker_env(
    num_envs: int = 16, repeat: int = 4, images: int = 256, seed: int = 0, label: int = 1, **keywords: Any
) -> MaskVectorEnv:
    """The frozen game on a 4×4 grid with 4 cells a mask."""
    play = {"joint": False, "reward_model": MarkerJudge(), "device": "cpu", **keywords}
    return MaskVectorEnv(num_envs, dataset=marker_images(images, seed, label), grid=GRID, repeat=repeat, **play)


def joint_env(num_envs: int = 4, repeat: int = 4, **keywords: Any) -> MaskVectorEnv:
    """A small joint game whose judge learns often, on synthetic radiographs of the smallest size."""
    play = {"image_size": 40, "grid": 5, "n": 60, "judge_batch": 6, "device": "cpu", **keywords}
    return MaskVectorEnv(num_envs, dataset="synthetic", repeat=repeat, **play)
