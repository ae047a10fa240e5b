"""Masks that nobody learnt: the other rows of every table. They have the agents' `scores` and `predict`.

Those that look into the judge are given it, and use its predicted class, never the label.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskaug.agents.agent import GridSpec
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.masking import mask_to_cells, patch_count, patch_scores, top_cells
from maskaug.envs.networks import to_float

Scores = npt.NDArray[np.float32]


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
        mean = torch.from_numpy(np.ascontiguousarray(regions).mean(0, dtype=np.float64))
        return cls(spec, mask_to_cells(mean[None], spec.grid)[0].numpy())


class InputGradient(Heuristic):
    """|input × gradient| of the judge's predicted class, summed over each cell (Shrikumar et al., arXiv 1605.01713).

    Args:
        spec: see `Heuristic`.
        judge: (N, C, H, W) float in [0, 1] → logits.
    """

    def __init__(self, spec: GridSpec, judge: nn.Module) -> None:
        super().__init__(spec)
        self._judge = judge.eval()

    def scores(self, observation: npt.NDArray[np.uint8]) -> Scores:
        """See `Heuristic.scores`."""
        device = next(self._judge.parameters()).device
        parts = []
        for chunk in torch.from_numpy(np.array(self._batch(observation))).split(64):  # type: ignore[no-untyped-call]
            images = to_float(chunk.to(device)).requires_grad_()
            logits: Tensor = self._judge(images)
            # The centred logit: the log-probability's gradient vanishes where the judge is sure.
            chosen = logits.amax(1) - logits.mean(1)
            (gradient,) = torch.autograd.grad(chosen.sum(), images)
            parts.append(mask_to_cells((images * gradient).abs().sum(1).detach(), self.spec.grid).cpu())
        return torch.cat(parts).numpy()


class LocalVariance(Heuristic):
    """The variance of each cell's pixels: what looks hard to fill in to somebody who has learnt nothing."""

    def scores(self, observation: npt.NDArray[np.uint8]) -> Scores:
        """See `Heuristic.scores`; in units of the reconstruction error, pixels in [−1, 1]."""
        pixels = 2 * to_float(torch.from_numpy(np.array(self._batch(observation))))
        grid = self.spec.grid
        mean, square = (mask_to_cells(x.mean(1), grid) for x in (pixels, pixels.square()))
        return (square - mean.square()).numpy()
