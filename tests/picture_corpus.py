"""Odd and hostile picture files, each with the grey array that it must become or the reason why it is refused."""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from picture_files import (
    Array,
    animated,
    chunk,
    colour_ramp,
    encoded,
    exif,
    grey_ramp,
    luma,
    palette_picture,
    plain_tiff,
    png,
    png_16_bit_rgb,
    tiff,
)
from PIL import Image


class Case(NamedTuple):
    """One file: what makes it, and the grey array that it must become or the reason why it is refused.

    tolerance: greatest difference of a grey value. options: of `Reading`. name: the file's own, if it matters.
    """

    make: Callable[[], bytes]
    expected: Callable[[], Array] | str
    tolerance: int = 0
    options: dict[str, Any] = {}
    name: str = "picture.png"


def _window(x: Array, low: float, high: float) -> Array:
    return np.rint(np.clip((x.astype(np.float64) - low) / (high - low) * 255, 0, 255))


def _jpeg(**options: Any) -> bytes:
    return encoded(_smooth(), "JPEG", quality=95, **options)


def _smooth() -> Array:
    return np.add.outer(np.arange(40), np.arange(64) * 2).astype(np.uint8)


def _cmyk() -> Image.Image:
    smooth = _smooth()
    return Image.merge("CMYK", [Image.fromarray(x) for x in (smooth, 255 - smooth, smooth // 2, smooth // 4)])


def _cmyk_rgb() -> Array:
    c = np.asarray(_cmyk()).astype(np.float64)
    return np.rint((255 - c[..., :3]) * (255 - c[..., 3:]) / 255)


def _without_segment(data: bytes, marker: bytes) -> bytes:
    start = data.index(marker)
    return data[:start] + data[start + 2 + struct.unpack_from(">H", data, start + 2)[0] :]


def _deep(dtype: str = "<u2") -> Array:
    return (grey_ramp().astype(np.int64) * 16).astype(dtype)


def _deep_tiff(dtype: str, **more: int) -> bytes:
    x = _deep(dtype)
    return plain_tiff(30, 20, x.dtype.itemsize * 8, x.tobytes(), **more)


def _rgba() -> Array:
    return np.dstack([colour_ramp(), np.tile(np.array([0, 255], np.uint8), (20, 15))])


def _on_black() -> Array:
    return luma(_rgba()[..., :3] * (_rgba()[..., 3:] > 0))


def _mpo() -> bytes:
    frames = [Image.new("L", (12, 9), value) for value in (0, 100)]
    return encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])


def _nan_tiff(value: float) -> bytes:
    x = np.ones((20, 30), np.float32)
    x[3, 4] = value
    return encoded(x, "TIFF")


def _private(kind: bytes, size: int) -> bytes:
    return chunk(kind, bytes(size))


def _text_bomb(kind: bytes, size: int) -> bytes:
    head = b"Comment\0\0" if kind == b"zTXt" else b"Comment\0\1\0\0\0"
    return png(30, 20, 8, 0, _rows(), chunk(kind, head + zlib.compress(bytes(size), 1)))


@functools.cache
def _rows() -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in grey_ramp())


def _jpeg_header_bomb() -> bytes:
    segment = b"\xff\xe5\xff\xff" + bytes(65533)
    return b"\xff\xd8" + segment * 600 + _jpeg()[2:]


def _tags_bomb() -> bytes:
    tags: dict[int, int | tuple[int, int]] = {256: 9, 257: 9, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 9, 279: 81}
    data = bytes(50_000_000)
    return tiff(tags | {60000 + i: (12_000_000, 8) for i in range(50)}, data)


