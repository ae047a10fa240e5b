"""What the cells of `maskaug.benchmarks.encoders` came to: rows with intervals, no "better" without one."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.benchmarks.clustered_bootstrap import clusters_note
from maskaug.benchmarks.encoders import ARMS, BESIDE, CONTROL, MAP, TITLES
from maskaug.benchmarks.grid import Cell
from maskaug.benchmarks.intervals import paired_interval
from maskaug.benchmarks.paired import ALONE, METRIC, Paired, Scored
from maskaug.benchmarks.statistics import FEWEST, Interval, few_runs_note, stratified_bootstrap, uneven_note, verdict
from maskaug.benchmarks.tables import Table
from maskaug.benchmarks.tasks import DATA, fold_share, scored_images, scored_on
from maskaug.benchmarks.training import env_keywords
from maskaug.envs.defaults import default_grid
from maskaug.envs.masking import cells_for_area

#: figures of a read-out that tables show besides.
OTHERS = ("accuracy", "balanced_accuracy", "macro_f1", "ece")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result(Scored):
    """One arm of one seed that is done.

    Attributes:
        area: share that arms hide, of those that hide as much as they are told.
    """

    area: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block(Paired[Result]):
    """Arms that may be compared: one task and area, and one read-out and number of labels, or the mean over several.

    Attributes:
        area: share that is hidden by arms that hide as much as they are told.
        keys: such as "paper.100" or "logistic.all".
        grid: cells along each side.
    """

    area: float
    keys: tuple[str, ...]
    grid: int

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.task}, {self.name}{scored_on(self.split)}"

    @property
    def name(self) -> str:
        """Without the task's."""
        if len(self.keys) > 1:
            return "mean over read-outs and numbers of labels"
        return f"{self.head.lower()}, {self.labels} labels"

    @property
    def head(self) -> str:
        """What reads out, of one key."""
        return "The paper's head" if self.keys[0].startswith("paper.") else "Logistic regression"

    @property
    def labels(self) -> str:
        """How many, or "all", of one key."""
        return self.keys[0].partition(".")[2]

    def value(self, result: Result, figure: str = METRIC) -> float:
        """See `Paired.value`."""
        return float(np.mean([result.figures.get(f"{key}.{figure}", math.nan) for key in self.keys]))

    def probabilities(self, result: Result) -> npt.NDArray[Any]:
        """See `Paired.probabilities`."""
        # Every read-out and budget has as many draws: the mean over all of them is the mean over these.
        return np.concatenate([result.predictions[key] for key in self.keys])


def results(root: Path, cells: Iterable[Cell], figures: Mapping[str, Mapping[str, float]]) -> list[Result]:
    """What is done.

    Args:
        root: the grid's folder.
        cells: of the grid.
        figures: what `Grid.results` gave.
    """
    return [
        Result(
            task=c.config["task"]["name"], seed=c.config["seed"], arm=c.config["arm"], figures=figures[c.name],
            folder=Path(root) / c.name, area=c.config["pretraining"]["area"],
        )
        for c in cells
        if c.name in figures
    ]  # fmt: skip


def blocks(found: Sequence[Result], cells: Iterable[Cell]) -> Iterator[Block]:
    """Of every task the mean over read-outs and budgets, where there are several, and each of them.

    Tasks without results with the share that all arms hide have none.
    """
    asked: dict[str, Mapping[str, Any]] = {}
    for cell in cells:
        # The first cells of a task are those of the area that all arms hide.
        asked.setdefault(cell.config["task"]["name"], cell.config)
    for task in dict.fromkeys(r.task for r in found if r.area == asked[r.task]["pretraining"]["area"]):
        keys = _keys(asked[task])
        for some in ([tuple(keys)] if len(keys) > 1 else []) + [(key,) for key in keys]:
            yield _block(found, asked[task], asked[task]["pretraining"]["area"], some)


