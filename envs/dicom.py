"""DICOM files by pydicom: grey values through the file's own tables and window, and nothing of the patient.

Only the tags named below are read, the file's pixels only after they have been held against its length, and only the
frame that is meant. Whatever pydicom says of a file stays here: it quotes values, and values are names and dates.

The order is the standard's (PS3.3 C.11): stored bits → modality table or RescaleSlope and RescaleIntercept → window →
0 … 255, then MONOCHROME1 is inverted. The window is the one that is asked for, in rescaled units, else the file's first
(LINEAR, LINEAR_EXACT or SIGMOID), else its VOI table, else the frame's least and greatest value. Overlays, presentation
tables, PixelPaddingValue and PixelAspectRatio are not looked at.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskaug.envs.decoding import Picture
from maskaug.envs.dicom_frames import Layout, find_pixels, native_frame, unpacked_frame
from maskaug.envs.errors import ConfigurationError, ImageError
from maskaug.envs.opening import PictureFile
from maskaug.envs.windowing import Floats, Window, linear, span, to_bytes

if TYPE_CHECKING:
    from pydicom import Dataset

_SUFFIXES = (".dcm", ".dicom")
_DAMAGED = "is a DICOM file that is truncated or damaged; copy or export it again"

# Every tag that is read; no other one's value enters the program.
_TAGS = (
    *(0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011),  # samples, kind, planes, frames, size
    *(0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280301),  # bits, sign; BurnedInAnnotation
    *(0x00281050, 0x00281051, 0x00281056, 0x00281052, 0x00281053),  # window; rescaling
    *(0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203),  # palette
    *(0x00283000, 0x00283010),  # modality and VOI tables
    *(0x52009229, 0x52009230),  # functional groups, which hold the same of each frame
)


def is_dicom(file: PictureFile, kind: str | None) -> bool:
    """Whether an open file is DICOM: by its mark, or by its name where it starts like no other picture.

    Args:
        file: at its beginning, where it is again afterwards.
        kind: as `containers.known_format` says.
    """
    file.seek(128)
    marked = file.read(4) == b"DICM"
    file.seek(0)
    return marked or (kind is None and os.fspath(file.path).lower().endswith(_SUFFIXES))


def decode_dicom(file: PictureFile, max_pixels: int, window: Window = None, frame: int | None = None) -> Picture:
    """One frame of a DICOM file.

    Args:
        file: open, at its beginning.
        max_pixels: Rows × Columns above this is refused before decoding.
        window: see `windowing.parse_window`; in rescaled units (HU of a CT). Colour is not windowed.
        frame: of several, the one to read.

    Raises:
        ImageError: as `images.read_fitted` says, and: pydicom or a decoder is missing, deflated files, text burned into
            the pixels. None of its texts quotes the file, and none carries pydicom's own error.
    """
    try:
        import pydicom  # noqa: F401 (only now: most data sets hold no DICOM file)
    except ImportError:
        missing = True
    else:
        missing = False
    if missing:
        raise ImageError(file.path, "is a DICOM file, which pydicom reads; pip install maskaug[dicom]")
    picture = None
    try:
        picture = _decode(file, max_pixels, window, frame)
    except (ImageError, ConfigurationError):
        raise
    except Exception:
        # Not even as the context of ours: a traceback would print it, and it quotes values.
        pass
    if picture is None:
        raise ImageError(file.path, _DAMAGED)
    return picture


def _decode(file: PictureFile, max_pixels: int, window: Window, frame: int | None) -> Picture:
    header, layout = find_pixels(file, _TAGS, max_pixels)
    path = file.path
    if str(header.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise ImageError(
            path, "has text burned into its pixels (BurnedInAnnotation is YES), maybe a name; blacken it and set NO"
        )
    if frame is None and layout.frames > 1:
        raise ImageError(path, f"has {layout.frames} frames; choose one with frame=N, counted from 0")
    number = frame or 0
    if number >= layout.frames:
        raise ImageError(
            path, f"has no frame {number}: there are {layout.frames}, counted from 0; choose another frame="
        )
    file.allowance = None
    if layout.native:
        pixels = native_frame(file, layout, number)
    else:
        pixels, layout = unpacked_frame(file, layout, number, max_pixels)
    size = (layout.rows, layout.columns)
    if layout.samples == 3:
        mode = {"RGB": "RGB", "YBR_FULL": "YCbCr"}[layout.photometric]
        return Picture(size, True, lambda rows: _colour_band(pixels[rows], mode))
    stored = _stored_values(pixels, layout)
    if layout.photometric == "PALETTE COLOR":
        palette = _palette(header)
        return Picture(size, True, lambda rows: Image.fromarray(_look_up(stored(rows), *palette)))
    values, inner = _groups(header, number)
    modality = _modality(header if values is None else values)
    to_grey = _voi(path, header if inner is None else inner, window, lambda rows: modality(stored(rows)), size)
    inverted = layout.photometric == "MONOCHROME1"
    return Picture(
        size,
        False,
        lambda rows: Image.fromarray(to_bytes(to_grey(modality(stored(rows))), inverted=inverted)),
    )


def _stored_values(pixels: npt.NDArray[Any], layout: Layout) -> Callable[[slice], Floats]:
    # The bits that are used need not be the lowest, and those that are not may hold anything (old overlays).
    shift = max(0, layout.high_bit - layout.bits_stored + 1)
    mask, sign = (1 << layout.bits_stored) - 1, 1 << (layout.bits_stored - 1)

    def values(rows: slice) -> Floats:
        used = (pixels[rows].astype(np.int64) >> shift) & mask
        return ((used ^ sign) - sign if layout.signed else used).astype(np.float64)

    return values


def _colour_band(pixels: npt.NDArray[np.uint8], mode: str) -> Image.Image:
    h, w = pixels.shape[:2]
    return Image.frombytes(mode, (w, h), np.ascontiguousarray(pixels).tobytes()).convert("RGB")


def _groups(header: Dataset, frame: int) -> tuple[Dataset | None, Dataset | None]:
    """Where an enhanced file keeps a frame's rescaling and window: for all frames, or for this one."""
    found: list[Dataset | None] = [None, None]
    shared, each = header.get("SharedFunctionalGroupsSequence"), header.get("PerFrameFunctionalGroupsSequence")
    for group in (shared[0] if shared else None, each[frame] if each else None):
        for i, name in enumerate(("PixelValueTransformationSequence", "FrameVOILUTSequence")):
            if group is not None and group.get(name):
                found[i] = group[name][0]
    return found[0], found[1]


