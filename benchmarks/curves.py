"""Deletion and insertion curves: what a ranking of cells says about a classifier that it was not learnt from.

Deletion hides the best cells first, and the steeper the probability of the class falls, the better the ranking;
insertion begins with an image of which all is hidden, and puts the best cells back first. Petsiuk et al., "RISE", BMVC
2018 (arXiv:1806.07421): theirs hide single pixels, with zeros (deletion) or a blurred image (insertion); ours hide
cells, with one filling for both. The filling decides what the classifier sees, so that a claim should hold with each of
`CURVE_FILLS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.masking import cells_to_mask, filler, hide, keep
from maskaug.envs.networks import at_once, to_float
from maskaug.envs.rows import ImageArray

#: what hidden cells become; no noise, which a curve would have to be averaged over.
CURVE_FILLS = ("zero", "mean", "blur")


@dataclasses.dataclass(frozen=True, eq=False)
class MaskingCurves:
    """The curves of one ranking, an image's being the mean over the draws of the ranking.

    Attributes:
        shares: (K,) float64 from 0 to 1, the share of the cells that are hidden (deletion) or shown (insertion).
        deletion: (N, K) float64, the probability of each image's class with its best cells hidden.
        insertion: (N, K) float64, with nothing but its best cells shown.
    """

    shares: npt.NDArray[np.float64]
    deletion: npt.NDArray[np.float64]
    insertion: npt.NDArray[np.float64]

    def aucs(self) -> dict[str, npt.NDArray[np.float64]]:
        """{"deletion", "insertion"} → (N,) the area under each image's curve (trapezoids), in [0, 1]."""
        return {name: np.asarray(np.trapezoid(each, self.shares, axis=1)) for name, each in self._curves().items()}

    def _curves(self) -> dict[str, npt.NDArray[np.float64]]:
        return {"deletion": self.deletion, "insertion": self.insertion}