def map_blocks(found: Sequence[Result], cells: Iterable[Cell], task: str) -> list[Block]:
    """Of a task that was run with several areas: every area and number of labels, in rising order of areas.

    "none", which hides nothing, stands in all of them.
    """
    asked: dict[float, Mapping[str, Any]] = {}
    for cell in cells:
        if cell.config["task"]["name"] == task:
            asked.setdefault(cell.config["pretraining"]["area"], cell.config)
    done = {r.area for r in found if r.task == task and r.arm in MAP}
    if len(done) < 2:
        return []
    # What all areas have been read out with.
    keys = [key for key in _keys(next(iter(asked.values()))) if all(key in _keys(config) for config in asked.values())]
    return [_block(found, asked[area], area, (key,)) for area in sorted(done) for key in keys]


def _keys(config: Mapping[str, Any]) -> list[str]:
    reading = config["reading"]
    return [f"{readout}.{budget or 'all'}" for readout in reading["readouts"] for budget in reading["budgets"]]


def _block(found: Sequence[Result], config: Mapping[str, Any], area: float, keys: tuple[str, ...]) -> Block:
    task = config["task"]["name"]
    own = [r for r in found if r.task == task and (r.area == area or r.arm == "none")]
    runs = {arm: {r.seed: r for r in own if r.arm == arm} for arm in ARMS}
    runs = {arm: by_seed for arm, by_seed in runs.items() if by_seed}
    data = json.loads((own[0].folder / DATA).read_text(encoding="utf-8"))
    source, folds = data["source"], config["task"]["folds"]
    play = env_keywords(config["task"]["env_id"], config["task"]["env"])
    return Block(
        task=task, area=area, keys=keys, runs=runs, shared=not (source == "synthetic" and folds == 0),
        test_share=fold_share(folds), source=source,
        split=config["split"], grid=play.get("grid") or default_grid("grid", tuple(data["shape"][1:])),
    )  # fmt: skip


def table(block: Block) -> Table:
    """One block, a row an arm; numbers stay numbers, intervals are text."""
    columns = [
        "pre-trained with", "seeds", "AUROC", "SD", "AUROC (95 %)", "IQM (95 %)", "− no pre-training (95 %)",
        "− random of equal area (95 %)", "P(better than none)", "P(better than random)", "against none",
        "against random", *OTHERS, "CPU-s",
    ]  # fmt: skip
    rows = []
    for arm in block.runs:
        values, control = block.values(arm), CONTROL.get(arm)
        known, alone = len(values) > 1, block.interval(arm)
        gains = [block.difference(arm, "none"), block.difference(arm, control)]
        chances = [block.improves(arm, "none"), block.improves(arm, control)]
        seconds = np.mean([r.figures["cpu_s"] for r in block.runs[arm].values()])
        rows.append(
            [
                TITLES[arm], len(values), float(values.mean()), float(values.std(ddof=1)) if known else None,
                "" if alone is None else alone.text(signed=False),
                stratified_bootstrap(values[:, None]).text(signed=False) if len(values) >= FEWEST else "",
                *(i.text() if i else "" for i in gains),
                *(i.text(2, signed=False) if i else "" for i in chances),
                *(verdict(i) if i else "" for i in gains),
                *(float(block.values(arm, name).mean()) for name in OTHERS), float(seconds),
            ]
        )  # fmt: skip
    counts = [len(runs) for runs in block.runs.values()]
    hidden = cells_for_area(block.area, block.grid)
    said = [
        f"Of {block.grid**2} cells {hidden} are hidden, except by one patch and by {TITLES['mae']}.",
        "Random of equal area: random cells, or for one patch a random patch.",
        few_runs_note(counts),
    ]
    return Table(block.title, columns, rows, _note([block], "AUROC (95 %) and of paired differences", said, counts))


def _note(blocks: Sequence[Block], what: str, said: Sequence[str], counts: Sequence[int]) -> str:
    # What the intervals are of, what else is to be said, and how many seeds the rows have.
    first = blocks[0]
    sentences = [
        f"Images: {first.source}. Macro-AUROC on {scored_images(first.split)}, mean over draws of labels.",
        clusters_note(what, first.shared, first.test_share), ALONE, *said, uneven_note(counts),
        *(f"No interval: {reason}." for reason in sorted(set().union(*(block.refused for block in blocks)))),
    ]  # fmt: skip
    return " ".join(sentence for sentence in sentences if sentence)


