"""Whether a data set can be trusted: everything is read once, and what is wrong is reported.

`maskaug data check` prints what `check_dataset` returns. The sources are read, never the cache, through the functions
that loading uses. An "error" is what makes loading fail or a score wrong, a "warning" what may, a "note" is for
information. "Across" parts means: in two parts of the data set's own division, or in two groups of a part that is dealt
out by group, which some seed puts on two sides.

| kind | severity | what |
|---|---|---|
| listing | error | the reader does not accept the folder at all |
| what the reader says | the reader's own | what it noticed without opening a picture (`Listing.problems`) |
| missing | error | a listed file is not there (loading warns, and leaves the image out) |
| unreadable | error | a picture or mask may not be looked at, or cannot be decoded |
| mask | error | a mask or a box does not fit its picture |
| sha256 | error | a file is not the one that the list means |
| patient_across_parts | error | a group has images in two official parts |
| similar_patients | warning | patients whose names differ only by case, spaces or leading zeros |
| duplicate_across_parts | error | the same pixels in two parts, or in two groups that may come into two parts |
| near_duplicate_across_parts | error | pictures that look the same in two official parts |
| label_conflict | error | the same pixels with two labels, both played |
| label_conflict_left_out | warning | the same, but the reader leaves them out |
| loading | error | the reader's own loading fails (only where it groups images by their pixels itself) |
| empty_part | error | a part without images: loading it fails |
| empty_class | error | a class without images, in all or in train |
| one_class | error | labels that are all the same, which no game with labels plays |
| few_images | warning | a class with less than 2 images in a part |
| duplicate | warning | the same pixels more than once, in one group or one official part |
| near_duplicate | warning | pictures of two groups that look the same; also small arrays of two official parts |
| label_disagreement | warning | two labels in one of the groups that such a reader found, both played |
| empty_region | warning | a mask or box that marks nothing, in a class that has regions |
| full_region | warning | a mask or box that covers more than 95 % of its picture |
| blank | warning | a picture of one brightness |
| said | warning | what loading says of arrays that are no picture files |
| duplicate_left_out | note | the same pixels more than once, of which the reader plays one or none |
| left_out | note | images that the reader leaves out by itself |

Where the reader finds out itself which pictures show the same (BUSI), its own loading is asked for groups and parts.

Pictures of one group are not searched for near-duplicates: they never come into two parts, and neighbouring slices of
one volume all look the same. Copies that are flipped, rotated, inverted, cropped or have a border are not found. "The
same pixels" are those of the pictures squeezed to 256×256.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.envs.consistency import Images, inconsistencies
from maskaug.envs.dataset_registry import dataset_spec, read_dataset
from maskaug.envs.datasets import FRACTIONS, SPLITS, ImageDataset
from maskaug.envs.defaults import default_image_size
from maskaug.envs.duplicates import alike, fingerprint
from maskaug.envs.errors import ConfigurationError, DatasetError, ImageError
from maskaug.envs.findings import Finding, Item, Report, count_images, finding, ordered
from maskaug.envs.folders import permitted
from maskaug.envs.images import Reading
from maskaug.envs.listing import Listing, Severity, dataset_folder, list_dataset, listing_options
from maskaug.envs.loading import numbered
from maskaug.envs.looking import Look, each, full_regions, look_at
from maskaug.envs.patients import deal_listing, similar_patients
from maskaug.envs.sources import check_workers
from maskaug.envs.splits import deal_groups

#: Sides, in pixels, that pictures and arrays are compared at.
SIDE, ARRAY_SIDE = 256, 64
#: Options that decide whether a picture can be read, besides those that choose pictures.
_READING = {"window", "frame", "max_pixels"}
#: Those of readers that group images themselves, and leave some out; and those that cut pictures into pieces, which are
#: no better or worse than the pictures.
_LEAVING, _CUTTING = {"variant"}, {"task"}


def check_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    workers: int | None = None,
    **options: Any,
) -> Report:
    """Read everything that data set `name` has in its folder, once, and report what is wrong.

    Args:
        name: a registered data set; not "synthetic", which is drawn.
        root: its folder; None: looked for below `MASKAUG_DATA`.
        seed: of what is dealt out by group; the counts are those of `load_dataset(…, seed=seed)`.
        workers: threads that decode; None: one for each core.
        **options: those of the data set's that choose its images (`body_part`, `channel`, `manifest`, …) or decide
            whether they can be read (`window`, `frame`, `max_pixels`).

    Raises:
        DatasetError: there is no such folder. What is wrong inside it is reported.
        ConfigurationError: an unknown name, option or value, or nothing to check.
    """
    _validate(seed, workers)
    folder = dataset_folder(name, root)
    spec = dataset_spec(name)
    choosing = spec.options - {"workers"} if spec.lister is None else listing_options(name)
    known = (choosing | (spec.options & _READING) | (spec.options & _LEAVING if spec.regroups else set())) - _CUTTING
    if unknown := set(options) - known:
        raise ConfigurationError(
            f"unknown option {', '.join(sorted(unknown))} for checking the data set {name!r}; it knows "
            f"{', '.join(sorted(known)) or 'no options'}"
        )
    try:
        if spec.lister is None:
            with permitted(folder):
                return _check_arrays(name, folder, seed, workers, options)
        reading = Reading(SIDE, **{key: value for key, value in options.items() if key in _READING})
        listing = list_dataset(name, folder, **{key: value for key, value in options.items() if key in choosing})
    except (DatasetError, ImageError) as error:
        refused = finding("listing", [Item((str(folder),), str(error))])
        return Report(name, str(folder), "none", seed, 0, (), tuple(refused))
    loaded: ImageDataset | DatasetError | ImageError | None = None
    if spec.regroups:
        try:
            with warnings.catch_warnings():
                # What it warns of is found here as well.
                warnings.simplefilter("ignore")
                size = default_image_size(name, real=True)
                loaded = read_dataset(name, folder, image_size=size, seed=seed, workers=workers, **options)
        except (DatasetError, ImageError) as error:
            loaded = error
    return dataclasses.replace(
        check_listing(listing, reading, seed=seed, workers=workers, loaded=loaded), root=str(folder)
    )


def check_listing(
    listing: Listing,
    reading: Reading | None = None,
    *,
    seed: int = 0,
    workers: int | None = None,
    loaded: ImageDataset | DatasetError | ImageError | None = None,
) -> Report:
    """The same for what a reader has listed.

    Args:
        listing: what a reader found.
        reading: how pictures are read; None: each as a whole, at `SIDE` pixels. Its channels are the listing's.
        seed: see `check_dataset`.
        workers: see `check_dataset`.
        loaded: of a reader that groups images by their pixels, or leaves some out: all images as it loads them, or why
            it cannot.
    """
    _validate(seed, workers)
    reading = dataclasses.replace(reading or Reading(SIDE), channels=3 if listing.colour else 1)
    entries = listing.entries
    chosen = list(range(len(entries)) if listing.chosen is None else listing.chosen)
    report = Report(listing.dataset, str(listing.root), "none", seed, len(chosen), (), ())
    findings = _noticed(listing)
    if not chosen:
        findings += finding("listing", [Item((str(listing.root),), f"holds no images; {listing.tree}")])
    groups = numbered([entry.group for entry in entries])
    official, division, crossing = deal_listing(listing, groups, seed)
    findings += [*crossing, *similar_patients(listing)]
    seen = each(lambda i: look_at(entries[i], listing, reading), chosen, listing.dataset, workers)
    troubles = [trouble for look in seen if not isinstance(look, Look) for trouble in look]
    for kind in ("missing", "unreadable", "mask", "sha256"):
        findings += finding(kind, [trouble.item for trouble in troubles if trouble.kind == kind])
    if isinstance(loaded, DatasetError | ImageError):
        findings += finding("loading", [Item((str(listing.root),), str(loaded))])
    looks = [(i, look) for i, look in zip(chosen, seen, strict=True) if isinstance(look, Look)]
    if not looks:
        return dataclasses.replace(report, findings=ordered(findings))
    keep = np.array([i for i, _ in looks])
    names = tuple(entries[i].name for i in keep)
    labels = _labels(listing, looks)
    findings += [*_empty_regions(listing, looks, labels), *full_regions(listing, looks)]
    groups, played = groups[keep], np.ones(len(keep), np.bool_)
    if isinstance(loaded, ImageDataset):
        groups, played = _regrouped(names, loaded)
        findings += finding("label_disagreement", _disagreeing(names, labels, groups, played, listing.class_names))
        findings += finding("left_out", [Item((name,)) for name, one in zip(names, played, strict=True) if not one])
    part = np.zeros(len(keep), np.int64)
    if official is None:
        part[played] = deal_groups(groups[played], None if labels is None else labels[played], seed, FRACTIONS)
    else:
        part = official[keep]
    published = np.array([SPLITS.index(entries[i].split or "train") for i in keep], np.int64)
    images = Images(
        names=names,
        files=tuple(look.file for _, look in looks),
        prints=tuple(look.print for _, look in looks),
        labels=labels,
        class_names=listing.class_names,
        groups=groups,
        published=published,
        dealt=published == 0 if division == "carved" else np.full(len(keep), division == "groups"),
        part=part,
        played=played,
    )
    studied = [entry.study or "" for entry in entries]
    studies = numbered(studied)[keep][played] if any(studied) else None
    return dataclasses.replace(
        report,
        division=division,
        counts=count_images(
            part[played], None if labels is None else labels[played], groups[played], studies, listing.class_names
        ),
        findings=ordered([*findings, *inconsistencies(images)]),
    )


def _regrouped(names: tuple[str, ...], loaded: ImageDataset) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Groups as they were loaded, and which images were; the others are groups of their own."""
    group = dict(zip(loaded.names, loaded.groups.tolist(), strict=True))
    alone = int(loaded.groups.max()) + 1
    groups = np.array([group.get(name, alone + i) for i, name in enumerate(names)], np.int64)
    return groups, np.array([name in group for name in names], np.bool_)


