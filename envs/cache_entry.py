"""One entry of the cache: an array's file and its index, and when to trust them.

The index is written last, when the array is safe on disk. It knows every source by content (`maskaug.envs.sources`),
how the rows were made, and the array's own hash and stamp. At a later start an array whose stamp is the same is
trusted, as nobody can set a file's change time (ctime) back; any other one is hashed as a whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from maskaug.envs.building import HEADER, Builder, header
from maskaug.envs.errors import DatasetError
from maskaug.envs.files import atomic_write
from maskaug.envs.rows import ImageArray, RowFile, Rows, blocks, loaded
from maskaug.envs.sources import Sources

_HALF_WRITTEN = re.compile(r"\.(.+-[0-9a-f]{16})\..*\.part")


@dataclasses.dataclass(frozen=True, eq=False)
class Cached:
    """What `cached_array` returns.

    Attributes:
        array: (N, …) uint8, read-only; in memory up to `IN_MEMORY` bytes, or where nothing could be written.
        details: what the builder noted beside it, JSON values only.
    """

    array: ImageArray
    details: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CacheEntry:
    """`STEM.json` says what `STEM-FINGERPRINT.npy` holds; `STEM.lock` is held by who writes `.STEM.….part`.

    Attributes:
        folder: the cache's.
        stem: what all its files' names begin with.
        about: a hash of how the rows are made.
        threads: that may hash sources.
    """

    folder: Path
    stem: str
    about: str
    threads: int

    @property
    def index(self) -> Path:
        """What is in it."""
        return self.folder / f"{self.stem}.json"

    @property
    def lock(self) -> Path:
        """Held by who writes."""
        return self.folder / f"{self.stem}.lock"

    def read(self, known: Sources, *, locked: bool = False) -> Cached | None:
        """The entry, or None if there is no whole one of these sources. What was touched gets its new stamp."""
        try:
            raw = self.index.read_bytes()
            noted = _unpack(raw)
            if noted["about"] != self.about:
                return None
            shape = tuple(int(side) for side in noted["shape"])
            file = RowFile(self.folder / f"{self.stem}-{noted['fingerprint'][:16]}.npy", HEADER, shape)
            head = os.pread(file.descriptor, HEADER, 0)
            stamp = _array_stamp(file)
            if head != header(shape) or stamp[0] != HEADER + math.prod(shape):
                return None
            if stamp != noted["array"] and _hash_rows(file) != noted["sha256"]:
                return None
            columns = noted["sources"]
            details = dict(noted["details"])
        # Whatever is wrong with an entry, the answer is the same: it is not there.
        except (OSError, ValueError, KeyError, TypeError):
            return None
        same = known.match(columns, self.threads)
        if same is False:
            return None
        if same is None or stamp != noted["array"]:
            self._stamp_again(raw, {**noted, "array": stamp, "sources": known.columns()}, locked)
        return Cached(loaded(file), details)

    def write(self, builder: Builder, known: Sources, details: dict[str, Any]) -> Cached | None:
        """Publish what was built, the index last: until it names the new array, there is no entry. None: it cannot."""
        columns = known.columns()
        made = json.dumps([self.about, columns["names"], columns["hashes"]])
        fingerprint = hashlib.sha256(made.encode()).hexdigest()
        published = builder.publish(fingerprint)
        if published is None:
            return None
        try:
            file = RowFile(published[0], HEADER, builder.shape)
            noted = {
                "about": self.about,
                "fingerprint": fingerprint,
                "shape": list(builder.shape),
                "array": _array_stamp(file),
                "sha256": published[1],
                "sources": columns,
                "details": details,
            }
            self._write_index(noted)
            array = loaded(file)
        except (OSError, DatasetError) as error:
            with contextlib.suppress(OSError):
                self.index.unlink(missing_ok=True)
            builder.in_memory(OSError(str(error)))
            return None
        builder.keep()
        return Cached(array, details)

    def sweep(self) -> None:
        """Remove all files of this entry; only for who holds its lock."""
        for old in [*self.folder.glob(f"{self.stem}*"), *self.folder.glob(f".{self.stem}*.part")]:
            if old != self.lock:
                with contextlib.suppress(OSError):
                    old.unlink()

    def sweep_killed(self) -> None:
        """Remove what builders of any entry have left half-written; whoever is alive holds the lock of his."""
        for path in self.folder.glob(".*.part"):
            match = _HALF_WRITTEN.fullmatch(path.name)
            if match is not None:
                with (
                    contextlib.suppress(OSError, NotImplementedError),
                    filelock.FileLock(self.folder / f"{match[1]}.lock", timeout=0),
                ):
                    path.unlink()

    def _stamp_again(self, raw: bytes, noted: dict[str, Any], locked: bool) -> None:
        # It only saves the next start some time: where it cannot be written, or somebody else is at it, all is well.
        with contextlib.suppress(OSError, NotImplementedError), contextlib.ExitStack() as stack:
            if not locked:
                stack.enter_context(filelock.FileLock(self.lock, timeout=0))
            if self.index.read_bytes() == raw:
                self._write_index(noted)

    def _write_index(self, noted: Mapping[str, Any]) -> None:
        packed = _pack(noted)
        atomic_write(self.index, lambda path: _write_bytes(path, packed))


def _array_stamp(file: RowFile) -> list[int]:
    # The inode too: a file that was put in its place can carry its times.
    found = os.fstat(file.descriptor)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _hash_rows(file: RowFile) -> str:
    digest = hashlib.sha256()
    for block in blocks(Rows(file)):
        digest.update(block.data)
    return digest.hexdigest()


# An index is JSON that carries its own hash: {"check": SHA-256 of what follows "entry": , "entry": {…}}.
_CHECK, _ENTRY = b'{"check": "', b'", "entry": '


def _pack(noted: Mapping[str, Any]) -> bytes:
    body = json.dumps(noted, separators=(",", ":"), allow_nan=False).encode()
    return _CHECK + hashlib.sha256(body).hexdigest().encode() + _ENTRY + body + b"}\n"


def _unpack(raw: bytes) -> dict[str, Any]:
    body = raw[len(_CHECK) + 64 + len(_ENTRY) : -2]
    if raw[len(_CHECK) : len(_CHECK) + 64] != hashlib.sha256(body).hexdigest().encode():
        raise ValueError("a damaged index")
    noted: dict[str, Any] = json.loads(body)
    return noted


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
