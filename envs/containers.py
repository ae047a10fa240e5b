"""What a picture file says of its own length and checksums, held against the file before a decoder fills gaps in it.

Decoders make up what is missing: libtiff and BMP run lengths with black, PNG by not looking at its checksums.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

from PIL import Image

from maskaug.envs.errors import ImageError
from maskaug.envs.opening import MAX_HEADER, PictureFile

_DAMAGED = "copy or download it again"
_BLOCK = 1 << 20

#: What the formats that are tried start with.
MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"RIFF": "WEBP",
}

# TIFF tags.
_BITS, _COMPRESSION, _STRIPS, _STRIP_BYTES, _ROWS, _TILES, _TILE_BYTES = 258, 259, 273, 279, 278, 324, 325
_SUBSAMPLING, _FORMAT = 530, 339


def known_format(head: bytes) -> str | None:
    """The name of the picture format that these first bytes are of, or None."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def check_container(file: PictureFile, kind: str) -> None:
    """Refuse a PNG, BMP or WebP file that is shorter than it says, or whose checksums are wrong.

    Args:
        file: at its beginning, where it is again afterwards.
        kind: as `known_format` says.

    Raises:
        ImageError: see above.
    """
    allowance, file.allowance = file.allowance, None
    head = file.read(12)
    if kind == "PNG":
        file.seek(8)
        _check_chunks(file)
    elif kind in ("BMP", "WEBP") and len(head) >= 8:
        said = struct.unpack_from("<I", head, 2)[0] if kind == "BMP" else struct.unpack_from("<I", head, 4)[0] + 8
        if said > file.bytes:
            raise ImageError(file.path, f"is truncated: {file.bytes} of {said} bytes; {_DAMAGED}")
    file.seek(0)
    file.allowance = allowance


def _check_chunks(file: PictureFile) -> None:
    other = 0
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise ImageError(file.path, f"is truncated: a PNG without its end; {_DAMAGED}")
        length, kind = struct.unpack(">I4s", head)
        if length + 4 > file.bytes - file.tell():
            raise ImageError(file.path, f"is truncated within a PNG chunk; {_DAMAGED}")
        if kind not in (b"IDAT", b"fdAT"):
            other += length
            if other > MAX_HEADER:
                raise ImageError(
                    file.path, f"has more than {MAX_HEADER} bytes that are no pixels; save it anew without metadata"
                )
        checksum = zlib.crc32(kind)
        while length:
            block = file.read(min(length, _BLOCK))
            checksum = zlib.crc32(block, checksum)
            length -= len(block)
        if struct.unpack(">I", file.read(4))[0] != checksum:
            raise ImageError(file.path, f"is damaged: the checksum of a PNG chunk is wrong; {_DAMAGED}")


def check_tiff(file: PictureFile, image: Image.Image) -> None:
    """Refuse a TIFF page whose pixels are not all in the file, or whose samples Pillow would misread."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = tags.get(_BITS, (1,))
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16") and max(bits) > 8:
        raise ImageError(file.path, DEEP_COLOUR)
    if 2 in tags.get(_FORMAT, (1,)) and max(bits) == 8:
        raise ImageError(file.path, "has signed 8-bit values, which stand for no grey; save it with unsigned ones")
    plain = tags.get(_COMPRESSION, 1) == 1
    if image.mode == "YCbCr" and plain and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        raise ImageError(file.path, "has subsampled colour without compression; save it as an RGB picture")
    tiled = _TILES in tags
    offsets = tags.get(_TILES if tiled else _STRIPS, ())
    lengths = tags.get(_TILE_BYTES if tiled else _STRIP_BYTES)
    if not isinstance(offsets, tuple):
        offsets = (offsets,)
    if lengths is None:
        # Old writers leave them out; then a decoder that needs more than there is says so itself.
        return
    if not isinstance(lengths, tuple):
        lengths = (lengths,)
    if len(lengths) != len(offsets):
        raise ImageError(file.path, f"is damaged: {len(offsets)} strips, but {len(lengths)} lengths; {_DAMAGED}")
    if any(offset + length > file.bytes for offset, length in zip(offsets, lengths, strict=True)):
        raise ImageError(file.path, f"is truncated: its strips end beyond the file's end; {_DAMAGED}")
    width, height = image.size
    row = (width * sum(bits) + 7) // 8
    if plain and not tiled and sum(lengths) < row * height:
        raise ImageError(
            file.path, f"is damaged: {sum(lengths)} bytes cannot hold {height} × {width} pixels; {_DAMAGED}"
        )


def strip_bytes(tags: Any) -> int:
    """Bytes of the longest packed strip or tile of a TIFF page, 0 if it does not say."""
    lengths = tags.get(_TILE_BYTES if _TILES in tags else _STRIP_BYTES, 0)
    return int(max(lengths, default=0) if isinstance(lengths, tuple) else lengths)


DEEP_COLOUR = (
    "has more than 8 bits in each of its colours, of which Pillow keeps 8 only; save it as a 16-bit grey picture, or "
    "with 8 bits a colour"
)
