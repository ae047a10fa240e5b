"""What a reader finds on disk before anything is decoded: the images, what is known of them, and what is wrong.

Loading (`maskaug.envs.loading`) and checking (`maskaug data check`) both start from a `Listing`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from maskaug.envs.dataset_registry import dataset_spec, find_root
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.folders import permitted

#: "error": it cannot be loaded. "warning": loading goes on and says so. "note": told by `maskaug data check` alone.
Severity = Literal["error", "warning", "note"]

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One image as folders or lists have it; nobody has looked yet whether its files are there.

    Attributes:
        name: what to call it in tables and errors: its path below the root.
        path: the picture's file.
        label: the place of its class in the listing's `class_names`, or None without labels.
        group: the patient, or whatever else must not be split.
        study: the study that it belongs to, or None.
        split: "train", "val" or "test" by the data set's own division, or None.
        masks: files whose union is the region.
        boxes: rectangles that belong to the region too: (x0, y0, x1, y1) in pixels of the upright picture, x1 and y1
            exclusive; a pixel that one covers in part is inside.
        sha256: of the picture's file, as hexadecimal digits, where the data set gives it.
    """

    name: str
    path: Path
    label: int | None
    group: str
    study: str | None = None
    split: str | None = None
    masks: tuple[Path, ...] = ()
    boxes: tuple[Box, ...] = ()
    sha256: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong.

    Attributes:
        severity: see `Severity`.
        kind: one word to count by: "row", "missing", "label", "path", …
        where: the file, or the list's row.
        message: the cause and the cure.
    """

    severity: Severity
    kind: str
    where: str
    message: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """All images of a data set's folder, unsplit, and what is wrong with the folder itself.

    Attributes:
        dataset: the registered name of the data set ("mura", "lgg", …).
        name: what tables print.
        root: the folder that every path lies below.
        entries: in the order that the images will have.
        variant: what else tells this listing from others of the same folder, which are wanted side by side: a list's
            file name.
        class_names: empty without labels.
        chosen: the numbers of the entries that are wanted; the others only have a say in who belongs to which part.
            None: all.
        problems: what the reader noticed without opening a picture. Files that are missing are looked for later.
        colour: whether three channels are the pictures' colours; else they are the grey values, three times.
        plane: the one of the pictures' red (0), green (1) and blue (2) that is read as their grey; None: luma.
        label_from_region: no entry has a label; it is 1 where the region marks a pixel of the picture, else 0, so that
            the classes are only known once the masks are read (`maskaug.envs.loading.decode`).
        regions: whether regions are known; an entry without masks and box then has an empty one.
        validation: the share of the train part that is carved off for validation, by group, where `Entry.split` never
            says "val"; 0: none.
        confined: whether a file that turns out to lie outside `root`, by a link, is refused when it is opened. For
            lists that somebody else may have written.
        tree: what the folder was expected to look like, for errors.
        licence: under which terms the images may be used.
        citation: what to cite.
    """

    dataset: str
    name: str
    root: Path
    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    chosen: tuple[int, ...] | None = None
    problems: tuple[Problem, ...] = ()
    colour: bool = False
    plane: int | None = None
    label_from_region: bool = False
    regions: bool = False
    validation: float = 0.0
    confined: bool = False
    variant: str = ""
    tree: str = ""
    licence: str = "unknown"
    citation: str = ""


def list_dataset(name: str, root: str | os.PathLike[str] | None = None, **options: Any) -> Listing:
    """What lies in the folder of a named data set. Never its stand-in.

    Args:
        name: a registered data set that is a folder of picture files.
        root: its folder; None: looked for below `MASKAUG_DATA`.
        **options: those of the data set's options that choose among its images (`listing_options`).

    Raises:
        DatasetError: no folder, not what was expected there, or one that may not be looked at.
        ConfigurationError: an unknown name or option, or a data set that is no folder of picture files.
    """
    folder = dataset_folder(name, root)
    known = listing_options(name)
    if unknown := set(options) - known:
        raise ConfigurationError(
            f"unknown option {', '.join(sorted(unknown))} for listing the data set {name!r}; it knows "
            f"{', '.join(sorted(known)) or 'no options'}"
        )
    with permitted(folder):
        return _lister(name)(folder, **options)


def listing_options(name: str) -> frozenset[str]:
    """The keywords of a data set's lister.

    Raises:
        ConfigurationError: an unknown name, or a data set that is no folder of picture files.
    """
    return frozenset(inspect.signature(_lister(name)).parameters) - {"root"}


def dataset_folder(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """`find_root`, where real data is needed.

    Raises:
        DatasetError: there is none.
        ConfigurationError: an unknown name, or synthetic images, which no folder holds.
    """
    if name == "synthetic":
        raise ConfigurationError("synthetic images are drawn, so that there is nothing to list or check; name another")
    path = find_root(name, root)
    if path is None:
        raise DatasetError(
            f"no data of {name!r} was found; give its folder as root (--root), or set MASKAUG_DATA to the folder that "
            f"holds {dataset_spec(name).folder!r}"
        )
    return path


def _lister(name: str) -> Callable[..., Listing]:
    lister = dataset_spec(name).lister
    if lister is None:
        raise ConfigurationError(f"{name!r} is no folder of picture files, and cannot be listed; load it instead")
    module, function = lister.split(":")
    found: Callable[..., Listing] = getattr(importlib.import_module(module), function)
    return found
