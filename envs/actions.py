"""Actions as users and algorithms send them → cells of the grid; anything else is refused before it can do harm."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from maskaug.envs.errors import ConfigurationError, InvalidAction
from maskaug.envs.masking import cells_for_area, patch_count, patch_to_cells

ACTIONS = ("grid", "patch")


class ActionRule:
    """What an action means: its space, its check, and the cells it selects.

    Attributes:
        kind: "grid", any set of cells, or "patch", a whole square of `patch_cells`² cells.
        grid: g.
        patch_cells: side of a patch in cells ("patch" only).
        area: the share of the image to select; for a patch it follows from `patch_cells`.
        price: the weight of the two-sided price of leaving `area` ("grid" only; 0 for patches).
        cells: number of cells of that area.
        space: the Gymnasium space of one action.
    """

    def __init__(
        self,
        kind: str,
        grid: int,
        image_size: tuple[int, int],
        area: float | None,
        area_price: float | None,
        patch_cells: int | None,
    ) -> None:
        if kind not in ACTIONS:
            raise ConfigurationError(f"action={kind!r} is unknown; use one of {ACTIONS}")
        if not isinstance(grid, int) or grid < 2:
            raise ConfigurationError(f"grid={grid!r} must be an integer of at least 2")
        if image_size[0] % grid or image_size[1] % grid:
            raise ConfigurationError(
                f"grid={grid} does not divide the image size {image_size[0]}×{image_size[1]} evenly; choose a grid "
                "that does, or another image_size"
            )
        self.kind, self.grid = kind, grid
        self.space: gym.Space[Any]
        if kind == "patch":
            if area is not None or area_price is not None:
                raise ConfigurationError(
                    "area and area_price do not go with action='patch', whose area follows from patch_cells; give "
                    "patch_cells alone, or use action='grid'"
                )
            self.patch_cells = 2 if patch_cells is None else patch_cells
            if not isinstance(self.patch_cells, int) or not 1 <= self.patch_cells < grid:
                raise ConfigurationError(
                    f"patch_cells={patch_cells!r} must be an integer from 1 to grid − 1 = {grid - 1}"
                )
            self.area, self.price = self.patch_cells**2 / grid**2, 0.0
            self.space = spaces.Discrete(patch_count(grid, self.patch_cells))
        else:
            if patch_cells is not None:
                raise ConfigurationError("patch_cells goes with action='patch'; with action='grid' give area")
            self.patch_cells = 0
            self.area = 0.25 if area is None else area
            self.price = 1.0 if area_price is None else area_price
            possible = is_number(self.area) and 0 < self.area < 1
            if not possible or not 1 <= cells_for_area(self.area, grid) < grid * grid:
                raise ConfigurationError(
                    f"area={area!r} must be a share above 0 and below 1 that is at least one of the {grid}×{grid} "
                    "cells and not all of them"
                )
            if not is_number(self.price) or self.price < 0:
                raise ConfigurationError(f"area_price={area_price!r} must be a finite number ≥ 0")
            self.space = spaces.MultiBinary(grid * grid)
        self.cells = cells_for_area(self.area, grid)

    def to_cells(self, actions: object, num_envs: int | None) -> Tensor:
        """Actions of all environments → cells (N, g, g) bool.

        Args:
            actions: (N, g·g) of zeros and ones for "grid"; (N,) whole numbers for "patch". Any integer or float type
                will do as long as the values are these (PPO sends float32 for MultiBinary).
            num_envs: N; None: `actions` is one action, without the batch's axis, and N is 1.

        Raises:
            InvalidAction: another shape, another type, or a value outside the space.
        """
        batch = () if num_envs is None else (num_envs,)
        array = _as_numbers(actions, (*batch, self.grid**2) if self.kind == "grid" else batch)
        if self.kind == "grid":
            chosen = array != 0
            if not (array == chosen).all():
                raise InvalidAction(
                    f"a grid action holds only 0 and 1, got {_offender(array, (array != 0) & (array != 1))}"
                )
            return torch.from_numpy(chosen).reshape(-1, self.grid, self.grid)
        assert isinstance(self.space, spaces.Discrete)
        count = int(self.space.n)
        bad = ~((array >= 0) & (array < count)) | (array != np.floor(array))
        if bad.any():
            raise InvalidAction(f"a patch action is a whole number from 0 to {count - 1}, got {_offender(array, bad)}")
        return patch_to_cells(torch.as_tensor(array.astype(np.int64)).reshape(-1), self.grid, self.patch_cells)


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _as_numbers(actions: object, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        if isinstance(actions, Tensor):
            # numpy has no bfloat16, and double holds every floating type's values.
            tensor = actions.detach().cpu()
            actions = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
        array = np.asarray(actions)
    except Exception as error:  # whatever an object's own conversion raises, the answer is the same
        raise InvalidAction(
            f"an action must be an array of numbers of shape {shape}, got {actions!r:.80} ({error})"
        ) from None
    if array.dtype.kind not in "biuf":
        raise InvalidAction(
            f"an action must be an array of numbers of shape {shape}, got {array.dtype} ({actions!r:.80})"
        )
    if array.shape != shape:
        raise InvalidAction(f"the action must have shape {shape}, got {array.shape}")
    return array


def _offender(array: npt.NDArray[Any], bad: npt.NDArray[np.bool_]) -> str:
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"{array[at]!r} at position {at}"
