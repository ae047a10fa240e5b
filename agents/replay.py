"""A memory of what was hidden where and what came of it: picture numbers and actions, never frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskaug.envs.masking import patch_to_cells


class Replay:
    """The last transitions of a one-step game, in a ring.

    A transition is a picture's number (see `maskaug.envs.pictures.Pictures`; it says how the image was turned) and the
    errors of its hidden cells. For a patch these are the corner and `patch_cells`² numbers, 14 bytes in all with 2×2
    cells: a million of them need 14 MB, where the frames would need 4 GB at 64×64. For sets of cells all g·g numbers
    are kept, NaN where nothing was hidden. Half precision: three digits of an error are more than its noise leaves.

    Args:
        capacity: transitions that are kept.
        grid: g.
        patch_cells: side of a patch in cells; 0 for sets of cells.
    """

    def __init__(self, capacity: int, grid: int, patch_cells: int) -> None:
        self.capacity, self.grid, self.patch_cells = capacity, grid, patch_cells
        self._index = np.zeros(capacity, np.int32)
        self._corner = np.zeros(capacity if patch_cells else 0, np.int16)
        self._errors = np.zeros((capacity, patch_cells**2 or grid**2), np.float16)
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of a full memory, all of which are taken from the start."""
        return self._index.nbytes + self._corner.nbytes + self._errors.nbytes

    def add(self, index: npt.NDArray[np.int64], errors: npt.NDArray[np.float32], corner: npt.NDArray[np.int64]) -> None:
        """Keep N transitions; the oldest make room.

        Args:
            index: (N,) numbers of the pictures.
            errors: (N, g, g), NaN where nothing was hidden; kept up to 65 504, the largest number of half precision.
            corner: (N,) the patches' corners; not looked at with sets of cells.
        """
        n = len(index)
        errors = np.minimum(errors, np.float32(np.finfo(np.float16).max))
        at = (self._added + np.arange(n)) % self.capacity
        self._index[at] = index
        if self.patch_cells:
            self._corner[at] = corner
            hidden = patch_to_cells(torch.from_numpy(corner), self.grid, self.patch_cells).numpy()
            self._errors[at] = errors[hidden].reshape(n, -1)
        else:
            self._errors[at] = errors.reshape(n, -1)
        self._added += n

    def sample(self, n: int, generator: torch.Generator) -> tuple[npt.NDArray[np.int64], Tensor]:
        """Draw n of them, with replacement: numbers (n,) and errors (n, g, g), NaN where nothing was hidden."""
        at = torch.randint(len(self), (n,), generator=generator).numpy()
        kept = torch.from_numpy(self._errors[at]).float()
        if self.patch_cells:
            hidden = patch_to_cells(torch.from_numpy(self._corner[at]).long(), self.grid, self.patch_cells)
            # In the order in which they were taken: row by row within each image.
            errors = torch.full(hidden.shape, torch.nan).masked_scatter_(hidden, kept)
        else:
            errors = kept.reshape(n, self.grid, self.grid)
        return self._index[at].astype(np.int64), errors

    def state(self) -> dict[str, Any]:
        """What `load_state` needs; only the part that is filled."""
        n = len(self)
        return {
            "index": self._index[:n].copy(),
            "corner": self._corner[:n].copy(),
            "errors": self._errors[:n].copy(),
            "added": self._added,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave, into a memory made with the same arguments."""
        n = len(state["index"])
        self._index[:n], self._corner[:n], self._errors[:n] = state["index"], state["corner"], state["errors"]
        self._added = state["added"]
