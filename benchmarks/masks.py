"""How good masks are, with the controls that a mask is never without, all at the same area.

Two measures: retention, the share of the known region that a mask selects; and gain, what a frozen judge says of hiding
the selected part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from maskaug.agents.agent import GridSpec
from maskaug.agents.heuristics import FixedMask, RandomMasks
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.masking import (
    cells_to_mask,
    filler,
    mask_to_cells,
    retention,
)
from maskaug.envs.networks import at_once
from maskaug.envs.rewards import RewardModel
from maskaug.envs.rows import RegionArray, blocks

#: how often random masks are drawn and masks are swapped; an image's figure is the mean over the draws.
DRAWS = 10
#: how many regions are looked at at once.
CHUNK = 512


def control_masks(
    scores: npt.NDArray[np.float32],
    dataset: ImageDataset,
    train: ImageDataset,
    spec: GridSpec,
    seed: int = 0,
    own: Tensor | None = None,
) -> dict[str, list[Tensor]]:
    """A ranking's masks and its controls as cells, (N, g, g) bool each; several draws where there is chance.

    Args:
        scores: (N, g, g), of all images of `dataset`.
        dataset: held-out images.
        train: the training images, for the mean region.
        spec: grid and number of cells, or side of a patch.
        seed: of random masks and swaps.
        own: the ranker's own masks as cells, (N, g, g) bool, where they do not follow from its scores of cells: what an
            agent that plays patches thinks of a patch is not the mean of its cells' scores. None: the best by `scores`.

    Returns:
        "agent"; "swapped", the agent's own masks, each on another image; "random"; "centre"; and where regions are
        known "mean_region", the one mask that the training regions favour, and "ceiling", the best for each image.
    """
    n = len(dataset)
    if n < 2:
        raise ConfigurationError(f"{dataset.name} has {n} image here; the controls of a mask need at least two")
    rng = np.random.default_rng(seed)
    random = RandomMasks(spec, seed)

    def best(ranking: npt.NDArray[Any]) -> Tensor:
        return spec.best(torch.from_numpy(np.ascontiguousarray(ranking)))

    # These look at nothing but how many images there are.
    blind = np.broadcast_to(np.uint8(0), dataset.images.shape)
    own = best(scores) if own is None else own
    masks = {
        "agent": [own],
        "swapped": [own[_derangement(rng, n)] for _ in range(DRAWS)],
        "random": [spec.cells_of(random.predict(blind)[0]) for _ in range(DRAWS)],
        "centre": [best(FixedMask.centre(spec).scores(blind))],
    }
    if dataset.regions is not None and train.outlined.any():
        masks["mean_region"] = [best(FixedMask.mean_region(spec, train).scores(blind))]
        masks["ceiling"] = [spec.best(region_shares(dataset.regions, spec.grid))]
    return masks


def region_shares(regions: RegionArray, grid: int) -> Tensor:
    """The share of each cell that the known region covers: (N, H, W) bool → (N, g, g) float32, from 0 to 1."""
    return torch.cat([mask_to_cells(torch.from_numpy(block), grid) for block in blocks(regions)])


def oracle_scores(dataset: ImageDataset, grid: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """The ranking of somebody who knows the region, for the arm that is told: (N, g, g) float32.

    Cells rank by the share of them that the region covers; those that it does not touch by how near to it they are, so
    that a mask of more area than the region has is the region and what is around it. Chance decides between cells that
    tie: half a pixel's share at most, which changes no other order.

    An image without a region is given that of another, drawn from those that have one: an aiding view hides all but
    the mask, and who is trained on such views must not read the label off the shape, or the place, of what is left.
    Such a mask is no oracle's, and nothing but a control of the same shape: score masks on `dataset.with_region()`.

    Args:
        dataset: with known regions.
        grid: g; divides the images' height and width.
        seed: of whose region is given, and of ties.

    Raises:
        DatasetError: no region is known.
    """
    if dataset.regions is None or not dataset.outlined.any():
        raise DatasetError(f"{dataset.name} has no known regions, and the oracle looks at them; leave the oracle out")
    rng = np.random.default_rng(seed)
    has = np.flatnonzero(dataset.outlined)
    whose = np.where(dataset.outlined, np.arange(len(dataset)), rng.choice(has, len(dataset)))
    shares = region_shares(dataset.regions, grid).numpy().astype(np.float64)[whose]
    away = np.stack([distance_transform_edt(covered == 0) for covered in shares])
    chance = rng.random(shares.shape)
    near = 1 - away / (math.sqrt(2) * grid)
    # Two distances differ by at least 1 / (4 g²) here: squares of distances are whole numbers of cells.
    rest = np.where(shares > 0, chance, near + chance / (8 * grid**2))
    half_a_pixel = grid**2 / (2 * math.prod(dataset.shape[1:]))
    return (shares + half_a_pixel * rest / 1.2).astype(np.float32)


def hits(masks: Mapping[str, Sequence[Tensor]], dataset: ImageDataset) -> dict[str, npt.NDArray[np.float64]]:
    """Name → (M,) whether the middle of each mask lies in the region, for images that have one: the pointing game.

    For patches: the middle of a square says where it points. Averaged over the draws.
    """

    def hit(cells: Tensor, regions: Tensor) -> Tensor:
        middles = []
        for axis, size in ((2, regions.shape[1]), (1, regions.shape[2])):
            along = (torch.arange(cells.shape[1]) + 0.5) * size / cells.shape[1]
            # Sums of halves are exact, and divided only once: a middle on a border always falls to one side.
            total = cells.sum(axis).double() @ along.double()
            middles.append((total / cells.sum((1, 2))).long().clamp(max=size - 1))
        return regions[torch.arange(len(cells)), middles[0], middles[1]]

    return against_regions(hit, masks, dataset)


def retentions(masks: Mapping[str, Sequence[Tensor]], dataset: ImageDataset) -> dict[str, npt.NDArray[np.float64]]:
    """Name → (M,) retention of every image that has a region, averaged over the draws."""
    return against_regions(
        lambda cells, regions: retention(cells_to_mask(cells, *regions.shape[1:]), regions), masks, dataset
    )


def against_regions(
    measure: Callable[[Tensor, Tensor], Tensor], masks: Mapping[str, Sequence[Tensor]], dataset: ImageDataset
) -> dict[str, npt.NDArray[np.float64]]:
    """Name → `measure` of every image that has a region, averaged over the draws; empty where none has.

    Args:
        measure: cells (m, g, g) bool and regions (m, H, W) bool → (m, …).
        masks: name → cells (N, g, g) bool, one for each draw.
        dataset: the images; a few of their regions at a time, which may be more than memory holds.
    """
    if dataset.regions is None or not dataset.outlined.any():
        return {}
    result: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in masks}
    has = np.flatnonzero(dataset.outlined)
    for rows in np.split(has, range(CHUNK, len(has), CHUNK)):
        regions = torch.from_numpy(np.ascontiguousarray(dataset.regions[rows]))
        for name, draws in masks.items():
            result[name].append(np.mean([measure(d[rows], regions).double().numpy() for d in draws], axis=0))
    return {name: np.concatenate(parts) for name, parts in result.items()}


def gains(
    masks: Mapping[str, Sequence[Tensor]], dataset: ImageDataset, judge: RewardModel, fill: str, seed: int = 0
) -> dict[str, npt.NDArray[np.float64]]:
    """Name → (N,) gain of each image's mask, by the judge as it is now; of several draws the first."""
    all_labels = np.full(len(dataset), -1, np.int64) if dataset.labels is None else dataset.labels
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in masks}
    chunk = at_once(*dataset.shape[1:])
    for start in range(0, len(dataset), chunk):
        rows = slice(start, start + chunk)
        images = torch.from_numpy(np.array(dataset.images[rows])).to(judge.device)
        labels = torch.from_numpy(all_labels[rows]).to(judge.device)
        noise = torch.randn(images.shape, generator=generator).to(judge.device) if fill == "noise" else None
        filling = filler(images, fill, noise)
        gain, every = judge.against(images, labels), torch.arange(len(images), device=judge.device)
        for name, draws in masks.items():
            cells = draws[0][rows].to(judge.device)
            shown = judge.view(images, cells_to_mask(cells, *images.shape[2:]), filling)
            result[name].append(gain(every, shown, cells).double().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in result.items()}


