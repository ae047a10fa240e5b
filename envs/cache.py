"""Decode once: the images of a folder as one `.npy` memory map and a JSON index beside it.

They lie under `MASKAUG_CACHE`, or the user's cache folder. An entry is used only if its sources, its parameters and its
own bytes are what the index says; anything else is built anew. Where nothing can be written (a read-only folder, a full
disk) the images are kept in memory and a `UserWarning` says so.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import filelock
import numpy as np
import numpy.typing as npt
import PIL
import platformdirs
from tqdm import tqdm

from maskaug.envs.errors import DatasetError
from maskaug.envs.files import atomic_write, write_json

#: Part of every fingerprint: raised whenever the files' layout or what readers put into them changes.
FORMAT = 1

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Cached:
    """What `cached_array` returns.

    Attributes:
        array: (N, …) uint8, read-only; a memory map, unless nothing could be written.
        details: what the builder noted beside it, JSON values only.
    """

    array: npt.NDArray[np.uint8]
    details: dict[str, Any]


#: One item → its rows, (K, …) uint8 with the same … for all items, and what to note of it. Called from threads.
Decoder = Callable[[T], tuple[npt.NDArray[np.uint8], Any]]


def cache_folder() -> Path:
    """The folder of all entries: `MASKAUG_CACHE`, else the user's cache folder of this system."""
    chosen = os.environ.get("MASKAUG_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("maskaug"))


def cached_array(
    name: str,
    *,
    root: Path,
    sources: Iterable[Path],
    parameters: Mapping[str, Any],
    items: Sequence[T],
    decode: Decoder[T],
    finish: Callable[[list[Any]], dict[str, Any]] = lambda notes: {},
    workers: int | None = None,
) -> Cached:
    """The rows of all `items`, in their order, decoded at most once.

    Two processes may ask at the same time: the second waits and uses the first's result. Files of an earlier state of
    the same name, root and parameters are removed when a new one is written.

    Args:
        name: the data set's name, part of the file names: letters, digits, `-` and `_`.
        root: the data set's folder.
        sources: every file below it that `decode` reads. A change of path, size or modification time rebuilds.
        parameters: whatever else decides the result, JSON values only.
        items: what `decode` is called with, at least one.
        decode: see `Decoder`.
        finish: what was noted of each item → `Cached.details`, JSON values only.
        workers: threads that decode; None: one for each core.

    Raises:
        DatasetError: a source cannot be looked at. Whatever `decode` raises passes through.
    """
    fingerprint = _fingerprint(root, sources, parameters)
    identity = json.dumps([name, str(root.resolve()), dict(parameters)], sort_keys=True)
    stem = f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    folder = cache_folder()
    found = _read(folder, stem, fingerprint)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        failure: OSError | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(folder / f"{stem}.lock"))
        except OSError as error:
            failure = error
        else:
            found = _read(folder, stem, fingerprint)
            if found is not None:
                return found
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            decoded = pool.map(decode, items)
            bar = tqdm(decoded, total=len(items), desc=f"decoding {name}", unit="image", disable=None, leave=False)
            rows, told = zip(*bar, strict=True)
        array, details = np.concatenate(rows), finish(list(told))
        if array.dtype != np.uint8 or array.size == 0:
            raise TypeError(f"a cache holds uint8 and at least one value, got {array.dtype} of shape {array.shape}")
        # Through JSON in any case, so that the first reader sees the same types as every later one.
        notes = json.dumps(details)
        if failure is None:
            try:
                _write(folder, stem, fingerprint, array, notes)
                found = _read(folder, stem, fingerprint)
            except OSError as error:
                failure = error
    if found is not None:
        return found
    warnings.warn(
        f"the decoded images of {name!r} cannot be kept in {folder} ({failure or 'what was written reads otherwise'}) "
        "and stay in memory; set MASKAUG_CACHE to a folder with room that can be written to",
        UserWarning,
        stacklevel=2,
    )
    array.setflags(write=False)
    return Cached(array, json.loads(notes))


def _fingerprint(root: Path, sources: Iterable[Path], parameters: Mapping[str, Any]) -> str:
    files = []
    for path in set(sources):
        try:
            stat = path.stat()
        except OSError as error:
            raise DatasetError(f"{path} cannot be looked at ({error.strerror}); is the folder still there?") from error
        files.append((path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns))
    # The decoders' versions too: another release may round differently, and a warm start must equal a cold one.
    about = [FORMAT, PIL.__version__, cv2.__version__, dict(parameters), sorted(files)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _read(folder: Path, stem: str, fingerprint: str) -> Cached | None:
    # Whatever is wrong with an entry, the answer is the same: it is not there.
    try:
        index = json.loads((folder / f"{stem}.json").read_bytes())
        if index["format"] != FORMAT or index["fingerprint"] != fingerprint:
            return None
        path = folder / f"{stem}-{fingerprint[:16]}.npy"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != index["sha256"]:
                return None
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or list(array.shape) != index["shape"]:
            return None
        return Cached(array, dict(index["details"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, stem: str, fingerprint: str, array: npt.NDArray[np.uint8], notes: str) -> None:
    # The index is written last: until it names the new array, there is no entry.
    target = folder / f"{stem}-{fingerprint[:16]}.npy"
    for old in [*folder.glob(f"{stem}*"), *folder.glob(f".{stem}*")]:
        if old.name != f"{stem}.lock":
            # Windows keeps files that another process has mapped; the next build gets them.
            with contextlib.suppress(OSError):
                old.unlink()
    digest = ""

    def write(temporary: Path) -> None:
        nonlocal digest
        with temporary.open("wb") as file:
            np.lib.format.write_array(file, array, allow_pickle=False)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()

    atomic_write(target, write)
    index = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "sha256": digest,
        "shape": list(array.shape),
        "details": json.loads(notes),
    }
    write_json(folder / f"{stem}.json", index)