def _disagreeing(
    names: tuple[str, ...],
    labels: npt.NDArray[np.int64] | None,
    groups: npt.NDArray[np.int64],
    played: npt.NDArray[np.bool_],
    class_names: tuple[str, ...],
) -> list[Item]:
    if labels is None:
        return []
    items = []
    for numbers in alike(groups.tolist()):
        found = np.unique(labels[[i for i in numbers if played[i]]])
        if len(found) > 1:
            items.append(Item(tuple(names[i] for i in numbers), ", ".join(class_names[label] for label in found)))
    return items


def _noticed(listing: Listing) -> list[Finding]:
    kinds: dict[tuple[Severity, str], list[Item]] = {}
    for problem in listing.problems:
        kinds.setdefault((problem.severity, problem.kind), []).append(Item((problem.where,), problem.message))
    consequence = {
        "error": "the reader says; loading fails",
        "warning": "the reader says; loading warns, and goes on",
        "note": "the reader says",
    }
    return [Finding(severity, kind, consequence[severity], tuple(items)) for (severity, kind), items in kinds.items()]


def _labels(listing: Listing, looks: Sequence[tuple[int, Look]]) -> npt.NDArray[np.int64] | None:
    if listing.label_from_region:
        return np.array([look.marked for _, look in looks], np.int64)
    labels = [listing.entries[i].label for i, _ in looks]
    return None if None in labels else np.array(labels, np.int64)


