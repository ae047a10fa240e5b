"""Where a DICOM file keeps its pixels, and one frame of them: plain, or unpacked by a decoder that is installed."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from maskaug.envs.errors import ImageError
from maskaug.envs.opening import MAX_HEADER, PictureFile, check_memory, check_size

if TYPE_CHECKING:
    from pydicom import Dataset

_IMPLICIT, _EXPLICIT, _BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205")
_EXPORT = "export it uncompressed (Explicit VR Little Endian)"

# Packed transfer syntaxes: what they are called, and what unpacks them. pylibjpeg-libjpeg, which could too, is GPL.
_LOSSLESS = ("JPEG Lossless", "pip install python-gdcm (or pylibjpeg with pylibjpeg-libjpeg, which is under the GPL)")
_LS = ("JPEG-LS", "pip install pyjpegls")
_J2K = ("JPEG 2000", "pip install pylibjpeg pylibjpeg-openjpeg")
_PACKED = {
    "1.2.840.10008.1.2.5": ("RLE", "pip install pydicom numpy"),
    "1.2.840.10008.1.2.4.50": ("JPEG", "pip install pillow"),
    "1.2.840.10008.1.2.4.51": ("JPEG Extended", _LOSSLESS[1]),
    "1.2.840.10008.1.2.4.57": _LOSSLESS,
    "1.2.840.10008.1.2.4.70": _LOSSLESS,
    "1.2.840.10008.1.2.4.80": _LS,
    "1.2.840.10008.1.2.4.81": _LS,
    "1.2.840.10008.1.2.4.90": _J2K,
    "1.2.840.10008.1.2.4.91": _J2K,
    "1.2.840.10008.1.2.4.201": _J2K,
    "1.2.840.10008.1.2.4.202": _J2K,
    "1.2.840.10008.1.2.4.203": _J2K,
}
_RLE = "1.2.840.10008.1.2.5"
_EXTENDED = "1.2.840.10008.1.2.4.51"
_COLOURS = {
    1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
    3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
}
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_UNDEFINED = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the pixels lie in a file.

    Attributes:
        syntax: the transfer syntax, a DICOM UID.
        rows: the height.
        columns: the width.
        frames: how many there are.
        samples: 1 or 3 values a pixel.
        photometric: MONOCHROME1, RGB, …
        planar: whether red, green and blue lie one after the other.
        bits_allocated: 8, 16 or 32.
        bits_stored: how many of them are used.
        high_bit: the number of the highest of those.
        signed: two's complement.
        offset: where the value of PixelData starts in the file.
        length: of that value, in bytes; as the file says it.
    """

    syntax: str
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    planar: bool
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    offset: int
    length: int

    @property
    def native(self) -> bool:
        """Whether the pixels are not packed."""
        return self.syntax in (_IMPLICIT, _EXPLICIT, _BIG)

    @property
    def frame_bytes(self) -> int:
        """Of one unpacked frame."""
        return self.rows * self.columns * self.samples * self.bits_allocated // 8


