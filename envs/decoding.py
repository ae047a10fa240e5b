"""Pillow's part: a file → its planes of grey or colour, uint8, in bands of rows, so that no whole copy is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from maskaug.envs.containers import DEEP_COLOUR, check_container, check_tiff, known_format, strip_bytes
from maskaug.envs.errors import ConfigurationError, ImageError
from maskaug.envs.opening import PictureFile, check_memory, check_size
from maskaug.envs.windowing import Floats, Window, bands, linear, span, to_bytes

# Only these are tried: Pillow's other formats start external programs (EPS) or are never medical pictures.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")

# 1-bit and plain grey, grey on which transparency lies, and what goes through RGB or RGBA.
_GREY = ("1", "L")
_CLEAR = ("RGBA", "RGBa", "LA", "La", "PA")
_COLOUR = ("RGB", "RGBX", "P", "CMYK", "YCbCr", "LAB")
# EXIF orientation → the upright picture's view in which the stored rows and columns lie.
_UPRIGHT: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a.T[::-1],
    7: lambda a: a.T[::-1, ::-1],
    8: lambda a: a.T[:, ::-1],
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        size: (H, W) as stored.
        colour: whether its bands are RGB.
        band: a slice of the stored rows → those rows as a Pillow image, "RGB" if `colour`, else "L".
        orientation: EXIF's, 1 … 8.
    """

    size: tuple[int, int]
    colour: bool
    band: Callable[[slice], Image.Image]
    orientation: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W), upright."""
        return self.size if self.orientation < 5 else (self.size[1], self.size[0])

    def plane(self, channel: int | None = None) -> npt.NDArray[np.uint8]:
        """(H, W) uint8, upright: red, green or blue (0, 1, 2), or None: the grey value (luma, ITU-R 601)."""
        result = np.empty(self.shape, np.uint8)
        stored = _UPRIGHT[self.orientation](result)
        for rows in bands(*self.size):
            band = self.band(rows)
            if self.colour:
                band = band.convert("L") if channel is None else band.getchannel(channel)
            stored[rows] = np.asarray(band)
        return result

    def nonzero(self) -> npt.NDArray[np.bool_]:
        """(H, W) bool, upright: where any channel is not 0."""
        if not self.colour:
            return np.not_equal(self.plane(), 0)
        result: npt.NDArray[np.bool_] = np.not_equal(self.plane(0), 0)
        for channel in (1, 2):
            result |= self.plane(channel) != 0
        return result


def decode(
    file: PictureFile, max_pixels: int, window: Window = None, frame: int | None = None, *, mask: bool = False
) -> Picture:
    """Any file of `FORMATS`, by its content.

    Args:
        file: open, at its beginning.
        max_pixels: height × width above this is refused before decoding.
        window: for more than 8 bits, see `windowing.parse_window`.
        frame: of several, the one to read.
        mask: more than 8 bits become 0 where they are 0 and 255 elsewhere; JPEG is refused.

    Raises:
        ImageError: as `images.read_fitted` says.
        ConfigurationError: Pillow has been told to load truncated images.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigurationError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, with which half a picture would be read without a word; "
            "set it to False"
        )
    kind = known_format(file.peek(16)[:16])
    problem = f"is not a picture of a known format ({', '.join(FORMATS)} or DICOM); is it named wrongly?"
    try:
        if kind is not None:
            problem = f"starts like a {kind} file, but is damaged or of a kind that Pillow cannot read; save it as PNG"
            check_container(file, kind)
            if kind == "WEBP":
                # Its decoder takes the whole file in, four times as pixels.
                check_memory(file.path, file.bytes, max_pixels)
                file.allowance = None
            with Image.open(file, formats=FORMATS) as image:
                return _decode(file, image, max_pixels, window, frame, mask)
    except (ImageError, ConfigurationError):
        raise
    except UnidentifiedImageError:
        pass
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        if limit >= max_pixels:
            problem = f"has more pixels than {max_pixels}; make it smaller, or raise max_pixels"
        else:
            problem = f"has more than the {limit} pixels that Pillow opens; raise PIL.Image.MAX_IMAGE_PIXELS too"
    except Exception as error:
        # A damaged file can make a decoder raise anything; what it means to the user is always the same.
        problem = f"is truncated or damaged ({str(error) or type(error).__name__}); copy or download it again"
        if "Decompressed data too large" in problem:
            problem = "has texts or profiles that inflate to more than 1 MB; save it anew without metadata"
    raise ImageError(file.path, problem)


