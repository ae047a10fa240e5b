"""Reading the arrays of an `.npz` file row by row: what it holds is checked before it is read, and never unpickled."""

from __future__ import annotations

import contextlib
import math
import types
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from maskaug.envs.errors import DatasetError

#: An array of more bytes than this is refused, unread: a small file may claim to hold anything. The largest of
#: MedMNIST, the training images of pathmnist_224, has 13.5e9.
MAX_BYTES = 32 * 2**30


class Npz:
    """An open file; leave its `with` block to close it.

    Args:
        path: the file.
        cure: what to do about a wrong file, the end of each error's message.

    Raises:
        DatasetError: it cannot be read, or is no zip archive.
    """

    def __init__(self, path: Path, cure: str) -> None:
        self.path = path
        self.cure = cure
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:
            raise DatasetError(f"{path} is no npz file, or not all of one ({error}); {cure}") from error

    def __enter__(self) -> Npz:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._zip.close()

    def rows(self, name: str) -> Member:
        """The array called `name`, to be read from its first row on.

        Raises:
            DatasetError: there is none, it claims more than `MAX_BYTES`, it holds Python objects, it is not stored row
                by row, or its header is damaged.
        """
        try:
            about = self._zip.getinfo(f"{name}.npy")
        except KeyError:
            held = ", ".join(sorted(held.removesuffix(".npy") for held in self._zip.namelist())[:8])
            raise DatasetError(f"{self.path} holds no {name} (but {held or 'nothing'}); {self.cure}") from None
        if about.file_size > MAX_BYTES:
            raise self.wrong(name, f"claims to unpack to {about.file_size} bytes, more than {MAX_BYTES}")
        with self.guarded(name):
            file = self._zip.open(about)
            shape, columns_first, dtype = _header(file)
        if dtype.hasobject:
            raise self.wrong(name, "holds Python objects, which are never unpickled; save plain numbers")
        if columns_first:
            raise self.wrong(name, "is stored column by column; save numpy.ascontiguousarray of it")
        if not shape or file.tell() + math.prod(shape) * dtype.itemsize != about.file_size:
            raise self.wrong(name, f"has {about.file_size} bytes, which is not what its shape {shape} takes")
        return Member(self, name, file, shape, dtype)

    def wrong(self, name: str, cause: str) -> DatasetError:
        """The error that says what is wrong with an array."""
        return DatasetError(f"{self.path}: {name} {cause}; {self.cure}")

    @contextlib.contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Turns what readers raise about a damaged file into `DatasetError`."""
        try:
            yield
        except DatasetError:
            raise
        except Exception as error:
            # The readers of zip, deflate, lzma and of numpy's headers raise some twenty types between them.
            raise self.wrong(name, f"is damaged ({error})") from error


class Member:
    """One array of an open `Npz`.

    Attributes:
        name: what it is called there.
        shape: its shape, at least one axis.
        dtype: its type, without Python objects.
    """

    def __init__(self, npz: Npz, name: str, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self._npz = npz
        self._file = file
        self._left = shape[0]

    def wrong(self, cause: str) -> DatasetError:
        """The error that says what is wrong with it."""
        return self._npz.wrong(self.name, cause)

    def read(self, count: int) -> npt.NDArray[Any]:
        """The next `count` rows, fewer at its end, (count, …).

        Raises:
            DatasetError: the file ends too early, or is damaged; the checksum is looked at with the last row.
        """
        count = min(count, self._left)
        self._left -= count
        wanted = count * math.prod(self.shape[1:]) * self.dtype.itemsize
        with self._npz.guarded(self.name):
            data = self._file.read(wanted)
            # zipfile compares the checksum when it finds nothing more.
            if len(data) != wanted or (not self._left and self._file.read(1)):
                raise self.wrong("is damaged (it ends too early)")
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"npy version {version} is unknown")
    with warnings.catch_warnings():
        # Of headers that Python 2 wrote.
        warnings.simplefilter("ignore")
        return readers[version](file)
