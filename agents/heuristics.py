"""Masks that nobody learnt: the other rows of every table. They have the agents' `scores` and `predict`.

Those that look into a judge: `maskaug.agents.saliency`, and `maskaug.agents.gradients`.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskaug.agents.agent import GridSpec
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import mask_to_cells, patch_count, patch_scores, top_cells
from maskaug.envs.networks import to_float
from maskaug.envs.rows import blocks

Scores = npt.NDArray[np.float32]
#: of random rectangles, height ÷ width.
ASPECTS = (0.3, 3.3)
#: of random erasing, the least and the largest share of the image that is erased, as published.
ERASED = (0.02, 0.4)


class Heuristic(ABC):
    """A ranking of cells without learning.

    Args:
        spec: image shape, grid, and number of cells of a mask, or side of a patch.
    """

    def __init__(self, spec: GridSpec) -> None:
        self.spec = spec

    @abstractmethod
    def scores(self, observation: npt.NDArray[np.uint8]) -> Scores:
        """(N, C, H, W) or (C, H, W) uint8 → (N, g, g) float32, higher = rather selected."""

    def predict(
        self,
        observation: npt.NDArray[np.uint8],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """The top cells, (N, g·g) or (g·g,) int8, or the best patch, (N,) or () int64; there is no chance in it."""
        actions = self.spec.actions_of(self._best(torch.from_numpy(self.scores(observation)))).numpy()
        return (actions[0] if observation.ndim == 3 else actions), state

    def _best(self, scores: Tensor) -> Tensor:
        if self.spec.patch_cells:
            return patch_scores(scores, self.spec.patch_cells).argmax(1)
        return top_cells(scores, self.spec.cells)

    def _batch(self, observation: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return observation[None] if observation.ndim == 3 else observation


class RandomMasks(Heuristic):
    """Every set of cells of the right size, or every patch, is equally likely.

    Args:
        spec: see `Heuristic`.
        seed: of the draws.
    """

    def __init__(self, spec: GridSpec, seed: int = 0) -> None:
        super().__init__(spec)
        self._rng = np.random.default_rng(seed)

    def scores(self, observation: npt.NDArray[np.uint8]) -> Scores:
        """See `Heuristic.scores`."""
        n = len(self._batch(observation))
        return self._rng.random((n, self.spec.grid, self.spec.grid), np.float32)

    def _best(self, scores: Tensor) -> Tensor:
        if not self.spec.patch_cells:
            return super()._best(scores)
        # The best mean of random cells would lie at the border too often: patches there have fewer rivals.
        count = patch_count(self.spec.grid, self.spec.patch_cells)
        return torch.from_numpy(self._rng.integers(0, count, len(scores)))


class Cutout(Heuristic):
    """One random rectangle an image (DeVries & Taylor, arXiv 1708.04552; with random sides as an arm of APGA's table).

    height ÷ width is log-uniform in 0.3 to 3.3, the area is `spec.cells` as nearly as whole cells can, and every place
    inside the image is equally likely. Masks are only compared at equal area: where no rectangle has exactly
    `spec.cells` cells, `predict` adds or leaves out some along one of its shorter edges. New rectangles each time.

    Cutout hides the rectangle, and our mask is the rectangle (1 = selected). Where the selected part is what is hidden
    (objectives "adversarial" and "reconstruction") that is Cutout; the aiding view of this mask, all but the rectangle
    hidden, is its opposite: who augments with Cutout hides the mask.

    Args:
        spec: see `Heuristic`; not one of patches, where the one rectangle is a square: that is `RandomMasks`.
        seed: of the draws.
    """

    def __init__(self, spec: GridSpec, seed: int = 0) -> None:
        if spec.patch_cells:
            raise ConfigurationError(
                f"{type(self).__name__} draws rectangles of many shapes, and this game's masks are all squares of "
                f"{spec.patch_cells}×{spec.patch_cells} cells; use RandomMasks, or a game with action='grid'"
            )
        super().__init__(spec)
        self._rng = np.random.default_rng(seed)

    def scores(self, observation: npt.NDArray[np.uint8]) -> Scores:
        """See `Heuristic.scores`: minus the distance from the rectangle's middle, in its own heights and widths."""
        n, grid = len(self._batch(observation)), self.spec.grid
        sides = self._sides(n)
        top_left = self._rng.integers(0, grid - sides + 1)
        along = np.arange(grid)
        towards = self._rng.choice([-1, 1], (2, n))
        # Off the middle by a quarter of a cell along the longer axis: of the cells around the rectangle one short edge
        # is nearest, of those inside one is farthest, and all that is inside is nearer than what is not.
        upright = sides[0] + self._rng.integers(0, 2, n) / 2 > sides[1]
        middle = top_left + (sides - 1) / 2 + towards * np.stack([upright, ~upright]) / 4
        # Along that edge from one end, so that what is added or left out lies together.
        rows, columns = np.abs(along - middle[:, :, None]) / sides[:, :, None]
        down, right = towards[:, :, None] * along / (64 * grid**2)
        distance = np.maximum(rows[:, :, None], columns[:, None, :]) - (down[:, :, None] + right[:, None, :])
        scores: Scores = -distance.astype(np.float32)
        return scores

    def _sides(self, n: int) -> npt.NDArray[np.int64]:
        # (2, N): heights and widths in cells.
        cells, grid = self.spec.cells, self.spec.grid
        aspect = np.exp(self._rng.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1]), n))
        # The shorter side is rounded first: the longer one can then make up for the area.
        short = np.round(np.sqrt(cells * np.minimum(aspect, 1 / aspect))).clip(math.ceil(cells / grid), grid)
        short += np.round(cells / short) > ASPECTS[1] * short
        long = np.round(cells / short).clip(1, grid)
        return np.where(aspect < 1, [short, long], [long, short]).astype(np.int64)


