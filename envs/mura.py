"""MURA, radiographs of the arm: the folder `MURA-v1.1` → `ImageDataset`.

Rajpurkar et al., "MURA: Large Dataset for Abnormality Detection in Musculoskeletal Radiographs", MIDL 2018
(arXiv:1712.06957). Every study was labelled as a whole: all of its images are normal or all abnormal. The official
valid part is the test split here, and validation images are carved from the train part by patient.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.images import Reading, resize
from maskaug.envs.listing import Entry, Listing
from maskaug.envs.loading import load_listing
from maskaug.envs.synthetic import render

CLASSES = ("normal", "abnormal")
BODY_PARTS = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")
FOLDER = "MURA-v1.1"
LICENCE = "Stanford University School of Medicine MURA Dataset Research Use Agreement"
CITATION = (
    "P. Rajpurkar, J. Irvin, A. Bagul, et al. MURA: Large Dataset for Abnormality Detection in Musculoskeletal "
    "Radiographs. MIDL 2018. arXiv:1712.06957."
)
#: Share of the train part's images that is carved off for validation: about as many as the official valid part has.
VALIDATION = 0.1

_SUFFIXES = (".png", ".jpg", ".jpeg")
_LABELS = ("negative", "positive")
_PATIENT = r"patient(\d{1,9})"
_STUDY = re.compile(
    rf"(?:.*/)?((train|valid)/XR_({'|'.join(BODY_PARTS).upper()})/{_PATIENT}/study\d+_(negative|positive))/([^/]*)"
)
_TREE = f"""expected
  {FOLDER}/train/XR_ELBOW/patient00011/study1_negative/image1.png, …
  {FOLDER}/valid/XR_WRIST/patient11185/study1_positive/image1.png, …
  {FOLDER}/train_image_paths.csv, valid_image_paths.csv, train_labeled_studies.csv, valid_labeled_studies.csv
