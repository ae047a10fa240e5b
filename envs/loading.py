"""`Listing` → `ImageDataset`: find the files, decode each once into the cache, number groups, deal out validation."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maskaug.envs.cache import cached_array
from maskaug.envs.confinement import confined
from maskaug.envs.datasets import SPLITS, ImageDataset
from maskaug.envs.errors import DatasetError
from maskaug.envs.folders import ABSENT, refusal
from maskaug.envs.images import Reading, fit_region, read_fitted, read_mask
from maskaug.envs.listing import Entry, Listing, Problem
from maskaug.envs.rows import as_images, as_regions
from maskaug.envs.sources import Stamp, stamp_of
from maskaug.envs.splits import crossing_groups, deal_groups


def load_listing(listing: Listing, reading: Reading, *, seed: int = 0, workers: int | None = None) -> ImageDataset:
    """Decode the images of a listing; what is missing is left out with a `UserWarning`.

    Args:
        listing: what a reader found.
        reading: how a picture becomes an array.
        seed: of the groups that are carved from the train part for validation.
        workers: threads that decode; None: one for each core.

    Returns:
        images (N, reading.channels, S, S) uint8, read-only, in the listing's order; regions if it knows them. More than
        memory should hold stay in the cache's file (`maskaug.envs.rows.Rows`).

    Raises:
        DatasetError: a problem that is an error, no image at all, or a group in more than one official part.
        ImageError: a file cannot be read.
    """
    _tell(listing)
    if not listing.entries:
        raise DatasetError(f"{listing.root} holds no images of {listing.dataset}; {listing.tree}")
    entries = listing.entries
    groups = numbered([entry.group for entry in entries])
    # Before anything is left out: a file that is missing moves nobody to another part.
    official = official_parts(listing, groups, seed)
    labelled = [entry.label for entry in entries if entry.label is not None]
    studied = [entry.study or "" for entry in entries]
    studies = numbered(studied) if any(studied) else None
    keep, stamps = present(listing)
    chosen = [entries[i] for i in keep]
    stored = reading if listing.colour else dataclasses.replace(reading, channels=1)

    def row(entry: Entry) -> tuple[npt.NDArray[np.uint8], bool]:
        planes, marked = decode(confine(entry, listing), stored, listing)
        return planes[None], marked

    cached = cached_array(
        listing.dataset,
        root=listing.root,
        sources=stamps,
        # By name, so that two body parts, or two lists, of one folder do not drive each other out.
        parameters={
            "reading": dataclasses.asdict(stored),
            "name": listing.name,
            "variant": listing.variant,
            "plane": listing.plane,
        },
        state=_fingerprint(listing, chosen),
        expected={entry.path: entry.sha256 for entry in chosen if entry.sha256},
        confine=listing.confined,
        items=chosen,
        decode=row,
        finish=lambda notes: {"marked": notes} if listing.label_from_region else {},
        workers=workers,
    )
    labels = cached.details["marked"] if listing.label_from_region else [entry.label for entry in chosen]
    return ImageDataset(
        name=listing.name,
        images=as_images(cached.array, stored.channels, reading.channels),
        labels=np.array(labels, np.int64) if labelled or listing.label_from_region else None,
        regions=as_regions(cached.array) if listing.regions else None,
        groups=groups[keep],
        class_names=listing.class_names,
        names=tuple(entry.name for entry in chosen),
        source=listing.dataset,
        licence=listing.licence,
        citation=listing.citation,
        studies=None if studies is None else studies[keep],
        official=None if official is None else official[keep],
        study_names=tuple(sorted(set(studied))) if studies is not None else (),
    )


def decode(entry: Entry, reading: Reading, listing: Listing) -> tuple[npt.NDArray[np.uint8], bool]:
    """One image of a listing, (channels, S, S) uint8; where regions are known one plane more, its region as 0 and 1.

    Returns:
        The planes; and whether the region marks a pixel of the picture, before it is fitted: what a crop cuts away
        counts, too. Without regions False.

    Raises:
        ImageError: a file cannot be read.
        DatasetError: a mask's size is not the picture's.
    """
    if listing.plane is None:
        image, shape = read_fitted(entry.path, reading)
    else:
        colours, shape = read_fitted(entry.path, dataclasses.replace(reading, channels=3))
        image = colours[listing.plane][None]
    if not listing.regions:
        return image, False
    region = union_of_masks(entry, shape, reading.max_pixels)
    for box in entry.boxes:
        if max(0, *np.subtract(box[2:], shape[::-1])) > 1:
            raise DatasetError(
                f"{entry.path} is {shape} pixels, and its box {box} reaches beyond; was it drawn on a larger copy?"
            )
        x0, y0, x1, y1 = (math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
        region[max(0, y0) : y1, max(0, x0) : x1] = True
    return np.concatenate([image, fit_region(region, reading)[None].astype(np.uint8)]), bool(region.any())


def union_of_masks(entry: Entry, shape: tuple[int, int], max_pixels: int) -> npt.NDArray[np.bool_]:
    """What any of an entry's masks marks, (H, W) bool, all False without masks.

    Raises:
        ImageError: a mask cannot be read.
        DatasetError: a mask's size is not `shape`, the picture's.
    """
    region = np.zeros(shape, np.bool_)
    for path in entry.masks:
        mask = read_mask(path, max_pixels)
        if mask.shape != shape:
            raise DatasetError(f"{path} is {mask.shape} pixels, but its image {shape}; are both from one copy?")
        region |= mask
    return region


def confine(entry: Entry, listing: Listing) -> Entry:
    """The entry with the files that are really to be opened; to be asked at the last moment, as links may change.

    Raises:
        ImageError: of a `confined` listing, a file lies outside of its root.
    """
    if not listing.confined:
        return entry
    masks = tuple(confined(mask, listing.root) for mask in entry.masks)
    return dataclasses.replace(entry, path=confined(entry.path, listing.root), masks=masks)


def official_parts(listing: Listing, groups: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64] | None:
    """The place in `SPLITS` of each entry's part by the data set's own division, (N,); None if it has none.

    Raises:
        DatasetError: a group has images in more than one part.
    """
    splits = [entry.split for entry in listing.entries]
    if not any(splits):
        return None
    official = np.array([SPLITS.index(split or "train") for split in splits], np.int64)
    if len(crossing := crossing_groups(groups, official)):
        names = sorted({entry.group for entry, n in zip(listing.entries, groups, strict=True) if n in crossing[:3]})
        more = ", …" if len(crossing) > 3 else ""
        raise DatasetError(
            f"{len(crossing)} patients of {listing.root} are in more than one part ({', '.join(names)}{more}), so that "
            f"the test split would hold what was learnt from; `maskaug data check {listing.dataset}` lists them"
        )
    train = official == SPLITS.index("train")
    if listing.validation and train.any() and SPLITS.index("val") not in official:
        labels = np.array([entry.label or 0 for entry in listing.entries], np.int64)
        # Part 0 stays "train", part 1 becomes "val".
        official[train] = deal_groups(groups[train], labels[train], seed, (1 - listing.validation, listing.validation))
    return official


def present(listing: Listing) -> tuple[npt.NDArray[np.int64], dict[str, Stamp]]:
    """The numbers of the entries all of whose files are there, and those files' stamps; of the others a warning tells.

    Raises:
        DatasetError: there is none, or a file cannot be looked at.
    """
    gone: list[str] = []
    keep = []
    stamps: dict[str, Stamp] = {}
    wanted = range(len(listing.entries)) if listing.chosen is None else listing.chosen
    for i in wanted:
        entry = listing.entries[i]
        missing = [path for path in (entry.path, *entry.masks) if not _look(str(path), stamps)]
        gone += [str(path.relative_to(listing.root)) for path in missing]
        if not missing:
            keep.append(i)
    if not keep:
        raise DatasetError(
            f"none of the {len(wanted)} listed images ({gone[0]}, …) is in {listing.root}; {listing.tree}"
        )
    if gone:
        warnings.warn(
            f"{len(wanted) - len(keep)} of the {len(wanted)} listed images are left out, as files are not in "
            f"{listing.root}: {', '.join(gone[:3])}{', …' if len(gone) > 3 else ''}",
            UserWarning,
            stacklevel=4,
        )
    return np.array(keep, np.int64), stamps


def _look(path: str, stamps: dict[str, Stamp]) -> bool:
    # One look at each file is all that a later start takes, and a mask may belong to several entries.
    if path in stamps:
        return True
    try:
        stamps[path] = stamp_of(path)
    except OSError as error:
        if error.errno not in ABSENT:
            raise DatasetError(refusal(path, error)) from error
        return False
    except ValueError:  # a name that no file can have
        return False
    return True


def _fingerprint(listing: Listing, entries: Sequence[Entry]) -> str:
    # What of the entries decides the rows: which files make up which row, and in which order.
    root = os.path.join(listing.root, "")
    digest = hashlib.sha256()
    for entry in entries:
        row = str(entry.path).removeprefix(root)
        if listing.regions:
            row = repr((row, [str(path).removeprefix(root) for path in entry.masks], entry.boxes))
        digest.update(f"{row}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _tell(listing: Listing) -> None:
    errors = [problem for problem in listing.problems if problem.severity == "error"]
    if errors:
        raise DatasetError(_sentence(errors, listing.dataset))
    told = [problem for problem in listing.problems if problem.severity == "warning"]
    if told:
        warnings.warn(_sentence(told, listing.dataset), UserWarning, stacklevel=4)


def _sentence(problems: Sequence[Problem], dataset: str) -> str:
    first = problems[0]
    more = f" (and {len(problems) - 1} more: `maskaug data check {dataset}` lists them)" if len(problems) > 1 else ""
    return f"{first.where}: {first.message}{more}"


def numbered(values: Sequence[str]) -> npt.NDArray[np.int64]:
    """(N,) the place of each text among the different ones in their order; an array of texts is as wide as its longest.

    >>> numbered(["b", "a", "b"])
    array([1, 0, 1])
    """
    places = {value: place for place, value in enumerate(sorted(set(values)))}
    return np.fromiter((places[value] for value in values), np.int64, len(values))
