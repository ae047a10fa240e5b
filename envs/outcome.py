"""What a step of a game gave."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import numpy.typing as npt
from torch import Tensor

from maskaug.envs.masking import cells_to_mask


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one step of all N slots gave; tensors are on the judge's device.

    Attributes:
        reward: (N,) float32.
        where: each (N,) int64, on the host: index, try, label, and with `steps` step.
        picture: (N,) int64, on the host: what was seen, as a number in `Pictures`, which knows how it was turned.
        terms: (N,) float32 each: area, every term of the reward; with a reconstructor also cell_error, (N, g, g), NaN
            where nothing was hidden.
        cells: (N, *rule.shape) bool, the cells that were selected.
        ended: (N,) bool on the host, the slots whose episode is over.
        hidden: (N, C, H, W) uint8, the images with the selected part hidden.
        shown: (V·N, C, H, W) uint8, the images as the judge saw them, in the order of its `views`, of which there are
            V, 1 but for objective="both": `hidden`, or the aiding views, or these after those.
    """

    reward: Tensor
    where: dict[str, npt.NDArray[np.int64]]
    picture: npt.NDArray[np.int64]
    terms: dict[str, Tensor]
    cells: Tensor
    ended: npt.NDArray[np.bool_]
    hidden: Tensor
    shown: Tensor

    @property
    def mask(self) -> Tensor:
        """(N, H, W) bool; made when asked for, since a step needs its complement only."""
        return cells_to_mask(self.cells, *self.hidden.shape[2:])

    def copy(self) -> Outcome:
        """The same, sharing no memory: what was handed out may be written into."""
        return copy.deepcopy(self)
