"""Makers of picture files for the readers' tests."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]


def grey_ramp(h: int = 20, w: int = 30) -> npt.NDArray[np.uint8]:
    return (np.arange(h * w).reshape(h, w) % 251).astype(np.uint8)


def colour_ramp(h: int = 20, w: int = 30) -> npt.NDArray[np.uint8]:
    return np.stack([grey_ramp(h, w), 255 - grey_ramp(h, w), grey_ramp(h, w)[::-1]], -1)


def encoded(image: Array | Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def animated(kind: str, *values: int, **options: Any) -> bytes:
    frames = [Image.new("L", (12, 9), value) for value in values or (0, 100)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(w: int, h: int, bits: int, colour: int, rows: bytes, *before: bytes, after: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, 0))
    body = b"".join(before) + chunk(b"IDAT", zlib.compress(rows, 1)) + after
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def png_16_bit_rgb() -> bytes:
    return png(9, 9, 16, 2, (b"\0" + b"\x12\x34" * 27) * 9)


def tiff(tags: dict[int, int | tuple[int, int]], data: bytes = b"", order: str = "<") -> bytes:
    """A TIFF file of one page: tags → value, or → (count, offset of the values in the file); data at byte 8."""
    body = b""
    for tag, value in sorted(tags.items()):
        count, number = value if isinstance(value, tuple) else (1, value)
        body += struct.pack(f"{order}HHII", tag, 4, count, number)
    place = 8 + len(data)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", place)
    return head + data + struct.pack(f"{order}H", len(tags)) + body + bytes(4)


def plain_tiff(w: int, h: int, bits: int, data: bytes, **more: int) -> bytes:
    """Uncompressed grey in one strip; `more`: t262=0 sets tag 262 to 0."""
    tags: dict[int, int | tuple[int, int]] = {256: w, 257: h, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: h}
    tags |= {279: len(data), **{int(name[1:]): value for name, value in more.items()}}
    return tiff(tags, data)


def exif(orientation: int) -> Image.Exif:
    result = Image.Exif()
    result[0x0112] = orientation
    return result


def palette_picture(**colours: Any) -> Image.Image:
    image = Image.fromarray(grey_ramp() % 4, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 10, 20, 30])
    return image


def luma(rgb: Array) -> Array:
    """ITU-R 601 in Pillow's fixed point."""
    r, g, b = (rgb[..., i].astype(np.int64) for i in range(3))
    return (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16
