"""|∂ logit ÷ ∂ pixel|, averaged over judges and mirrored views: what moves their answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskaug.agents.agent import GridSpec
from maskaug.agents.heuristics import Heuristic, Scores
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import mask_to_cells
from maskaug.envs.networks import to_float


class Gradient(Heuristic):
    """|gradient| of the predicted class (Simonyan et al., arXiv 1312.6034), of one judge or averaged over several.

    Args:
        spec: see `Heuristic`.
        judges: at least one, (N, C, H, W) float in [0, 1] → logits.
        mirror: average the maps of both mirrored views.
    """

    def __init__(self, spec: GridSpec, judges: Sequence[nn.Module], mirror: bool = True) -> None:
        super().__init__(spec)
        if not judges:
            raise ConfigurationError("a gradient needs a judge, and none was given; give judges=[judge]")
        self._judges = [judge.eval() for judge in judges]
        self._mirror = mirror

    def scores(self, observation: npt.NDArray[np.uint8]) -> Scores:
        """See `Heuristic.scores`."""
        device = next((p.device for p in self._judges[0].parameters()), torch.device("cpu"))
        images = torch.from_numpy(np.array(self._batch(observation))).to(device)
        parts = [
            gradient_map(self._judges, chunk, self.spec.grid, mirror=self._mirror).cpu()
            for chunk in images.split(64)  # type: ignore[no-untyped-call]
        ]
        return torch.cat(parts).numpy()


def gradient_map(judges: Sequence[nn.Module] | nn.ModuleList, images: Tensor, grid: int, *, mirror: bool) -> Tensor:
    """Mean over judges (and mirrored views) of |∂ centred logit of the predicted class ÷ ∂ pixel|, (N, g, g) float32.

    Each judge's map of an image is divided by its mean first: judges differ in how steep they are.

    Args:
        judges: (N, C, H, W) float in [0, 1] → logits.
        images: (N, C, H, W) uint8.
        grid: g.
        mirror: average the maps of both mirrored views.
    """
    total = torch.zeros(len(images), grid, grid, device=images.device)
    for judge in judges:
        for flip in (False, True) if mirror else (False,):
            inputs = to_float(images.flip(-1) if flip else images).requires_grad_()
            with torch.enable_grad():
                logits = judge(inputs)
                # The centred logit: the log-probability's gradient vanishes where the judge is sure.
                (gradient,) = torch.autograd.grad((logits.amax(1) - logits.mean(1)).sum(), inputs)
            maps = mask_to_cells(gradient.abs().sum(1), grid)
            maps = maps / maps.mean((1, 2), keepdim=True).clamp(min=1e-12)
            total += maps.flip(-1) if flip else maps
    return total / (len(judges) * (1 + mirror))
