"""The greedy search for the best mask: what a step takes, and that it is worth it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskaug.benchmarks.masks import gains
from maskaug.benchmarks.search import greedy_search
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.masking import cells_to_mask
from maskaug.envs.rewards import ClassifierReward

GRID = 4


class Weighs(nn.Module):
    """Logits (0, −Σ weight · pixel): of label 0 the loss rises with what is hidden where the weight is negative."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        total = (images[:, 0] * self.weights.repeat_interleave(2, 0).repeat_interleave(2, 1)).sum((1, 2))
        return torch.stack([torch.zeros_like(total), -total], 1)


def data(n: int = 3) -> ImageDataset:
    images = np.full((n, 1, 2 * GRID, 2 * GRID), 200, np.uint8)
    images[:, :, ::3] = 90
    return ImageDataset("toy", images, np.zeros(n, np.int64), None, np.arange(n), ("a", "b"), ("",) * n, "test")


@pytest.mark.parametrize("fill", ["zero", "mean", "blur", "noise"])
def test_the_search_earns_what_the_best_of_all_masks_earns_where_cells_do_not_depend_on_each_other(fill: str) -> None:
    weights = np.random.default_rng(0).normal(size=(GRID, GRID))
    judge = ClassifierReward(Weighs(weights), "adversarial", torch.device("cpu"), trainable=False)
    found = greedy_search(data(), judge, fill, GRID, 2, seed=5)
    assert found.shape == (3, GRID, GRID)
    assert found.sum((1, 2)).tolist() == [2, 2, 2]
    every = torch.zeros(120, GRID * GRID, dtype=torch.bool)
    pairs = torch.combinations(torch.arange(GRID * GRID))
    every[torch.arange(120)[:, None], pairs] = True
    names = {str(i): [mask.view(1, GRID, GRID).expand(3, -1, -1)] for i, mask in enumerate(every)}
    earned = gains({"found": [found], **names}, data(), judge, fill, seed=5)
    best = np.max([values for name, values in earned.items() if name != "found"], axis=0)
    np.testing.assert_allclose(earned["found"], best, rtol=1e-5)


def test_each_image_has_its_own_and_the_noise_is_of_the_seed() -> None:
    weights = np.zeros((GRID, GRID))
    weights[0, 0], weights[3, 3] = -1.0, -2.0
    judge = ClassifierReward(Weighs(weights), "adversarial", torch.device("cpu"), trainable=False)
    pixels = np.array(data(2).images)
    pixels[0, :, :2, :2] = pixels[1, :, 6:, 6:] = 0
    images = dataclasses.replace(data(2), images=pixels)
    # The loss rises where pixels of negative weight become brighter, and those that were black do so most.
    found = greedy_search(images, judge, "mean", GRID, 1)
    assert found[0, 0, 0]
    assert found[1, 3, 3]
    shown = cells_to_mask(found, 8, 8)
    assert shown.sum((1, 2)).tolist() == [4, 4]
    flat = ClassifierReward(Weighs(np.full((GRID, GRID), 0.02)), "adversarial", torch.device("cpu"), trainable=False)
    one, same, other = (greedy_search(data(), flat, "noise", GRID, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
