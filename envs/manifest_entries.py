"""The rows of a manifest → entries and problems: each row by itself first, then what only all of them can tell."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from maskaug.envs.confinement import Confinement
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.listing import Box, Entry, Problem
from maskaug.envs.manifest_regions import parse_region, short
from maskaug.envs.manifest_rows import read_rows

#: So many wrong rows are told one by one.
TOLD = 1000
#: More classes than this are no classes; a wrong column was taken for the label.
MAX_CLASSES = 1000

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{0,15})?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Classes:
    """Classes that are known beforehand.

    Attributes:
        names: in the order of their numbers.
        numbers: whether labels may give the number instead of the name.
    """

    names: tuple[str, ...]
    numbers: bool = False

    def __post_init__(self) -> None:
        if len({_key(name) for name in self.names}) < len(self.names):
            raise ConfigurationError(f"class_names={self.names} has a name twice; upper and lower case are the same")

    def places(self) -> dict[str | Decimal, int]:
        """What a label may be → its class's number."""
        places = {_key(name): i for i, name in enumerate(self.names)}
        return places | {Decimal(i): i for i in range(len(self.names))} if self.numbers else places


class _Row(NamedTuple):
    line: int
    name: str
    label: str
    patient: str
    study: str
    split: str
    masks: tuple[str, ...]
    boxes: tuple[Box, ...]
    sha256: str | None


class _Problems:
    """The first `TOLD` wrong rows, and how many there are."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._told: list[tuple[int, Problem]] = []
        self._more = 0

    def add(self, line: int, kind: str, message: str) -> None:
        if len(self._told) < TOLD:
            where = f"{self._file}, row {line}"
            self._told.append((line, Problem("error", kind, where, message)))
        else:
            self._more += 1

    def all(self) -> list[Problem]:
        found = [problem for _, problem in sorted(self._told, key=lambda told: told[0])]
        if self._more:
            found.append(Problem("error", "row", self._file, f"{self._more} more rows are wrong; mend these first"))
        return found


class _RowError(Exception):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def list_entries(
    root: Path, file: Path, name: str, classes: Classes | None
) -> tuple[tuple[Entry, ...], tuple[str, ...], tuple[Problem, ...]]:
    """The entries of the rows that are right, in their order; the classes' names; what is wrong with the others.

    Args:
        root: the folder that paths are relative to and must stay in.
        file: the CSV file.
        name: what problems call it.
        classes: what labels may be; None: whatever they are.

    Raises:
        DatasetError: see `maskaug.envs.manifest_rows.read_rows`; or there are too many classes.
    """
    # A million rows become millions of objects that all stay; the collector would look through them again and again.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _list(root, file, name, classes)
    finally:
        if collecting:
            gc.enable()


def _list(
    root: Path, file: Path, name: str, classes: Classes | None
) -> tuple[tuple[Entry, ...], tuple[str, ...], tuple[Problem, ...]]:
    problems = _Problems(name)
    rows = _read(root, file, name, problems)
    labelled, patients = any(row.label for row in rows), any(row.patient for row in rows)
    studies, splits = any(row.study for row in rows), any(row.split for row in rows)
    places, class_names = _classes(rows, classes, name) if labelled else ({}, ())
    written: dict[int, tuple[str, int]] = {}
    entries = []
    for row in rows:
        label = places.get(row.label)
        if labelled and label is None:
            problems.add(row.line, "label", _wrong_label(row.label, class_names))
        elif classes is None and label is not None and written.setdefault(label, (row.label, row.line))[0] != row.label:
            first, line = written[label]
            problems.add(
                row.line,
                "label",
                f"the label {row.label!r} is written {first!r} in row {line}; write both alike, or give class_names",
            )
        elif patients and not row.patient:
            problems.add(
                row.line,
                "patient",
                "no patient, while other rows have one; write who it is, or if nobody knows, an identifier of its own",
            )
        elif splits and not row.split:
            problems.add(row.line, "split", "no split, while other rows have one; write train, val or test")
        else:
            entries.append(_entry(root, row, label, studies))
    notes = []
    if entries and not patients:
        instead = "study" if studies else "picture"
        message = f"no patients: each {instead} counts as one, and pictures of one person may be in two splits"
        notes = [Problem("note", "patient", name, f"{message}; add a column 'patient' if you can")]
    return tuple(entries), class_names, (*problems.all(), *notes)


def _read(root: Path, file: Path, name: str, problems: _Problems) -> list[_Row]:
    paths = Confinement(root)
    # Equal cells are one object: a million rows have two labels.
    share: dict[str, str] = {}
    lines: dict[str, int] = {}
    rows = []
    for line, cells in read_rows(file, name):
        if isinstance(cells, str):
            problems.add(line, "row", cells)
            continue
        try:
            row = _row(line, cells, paths, share)
            first = lines.setdefault(row.name, line)
            if first != line:
                raise _RowError(
                    "path",
                    f"the path {row.name!r} stands in row {first} already; a picture has one row (several regions go "
                    "into one cell, with | between)",
                )
        except _RowError as error:
            problems.add(line, error.kind, str(error))
        else:
            rows.append(row)
    return [row for row in rows if not _photographed(row, lines, problems)]


def _photographed(row: _Row, lines: dict[str, int], problems: _Problems) -> bool:
    """Whether a mask of the row is a picture of the list: nearly all of a photo is not zero, and so inside."""
    for mask in row.masks:
        if (line := lines.get(mask)) is not None:
            whose = "the picture itself" if mask == row.name else f"the picture of row {line}"
            message = f"the mask {short(mask)} is {whose}; write the mask's file, or remove its row among the pictures"
            problems.add(row.line, "region", message)
            return True
    return False


def _row(line: int, cells: Sequence[str], paths: Confinement, share: dict[str, str]) -> _Row:
    path, label, patient, study, split, region, sha256 = cells
    if not path:
        raise _RowError("path", "the path is blank; write the picture's file, or remove the row")
    name = _accept("path", path, paths)
    masks, boxes = _region(region, paths) if region else ((), ())
    part = split and _SPLITS.get(split.casefold())
    if part is None:
        raise _RowError("split", f"the split {short(split)} is unknown; write train, val (valid, validation) or test")
    if sha256 and not _SHA256.fullmatch(sha256):
        raise _RowError("sha256", f"the sha256 {short(sha256)} is not one: it has 64 digits, 0–9 and a–f")
    return _Row(
        line,
        name,
        _text("label", label, share),
        _text("patient", patient, share),
        _text("study", study, share),
        part,
        masks,
        boxes,
        sha256.lower() or None,
    )


def _text(column: str, cell: str, share: dict[str, str]) -> str:
    known = share.get(cell)
    if known is None:
        if _CONTROL.search(cell):
            raise _RowError(
                column, f"the {column} {short(cell)} has control characters; is a quotation mark left open?"
            )
        known = share[cell] = cell
    return known


def _accept(kind: str, path: str, paths: Confinement) -> str:
    try:
        return paths.accept(path)
    except DatasetError as error:
        what = "path" if kind == "path" else "mask"
        raise _RowError(kind, f"the {what} {short(path)} {error}") from None


def _region(region: str, paths: Confinement) -> tuple[tuple[str, ...], tuple[Box, ...]]:
    try:
        masks, boxes = parse_region(region)
    except DatasetError as error:
        raise _RowError("region", str(error)) from None
    return tuple(_accept("region", mask, paths) for mask in masks), tuple(boxes)


def _classes(rows: Sequence[_Row], classes: Classes | None, file: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Each label as it is written → its class's number, and the classes' names."""
    found = dict.fromkeys(row.label for row in rows if row.label)
    if classes is not None:
        places = classes.places()
        return {text: places[_key(text)] for text in found if _key(text) in places}, classes.names
    names: dict[str | Decimal, str] = {}
    for text in found:
        if text.casefold() != "nan":
            names.setdefault(_key(text), text)
    if len(names) > MAX_CLASSES:
        raise DatasetError(
            f"{file}: the column 'label' holds {len(names)} different values, more than {MAX_CLASSES} classes; is it "
            "the right column?"
        )
    numbers = all(isinstance(key, Decimal) for key in names)
    order = sorted(names, key=lambda key: (key if isinstance(key, Decimal) and numbers else 0, str(key)))
    numbered = {key: i for i, key in enumerate(order)}
    return {text: numbered[_key(text)] for text in found if _key(text) in numbered}, tuple(names[key] for key in order)


