"""How good masks are: retention of the known region at equal area, with the controls that a mask is never without."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskaug.agents.agent import GridSpec
from maskaug.agents.heuristics import FixedMask, RandomMasks
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.masking import cells_to_mask, mask_to_cells, retention, top_cells

#: how often random masks are drawn and masks are swapped; the mean over them is reported.
DRAWS = 20


@dataclasses.dataclass(frozen=True)
class MaskReport:
    """Retention of one ranking and of its controls, all at the same area.

    Attributes:
        retention: name → (M,) float, the retention of each image with a region. "agent"; "swapped", the agent's own
            masks on other images; "random"; "centre"; "mean_region", where the training regions mostly are;
            "ceiling", the best cells for each image.
        area: the share of the image that every mask selects.
    """

    retention: dict[str, npt.NDArray[np.float64]]
    area: float

    @property
    def means(self) -> dict[str, float]:
        """Name → mean retention."""
        return {name: float(values.mean()) for name, values in self.retention.items()}


def mask_report(
    scores: npt.NDArray[np.float32], dataset: ImageDataset, train: ImageDataset, spec: GridSpec, seed: int = 0
) -> MaskReport:
    """Score a ranking of cells against the known regions, beside its controls.

    Args:
        scores: (N, g, g) for all images of `dataset`; those without a region are passed over.
        dataset: held-out images.
        train: the training images, for the mean region.
        spec: grid and number of cells.
        seed: of random masks and swaps.
    """
    assert dataset.regions is not None
    has = dataset.regions.any(axis=(1, 2))
    regions = torch.from_numpy(np.ascontiguousarray(dataset.regions[has]))
    own = top_cells(torch.from_numpy(scores[has]), spec.cells)
    images = dataset.images[has]
    rng = np.random.default_rng(seed)
    random = RandomMasks(spec, seed)
    n = len(images)
    swaps = [_kept(own[_derangement(rng, n)], regions) for _ in range(DRAWS)] if n > 1 else [np.full(1, np.nan)]
    draws = [_kept(top_cells(torch.from_numpy(random.scores(images)), spec.cells), regions) for _ in range(DRAWS)]
    fixed = {"centre": FixedMask.centre(spec), "mean_region": FixedMask.mean_region(spec, train)}
    best = top_cells(mask_to_cells(regions, spec.grid), spec.cells)
    return MaskReport(
        {
            "agent": _kept(own, regions),
            "swapped": np.mean(swaps, axis=0),
            "random": np.mean(draws, axis=0),
            **{
                name: _kept(top_cells(torch.from_numpy(mask.scores(images)), spec.cells), regions)
                for name, mask in fixed.items()
            },
            "ceiling": _kept(best, regions),
        },
        spec.cells / spec.grid**2,
    )


def _kept(cells: Tensor, regions: Tensor) -> npt.NDArray[np.float64]:
    return retention(cells_to_mask(cells, *regions.shape[1:]), regions).double().numpy()


def _derangement(rng: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
    # A random cycle through all images: nobody keeps its own mask.
    order = rng.permutation(n)
    result = np.empty(n, np.int64)
    result[order] = np.roll(order, 1)
    return result
