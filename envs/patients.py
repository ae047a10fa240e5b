"""Who comes into which part by a listing, before a picture is opened, and what is wrong with that. Used by checks."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from maskaug.envs.datasets import SPLITS
from maskaug.envs.findings import Finding, Item, finding
from maskaug.envs.listing import Listing
from maskaug.envs.loading import official_parts
from maskaug.envs.splits import crossing_groups

Numbers = npt.NDArray[np.int64]

# A space between two digits may tell numbers apart: "1 12" is not "11 2". Zeros behind a point are no leading ones.
_SPACES = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")


def deal_listing(listing: Listing, groups: Numbers, seed: int) -> tuple[Numbers | None, str, list[Finding]]:
    """The part of every entry, who made the parts, and the patients that are in several.

    Args:
        listing: what a reader found.
        groups: (N,) its entries' groups, by number.
        seed: of what is carved off for validation.

    Returns:
        Places in `SPLITS`, (N,), as loading has them; None without official parts. Where patients are in several parts,
        which loading refuses, they are as if these were different people: once that is mended, there is a validation
        part, too. Then "official", "carved" or "groups", see `maskaug.envs.findings.Report`; and the findings.
    """
    splits = [entry.split for entry in listing.entries]
    if not any(splits):
        return None, "groups", []
    published = np.array([SPLITS.index(split or "train") for split in splits], np.int64)
    crossing = crossing_groups(groups, published)
    # In the same order as the groups, which is all that dealing out depends on.
    apart = groups * len(SPLITS) + published
    parts = official_parts(listing, apart, seed)
    division = "official" if parts is None or (parts == published).all() else "carved"
    items = []
    for number in crossing:
        inside = np.flatnonzero(groups == number)
        items.append(Item((listing.entries[inside[0]].group,), _told(published[inside])))
    return parts, division, finding("patient_across_parts", items)


def similar_patients(listing: Listing) -> list[Finding]:
    """Patients (or what counts as one) whose names differ only by upper and lower case, spaces or leading zeros."""
    splits: dict[str, list[int]] = {}
    for entry in listing.entries:
        # A picture that is its own group has no name that somebody wrote.
        if entry.group != entry.name:
            splits.setdefault(entry.group, []).append(SPLITS.index(entry.split or "train"))
    official = any(entry.split for entry in listing.entries)
    items = []
    for names in similar(splits):
        each = (f"{name}: {_told(np.array(splits[name]))}" for name in names)
        items.append(Item(names, "; ".join(each) if official else ""))
    return finding("similar_patients", items)


def similar(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The names that differ only by upper and lower case, spaces or leading zeros, by the first of each set.

    >>> similar(["P1", "P2", "p 01", "P10"])
    [('P1', 'p 01')]
    """
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(_ZEROS.sub("", _SPACES.sub("", name.casefold())), []).append(name)
    return [tuple(several) for several in spellings.values() if len(several) > 1]


def _told(parts: Numbers) -> str:
    counts = np.bincount(parts, minlength=len(SPLITS))
    return ", ".join(f"{count} in {split}" for split, count in zip(SPLITS, counts, strict=True) if count)