@dataclasses.dataclass(frozen=True)
class MaskReport:
    """What an evaluation of a mask says: means over images, per control.

    Attributes:
        area: share of the image that every mask selects.
        retention: name → mean retention; empty without known regions.
        gain: name → mean gain; empty without a judge.
        images: number of images; of those with a region for retention.
        hit: name → share of images in which the patch's middle lies in the region; empty for sets of cells.
    """

    area: float
    retention: dict[str, float]
    gain: dict[str, float]
    images: int
    hit: dict[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, spec: GridSpec, images: int, parts: Sequence[Measured]) -> MaskReport:
        """The means over all parts of a data set of so many images; a part without known regions has no retention."""
        means: dict[str, dict[str, float]] = {}
        for what in ("retention", "gain", "hit"):
            names = dict.fromkeys(name for part in parts for name in part[what])
            means[what] = {
                name: float(np.concatenate([part[what][name] for part in parts if name in part[what]]).mean())
                for name in names
            }
        return cls(spec.cells / spec.grid**2, means["retention"], means["gain"], images, means["hit"])

    def flat(self, prefix: str) -> dict[str, float]:
        """{"<prefix>.retention.agent": …, "<prefix>.gain.random": …, "<prefix>.area": …}, for results.json."""
        return {
            f"{prefix}.area": self.area,
            f"{prefix}.images": float(self.images),
            **{f"{prefix}.retention.{name}": value for name, value in self.retention.items()},
            **{f"{prefix}.gain.{name}": value for name, value in self.gain.items()},
            **{f"{prefix}.hit.{name}": value for name, value in self.hit.items()},
        }

    def table(self) -> str:
        """A plain text table for the terminal, the controls under the agent."""
        names = list(self.gain or self.retention)
        pointing = f"{'points at it':>15}" if self.hit else ""
        lines = [
            f"{'mask at ' + format(self.area, '.0%') + ' area':<22}{'region kept':>13}{'judge’s gain':>15}{pointing}"
        ]
        for name in names:
            kept = f"{self.retention[name]:.3f}" if name in self.retention else "–"
            gain = f"{self.gain[name]:+.3f}" if name in self.gain else "–"
            hit = f"{self.hit[name]:>15.3f}" if name in self.hit else ""
            lines.append(f"{TITLES[name]:<22}{kept:>13}{gain:>15}{hit}")
        return "\n".join(lines)


