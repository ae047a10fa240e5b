"""Masks as pure, batched functions: action → cells → mask, hide, keep, area, and how much of a region a mask selects.

A mask is 1 where the agent selected, (N, H, W) bool. A grid has g×g cells; the image size is a multiple of g. Where
actions select pixels, a cell is a pixel, and cells (N, H, W) are the mask. All functions take and return torch tensors
on one device and never change their arguments.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

FILLS = ("zero", "mean", "noise", "blur")


def cells_to_mask(cells: Tensor, height: int, width: int) -> Tensor:
    """Cells (N, g, h) of any dtype → mask (N, height, width) of the same dtype; each cell becomes a block of pixels.

    Cells that are pixels are returned as they are.

    >>> cells_to_mask(torch.tensor([[[1, 0], [0, 0]]]), 4, 4).sum()
    tensor(4)
    """
    n, rows, columns = cells.shape
    if (rows, columns) == (height, width):
        return cells
    # Along the rows first, then whole rows: six times as fast as expanding both at once.
    wide = cells[:, :, :, None].expand(n, rows, columns, width // columns).reshape(n, rows, 1, width)
    return wide.expand(n, rows, height // rows, width).reshape(n, height, width)


def mask_to_cells(values: Tensor, grid: int) -> Tensor:
    """Mean of (N, H, W) over each cell → (N, g, g) float32."""
    n, h, w = values.shape
    return values.float().reshape(n, grid, h // grid, grid, w // grid).mean((2, 4))


def cell_means(values: Tensor, selected: Tensor, grid: int) -> Tensor:
    """Mean of values (N, h, w) over what is selected, (N, h, w) bool, of each of g×g cells: (N, g, g) float32.

    NaN where nothing of a cell is selected.

    >>> cell_means(torch.tensor([[[1.0, 3.0], [5.0, 7.0]]]), torch.tensor([[[True, True], [False, False]]]), 1)
    tensor([[[2.]]])
    """
    # Not a product: what is not selected may be anything, infinite too.
    total = mask_to_cells(torch.where(selected, values, 0), grid)
    return total / mask_to_cells(selected, grid)


def box_to_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (N, 4) float in [−1, 1] → mask (N, height, width) bool.

    A box is (row, column) of its centre, −1 at the top or left border and 1 at the bottom or right one, then its
    height and width, −1 for nothing and 1 for the whole image's. A pixel is selected if its middle lies in the box;
    what lies beyond the border is lost.

    >>> box_to_mask(torch.tensor([[0.0, -0.5, 0.0, -0.5]]), 4, 4).int()
    tensor([[[0, 0, 0, 0],
             [1, 0, 0, 0],
             [1, 0, 0, 0],
             [0, 0, 0, 0]]], dtype=torch.int32)
    """
    inside = []
    for axis, size in enumerate((height, width)):
        middles = (torch.arange(size, dtype=boxes.dtype, device=boxes.device) + 0.5) * (2 / size) - 1
        centre, reach = boxes[:, axis, None], (boxes[:, axis + 2, None] + 1) / 2
        inside.append((middles >= centre - reach) & (middles < centre + reach))
    return inside[0][:, :, None] & inside[1][:, None, :]


def patch_count(grid: int, patch_cells: int) -> int:
    """Number of corners at which a square of `patch_cells`² cells lies wholly inside a g×g grid.

    >>> patch_count(8, 2)
    49
    """
    return (grid - patch_cells + 1) ** 2


def patch_to_cells(actions: Tensor, grid: int, patch_cells: int) -> Tensor:
    """Corners (N,) int64, numbered row by row → cells (N, g, g) bool."""
    spans = _spans(grid, patch_cells, actions.device)
    rows, columns = spans[actions // len(spans)], spans[actions % len(spans)]
    return rows[:, :, None] & columns[:, None, :]


@functools.lru_cache(maxsize=64)
def _spans(grid: int, patch_cells: int, device: torch.device) -> Tensor:
    # Which of the g cells along a side a patch covers, by where it begins: (g − patch_cells + 1, g) bool.
    along, first = torch.arange(grid), torch.arange(grid - patch_cells + 1)[:, None]
    return ((along >= first) & (along < first + patch_cells)).to(device)


def patch_scores(cell_scores: Tensor, patch_cells: int) -> Tensor:
    """Scores per cell (N, g, g) float → mean score of each whole patch (N, patch_count)."""
    return functional.avg_pool2d(cell_scores[:, None], patch_cells, 1).flatten(1)


def top_cells(scores: Tensor, k: int) -> Tensor:
    """The k best cells of each image: scores (N, g, g) → cells (N, g, g) bool with exactly k set.

    Ties go to the first cell; agents that must not lean to a corner break ties before they call this.
    """
    flat = scores.flatten(1)
    order = flat.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True).view_as(scores)


