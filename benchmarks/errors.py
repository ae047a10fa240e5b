"""What a reconstructor really finds hard, cell by cell, and whether a ranking of the cells knows it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from maskaug.agents.agent import GridSpec
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.masking import cells_to_mask, filler, hide, patch_count, patch_to_cells
from maskaug.envs.reconstruction import ReconstructionReward

CHUNK = 64
Maps = npt.NDArray[np.float32]


def true_errors(
    judge: ReconstructionReward, dataset: ImageDataset, spec: GridSpec, fill: str, draws: int = 8, seed: int = 0
) -> Maps:
    """The mean error of each cell over masks that hide it: (N, g, g) float32, pixels in [−1, 1].

    Patches: over all patches that hold the cell. Sets of cells: over `draws` random partitions of the grid into sets of
    `spec.cells`, so that every cell is hidden in each of them.

    Args:
        judge: the reconstructor, as it is now; it does not learn.
        dataset: the images.
        spec: grid and number of cells, or side of a patch.
        fill: what hidden pixels become; "noise" is drawn anew for every mask.
        draws: random partitions; not looked at with patches.
        seed: of partitions and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    result = []
    for start in range(0, len(dataset), CHUNK):
        images = torch.from_numpy(np.array(dataset.images[start : start + CHUNK])).to(judge.device)
        total = torch.zeros(len(images), spec.grid, spec.grid, device=judge.device)
        count = torch.zeros_like(total)
        for cells in _masks(spec, len(images), draws, generator):
            hidden_cells = cells.to(judge.device)
            noise = torch.randn(images.shape, generator=generator).to(judge.device) if fill == "noise" else None
            hidden = hide(images, cells_to_mask(hidden_cells, *images.shape[2:]), filler(images, fill, noise))
            errors = judge.score(images, hidden, hidden_cells)[1]
            total += torch.where(hidden_cells, errors, 0)
            count += hidden_cells
        result.append((total / count).cpu().numpy())
    return np.concatenate(result)


def _masks(spec: GridSpec, n: int, draws: int, generator: torch.Generator) -> list[torch.Tensor]:
    if spec.patch_cells:
        every = patch_to_cells(torch.arange(patch_count(spec.grid, spec.patch_cells)), spec.grid, spec.patch_cells)
        return [cells.expand(n, -1, -1) for cells in every]
    total = spec.grid**2
    masks = []
    for _ in range(draws):
        order = torch.rand(n, total, generator=generator).argsort(1)
        # The last set reaches round to the first cells: no cell is left out, and all sets have one size.
        for first in range(0, total, spec.cells):
            at = order[:, torch.arange(first, first + spec.cells) % total]
            chosen = torch.zeros(n, total, dtype=torch.bool).scatter_(1, at, True)
            masks.append(chosen.view(n, spec.grid, spec.grid))
    return masks


def rank_correlation(scores: Maps, errors: Maps) -> npt.NDArray[np.float64]:
    """Spearman's correlation over the cells of each image, (N, g, g) both → (N,); NaN where one of them is constant.

    >>> rank_correlation(np.arange(8.0).reshape(2, 2, 2), -np.arange(8.0).reshape(2, 2, 2) ** 3)
    array([-1., -1.])
    """
    a, b = (stats.rankdata(x.reshape(len(x), -1), axis=1) for x in (scores, errors))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        result: npt.NDArray[np.float64] = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return result