def find_pixels(file: PictureFile, tags: Sequence[int], max_pixels: int) -> tuple[Dataset, Layout]:
    """Those of `tags` that a file has, and where its pixels are.

    Raises:
        ImageError: deflated, packed in an unknown way, without a picture, truncated, of another size than may be read,
            or of a kind that is not read.
        Exception: anything else that damaged data make pydicom raise; the caller must not show it.
    """
    from pydicom.filereader import read_dataset

    syntax = _transfer_syntax(file)
    if syntax in _DEFLATED:
        # Nothing says how large it becomes, and pydicom inflates all of it at once.
        raise ImageError(file.path, f"is a deflated DICOM file, of which nobody knows how large it is; {_EXPORT}")
    native = syntax in (_IMPLICIT, _EXPLICIT, _BIG)
    if not native and syntax not in _PACKED:
        raise ImageError(file.path, f"is a DICOM file whose pixels are packed in an unknown way or a video; {_EXPORT}")
    header = read_dataset(
        file,
        is_implicit_VR=syntax == _IMPLICIT,
        is_little_endian=syntax != _BIG,
        stop_when=lambda tag, vr, length: tag >= 0x7FE00008,
        specific_tags=[*tags],
    )
    order = ">" if syntax == _BIG else "<"
    element = file.read(8)
    if len(element) < 8:
        raise ImageError(file.path, "is a DICOM file that holds no picture, or was cut off before it; leave it out")
    group, number = struct.unpack_from(f"{order}HH", element)
    if (group, number) != (0x7FE0, 0x0010):
        raise ImageError(file.path, f"is a DICOM file whose pixels are no integers, or that has none; {_EXPORT}")
    # Implicit: 4 bytes of length; explicit: 2 of the kind, 2 empty, then the length. Some files are implicit without
    # saying so, which pydicom notices.
    implicit = header.original_encoding[0]
    (length,) = struct.unpack(f"{order}I", element[4:] if implicit else file.read(4))
    layout = Layout(
        syntax=syntax,
        rows=int(header.Rows),
        columns=int(header.Columns),
        frames=int(header.get("NumberOfFrames") or 1),
        samples=int(header.get("SamplesPerPixel") or 1),
        photometric=str(header.PhotometricInterpretation).strip(),
        planar=int(header.get("PlanarConfiguration") or 0) == 1,
        bits_allocated=int(header.BitsAllocated),
        bits_stored=int(header.get("BitsStored") or header.BitsAllocated),
        high_bit=int(header.get("HighBit") or int(header.get("BitsStored") or header.BitsAllocated) - 1),
        signed=int(header.get("PixelRepresentation") or 0) == 1,
        offset=file.tell(),
        length=length,
    )
    check_size(file.path, layout.rows, layout.columns, max_pixels)
    _check(file, layout)
    return header, layout


def _check(file: PictureFile, layout: Layout) -> None:
    if layout.photometric not in _COLOURS.get(layout.samples, ()) or layout.bits_allocated not in (8, 16, 32):
        raise ImageError(file.path, f"is a DICOM file with pixels of a kind that is not read; {_EXPORT}, grey or RGB")
    if layout.samples == 3 and (layout.bits_allocated, layout.bits_stored) != (8, 8):
        raise ImageError(file.path, "is a DICOM file with colours of more or less than 8 bits; export it with 8")
    if not 1 <= layout.bits_stored <= layout.high_bit + 1 <= layout.bits_allocated or layout.frames < 1:
        raise ImageError(file.path, "is a DICOM file whose numbers of bits or frames do not fit; export it anew")
    if not layout.native:
        return
    if layout.photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL"):
        raise ImageError(file.path, f"is a DICOM file with subsampled colour; {_EXPORT} as RGB")
    if layout.syntax == _BIG and layout.bits_allocated == 8:
        raise ImageError(file.path, f"is a big-endian DICOM file of 8 bits, whose bytes may be swapped; {_EXPORT}")
    needed = layout.frames * layout.frame_bytes
    if layout.length == _UNDEFINED or layout.length < needed or layout.offset + layout.length > file.bytes:
        raise ImageError(
            file.path, f"is a DICOM file that is truncated: its pixels need {needed} bytes; copy or export it again"
        )
    if layout.length >= needed + max(layout.frame_bytes, 2):
        raise ImageError(
            file.path, "is a DICOM file with more pixels than its Rows, Columns and NumberOfFrames say; export it anew"
        )


def native_frame(file: PictureFile, layout: Layout, number: int) -> npt.NDArray[Any]:
    """(rows, columns) unsigned, or (rows, columns, 3) uint8: the bits of one frame as they are stored."""
    file.seek(layout.offset + number * layout.frame_bytes)
    order = ">" if layout.syntax == _BIG else "<"
    pixels = np.empty(layout.rows * layout.columns * layout.samples, f"{order}u{layout.bits_allocated // 8}")
    if file.readinto(pixels.data.cast("B")) != layout.frame_bytes:
        raise ImageError(file.path, "is a DICOM file that was cut off while it was read; copy it again")
    if layout.samples == 1:
        return pixels.reshape(layout.rows, layout.columns)
    if layout.planar:
        return np.moveaxis(pixels.reshape(3, layout.rows, layout.columns), 0, 2)
    return pixels.reshape(layout.rows, layout.columns, 3)


