"""BUSI, breast ultrasound: the folder `Dataset_BUSI_with_GT` → `ImageDataset`.

Al-Dhabyani, Gomaa, Khaled, Fahmy, "Dataset of breast ultrasound images", Data in Brief 28:104863, 2020. CC BY 4.0.
780 pictures of many sizes, no patient numbers, and many of them more than once, some under two labels: pictures that
show the same are found here and share a group, so that a split by group has no picture on both sides.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from maskaug.envs.busi_files import CLASSES, FOLDER, TREE, scan_class
from maskaug.envs.cache import cached_array
from maskaug.envs.crops import GEOMETRY, choose_crops
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.fitting import fit_plane
from maskaug.envs.folders import permitted
from maskaug.envs.images import (
    MAX_PIXELS,
    Reading,
    fit_region,
    read_grey,
    resize,
    resize_mask,
)
from maskaug.envs.listing import Entry, Listing, Problem
from maskaug.envs.loading import union_of_masks
from maskaug.envs.near_duplicates import SAME, near_duplicates, thumbnail
from maskaug.envs.rows import as_images, as_regions, blocks

LICENCE = "CC BY 4.0"
CITATION = (
    "W. Al-Dhabyani, M. Gomaa, H. Khaled, A. Fahmy. Dataset of breast ultrasound images. Data in Brief 28:104863, 2020."
)


#: Letters of a message that are shown when loading.
_LONG = 400


def load_busi(
    root: Path,
    *,
    image_size: int,
    channels: int,
    seed: int,
    variant: str = "clean",
    task: str = "diagnosis",
    classes: int | str | None = None,
    fit: str = "stretch",
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
) -> ImageDataset:
    """All images of the BUSI folder, unsplit, decoded once into the cache.

    Args:
        root: `Dataset_BUSI_with_GT` or the folder that holds it. A part of the set will do.
        image_size: S, height and width in pixels.
        channels: 1, or 3 with the grey values repeated.
        seed: of the crops; whole pictures do not depend on it.
        variant: "clean" keeps the first picture of each group of near-duplicates and none of the groups that carry two
            labels; "raw" keeps everything.
        task: "diagnosis" has the whole pictures with their class. "presence" has square crops with ("present") and
            without ("absent") a lesion, cut at random places, so that no fixed mask can know where the lesion is.
        classes: of "diagnosis": 3 for benign, malignant, normal (default); 2 for benign, malignant alone.
        fit: of "diagnosis": see `maskaug.envs.images.Reading`; "stretch" squeezes whole pictures to a square.
        max_pixels: a picture of more is refused before it is decoded.
        workers: threads that decode; None: one for each core.

    Returns:
        images (N, channels, S, S) uint8, read-only; regions (N, S, S), the lesions; groups of near-duplicates, numbered
        by the position of their first picture in class and number order.

    Raises:
        DatasetError: the folder is not laid out like BUSI, too little is left of it, or a mask is empty or of another
            size than its image. What lacks a partner is left out with a `UserWarning`, see `list_busi`.
        ImageError: a file cannot be read.
        ConfigurationError: an unknown option.
    """
    names = _class_names(variant, task, classes)
    crops = task == "presence"
    if crops and fit != "stretch":
        raise ConfigurationError(f"fit={fit!r} is for whole pictures; crops (task='presence') are square: leave it out")
    listing = list_busi(root, task=task, classes=classes)
    _tell(listing)
    items = listing.entries
    reading = Reading(image_size, fit=fit, max_pixels=max_pixels)
    parameters: dict[str, Any] = {"task": task, "reading": dataclasses.asdict(reading), "same": list(SAME)}
    if crops:
        parameters |= {"seed": seed, "crops": dataclasses.asdict(GEOMETRY)}
    cached = cached_array(
        "busi",
        root=listing.root,
        sources=[path for item in items for path in (item.path, *item.masks)],
        parameters=parameters,
        items=items,
        decode=lambda item: _cut(item, reading, seed) if crops else _decode(item, reading),
        finish=_finish,
        workers=workers,
    )
    details = cached.details
    images = as_images(cached.array, 1, channels)
    regions = as_regions(cached.array)
    picture = np.array(details["picture"], np.int64)
    group = np.array(details["group"], np.int64)
    diagnosis = np.array([item.label for item in items], np.int64)
    present = np.concatenate([block.any(axis=(1, 2)) for block in blocks(regions)]).astype(np.int64)
    everything = ImageDataset(
        name="busi-presence" if crops else "busi",
        images=images,
        labels=present if crops else diagnosis,
        regions=regions,
        groups=group[picture],
        class_names=names if crops else CLASSES,
        names=tuple(details["names"]),
        source="busi",
        licence=LICENCE,
        citation=CITATION,
    )
    keep = np.ones(len(items), np.bool_) if variant == "raw" else _first_without_conflict(group, diagnosis)
    if not crops:
        keep &= diagnosis < len(names)
    chosen = everything if keep.all() else everything.subset(keep[picture])
    return chosen if crops else dataclasses.replace(chosen, class_names=names)


def list_busi(root: Path, *, task: str = "diagnosis", classes: int | str | None = None) -> Listing:
    """What the BUSI folder holds.

    Args:
        root: see `load_busi`.
        task: see `load_busi`. The entries are whole pictures with their diagnosis in any case.
        classes: see `load_busi`; with 2 the normal pictures are listed, but not chosen.

    Returns:
        One entry a picture, in class and number order. Each is its own group: which of them show the same is only
        known when they are loaded. Problems: "error" for too few classes, and for a picture that is there twice;
        "warning" for what is left out: a picture without a mask, a mask without its picture, a PNG file of another
        name, a folder or a dead link with the name of one; "note" for the numbers that are missing from what was
        published.

    Raises:
        DatasetError: the folder is not laid out like BUSI, or may not be looked at.
        ConfigurationError: an unknown option.
    """
    names = _class_names("raw", task, classes)
    root = Path(root)
    with permitted(root):
        return _list(root, task, names)


def _list(root: Path, task: str, names: tuple[str, ...]) -> Listing:
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; {TREE}")
    if not any((root / name).is_dir() for name in CLASSES) and (root / FOLDER).is_dir():
        root = root / FOLDER
    problems: list[Problem] = []
    entries = [entry for name in CLASSES for entry in scan_class(root / name, name, problems)]
    found = {CLASSES[entry.label or 0] for entry in entries}
    if not entries and all(problem.severity == "note" for problem in problems):
        raise DatasetError(f"{root} holds no BUSI images; {TREE}")
    if not found - {"normal"} if task == "presence" else len(found & set(names)) < 2:
        needed = "lesions are needed for presence" if task == "presence" else "two classes are needed"
        told = f"only {', '.join(sorted(found)) or 'no'} images can be used, and {needed}; {TREE}"
        problems.append(Problem("error", "class", str(root), told))
    chosen = tuple(i for i, entry in enumerate(entries) if task == "presence" or CLASSES[entry.label or 0] in names)
    return Listing(
        dataset="busi",
        name="busi",
        root=root,
        entries=tuple(entries),
        class_names=CLASSES,
        chosen=chosen,
        problems=tuple(problems),
        regions=True,
        tree=TREE,
        licence=LICENCE,
        citation=CITATION,
    )


def _class_names(variant: str, task: str, classes: int | str | None) -> tuple[str, ...]:
    if variant not in ("clean", "raw"):
        raise ConfigurationError(f"variant={variant!r} is unknown; use 'clean' (no duplicates, no conflicts) or 'raw'")
    if task == "presence":
        if classes is not None:
            raise ConfigurationError("classes chooses among diagnoses; leave it out with task='presence'")
        return ("absent", "present")
    if task != "diagnosis":
        raise ConfigurationError(f"task={task!r} is unknown; use 'diagnosis' or 'presence'")
    count = "3" if classes is None else str(classes)
    if count not in ("2", "3"):
        raise ConfigurationError(f"classes={classes!r} is unknown; use 3 (benign, malignant, normal) or 2 (no normals)")
    return CLASSES[: int(count)]


def _tell(listing: Listing) -> None:
    told = [(problem, f"{problem.where}: {_short(problem.message)}") for problem in listing.problems]
    if any(problem.severity == "error" for problem, _ in told):
        # What was left out may be the reason.
        raise DatasetError("; ".join(text for problem, text in told if problem.severity != "note"))
    for problem, text in told:
        if problem.severity == "warning":
            warnings.warn(text, UserWarning, stacklevel=3)


def _short(message: str) -> str:
    return message if len(message) <= _LONG else f"{message[:_LONG]} … (all of it: `maskaug data check busi`)"


def _read(item: Entry, max_pixels: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    image = read_grey(item.path, max_pixels)
    h, w = image.shape
    region = union_of_masks(item, (h, w), max_pixels)
    name = CLASSES[item.label or 0]
    if name == "normal":
        if region.any():
            raise DatasetError(f"{item.masks[0]} outlines something, but its image is filed as normal")
    elif not region.any():
        raise DatasetError(f"{item.masks[0]} outlines nothing, but its image is filed as {name}")
    return image, region


#: The names of an item's rows, and its thumbnail.
_Note = tuple[list[str], npt.NDArray[np.float32]]


def _decode(item: Entry, reading: Reading) -> tuple[npt.NDArray[np.uint8], _Note]:
    image, region = _read(item, reading.max_pixels)
    planes = np.stack([fit_plane(image, reading.fit, reading.size), fit_region(region, reading).astype(np.uint8)])
    # Thumbnails are of the picture as it is, whatever `fit` makes of it.
    return planes[None], ([item.name], thumbnail(image))


def _cut(item: Entry, reading: Reading, seed: int) -> tuple[npt.NDArray[np.uint8], _Note]:
    image, region = _read(item, reading.max_pixels)
    planes, names = [np.empty((0, 2, reading.size, reading.size), np.uint8)], []
    for x, y, side in choose_crops(region, _generator(seed, item.name)):
        part, inside = image[y : y + side, x : x + side], region[y : y + side, x : x + side]
        planes.append(np.stack([resize(part, reading.size), resize_mask(inside, reading.size).astype(np.uint8)])[None])
        names.append(f"{item.name}@{x},{y},{side}")
    return np.concatenate(planes), (names, thumbnail(image))


def _finish(notes: Sequence[_Note]) -> dict[str, Any]:
    groups = near_duplicates(np.stack([small for _, small in notes]))
    return {
        "names": [name for names, _ in notes for name in names],
        "picture": [i for i, (names, _) in enumerate(notes) for _ in names],
        "group": groups.tolist(),
    }


def _first_without_conflict(group: npt.NDArray[np.int64], label: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    keep: npt.NDArray[np.bool_] = np.equal(group, np.arange(len(group)))
    keep[np.unique(group[label != label[group]])] = False
    return keep


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, int.from_bytes(digest[:8], "big")]))


def write_example(folder: Path, n_per_class: int = 4, seed: int = 0) -> Path:
    """Write a tiny made-up data set in BUSI's layout below `folder`, for tests and for trying things out.

    Pictures are RGB files of differing sizes. `benign (2)` has two masks, the last benign picture is `benign (1)` once
    more, brighter and smaller, and the last malignant one is `benign (2)` under another label.

    Args:
        folder: where `Dataset_BUSI_with_GT` is made.
        n_per_class: pictures of each class, at least 3.
        seed: of the pictures.

    Returns:
        The path of `Dataset_BUSI_with_GT`.
    """
    if n_per_class < 3:
        raise ConfigurationError(f"n_per_class={n_per_class} is too few for a duplicate and a conflict; use at least 3")
    root = Path(folder) / FOLDER
    pictures: dict[tuple[str, int], tuple[npt.NDArray[np.uint8], list[npt.NDArray[np.bool_]]]] = {}
    for label, name in enumerate(CLASSES):
        for number in range(1, n_per_class + 1):
            rng = np.random.default_rng(np.random.SeedSequence([seed, label, number]))
            lesions = 0 if name == "normal" else 2 if (name, number) == ("benign", 2) else 1
            pictures[name, number] = _example_picture(rng, lesions)
    image, masks = pictures["benign", 1]
    size = (image.shape[0] - 12, image.shape[1] - 20)
    brighter = np.clip(image * 1.1 + 5, 0, 255).astype(np.uint8)
    pictures["benign", n_per_class] = (resize(brighter, size), [resize_mask(mask, size) for mask in masks])
    pictures["malignant", n_per_class] = pictures["benign", 2]
    for (name, number), (image, masks) in pictures.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(root / name / f"{name} ({number}).png")
        for i, mask in enumerate(masks):
            suffix = f"_{i}" if i else ""
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / name / f"{name} ({number})_mask{suffix}.png")
    return root


def _example_picture(
    rng: np.random.Generator, lesions: int
) -> tuple[npt.NDArray[np.uint8], list[npt.NDArray[np.bool_]]]:
    h, w = int(rng.integers(90, 131)), int(rng.integers(110, 181))
    # Layers of tissue (broad, lying flat), and speckle on top.
    image = 110 + 900 * cv2.GaussianBlur(rng.normal(size=(h, w)), (0, 0), sigmaX=9, sigmaY=3) + rng.normal(0, 8, (h, w))
    y, x = np.mgrid[:h, :w]
    masks = []
    for i in range(lesions):
        middle_x = w * (rng.uniform(0.3, 0.7) if lesions == 1 else (0.25, 0.7)[i])
        a, b = h * rng.uniform(0.08, 0.16, 2)
        mask = ((x - middle_x) / (1.3 * a)) ** 2 + ((y - h * rng.uniform(0.3, 0.6)) / b) ** 2 < 1
        image[mask] -= 70
        masks.append(mask)
    return np.clip(image, 0, 255).astype(np.uint8), masks or [np.zeros((h, w), np.bool_)]
