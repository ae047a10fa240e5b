"""Masks from looking into the judge: |input × gradient| and Grad-CAM, heuristics like all others.

They are given the judge, and use its predicted class, never the label.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskaug.agents.agent import GridSpec
from maskaug.agents.heuristics import Heuristic, Scores, chance_of
from maskaug.envs.densenet import DenseNet169
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.masking import mask_to_cells
from maskaug.envs.networks import SmallClassifier, to_float

#: where our own judges keep their last feature maps. DenseNet's are read after the ReLU: its `features` end in a norm.
LAYERS: dict[type[nn.Module], str] = {SmallClassifier: "trunk", DenseNet169: "net.class_layers.relu"}


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
        scores: Scores = cells.numpy() + np.float32(1e-6) * chance_of(batch, self.spec.grid, self._seed)
        return scores


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