def cells_for_area(area: float, grid: int) -> int:
    """The number of cells whose share of the image is nearest to `area`.

    >>> cells_for_area(0.25, 8)
    16
    """
    return round(area * grid * grid)


def filler(images: Tensor, fill: str, noise: Tensor | None = None) -> Tensor:
    """What is put in place of hidden pixels, (N, C, H, W) like `images` (uint8, or float in [0, 1]) or broadcastable.

    Args:
        images: (N, C, H, W).
        fill: "zero"; "mean", the image's own mean per channel; "blur", the image at an eighth of its resolution;
            "noise", the image's mean and standard deviation times `noise`.
        noise: (N, C, H, W) float, standard normal; for "noise" only. The caller owns the generator.
    """
    if fill == "zero":
        return images.new_zeros(())
    as_float = images.float()
    if fill == "mean":
        result = as_float.mean((2, 3), keepdim=True)
    elif fill == "blur":
        size = images.shape[2:]
        small = functional.interpolate(as_float, (max(2, size[0] // 8), max(2, size[1] // 8)), mode="area")
        result = functional.interpolate(small, size, mode="bilinear", align_corners=False)
    elif fill == "noise":
        if noise is None:
            raise ValueError("fill='noise' needs the noise: standard normal numbers of the images' shape")
        result = as_float.mean((2, 3), keepdim=True) + as_float.std((2, 3), keepdim=True) * noise
        result = result.clamp(0, 255 if images.dtype == torch.uint8 else 1)
    else:
        raise ValueError(f"fill={fill!r} is unknown; use one of {FILLS}")
    return result.round().to(images.dtype) if images.dtype == torch.uint8 else result.to(images.dtype)


def hide(images: Tensor, mask: Tensor, filling: Tensor) -> Tensor:
    """`images` (N, C, H, W) with the selected part, mask (N, H, W) bool, replaced by `filling`."""
    return _select(~mask, images, filling)


def keep(images: Tensor, mask: Tensor, filling: Tensor) -> Tensor:
    """The aiding view: `images` (N, C, H, W) with everything but the selected part replaced by `filling`."""
    return _select(mask, images, filling)


def _select(mask: Tensor, images: Tensor, filling: Tensor) -> Tensor:
    if filling.ndim == 0 and images.dtype == torch.uint8:
        # Zero, the only fill that is one number: a product of bytes is ten times as fast as a choice.
        return images * mask.contiguous().view(torch.uint8)[:, None]
    return torch.where(mask[:, None], images, filling)


def mask_area(mask: Tensor) -> Tensor:
    """Share of the image that each mask (N, H, W) selects, (N,) float32 in [0, 1]."""
    return mask.flatten(1).float().mean(1)


def area_price(area: Tensor, target: float) -> Tensor:
    """The two-sided price of leaving the target area, (N,) → (N,) in [0, 1].

    0 at the target, rising quadratically to 1 both at nothing and at everything, so that neither collapse of a mask
    is ever free (papers.md §1, mistake 5).

    >>> area_price(torch.tensor([0.0, 0.25, 1.0]), 0.25)
    tensor([1., 0., 1.])
    """
    below = (target - area).clamp(min=0) / target
    above = (area - target).clamp(min=0) / (1 - target)
    return below.square() + above.square()


def retention(mask: Tensor, region: Tensor) -> Tensor:
    """Share of each region (N, H, W) that the mask (N, H, W) selects, (N,) float32; NaN where the region is empty."""
    region = region.bool()
    inside = (mask.bool() & region).flatten(1).sum(1).float()
    return inside / region.flatten(1).sum(1).float()
