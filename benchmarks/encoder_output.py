"""`maskaug bench intelligent-masking`: its run, and the files it leaves."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from maskaug.benchmarks import encoder_analysis as analysis
from maskaug.benchmarks.encoder_analysis import Block, Result
from maskaug.benchmarks.encoder_cells import SHOWN, shown_of
from maskaug.benchmarks.encoders import AREA, BESIDE, CONTROL, MAP, TITLES, Encoding
from maskaug.benchmarks.forest import Compared, difference_map, forest
from maskaug.benchmarks.gallery import GALLERY, write_gallery
from maskaug.benchmarks.grid import Grid
from maskaug.benchmarks.pictures import restored_rows
from maskaug.benchmarks.tables import TABLES, Table, write_tables
from maskaug.benchmarks.tasks import Task, check_data, check_source, divided_for, scored_on
from maskaug.envs.files import atomic_write, write_text
from maskaug.envs.rendering import label, save_picture, sheet

ARMS_PICTURE = "arms.png"


def run_encoding(
    encoding: Encoding, out: Path, *, jobs: int = 1, cluster: bool = False, retries: int = 0, gpus: float = 0.0,
    say: Callable[[str], object] = print,
) -> bool:  # fmt: skip
    """Run what is not done, and write everything that can be said of what is; whether all of it is done.

    Args:
        encoding: what is run.
        out: runs/ for the grid, and the files of `write_analysis`.
        jobs: see `Grid.run`, as are the others.
        cluster: run on a Ray cluster.
        retries: of a cell that fails.
        gpus: a cell's share of a GPU, on a cluster.
        say: where lines for people go.

    Raises:
        ConfigurationError: the images are not those that finished cells have had.
        DatasetError: they cannot be read.
    """
    grid = Grid(out / "runs", encoding.cells())
    say(grid.say())
    check_source(grid.root, grid.cells.values(), lambda c: divided_for(Task(**c["task"]), None, c["seed"], c["split"]))
    states = grid.run(jobs=jobs, say=say, cluster=cluster, retries=retries, gpus=gpus)
    for table in write_analysis(grid, out):
        say(table.markdown() + "\n")
    say(f"wrote {out}/")
    return set(states.values()) == {"done"}


def write_analysis(grid: Grid, out: Path) -> list[Table]:
    """tables.json and tables.md, results.csv, forests, maps, arms.png and a gallery; tables say how much is left.

    They are of `grid` alone: pictures of an earlier call with more arms or seeds are removed, and tables say what
    finished cells its folder holds besides.

    Args:
        grid: of `Encoding.cells`.
        out: the folder for the files.

    Raises:
        ConfigurationError: finished cells that are to be compared have run on other images than each other.
    """
    figures, cells = grid.results(), list(grid.cells.values())
    check_data(grid.root, cells)
    found = analysis.results(grid.root, cells, figures)
    blocks = list(analysis.blocks(found, cells))
    tables, maps = [], {}
    for task in dict.fromkeys(r.task for r in found):
        own = [block for block in blocks if block.task == task]
        maps[task] = analysis.map_blocks(found, cells, task)
        tables += [analysis.table(block) for block in own]
        more = [analysis.controls_table(own), analysis.masks_table(own[0])] if own else []
        tables += [table for table in (*more, analysis.areas_table(maps[task])) if table is not None]
    unfinished = "" if len(figures) == len(cells) else grid.say()
    besides = grid.besides()
    tables = [dataclasses.replace(t, unfinished=unfinished, note=f"{t.note}{besides}") for t in tables]
    out.mkdir(parents=True, exist_ok=True)
    for stale in (*out.glob("forest-*.png"), *out.glob("map-*.png"), out / ARMS_PICTURE, out / GALLERY):
        stale.unlink(missing_ok=True)
    write_tables(out / TABLES, tables)
    write_text(out / "tables.md", "\n\n".join(table.markdown() for table in tables) + "\n")
    atomic_write(out / "results.csv", lambda path: _rows(path, found))
    for block in blocks:
        _forest(block, out)
    for own in maps.values():
        _map(own, out)
    _pictures(grid, figures, out)
    return tables


def _rows(path: Path, found: Sequence[Result]) -> None:
    names = sorted({name for r in found for name in r.figures})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "seed", "arm", "area", *names])
        for r in found:
            # Of an arm that hides another share than it is told, or none, the figure would say something wrong.
            area = r.area if r.arm in AREA else ""
            writer.writerow([r.task, r.seed, r.arm, area, *(r.figures.get(name, "") for name in names)])


def _forest(block: Block, out: Path) -> None:
    rows = [
        Compared(TITLES[arm], (block.difference(arm, "none"), block.difference(arm, CONTROL.get(arm))))
        for arm in block.runs
    ]
    rows = [row for row in rows if any(i is not None for i in row.intervals)]
    if rows:
        panels = ("AUROC − no pre-training", "AUROC − random of equal area")
        slug = re.sub(r"[^a-z0-9]+", "-", block.title.lower()).strip("-")
        save_picture(str(out / f"forest-{slug}.png"), forest(rows, panels, f"{block.title}: paired differences, 95 %"))


def _map(own: Sequence[Block], out: Path) -> None:
    at = {(block.labels, block.area): block for block in own}
    labels, areas = list(dict.fromkeys(b.labels for b in own)), sorted({b.area for b in own})
    fields = {
        TITLES[arm]: [[at[few, area].difference(arm, "none") for area in areas] for few in labels]
        for arm in MAP
        if any(arm in block.runs for block in own)
    }
    if any(i is not None for grid in fields.values() for row in grid for i in row):
        picture = difference_map(
            fields, [f"{area:.0%}" for area in areas], labels, ("share of the image hidden", "labels"),
            f"{own[0].task}{scored_on(own[0].split)}: AUROC − no pre-training; a dot: 0 is outside 95 %",
        )  # fmt: skip
        save_picture(str(out / f"map-{own[0].task}.png"), picture)


def _pictures(grid: Grid, figures: Mapping[str, Any], out: Path, side: int = 128) -> None:
    # Of the first task and seed that has masks, the same held-out images for every arm: the gallery's masks, and of one
    # image a line an arm. The first cells of a grid are those of the share that all arms hide.
    usual = next(iter(grid.cells.values())).config["pretraining"]
    done = [c for c in grid.cells.values() if c.name in figures and c.config["pretraining"] == usual]
    done = [c for c in done if (grid.root / c.name / SHOWN).is_file()]
    if not done:
        return
    first = done[0].config
    task, seed = Task(**first["task"]), first["seed"]
    own = {c.config["arm"]: c for c in done if c.config["task"] == first["task"] and c.config["seed"] == seed}
    some = shown_of(divided_for(task, None, seed, first["split"])["test"])
    one, masks, lines = some.subset([len(some) // 2]), {}, []
    for arm in (arm for arm in TITLES if arm in own):
        kept = load_file(grid.root / own[arm].name / SHOWN)
        masks[TITLES[arm]] = kept["masks"]
        mask = kept["masks"][len(some) // 2][None] > 0
        scores = kept["scores"] if arm in BESIDE else None
        (row,) = restored_rows(one, scores, mask, kept["hidden"], kept["restored"], side)
        lines.append([label(row[0], TITLES[arm]), *(label(panel, "") for panel in row[1:])])
    save_picture(
        str(out / ARMS_PICTURE), sheet(lines, ["image", "Q-map", "what was hidden", "hidden image", "what came back"])
    )
    write_gallery(
        out / GALLERY, np.array(some.images), masks, None if some.regions is None else np.array(some.regions),
        names=list(some.names), title=f"{task.name}, seed {seed}: what each arm hides of held-out images",
        note="Arms of cells hide more than those of one patch.",
    )  # fmt: skip
