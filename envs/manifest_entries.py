"""The rows of a manifest → entries and problems: each row by itself first, then what only all of them can tell."""

from __future__ import annotations

import contextlib
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
from maskaug.envs.manifest_rows import read_rows

#: So many wrong rows are told one by one.
TOLD = 1000
#: More classes than this are no classes; a wrong column was taken for the label.
MAX_CLASSES = 1000

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{0,15})?", re.ASCII)
_SEPARATORS = re.compile(r"[\s,]+", re.ASCII)
_NOTHING = re.compile(r"\b(nan|inf)\b", re.IGNORECASE)
# What boxes are made of, also wrong ones; with a bracket or a separator in it this is no file's name.
_APART = frozenset(" \t\n\r\v\f,;[](){}")
_NUMERIC = _APART | frozenset("0123456789.:+-")
#: What tables write where there is nothing. It might as well mean "unknown", so that it is not taken for either.
_NULLS = frozenset({"nan", "-nan", "none", "null", "nil", "na", "n/a", "<na>", "#n/a", "#na", "#n/a n/a", "nat"})
#: No picture is that large.
_FAR = 1e9


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
            message = f"the mask {_short(mask)} is {whose}; write the mask's file, or remove its row among the pictures"
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
        raise _RowError("split", f"the split {_short(split)} is unknown; write train, val (valid, validation) or test")
    if sha256 and not _SHA256.fullmatch(sha256):
        raise _RowError("sha256", f"the sha256 {_short(sha256)} is not one: it has 64 digits, 0–9 and a–f")
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
                column, f"the {column} {_short(cell)} has control characters; is a quotation mark left open?"
            )
        known = share[cell] = cell
    return known


def _accept(kind: str, path: str, paths: Confinement) -> str:
    try:
        return paths.accept(path)
    except DatasetError as error:
        what = "path" if kind == "path" else "mask"
        raise _RowError(kind, f"the {what} {_short(path)} {error}") from None


def _region(region: str, paths: Confinement) -> tuple[tuple[str, ...], tuple[Box, ...]]:
    masks, boxes = [], []
    for piece in region.split("|"):
        piece = piece.strip()
        if not piece:
            raise _RowError("region", f"the region {_short(region)} has an empty part; put one | between two of them")
        if piece.casefold() in _NULLS:
            raise _RowError(
                "region",
                f"the region {_short(piece)} says nothing; leave the cell blank where nothing is there (a mask of this "
                f"name is written ./{piece})",
            )
        numbers = _numbers(piece)
        if numbers is None:
            masks.append(_accept("region", piece, paths))
            continue
        if len(numbers) != 4 or not all(abs(number) < _FAR for number in numbers):
            named = f" (a mask of this name is written ./{piece})" if len(numbers) == 1 and len(piece) < 120 else ""
            raise _RowError("region", f"the region {_short(piece)} is no box; write x0 y0 x1 y1, in pixels{named}")
        x0, y0, x1, y1 = numbers
        # A box that was drawn by hand may overlap the border by a pixel.
        if not (-1 <= x0 < x1 and -1 <= y0 < y1):
            raise _RowError(
                "region",
                f"the box {_short(piece)} is empty or begins outside; x0 y0 is its upper left corner, x1 y1 the lower "
                "right one, in pixels from 0",
            )
        boxes.append((x0, y0, x1, y1))
    return tuple(masks), tuple(boxes)


def _numbers(piece: str) -> list[float] | None:
    """The numbers that a region is made of, in any notation; [] if they cannot be read; None: it is a path.

    No regular expression: of a cell that is as long as one may be, it would try all the ways to divide it.
    """
    # Python would also take 1_000, and digits of other scripts.
    if not piece.isascii() or "_" in piece:
        return None
    with contextlib.suppress(ValueError):
        return [float(word) for word in _SEPARATORS.split(piece)]
    letters = set(_NOTHING.sub("0", piece))
    return [] if letters <= _NUMERIC and letters & _APART else None


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
    return f"the label {_short(label)} is none of the classes; known are {known}"


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


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:120] + "…")
