"""True errors and rank correlation, against hand computations."""

import numpy as np
import pytest
import torch
from env_helpers import pictures
from patch_game import Copy
from scipy import stats
from torch import Tensor, nn

from maskaug.agents.agent import GridSpec
from maskaug.benchmarks.errors import _masks, rank_correlation, true_errors
from maskaug.envs.reconstruction import ReconstructionReward

SIZE, GRID, CELL = 16, 4, 4
PICTURES = pictures(5, SIZE, 2)


class Mean(nn.Module):
    """Fills the whole image with the mean of what it sees."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3), keepdim=True).expand_as(images)


def judge(model: nn.Module) -> ReconstructionReward:
    return ReconstructionReward(model, torch.device("cpu"), trainable=False)


def spec(cells: int, patch_cells: int = 0) -> GridSpec:
    return GridSpec((2, SIZE, SIZE), GRID, cells, patch_cells)


@pytest.mark.parametrize("patch_cells", [1, 2, 3])
def test_a_cells_error_is_the_mean_over_the_patches_that_hold_it(patch_cells: int) -> None:
    found = true_errors(judge(Mean()), PICTURES, spec(patch_cells**2, patch_cells), "zero")
    expected = np.zeros((5, GRID, GRID))
    for i, image in enumerate(np.asarray(PICTURES.images) / 255.0):
        for row, col in np.ndindex(GRID, GRID):
            errors = []
            for top, left in np.ndindex(GRID - patch_cells + 1, GRID - patch_cells + 1):
                if top <= row < top + patch_cells and left <= col < left + patch_cells:
                    hidden = image.copy()
                    end = patch_cells * CELL
                    hidden[:, top * CELL : top * CELL + end, left * CELL : left * CELL + end] = 0
                    cell = image[:, row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL]
                    errors.append(4 * ((cell - hidden.mean()) ** 2).mean())
            expected[i, row, col] = np.mean(errors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("cells", [1, 3, 5, 8, 13])
def test_every_cell_is_covered_whatever_the_size_of_the_set(cells: int) -> None:
    found = true_errors(judge(Copy()), PICTURES, spec(cells), "zero", draws=2)
    # The copy is off by the whole value where a pixel is hidden, whatever else is.
    expected = 4 * ((np.asarray(PICTURES.images) / 255.0) ** 2).mean(1).reshape(5, GRID, CELL, GRID, CELL).mean((2, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    masks = torch.stack(_masks(spec(cells), 5, 2, torch.Generator().manual_seed(0)))
    assert (masks.flatten(2).sum(2) == cells).all()
    rounds = masks.view(2, -1, 5, GRID, GRID)
    assert rounds.any(1).all()
    assert not torch.equal(rounds[0], rounds[1])


def test_seeds_chunks_and_noise() -> None:
    # The mean is another one with every partition; what a copy of noise costs depends on the noise alone.
    for model, fill, patch_cells in ((Mean(), "zero", 0), (Copy(), "noise", 2)):
        game = spec(4, patch_cells)
        first, again, other = (true_errors(judge(model), PICTURES, game, fill, seed=s) for s in (0, 0, 1))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
    many = pictures(70, SIZE, 2)
    found = true_errors(judge(Copy()), many, spec(4), "zero")
    np.testing.assert_allclose(found[66:], true_errors(judge(Copy()), many.subset(np.arange(66, 70)), spec(4), "zero"))


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    # Few different values: ties.
    scores = rng.integers(0, 6, (8, GRID, GRID)).astype(np.float32)
    errors = (scores + rng.integers(0, 8, scores.shape)).astype(np.float32)
    expected = [stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(scores, errors, strict=True)]
    np.testing.assert_allclose(rank_correlation(scores, errors), expected, rtol=1e-12)
    scores[3] = 1
    found = rank_correlation(scores, errors)
    assert np.isnan(found[3])
    assert np.isfinite(np.delete(found, 3)).all()
