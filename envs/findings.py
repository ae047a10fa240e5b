"""What a check of a data set reports: counts and findings, as objects and as JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.envs.datasets import SPLITS
from maskaug.envs.listing import Severity

#: A class of fewer images in a part is reported.
FEW = 2
#: kind → its severity, what it means and what to do. `maskaug.envs.checking` has the table.
KINDS: dict[str, tuple[Severity, str]] = {
    "listing": ("error", "the folder is not what was expected; loading fails"),
    "missing": ("error", "listed, but not there: loading leaves these images out; complete the copy"),
    "unreadable": ("error", "cannot be read: loading fails; mend these files, or copy or download them again"),
    "mask": ("error", "a mask or box that does not fit its picture: loading fails; are both from one copy?"),
    "sha256": ("error", "not the file that the list means, by its sha256; download it again or correct the list"),
    "patient_across_parts": ("error", "patients in more than one part: loading fails; keep each in one part"),
    "similar_patients": (
        "warning",
        "patients whose names differ only by case, spaces or leading zeros count as two, who may come into two parts; "
        "if they are one, write the name alike",
    ),
    "duplicate_across_parts": (
        "error",
        "the same picture may be learnt from and tested on; give all of its copies one patient, or keep one of them",
    ),
    "near_duplicate_across_parts": (
        "error",
        "pictures that look the same are in two parts of the data set's own division; look at them, and keep one",
    ),
    "label_conflict": ("error", "one picture with two labels; look which is right, and remove the other"),
    "label_conflict_left_out": ("warning", "one picture with two labels; they are not played"),
    "empty_part": ("error", "a part without images: loading it fails; bring more patients, or use split='all'"),
    "empty_class": ("error", "a class without images, so that it cannot be learnt; bring some, or choose the classes"),
    "one_class": (
        "error",
        "one class alone, so that there is nothing to tell apart: the games with labels refuse it; bring a second "
        "class, or leave the labels out and play objective='reconstruction'",
    ),
    "few_images": ("warning", f"classes with fewer than {FEW} images in a part, where a score says little or nothing"),
    "duplicate": ("warning", "the same picture more than once, which counts double"),
    "near_duplicate": (
        "warning",
        "pictures of two patients that look the same (a hint); if they are, give them one patient, or keep one",
    ),
    "label_disagreement": ("warning", "the reader holds these for the same, but they have two labels"),
    "loading": ("error", "the reader's own loading fails"),
    "empty_region": ("warning", "a mask or box that marks nothing, in a class whose other images have a region"),
    "full_region": ("warning", "a mask or box that covers nearly all of its picture; is it inverted, or no mask?"),
    "blank": ("warning", "pictures of one brightness, which show nothing"),
    "said": ("warning", "loading warns, and goes on"),
    "duplicate_left_out": ("note", "the same picture more than once; the reader plays one of them, or none"),
    "left_out": ("note", "the reader leaves these out by itself: copies of others, or labels that disagree"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One place where something was found.

    Attributes:
        where: the image, the images that belong together, the patient, or the list's row.
        detail: what is special about this one; may be empty.
    """

    where: tuple[str, ...]
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes:
        severity: see `maskaug.envs.checking`, which has the table of all kinds.
        kind: one word to count by.
        message: what it means and what to do.
        items: everywhere it was found, in the order of the images.
    """

    severity: Severity
    kind: str
    message: str
    items: tuple[Item, ...]


@dataclasses.dataclass(frozen=True)
class Count:
    """How much there is of a class in a part.

    Attributes:
        split: "train", "val", "test" or "all".
        class_name: None: all classes together.
        images: that could be read.
        patients: groups that are not split; one may have images of several classes.
        studies: None: the data set has none.
    """

    split: str
    class_name: str | None
    images: int
    patients: int
    studies: int | None


@dataclasses.dataclass(frozen=True)
class Report:
    """What `maskaug.envs.checking` found.

    Attributes:
        dataset: the registered name.
        root: its folder, as it was given.
        division: "official" (the data set's own parts), "carved" (the same, with validation carved from train by
            group), "groups" (70/15/15 by group), or "none" (nothing could be read).
        seed: of what is dealt out by group.
        images: how many belong to the data set by its lists or folders.
        counts: each part × (all, each class), of the images that could be read.
        findings: errors first.
    """

    dataset: str
    root: str
    division: str
    seed: int
    images: int
    counts: tuple[Count, ...]
    findings: tuple[Finding, ...]

    def number(self, severity: Severity) -> int:
        """How many kinds of findings of this severity there are."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def ok(self) -> bool:
        """Whether nothing is an error."""
        return not self.number("error")

    def as_json(self) -> dict[str, Any]:
        """As JSON values: the fields by their names, `ok`, and for each finding `count`, the number of its items."""
        value = dataclasses.asdict(self)
        for finding in value["findings"]:
            finding["count"] = len(finding["items"])
        return {**value, "ok": self.ok}


def count_images(
    part: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64] | None,
    groups: npt.NDArray[np.int64],
    studies: npt.NDArray[np.int64] | None,
    class_names: tuple[str, ...],
) -> tuple[Count, ...]:
    """Images, patients and studies of every part and class; all (N,)."""
    inside: Iterable[tuple[str, npt.NDArray[np.bool_]]] = [
        *((split, part == i) for i, split in enumerate(SPLITS)),
        ("all", np.ones(len(part), np.bool_)),
    ]
    counts = []
    for split, here in inside:
        classes: list[tuple[str | None, npt.NDArray[np.bool_]]] = [(None, here)]
        if labels is not None:
            classes += [(name, here & (labels == i)) for i, name in enumerate(class_names)]
        for name, chosen in classes:
            patients = len(np.unique(groups[chosen]))
            seen = None if studies is None else len(np.unique(studies[chosen]))
            counts.append(Count(split, name, int(chosen.sum()), patients, seen))
    return tuple(counts)


def finding(kind: str, items: Iterable[Item]) -> list[Finding]:
    """The finding of one of `KINDS`, in a list; an empty list without items."""
    severity, message = KINDS[kind]
    found = tuple(items)
    return [Finding(severity, kind, message, found)] if found else []


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors, warnings, notes; of each the kinds in the table's order, what readers say themselves at the end."""
    kinds = list(KINDS)
    severities: list[Severity] = ["error", "warning", "note"]

    def place(one: Finding) -> tuple[int, int, str]:
        known = kinds.index(one.kind) if one.kind in KINDS else len(kinds)
        return severities.index(one.severity), known, one.kind

    return tuple(sorted(findings, key=place))
