"""MURA's list files and folders → items, and what is wrong with their rows. Used by `maskaug.envs.mura`."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from maskaug.envs.errors import DatasetError
from maskaug.envs.listing import Problem

BODY_PARTS = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")
FOLDER = "MURA-v1.1"
#: What the folders of studies end with, in the order of the labels.
LABELS = ("negative", "positive")
_SUFFIXES = (".png", ".jpg", ".jpeg")
# What a header does not hold, and a path that lost its beginning or end still does.
_PIECE = re.compile(r"[/\\]|\.(png|jpe?g)$|patient\d|study\d", re.IGNORECASE)
_PATIENT = r"patient(\d{1,9})"
_STUDY = re.compile(
    rf"(?:.*/)?((train|valid)/XR_({'|'.join(BODY_PARTS).upper()})/{_PATIENT}/study\d+_(negative|positive))/([^/]*)"
)
TREE = f"""expected
  {FOLDER}/train/XR_ELBOW/patient00011/study1_negative/image1.png, …
  {FOLDER}/valid/XR_WRIST/patient11185/study1_positive/image1.png, …
  {FOLDER}/train_image_paths.csv, valid_image_paths.csv, train_labeled_studies.csv, valid_labeled_studies.csv
(without the lists the tree itself is looked through)"""


@dataclasses.dataclass(frozen=True)
class Item:
    """One image; its path, below the root, ends with "/" where a study is listed whose images are not there."""

    path: str
    study: str
    train: bool
    body_part: str
    patient: int
    label: int

    @classmethod
    def parse(cls, text: str) -> Item | None:
        """The item at a path, whatever lies in front of its part; None: it is no path of MURA's."""
        match = _STUDY.fullmatch(text.strip().replace("\\", "/"))
        if match is None:
            return None
        study, part, body_part, patient, label, file = match.groups()
        return cls(f"{study}/{file}", study, part == "train", body_part.lower(), int(patient), LABELS.index(label))

    @property
    def order(self) -> list[Any]:
        """Sorts image2 before image10."""
        return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", self.path)]


def lists_of(folder: Path, part: str) -> list[Path]:
    """The list files of "train" or "valid" that are there, that of the images first."""
    files = (folder / f"{part}_image_paths.csv", folder / f"{part}_labeled_studies.csv")
    return [file for file in files if file.is_file()]


def items_of(folder: Path, part: str, problems: list[Problem]) -> set[Item]:
    """The images of "train" or "valid": those of its lists, or without any those of its folders.

    What is wrong with single rows and files is added to `problems`.

    Raises:
        DatasetError: a list is no CSV file.
    """
    lists = lists_of(folder, part)
    if not lists:
        return set(_walk(folder, _below([folder / part], ("XR_*", "patient*", "study*", "*")), problems))
    items: set[Item] = set()
    studies: dict[Path, set[str]] = {}
    for file in lists:
        images = file.name.endswith("_image_paths.csv")
        before = len(problems)
        rows = list(_parsed(file, part, images, problems))
        if not rows and len(problems) == before:
            told = (
                f"it lists no {'images' if images else 'studies'}; copy or download it again, or remove it: what no "
                "list names is looked for in the folders"
            )
            problems.append(Problem("error", "list", str(file), told))
        studies[file] = {item.study for item in rows}
        if again := len(rows) - len(set(rows)):
            told = f"{again} of its rows are there more than once; each counts once"
            problems.append(Problem("note", "row", str(file), told))
        if images:
            items.update(rows)
        elif len(lists) == 1:
            for item in rows:
                items.update(_walk(folder, _below([folder / item.study], ("*",)), problems) or [item])
    for file, other in itertools.permutations(lists, 2):
        if alone := sorted(studies[file] - studies[other]):
            decides = other == lists[0]
            told = f"{len(alone)} studies are not in {other.name} ({', '.join(alone[:3])}{', …' if alone[3:] else ''})"
            if decides:
                told += ", so that their images are left out; was that list cut off? Copy or download both again"
            problems.append(Problem("warning" if decides else "note", "study", str(file), told))
    return items


def _parsed(file: Path, part: str, images: bool, problems: list[Problem]) -> Iterator[Item]:
    for number, row in _rows(file, 1 if images else 2):
        item = _listed(row, part, images)
        if isinstance(item, str):
            problems.append(Problem("error", "row", f"{file}, row {number}", item))
        elif item is not None:
            yield item


def _rows(file: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file} cannot be read as a CSV file ({error}); copy or download it again") from error
    header = bool(rows) and len(rows[0][1]) == columns and not any(_PIECE.search(cell.strip()) for cell in rows[0][1])
    yield from rows[header:]


def _listed(row: list[str], part: str, images: bool) -> Item | str | None:
    """The image or study of a list's row, what is wrong with it, or None for what macOS leaves behind."""
    study = f"{FOLDER}/{part}/XR_ELBOW/patient00011/study1_negative/"
    expected = f"expected {study}{'image1.png' if images else ',0'}"
    if len(row) != (1 if images else 2):
        return f"{len(row)} columns where {1 if images else 2} should be; {expected}"
    item = Item.parse(row[0] if images else row[0].strip().rstrip("/\\") + "/")
    if item is None or item.train != (part == "train"):
        return f"{row[0]!r} is no path of the {part} part; {expected}"
    if not images and row[1].strip() != str(item.label):
        return (
            f"label {row[1].strip()!r} for {item.study}, whose folder says {item.label} ({LABELS[item.label]}); are "
            "the list and the folders from one copy?"
        )
    if images and item.path.rpartition("/")[2].startswith("."):
        return None
    if images and not item.path.lower().endswith(_SUFFIXES):
        return f"{row[0]!r} is no image ({', '.join(_SUFFIXES)})"
    return item


def _below(folders: Iterable[Path], patterns: Sequence[str]) -> Iterator[Path]:
    # Not Path.glob: that leaves out, without a word, what may not be looked at.
    for folder in folders:
        if folder.is_dir():
            names = sorted(fnmatch.filter(os.listdir(folder), patterns[0]))
            found = (folder / name for name in names)
            yield from _below(found, patterns[1:]) if patterns[1:] else found


def _walk(folder: Path, paths: Iterable[Path], problems: list[Problem]) -> list[Item]:
    items = []
    for path in paths:
        if path.name.startswith(".") or not path.name.lower().endswith(_SUFFIXES):
            continue
        item = Item.parse(path.relative_to(folder).as_posix())
        if item is None:
            told = f"it does not lie where an image of MURA does, so that it has no label; {TREE}"
            problems.append(Problem("error", "path", str(path), told))
        else:
            items.append(item)
    return items
