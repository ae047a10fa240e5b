"""Opening a file that may be anything: only regular files, no more than a header's bytes before the size is known,
and nothing that a decoder says of it (names, dates, tags) in a warning or a log.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator

from maskaug.envs.errors import ImageError

#: Bytes that may be read of a file before its pixels: tags, profiles, texts, thumbnails.
MAX_HEADER = 32_000_000
#: Fewer pixels a side than this cannot be an image to learn from.
MIN_SIDE = 8

StrPath = str | os.PathLike[str]

_LIBRARIES = r"(PIL|pydicom|maskaug\.envs\.dicom)"
_LOGGERS = ("pydicom", "PIL.Image", "PIL.ImageFile", "PIL.PngImagePlugin", "PIL.TiffImagePlugin")


class PictureFile(io.BufferedReader):
    """A regular file open for reading; `allowance` is how many bytes may still be read, None for any number."""

    def __init__(self, path: StrPath, descriptor: int) -> None:
        super().__init__(io.FileIO(descriptor, "rb"))
        self.path = path
        self.bytes = os.fstat(descriptor).st_size
        self.allowance: int | None = MAX_HEADER

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes; refused before they are read where the allowance is used up."""
        if self.allowance is not None:
            left = max(0, self.bytes - self.tell())
            self.allowance -= left if size is None or size < 0 else min(size, left)
            if self.allowance < 0:
                raise ImageError(
                    self.path, "has more bytes beside its pixels than any picture needs; save it anew without metadata"
                )
        return super().read(size)

    def copied_as_text(self) -> bool:
        """Whether every byte sequence that is no UTF-8 was replaced by U+FFFD, as when bytes are copied as text.

        A header may survive that, and then the pixels behind it are others. Of any other picture this stops at the
        first byte that is no UTF-8, which soon comes.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        found = False
        try:
            while chunk := super().read(2**16):
                found |= "\ufffd" in decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            found = False
        self.seek(0)
        return found


@contextlib.contextmanager
def open_picture(path: StrPath) -> Iterator[PictureFile]:
    """The file at `path`, closed again afterwards, whatever happens.

    Raises:
        ImageError: nothing is there, it is no regular file (a folder, a pipe, a device), it cannot be opened, or it was
            copied as text.
    """
    problem = None
    descriptor = -1
    try:
        # Looked at before it is opened: opening a device can already do something.
        problem = _problem(os.stat(path))
        if problem is None:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            problem = _problem(os.fstat(descriptor))
    except FileNotFoundError:
        problem = "there is no such file; is the folder complete?"
    except PermissionError:
        problem = "may not be read by this user; change its permissions"
    except (OSError, ValueError) as error:
        problem = f"cannot be opened ({getattr(error, 'strerror', None) or error}); check its name"
    if problem is not None:
        if descriptor >= 0:
            os.close(descriptor)
        raise ImageError(path, problem)
    with PictureFile(path, descriptor) as file:
        if file.copied_as_text():
            raise ImageError(path, "was copied as text, so that its bytes above 127 are lost; copy it again as binary")
        yield file


def _problem(status: os.stat_result) -> str | None:
    if stat.S_ISDIR(status.st_mode):
        return "is a folder; name an image file"
    if not stat.S_ISREG(status.st_mode):
        return "is a pipe, socket or device and no file; name an image file"
    if status.st_size == 0:
        return "is empty (0 bytes); copy or download it again"
    return None


def check_size(path: StrPath, height: int, width: int, max_pixels: int) -> None:
    """Refuse what is too large or too small, (H, W) as a file's header says."""
    if width * height > max_pixels:
        raise ImageError(
            path, f"has {height} × {width} pixels, more than {max_pixels}; make it smaller, or raise max_pixels"
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(path, f"has {height} × {width} pixels; at least {MIN_SIDE} a side are needed")


def check_memory(path: StrPath, needed: float, max_pixels: int) -> None:
    """Refuse what would take more than 7 bytes for each of `max_pixels` to decode: 448 MB with the default."""
    if needed > max(7 * max_pixels, MAX_HEADER):
        raise ImageError(
            path,
            f"would take {needed / 1e6:.0f} MB to decode, more than 7 bytes for each of max_pixels={max_pixels}; save "
            "it as an ordinary PNG or make it smaller, or raise max_pixels",
        )


class _Silence(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.local = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self.local, "depth", 0)


_SILENCE = _Silence()
for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_SILENCE)

_lock = threading.Lock()
_readers = 0
_outside: warnings.catch_warnings[None] | None = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor log records of Pillow and pydicom, which quote what is in a file.

    `warnings.catch_warnings` alone would not do: it is not made for several threads, and cached data sets are decoded
    by as many as there are cores.
    """
    global _readers, _outside
    with _lock:
        if _readers == 0:
            _outside = warnings.catch_warnings()
            _outside.__enter__()
            warnings.filterwarnings("ignore", module=_LIBRARIES)
        _readers += 1
    _SILENCE.local.depth = getattr(_SILENCE.local, "depth", 0) + 1
    try:
        yield
    finally:
        _SILENCE.local.depth -= 1
        with _lock:
            _readers -= 1
            if _readers == 0 and _outside is not None:
                _outside.__exit__(None, None, None)
                _outside = None
