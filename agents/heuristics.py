"""Masks that nobody learnt: the other rows of every table. They have the agents' `scores` and `predict`.

Those that look into the judge are given it, and use its predicted class, never the label.
"""

from __future__ import annotations

import copy
import math
import zlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskaug.agents.agent import GridSpec
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.densenet import DenseNet169
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.masking import mask_to_cells, patch_count, patch_scores, top_cells
from maskaug.envs.networks import SmallClassifier, to_float
from maskaug.envs.rows import blocks

Scores = npt.NDArray[np.float32]
#: of Cutout's rectangles, height ÷ width.
ASPECTS = (0.3, 3.3)
#: where our own judges keep their last feature maps. DenseNet's are read after the ReLU: its `features` end in a norm.
LAYERS: dict[type[nn.Module], str] = {SmallClassifier: "trunk", DenseNet169: "net.class_layers.relu"}


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
                "Cutout draws rectangles of many shapes, and this game's masks are all squares of "
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
        device = _device_of(self._judge)
        parts = []
        for chunk in torch.from_numpy(np.array(self._batch(observation))).split(64):  # type: ignore[no-untyped-call]
            images = to_float(chunk.to(device)).requires_grad_()
            logits: Tensor = self._judge(images)
            # The centred logit: the log-probability's gradient vanishes where the judge is sure.
            chosen = logits.amax(1) - logits.mean(1)
            (gradient,) = torch.autograd.grad(chosen.sum(), images)
            parts.append(mask_to_cells((images * gradient).abs().sum(1).detach(), self.spec.grid).cpu())
        return torch.cat(parts).numpy()


class GradCAM(Heuristic):
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391) of the judge's predicted class, by MONAI; cells take their mean.

    The feature maps of one layer, each weighted by the mean gradient of the predicted class's logit in it, summed and
    cut off below 0; bilinear to the image's size. MONAI's normalising turns its map upside down by default (the largest
    value becomes 0 and the smallest 1), which is switched off here: higher is what speaks for the class. Instead each
    image's map is divided by its largest value, if that is not 0.

    Where cells tie (all do where nothing speaks for the class) chance decides, by a number that depends on `seed` and
    the image alone: ties that went to the first cell would make a corner of them.

    MONAI leaves hooks and gradients behind in the network that it is given, so it gets a copy for each call.

    Args:
        spec: see `Heuristic`.
        judge: (N, C, H, W) float in [0, 1] → logits.
        layer: the module, by its name in `judge.named_modules()`, whose output (N, F, h, w) is read; may be left out
            for the judges in `LAYERS`.
        seed: of what decides between cells that tie.
    """

    def __init__(self, spec: GridSpec, judge: nn.Module, layer: str | None = None, seed: int = 0) -> None:
        super().__init__(spec)
        self._judge = judge.eval()
        self._layer = _feature_layer(judge, layer, spec.image_shape)
        self._seed = seed

    def scores(self, observation: npt.NDArray[np.uint8]) -> Scores:
        """See `Heuristic.scores`; from 0 to 1, and a millionth for ties.

        Raises:
            JudgeError: the map is not finite.
        """
        # Not at the top: MONAI takes a second to import.
        from monai.visualize.class_activation_maps import GradCAM as MonaiGradCAM

        batch = self._batch(observation)
        judge = copy.deepcopy(_Predicted(self._judge)).requires_grad_(False)
        for module in judge.modules():
            if getattr(module, "inplace", False):
                setattr(module, "inplace", False)  # noqa: B010 (a module's attributes are typed as tensors)
        monai = MonaiGradCAM(judge, f"judge.{self._layer}", postprocessing=lambda maps: maps)
        device = _device_of(judge)
        parts = []
        for chunk in torch.from_numpy(np.array(batch)).split(64):  # type: ignore[no-untyped-call]
            # The one class there is: with no class given, MONAI sums each image's logits of all images' classes.
            with torch.enable_grad():
                maps: Tensor = monai(to_float(chunk.to(device)).requires_grad_(), class_idx=0)
            parts.append(mask_to_cells(maps.detach()[:, 0], self.spec.grid).cpu())
        cells = torch.cat(parts)
        if not bool(cells.isfinite().all()):
            raise JudgeError(
                "Grad-CAM's map is not finite; check the judge's weights and that it takes images in [0, 1]"
            )
        largest = cells.amax((1, 2), keepdim=True)
        cells = torch.where(largest > 0, cells / torch.where(largest > 0, largest, 1), 0)
        chance: Scores = np.stack([self._chance(image) for image in batch])
        scores: Scores = cells.numpy() + np.float32(1e-6) * chance
        return scores

    def _chance(self, image: npt.NDArray[np.uint8]) -> Scores:
        rng = np.random.default_rng([self._seed, zlib.crc32(image.tobytes())])
        return rng.random((self.spec.grid, self.spec.grid), np.float32)


def _device_of(judge: nn.Module) -> torch.device:
    return next((p.device for p in judge.parameters()), torch.device("cpu"))


class _Predicted(nn.Module):
    """The logit of the class that a judge predicts, (N, 1)."""

    def __init__(self, judge: nn.Module) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.judge(images)
        return logits.max(1, keepdim=True).values


def _feature_layer(judge: nn.Module, layer: str | None, image_shape: tuple[int, int, int]) -> str:
    known = dict(judge.named_modules())
    named = f"give layer=, the name of the module with the last feature maps, one of {', '.join(list(known)[-12:])}"
    if layer is None:
        layer = next((name for kind, name in LAYERS.items() if isinstance(judge, kind)), None)
        if layer is None:
            raise ConfigurationError(f"Grad-CAM does not know the layers of {type(judge).__name__}; {named}")
    if not layer or layer not in known:
        raise ConfigurationError(f"{type(judge).__name__} has no layer {layer!r}; {named}")
    seen: list[Any] = []
    handle = known[layer].register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            judge(torch.zeros(1, *image_shape, device=_device_of(judge)))
    finally:
        handle.remove()
    if not seen or not isinstance(seen[0], Tensor) or seen[0].ndim != 4:
        got = "was not reached" if not seen else f"returns {tuple(getattr(seen[0], 'shape', ())) or type(seen[0])}"
        raise ConfigurationError(f"layer {layer!r} {got}, and Grad-CAM reads feature maps (N, F, h, w); {named}")
    return layer


class LocalVariance(Heuristic):
    """The variance of each cell's pixels: what looks hard to fill in to somebody who has learnt nothing."""

    def scores(self, observation: npt.NDArray[np.uint8]) -> Scores:
        """See `Heuristic.scores`; in units of the reconstruction error, pixels in [−1, 1]."""
        pixels = 2 * to_float(torch.from_numpy(np.array(self._batch(observation))))
        grid = self.spec.grid
        mean, square = (mask_to_cells(x.mean(1), grid) for x in (pixels, pixels.square()))
        return (square - mean.square()).numpy()