def _empty_regions(
    listing: Listing, looks: Sequence[tuple[int, Look]], labels: npt.NDArray[np.int64] | None
) -> list[Finding]:
    if not listing.regions or listing.label_from_region or labels is None:
        return []
    marked = np.array([look.marked for _, look in looks], np.bool_)
    outlined = np.array([bool(listing.entries[i].masks or listing.entries[i].boxes) for i, _ in looks], np.bool_)
    lesions = np.isin(labels, np.unique(labels[marked]))
    empty = lesions & outlined & ~marked
    return finding(
        "empty_region",
        [Item((listing.entries[i].name,)) for (i, _), wrong in zip(looks, empty, strict=True) if wrong],
    )


def _check_arrays(name: str, folder: Path, seed: int, workers: int | None, options: dict[str, Any]) -> Report:
    # A data set that somebody registered need not have workers.
    own: dict[str, Any] = {"workers": workers} if "workers" in dataset_spec(name).options else {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data = read_dataset(name, folder, image_size=ARRAY_SIDE, seed=seed, **own, **options)
    findings = finding("said", [Item((str(folder),), str(warning.message)) for warning in told])
    prints = each(lambda i: fingerprint(np.asarray(data.images[i])), range(len(data)), name, workers)
    dealt = data.official is None
    part = data.splits(seed) if data.official is None else data.official
    images = Images(
        names=data.names,
        files=None,
        prints=tuple(prints),
        labels=data.labels,
        class_names=data.class_names,
        groups=data.groups,
        published=np.zeros(len(data), np.int64) if dealt else part,
        dealt=np.full(len(data), dealt),
        part=part,
        played=np.ones(len(data), np.bool_),
        small=True,
    )
    return Report(
        name,
        str(folder),
        "groups" if dealt else "official",
        seed,
        len(data),
        count_images(part, data.labels, data.groups, data.studies, data.class_names),
        ordered([*findings, *inconsistencies(images)]),
    )


def _validate(seed: int, workers: int | None) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigurationError(f"seed={seed!r} must be an integer of at least 0")
    check_workers(workers)
