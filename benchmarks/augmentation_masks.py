"""What the masks of `maskaug.benchmarks.augmentation` find by themselves, and what a second classifier says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from maskaug.benchmarks.augmentation import TITLES
from maskaug.benchmarks.augmentation_analysis import budget_of
from maskaug.benchmarks.augmentation_cells import CURVES
from maskaug.benchmarks.clustered_means import clustered_mean_difference
from maskaug.benchmarks.curves import CURVE_FILLS
from maskaug.benchmarks.grid import Cell
from maskaug.benchmarks.intervals import paired_interval
from maskaug.benchmarks.paired import ALONE, DRAWS, METHOD
from maskaug.benchmarks.report_files import read_json
from maskaug.benchmarks.statistics import Interval, verdict
from maskaug.benchmarks.tables import Table
from maskaug.benchmarks.tasks import DATA, fold_share, scored_on
from maskaug.envs.errors import ConfigurationError

#: in the order of the columns; of deletion less is better.
CURVE_NAMES = tuple(f"{what}.{fill}" for what in ("deletion", "insertion") for fill in CURVE_FILLS)
#: figures of masks at equal area, by column.
_SHOWN = {
    "retention": "retention.agent", "swapped": "retention.swapped", "hit rate": "hit.agent", "IoU": "iou.agent",
    "pointing game": "pointing.agent",
}  # fmt: skip
#: arm → seed → the cell of its masks.
_Found = Mapping[str, Mapping[int, Cell]]


def masks_tables(root: Path, cells: Iterable[Cell], figures: Mapping[str, Mapping[str, float]]) -> list[Table]:
    """For each task and budget the masks at 25 % of the image, and the curves of their rankings.

    Args:
        root: the grid's folder.
        cells: of the grid.
        figures: what `Grid.results` gave.
    """
    found: dict[tuple[str, int | None], dict[str, dict[int, Cell]]] = {}
    for cell in cells:
        if cell.work.endswith(":masks") and cell.name in figures:
            config = cell.config
            arms = found.setdefault((config["task"]["name"], config["shots"]), {})
            arms.setdefault(config["arm"], {})[config["seed"]] = cell
    tables = []
    for (task, shots), arms in found.items():
        own = {arm: arms[arm] for arm in TITLES if arm in arms}
        first = next(iter(next(iter(own.values())).values()))
        title = f"{task}, {budget_of(shots)}{scored_on(first.config['split'])}"
        source = read_json(Path(root) / first.name / DATA)["source"]
        folds = first.config["task"]["folds"]
        stand_in = source == "synthetic" and first.config["task"]["env_id"] != "MaskAug-Synthetic-v0"
        tables += [
            _at_equal_area(title, own, figures, stand_in),
            _curves(Path(root), title, own, figures, folds if folds or source == "synthetic" else None, stand_in),
        ]
    return tables


def _at_equal_area(title: str, found: _Found, figures: Mapping[str, Mapping[str, float]], stand_in: bool) -> Table:
    def mean(seeds: Iterable[Cell], name: str) -> float | None:
        values = [figures[cell.name][name] for cell in seeds if name in figures[cell.name]]
        return float(np.mean(values)) if values else None

    rows: list[list[Any]] = [
        [TITLES[arm], len(seeds), *(mean(seeds.values(), name) for name in (*_SHOWN.values(), "cpu_s"))]
        for arm, seeds in found.items()
    ]
    # Controls are the same for every arm, but for chance.
    controls = next(iter(found.values())).values()
    for name in ("random", "centre", "mean_region", "ceiling"):
        kept = [mean(controls, f"{what}.{name}") for what in ("retention", "hit", "iou", "pointing")]
        if kept[0] is not None:
            rows.append([f"control: {name.replace('_', ' ')}", len(controls), kept[0], None, *kept[1:], None])
    note = (
        "Held-out images, means over seeds. Retention: the share of the region that the mask selects; swapped: with "
        "the masks of other images. Hit rate: of images, at least half of whose region is selected. Pointing game: of "
        "images in whose region the middle of the first cell lies. CPU-s: to train the masker and to rank all images, "
        "its judge's training apart."
    )
    columns = ["mask", "seeds", *_SHOWN, "CPU-s"]
    full = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    return Table(
        f"{title}: the masks themselves, 25 % of the image", [columns[i] for i in full],
        [[row[i] for i in full] for row in rows], note, stand_in=stand_in,
    )  # fmt: skip


def _curves(
    root: Path, title: str, found: _Found, figures: Mapping[str, Mapping[str, float]], folds: int | None, stand_in: bool
) -> Table:
    # `folds`: of one data set; 0: every seed has images of its own; None: all seeds test the same images.
    told: set[str] = set()
    values = {
        arm: {seed: _values(root / cell.name, figures[cell.name], told) for seed, cell in seeds.items()}
        for arm, seeds in found.items()
    }
    against: list[tuple[str, str | None]] = [("random", None)]
    against += [(TITLES["grad_cam"], "grad_cam")] if "grad_cam" in found else []
    rows: list[list[Any]] = []
    for arm, seeds in values.items():
        for name, other in against:
            if arm == other:
                continue
            row: list[Any] = [TITLES[arm], name, len(seeds if other is None else seeds.keys() & values[other].keys())]
            for curve in CURVE_NAMES:
                try:
                    interval = _difference(seeds, None if other is None else values[other], curve, folds)
                except ConfigurationError as error:
                    told.add(f"No interval: {error}")
                    interval = None
                word = "" if interval is None else verdict(interval, larger_is_better=curve.startswith("insertion"))
                row.append("" if interval is None else f"{interval.text()} {word}".removesuffix(" not established"))
            rows.append(row)
    note = (
        "Areas under the curves of a classifier that was not the judge, on held-out images: of deletion less is "
        "better, of insertion more. Differences with 95 % intervals, clustered by seed and group"
        + (f", the variance over n folds counting 1/n + {fold_share(folds):.2f}" if folds else "")
        + "; what is called "
        f"neither better nor worse is not established. {ALONE}" + "".join(f" {reason}." for reason in sorted(told))
    )
    columns = ["ranking", "against", "seeds", *CURVE_NAMES]
    return Table(f"{title}: deletion and insertion", columns, rows, note, stand_in=stand_in)


_Values = Mapping[int, Mapping[str, npt.NDArray[Any]]]


def _values(folder: Path, figures: Mapping[str, float], told: set[str]) -> Mapping[str, npt.NDArray[Any]]:
    """Values of single images and their "groups"; of a run that left none the means, under which no "groups" are."""
    if (folder / CURVES).is_file():
        return load_file(folder / CURVES)
    told.add("Some runs left no values of single images: where they take part, intervals are by seed alone")
    return {name: np.array([value]) for name, value in figures.items()}


def _difference(own: _Values, other: _Values | None, curve: str, folds: int | None) -> Interval | None:
    """Of a ranking − random ones of the same images, or − another arm's; None with fewer than two seeds in common."""
    seeds = [seed for seed in own if other is None or seed in other]
    if len(seeds) < 2:
        return None
    mine = [own[seed] for seed in seeds]
    theirs, whose = (mine, "random") if other is None else ([other[seed] for seed in seeds], "own")
    pairs = [(m[f"{curve}.own"], t[f"{curve}.{whose}"]) for m, t in zip(mine, theirs, strict=True)]
    # Folds share training images.
    test_share = fold_share(folds or 0)
    if not all("groups" in values for values in (*mine, *theirs)):
        return Interval(*paired_interval([float(m.mean() - t.mean()) for m, t in pairs], test_share=test_share))
    runs = [(values["groups"], *pair) for values, pair in zip(mine, pairs, strict=True)]
    return clustered_mean_difference(runs, shared=folds != 0, method=METHOD, draws=DRAWS, test_share=test_share)
