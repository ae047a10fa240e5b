"""Reading one picture safely: a file → uint8 planes or a bool mask, or an `ImageError` naming the file and the cause.

What is read: PNG, JPEG, TIFF, BMP, GIF, WebP (by Pillow, known by content, whatever the name) and DICOM (by pydicom).

- **Grey** stays what it is; 1, 2 and 4 bits are spread over 0 … 255.
- **Colour** (RGB, palettes, CMYK, YCbCr, CIELab) becomes RGB; for one channel its luma (ITU-R 601: 0.299 R + 0.587 G +
  0.114 B; equal channels keep their value). CMYK by (255 − C)(255 − K) / 255; CIELab (D50) to sRGB; embedded colour
  profiles and gamma are not applied.
- **Transparency** (alpha, a transparent palette entry or value) is laid on black.
- **More than 8 bits** of grey need an explicit `window`, which ordinary pictures do not look at; colour of more than 8
  bits is refused.
- **EXIF orientation** is applied. **Several frames or pages** need `frame`.
- Refused: truncated, damaged, empty, not a picture, no regular file, NaN, more pixels than `max_pixels` or fewer than 8
  a side, and what would take more than 7 bytes for each of `max_pixels` to decode (very large WebP, animations,
  progressive JPEG).

What nobody can see: bytes that were changed or zeroed inside a JPEG, TIFF, BMP, GIF, WebP or DICOM file, as only PNG
has check sums (some such files are refused by chance; a manifest's sha256 tells them all); and a JPEG that was cut off
and closed again with an end marker.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.envs.containers import known_format
from maskaug.envs.decoding import Picture, decode
from maskaug.envs.dicom import decode_dicom, is_dicom
from maskaug.envs.errors import ConfigurationError, ImageError
from maskaug.envs.fitting import FITS, fit_mask, fit_plane, resize, resize_mask
from maskaug.envs.opening import MIN_SIDE, PictureFile, StrPath, check_memory, open_picture, quiet
from maskaug.envs.windowing import Window, parse_window

__all__ = [
    "MAX_PIXELS",
    "MIN_SIDE",
    "Reading",
    "fit_region",
    "read_fitted",
    "read_grey",
    "read_mask",
    "resize",
    "resize_mask",
]

#: More pixels than this are refused before anything is decoded.
MAX_PIXELS = 64_000_000


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a picture becomes an array.

    Attributes:
        size: S, height and width in pixels.
        channels: 1 (grey) or 3 (the picture's colours; grey repeated).
        fit: how a picture that is not square becomes so: "stretch", "letterbox" (all of it in the middle, with black
            borders), or "crop" (its middle square).
        window: of more than 8 bits a channel, the values that become 0 and 255: (low, high), also as "LOW,HIGH", or
            "minmax", each picture's own; None: such a picture is refused, unless it is a DICOM file, whose own window
            is taken. Pictures of 8 bits that are no DICOM files are not windowed.
        frame: of an animated or multi-page file, the one to read, from 0; None: such a file is refused.
        max_pixels: more than this are refused before decoding.

    Raises:
        ConfigurationError: a value that cannot be.
    """

    size: int
    channels: int = 1
    fit: str = "stretch"
    window: Window = None
    frame: int | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("channels", 1), ("max_pixels", 1), ("frame", 0)):
            if name != "frame" or self.frame is not None:
                object.__setattr__(self, name, _whole(name, getattr(self, name), least))
        if self.channels not in (1, 3):
            raise ConfigurationError(f"channels={self.channels} cannot be read; use 1 (grey) or 3 (colours)")
        if self.fit not in FITS:
            raise ConfigurationError(f"fit={self.fit!r} is unknown; use one of {', '.join(FITS)}")
        object.__setattr__(self, "window", parse_window(self.window))


def read_fitted(path: StrPath, reading: Reading) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """One picture as `reading` says, (channels, S, S) uint8, and its own (H, W), upright, before it was fitted.

    See this module's text for what becomes of each kind of picture.

    Raises:
        ImageError: the file cannot be used; it names the file, the cause and the cure.
    """
    with open_picture(path) as file, quiet():
        picture = _decode(file, reading.max_pixels, reading.window, reading.frame)
        wanted = range(3) if reading.channels == 3 and picture.colour else (None,)
        planes = [fit_plane(picture.plane(channel), reading.fit, reading.size) for channel in wanted]
        return np.stack(planes * (reading.channels // len(planes))), picture.shape


def fit_region(mask: npt.NDArray[np.bool_], reading: Reading) -> npt.NDArray[np.bool_]:
    """A picture's region, (H, W) bool → (S, S), where `read_fitted` puts its pixels.

    A region that is not empty stays so, however small it becomes; one that "crop" cuts away entirely is empty.
    """
    return fit_mask(mask, reading.fit, reading.size)


def read_grey(path: StrPath, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """One picture as grey values, in its own size; see this module's text.

    Args:
        path: the file.
        max_pixels: height × width above this is refused before decoding.

    Returns:
        (H, W) uint8, H and W at least 8, contiguous and writable.

    Raises:
        ImageError: as `read_fitted`; also for several frames, and for more than 8 bits without a DICOM window.
    """
    with open_picture(path) as file, quiet():
        return _decode(file, max_pixels).plane()


def read_mask(path: StrPath, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.bool_]:
    """One mask file: True wherever any channel is not zero (0/1, 0/255 and 16-bit masks alike; transparent is False).

    Args:
        path: the file, in any format but JPEG, which does not keep zeros, and DICOM.
        max_pixels: height × width above this is refused before decoding.

    Returns:
        (H, W) bool.

    Raises:
        ImageError: as `read_grey`, and for a JPEG or DICOM file.
    """
    with open_picture(path) as file, quiet():
        if is_dicom(file, known_format(file.peek(16)[:16])):
            raise ImageError(path, "is a DICOM file, whose values are no mask; save the mask as PNG")
        return decode(file, max_pixels, mask=True).nonzero()


def _decode(file: PictureFile, max_pixels: int, window: Window = None, frame: int | None = None) -> Picture:
    kind = known_format(file.peek(16)[:16])
    if is_dicom(file, kind):
        return decode_dicom(file, max_pixels, window, frame)
    if kind is not None and kind != "TIFF" and frame is None:
        # A TIFF file holds pages besides the one that is read; nothing else can be larger than its pixels.
        check_memory(file.path, file.bytes, max_pixels)
    return decode(file, max_pixels, window, frame)


def _whole(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ConfigurationError(f"{name}={value!r} must be an integer of at least {least}")
    return number
