"""How well masks find a known region: four measures at equal area, each beside the controls of `masks.control_masks`.

Per image with a known region, of masks that all select the same number of cells:

* "retention": the share of the region that the mask selects.
* "iou": what mask and region share ÷ what either covers, in pixels. It cannot reach 1 where the region is not exactly
  as large as the mask.
* "hit": whether the mask selects at least half of the region. Its mean is the hit rate.
* "pointing": whether the pixel that a mask points at lies in the region, with no tolerance around it: the pointing
  game of Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016 (arXiv:1608.00507), who allow 15
  pixels. A ranking of cells points at the middle of its top cell; where cells tie for the top, the mean over them. A
  patch points at its middle: this is what `masks.hits` measures, and what a run's results.json calls "hit".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskaug.agents.agent import GridSpec
from maskaug.agents.heuristics import FixedMask
from maskaug.benchmarks.masks import CHUNK, against_regions, control_masks, hits
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import cells_to_mask, retention

MEASURES = ("retention", "iou", "hit", "pointing")
#: the share of a region that a mask has to select to have hit it.
HIT = 0.5


def mask_figures(
    scores: npt.NDArray[np.float32],
    dataset: ImageDataset,
    train: ImageDataset,
    spec: GridSpec,
    seed: int = 0,
    own: Tensor | None = None,
) -> dict[str, float]:
    """{"retention.agent": …, "iou.random": …, "hit.ceiling": …, …}: the means over images of `mask_values`."""
    return {name: float(each.mean()) for name, each in mask_values(scores, dataset, train, spec, seed, own).items()}


def mask_values(
    scores: npt.NDArray[np.float32],
    dataset: ImageDataset,
    train: ImageDataset,
    spec: GridSpec,
    seed: int = 0,
    own: Tensor | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Every measure of every mask for each image that has a region, for intervals that are clustered.

    Args:
        scores: (N, g, g), the ranking of all images of `dataset`.
        dataset: held-out images, some of them with known regions.
        train: the training images, for the mean region.
        spec: grid and number of cells, or side of a patch.
        seed: of random masks and swaps.
        own: the ranker's own masks as cells, (N, g, g) bool, where they do not follow from its scores; see
            `control_masks`.

    Returns:
        "<measure>.<mask>" → (M,) float64 in [0, 1], in the order of the images with a region: their groups are
        `dataset.groups[dataset.outlined]`. Masks are "agent", "swapped", "random", "centre", "ceiling" and, where
        training images have regions, "mean_region" (without them, neither it nor "ceiling"). Of masks that depend on
        chance an image has the mean over draws; when a ranking of cells points, which takes no drawing, the mean over
        all other images' rankings ("swapped") and over all cells ("random"). What the ceiling points at is a cell in
        the region wherever there is one.

    Raises:
        ConfigurationError: there is no region, the scores do not fit or are not finite, or `own` is not of the area.
    """
    shape, area = (len(dataset), spec.grid, spec.grid), spec.patch_cells**2 or spec.cells
    if not dataset.outlined.any():
        raise ConfigurationError(
            f"no image of {dataset.name} here has a known region, and masks are scored against these; load a data set "
            "with regions"
        )
    if np.shape(scores) != shape or not np.isfinite(scores).all():
        raise ConfigurationError(f"scores must be finite and of shape {shape}, got shape {np.shape(scores)}")
    if own is not None and (own.shape != shape or not bool((own.flatten(1).sum(1) == area).all())):
        raise ConfigurationError(
            f"masks are only compared at equal area: own must be {shape} and select {area} cells of every image"
        )
    masks = control_masks(scores, dataset, train, spec, seed, own)
    overlaps = against_regions(_overlap, masks, dataset)
    points = hits(masks, dataset) if spec.patch_cells else pointing(scores, dataset, train, spec)
    found = {f"{what}.{name}": values[:, i] for i, what in enumerate(MEASURES[:3]) for name, values in overlaps.items()}
    return {**found, **{f"pointing.{name}": points[name] for name in masks}}


def iou(mask: Tensor, region: Tensor) -> Tensor:
    """Intersection over union of each mask (N, H, W) and region (N, H, W), (N,) float32; NaN where both are empty.

    >>> iou(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[0, 1, 1]]]))
    tensor([0.3333])
    """
    mask, region = mask.bool().flatten(1), region.bool().flatten(1)
    return (mask & region).sum(1).float() / (mask | region).sum(1).float()


def pointing(
    scores: npt.NDArray[np.float32], dataset: ImageDataset, train: ImageDataset, spec: GridSpec
) -> dict[str, npt.NDArray[np.float64]]:
    """Name of a mask → (M,) whether the middle of its top cell lies in the region of each image that has one.

    Args:
        scores: (N, g, g), of all images of `dataset`.
        dataset: held-out images with regions.
        train: the training images, for the mean region.
        spec: whose cells.

    Returns:
        As `mask_values`; where cells tie for the top, the mean over them. The middle of a cell with an even number of
        pixels is the pixel below and to the right of it.
    """
    assert dataset.regions is not None
    has = np.flatnonzero(dataset.outlined)
    height, width = dataset.shape[1:]
    rows, columns = ((2 * np.arange(spec.grid) + 1) * size // (2 * spec.grid) for size in (height, width))
    blind = np.zeros((1, *dataset.shape), np.uint8)
    fixed = {"centre": FixedMask.centre(spec)}
    if train.outlined.any():
        fixed["mean_region"] = FixedMask.mean_region(spec, train)
    tops = {name: _top(ranking.scores(blind)) for name, ranking in fixed.items()}
    own = _top(scores)
    others = own.sum(axis=0)
    parts = []
    for chosen in np.split(has, range(CHUNK, len(has), CHUNK)):
        inside = dataset.regions[chosen][:, rows[:, None], columns].reshape(len(chosen), -1).astype(np.float64)
        agent = (inside * own[chosen]).sum(axis=1)
        found = {
            "agent": agent,
            "swapped": ((inside @ others - agent) / (len(dataset) - 1)).clip(0, 1),
            "random": inside.mean(axis=1),
            **{name: inside @ top[0] for name, top in tops.items()},
            "ceiling": inside.max(axis=1),
        }
        parts.append(found)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _overlap(cells: Tensor, regions: Tensor) -> Tensor:
    # (m, 3): the measures that follow from the pixels which mask and region share.
    mask = cells_to_mask(cells, *regions.shape[1:])
    kept = retention(mask, regions)
    return torch.stack([kept, iou(mask, regions), (kept >= HIT).float()], 1)


def _top(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    # (N, g, g) → (N, g·g): how much of one vote each cell gets.
    flat = scores.reshape(len(scores), -1)
    top = flat == flat.max(axis=1, keepdims=True)
    votes: npt.NDArray[np.float64] = top / top.sum(axis=1, keepdims=True)
    return votes
