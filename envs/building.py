"""Writing a cache's array row by row, so that no more than a few images are ever in memory.

Where the file cannot be written any further (a full disk, a read-only folder), what it has is read back and the rest is
kept in memory: nothing is decoded twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.envs.files import temporary_file

#: bytes before the first row: a `.npy` header of a fixed length, as the number of rows is only known at the end.
HEADER = 128


def header(shape: tuple[int, ...]) -> bytes:
    """The first `HEADER` bytes of a `.npy` file (version 1.0) of uint8, so that anybody can open it."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape!r}, }}".encode("ascii")
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11) + b"\n"


class Builder:
    """Rows of one shape, put into a temporary file of `folder` one after the other; a context that leaves nothing.

    Args:
        folder: where the file is to be.
        stem: what its name begins with.
        failure: why nothing can be written there; None: so far nothing is known against it.

    Attributes:
        failure: the error after which everything was taken into memory.
        shape: (N, …) of what it holds so far.
    """

    def __init__(self, folder: Path, stem: str, failure: OSError | None) -> None:
        self.folder, self.stem, self.failure = folder, stem, failure
        self.shape: tuple[int, ...] = ()
        self._memory = bytearray()
        self._digest = hashlib.sha256()
        self._descriptor = -1
        self._path: Path | None = None
        if failure is None:
            try:
                self._descriptor, self._path = temporary_file(folder, stem)
                # The rows come behind it.
                self._write(bytes(HEADER))
            except OSError as error:
                self._give_up(error)

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def append(self, rows: npt.NDArray[np.uint8]) -> None:
        """Put (K, …) uint8 rows at the end.

        Raises:
            TypeError: they are not uint8, or of another shape than those before.
        """
        if rows.dtype != np.uint8 or (self.shape and rows.shape[1:] != self.shape[1:]):
            raise TypeError(f"a cache holds uint8 rows of one shape, got {rows.dtype} of shape {rows.shape}")
        data = np.ascontiguousarray(rows).reshape(-1).data
        if self.failure is None:
            try:
                self._write(data)
                self._digest.update(data)
            except OSError as error:
                self._give_up(error)
        if self.failure is not None:
            self._memory += data
        self.shape = (len(rows) + (self.shape[0] if self.shape else 0), *rows.shape[1:])

    def publish(self, fingerprint: str) -> tuple[Path, str] | None:
        """Give the file its name; (path, SHA-256 of the rows), or None where that failed."""
        if self.failure is not None:
            return None
        assert self._path is not None
        target = self.folder / f"{self.stem}-{fingerprint[:16]}.npy"
        try:
            os.pwrite(self._descriptor, header(self.shape), 0)
            os.fsync(self._descriptor)
            self._path.replace(target)
            self._path = target
            sync_folder(self.folder)
        except OSError as error:
            self._give_up(error)
            return None
        return target, self._digest.hexdigest()

    def keep(self) -> None:
        """Leave the published file behind."""
        self._path = None

    def in_memory(self, error: OSError | None = None) -> npt.NDArray[np.uint8]:
        """All rows, read-only; the file is gone then.

        Args:
            error: why it cannot be used, where that is known by others.
        """
        if self.failure is None:
            self._give_up(error or OSError("what was written reads otherwise"))
        array = np.frombuffer(self._memory, np.uint8).reshape(self.shape)
        array.setflags(write=False)
        return array

    def _write(self, data: Any) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def _give_up(self, error: OSError) -> None:
        # What was appended so far lies in the file, whether it has a name or not.
        self.failure = error
        self._remove()
        left, position = math.prod(self.shape) if self.shape else 0, HEADER
        while left:
            part = os.pread(self._descriptor, min(left, 2**24), position)
            if not part:
                raise error
            self._memory += part
            position, left = position + len(part), left - len(part)

    def _remove(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._path = None


def sync_folder(folder: Path) -> None:
    """Make what was renamed in `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
