"""MURA, radiographs of the arm: the folder `MURA-v1.1` → `ImageDataset`.

Rajpurkar et al., "MURA: Large Dataset for Abnormality Detection in Musculoskeletal Radiographs", MIDL 2018
(arXiv:1712.06957). Every study was labelled as a whole: all of its images are normal or all abnormal. The official
valid part is the test split here, and validation images are carved from the train part by patient.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.folders import permitted
from maskaug.envs.images import MAX_PIXELS, Reading, resize
from maskaug.envs.listing import Entry, Listing, Problem
from maskaug.envs.loading import load_listing
from maskaug.envs.mura_lists import BODY_PARTS, FOLDER, LABELS, TREE, items_of, lists_of
from maskaug.envs.synthetic import render

CLASSES = ("normal", "abnormal")
LICENCE = "Stanford University School of Medicine MURA Dataset Research Use Agreement"
CITATION = (
    "P. Rajpurkar, J. Irvin, A. Bagul, et al. MURA: Large Dataset for Abnormality Detection in Musculoskeletal "
    "Radiographs. MIDL 2018. arXiv:1712.06957."
)
#: Images of each part, as published.
PUBLISHED = {"train": 36_808, "valid": 3_197}
#: Share of the train part's images that is carved off for validation: about as many as the official valid part has.
VALIDATION = 0.1


def load_mura(
    root: Path,
    *,
    image_size: int,
    channels: int,
    seed: int,
    body_part: str | Sequence[str] = "all",
    fit: str = "stretch",
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
) -> ImageDataset:
    """All images of the MURA folder, with their official parts, decoded once into the cache.

    Args:
        root: see `list_mura`.
        image_size: S, height and width in pixels.
        channels: 1, or 3 with the grey values repeated.
        seed: of the patients that are carved from the train part for validation.
        body_part: see `list_mura`.
        fit: see `maskaug.envs.images.Reading`; "stretch" squeezes whole pictures to a square, as APGA's authors do.
        max_pixels: a picture of more is refused before it is decoded.
        workers: threads that decode; None: one for each core.

    Returns:
        images (N, channels, S, S) uint8, read-only; labels 0 (normal) and 1 (abnormal), their study's; groups, one
        number a patient; studies; official parts: valid is the test split, and whole patients, chosen over all body
        parts, are the validation split. No regions: nobody knows them.

    Raises:
        DatasetError: see `list_mura`; or a row of a list is wrong, a list has none, lists and folders disagree, a
            patient is in both parts, or none of the images is there. Single ones that are missing are left out with a
            `UserWarning`; another one tells of studies that the images' list lacks and the studies' list has.
        ImageError: a file cannot be read.
        ConfigurationError: an unknown body part.
    """
    reading = Reading(image_size, channels, fit=fit, max_pixels=max_pixels)
    return load_listing(list_mura(root, body_part=body_part), reading, seed=seed, workers=workers)


def list_mura(root: Path, *, body_part: str | Sequence[str] = "all") -> Listing:
    """What the MURA folder holds, and which rows of its lists are wrong.

    The lists say what belongs to the data set, `*_image_paths.csv` or else `*_labeled_studies.csv`, with or without a
    header of as many columns; a part without either is looked through. Files named `._*` are what macOS leaves behind,
    and no images.

    Args:
        root: `MURA-v1.1` or the folder that holds it. A part of the set will do.
        body_part: "elbow", "finger", "forearm", "hand", "humerus", "shoulder" or "wrist" (or "XR_ELBOW", …); several of
            them, as a list or with commas between; or "all".

    Returns:
        One entry an image, in the order of paths with their numbers taken as numbers. Problems: "error" for each row
        or file that is not MURA's, for each label that its folder contradicts, and for a list without rows; "warning"
        for studies that the images' list lacks and the studies' list has; "note" for the opposite, for rows that are
        there twice, and for parts that do not hold what was published.

    Raises:
        DatasetError: the folder is not laid out like MURA, a list is no CSV file, or there is no image of these body
            parts.
        ConfigurationError: an unknown body part.
    """
    parts = _body_parts(body_part)
    problems: list[Problem] = []
    with permitted(Path(root)):
        folder = _folder(Path(root))
        found = {part: items_of(folder, part, problems) for part in PUBLISHED}
    items = sorted((item for part in found.values() for item in part), key=lambda item: item.order)
    wrong = any(problem.severity == "error" for problem in problems)
    if not items and not wrong:
        raise DatasetError(f"{folder} holds no MURA images; {TREE}")
    chosen = tuple(i for i, item in enumerate(items) if item.body_part in parts)
    if not chosen and not wrong:
        there = ", ".join(sorted({item.body_part for item in items}))
        raise DatasetError(f"{folder} holds no images of {', '.join(parts)}; it has {there}")
    for part, published in PUBLISHED.items():
        if len(found[part]) != published:
            none = "" if found[part] else f", and none to {'train on' if part == 'train' else 'test with'}"
            counted = f"{len(found[part])} of the {published} images that were published{none}"
            problems.append(Problem("note", "count", str(folder / part), counted))
    return Listing(
        dataset="mura",
        name="mura" if len(parts) == len(BODY_PARTS) else f"mura-{'+'.join(parts)}",
        root=folder,
        entries=tuple(
            Entry(
                item.path,
                folder / item.path,
                item.label,
                # As MURA names them, so that their order is that of the numbers.
                f"patient{item.patient:05d}",
                item.study,
                "train" if item.train else "test",
            )
            for item in items
        ),
        class_names=CLASSES,
        chosen=chosen,
        problems=tuple(problems),
        validation=VALIDATION,
        tree=TREE,
        licence=LICENCE,
        citation=CITATION,
    )


def _body_parts(body_part: str | Sequence[str]) -> list[str]:
    if body_part == "all":
        return list(BODY_PARTS)
    names: Sequence[Any] = body_part.split(",") if isinstance(body_part, str) else ()
    if isinstance(body_part, list | tuple):
        names = body_part
    wanted = {str(name).strip().lower().removeprefix("xr_") for name in names}
    if not wanted or wanted - set(BODY_PARTS):
        raise ConfigurationError(
            f"body_part={body_part!r} is unknown; use one or several (with commas) of {', '.join(BODY_PARTS)}, or 'all'"
        )
    return sorted(wanted)


def _folder(root: Path) -> Path:
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; {TREE}")
    if not any((root / part).is_dir() or lists_of(root, part) for part in ("train", "valid")):
        root = root / FOLDER if (root / FOLDER).is_dir() else root
    return root


def write_example(
    folder: Path,
    n: int | None = None,
    seed: int = 0,
    body_parts: str | Sequence[str] = BODY_PARTS,
    *,
    studies: int | None = None,
    side: tuple[int, int] = (300, 500),
) -> Path:
    """Write a small made-up data set in MURA's layout below `folder`, for tests and for trying things out.

    Synthetic radiographs (`maskaug.envs.synthetic`), the broken ones as abnormal, every fifth an RGB file. Studies have
    one to three images, every fourth patient has two studies (of two body parts and two labels), and the last patients,
    with a sixth of the images, are the valid part. The four lists have no header. With 80 images or more, all of train,
    val and test hold both classes.

    Args:
        folder: where `MURA-v1.1` is made.
        n: images in all, at least 12; 200 if left out.
        seed: of the pictures and of who has how many.
        body_parts: of the patients, in turn.
        studies: instead of `n`, studies in all, at least 18; a sixth of them are the valid part.
        side: the least and the greatest height and width in pixels, at least 36.

    Returns:
        The path of `MURA-v1.1`.

    Raises:
        ConfigurationError: too few images, `n` and `studies` both, impossible sides, an unknown body part, or there is
            a `MURA-v1.1` in `folder` already.
    """
    if n is not None and studies is not None:
        raise ConfigurationError(f"n={n} counts images and studies={studies} studies; give one of them")
    n = 200 if n is None else n
    if n < 12:
        raise ConfigurationError(f"n={n} images are too few for two classes in two parts; use at least 12")
    if studies is not None and studies < 18:
        raise ConfigurationError(f"studies={studies} are too few for two classes in two parts; use at least 18")
    if not 36 <= side[0] <= side[1]:
        raise ConfigurationError(f"side={side} must be the least and the greatest side in pixels, at least 36")
    parts = _body_parts(body_parts)
    root = Path(folder) / FOLDER
    if root.exists():
        raise ConfigurationError(f"{root} exists already, and would be mixed with the example; choose another folder")
    rng = np.random.default_rng(np.random.SeedSequence([seed, n if studies is None else studies]))
    # A picture's label is the same at every size; of so many there are enough of either for any number of studies.
    labels = render("radiograph", "medium", 36, seed, np.arange(n if studies is None else 4 * studies + 60))[1]
    classes = [np.flatnonzero(labels == label).tolist() for label in (0, 1)]
    cuts = [max(1, len(numbers) // 6) for numbers in classes]
    most = (n, n) if studies is None else (studies - studies // 6, studies // 6)
    patients = itertools.count()
    lists: dict[str, list[str]] = {}
    pictures: list[tuple[int, Path, tuple[int, int]]] = []
    for part, left, wanted in (
        ("train", [numbers[cut:] for numbers, cut in zip(classes, cuts, strict=True)], most[0]),
        ("valid", [numbers[:cut] for numbers, cut in zip(classes, cuts, strict=True)], most[1]),
    ):
        rows = lists.setdefault(f"{part}_labeled_studies.csv", [])
        while any(left) and len(rows) < wanted:
            patient = next(patients)
            turn, place = divmod(patient, len(parts))
            for extra in range(2 if patient % 4 == 3 and all(left) and len(rows) + 1 < wanted else 1):
                # Every body part gets both labels in turn.
                label = (turn + place + extra) % 2
                label = label if left[label] else 1 - label
                numbers = [left[label].pop(0) for _ in range(min(len(left[label]), int(rng.integers(1, 4))))]
                body_part = parts[(place + extra) % len(parts)].upper()
                study = f"{part}/XR_{body_part}/patient{patient + 1:05d}/study{extra + 1}_{LABELS[label]}"
                rows.append(f"{FOLDER}/{study}/,{label}")
                for i, number in enumerate(numbers, start=1):
                    file = f"{study}/image{i}.png"
                    lists.setdefault(f"{part}_image_paths.csv", []).append(f"{FOLDER}/{file}")
                    h, w = (int(length) for length in rng.integers(side[0], side[1] + 1, 2))
                    pictures.append((number, root / file, (h, w)))
    _draw(pictures, seed, side[1])
    for name, rows in lists.items():
        (root / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def _draw(pictures: Sequence[tuple[int, Path, tuple[int, int]]], seed: int, side: int) -> None:
    # Enlarged from at most 192, which is several times faster than to draw them at their full size.
    for start in range(0, len(pictures), 256):
        block = pictures[start : start + 256]
        drawn = render("radiograph", "medium", min(side, 192), seed, np.array([number for number, _, _ in block]))[0]
        for image, (number, path, size) in zip(drawn, block, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(resize(image, size))
            picture.convert("RGB" if number % 5 == 4 else "L").save(path, compress_level=1)
