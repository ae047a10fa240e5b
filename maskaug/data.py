"""`maskaug data check DATASET` and `maskaug data example DATASET`: what is wrong with a folder, and one to try."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from maskaug.options import Options

if TYPE_CHECKING:
    from maskaug.envs.findings import Finding, Report

#: Examples listed of each finding.
LIMIT = 3


@dataclasses.dataclass(frozen=True)
class DataOptions(Options):
    """Which of a data set's images are checked, and how they are read.

    Attributes:
        variant: BUSI: raw or clean.
        classes: BUSI diagnosis: 2 (benign, malignant) or 3 (and normal).
        body_part: MURA: elbow, finger, forearm, hand, humerus, shoulder or wrist, several with commas, or all.
        channel: LGG: flair, pre, post, or all.
        flag: MedMNIST: which of its sets: pneumoniamnist, breastmnist, …
        manifest: manifest and hip fractures: the CSV file's name below the root; manifest.csv if left out.
        class_names: manifest: its classes in the order of their numbers, with commas between.
        window: manifest and hip fractures: of images with more than 8 bits the values that become black and white,
            LOW,HIGH, or minmax.
        frame: manifest and hip fractures: of files with several pages, the one to read.
        max_pixels: images with more pixels than this are refused; 64 million if left out.
    """

    variant: str | None = None
    classes: int | None = None
    body_part: str | None = None
    channel: str | None = None
    flag: str | None = None
    manifest: str | None = None
    class_names: str | None = None
    window: str | None = None
    frame: int | None = None
    max_pixels: int | None = None


def data_check(
    dataset: Annotated[str, tyro.conf.Positional],
    root: str | None = None,
    json: bool = False,
    limit: int = LIMIT,
    seed: int = 0,
    workers: int | None = None,
    data: tyro.conf.OmitArgPrefixes[DataOptions] = DataOptions(),
) -> int:
    """Read everything a data set's folder holds and say what is wrong: counts by split, class and patient; findings.

    Exit status 1 if anything is an error: loading would fail, or a score would be wrong.

    Args:
        dataset: busi, mura, lgg, manifest, …
        root: its folder; looked for below MASKAUG_DATA if left out.
        json: print nothing but JSON: the counts and every finding with all of its places.
        limit: how many places of each finding the table lists; 0: all.
        seed: of what is dealt out by patient.
        workers: threads that decode; one for each core if left out.
        data: which images, and how they are read.
    """
    from maskaug.envs.checking import check_dataset
    from maskaug.envs.errors import ConfigurationError

    if limit < 0:
        raise ConfigurationError(f"limit={limit} must be at least 0; 0 lists everything")
    report = check_dataset(dataset, root, seed=seed, workers=workers, **data.given())
    _show(as_json(report) if json else as_text(report, limit))
    return 0 if report.ok else 1


def data_example(dataset: Annotated[str, tyro.conf.Positional], out: Path, seed: int = 0) -> None:
    """Write a small made-up data set in exactly the layout of a real one, to try things out with.

    Args:
        dataset: busi, mura, lgg, manifest, …
        out: where its folder is made.
        seed: of the pictures.
    """
    from maskaug.envs.examples import write_example

    folder = write_example(dataset, out, seed)
    _show(f"{folder}\ntry: maskaug data check {dataset} --root {folder}")


DATA: dict[str, Callable[..., int | None]] = {"check": data_check, "example": data_example}


def as_json(report: Report) -> str:
    """The report's fields (see `maskaug.envs.findings`) as JSON with sorted keys, all of it ASCII.

    Bytes of a file's name that are no UTF-8 are what Python has for them: `os.fsencode` gives the name back.
    """
    return json.dumps(report.as_json(), indent=2, sort_keys=True, allow_nan=False)


def as_text(report: Report, limit: int) -> str:
    """What the report says, for a terminal: a table of counts, the findings, and one line that sums up.

    What cannot be printed in the names of files (line breaks, what a terminal takes for commands, bytes that are no
    UTF-8) is escaped.

    Args:
        report: what was found.
        limit: how many places of each finding are listed; 0: all.
    """
    lines = [f"{report.dataset}: {report.root}", ""]
    if report.counts:
        lines += [_DIVISIONS[report.division].format(seed=report.seed), "", *_counts(report), ""]
    for finding in report.findings:
        lines += [*_finding(finding, limit), ""]
    errors, warned = report.number("error"), report.number("warning")
    told = [
        f"{n} kinds of {word}s" if n != 1 else f"1 kind of {word}"
        for n, word in ((errors, "error"), (warned, "warning"))
        if n
    ]
    lines.append(f"{report.images} images: {' and '.join(told) or 'nothing is wrong'}")
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def _show(text: str) -> None:
    # A terminal or pipe may have fewer letters than we write.
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


_DIVISIONS = {
    "official": "the data set's own parts",
    "carved": "the data set's own parts; validation is carved from train by patient, seed {seed}",
    "groups": "no official parts: 70/15/15 by patient (where none are known, by group or picture), seed {seed}",
}


def _counts(report: Report) -> list[str]:
    studies = any(count.studies is not None for count in report.counts)
    rows: list[tuple[Any, ...]] = [("split", "class", "images", "patients", "studies")]
    for count in report.counts:
        first = count.class_name is None
        rows.append(
            (count.split if first else "", count.class_name or "(all)", count.images, count.patients, count.studies)
        )
    table = [tuple(str(cell) for cell in row[: 5 if studies else 4]) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def _finding(finding: Finding, limit: int) -> list[str]:
    count = len(finding.items)
    shown = finding.items if limit == 0 else finding.items[:limit]
    lines = [f"{finding.severity.upper():7}  {finding.kind} ×{count}: {finding.message}"]
    for item in shown:
        # A set of copies can be as long as the data set.
        where = " = ".join(item.where if limit == 0 else item.where[:_COPIES])
        more = f" = … ({len(item.where)} in all)" if limit and len(item.where) > _COPIES else ""
        lines.append(f"         {where}{more}" + (f": {' '.join(item.detail.split())}" if item.detail else ""))
    if len(shown) < count:
        lines.append(f"         … and {count - len(shown)} more (--limit 0 lists all)")
    return lines


_COPIES = 4
