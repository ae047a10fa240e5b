"""Reading the files of one entry for a check: what is known of the picture, or what is wrong with it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from maskaug.envs.duplicates import Fingerprint, fingerprint
from maskaug.envs.errors import DatasetError, ImageError
from maskaug.envs.findings import Finding, Item, finding
from maskaug.envs.folders import is_file, refusal
from maskaug.envs.images import Reading
from maskaug.envs.listing import Entry, Listing
from maskaug.envs.loading import confine, decode

T = TypeVar("T")
R = TypeVar("R")

#: A region of more of its picture is no region: a photo was taken for a mask, or a mask is inverted.
NEARLY_ALL = 0.95


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Look:
    """A picture that could be read.

    Attributes:
        file: the SHA-256 of its file.
        print: what it is known again by.
        marked: whether its region is not empty; without regions False.
        full: whether its region covers nearly all of it, more than `NEARLY_ALL`; without regions False.
    """

    file: bytes
    print: Fingerprint
    marked: bool
    full: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Trouble:
    """Why a picture cannot be used: a kind of `maskaug.envs.findings.KINDS`, and what is told of it."""

    kind: str
    item: Item


def look_at(entry: Entry, listing: Listing, reading: Reading) -> Look | list[Trouble]:
    """Read one entry's files as loading does, once; what is wrong with them is returned, not raised."""
    absent = [trouble for path in (entry.path, *entry.masks) if (trouble := _absent(path, listing))]
    seen = absent or _read(entry, listing, reading)
    return [seen] if isinstance(seen, Trouble) else seen


def _absent(path: Path, listing: Listing) -> Trouble | None:
    try:
        return None if is_file(path) else Trouble("missing", Item((below(path, listing),)))
    except OSError as error:
        return Trouble("unreadable", Item((below(path, listing),), refusal(path, error)))


def _read(entry: Entry, listing: Listing, reading: Reading) -> Look | Trouble:
    name = entry.name
    try:
        entry = confine(entry, listing)
        with entry.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        if entry.sha256 is not None and digest.hexdigest() != entry.sha256.lower():
            return Trouble("sha256", Item((name,), f"is {digest.hexdigest()}, expected {entry.sha256}"))
        planes, marked = decode(entry, reading, listing)
    except OSError as error:
        return Trouble("unreadable", Item((name,), refusal(entry.path, error)))
    except ImageError as error:
        return Trouble("unreadable", Item((below(Path(error.path), listing),), error.reason))
    except DatasetError as error:
        return Trouble("mask", Item((name,), str(error)))
    # Without regions there is no plane behind the picture's.
    full = planes[reading.channels :].sum() > NEARLY_ALL * planes[0].size
    return Look(digest.digest(), fingerprint(planes[: reading.channels]), marked, bool(full))


def full_regions(listing: Listing, looks: Sequence[tuple[int, Look]]) -> list[Finding]:
    """The entries, by number, whose region covers nearly all of their picture."""
    return finding("full_region", [Item((listing.entries[i].name,)) for i, look in looks if look.full])


def each(function: Callable[[T], R], items: Sequence[T], name: str, workers: int | None) -> list[R]:
    """`function` of all items, in order, from threads, with a progress bar on a terminal's stderr."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        done = pool.map(function, items)
        return list(tqdm(done, total=len(items), desc=f"checking {name}", unit="image", disable=None, leave=False))


def below(path: Path, listing: Listing) -> str:
    """A path as tables print it."""
    return path.relative_to(listing.root).as_posix() if path.is_relative_to(listing.root) else str(path)
