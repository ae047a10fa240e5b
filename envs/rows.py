"""Images that stay on disk: `Rows`, an array over a cache file whose rows are read when they are asked for.

No memory map: what a map has read counts as the process's memory, and a file that is cut short under it kills the
process. `os.preadv` of 64 random rows of 224 × 224 costs about as much as copying them out of a map.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from maskaug.envs.errors import DatasetError

#: arrays of at most so many bytes are read into memory by `loaded`; larger ones stay in their file.
IN_MEMORY = 2**28
#: bytes that `blocks` hands out at once.
BLOCK = 2**25
#: buffers that one system call fills at most (IOV_MAX of Linux and macOS).
_BUFFERS = 1024


class RowFile:
    """A file that is open for reading for as long as this object lives; `os.preadv` needs no lock between threads.

    Args:
        path: the file.
        offset: bytes before its first row.
        shape: (N, …) of its uint8 rows.

    Raises:
        DatasetError: it is not there, or shorter than that.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]) -> None:
        self.path, self.offset, self.shape = path, offset, shape
        self.row = math.prod(shape[1:])
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DatasetError(f"{path} cannot be opened ({error.strerror}); start again to rebuild it") from error
        # Not __del__: that would not run for what is alive when the interpreter ends.
        weakref.finalize(self, os.close, self.descriptor)
        if os.fstat(self.descriptor).st_size < offset + shape[0] * self.row:
            raise self._cut()

    def read(self, buffers: Sequence[Any], start: int) -> None:
        """Fill contiguous buffers with what follows byte `start`.

        Raises:
            DatasetError: the file has been cut short, or cannot be read.
        """
        wanted = sum(buffer.nbytes for buffer in buffers)
        try:
            got = os.preadv(self.descriptor, buffers, start)
            if got == wanted:
                return
            # A signal, or a file system that answers in pieces.
            for buffer in buffers:
                view, done = buffer.reshape(-1), 0
                while done < buffer.nbytes:
                    got = os.preadv(self.descriptor, [view[done:]], start + done)
                    if got == 0:
                        raise self._cut()
                    done += got
                start += done
        except OSError as error:
            raise DatasetError(f"{self.path} cannot be read ({error.strerror}); start again to rebuild it") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return RowFile, (self.path, self.offset, self.shape)

    def _cut(self) -> DatasetError:
        return DatasetError(f"{self.path} is shorter than its {self.shape[0]} images; start again to rebuild it")