class RandomErasing(Cutout):
    """Random erasing (Zhong et al., AAAI 2020, arXiv 1708.04896): a rectangle of random area becomes random pixels.

    As a row of a table of masks it is Cutout: masks are only compared at equal area, and at equal area the two draw the
    same rectangles (`scores`, `predict`). What makes it another arm is how it augments: `masks` draws rectangles of
    pixels whose area is random too, and `filling` what they become, every pixel uniform from 0 to 255. As with Cutout
    it is the rectangle that is hidden, `maskaug.envs.masking.hide(images, masks, filling)`, and not what is kept.

    What differs from the paper:

    * It erases 2 to 40 % of an image. That range is scaled so that its mean is the area of the game's masks: arms of
      one table hide equally much, on average. `areas` gives the paper's, or any other.
    * It draws area, aspect and place anew until the rectangle lies inside the image, which makes large ones rare. Here
      the aspect is drawn among those that fit, and the place among all that there are: the mean area is what it says.
    * height ÷ width is uniform from 0.3 to 3.33 there, so that most rectangles are upright; here it is log-uniform from
      0.3 to 3.3, as in `Cutout`, from which only area and filling set it apart.
    * It leaves every second image as it is. Here each is erased: who trains on the clean image beside it, as the arms
      of APGA's table do, has that half already.

    Args:
        spec: see `Cutout`.
        seed: of the draws.
        areas: least and largest share that `masks` erases, uniform between the two; None: see above.

    Raises:
        ConfigurationError: `areas` that are no shares above 0 and at most 1, the first of them the smaller one.
    """

    def __init__(self, spec: GridSpec, seed: int = 0, areas: tuple[float, float] | None = None) -> None:
        super().__init__(spec, seed)
        if areas is None:
            mean, share = sum(ERASED) / 2, spec.cells / spec.grid**2
            # Where the scaled range would reach beyond the image, it is the widest one around its mean.
            reach = min((ERASED[1] - mean) / mean * share, 1 - share)
            areas = (share - reach, share + reach)
        if not 0 < areas[0] <= areas[1] <= 1:
            raise ConfigurationError(
                f"areas={areas} must be two shares of the image, above 0 and at most 1, the smaller one first"
            )
        self.areas = areas
        # Their own: what is drawn for masks must not depend on whether a filling is asked for, or scores.
        self._of_masks, self._of_filling = np.random.default_rng(seed).spawn(2)

    def masks(self, n: int) -> npt.NDArray[np.bool_]:
        """What is erased of n images: (n, H, W) bool, one whole rectangle each; new ones with each call."""
        rng, (_, height, width) = self._of_masks, self.spec.image_shape
        pixels = rng.uniform(*self.areas, n) * height * width
        # The aspects with which it fits, of a shorter side of at least the area ÷ the image's other side.
        fits = np.stack([pixels / width**2, height**2 / pixels])
        lowest, highest = np.log(np.clip(np.array(ASPECTS)[:, None], *fits))
        aspect = np.exp(rng.uniform(lowest, highest))
        rows = np.round(np.sqrt(pixels * aspect)).clip(1, height)
        columns = np.round(pixels / rows).clip(1, width)
        inside = []
        for sides, along in ((rows, height), (columns, width)):
            first = rng.integers(0, along - sides.astype(np.int64) + 1)
            places = np.arange(along) - first[:, None]
            inside.append((places >= 0) & (places < sides[:, None]))
        result: npt.NDArray[np.bool_] = inside[0][:, :, None] & inside[1][:, None, :]
        return result

    def filling(self, n: int) -> npt.NDArray[np.uint8]:
        """What erased pixels of n images become: (n, C, H, W) uint8, each uniform from 0 to 255; new ones each call."""
        return self._of_filling.integers(0, 256, (n, *self.spec.image_shape), np.uint8)


