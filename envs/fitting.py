"""Where a picture's pixels land in a square of another size: stretched, with borders, or cut; its region with it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

FITS = ("stretch", "letterbox", "crop")


def resize(image: npt.NDArray[Any], size: int | tuple[int, int]) -> npt.NDArray[Any]:
    """(H, W) uint8 or float32 → (h, w) of the same type; the aspect ratio is not kept.

    Each axis by itself: averaged over the covered area where it shrinks, interpolated linearly where it grows.

    Args:
        image: (H, W).
        size: the new side in pixels, or (h, w).
    """
    h, w = (size, size) if isinstance(size, int) else size
    old_h, old_w = image.shape
    small_h, small_w = min(h, old_h), min(w, old_w)
    if (small_h, small_w) != (old_h, old_w):
        image = cv2.resize(image, (small_w, small_h), interpolation=cv2.INTER_AREA)
    if (small_h, small_w) != (h, w):
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    return image


def resize_mask(mask: npt.NDArray[np.bool_], size: int | tuple[int, int]) -> npt.NDArray[np.bool_]:
    """(H, W) bool → (h, w) bool: a pixel is inside if more than half of it is covered.

    A mask that is not empty stays so: where no pixel is half covered, the one that is covered most is inside.
    """
    coverage = resize(mask.astype(np.float32), size)
    inside: npt.NDArray[np.bool_] = coverage > 0.5
    if not inside.any() and mask.any():
        inside[np.unravel_index(int(coverage.argmax()), coverage.shape)] = True
    return inside


def taken(shape: tuple[int, int], fit: str) -> tuple[slice, slice]:
    """The rows and columns of an (H, W) picture that are used: all, or with "crop" its middle square."""
    side = min(shape) if fit == "crop" else max(shape)
    top, left = (max(0, length - side) // 2 for length in shape)
    return slice(top, top + side), slice(left, left + side)


def placed(shape: tuple[int, int], fit: str, size: int) -> tuple[slice, slice]:
    """The rows and columns of the (size, size) result that they land on: all, or with "letterbox" its middle.

    The longer side fills the square; the shorter keeps the aspect ratio, rounded, at least one pixel.
    """
    if fit != "letterbox":
        return slice(0, size), slice(0, size)
    h, w = (max(1, round(length * size / max(shape))) for length in shape)
    return slice((size - h) // 2, (size - h) // 2 + h), slice((size - w) // 2, (size - w) // 2 + w)


def fit_plane(image: npt.NDArray[np.uint8], fit: str, size: int) -> npt.NDArray[np.uint8]:
    """(H, W) uint8 → (size, size), by `resize`; letterbox's borders are 0."""
    rows, columns = placed(image.shape, fit, size)
    result = np.zeros((size, size), np.uint8)
    inner = (rows.stop - rows.start, columns.stop - columns.start)
    result[rows, columns] = resize(image[taken(image.shape, fit)], inner)
    return result


def fit_mask(mask: npt.NDArray[np.bool_], fit: str, size: int) -> npt.NDArray[np.bool_]:
    """(H, W) bool → (size, size), by `resize_mask`, where `fit_plane` puts the same pixels.

    What lies in the used part never vanishes; a region that "crop" cuts away entirely is empty.
    """
    rows, columns = placed(mask.shape, fit, size)
    result = np.zeros((size, size), np.bool_)
    inner = (rows.stop - rows.start, columns.stop - columns.start)
    result[rows, columns] = resize_mask(mask[taken(mask.shape, fit)], inner)
    return result
