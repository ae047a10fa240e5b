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

Array = npt.NDArray[Any] | Tensor
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
        if not isinstance(self.patch_cells, int) or self.patch_cells is True or not 1 <= self.patch_cells < self.grid:
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
        if not possible or (self.kind == "grid" and not 1 <= cells_for_area(self.area, self.grid) < self.grid**2):
            raise ConfigurationError(
                f"area={area!r} must be a share above 0 and below 1; with action='grid' at least one of the "
                f"{self.grid}×{self.grid} cells and not all of them"
            )
        if not is_number(self.price) or self.price < 0:
            raise ConfigurationError(f"area_price={area_price!r} must be a finite number ≥ 0")

    def to_cells(self, actions: object, num_envs: int | None, *, tensors: bool = False) -> Tensor:
        """Actions of all environments → cells (N, *shape) bool.

        Args:
            actions: (N, g·g) of zeros and ones for "grid"; (N,) whole numbers for "patch"; (N, H, W) from −1 to 1 for
                "pixel", selected where above 0; (N, 4) from −1 to 1 for "box", see `box_to_mask`. Any integer or float
                type will do as long as the values are these (PPO sends float32 for MultiBinary).
            num_envs: N; None: `actions` is one action, without the batch's axis, and N is 1.
            tensors: a tensor stays on its device; all else, and everything without it, ends on the host.

        Raises:
            InvalidAction: another shape, another type, or a value outside the space.
        """
        one = {"grid": (self.grid**2,), "patch": (), "pixel": self.shape, "box": (4,)}[self.kind]
        shape = one if num_envs is None else (num_envs, *one)
        array = _as_tensor(actions, shape) if tensors and isinstance(actions, Tensor) else _as_array(actions, shape)
        if self.kind == "grid":
            self._check((array == 0) | (array == 1), array, "holds only 0 and 1")
            return _tensor(array != 0).reshape(-1, self.grid, self.grid)
        if self.kind == "patch":
            count = patch_count(self.grid, self.patch_cells)
            good = (array >= 0) & (array < count) & _is_whole(array)
            self._check(good, array, f"is a whole number from 0 to {count - 1}")
            return patch_to_cells(_tensor(array, torch.int64).reshape(-1), self.grid, self.patch_cells)
        # Not the absolute value: that of the smallest byte is negative.
        self._check((array >= -1) & (array <= 1), array, "holds numbers from −1 to 1")
        if self.kind == "pixel":
            return _tensor(array > 0).reshape(-1, *self.shape)
        return box_to_mask(_tensor(array, torch.float32).reshape(-1, 4), *self.shape)

    def _check(self, good: Any, array: Array, words: str) -> None:
        if not bool(good.all()):
            raise InvalidAction(f"a {self.kind} action {words}, got {_offender(array, good)}")


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _as_array(actions: object, shape: tuple[int, ...]) -> npt.NDArray[Any]:
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
    _check_shape(array.shape, shape)
    return array


def _as_tensor(actions: Tensor, shape: tuple[int, ...]) -> Tensor:
    if actions.is_complex() or actions.layout != torch.strided or actions.device.type == "meta":
        raise InvalidAction(f"an action must be numbers of shape {shape}, got {actions!r:.80}")
    _check_shape(tuple(actions.shape), shape)
    # The rarer unsigned types have no comparisons; every value of an action is exact in the wider ones.
    if actions.dtype in (torch.uint16, torch.uint32, torch.uint64):
        actions = actions.long()
    return actions.detach()


def _check_shape(got: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if got != shape:
        raise InvalidAction(f"the action must have shape {shape}, got {got}")


def _is_whole(array: Array) -> Any:
    if isinstance(array, Tensor):
        return array == array.floor() if array.is_floating_point() else torch.ones_like(array, dtype=torch.bool)
    return array == np.floor(array)


def _tensor(array: Array, dtype: torch.dtype = torch.bool) -> Tensor:
    if isinstance(array, Tensor):
        return array.to(dtype)
    # By numpy: it knows types that torch does not.
    return torch.from_numpy(array.astype({torch.bool: "?", torch.int64: "i8", torch.float32: "f4"}[dtype]))


def _offender(array: Array, good: Any) -> str:
    values, bad = (x.cpu().numpy() if isinstance(x, Tensor) else x for x in (_printable(array), ~good))
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"{values[at]!r} at position {at}"


def _printable(array: Array) -> Array:
    return array.double() if isinstance(array, Tensor) and array.is_floating_point() else array
