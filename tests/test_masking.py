"""Masks against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from env_helpers import values

from maskaug.envs.masking import (
    FILLS,
    area_price,
    cells_for_area,
    cells_to_mask,
    filler,
    hide,
    keep,
    mask_area,
    mask_to_cells,
    patch_count,
    patch_scores,
    patch_to_cells,
    retention,
    top_cells,
)


def test_each_cell_becomes_its_block_of_pixels() -> None:
    cells = torch.tensor([[[True, False], [False, False]], [[False, True], [True, False]]])
    mask = cells_to_mask(cells, 4, 6)
    assert mask.dtype == torch.bool
    assert mask[0].int().tolist() == [[1, 1, 1, 0, 0, 0]] * 2 + [[0] * 6] * 2
    assert mask[1].int().tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[1, 1, 1, 0, 0, 0]] * 2


def test_cells_are_numbered_row_by_row() -> None:
    numbers = torch.arange(9).reshape(1, 3, 3)
    assert cells_to_mask(numbers, 3, 3)[0].flatten().tolist() == list(range(9))


def test_mask_to_cells_averages_and_undoes_cells_to_mask() -> None:
    values = torch.tensor([[[0.0, 1, 4, 4], [1, 2, 4, 4], [0, 0, 8, 0], [0, 0, 0, 0]]])
    assert mask_to_cells(values, 2).tolist() == [[[1, 4], [0, 2]]]
    cells = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(mask_to_cells(cells_to_mask(cells, 12, 8), 4), cells.float())


@pytest.mark.parametrize(("grid", "side"), [(3, 2), (4, 1), (5, 3)])
def test_every_patch_is_whole_and_all_are_different(grid: int, side: int) -> None:
    count = patch_count(grid, side)
    cells = patch_to_cells(torch.arange(count), grid, side)
    expected = []
    for top in range(grid - side + 1):
        for left in range(grid - side + 1):
            plane = np.zeros((grid, grid), bool)
            plane[top : top + side, left : left + side] = True
            expected.append(plane)
    assert count == len(expected)
    assert np.array_equal(cells.numpy(), np.stack(expected))


def test_patch_scores_are_means_in_the_order_of_the_actions() -> None:
    scores = torch.tensor([[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]])
    assert patch_scores(scores, 2).tolist() == [[3, 4, 6, 7]]
    random = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    best = patch_scores(random, 3).argmax(1)
    chosen = patch_to_cells(best, 6, 3)
    assert torch.allclose((random * chosen).sum((1, 2)) / 9, patch_scores(random, 3).amax(1))


def test_top_cells_takes_exactly_the_k_best_and_the_first_of_equals() -> None:
    scores = torch.tensor([[[0.1, 0.9], [0.5, 0.3]], [[1.0, 1.0], [1.0, 1.0]]])
    assert top_cells(scores, 2).int().tolist() == [[[0, 1], [1, 0]], [[1, 1], [0, 0]]]
    assert top_cells(torch.full((3, 8, 8), -1.0), 16).sum((1, 2)).tolist() == [16] * 3


@pytest.mark.parametrize(("area", "grid", "cells"), [(0.25, 8, 16), (0.25, 6, 9), (0.1, 8, 6), (0.99, 2, 4)])
def test_cells_for_area(area: float, grid: int, cells: int) -> None:
    assert cells_for_area(area, grid) == cells


IMAGES = torch.tensor([[[[0, 10], [20, 30]]], [[[200, 200], [200, 200]]]], dtype=torch.uint8)


def test_hide_replaces_what_is_selected_and_keep_everything_else() -> None:
    mask = torch.tensor([[[True, False], [False, True]], [[False, False], [True, True]]])
    filling = filler(IMAGES, "mean")
    assert filling.flatten().tolist() == [15, 200]
    assert hide(IMAGES, mask, filling).flatten(1).tolist() == [[15, 10, 20, 15], [200] * 4]
    assert keep(IMAGES, mask, filling).flatten(1).tolist() == [[0, 15, 15, 30], [200] * 4]
    assert hide(IMAGES, mask, filler(IMAGES, "zero")).flatten(1).tolist() == [[0, 10, 20, 0], [200, 200, 0, 0]]
    assert IMAGES[0].flatten().tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_fill_keeps_the_images_type_and_range(fill: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 2, 24, 24), dtype=torch.uint8, generator=generator)
    images = images if dtype == torch.uint8 else images.float() / 255
    noise = torch.randn(images.shape, generator=generator) if fill == "noise" else None
    result = hide(images, torch.ones(3, 24, 24, dtype=torch.bool), filler(images, fill, noise))
    assert result.dtype == dtype
    assert result.shape == images.shape
    assert result.min() >= 0
    assert result.max() <= (255 if dtype == torch.uint8 else 1)


def test_mean_is_per_image_and_channel() -> None:
    images = torch.zeros(2, 3, 4, 4)
    images[1, 2] = 0.5
    images[0, 0, 0] = 1
    assert filler(images, "mean")[:, :, 0, 0].tolist() == [[0.25, 0, 0], [0, 0, 0.5]]


def test_noise_has_the_images_mean_and_spread() -> None:
    images = torch.tensor([100, 120], dtype=torch.uint8).repeat(64 * 32).reshape(1, 1, 64, 64)
    noise = torch.ones(1, 1, 64, 64)
    assert values(filler(images, "noise", noise)) == [120]
    assert values(filler(images, "noise", -noise)) == [100]
    assert values(filler(images, "noise", 100 * noise)) == [255]
    with pytest.raises(ValueError, match="needs the noise"):
        filler(images, "noise")


def test_blur_keeps_the_level_and_loses_the_detail() -> None:
    board = (torch.arange(64)[:, None] + torch.arange(64)[None]).remainder(2).mul(200).to(torch.uint8)[None, None]
    assert values(filler(board, "blur")) == [100]
    steps = torch.zeros(1, 1, 64, 64)
    steps[..., 32:] = 1
    blurred = filler(steps, "blur")
    assert blurred[..., :20].max() == 0
    assert blurred[..., 44:].min() == 1
    assert 0.3 < blurred[..., 31].mean() < 0.5


def test_unknown_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of"):
        filler(IMAGES, "pink")


def test_area_and_its_price() -> None:
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[1, 0] = True
    mask[2] = True
    area = mask_area(mask)
    assert area.tolist() == [0, 0.25, 1]
    assert area_price(area, 0.25).tolist() == [1, 0, 1]
    # half way on each side: (.125/.25)² and (.375/.75)²
    assert area_price(torch.tensor([0.125, 0.625]), 0.25).tolist() == [0.25, 0.25]


def test_retention_is_the_selected_share_of_the_region() -> None:
    region = torch.zeros(3, 4, 4, dtype=torch.bool)
    region[0, :2, :2] = True
    region[1, 3, 3] = True
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[:, 0] = True
    assert retention(mask, region)[:2].tolist() == [0.5, 0]
    assert retention(mask, region)[2].isnan()
    assert retention(torch.ones_like(mask), region)[:2].tolist() == [1, 1]