(without the lists the tree itself is looked through)"""


@dataclasses.dataclass(frozen=True)
class _Item:
    """One image; its path, below the root, ends with "/" where a study is listed whose images are not there."""

    path: str
    study: str
    train: bool
    body_part: str
    patient: int
    label: int

    @classmethod
    def parse(cls, text: str) -> _Item | None:
        match = _STUDY.fullmatch(text.strip().replace("\\", "/"))
        if match is None:
            return None
        study, part, body_part, patient, label, file = match.groups()
        return cls(f"{study}/{file}", study, part == "train", body_part.lower(), int(patient), _LABELS.index(label))

    @property
    def order(self) -> list[Any]:
        """Sorts image2 before image10."""
        return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", self.path)]


def load_mura(
    root: Path,
    *,
    image_size: int,
    channels: int,
    seed: int,
    body_part: str | Sequence[str] = "all",
    workers: int | None = None,
) -> ImageDataset:
    """All images of the MURA folder, with their official parts, decoded once into the cache.

    Args:
        root: see `list_mura`.
        image_size: S, height and width in pixels; whole pictures are squeezed to a square, as the authors of APGA do.
        channels: 1, or 3 with the grey values repeated.
        seed: of the patients that are carved from the train part for validation.
        body_part: see `list_mura`.
        workers: threads that decode; None: one for each core.

    Returns:
        images (N, channels, S, S) uint8, read-only; labels 0 (normal) and 1 (abnormal), their study's; groups, one
        number a patient; studies; official parts: valid is the test split, and whole patients, chosen over all body
        parts, are the validation split. No regions: nobody knows them.

    Raises:
        DatasetError: see `list_mura`; or a patient is in both parts, or none of the images is there. Those of several
            that are missing are left out with a `UserWarning`.
        ImageError: a file cannot be read.
        ConfigurationError: an unknown body part.
    """
    return load_listing(list_mura(root, body_part=body_part), Reading(image_size, channels), seed=seed, workers=workers)


def list_mura(root: Path, *, body_part: str | Sequence[str] = "all") -> Listing:
    """What the MURA folder holds.

    The lists say what belongs to the data set, `*_image_paths.csv` or else `*_labeled_studies.csv`, with or without a
    header; a part without either is looked through. Files named `._*` are what macOS leaves behind, and no images.

    Args:
        root: `MURA-v1.1` or the folder that holds it. A part of the set will do.
        body_part: "elbow", "finger", "forearm", "hand", "humerus", "shoulder" or "wrist" (or "XR_ELBOW", …); several of
            them, as a list or with commas between; or "all".

    Raises:
        DatasetError: the folder is not laid out like MURA, a list has a wrong row, lists and folders disagree, or
            there is no image of these body parts.
        ConfigurationError: an unknown body part.
    """
    parts = _body_parts(body_part)
    folder = _folder(Path(root))
    items = sorted({*_part(folder, "train"), *_part(folder, "valid")}, key=lambda item: item.order)
    if not items:
        raise DatasetError(f"{folder} holds no MURA images; {_TREE}")
    chosen = tuple(i for i, item in enumerate(items) if item.body_part in parts)
    if not chosen:
        found = sorted({item.body_part for item in items})
        raise DatasetError(f"{folder} holds no images of {', '.join(parts)}; it has {', '.join(found)}")
    return Listing(
        dataset="mura",
        name="mura" if len(parts) == len(BODY_PARTS) else f"mura-{'+'.join(parts)}",
        root=folder,
        entries=tuple(
            Entry(
                item.path,
                folder / item.path,
                item.label,
                f"patient{item.patient:09d}",
                item.study,
                "train" if item.train else "test",
            )
            for item in items
        ),
        class_names=CLASSES,
        chosen=chosen,
        validation=VALIDATION,
        tree=_TREE,
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
        raise DatasetError(f"{root} is not a folder; {_TREE}")
    if not any((root / part).is_dir() or _lists(root, part) for part in ("train", "valid")):
        root = root / FOLDER if (root / FOLDER).is_dir() else root
    return root


def _lists(folder: Path, part: str) -> list[Path]:
    files = (folder / f"{part}_image_paths.csv", folder / f"{part}_labeled_studies.csv")
    return [file for file in files if file.is_file()]


def _part(folder: Path, part: str) -> Iterator[_Item]:
    lists = _lists(folder, part)
    for file in lists:
        images = file.name.endswith("_image_paths.csv")
        for number, row in _rows(file):
            if len(row) != (1 if images else 2):
                raise DatasetError(f"{file}, row {number}: {len(row)} columns, expected {1 if images else 2}; {_TREE}")
            item = _listed(row[0], part, images, f"{file}, row {number}")
            if item is None:
                continue
            if not images and row[1].strip() != str(item.label):
                raise DatasetError(
                    f"{file}, row {number}: label {row[1].strip()!r} for {item.study}, whose folder says {item.label} "
                    f"({_LABELS[item.label]}); are the list and the folders from one copy?"
                )
            if images:
                yield item
            elif len(lists) == 1:
                yield from _walk(folder, (folder / item.study).glob("*"), [item])
    if not lists:
        yield from _walk(folder, (folder / part).glob("XR_*/patient*/study*/*"), [])


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file} cannot be read as a CSV file ({error}); copy or download it again") from error
    # A header names columns, and no path is without a slash.
    header = bool(rows) and not any("/" in cell or "\\" in cell for cell in rows[0][1])
    yield from rows[header:]


def _listed(text: str, part: str, images: bool, where: str) -> _Item | None:
    item = _Item.parse(text if images else text.strip().rstrip("/\\") + "/")
    if item is None or item.train != (part == "train"):
        raise DatasetError(f"{where}: {text!r} is no path of the {part} part; {_TREE}")
    if images and item.path.rpartition("/")[2].startswith("."):
        return None
    if images and not item.path.lower().endswith(_SUFFIXES):
        raise DatasetError(f"{where}: {text!r} is no image ({', '.join(_SUFFIXES)})")
    return item


def _walk(folder: Path, paths: Iterable[Path], otherwise: list[_Item]) -> list[_Item]:
    items = []
    for path in paths:
        if path.name.startswith(".") or not path.name.lower().endswith(_SUFFIXES):
            continue
        item = _Item.parse(path.relative_to(folder).as_posix())
        if item is None:
            raise DatasetError(f"{path} does not lie where an image of MURA does, so that it has no label; {_TREE}")
        items.append(item)
    return items or otherwise


def write_example(folder: Path, n: int = 200, seed: int = 0, body_parts: str | Sequence[str] = BODY_PARTS) -> Path:
    """Write a small made-up data set in MURA's layout below `folder`, for tests and for trying things out.

    Synthetic radiographs (`maskaug.envs.synthetic`), the broken ones as abnormal, of 300 to 500 pixels a side, every
    fifth an RGB file. Studies have one to three images, every fourth patient has two studies (of two body parts and two
    labels), and the last patients, with a sixth of the images, are the valid part. The four lists have no header.
    With 80 images or more, all of train, val and test hold both classes.

    Args:
        folder: where `MURA-v1.1` is made.
        n: images in all, at least 12.
        seed: of the pictures and of who has how many.
        body_parts: of the patients, in turn.

    Returns:
        The path of `MURA-v1.1`.

    Raises:
        ConfigurationError: too few images, an unknown body part, or there is a `MURA-v1.1` in `folder` already.
    """
    if n < 12:
        raise ConfigurationError(f"n={n} images are too few for two classes in two parts; use at least 12")
    parts = _body_parts(body_parts)
    root = Path(folder) / FOLDER
    if root.exists():
        raise ConfigurationError(f"{root} exists already, and would be mixed with the example; choose another folder")
    rng = np.random.default_rng(np.random.SeedSequence([seed, n]))
    # Enlarged from here, which is several times faster than to draw them at their full size.
    pictures, labels, _ = render("radiograph", "medium", 192, seed, np.arange(n))
    classes = [np.flatnonzero(labels == label).tolist() for label in (0, 1)]
    cuts = [max(1, len(numbers) // 6) for numbers in classes]
    patients = itertools.count()
    lists: dict[str, list[str]] = {}
    for part, left in (
        ("train", [numbers[cut:] for numbers, cut in zip(classes, cuts, strict=True)]),
        ("valid", [numbers[:cut] for numbers, cut in zip(classes, cuts, strict=True)]),
    ):
        while any(left):
            patient = next(patients)
            turn, place = divmod(patient, len(parts))
            for extra in range(2 if patient % 4 == 3 and all(left) else 1):
                # Every body part gets both labels in turn.
                label = (turn + place + extra) % 2
                label = label if left[label] else 1 - label
                numbers = [left[label].pop(0) for _ in range(min(len(left[label]), int(rng.integers(1, 4))))]
                body_part = parts[(place + extra) % len(parts)].upper()
                study = f"{part}/XR_{body_part}/patient{patient + 1:05d}/study{extra + 1}_{_LABELS[label]}"
                lists.setdefault(f"{part}_labeled_studies.csv", []).append(f"{FOLDER}/{study}/,{label}")
                for i, number in enumerate(numbers, start=1):
                    file = f"{study}/image{i}.png"
                    lists.setdefault(f"{part}_image_paths.csv", []).append(f"{FOLDER}/{file}")
                    h, w = (int(side) for side in rng.integers(300, 501, 2))
                    picture = Image.fromarray(resize(pictures[number], (h, w)))
                    (root / study).mkdir(parents=True, exist_ok=True)
                    picture.convert("RGB" if number % 5 == 4 else "L").save(root / file, compress_level=1)
    for name, rows in lists.items():
        (root / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root
