"""The files of BUSI's class folders → entries, and what is wrong with them. Used by `maskaug.envs.busi`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from maskaug.envs.folders import is_file
from maskaug.envs.listing import Entry, Problem

CLASSES = ("benign", "malignant", "normal")
#: Pictures of each class, as published; they are numbered from 1.
PUBLISHED = {"benign": 437, "malignant": 210, "normal": 133}
FOLDER = "Dataset_BUSI_with_GT"
TREE = f"""expected
  {FOLDER}/benign/benign (1).png, benign (1)_mask.png, …
  {FOLDER}/malignant/malignant (1).png, malignant (1)_mask.png, …
  {FOLDER}/normal/normal (1).png, …"""
_FILE = re.compile(r"(benign|malignant|normal) \(([1-9]\d*)\)(_mask(?:_([1-9]\d*))?)?\.png", re.IGNORECASE)


def scan_class(folder: Path, name: str, problems: list[Problem]) -> list[Entry]:
    """The pictures of the class `name` in its folder, by number; what is wrong with it is added to `problems`."""
    images: dict[int, Path] = {}
    masks: dict[int, dict[int, Path]] = {}
    others, no_files = [], []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        # What operating systems leave behind ("._benign (1).png", Thumbs.db) and anything that is no PNG.
        if path.name.startswith(".") or path.suffix.lower() != ".png":
            continue
        match = _FILE.fullmatch(path.name)
        if match is None or match[1].lower() != name:
            others.append(path.name)
        elif not is_file(path):
            no_files.append(path.name)
        elif match[3]:
            masks.setdefault(int(match[2]), {})[int(match[4] or 0)] = path
        elif (first := images.setdefault(int(match[2]), path)) != path:
            told = f"the same picture as {first.name}; keep the one that is meant"
            problems.append(Problem("error", "twice", str(path), told))
    # A second mask whose first is gone shows one of two lesions: that is no region.
    whole = {number for number, files in masks.items() if files.keys() == set(range(len(files)))}
    without = sorted(images.keys() - whole) if name != "normal" else []
    alone = sorted(masks.keys() - images.keys())
    for kind, told, n, which in (
        ("mask", "pictures without their mask, or one of several", len(without), f"{name} {_spans(without)}"),
        ("image", "pictures of which only masks are there", len(alone), f"{name} {_spans(alone)}"),
        ("file", "folders, dead links or the like with the names of files", len(no_files), ", ".join(no_files)),
        ("name", f"PNG files not named like '{name} (1).png' or its mask", len(others), ", ".join(others)),
    ):
        if n:
            problems.append(Problem("warning", kind, str(folder), f"left out are {n} {told}: {which}"))
    published = range(1, PUBLISHED[name] + 1)
    for which, numbers in (
        ("missing", sorted(set(published) - images.keys())),
        ("never published", sorted(images.keys() - set(published))),
    ):
        if numbers:
            told = f"{len(images)} pictures, {len(published)} were published; {which}: {_spans(numbers)}"
            problems.append(Problem("note", "count", str(folder), told))
    label = CLASSES.index(name)
    return [
        Entry(title, images[number], label, title, masks=tuple(masks.get(number, {}).values()))
        for number in sorted(images.keys() - set(without))
        for title in [f"{name} ({number}).png"]
    ]


def _spans(numbers: Iterable[int]) -> str:
    """Ascending numbers, compactly.

    >>> _spans([3, 17, 20, 21, 22, 24])
    '3, 17, 20–22, 24'
    """
    spans: list[tuple[int, int]] = []
    for number in numbers:
        follows = bool(spans) and spans[-1][1] == number - 1
        spans[len(spans) - follows :] = [(spans[-1][0] if follows else number, number)]
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)
