"""What the cells of `maskaug.benchmarks.augmentation` came to: rows with intervals, no "better" without one."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from maskaug.benchmarks.augmentation import PLAIN, SWAPPED, TITLES
from maskaug.benchmarks.augmentation_cells import PREDICTIONS
from maskaug.benchmarks.clustered_bootstrap import Method, clustered_difference
from maskaug.benchmarks.clustered_means import clustered_task_difference
from maskaug.benchmarks.grid import Cell
from maskaug.benchmarks.statistics import (
    Interval,
    probability_of_improvement,
    stratified_bootstrap,
    verdict,
)
from maskaug.benchmarks.tables import Table
from maskaug.benchmarks.tasks import DATA, check_pair
from maskaug.envs.errors import ConfigurationError

METRIC = "auroc"
#: chosen before anything was looked at: of the two it is nearer to its confidence with few runs.
METHOD: Method = "two-way"
DRAWS = 1000
#: said below every table of comparisons.
ALONE = "Each interval stands alone: of twenty comparisons of equals one would be called better or worse."
#: figures of a classifier that tables show besides.
OTHERS = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "averaged.auroc", "study.kappa")


@dataclasses.dataclass(frozen=True)
class Result:
    """One classifier that is done.

    Attributes:
        task: its name.
        shots: labelled images of each class; None: all.
        seed: its repetition.
        arm: with `SWAPPED` at the end where masks are of other images.
        hidden: share of the image that second views hide; None where there are none.
        joint: whether judge and masker learnt along.
        figures: of results.json.
        folder: its cell's.
        about: the task's settings, as its config has them.
    """

    task: str
    shots: int | None
    seed: int
    arm: str
    hidden: float | None
    joint: bool
    figures: Mapping[str, float]
    folder: Path
    about: Mapping[str, Any]

    @functools.cached_property
    def predictions(self) -> dict[str, npt.NDArray[Any]]:
        """What predictions.safetensors holds."""
        return load_file(self.folder / PREDICTIONS)


@dataclasses.dataclass(frozen=True)
class Block:
    """Arms that may be compared: one task, budget, hidden share and setting.

    Attributes:
        task: its name.
        shots: labelled images of each class; None: all.
        hidden: share that second views hide; None where no arm that is done has one.
        joint: the joint setting.
        runs: arm → seed → result; arms without a second view stand in every block of their task and budget.
        shared: whether all seeds test images of one data set.
        source: of the images: "user" or "synthetic".
        stand_in: whether made-up images stand in for real ones.
        about: the task's settings.
        refused: why there are differences without an interval; filled as they are asked for.
    """

    task: str
    shots: int | None
    hidden: float | None
    joint: bool
    runs: Mapping[str, Mapping[int, Result]]
    shared: bool
    source: str
    stand_in: bool
    about: Mapping[str, Any]
    refused: set[str] = dataclasses.field(default_factory=set, repr=False)
    _known: dict[tuple[str, str, str], Interval | None] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """For people."""
        hidden = "" if self.hidden is None else f", {self.hidden:.0%} hidden"
        return f"{self.task}, {budget_of(self.shots)}{hidden}{', joint' if self.joint else ''}"

    def values(self, arm: str, figure: str = METRIC) -> npt.NDArray[np.float64]:
        """(R,) a figure of all seeds that have it."""
        return np.array([r.figures[figure] for r in self.runs[arm].values() if figure in r.figures])

    def common(self, arm: str, other: str) -> list[int]:
        """The seeds that both arms have."""
        return [seed for seed in self.runs.get(arm, {}) if seed in self.runs.get(other, {})]

    def pair(self, arm: str, other: str, seed: int) -> tuple[npt.NDArray[Any], ...]:
        """What `clustered_difference` wants to know of one seed."""
        one, two = (self.runs[name][seed].predictions for name in (arm, other))
        check_pair(one, two, f"{self.title}, seed {seed}, {arm} and {other}")
        return one["labels"], one["groups"], one["probabilities"], two["probabilities"]

    def difference(self, arm: str, other: str, metric: str = METRIC) -> Interval | None:
        """`metric` of `arm` − `other`, paired by seed and image.

        None with fewer than two seeds in common, and where the images are too few for an interval; see `refused`.
        """
        if (arm, other, metric) not in self._known:
            self._known[arm, other, metric] = self._difference(arm, other, metric)
        return self._known[arm, other, metric]

    def _difference(self, arm: str, other: str, metric: str) -> Interval | None:
        seeds = self.common(arm, other)
        if len(seeds) < 2 or arm == other:
            return None
        pairs: list[Any] = [self.pair(arm, other, seed) for seed in seeds]
        try:
            return clustered_difference(pairs, metric, shared=self.shared, method=METHOD, draws=DRAWS)
        except ConfigurationError as error:
            self.refused.add(str(error))
            return None


def results(root: Path, cells: Iterable[Cell], figures: Mapping[str, Mapping[str, float]]) -> list[Result]:
    """The classifiers among `cells` that are done.

    Args:
        root: the grid's folder.
        cells: of the grid.
        figures: what `Grid.results` gave.
    """
    found = []
    for cell in cells:
        config, kind = cell.config, cell.work.rpartition(":")[2]
        if kind not in ("classifier", "joint") or cell.name not in figures:
            continue
        arm = config["arm"] + (SWAPPED if config.get("swapped") else "")
        found.append(
            Result(
                config["task"]["name"], config["shots"], config["seed"], arm, config.get("hidden"), kind == "joint",
                figures[cell.name], Path(root) / cell.name, config["task"],
            )
        )  # fmt: skip
    return found


def blocks(found: Sequence[Result]) -> Iterator[Block]:
    """Every task, budget, hidden share and setting that there are results of, in the order of `found`."""
    keys: dict[tuple[str, int | None, float | None, bool], None] = dict.fromkeys(
        (r.task, r.shots, r.hidden, r.joint) for r in found if r.hidden is not None
    )
    views = {(task, shots, joint) for task, shots, _, joint in keys}
    keys |= dict.fromkeys((*key, None, r.joint) for r in found if (*(key := (r.task, r.shots)), r.joint) not in views)
    order = {name: place for place, arm in enumerate(TITLES) for name in (arm, arm + SWAPPED)}
    for task, shots, hidden, joint in keys:
        runs: dict[str, dict[int, Result]] = {}
        for r in found:
            # In the joint setting "none" has a hidden share too, which says nothing.
            if (r.task, r.shots, r.joint) == (task, shots, joint) and (r.hidden == hidden or r.arm in PLAIN):
                runs.setdefault(r.arm, {})[r.seed] = r
        first = next(iter(next(iter(runs.values())).values()))
        data = json.loads((first.folder / DATA).read_text(encoding="utf-8"))
        drawn = data["source"] == "synthetic"
        arms = dict(sorted(runs.items(), key=lambda item: (order[item[0]], item[0])))
        yield Block(
            task, shots, hidden, joint, arms, not (drawn and first.about["folds"] == 0), data["source"],
            drawn and first.about["env_id"] != "MaskAug-Synthetic-v0", first.about,
        )  # fmt: skip


def budget_of(shots: int | None) -> str:
    """For people."""
    return "all labels" if shots is None else f"{shots} labels a class"


def title_of(arm: str) -> str:
    """For people."""
    return TITLES[arm.removesuffix(SWAPPED)] + (", swapped" if arm.endswith(SWAPPED) else "")


def table(block: Block) -> Table:
    """One block, a row an arm; numbers stay numbers, intervals are text."""
    columns = [
        "second view", "seeds", "AUROC", "SD", "IQM (95 %)", "− no masks (95 %)", "− random (95 %)",
        "P(better than random)", "against no masks", "against random", *OTHERS,
    ]  # fmt: skip
    rows = []
    for arm, runs in block.runs.items():
        values = block.values(arm)
        known = len(values) > 1
        plain, chance = block.difference(arm, "none"), block.difference(arm, "random")
        improves = None
        if "random" in block.runs and arm != "random":
            seeds = block.common(arm, "random")
            pair = [np.array([block.runs[a][s].figures[METRIC] for s in seeds])[:, None] for a in (arm, "random")]
            improves = probability_of_improvement(pair[0], pair[1], paired=True) if len(seeds) > 1 else None
        rows.append(
            [
                title_of(arm), len(runs), float(values.mean()), float(values.std(ddof=1)) if known else None,
                stratified_bootstrap(values[:, None]).text(signed=False) if known else "",
                *(i.text() if i else "" for i in (plain, chance)),
                improves.text(2, signed=False) if improves else "",
                *(verdict(i) if i else "" for i in (plain, chance)),
                *(float(v.mean()) if len(v := block.values(arm, name)) else None for name in OTHERS),
            ]
        )  # fmt: skip
    clusters = "by group of the one data set" if block.shared else "by seed, each with images of its own, and image"
    note = (
        f"Images: {block.source}. AUROC on held-out images; intervals of paired differences are clustered {clusters}. "
        f"{ALONE}"
    )
    if "random_erasing" in block.runs:
        note += " Random erasing hides the share on average, all others exactly."
    if block.joint and {"apga_published", "ppo"} & set(block.runs):
        note += " APGA as published and PPO choose how much they hide, at a price for leaving the share."
    note += "".join(f" No interval: {reason}." for reason in sorted(block.refused))
    empty = [i for i in range(len(columns)) if all(row[i] in ("", None) for row in rows)]
    return Table(
        block.title, [c for i, c in enumerate(columns) if i not in empty],
        [[v for i, v in enumerate(row) if i not in empty] for row in rows], note, stand_in=block.stand_in,
    )  # fmt: skip


def over_tasks(found: Sequence[Block]) -> Table | None:
    """Blocks of one budget and setting as the tasks of one table; None for a single one.

    Args:
        found: one of each task, all with the same budget, hidden share and setting.
    """
    arms = [arm for arm in found[0].runs if all(arm in block.runs for block in found)] if found else []
    if len(found) < 2 or not {"none", "random"} <= set(arms):
        return None
    rows = []
    for arm in arms:
        scores = [block.values(arm) for block in found]
        row: list[Any] = [title_of(arm)]
        row.append(stratified_bootstrap(scores).text(signed=False) if min(map(len, scores)) > 1 else "")
        for other in ("none", "random"):
            gain = None if arm == other else _over_tasks(found, arm, other)
            row += ["", "", ""] if gain is None else [gain[0].text(), gain[1].text(2, signed=False), verdict(gain[0])]
        rows.append(row)
    columns = ["second view", "IQM (95 %)"]
    for other in ("no masks", "random"):
        columns += [f"− {other} (95 %)", f"P(better than {other})", f"against {other}"]
    tasks = "; ".join(block.title for block in found)
    note = (
        f"AUROC over {len(found)} tasks ({tasks}). Interquartile mean: seeds resampled within each task, images not. "
        "Differences: means over tasks, of the seeds that all tasks have, clustered by seed and by the groups of each "
        f"task. {ALONE}"
    )
    stand_in = any(block.stand_in for block in found)
    title = "over all tasks" + found[0].title.removeprefix(found[0].task)
    return Table(title, columns, rows, note, stand_in=stand_in)


def _over_tasks(found: Sequence[Block], arm: str, other: str) -> tuple[Interval, Interval] | None:
    """(difference, probability of improvement), or None with fewer than two seeds in common."""
    seeds = [seed for seed in found[0].common(arm, other) if all(seed in b.common(arm, other) for b in found)]
    if len(seeds) < 2:
        return None
    runs: list[list[Any]] = [[block.pair(arm, other, seed) for block in found] for seed in seeds]
    try:
        gain = clustered_task_difference(runs, METRIC, shared=found[0].shared, method=METHOD, draws=DRAWS)
    except ConfigurationError:
        # Every block's own table says why.
        return None
    one, two = (
        [np.array([block.runs[a][seed].figures[METRIC] for seed in seeds]) for block in found] for a in (arm, other)
    )
    return gain, probability_of_improvement(one, two, paired=True)