def curve_aucs(
    classifier: nn.Module,
    images: ImageArray,
    rankings: Mapping[str, npt.NDArray[np.floating]],
    fill: str,
    *,
    labels: npt.NDArray[np.integer] | None = None,
    steps: int = 16,
    seed: int = 0,
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Name of a ranking → {"deletion": (N,), "insertion": (N,)}, the areas under its curves; see `masking_curves`.

    Low deletion and high insertion speak for a ranking. What they are worth shows beside the areas of random rankings
    on the same images: both depend on the classifier and the filling at least as much as on the ranking.
    """
    found = masking_curves(classifier, images, rankings, fill, labels=labels, steps=steps, seed=seed)
    return {name: curves.aucs() for name, curves in found.items()}


@torch.no_grad()
def masking_curves(
    classifier: nn.Module,
    images: ImageArray,
    rankings: Mapping[str, npt.NDArray[np.floating]],
    fill: str,
    *,
    labels: npt.NDArray[np.integer] | None = None,
    steps: int = 16,
    seed: int = 0,
) -> dict[str, MaskingCurves]:
    """The deletion and insertion curves of several rankings of the same images' cells.

    Args:
        classifier: (N, C, H, W) float in [0, 1] → logits (N, classes); not the judge that the rankings come from. It
            is asked in evaluation mode, where its weights are, and stays in the mode that it was in.
        images: (N, C, H, W) uint8.
        rankings: name → scores (N, g, g), higher = earlier; or (D, N, g, g), D draws of a ranking by chance.
        fill: what hidden cells become, one of `CURVE_FILLS`.
        labels: (N,) the class whose probability is followed; None: that which the classifier predicts of each clean
            image, as in RISE.
        steps: steps from no cell to all, of whole cells and so as equal as these allow: at most g².
        seed: of what decides between cells that tie, alike for every ranking; the first cells would be a corner.

    Returns:
        One entry for each ranking, in their order. All share what is asked of the clean and of the hidden images.

    Raises:
        ConfigurationError: an argument does not fit; nothing was computed then.
        JudgeError: the classifier returned something that is not finite.
    """
    drawn = _checked_rankings(rankings, images)
    if fill not in CURVE_FILLS:
        raise ConfigurationError(f"fill={fill!r} is not for curves; use one of {', '.join(CURVE_FILLS)}")
    if steps < 1:
        raise ConfigurationError(f"steps={steps} must be at least 1")
    if labels is not None and (
        labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0
    ):
        raise ConfigurationError(
            f"labels must be the classes, integers from 0, of {len(images)} images, or None, got {labels.dtype} of "
            f"shape {labels.shape}"
        )
    sizes = {grid: _counts(grid, steps) for grid in {ranking.shape[-1] for ranking in drawn.values()}}
    rng = {grid: np.random.default_rng([seed, grid]) for grid in sizes}
    curves = {name: np.zeros((2, len(images), len(sizes[each.shape[-1]]))) for name, each in drawn.items()}
    chunk = at_once(*images.shape[2:])
    asked = _Asked(classifier, 0 if labels is None else int(labels.max()))
    was_training = classifier.training
    classifier.eval()
    try:
        for start in range(0, len(images), chunk):
            rows = slice(start, start + chunk)
            clean = torch.from_numpy(np.array(images[rows])).to(asked.device)
            filling = filler(clean, fill)
            ties = {grid: rng[grid].random((len(clean), grid * grid)) for grid in sizes}
            given = None if labels is None else torch.from_numpy(labels[rows].astype(np.int64)).to(asked.device)
            whole, classes = asked.about(clean, given)
            nothing, _ = asked.about(filling.expand_as(clean), classes)
            for name, ranking in drawn.items():
                grid = ranking.shape[-1]
                part = curves[name][:, rows]
                # Both ends are the same for every ranking.
                part[0, :, 0] = part[1, :, -1] = whole
                part[0, :, -1] = part[1, :, 0] = nothing
                for scores in ranking[:, rows]:
                    places = torch.from_numpy(_places(scores, ties[grid])).to(asked.device)
                    for k, size in enumerate(sizes[grid][1:-1], 1):
                        mask = cells_to_mask(places < size, *clean.shape[2:])
                        for curve, view in zip(part, (hide, keep), strict=True):
                            curve[:, k] += asked.about(view(clean, mask, filling), classes)[0] / len(ranking)
    finally:
        classifier.train(was_training)
    return {
        name: MaskingCurves(np.array(sizes[drawn[name].shape[-1]]) / drawn[name].shape[-1] ** 2, *both)
        for name, both in curves.items()
    }


class _Asked:
    """A classifier's probabilities of one class of each image."""

    def __init__(self, classifier: nn.Module, last: int) -> None:
        self.classifier, self.last = classifier, last
        self.device = next((p.device for p in classifier.parameters()), torch.device("cpu"))

    def about(self, images: Tensor, classes: Tensor | None) -> tuple[npt.NDArray[np.float64], Tensor]:
        """((n,) probabilities, (n,) classes): of the classes given, or of those that are the most probable."""
        logits: Tensor = self.classifier(to_float(images))
        if logits.ndim != 2 or len(logits) != len(images) or not bool(logits.isfinite().all()):
            raise JudgeError(
                f"the classifier must return ({len(images)}, classes) finite logits, got shape {tuple(logits.shape)}; "
                "check its weights and that it takes images in [0, 1]"
            )
        if self.last >= logits.shape[1]:
            raise ConfigurationError(
                f"labels run up to {self.last}, but the classifier knows {logits.shape[1]} classes, from 0"
            )
        if classes is None:
            classes = logits.argmax(1)
        probabilities = logits.double().softmax(1).gather(1, classes[:, None])[:, 0]
        return probabilities.cpu().numpy(), classes


def _checked_rankings(
    rankings: Mapping[str, npt.NDArray[np.floating]], images: ImageArray
) -> dict[str, npt.NDArray[np.floating]]:
    # Name → (D, N, g, g).
    if not rankings or not len(images):
        raise ConfigurationError("curves need at least one ranking and one image")
    n, _, height, width = images.shape
    result = {}
    for name, ranking in rankings.items():
        scores = ranking[None] if ranking.ndim == 3 else ranking
        if scores.ndim != 4 or len(scores) < 1 or scores.shape[1] != n or scores.shape[2] != scores.shape[3]:
            raise ConfigurationError(
                f"ranking {name!r} must be (N, g, g), or (draws, N, g, g), of {n} images, got {ranking.shape}"
            )
        if not scores.shape[3] or height % scores.shape[3] or width % scores.shape[3]:
            raise ConfigurationError(
                f"ranking {name!r} has {scores.shape[3]} cells a side, which does not divide images of {height}×{width}"
            )
        if not np.isfinite(scores).all():
            raise ConfigurationError(f"ranking {name!r} has scores that are not finite, and these have no place in it")
        result[name] = scores
    return result


def _counts(grid: int, steps: int) -> list[int]:
    # How many cells are masked at each point of a curve, from none to all.
    cells = grid * grid
    return [int(count) for count in np.unique(np.round(np.linspace(0, cells, steps + 1)))]


def _places(scores: npt.NDArray[np.floating], ties: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    # (n, g, g) → the same shape: each cell's place in its image's ranking, from 0 for the best.
    order = np.lexsort((ties, -scores.reshape(ties.shape)), axis=1)
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.broadcast_to(np.arange(ties.shape[1]), ties.shape), axis=1)
    return places.reshape(scores.shape)
