"""The files that `maskaug bench apga` leaves: tables.json and tables.md, results.csv, forest plots, maps, a gallery."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from maskaug.benchmarks import augmentation_analysis as analysis
from maskaug.benchmarks.augmentation import PLAIN, TITLES
from maskaug.benchmarks.augmentation_analysis import Block, Result, title_of
from maskaug.benchmarks.augmentation_arms import PLAYED_AREA
from maskaug.benchmarks.augmentation_cells import SCORES
from maskaug.benchmarks.augmentation_comparisons import controls_table, over_tasks, table
from maskaug.benchmarks.augmentation_masks import masks_tables
from maskaug.benchmarks.augmentation_tables import budget_tables, published_tables
from maskaug.benchmarks.forest import Compared, difference_map, forest
from maskaug.benchmarks.gallery import GALLERY, gallery_picture, read_gallery, write_gallery
from maskaug.benchmarks.grid import Grid
from maskaug.benchmarks.statistics import Interval
from maskaug.benchmarks.tables import TABLES, Table, write_tables
from maskaug.benchmarks.tasks import Task, check_data, divided_for, scored_on
from maskaug.envs.files import atomic_write, write_text
from maskaug.envs.masking import cells_for_area, cells_to_mask, top_cells
from maskaug.envs.rendering import save_picture

#: images of a gallery, and its picture for people.
SHOWN, PICTURE = 6, "gallery.png"


def write_analysis(grid: Grid, out: Path) -> list[Table]:
    """Everything that can be said of what is done so far; says in each table how much is left.

    Args:
        grid: of `maskaug.benchmarks.augmentation.cells`.
        out: the folder for the files.
    """
    figures = grid.results()
    cells = list(grid.cells.values())
    check_data(grid.root, cells)
    found = analysis.results(grid.root, cells, figures)
    blocks = list(analysis.blocks(found))
    state = list(grid.status().values())
    unfinished = "" if set(state) <= {"done"} else grid.say()
    tables = [made for b in blocks for made in (table(b), controls_table(b)) if made is not None]
    across = [t for some in _across(blocks) if (t := over_tasks(some)) is not None]
    tables = [*across, *published_tables(blocks), *budget_tables(blocks), *tables]
    tables += masks_tables(grid.root, cells, figures)
    besides = grid.besides()
    tables = [Table(t.title, t.columns, t.rows, t.note + besides, unfinished, t.stand_in) for t in tables]
    out.mkdir(parents=True, exist_ok=True)
    # What an earlier call with more arms or seeds drew would stand beside tables that know nothing of it.
    for old in (*out.glob("forest-*.png"), *out.glob("map-*.png"), out / GALLERY, out / PICTURE):
        old.unlink(missing_ok=True)
    write_tables(out / TABLES, tables)
    text = "\n\n".join(table.markdown() for table in tables) + "\n"
    write_text(out / "tables.md", text)
    atomic_write(out / "results.csv", lambda path: _rows(path, found))
    for block in blocks:
        _forest(block, out)
    _maps(blocks, out)
    _gallery(grid, figures, out)
    return tables


def _rows(path: Path, found: Sequence[Result]) -> None:
    names = sorted({name for r in found for name in r.figures})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "shots", "seed", "setting", "split", "arm", "hidden", *names])
        for r in found:
            setting = "joint" if r.joint else "decoupled"
            shots, hidden = ("all" if r.shots is None else r.shots), ("" if r.hidden is None else r.hidden)
            values = [r.figures.get(name, "") for name in names]
            writer.writerow([r.task, shots, r.seed, setting, r.split, r.arm, hidden, *values])


def _across(blocks: Sequence[Block]) -> list[list[Block]]:
    """What tables over tasks are made of: of each setting the budget and hidden share with the most arms in common."""
    chosen = []
    for joint in (False, True):
        found: dict[Any, list[Block]] = {}
        for block in blocks:
            if block.joint == joint and block.hidden is not None:
                found.setdefault((block.shots, block.hidden), []).append(block)
        several = {key: own for key, own in found.items() if len(own) > 1}
        common = {key: len(set.intersection(*(set(b.runs) for b in own))) for key, own in several.items()}
        chosen += [own for key, own in several.items() if common[key] == max(common.values())]
    return chosen


def _forest(block: Block, out: Path) -> None:
    rows = [
        Compared(title_of(arm), (block.difference(arm, "none"), block.difference(arm, "random"))) for arm in block.runs
    ]
    if any(i is not None for row in rows for i in row.intervals):
        panels = ("AUROC − no masks", "AUROC − random cells")
        picture = forest(rows, panels, f"{block.title}: paired differences, 95 %")
        save_picture(str(out / f"forest-{_slug(block.title)}.png"), picture)


def _maps(blocks: Sequence[Block], out: Path) -> None:
    for task in dict.fromkeys(b.task for b in blocks if not b.joint):
        own = [b for b in blocks if b.task == task and not b.joint and b.hidden is not None]
        hidden = sorted({b.hidden for b in own if b.hidden is not None})
        shots = sorted({b.shots for b in own}, key=lambda s: np.inf if s is None else s)
        if len(hidden) < 2 or len(shots) < 2:
            continue
        at = {(b.shots, b.hidden): b for b in own}
        arms = [arm for arm in TITLES if arm not in PLAIN and sum(arm in b.runs for b in own) > 1]

        def field(arm: str, s: int | None, h: float, at: Mapping[Any, Block] = at) -> Interval | None:
            block = at.get((s, h))
            return None if block is None else block.difference(arm, "none")

        fields = {title_of(arm): [[field(arm, s, h) for h in hidden] for s in shots] for arm in arms}
        if any(i is not None for grid in fields.values() for row in grid for i in row):
            picture = difference_map(
                fields, [f"{h:.0%}" for h in hidden], ["all" if s is None else str(s) for s in shots],
                ("share of the image hidden", "labels a class"), f"{task}: AUROC − no masks; a dot: 0 is outside 95 %",
            )  # fmt: skip
            save_picture(str(out / f"map-{task}.png"), picture)


def _gallery(grid: Grid, figures: Mapping[str, Any], out: Path) -> None:
    # The first task, budget and seed that has masks: the same held-out images under every arm's mask.
    done = [c for c in grid.cells.values() if c.work.endswith(":masks") and c.name in figures]
    if not done:
        return
    first = done[0].config
    same = [c for c in done if all(c.config[k] == first[k] for k in ("task", "shots", "seed", "split"))]
    images = divided_for(Task(**first["task"]), first["shots"], first["seed"], first["split"])["test"]
    rows = np.flatnonzero(images.outlined) if images.outlined.any() else np.arange(len(images))
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int))]
    some = images.subset(rows)
    masks = {}
    for cell in same:
        scores = load_file(grid.root / cell.name / SCORES)["scored"][rows]
        best = top_cells(torch.from_numpy(scores), cells_for_area(PLAYED_AREA, scores.shape[1]))
        masks[TITLES[cell.config["arm"]]] = cells_to_mask(best, *some.shape[1:]).numpy()
    scored = scored_on(first["split"])
    budget = analysis.budget_of(first["shots"])
    write_gallery(
        out / GALLERY, np.array(some.images), masks, None if some.regions is None else np.array(some.regions),
        names=list(some.names), title=f"{first['task']['name']}, {budget}, seed {first['seed']}{scored}: masks of 25 %",
        stand_in=some.source == "synthetic" and first["task"]["env_id"] != "MaskAug-Synthetic-v0",
    )  # fmt: skip
    save_picture(str(out / PICTURE), gallery_picture(read_gallery(out / GALLERY)))


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