def _key(label: str) -> str | Decimal:
    # 1, 01 and 1.0 are one class, as are "Fracture" and "fracture".
    return Decimal(label) if _NUMBER.fullmatch(label) else " ".join(label.casefold().split())


def _wrong_label(label: str, class_names: Sequence[str]) -> str:
    if not label:
        return "no label, while other rows have one; write its class, or remove the row"
    known = ", ".join(class_names[:20]) + (", …" if len(class_names) > 20 else "")
    return f"the label {short(label)} is none of the classes; known are {known}"


def _entry(root: Path, row: _Row, label: int | None, studies: bool) -> Entry:
    study = _study(row) if studies else None
    shown = f"patient {row.patient}" if row.patient else f"study {row.study}" if row.study else row.name
    return Entry(
        row.name,
        root / row.name,
        label,
        shown,
        study,
        row.split or None,
        tuple(root / mask for mask in row.masks) if row.masks else (),
        row.boxes,
        row.sha256,
    )


def _study(row: _Row) -> str:
    """What to call the row's study: never the same for two of them, and for most of them as one would write it.

    A study's name is often unique for its patient alone, hence P1/S1. A picture without one is a study by itself,
    ./a.png. Where a patient's or a study's name could be taken for more than that, it stands in quotation marks.
    """
    if not row.study:
        return f"./{row.name}"
    if not row.patient:
        return _quoted(row.study) if row.study.startswith(("./", '"')) else row.study
    odd = "/" in row.patient or row.patient.startswith('"') or row.patient == "."
    return f"{_quoted(row.patient) if odd else row.patient}/{row.study}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