class Rows:
    """An array (N, …), read-only, whose rows stay in a file; indexing its first axis gives plain arrays of their own.

    `rows[i]`, `rows[2:9]`, `rows[(M,) integers]`, `rows[(N,) bool]`, also followed by integers and slices for the other
    axes (`rows[:8, 0]`), which are applied to what was read; `np.asarray(rows)` reads all of it. Copies and pickles
    hold the path, not the pixels. Threads may share one.

    Args:
        file: where the rows are.
        index: (N,) which of them and in which order; None: all.
        planes: first and last + 1 along the rows' first axis; None: whole rows.
        channels: shows the one plane so many times along that axis, though it is stored and read once.
        region: that one plane without its axis, as bool: (N, …).
    """

    def __init__(
        self,
        file: RowFile,
        index: npt.NDArray[np.int64] | None = None,
        planes: tuple[int, int] | None = None,
        channels: int = 1,
        region: bool = False,
    ) -> None:
        self._file, self._index, self._planes, self._channels, self._region = file, index, planes, channels, region
        first, last = planes or (0, 1)
        if planes is not None and not 0 <= first < last <= file.shape[1]:
            raise IndexError(f"planes {planes} are not among the {file.shape[1]} of {file.path}")
        if (channels > 1 or region) and (planes is None or last != first + 1):
            raise IndexError("only one plane can be repeated, or be a region")
        one = file.shape[1:] if planes is None else (last - first, *file.shape[2:])
        self._stored = one
        n = file.shape[0] if index is None else len(index)
        shown = one[1:] if region else one if channels == 1 else (channels, *one[1:])
        #: (N, …).
        self.shape: tuple[int, ...] = (n, *shown)
        #: uint8, or bool of a region.
        self.dtype: np.dtype[Any] = np.dtype(np.bool_ if region else np.uint8)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """What it takes once it is read."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        if isinstance(key, tuple):
            if not key or not all(isinstance(part, int | np.integer | slice) for part in key[1:]):
                raise IndexError("images on disk take integers and slices beyond their first axis; read them first")
            head = self[key[0]]
            rest: Any = key[1:] if isinstance(key[0], int | np.integer) else (slice(None), *key[1:])
            part: npt.NDArray[Any] = head[rest]
            return part
        if isinstance(key, int | np.integer) and not isinstance(key, bool | np.bool_):
            one: npt.NDArray[Any] = self._read(self._numbers(np.array([key])))[0]
            return one
        return self._read(self._numbers(key))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("images on disk cannot become an array without a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def take(self, index: npt.ArrayLike) -> Self:
        """The rows at `index`, (M,) integers or (N,) bool, in that order, as a view: nothing is read."""
        return type(self)(self._file, self._numbers(index), self._planes, self._channels, self._region)

    def plane(self, number: int, channels: int = 1) -> Self:
        """One plane of every whole row, shown `channels` times: (N, channels, …)."""
        return type(self)(self._file, self._index, (number, number + 1), channels)

    def planes(self, first: int, last: int) -> Self:
        """Some planes of every whole row: (N, last − first, …)."""
        return type(self)(self._file, self._index, (first, last))

    def region(self, number: int) -> Self:
        """One plane of every whole row, of zeros and ones, as bool: (N, …) without the planes' axis."""
        return type(self)(self._file, self._index, (number, number + 1), region=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Nobody can change one, and the open file is worth sharing.
        return self

    def _numbers(self, key: Any) -> npt.NDArray[np.int64]:
        """The rows' numbers in the file."""
        n = len(self)
        if isinstance(key, slice):
            index: npt.NDArray[Any] = np.arange(*key.indices(n))
        else:
            index = np.asarray(key)
            if index.ndim != 1 or (index.size and index.dtype != np.bool_ and index.dtype.kind not in "iu"):
                raise IndexError(f"images on disk are indexed by (M,) integers or (N,) bool, not by {key!r}")
            if index.dtype == np.bool_:
                if len(index) != n:
                    raise IndexError(f"a bool index must have one value for each of the {n} images, not {len(index)}")
                index = np.flatnonzero(index)
            index = index.astype(np.int64)
            if index.size and not (-n <= index.min() and index.max() < n):
                raise IndexError(f"there are {n} images; {index.min()} … {index.max()} were asked for")
            index = np.where(index < 0, index + n, index)
        return index.astype(np.int64) if self._index is None else self._index[index]

    def _read(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        file = self._file
        out = np.empty((len(numbers), *self._stored), np.uint8)
        plane = math.prod(self._stored[1:])
        skipped = 0 if self._planes is None else self._planes[0] * plane
        # In the file's order, neighbours with one call: a disk is read forwards.
        order = np.argsort(numbers, kind="stable")
        ascending = numbers[order]
        whole = self._planes is None or plane * self._stored[0] == file.row
        follows = np.diff(ascending) == 1 if whole else np.zeros(max(0, len(numbers) - 1), np.bool_)
        starts = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(numbers)]
        for begin, end in itertools.pairwise(starts):
            for some in range(begin, end, _BUFFERS):
                buffers = [out[k] for k in order[some : min(end, some + _BUFFERS)].tolist()]
                if buffers:
                    file.read(buffers, file.offset + int(ascending[some]) * file.row + skipped)
        if self._region:
            return out[:, 0].view(np.bool_)
        return out if self._channels == 1 else np.repeat(out, self._channels, axis=1)


#: (N, C, H, W) uint8: in memory, or in a file.
ImageArray = npt.NDArray[np.uint8] | Rows
#: (N, H, W) bool: in memory, or in a file.
RegionArray = npt.NDArray[np.bool_] | Rows


def as_images(rows: ImageArray, planes: int, channels: int) -> ImageArray:
    """(N, P, H, W) → (N, channels, H, W): the first `planes` planes; one plane is shown `channels` times, uncopied."""
    if isinstance(rows, Rows):
        return rows.plane(0, channels) if planes == 1 else rows.planes(0, planes)
    return np.broadcast_to(rows[:, :planes], (len(rows), channels, *rows.shape[2:]))


def as_regions(rows: ImageArray) -> RegionArray:
    """(N, P, H, W) → (N, H, W) bool: the last plane, of zeros and ones, uncopied."""
    return rows.region(rows.shape[1] - 1) if isinstance(rows, Rows) else rows[:, -1].view(np.bool_)


def loaded(file: RowFile) -> ImageArray:
    """All rows of a file: read into memory, read-only, up to `IN_MEMORY` bytes, else `Rows`."""
    rows = Rows(file)
    if rows.nbytes > IN_MEMORY:
        return rows
    array = rows[:]
    array.setflags(write=False)
    return array


def blocks(array: npt.NDArray[Any] | Rows) -> Iterator[npt.NDArray[Any]]:
    """(N, …) → the same rows in order, contiguous and a few at a time: at most `BLOCK` bytes, or one row."""
    count = max(1, BLOCK // max(1, array.nbytes // max(1, len(array))))
    for first in range(0, len(array), count):
        yield np.ascontiguousarray(array[first : first + count])
