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
from maskaug.envs.masking import box_to_mask, cells_for_area, patch_count, patch_to_cells

ACTIONS = ("grid", "patch", "pixel", "box")


class ActionRule:
    """What an action means: its space, its check, and the cells it selects.

    Attributes:
        kind: "grid", any set of cells; "patch", a whole square of `patch_cells`² cells; "pixel", any set of pixels;
            or "box", a rectangle.
        grid: g.
        shape: what a selection is made of: (g, g) cells, or (H, W) where a cell is a pixel.
        patch_cells: side of a patch in cells ("patch" only).
        area: the share of the image to select; for a patch it follows from `patch_cells`.
        price: the weight of the two-sided price of leaving `area` (0 for patches, which cannot).
        cells: number of cells of the grid of that area.
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
        self.shape = image_size if kind in ("pixel", "box") else (grid, grid)
        if kind == "patch":
            self._set_patch(area, area_price, patch_cells)
        else:
            self._set_area(area, area_price, patch_cells)
        self.cells = cells_for_area(self.area, grid)
        self.space: gym.Space[Any]
        if kind == "patch":
            self.space = spaces.Discrete(patch_count(grid, self.patch_cells))
        elif kind == "grid":
            self.space = spaces.MultiBinary(grid * grid)
        else:
            self.space = spaces.Box(-1, 1, image_size if kind == "pixel" else (4,), np.float32)

    def _set_patch(self, area: float | None, area_price: float | None, patch_cells: int | None) -> None:
        if area is not None or area_price is not None:
            raise ConfigurationError(
                "area and area_price do not go with action='patch', whose area follows from patch_cells; give "
                "patch_cells alone, or use another action"
            )
        self.patch_cells = 2 if patch_cells is None else patch_cells
        if not isinstance(self.patch_cells, int) or not 1 <= self.patch_cells < self.grid:
            raise ConfigurationError(
                f"patch_cells={patch_cells!r} must be an integer from 1 to grid − 1 = {self.grid - 1}"
            )
        self.area, self.price = self.patch_cells**2 / self.grid**2, 0.0

    def _set_area(self, area: float | None, area_price: float | None, patch_cells: int | None) -> None:
        if patch_cells is not None:
            raise ConfigurationError(f"patch_cells goes with action='patch'; with action={self.kind!r} give area")
        self.patch_cells = 0
        self.area = 0.25 if area is None else area
        self.price = 1.0 if area_price is None else area_price
        possible = is_number(self.area) and 0 < self.area < 1
        if not possible or not 1 <= cells_for_area(self.area, self.grid) < self.grid**2:
            raise ConfigurationError(
                f"area={area!r} must be a share above 0 and below 1 that is at least one of the {self.grid}×"
                f"{self.grid} cells and not all of them"
            )
        if not is_number(self.price) or self.price < 0:
            raise ConfigurationError(f"area_price={area_price!r} must be a finite number ≥ 0")

    def to_cells(self, actions: object, num_envs: int | None) -> Tensor:
        """Actions of all environments → cells (N, *shape) bool.

        Args:
            actions: (N, g·g) of zeros and ones for "grid"; (N,) whole numbers for "patch"; (N, H, W) from −1 to 1 for
                "pixel", selected where above 0; (N, 4) from −1 to 1 for "box", see `box_to_mask`. Any integer or float
                type will do as long as the values are these (PPO sends float32 for MultiBinary).
            num_envs: N; None: `actions` is one action, without the batch's axis, and N is 1.

        Raises:
            InvalidAction: another shape, another type, or a value outside the space.
        """
        one = {"grid": (self.grid**2,), "patch": (), "pixel": self.shape, "box": (4,)}[self.kind]
        array = _as_numbers(actions, one if num_envs is None else (num_envs, *one))
        if self.kind == "grid":
            chosen = array != 0
            if not (array == chosen).all():
                raise InvalidAction(
                    f"a grid action holds only 0 and 1, got {_offender(array, (array != 0) & (array != 1))}"
                )
            return torch.from_numpy(chosen).reshape(-1, self.grid, self.grid)
        if self.kind == "patch":
            count = patch_count(self.grid, self.patch_cells)
            bad = ~((array >= 0) & (array < count)) | (array != np.floor(array))
            if bad.any():
                raise InvalidAction(
                    f"a patch action is a whole number from 0 to {count - 1}, got {_offender(array, bad)}"
                )
            return patch_to_cells(torch.as_tensor(array.astype(np.int64)).reshape(-1), self.grid, self.patch_cells)
        # Not the absolute value: that of the smallest byte is negative.
        bad = ~((array >= -1) & (array <= 1))
        if bad.any():
            raise InvalidAction(f"a {self.kind} action holds numbers from −1 to 1, got {_offender(array, bad)}")
        if self.kind == "pixel":
            return torch.from_numpy(array > 0).reshape(-1, *self.shape)
        return box_to_mask(torch.from_numpy(array.astype(np.float32)).reshape(-1, 4), *self.shape)


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
