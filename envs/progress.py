"""How far the episodes of several masks are: what is selected, what that is worth, and the images without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Progress:
    """The episodes of N slots, each of `steps` masks; where that is 1, nothing but the number of masks is kept.

    Args:
        num_envs: N.
        steps: masks an episode.
        cells: the shape of a selection, `ActionRule.shape`.
        image: (C, H, W).
        device: where masks are judged.

    Attributes:
        step: (N,) int64, on the host: masks so far.
        selected: (N, *cells) bool, what they have selected.
        worth: (N,) float32, what all of them together are worth.
        seen: (N, C, H, W) uint8, the images without what is selected; with steps=1 of no slot.
    """

    def __init__(
        self, num_envs: int, steps: int, cells: tuple[int, ...], image: tuple[int, ...], device: torch.device
    ) -> None:
        self.steps, self.device = steps, device
        self.step = np.zeros(num_envs, np.int64)
        self.selected = torch.zeros(num_envs, *cells, dtype=torch.bool, device=device)
        self.worth = torch.zeros(num_envs, device=device)
        self.seen = torch.zeros(num_envs if steps > 1 else 0, *image, dtype=torch.uint8, device=device)

    @property
    def last(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the mask to come is the last of its episode."""
        return np.equal(self.step + 1, self.steps)

    def begin(self, slots: npt.NDArray[np.bool_]) -> None:
        """New episodes of these slots, (N,) bool."""
        self.step[slots] = 0
        if self.steps > 1:
            left = torch.from_numpy(slots).to(self.device)
            self.selected = self.selected & ~left[:, None, None]
            self.worth = self.worth.masked_fill(left, 0)

    def joined(self, cells: Tensor) -> Tensor:
        """Cells (N, *cells) bool that come on top of what is selected."""
        return cells | self.selected if self.steps > 1 else cells

    def remaining(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8, a copy: the `images`, without what is selected where an episode is under way."""
        if self.steps == 1:
            return images.clone()
        under_way = torch.from_numpy(self.step > 0).to(self.device)
        return torch.where(under_way[:, None, None, None], self.seen, images)

    def add(self, cells: Tensor, worth: Tensor, hidden: Tensor) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """One more mask of every slot was judged.

        Args:
            cells: (N, *cells) bool, all that is selected now.
            worth: (N,), what that is worth.
            hidden: (N, C, H, W) uint8, the images without it.

        Returns:
            (N,), what the mask has added to the worth; and (N,) bool, whose episode is over.
        """
        self.step += 1
        # Copies: what is handed out may be written into.
        reward = worth - self.worth if self.steps > 1 else worth.clone()
        if self.steps > 1:
            self.selected, self.worth, self.seen = cells, worth.clone(), hidden.clone()
        return reward, np.equal(self.step, self.steps)

    def state(self) -> dict[str, Any]:
        """All of it, copied."""
        return {
            "step": self.step.copy(),
            "selected": self.selected.clone(),
            "worth": self.worth.clone(),
            "seen": self.seen.clone(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave, of as many slots."""
        self.step[:] = state["step"]
        self.selected, self.worth, self.seen = (
            torch.as_tensor(state[name], device=self.device).clone() for name in ("selected", "worth", "seen")
        )
