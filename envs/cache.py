"""Decode once: the images of a folder as one `.npy` file and a JSON index beside it.

They lie under `MASKAUG_CACHE`, or the user's cache folder, never below the data set's own. An entry is used only if its
sources, its parameters and its own bytes are what the index says (`maskaug.envs.cache_entry`); anything else is built
anew. What was touched or copied is hashed, and where the content is the same nothing is decoded. Where nothing can be
written (a read-only folder, a full disk) the images are kept in memory and a `UserWarning` says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
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

from maskaug.envs.building import Builder
from maskaug.envs.cache_entry import Cached, CacheEntry
from maskaug.envs.sources import Sources, Stamp, check_workers, in_order

#: Part of every fingerprint: raised whenever the files' layout or what readers put into them changes.
FORMAT = 3

T = TypeVar("T")

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
    sources: Iterable[Path] | Mapping[str, Stamp],
    parameters: Mapping[str, Any],
    items: Sequence[T],
    decode: Decoder[T],
    finish: Callable[[list[Any]], dict[str, Any]] = lambda notes: {},
    state: Any = None,
    expected: Mapping[Path, str] | None = None,
    confine: bool = False,
    workers: int | None = None,
    unit: str = "image",
) -> Cached:
    """The rows of all `items`, in their order, decoded at most once.

    Several processes may ask at the same time: one builds, the others wait and use its result. Rows go to the disk as
    they are decoded. Files of an earlier state of the same name, root and parameters are removed when a new one is
    written, and what killed builders have left is removed by the next who comes.

    Args:
        name: the data set's name, part of the file names: letters, digits, `-` and `_`.
        root: the data set's folder.
        sources: every file below it that `decode` reads, best in the order in which it reads them; or their stamps
            (`maskaug.envs.sources.stamp_of`) by path, where somebody has looked at them already.
        parameters: whatever else tells this entry from others that are wanted as well, JSON values only.
        items: what `decode` is called with, at least one.
        decode: see `Decoder`.
        finish: what was noted of each item → `Cached.details`, JSON values only.
        state: whatever else decides the rows and may change with the data set, such as the order of its images; JSON
            values only. Another state replaces the entry.
        expected: the SHA-256 that sources must have, as hexadecimal digits.
        confine: whether a source that turns out to lie outside `root`, by a link, is refused rather than hashed.
        workers: threads that decode; None: one for each core that this process may use.
        unit: what the progress bar calls an item.

    Raises:
        DatasetError: a source cannot be looked at, or changed while it was read. Whatever `decode` raises passes
            through.
        ImageError: a source is not what was expected, or not below `root` though it must be.
        ConfigurationError: `workers` is no number of threads.
    """
    threads = check_workers(workers)
    identity = json.dumps([name, str(root.resolve()), dict(parameters)], sort_keys=True)
    stem = f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    # The decoders' versions too: another release may round differently, and a warm start must equal a cold one.
    about = json.dumps([FORMAT, PIL.__version__, cv2.__version__, identity, state], sort_keys=True)
    entry = CacheEntry(cache_folder(), stem, hashlib.sha256(about.encode()).hexdigest(), threads)
    known = Sources.look(root, sources, expected or {}, confine)
    found = entry.read(known)
    if found is not None:
        entry.sweep_killed()
        return found
    with contextlib.ExitStack() as stack:
        failure: OSError | None = None
        try:
            entry.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(entry.lock))
        except NotImplementedError as error:
            failure = OSError(str(error))
        except OSError as error:
            failure = error
        else:
            # Whoever held the lock may have built it, and that may have taken a while.
            known = known.again()
            found = entry.read(known, locked=True)
            if found is not None:
                return found
            entry.sweep()
            entry.sweep_killed()
        builder = stack.enter_context(Builder(entry.folder, stem, failure))
        notes = _decode_all(name, unit, builder, known, items, decode, threads)
        if math.prod(builder.shape) == 0:
            raise TypeError(f"a cache holds at least one value, got the shape {builder.shape}")
        known.check_unchanged()
        # Through JSON in any case, so that the first reader sees the same types as every later one.
        details = json.loads(json.dumps(finish(notes), allow_nan=False))
        found = entry.write(builder, known, details)
        if found is not None:
            return found
        array = builder.in_memory()
        failure = builder.failure
    warnings.warn(
        f"the decoded images of {name!r} cannot be kept in {entry.folder} ({failure}) "
        "and stay in memory; set MASKAUG_CACHE to a folder with room that can be written to",
        UserWarning,
        stacklevel=2,
    )
    return Cached(array, details)


def _decode_all(
    name: str, unit: str, builder: Builder, known: Sources, items: Sequence[T], decode: Decoder[T], threads: int
) -> list[Any]:
    # Each source is hashed just before the item that is likely to read it: one of the two finds it in memory.
    def one(i: int) -> tuple[npt.NDArray[np.uint8], Any]:
        first, last = (len(known.order) * j // len(items) for j in (i, i + 1))
        for path in known.order[first:last]:
            known.hash(path)
        return decode(items[i])

    notes = []
    with (
        contextlib.closing(in_order(one, range(len(items)), threads)) as decoded,
        tqdm(total=len(items), desc=f"decoding {name}", unit=unit, disable=None, leave=False) as bar,
    ):
        for rows, note in decoded:
            builder.append(rows)
            notes.append(note)
            bar.update()
    return notes