def unpacked_frame(file: PictureFile, layout: Layout, number: int, max_pixels: int) -> tuple[npt.NDArray[Any], Layout]:
    """The same of a packed frame, and the layout as the decoder left it (it may have turned YBR into RGB).

    Raises:
        ImageError: no decoder is installed; the frame says another size than the file; too large to unpack.
        Exception: as `find_pixels`.
    """
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.pixels.decoders.base import get_decoder

    name, cure = _PACKED[layout.syntax]
    decoder = get_decoder(layout.syntax)
    # Pillow's decoder takes JPEG Extended, but only of 8 bits.
    deep = layout.syntax == _EXTENDED and layout.bits_stored != 8 and set(decoder.available_plugins) <= {"pillow"}
    if not decoder.is_available or deep:
        raise ImageError(file.path, f"is a DICOM file packed as {name}, for which no decoder is installed; {cure}")
    pixel_count = layout.rows * layout.columns
    # The codec's integers, its bytes, an array of them, and what is made of it.
    check_memory(file.path, (4 * layout.samples + 1) * pixel_count + 3 * layout.frame_bytes, max_pixels)
    if layout.offset + (0 if layout.length == _UNDEFINED else layout.length) > file.bytes:
        raise ImageError(file.path, "is a DICOM file that is truncated; copy or export it again")
    file.seek(layout.offset)
    # Packed pixels are no larger than unpacked ones, but for what a codec adds.
    file.allowance = 2 * layout.frame_bytes + MAX_HEADER
    frame = get_frame(file, number, number_of_frames=layout.frames)
    if layout.syntax != _RLE and coded_size(frame) != (layout.rows, layout.columns):
        raise ImageError(
            file.path,
            f"is a DICOM file of {layout.rows} × {layout.columns} pixels but not in its {name} data; export it",
        )
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "samples_per_pixel": layout.samples,
        "number_of_frames": 1,
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "photometric_interpretation": layout.photometric,
        "pixel_representation": int(layout.signed),
        "planar_configuration": int(layout.planar),
        "pixel_keyword": "PixelData",
    }
    pixels, told = decoder.as_array(encapsulate([frame]), index=0, raw=True, **options)
    expected = (layout.rows, layout.columns, 3)[: 2 + (layout.samples == 3)]
    if pixels.shape != expected:
        raise ValueError("shape")
    photometric = str(told["photometric_interpretation"])
    if photometric.startswith("YBR"):
        photometric = "YBR_FULL"
    # Decoders return values, and no bits that would have to be looked for.
    return pixels, dataclasses.replace(layout, photometric=photometric, high_bit=layout.bits_stored - 1)


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 code stream says, or None: it says nothing."""
    start = frame.find(b"\xff\x4f\xff\x51")
    if 0 <= start < 1024 and not frame.startswith(b"\xff\xd8"):
        right, bottom, left, top = struct.unpack_from(">IIII", frame, start + 8)
        return bottom - top, right - left
    place = 2
    while frame.startswith(b"\xff\xd8") and place + 9 <= len(frame):
        if frame[place] != 0xFF:
            return None
        marker = frame[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack_from(">HH", frame, place + 5)
            return rows, columns
        else:
            place += 2 + int(struct.unpack_from(">H", frame, place + 2)[0])
    return None


def _transfer_syntax(file: PictureFile) -> str:
    """The file's transfer syntax; the file is left where its data begin."""
    file.seek(128)
    if file.read(4) != b"DICM":
        file.seek(0)
        return _guess(file)
    found = ""
    while True:
        start = file.tell()
        head = file.read(8)
        if len(head) < 8 or struct.unpack_from("<H", head)[0] != 2:
            file.seek(start)
            return found or _guess(file)
        length = struct.unpack("<I", file.read(4))[0] if head[4:6] in _LONG else struct.unpack_from("<H", head, 6)[0]
        if struct.unpack_from("<H", head, 2)[0] == 0x0010:
            found = file.read(length).rstrip(b"\0 ").decode("ascii", "replace")
        else:
            file.seek(length, 1)


def _guess(file: PictureFile) -> str:
    start = file.tell()
    head = file.read(6)
    file.seek(start)
    return _EXPLICIT if len(head) == 6 and head[4:6].isalpha() and head[4:6].isupper() else _IMPLICIT