class FixedMask(Heuristic):
    """One mask for every image.

    Args:
        spec: see `Heuristic`.
        cells: (g, g) float, the one ranking.
    """

    def __init__(self, spec: GridSpec, cells: npt.NDArray[Any]) -> None:
        super().__init__(spec)
        self._cells = np.asarray(cells, np.float32)

    def scores(self, observation: npt.NDArray[np.uint8]) -> Scores:
        """See `Heuristic.scores`."""
        return np.repeat(self._cells[None], len(self._batch(observation)), axis=0)

    @classmethod
    def centre(cls, spec: GridSpec) -> FixedMask:
        """The cells nearest to the image's centre."""
        along = np.arange(spec.grid) - (spec.grid - 1) / 2
        return cls(spec, -np.hypot(along[:, None], along[None, :]))

    @classmethod
    def mean_region(cls, spec: GridSpec, train: ImageDataset) -> FixedMask:
        """The cells that the known regions of the training images cover most: privileged, and still one mask."""
        regions = train.with_region().regions
        assert regions is not None
        mean = torch.from_numpy(sum(block.sum(0, dtype=np.float64) for block in blocks(regions)) / len(regions))
        return cls(spec, mask_to_cells(mean[None], spec.grid)[0].numpy())


class Brightness(Heuristic):
    """The mean value of each cell's pixels, over all channels: metal, calcified tissue and bone before air.

    Where cells tie, as in a black background, chance decides; see `chance_of`.

    Args:
        spec: see `Heuristic`.
        seed: of what decides between cells that tie.
    """

    def __init__(self, spec: GridSpec, seed: int = 0) -> None:
        super().__init__(spec)
        self._seed = seed

    def scores(self, observation: npt.NDArray[np.uint8]) -> Scores:
        """See `Heuristic.scores`; from 0 to 1, and less than any difference in brightness for ties."""
        batch = self._batch(observation)
        c, h, w = batch.shape[1:]
        total = batch.reshape(len(batch), c, self.spec.grid, h // self.spec.grid, self.spec.grid, w // self.spec.grid)
        # Whole numbers: cells of the same pixels tie whatever their order.
        sums = total.sum((1, 3, 5), dtype=np.int64) + 0.5 * chance_of(batch, self.spec.grid, self._seed)
        scores: Scores = (sums * (self.spec.grid**2 / (255 * c * h * w))).astype(np.float32)
        return scores


class LocalVariance(Heuristic):
    """The variance of each cell's pixels: what looks hard to fill in to somebody who has learnt nothing."""

    def scores(self, observation: npt.NDArray[np.uint8]) -> Scores:
        """See `Heuristic.scores`; in units of the reconstruction error, pixels in [−1, 1]."""
        pixels = 2 * to_float(torch.from_numpy(np.array(self._batch(observation))))
        grid = self.spec.grid
        mean, square = (mask_to_cells(x.mean(1), grid) for x in (pixels, pixels.square()))
        return (square - mean.square()).numpy()


def chance_of(images: npt.NDArray[np.uint8], grid: int, seed: int) -> Scores:
    """What decides between cells that tie: (N, C, H, W) uint8 → (N, g, g) float32 in [0, 1), by image and seed alone.

    Ties that went to the first cell would make a corner of them.
    """
    rngs = [np.random.default_rng([seed, zlib.crc32(image.tobytes())]) for image in images]
    return np.stack([rng.random((grid, grid), np.float32) for rng in rngs])