def _modality(source: Dataset) -> Callable[[Floats], Floats]:
    if tables := source.get("ModalityLUTSequence"):
        table, first, _ = _table(tables[0].LUTDescriptor, tables[0].LUTData)
        return lambda x: _look_up(x, table, first).astype(np.float64)
    slope, intercept = _number(source, "RescaleSlope", 1.0), _number(source, "RescaleIntercept", 0.0)
    return lambda x: x * slope + intercept


def _voi(
    path: Any, source: Dataset, window: Window, values: Callable[[slice], Floats], size: tuple[int, int]
) -> Callable[[Floats], Floats]:
    """Rescaled values → 0 … 255, float64. Source: DICOM PS3.3 C.11.2."""
    if isinstance(window, tuple):
        return linear(*window)
    centre, width = _number(source, "WindowCenter", None), _number(source, "WindowWidth", None)
    if window is None and centre is not None and width is not None:
        function = str(source.get("VOILUTFunction") or "LINEAR").strip().upper()
        if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width <= 0 or (function == "LINEAR" and width < 1):
            raise ImageError(path, "has a window that cannot be; choose one with window=LOW,HIGH or window=minmax")
        if function == "SIGMOID":
            return lambda x: 255 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -500, 500)))
        if function == "LINEAR":
            centre, width = centre - 0.5, width - 1
        if width == 0:
            return lambda x: np.where(x > centre, 255.0, 0.0)
        return linear(centre - width / 2, centre + width / 2)
    if window is None and (tables := source.get("VOILUTSequence")):
        table, first, bits = _table(tables[0].LUTDescriptor, tables[0].LUTData)
        full = linear(0, (1 << bits) - 1)
        return lambda x: full(_look_up(np.rint(x), table, first).astype(np.float64))
    return linear(*span(*size, values))


def _number(source: Dataset, name: str, otherwise: Any) -> Any:
    """The first value of a tag that holds numbers; `otherwise` if there is none.

    Raises:
        ValueError: it is not finite.
    """
    value = source.get(name)
    if value is None or value == "":
        return otherwise
    if not isinstance(value, (str, int, float)):
        value = value[0] if len(value) else otherwise
    number = float(value)
    if not math.isfinite(number) or abs(number) > 1e30:
        raise ValueError(name)
    return number


def _palette(header: Dataset) -> tuple[npt.NDArray[np.uint8], int]:
    """The colours, (entries, 3) uint8, and the value that the first one stands for."""
    columns = []
    first = 0
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTable"
        table, first, bits = _table(header[f"{name}Descriptor"].value, header[f"{name}Data"].value)
        columns.append((table >> (bits - 8)).astype(np.uint8))
    return np.stack(columns, axis=1), first


def _table(descriptor: Any, data: Any) -> tuple[npt.NDArray[np.int64], int, int]:
    """A table's entries (N,), the value that its first entry stands for, and the bits of an entry."""
    count, first, bits = _integers(descriptor)
    count = count or 65536
    entries = np.array(_integers(data), np.int64)
    if len(entries) != count and bits == 8:
        # Entries of 8 bits may be packed two to a word.
        entries = np.array(entries, "<u2").view(np.uint8)[:count].astype(np.int64)
    if len(entries) != count or not 8 <= bits <= 16 or entries.max() >= 1 << bits:
        raise ValueError("table")
    return entries, first - 65536 if first > 32767 else first, bits


def _integers(value: Any) -> list[int]:
    # Where a file does not say which numbers these are, pydicom leaves the bytes.
    if isinstance(value, bytes):
        return [int(number) for number in np.frombuffer(value, "<u2")]
    return [int(number) for number in value]


def _look_up(values: Floats, table: npt.NDArray[Any], first: int) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = table[np.clip(values - first, 0, len(table) - 1).astype(np.int64)]
    return found