def _decode(
    file: PictureFile, image: Image.Image, max_pixels: int, window: Window, frame: int | None, mask: bool
) -> Picture:
    path, kind = file.path, image.format or ""
    width, height = image.size
    check_size(path, height, width, max_pixels)
    if mask and kind in ("JPEG", "MPO"):
        raise ImageError(path, "is a JPEG, which does not keep a mask's zeros; save the mask as PNG")
    several = bool(getattr(image, "is_animated", False))
    check_memory(path, _memory(file, image, several), max_pixels)
    file.allowance = None
    if several or frame:
        _seek(path, image, frame)
        # Pages differ in size.
        width, height = image.size
        check_size(path, height, width, max_pixels)
        check_memory(path, _memory(file, image, several), max_pixels)
    raw = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    inverted = unsigned = False
    if kind == "TIFF":
        check_tiff(file, image)
        tags = image.tag_v2  # type: ignore[attr-defined]
        # Pillow turns white-is-zero round only where there are 8 bits or fewer, and reads unsigned 32 bits as signed.
        inverted = deep and tags.get(262) == 0
        unsigned = image.mode == "I" and 1 in tags.get(339, (1,))
    if not deep and ";16" in raw:
        raise ImageError(path, DEEP_COLOUR)
    if image.mode == "CMYK" and kind in ("JPEG", "MPO") and "adobe" not in image.info:
        raise ImageError(path, "is CMYK without Adobe's marker, so that 0 may be ink or none; save it as RGB")
    if deep and window is None and not mask:
        raise ImageError(
            path,
            "has more than 8 bits a pixel, and which values are black and white is never guessed; choose them with "
            "window=LOW,HIGH, or take the least and greatest of each picture with window=minmax",
        )
    if not deep and image.mode not in (*_GREY, *_CLEAR, *_COLOUR):
        raise ImageError(path, f"has pixels of a kind ({image.mode}) that is not read; save it as RGB")
    image.load()
    orientation = image.getexif().get(0x0112, 1) if kind != "TIFF" else 1
    if orientation not in _UPRIGHT:
        orientation = 1
    key = image.info.get("transparency")
    if deep:
        band = _deep_band(path, image, window, mask, inverted=inverted, unsigned=unsigned, key=key)
        return Picture((height, width), False, band, orientation)
    if image.mode in _GREY:
        # Of 2 and 4 bits the key is in those units, but Pillow's pixels are not.
        scale = 85 if "L;2" in raw else 17 if "L;4" in raw else 1
        clear = key * scale if isinstance(key, int) else None
        return Picture((height, width), False, lambda rows: _grey_band(_rows(image, rows), clear), orientation)
    return Picture((height, width), True, lambda rows: _colour_band(_rows(image, rows)), orientation)


def _seek(path: Any, image: Image.Image, frame: int | None) -> None:
    if frame is None:
        raise ImageError(
            path,
            "is animated or has several pages; choose one with frame=N, counted from 0",
        )
    count = getattr(image, "n_frames", 1)
    if frame >= count:
        raise ImageError(path, f"has no frame {frame}: there are {count}, counted from 0; choose another frame=")
    image.seek(frame)


def _memory(file: PictureFile, image: Image.Image, several: bool) -> float:
    """Bytes that decoding takes at most, found by measuring pictures as large as are let through."""
    width, height = image.size
    packed = 0
    pixel = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    if image.format == "WEBP":
        pixel, packed = 17, file.bytes
    elif several and image.format in ("GIF", "PNG"):
        # Frames are laid upon each other.
        pixel = 20
    elif image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(0x0112, 1) != 1:
            pixel *= 2
        if tags.get(259, 1) != 1:
            # libtiff decodes a whole strip at once, and a strip may be everything.
            rows = min(height, int(tags.get(278, height))) if 324 not in tags else height
            pixel += sum(tags.get(258, (1,))) / 8 * rows / height
            packed = strip_bytes(tags)
    elif image.info.get("progressive"):
        # All coefficients are kept until the last scan, 2 bytes each.
        layers = [h * v for _, v, h, _ in image.layer]  # type: ignore[attr-defined]
        pixel += 2 * sum(layers) / max(1, max(layers, default=1))
    return (pixel + 1) * width * height + packed


def _rows(image: Image.Image, rows: slice) -> Image.Image:
    whole = rows.stop - rows.start == image.height
    return image if whole else image.crop((0, rows.start, image.width, rows.stop))


def _grey_band(band: Image.Image, clear: int | None) -> Image.Image:
    grey = band.convert("L") if band.mode == "1" else band
    return grey if clear is None else grey.point([0 if value == clear else value for value in range(256)])


def _colour_band(band: Image.Image) -> Image.Image:
    if band.mode == "LAB":
        # CIELab (D50) → sRGB, the one conversion that needs a colour engine.
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(band, lab, rgb, outputMode="RGB") or band
    if band.mode == "La":
        band = band.convert("LA")
    if band.mode in _CLEAR or "transparency" in band.info:
        clear = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", clear.size, (0, 0, 0, 255)), clear)
    return band if band.mode == "RGB" else band.convert("RGB")


def _deep_band(
    path: Any, image: Image.Image, window: Window, mask: bool, *, inverted: bool, unsigned: bool, key: Any
) -> Callable[[slice], Image.Image]:
    def values(rows: slice) -> Floats:
        stored = np.asarray(_rows(image, rows))
        return (stored.view(np.uint32) if unsigned else stored).astype(np.float64)

    try:
        # Floats are looked at in any case: what is not a number can be no pixel.
        ends = span(image.height, image.width, values) if window == "minmax" or image.mode == "F" else (0.0, 0.0)
    except ValueError as error:
        raise ImageError(path, f"has {error}; replace them first") from None
    scale = linear(*(window if isinstance(window, tuple) else ends))

    def band(rows: slice) -> Image.Image:
        found = values(rows)
        grey = np.where(found != 0, np.uint8(255), np.uint8(0)) if mask else to_bytes(scale(found), inverted=inverted)
        if isinstance(key, int):
            grey[found == key] = 0
        return Image.fromarray(grey)

    return band