CASES: dict[str, Case] = {
    # Ordinary pictures of all kinds.
    "grey PNG": Case(lambda: encoded(grey_ramp(), "PNG"), grey_ramp),
    "1-bit PNG": Case(lambda: encoded(grey_ramp() > 99, "PNG"), lambda: (grey_ramp() > 99) * 255),
    "2-bit PNG": Case(
        lambda: png(8, 8, 2, 0, b"\0\xe4\x1b" * 8), lambda: np.tile([255, 170, 85, 0, 0, 85, 170, 255], (8, 1))
    ),
    "2-bit PNG with a transparent value": Case(
        lambda: png(8, 8, 2, 0, b"\0\xe4\x1b" * 8, chunk(b"tRNS", b"\0\2")),
        lambda: np.tile([255, 0, 85, 0, 0, 85, 0, 255], (8, 1)),
    ),
    "4-bit PNG with a transparent value": Case(
        lambda: png(8, 8, 4, 0, b"\0\x01\x23\x45\xff" * 8, chunk(b"tRNS", b"\0\x0f")),
        lambda: np.tile([0, 17, 34, 51, 68, 85, 0, 0], (8, 1)),
    ),
    "1-bit PNG with a transparent value": Case(
        lambda: png(8, 8, 1, 0, b"\0\xf0" * 8, chunk(b"tRNS", b"\0\1")), lambda: np.zeros((8, 8))
    ),
    "8-bit PNG with a transparent value": Case(
        lambda: encoded(grey_ramp(), "PNG", transparency=77), lambda: np.where(grey_ramp() == 77, 0, grey_ramp())
    ),
    "RGB PNG": Case(lambda: encoded(colour_ramp(), "PNG"), lambda: luma(colour_ramp())),
    "RGB PNG with a transparent colour": Case(
        lambda: encoded(colour_ramp(), "PNG", transparency=tuple(int(v) for v in colour_ramp()[0, 5])),
        lambda: luma(np.where((colour_ramp() == colour_ramp()[0, 5]).all(-1, keepdims=True), 0, colour_ramp())),
    ),
    "RGBA PNG": Case(lambda: encoded(_rgba(), "PNG"), _on_black),
    "LA PNG, half transparent": Case(
        lambda: encoded(Image.merge("LA", [Image.new("L", (9, 9), 200), Image.new("L", (9, 9), 128)]), "PNG"),
        lambda: np.full((9, 9), 200 * 128 / 255),
        1,
    ),
    "palette PNG": Case(lambda: encoded(palette_picture(), "PNG"), lambda: np.array([0, 76, 150, 18])[grey_ramp() % 4]),
    "palette PNG with alpha": Case(
        lambda: encoded(palette_picture(), "PNG", transparency=b"\xff\x00\xff\xff"),
        lambda: np.array([0, 0, 150, 18])[grey_ramp() % 4],
    ),
    "palette PNG with one transparent entry": Case(
        lambda: encoded(palette_picture(), "PNG", transparency=2), lambda: np.array([0, 76, 0, 18])[grey_ramp() % 4]
    ),
    "EXIF-rotated PNG": Case(lambda: encoded(grey_ramp(), "PNG", exif=exif(6)), lambda: np.rot90(grey_ramp(), -1)),
    "EXIF orientation that cannot be": Case(lambda: encoded(grey_ramp(), "PNG", exif=exif(99)), grey_ramp),
    "rotated TIFF": Case(lambda: encoded(grey_ramp(), "TIFF", tiffinfo={274: 8}), lambda: np.rot90(grey_ramp(), 1)),
    "JPEG": Case(_jpeg, _smooth, 4),
    "JPEG named .png": Case(_jpeg, _smooth, 4, name="really.png"),
    "PNG without a suffix": Case(lambda: encoded(grey_ramp(), "PNG"), grey_ramp, name="IM000001"),
    "progressive JPEG": Case(lambda: _jpeg(progressive=True), _smooth, 4),
    "JPEG with rubbish behind it": Case(lambda: _jpeg() + b"\xff\xd8rubbish" * 999, _smooth, 4),
    "CMYK JPEG, inverted as Adobe does": Case(
        lambda: encoded(_cmyk(), "JPEG", quality=98, subsampling=0), lambda: luma(_cmyk_rgb()), 8
    ),
    "CMYK TIFF": Case(lambda: encoded(_cmyk(), "TIFF"), lambda: luma(_cmyk_rgb()), 1),
    "YCbCr TIFF": Case(
        lambda: encoded(Image.fromarray(colour_ramp()).convert("YCbCr"), "TIFF"), lambda: luma(colour_ramp()), 2
    ),
    "CIELab TIFF": Case(
        lambda: encoded(Image.frombytes("LAB", (9, 9), b"\xff\0\0" * 40 + b"\0\0\0" * 41), "TIFF"),
        lambda: np.array([255] * 40 + [0] * 41).reshape(9, 9),
        1,
    ),
    "TIFF where white is 0": Case(
        lambda: plain_tiff(30, 20, 8, grey_ramp().tobytes(), t262=0), lambda: 255 - grey_ramp()
    ),
    "TIFF, LZW": Case(lambda: encoded(grey_ramp(), "TIFF", compression="tiff_lzw"), grey_ramp),
    "TIFF, CCITT": Case(
        lambda: encoded(Image.fromarray(grey_ramp() > 99), "TIFF", compression="group4"),
        lambda: (grey_ramp() > 99) * 255,
    ),
    "BMP": Case(lambda: encoded(grey_ramp(), "BMP"), grey_ramp),
    "GIF": Case(lambda: encoded(grey_ramp(), "GIF"), grey_ramp),
    "WebP": Case(lambda: encoded(colour_ramp(), "WEBP", lossless=True), lambda: luma(colour_ramp())),
    # Frames and pages.
    "animated GIF, frame 1": Case(lambda: animated("GIF"), lambda: np.full((9, 12), 100), options={"frame": 1}),
    "animated PNG, frame 1": Case(lambda: animated("PNG"), lambda: np.full((9, 12), 100), options={"frame": 1}),
    "animated PNG, frame 0": Case(lambda: animated("PNG", 7, 100), lambda: np.full((9, 12), 7), options={"frame": 0}),
    "animated WebP, frame 1": Case(
        lambda: animated("WEBP", lossless=True), lambda: np.full((9, 12), 100), options={"frame": 1}
    ),
    "TIFF, page 2 of 3": Case(
        lambda: animated("TIFF", 0, 50, 100), lambda: np.full((9, 12), 100), options={"frame": 2}
    ),
    "MPO, picture 1": Case(_mpo, lambda: np.full((9, 12), 100), 1, {"frame": 1}),
    "plain PNG, frame 0": Case(lambda: encoded(grey_ramp(), "PNG"), grey_ramp, options={"frame": 0}),
    "plain PNG, frame 1": Case(lambda: encoded(grey_ramp(), "PNG"), "no frame 1: there are 1", options={"frame": 1}),
    "animated GIF, frame 2": Case(lambda: animated("GIF"), "no frame 2: there are 2", options={"frame": 2}),
    "TIFF, page 3 of 3": Case(lambda: animated("TIFF", 1, 2, 3), "no frame 3: there are 3", options={"frame": 3}),
    "MPO, picture 2": Case(_mpo, "no frame 2: there are 2", options={"frame": 2}),
    "animated WebP": Case(lambda: animated("WEBP"), "animated or has several pages"),
    "MPO": Case(_mpo, "animated or has several pages"),
    # More than eight bits.
    "16-bit PNG": Case(
        lambda: encoded(_deep(), "PNG"), lambda: _window(_deep(), 100, 3000), options={"window": "100,3000"}
    ),
    "16-bit PNG with a transparent value": Case(
        lambda: encoded(_deep(), "PNG", transparency=160),
        lambda: np.where(_deep() == 160, 0, _window(_deep(), 0, 3000)),
        options={"window": (0, 3000)},
    ),
    "16-bit TIFF, big-endian": Case(
        lambda: encoded(Image.fromarray(_deep(">u2")), "TIFF"),
        lambda: _window(_deep(), 0, 4000),
        options={"window": "minmax"},
    ),
    "16-bit TIFF where white is 0": Case(
        lambda: _deep_tiff("<u2", t262=0), lambda: 255 - _window(_deep(), 0, 4000), options={"window": "minmax"}
    ),
    "signed 16-bit TIFF": Case(
        lambda: plain_tiff(30, 20, 16, (_deep().astype("<i2") - 999).tobytes(), t339=2),
        lambda: _window(_deep(), 499, 2999),
        options={"window": (-500, 2000)},
    ),
    "unsigned 32-bit TIFF above 2 to the 31": Case(
        lambda: plain_tiff(30, 20, 32, (_deep("<u4") * 1_000_000).tobytes()),
        lambda: _window(_deep(), 0, 4000),
        options={"window": (0, 4e9)},
    ),
    "float TIFF": Case(
        lambda: encoded(_deep("<f4"), "TIFF"), lambda: _window(_deep(), 0, 4000), options={"window": "minmax"}
    ),
    "float TIFF of one value": Case(
        lambda: encoded(np.full((9, 9), 3.5, np.float32), "TIFF"),
        lambda: np.zeros((9, 9)),
        options={"window": "minmax"},
    ),
    "16-bit PNG without a window": Case(lambda: encoded(_deep(), "PNG"), "window=LOW,HIGH, or .* window=minmax"),
    "float TIFF without a window": Case(lambda: encoded(_deep("<f4"), "TIFF"), "window=minmax"),
    "16-bit RGB PNG": Case(png_16_bit_rgb, "16-bit grey picture", options={"window": "minmax"}),
    "16-bit grey with alpha PNG": Case(
        lambda: png(9, 9, 16, 4, (b"\0" + bytes(36)) * 9), "16-bit grey picture", options={"window": "minmax"}
    ),
    "16-bit planar RGB TIFF": Case(
        lambda: tiff(
            {256: 9, 257: 9, 258: (3, 8), 259: 1, 262: 2, 273: (3, 20), 277: 3, 278: 9, 279: (3, 32), 284: 2},
            struct.pack("<9I", 16, 16, 16, 44, 206, 368, 162, 162, 162) + bytes(486),
        ),
        "16-bit grey picture",
        options={"window": "minmax"},
    ),
    "NaN": Case(lambda: _nan_tiff(np.nan), "NaN or infinite", options={"window": (0, 1)}),
    "infinity": Case(lambda: _nan_tiff(np.inf), "NaN or infinite", options={"window": "minmax"}),
    "signed 8-bit TIFF": Case(lambda: plain_tiff(30, 20, 8, _rows()[:600], t339=2), "signed 8-bit"),
    # Too small, too large.
    "seven pixels high": Case(lambda: encoded(grey_ramp(7), "PNG"), "at least 8 a side"),
    "100 million pixels, 1 bit": Case(lambda: png(10_000, 10_000, 1, 0, b"\0"), "more than 64000000"),
    "400 million pixels, 1 bit": Case(lambda: png(20_000, 20_000, 1, 0, b"\0"), "64000000"),
    "PNG of 2 to the 31 pixels a side": Case(
        lambda: png(2**31 - 1, 2**31 - 1, 8, 2, b"\0"), "more pixels than 64000000|damaged"
    ),
    "TIFF of 4 billion pixels a side": Case(lambda: plain_tiff(2**32 - 1, 2**32 - 1, 8, b"x"), "pixels"),
    "BMP that says 60000 a side": Case(
        lambda: (
            b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(99)
        ),
        "64000000",
    ),
    "GIF of 65535 a side": Case(
        lambda: b"GIF89a" + struct.pack("<HHBBBcHHHHB", 65535, 65535, 0, 0, 0, b",", 0, 0, 9, 9, 0) + b"\x08\0;",
        "64000000",
    ),
    "large WebP, which takes 16 bytes a pixel": Case(
        lambda: encoded(Image.new("RGB", (6000, 6000)), "WEBP", quality=1, method=0), "MB to decode"
    ),
    "large animation": Case(
        lambda: encoded(
            Image.new("L", (5000, 5000)), "PNG", save_all=True, append_images=[Image.new("L", (5000, 5000), 9)]
        ),
        "MB to decode",
        options={"frame": 1},
    ),
    # Bombs beside the pixels.
    "PNG with a zTXt bomb": Case(lambda: _text_bomb(b"zTXt", 100_000_000), "without metadata"),
    "PNG with an iTXt bomb": Case(lambda: _text_bomb(b"iTXt", 100_000_000), "without metadata"),
    "PNG with an ICC bomb": Case(
        lambda: png(30, 20, 8, 0, _rows(), chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(100_000_000), 1))),
        "without metadata",
    ),
    "PNG with a private chunk of 40 MB": Case(
        lambda: png(30, 20, 8, 0, _rows(), _private(b"prVt", 40_000_000)), "no pixels"
    ),
    "PNG with a private chunk of 40 MB at its end": Case(
        lambda: png(30, 20, 8, 0, _rows(), after=_private(b"prVt", 40_000_000)), "no pixels"
    ),
    "PNG whose pixels inflate to more than they should": Case(
        lambda: png(30, 20, 8, 0, _rows() + bytes(100_000_000)), grey_ramp
    ),
    "JPEG with 39 MB of segments": Case(_jpeg_header_bomb, "more bytes beside its pixels"),
    "TIFF whose 50 tags share 48 MB": Case(_tags_bomb, "more bytes beside its pixels"),
    # Lies and damage.
    "TIFF whose strip is shorter than its rows": Case(
        lambda: plain_tiff(30, 20, 8, grey_ramp().tobytes(), t279=100), "100 bytes cannot hold"
    ),
    "TIFF whose strip is longer than the file": Case(
        lambda: plain_tiff(30, 20, 8, grey_ramp().tobytes(), t279=10**6), "beyond the file's end"
    ),
    "TIFF whose strip starts beyond the file": Case(
        lambda: plain_tiff(30, 20, 8, grey_ramp().tobytes(), t273=10**6), "beyond the file's end"
    ),
    "TIFF whose directories go round": Case(
        lambda: plain_tiff(30, 20, 8, grey_ramp().tobytes())[:-4] + struct.pack("<I", 608),
        grey_ramp,
    ),
    "TIFF with subsampled colour": Case(
        lambda: tiff(
            {256: 9, 257: 9, 258: (3, 8), 259: 1, 262: 6, 273: 20, 277: 3, 278: 9, 279: 243},
            struct.pack("<3I", 8, 8, 8) + bytes(243),
        ),
        "subsampled",
    ),
    "PNG cut within its pixels": Case(lambda: encoded(colour_ramp(200, 300), "PNG")[:-1000], "truncated"),
    "PNG without its last chunk": Case(lambda: encoded(grey_ramp(), "PNG")[:-12], "truncated"),
    "PNG whose pixels end early": Case(lambda: png(30, 20, 8, 0, _rows()[:300]), "truncated"),
    "PNG with a changed byte": Case(
        lambda: (d := encoded(grey_ramp(), "PNG"))[:60] + bytes([d[60] ^ 1]) + d[61:], "checksum"
    ),
    "JPEG cut off": Case(lambda: _jpeg()[:-200], "truncated"),
    "TIFF cut off": Case(lambda: encoded(grey_ramp(), "TIFF")[:-50], "truncated|damaged"),
    "GIF cut off": Case(lambda: encoded(colour_ramp()[..., 0], "GIF")[:-80], "truncated"),
    "BMP cut off": Case(lambda: encoded(grey_ramp(), "BMP")[:-80], "truncated"),
    "WebP cut off": Case(lambda: encoded(colour_ramp(), "WEBP", lossless=True)[:-80], "truncated"),
    "CMYK JPEG that does not say whether it is inverted": Case(
        lambda: _without_segment(encoded(_cmyk(), "JPEG"), b"\xff\xee"), "Adobe"
    ),
    # No pictures.
    "nothing": Case(lambda: b"", "empty"),
    "one byte": Case(lambda: b"\x89", "not a picture of a known format"),
    "a text": Case(lambda: b"path,label\n" * 99, "not a picture of a known format"),
    "a web page": Case(lambda: b"<!DOCTYPE html><title>Log in</title>", "not a picture of a known format"),
    "zeros": Case(lambda: bytes(10_000), "not a picture of a known format"),
    "a PNG's first bytes": Case(lambda: b"\x89PNG\r\n\x1a\n", "truncated"),
    "a ZIP archive": Case(lambda: b"PK\3\4" + bytes(99), "not a picture of a known format"),
    "PostScript": Case(
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "not a picture of a known format"
    ),
    "a text named .dcm": Case(lambda: b"path,label\n" * 99, "DICOM", name="a.dcm"),
    "zeros named .dcm": Case(lambda: bytes(10_000), "DICOM", name="zeros.dcm"),
    "only DICOM's mark": Case(lambda: bytes(128) + b"DICM", "DICOM"),
    "DICOM whose first value has 4 GB": Case(
        lambda: bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 16, b"UN", 0, 0xFFFFFFFE) + bytes(99), "DICOM"
    ),
    # Names.
    "name with a line break and an escape": Case(
        lambda: encoded(grey_ramp(), "PNG"), grey_ramp, name="a\n\x1b[31mb.png"
    ),
    "name that is not UTF-8": Case(lambda: b"x", "not a picture", name="a\udcff.png"),
    "name like an option": Case(lambda: encoded(grey_ramp(), "PNG"), grey_ramp, name="-rf *.png"),
}
