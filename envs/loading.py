"""`Listing` → `ImageDataset`: find the files, decode each once into the cache, number groups, deal out validation."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.envs.cache import cached_array
from maskaug.envs.confinement import confined
from maskaug.envs.datasets import SPLITS, ImageDataset
from maskaug.envs.errors import DatasetError, ImageError
from maskaug.envs.images import Reading, fit_region, read_fitted, read_mask
from maskaug.envs.listing import Entry, Listing, Problem
from maskaug.envs.splits import crossing_groups, deal_groups


def load_listing(listing: Listing, reading: Reading, *, seed: int = 0, workers: int | None = None) -> ImageDataset:
    """Decode the images of a listing; what is missing is left out with a `UserWarning`.

    Args:
        listing: what a reader found.
        reading: how a picture becomes an array.
        seed: of the groups that are carved from the train part for validation.
        workers: threads that decode; None: one for each core.

    Returns:
        images (N, reading.channels, S, S) uint8, read-only, in the listing's order; regions if it knows them.

    Raises:
        DatasetError: a problem that is an error, no image at all, or a group in more than one official part.
        ImageError: a file cannot be read.
    """
    _tell(listing)
    if not listing.entries:
        raise DatasetError(f"{listing.root} holds no images of {listing.dataset}; {listing.tree}")
    entries = listing.entries
    groups = _numbers([entry.group for entry in entries])
    # Before anything is left out: a file that is missing moves nobody to another part.
    official = official_parts(listing, groups, seed)
    labelled = [entry.label for entry in entries if entry.label is not None]
    studied = [entry.study or "" for entry in entries]
    studies = _numbers(studied) if any(studied) else None
    keep = present(listing)
    chosen = [entries[i] for i in keep]
    stored = reading if listing.colour else dataclasses.replace(reading, channels=1)

    def row(entry: Entry) -> tuple[npt.NDArray[np.uint8], bool]:
        planes, marked = decode(_checked(entry, listing), stored, listing)
        return planes[None], marked

    cached = cached_array(
        listing.dataset,
        root=listing.root,
        sources=[path for entry in chosen for path in (entry.path, *entry.masks)],
        parameters={"reading": dataclasses.asdict(stored), "entries": _digest(chosen), "plane": listing.plane},
        items=chosen,
        decode=row,
        finish=lambda notes: {"marked": notes} if listing.label_from_region else {},
        workers=workers,
    )
    labels = cached.details["marked"] if listing.label_from_region else [entry.label for entry in chosen]
    return ImageDataset(
        name=listing.name,
        images=np.broadcast_to(
            cached.array[:, : stored.channels], (len(chosen), reading.channels, reading.size, reading.size)
        ),
        labels=np.array(labels, np.int64) if labelled or listing.label_from_region else None,
        regions=cached.array[:, -1].view(np.bool_) if listing.regions else None,
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
    region = np.zeros(shape, np.bool_)
    for path in entry.masks:
        mask = read_mask(path, reading.max_pixels)
        if mask.shape != shape:
            raise DatasetError(f"{path} is {mask.shape} pixels, but its image {shape}; are both from one copy?")
        region |= mask
    for box in entry.boxes:
        if max(0, *np.subtract(box[2:], shape[::-1])) > 1:
            raise DatasetError(
                f"{entry.path} is {shape} pixels, and its box {box} reaches beyond; was it drawn on a larger copy?"
            )
        x0, y0, x1, y1 = (math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
        region[max(0, y0) : y1, max(0, x0) : x1] = True
    return np.concatenate([image, fit_region(region, reading)[None].astype(np.uint8)]), bool(region.any())


def confine(entry: Entry, listing: Listing) -> Entry:
    """The entry with the files that are really to be opened; to be asked at the last moment, as links may change.

    Raises:
        ImageError: of a `confined` listing, a file lies outside of its root.
    """
    if not listing.confined:
        return entry
    masks = tuple(confined(mask, listing.root) for mask in entry.masks)
    return dataclasses.replace(entry, path=confined(entry.path, listing.root), masks=masks)


def _checked(entry: Entry, listing: Listing) -> Entry:
    entry = confine(entry, listing)
    if entry.sha256:
        try:
            with entry.path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ImageError(entry.path, f"cannot be read ({error.strerror}); may you read it?") from error
        if found != entry.sha256:
            raise ImageError(
                entry.path,
                f"has the sha256 {found}, and {entry.sha256} was expected: it is damaged or another file; copy it "
                "again, or correct the list if it was changed on purpose",
            )
    return entry


def _digest(entries: Sequence[Entry]) -> str:
    # The cache knows the files, but not their order and which mask, box or digest goes with which.
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(repr((entry.name, *map(str, entry.masks), *entry.boxes, entry.sha256)).encode())
    return digest.hexdigest()


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


def present(listing: Listing) -> npt.NDArray[np.int64]:
    """The numbers of the entries all of whose files are there; of the others a `UserWarning` tells.

    Raises:
        DatasetError: there is none.
    """
    gone: list[str] = []
    keep = []
    wanted = range(len(listing.entries)) if listing.chosen is None else listing.chosen
    for i in wanted:
        entry = listing.entries[i]
        missing = [path for path in (entry.path, *entry.masks) if not path.is_file()]
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
    return np.array(keep, np.int64)


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


def _numbers(values: Sequence[Any]) -> npt.NDArray[np.int64]:
    return np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64)