def controls_table(own: Sequence[Block]) -> Table | None:
    """Each learned arm against all that stands beside it, in all blocks of a task; None where nothing is compared."""
    first, rows = own[0], []
    for arm, others in BESIDE.items():
        for other in others:
            if (gain := first.difference(arm, other)) is not None:
                chance = first.improves(arm, other)
                row: list[Any] = [TITLES[arm], TITLES[other], len(first.common(arm, other)), gain.text()]
                row += [chance.text(2, signed=False) if chance else "", verdict(gain)]
                gains = [block.difference(arm, other) for block in own[1:]]
                rows.append([*row, *(i.text() if i else "" for i in gains)])
    columns = ["learned", "beside", "seeds", f"difference, {first.name}", "P(better)", "verdict"]
    columns += [f"difference, {block.name}" for block in own[1:]]
    title = f"{first.task}{scored_on(first.split)}: learned masks and their controls"
    counts = [row[2] for row in rows]
    return (
        Table(title, columns, rows, _note(own, "paired differences", [few_runs_note(counts)], counts)) if rows else None
    )


def areas_table(own: Sequence[Block]) -> Table | None:
    """The arms of `MAP` with every share hidden and every number of labels; None where there is one share alone.

    Args:
        own: of `map_blocks`.
    """
    rows: list[list[Any]] = []
    for arm in MAP:
        for block in own:
            if arm not in block.runs:
                continue
            values, alone = block.values(arm), block.interval(arm)
            gains = [block.difference(arm, "none"), block.difference(arm, CONTROL.get(arm))]
            rows.append(
                [
                    TITLES[arm], f"{block.area:.0%}", f"{cells_for_area(block.area, block.grid)} of {block.grid**2}",
                    block.labels, len(values), float(values.mean()), "" if alone is None else alone.text(signed=False),
                    *(i.text() if i else "" for i in gains), *(verdict(i) if i else "" for i in gains),
                ]
            )  # fmt: skip
    if not rows:
        return None
    columns = [
        "pre-trained with", "hidden", "cells", "labels", "seeds", "AUROC", "AUROC (95 %)", "− no pre-training (95 %)",
        "− random of equal area (95 %)", "against none", "against random",
    ]  # fmt: skip
    counts = [row[4] for row in rows]
    note = _note(own, "AUROC (95 %) and of paired differences", [], counts)
    return Table(f"{own[0].task}{scored_on(own[0].split)}: areas", columns, rows, f"{own[0].head}. {note}")


def masks_table(own: Block) -> Table | None:
    """What the learned maps know of the scored images, at the size of one patch; None where none is done."""
    rows = []
    for arm in BESIDE:
        seeds = [r.figures for r in own.runs.get(arm, {}).values()]
        for prefix, what in (
            ("correlation", "rank correlation with the true error"),
            ("hit", "best patch: its middle lies in the region"),
            ("retention", "best patch: share of the region"),
        ):
            names = ["agent", "random", "centre", "mean_region", "swapped", "local_variance"]
            values = {name: [s[f"{prefix}.{name}"] for s in seeds if f"{prefix}.{name}" in s] for name in names}
            if not values["agent"]:
                continue
            other = "local_variance" if prefix == "correlation" else "random"
            gains = [a - b for a, b in zip(values["agent"], values[other], strict=True)]
            interval = Interval(*paired_interval(gains)).text() if len(gains) > 1 else ""
            means = [float(np.mean(values[name])) if values[name] else None for name in names]
            rows.append([TITLES[arm], what, len(gains), *means, other.replace("_", " "), interval])
    columns = [
        "map", "measure", "seeds", "own", "random", "centre", "mean training region", "own, swapped", "local variance",
        "own minus", "difference (95 %)",
    ]  # fmt: skip
    scored = scored_images(own.split)
    note = f"{scored[0].upper()}{scored[1:]}; Student's t interval over seeds, as if they were independent."
    return Table(f"{own.task}{scored_on(own.split)}: what the maps know", columns, rows, note) if rows else None
