"""`load_masker`: a trained masker as a plain function, for people's own training loops. No environment is needed."""

from __future__ import annotations

import os
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskaug.agents.apga import APGA
from maskaug.agents.base import Agent, kind_of
from maskaug.agents.checkpoint import CheckpointError, read_state
from maskaug.agents.distilled import Distilled
from maskaug.agents.end_to_end import EndToEnd
from maskaug.agents.intelligent_masking import IntelligentMasking
from maskaug.agents.sb3_agent import SB3Agent
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import cells_for_area, cells_to_mask, top_cells

#: every agent whose file `load_masker` and the command line can read.
AGENTS: dict[str, type[Agent]] = {
    "APGA": APGA, "IntelligentMasking": IntelligentMasking, "Distilled": Distilled,
    "EndToEnd": EndToEnd, "SB3Agent": SB3Agent,
}  # fmt: skip


def load_agent(path: str | os.PathLike[str], env: Any = None, device: str | torch.device = "auto") -> Agent:
    """The agent that a file holds, whichever it is."""
    name = kind_of(read_state(path))
    if name not in AGENTS:
        raise CheckpointError(f"{path} holds {name or 'no agent'}; known are {', '.join(AGENTS)}")
    return AGENTS[name].load(path, env=env, device=device)


class Masker:
    """Images in, masks out: the cells that the agent scores highest, or the best patch of one that plays patches.

    Args:
        agent: a trained agent.
        area: the share to select; None takes the area (or the patch) that the agent was trained for. With an area, the
            masks of an agent that plays patches are sets of cells too.
    """

    def __init__(self, agent: Agent, area: float | None = None) -> None:
        self.agent = agent
        self._patch = area is None and agent.spec.patch_cells > 0
        grid = agent.spec.grid
        if area is not None and not 0 < area < 1:
            raise ConfigurationError(f"area={area!r} must be a share above 0 and below 1")
        self.cells = agent.spec.cells if area is None else cells_for_area(area, grid)
        if not 1 <= self.cells < grid * grid:
            raise ConfigurationError(
                f"area={area!r} must hold at least one of the {grid}×{grid} cells and not all of them"
            )

    @overload
    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]: ...

    @overload
    def __call__(self, images: Tensor) -> Tensor: ...

    def __call__(self, images: npt.NDArray[np.uint8] | Tensor) -> npt.NDArray[np.bool_] | Tensor:
        """(N, C, H, W) or (C, H, W) uint8 → (N, H, W) or (H, W) bool, 1 = selected, of the same kind and device."""
        spec = self.agent.spec
        batch = images[None] if images.ndim == 3 else images
        if self._patch:
            cells = spec.cells_of(self.agent.predict(batch, deterministic=True)[0])
        else:
            cells = top_cells(torch.from_numpy(self.agent.scores(batch)), self.cells)
        mask = cells_to_mask(cells, *spec.image_shape[1:])
        mask = mask[0] if images.ndim == 3 else mask
        return mask.to(images.device) if isinstance(images, Tensor) else mask.numpy()


def load_masker(
    path: str | os.PathLike[str], *, area: float | None = None, device: str | torch.device = "auto"
) -> Masker:
    """The masker in a file that an agent's `save`, or a run's `masker.safetensors`, holds. Executes nothing.

    Args:
        path: the safetensors file.
        area: the share of the image to select; None takes the area it was trained for.
        device: where the network runs.
    """
    return Masker(load_agent(path, device=device), area)