TITLES = {
    "agent": "the agent's",
    "swapped": "its own, swapped",
    "random": "random",
    "centre": "centre",
    "mean_region": "mean training region",
    "ceiling": "best cells (ceiling)",
}


def mask_report(
    scores: npt.NDArray[np.float32],
    dataset: ImageDataset,
    train: ImageDataset,
    spec: GridSpec,
    *,
    judge: RewardModel | None = None,
    fill: str = "zero",
    seed: int = 0,
    own: Tensor | None = None,
) -> MaskReport:
    """Score a ranking of cells, (N, g, g) for all images of `dataset`, beside its controls; see `control_masks`."""
    measured = measure(scores, dataset, train, spec, judge=judge, fill=fill, seed=seed, own=own)
    return MaskReport.of(spec, len(dataset), [measured])


#: name of a measure ("retention", "gain", "hit") → name of a mask → its value for each image.
Measured = dict[str, dict[str, npt.NDArray[np.float64]]]


def measure(
    scores: npt.NDArray[np.float32],
    dataset: ImageDataset,
    train: ImageDataset,
    spec: GridSpec,
    *,
    judge: RewardModel | None = None,
    fill: str = "zero",
    seed: int = 0,
    own: Tensor | None = None,
) -> Measured:
    """The figures of which `mask_report` gives the means: of a part of the images, where masks of all are too many."""
    masks = control_masks(scores, dataset, train, spec, seed, own)
    return {
        "retention": retentions(masks, dataset),
        "gain": {} if judge is None else gains(masks, dataset, judge, fill, seed),
        "hit": hits(masks, dataset) if spec.patch_cells else {},
    }


def _derangement(rng: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
    # A random cycle through all images: nobody keeps its own mask.
    order = rng.permutation(n)
    result = np.empty(n, np.int64)
    result[order] = np.roll(order, 1)
    return result
