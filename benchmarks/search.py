"""The best mask that a search finds: the upper mark where the masks of a game are too many to try them all.

An 8×8 grid has 10^14 masks of a quarter of its cells. The search takes the cell that earns most, then the one that
earns most beside it, and so on: g·g + (g·g − 1) + … judged masks an image, 904 for 16 of 64 cells. It asks the judge
with the true label and is no masker; it is a lower bound of the best reward, and a reward above it is possible.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.masking import cells_to_mask, filler
from maskaug.envs.networks import at_once
from maskaug.envs.rewards import RewardModel


def greedy_search(dataset: ImageDataset, judge: RewardModel, fill: str, grid: int, cells: int, seed: int = 0) -> Tensor:
    """The cells that the search takes on each image: (N, g, g) bool, `cells` of them each.

    Args:
        dataset: images with labels.
        judge: who says what a mask earns.
        fill: what hidden pixels become.
        grid: g.
        cells: how many each mask has.
        seed: of the noise, with fill="noise"; an image sees the same one in every step.
    """
    labels = np.full(len(dataset), -1, np.int64) if dataset.labels is None else dataset.labels
    generator = torch.Generator().manual_seed(seed)
    chunk, found = at_once(*dataset.shape[1:]), []
    for start in range(0, len(dataset), chunk):
        rows = slice(start, start + chunk)
        images = torch.from_numpy(np.array(dataset.images[rows])).to(judge.device)
        noise = torch.randn(images.shape, generator=generator).to(judge.device) if fill == "noise" else None
        filling = filler(images, fill, noise).expand(images.shape)
        gain = judge.against(images, torch.from_numpy(labels[rows]).to(judge.device))
        every = torch.arange(len(images), device=judge.device)
        taken = torch.zeros(len(images), grid * grid, dtype=torch.bool, device=judge.device)
        for _ in range(cells):
            worth = torch.full(taken.shape, -torch.inf, device=judge.device)
            for cell in range(grid * grid):
                free = every[~taken[:, cell]]
                if not len(free):
                    continue
                tried = taken[free].clone()
                tried[:, cell] = True
                masks = tried.view(-1, grid, grid)
                shown = judge.view(images[free], cells_to_mask(masks, *images.shape[2:]), filling[free])
                worth[free, cell] = gain(free, shown, masks).float()
            taken[every, worth.argmax(1)] = True
        found.append(taken.view(-1, grid, grid).cpu())
    return torch.cat(found)
