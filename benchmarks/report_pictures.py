"""Pictures as data: URIs, small, and drawn anew: nothing of a file's bytes reaches the page but its pixels."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from maskaug.benchmarks.report_files import read_bytes
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.rendering import MASK, REGION, Picture

#: pixels a side that a gallery's pictures have at most, and its outlines at least.
SIDE = 144
_MOST_PIXELS = 64_000_000
#: what the colours of an overlay are: nothing · inside of the mask · its border · the region's border.
_PALETTE = [0, 0, 0, *MASK, *MASK, *REGION]
_OPACITY = bytes([0, 96, 255, 255])


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """`picture` as data:image/`kind`;base64,…"""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind.upper(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def embedded(path: Path, across: int) -> tuple[str, int, int]:
    """A PNG file as a data: URI, with its width and height; charts stay sharp, pictures become JPEG.

    Args:
        path: the file.
        across: a picture that is wider is reduced to so many pixels.

    Raises:
        ConfigurationError: it cannot be read, is no PNG, or has too many pixels.
    """
    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=["PNG"])
            if picture.width * picture.height > _MOST_PIXELS:
                raise ConfigurationError(f"{path} has {picture.width}×{picture.height} pixels; that is no figure")
            picture.load()
    except ConfigurationError:
        raise
    except Exception as error:  # whatever a broken file makes of the decoder
        raise ConfigurationError(f"{path} is not readable as PNG ({error})") from None
    plain = Image.new("RGB", picture.size, "white")
    layer = picture.convert("RGBA")
    plain.paste(layer, mask=layer)
    if plain.width > across:
        height = max(1, round(plain.height * across / plain.width))
        plain = plain.resize((across, height), Image.Resampling.LANCZOS)
    # What is drawn has few colours and compresses without loss; photographs do not.
    few = plain.getcolors(maxcolors=4096) is not None
    uri = data_uri(plain, "png", optimize=True) if few else data_uri(plain, "jpeg", quality=85, subsampling=0)
    return uri, plain.width, plain.height


def small_image(image: Picture) -> str:
    """(C, H, W) uint8 as a data: URI of at most `SIDE` pixels a side."""
    plane = np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    height, width = plane.shape[:2]
    if max(height, width) > SIDE:
        scale = SIDE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        plane = np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.uint8)
    picture = Image.fromarray(plane)
    # Few pixels lose little as PNG, and much as JPEG.
    if max(picture.size) <= 96:
        return data_uri(picture, "png", optimize=True)
    return data_uri(picture, "jpeg", quality=88)


def overlay(mask: npt.NDArray[np.bool_] | None, region: npt.NDArray[np.bool_] | None) -> str:
    """What is laid over an image: the tinted mask and the region's outline, (H, W) bool each, as a data: URI."""
    known = [plane for plane in (mask, region) if plane is not None]
    height, width = known[0].shape
    scale = 2 * SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    levels = np.zeros((size[1], size[0]), np.uint8)
    if mask is not None:
        large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        levels[large > 0] = 1
        _outline(levels, large, 2)
    if region is not None and region.any():
        _outline(levels, cv2.resize(region.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST), 3)
    picture = Image.fromarray(levels, "P")
    picture.putpalette(_PALETTE)
    return data_uri(picture, "png", optimize=True, bits=2, transparency=_OPACITY)


def _outline(levels: Picture, plane: Any, level: int) -> None:
    contours, _ = cv2.findContours(plane, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(levels, contours, -1, level, 2)
