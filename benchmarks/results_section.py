"""README's results section, written from the tables in benchmarks/results: `make results`.

A figure in the section is a figure in a committed tables.json; nobody copies any by hand, and a test compares the two.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from maskaug.benchmarks.tables import TABLES, Table, read_tables
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_text

BEGIN = "<!-- results: written by `make results` from benchmarks/results, not by hand -->"
END = "<!-- end of results -->"


@dataclasses.dataclass(frozen=True)
class Shown:
    """One table of README's.

    Attributes:
        folder: below benchmarks/results.
        title: what the table's title begins with.
        columns: which, in this order; columns that the table lacks are left out.
        heading: above it.
        command: what gave it.
        picture: below it, a file of the folder; empty: none.
        rows: first cells of the rows that are shown, in the table's order; empty: all rows.
    """

    folder: str
    title: str
    columns: Sequence[str]
    heading: str
    command: str
    picture: str = ""
    rows: Sequence[str] = ()


_ARMS = (
    "second view", "seeds", "AUROC", "AUROC (95 %)", "− no masks (95 %)", "against no masks", "− random (95 %)",
    "against random",
)  # fmt: skip
_SHORT = (
    "no masks", "no masks, twice the images", "the judge itself", "random cells", "Cutout", "centre",
    "mean training region (privileged)", "Grad-CAM", "|input × gradient|", "end-to-end", "APGA, published loss", "APGA",
    "APGA, swapped", "PPO", "the true region (oracle)",
)  # fmt: skip
_BESIDE = ("beside", "seeds", "AUROC, difference (95 %)", "P(better)", "verdict")
_SYNTHETIC = "maskaug bench apga --preset cpu --jobs 2 --out DIR"
_BUSI = "maskaug bench apga --preset cpu --data busi --root $BUSI --jobs 2 --out DIR"
_ALGORITHMS = "maskaug bench algorithms --preset cpu --jobs 2 --out DIR"
_REWARD = (
    "arm", "seeds", "CPU-s", "normalised reward [95 %]", "untrained", "swapped", "− Intelligent Masking [95 %]",
    "− APGA [95 %]", "P(better)", "verdict", "share of the region kept [95 %]",
)  # fmt: skip
_ENCODERS = (
    "pre-trained with", "seeds", "AUROC", "AUROC (95 %)", "− no pre-training (95 %)", "against none",
    "− random of equal area (95 %)", "against random",
)  # fmt: skip
_PRETRAINED = "maskaug bench intelligent-masking --preset cpu --data busi --root $BUSI --jobs 2 --out DIR"
_MEAN = "mean over read-outs and numbers of labels"
_THROUGHPUT = "OMP_NUM_THREADS=1 maskaug bench throughput --preset cpu --out DIR"
SHOWN = (
    Shown(
        "apga-synthetic", "radiographs-easy, 100 labels a class, 80% hidden", _ARMS,
        "Does training with masks help? Synthetic radiographs, 100 labels a class, 80 % hidden", _SYNTHETIC,
        "forest-radiographs-easy-100-labels-a-class-80-hidden.png", _SHORT,
    ),
    Shown(
        "apga-synthetic", "radiographs-easy, 100 labels a class, 80% hidden: learnt masks and their controls", _BESIDE,
        "The same: APGA − …", _SYNTHETIC, rows=("APGA",),
    ),
    Shown(
        "apga-busi", "busi-diagnosis, 50 labels a class, 40% hidden", _ARMS,
        "The same on real ultrasound: benign or malignant, 50 labels a class, 40 % hidden", _BUSI,
        "map-busi-diagnosis.png", _SHORT,
    ),
    Shown(
        "apga-busi", "busi-diagnosis, 50 labels a class, 40% hidden: learnt masks and their controls", _BESIDE,
        "The same: APGA − …", _BUSI, rows=("APGA",),
    ),
    Shown(
        "apga-busi", "busi-presence, 50 labels a class, 40% hidden", _ARMS,
        "Is there a lesion in this crop? 50 labels a class, 40 % hidden", _BUSI, "map-busi-presence.png", _SHORT,
    ),
    Shown(
        "intelligent-masking-busi", f"busi, {_MEAN}", _ENCODERS,
        "Does pre-training with learned masks help? Real ultrasound, normal, benign or malignant", _PRETRAINED,
        "map-busi.png",
    ),
    Shown(
        "intelligent-masking-busi", "busi: learned masks and their controls",
        ("beside", "seeds", f"difference, {_MEAN}", "P(better)", "verdict"),
        "The same: Intelligent Masking − …", _PRETRAINED, rows=("Intelligent Masking",),
    ),
    Shown(
        "intelligent-masking-busi-presence", f"busi-presence, {_MEAN}", _ENCODERS,
        "Pre-training for: is there a lesion in this crop?", _PRETRAINED.replace("busi", "busi-presence"),
        "map-busi-presence.png",
    ),
    Shown(
        "algorithms", "reconstruction", _REWARD, "Which algorithm finds the hardest patch? Frozen reconstruction game",
        _ALGORITHMS, "reconstruction.png",
    ),
    Shown(
        "algorithms", "classification", _REWARD, "Which algorithm finds what a classifier needs? Frozen classifier",
        _ALGORITHMS, "classification.png",
    ),
    Shown(
        "throughput", "Throughput",
        ("row", "step", "step + policy", "step + policy + training", "native ÷ this", "training ÷ its passes", "MB"),
        "How fast is it? Small judge, 64×64 pixels, one thread", _THROUGHPUT,
    ),
)  # fmt: skip


def section(results: Path, shown: Sequence[Shown] = SHOWN) -> str:
    """The section's text, BEGIN and END included; tables whose folder is not there are left out.

    Args:
        results: benchmarks/results.
        shown: which tables.

    Raises:
        ConfigurationError: a folder is there, and the table is not in it.
    """
    parts = [BEGIN, ""]
    for one in shown:
        file = results / one.folder / TABLES
        if not file.is_file():
            continue
        table = next((t for t in read_tables(file) if t.title.startswith(one.title)), None)
        if table is None:
            raise ConfigurationError(f"{file} has no table whose title begins with {one.title!r}")
        parts += [_part(table, one), ""]
        if one.picture:
            parts += [f"![{one.heading}](benchmarks/results/{one.folder}/{one.picture})", ""]
    return "\n".join([*parts, END])


def _part(table: Table, one: Shown) -> str:
    places = [table.columns.index(name) for name in one.columns if name in table.columns]
    rows = [[row[i] for i in places] for row in table.rows if not one.rows or row[0] in one.rows]
    chosen = dataclasses.replace(
        table, title=one.heading, columns=[table.columns[i] for i in places], rows=rows,
        note=f"`{one.command}` ([the whole table](benchmarks/results/{one.folder}/tables.md)). {table.note}",
    )  # fmt: skip
    return chosen.markdown()


def update(readme: Path, results: Path) -> bool:
    """Write the section into a README between its two marks; whether that changed anything.

    Raises:
        ConfigurationError: the marks are missing, or not in this order.
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigurationError(f"{readme} has no results section: put a line {BEGIN!r} and a line {END!r} into it")
    new = before + section(results) + after
    if new != text:
        write_text(readme, new)
    return new != text


if __name__ == "__main__":
    here = Path(__file__).resolve().parents[1]
    changed = update(here / "README.md", here / "benchmarks" / "results")
    sys.stdout.write(f"README.md: {'written' if changed else 'up to date'}\n")
