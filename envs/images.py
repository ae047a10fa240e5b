"""Reading one picture safely: a file → uint8 grey or a bool mask, or an `ImageError` naming the file and the cause."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from maskaug.envs.errors import ImageError

#: More pixels than this are refused before anything is decoded.
MAX_PIXELS = 64_000_000
#: Fewer pixels a side than this cannot be an image to learn from.
MIN_SIDE = 8

# Only these are tried: Pillow's other formats start external programs (EPS) or are never medical pictures.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
_DEEP = ("I", "F")

StrPath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a picture becomes an array.

    Attributes:
        size: S, height and width in pixels.
        channels: 1 (grey) or 3 (the picture's colours; grey repeated).
        fit: how a picture that is not square becomes so: "stretch", "letterbox" (all of it, with black borders), or
            "crop" (its middle).
        window: of more than 8 bits a channel, the values that become 0 and 255: (low, high), or "minmax"; None: such
            a picture is refused, unless it is a DICOM file, whose own window is taken.
        frame: of an animated or multi-page file, the one to read; None: such a file is refused.
        max_pixels: more than this are refused before decoding.
    """

    size: int
    channels: int = 1
    fit: str = "stretch"
    window: str | tuple[float, float] | None = None
    frame: int | None = None
    max_pixels: int = MAX_PIXELS


def read_fitted(path: StrPath, reading: Reading) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """One picture as `reading` says, (channels, S, S) uint8, and its own (H, W), upright, before it was fitted.

    Raises:
        ImageError: see `read_grey`.
    """
    mode = "L" if reading.channels == 1 else "RGB"
    image = np.atleast_3d(np.array(_opaque(_decode(path, reading.max_pixels, deep=False)).convert(mode), np.uint8))
    h, w, c = image.shape
    return np.stack([resize(np.ascontiguousarray(image[..., i]), reading.size) for i in range(c)]), (h, w)


def fit_region(mask: npt.NDArray[np.bool_], reading: Reading) -> npt.NDArray[np.bool_]:
    """A picture's region, (H, W) bool → (S, S), where `read_fitted` puts its pixels."""
    return resize_mask(mask, reading.size)


def read_grey(path: StrPath, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """One ordinary picture (PNG, JPEG, TIFF, BMP, GIF, WebP) as grey values.

    Colour becomes luma (ITU-R 601: 0.299 R + 0.587 G + 0.114 B; equal channels keep their value), palettes and CMYK go
    through RGB, one bit becomes 0 and 255, transparency is laid on black. The EXIF orientation is applied.

    Args:
        path: the file.
        max_pixels: height × width above this is refused before decoding.

    Returns:
        (H, W) uint8, H and W at least 8, contiguous and writable.

    Raises:
        ImageError: missing, empty, truncated or damaged file; not a picture; animated or of several pages; more than
            eight bits a channel; too small or too large.
    """
    image = _decode(path, max_pixels, deep=False)
    return np.array(_opaque(image).convert("L"), np.uint8)


def read_mask(path: StrPath, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.bool_]:
    """One mask file: True wherever any channel is not zero (0/1, 0/255 and 16-bit masks alike; transparent is False).

    Args:
        path: the file, in any of `read_grey`'s formats but JPEG, which does not keep zeros.
        max_pixels: height × width above this is refused before decoding.

    Returns:
        (H, W) bool.

    Raises:
        ImageError: as `read_grey`, and for a JPEG.
    """
    image = _opaque(_decode(path, max_pixels, deep=True))
    values = np.asarray(image)
    inside: npt.NDArray[np.bool_] = np.not_equal(values if values.ndim == 2 else values.max(axis=2), 0)
    return inside


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


def _decode(path: StrPath, max_pixels: int, *, deep: bool) -> Image.Image:
    file = Path(path)
    if file.is_dir():
        raise ImageError(path, "is a folder; name an image file")
    if not file.exists():
        raise ImageError(path, "there is no such file")
    with warnings.catch_warnings():
        # Our own limit decides about size; complaints about odd metadata do not concern the pixels.
        warnings.simplefilter("ignore")
        try:
            if file.stat().st_size == 0:
                raise ImageError(path, "is empty (0 bytes); copy or download it again")
            with Image.open(file, formats=_FORMATS) as image:
                _check(path, image, max_pixels, deep)
                image.load()
                return ImageOps.exif_transpose(image)
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(path, f"is not a picture of a known format ({', '.join(_FORMATS)})") from None
        except Image.DecompressionBombError:
            raise ImageError(path, f"has more than {max_pixels} pixels; make it smaller first") from None
        except Exception as error:
            # A damaged file can make a decoder raise anything; what it means to the user is always the same.
            raise ImageError(path, f"is truncated or damaged ({error}); copy or download it again") from error


def _check(path: StrPath, image: Image.Image, max_pixels: int, deep: bool) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(path, f"has {height} × {width} pixels, more than {max_pixels}; make it smaller first")
    if min(width, height) < MIN_SIDE:
        raise ImageError(path, f"has {height} × {width} pixels; at least {MIN_SIDE} a side are needed")
    if getattr(image, "n_frames", 1) > 1:
        raise ImageError(path, "is animated or has several pages; save the one that is meant as a file of its own")
    if deep:
        if image.format in ("JPEG", "MPO"):
            raise ImageError(path, "is a JPEG, which does not keep a mask's zeros; save the mask as PNG")
        return
    # Pillow cuts 16-bit colour down to 8 without a word: only the raw mode of the tiles tells.
    if image.mode.split(";")[0] in _DEEP or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        raise ImageError(
            path,
            "has more than 8 bits a channel; choose a window and save it with 8 bits, as this reader never guesses",
        )


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode in ("1", "L") or image.mode.split(";")[0] in _DEEP:
        if "transparency" not in image.info:
            return image
        image = image.convert("LA") if image.mode in ("1", "L") else image
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, (0, 0, 0, 255)), clear)
    return image.convert("RGB")
