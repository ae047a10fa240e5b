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
from maskaug.benchmarks.grid import Cell
from maskaug.benchmarks.grid_cell import CONFIG
from maskaug.benchmarks.statistics import (
    Interval,
    bootstrap_difference,
    probability_of_improvement,
    stratified_bootstrap,
    verdict,
)
from maskaug.benchmarks.tables import Table
from maskaug.benchmarks.tasks import DATA

METRIC = "auroc"
#: chosen before anything was looked at: of the two it is nearer to its confidence with few runs.
METHOD: Method = "two-way"
DRAWS = 1000
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
    """

    task: str
    shots: int | None
    seed: int
    arm: str
    hidden: float | None
    joint: bool
    figures: Mapping[str, float]
    folder: Path

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
        hidden: share that second views hide.
        joint: the joint setting.
        runs: arm → seed → result; arms without a second view stand in every block of their task and budget.
        shared: whether all seeds test images of one data set.
        source: of the images: "user" or "synthetic".
        stand_in: whether made-up images stand in for real ones.
    """

    task: str
    shots: int | None
    hidden: float
    joint: bool
    runs: Mapping[str, Mapping[int, Result]]
    shared: bool
    source: str
    stand_in: bool
    _known: dict[tuple[str, str], Interval | None] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """For people."""
        budget = "all labels" if self.shots is None else f"{self.shots} labels a class"
        return f"{self.task}, {budget}, {self.hidden:.0%} hidden{', joint' if self.joint else ''}"

    def values(self, arm: str, figure: str = METRIC) -> npt.NDArray[np.float64]:
        """(R,) a figure of all seeds that have it."""
        return np.array([r.figures[figure] for r in self.runs[arm].values() if figure in r.figures])

    def difference(self, arm: str, other: str) -> Interval | None:
        """AUROC of `arm` − `other`, paired by seed and image; None with fewer than two seeds in common."""
        if (arm, other) not in self._known:
            self._known[arm, other] = self._difference(arm, other)
        return self._known[arm, other]

    def _difference(self, arm: str, other: str) -> Interval | None:
        seeds = [seed for seed in self.runs.get(arm, {}) if seed in self.runs.get(other, {})]
        if len(seeds) < 2 or arm == other:
            return None
        pairs = []
        for seed in seeds:
            one, two = (self.runs[name][seed].predictions for name in (arm, other))
            pairs.append((one["labels"], one["groups"], one["probabilities"], two["probabilities"]))
        return clustered_difference(pairs, METRIC, shared=self.shared, method=METHOD, draws=DRAWS)


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
                figures[cell.name], Path(root) / cell.name,
            )
        )  # fmt: skip
    return found


def blocks(found: Sequence[Result]) -> Iterator[Block]:
    """Every task, budget, hidden share and setting that there are results of, in the order of `found`."""
    keys = dict.fromkeys((r.task, r.shots, r.hidden, r.joint) for r in found if r.hidden is not None)
    order = {name: place for place, arm in enumerate(TITLES) for name in (arm, arm + SWAPPED)}
    for task, shots, hidden, joint in keys:
        assert hidden is not None
        runs: dict[str, dict[int, Result]] = {}
        for r in found:
            # In the joint setting "none" has a hidden share too, which says nothing.
            plain = r.arm in PLAIN if joint or not r.joint else False
            if (r.task, r.shots, r.joint) == (task, shots, joint) and (r.hidden == hidden or plain):
                runs.setdefault(r.arm, {})[r.seed] = r
        first = next(iter(next(iter(runs.values())).values()))
        data = json.loads((first.folder / DATA).read_text(encoding="utf-8"))
        asked = json.loads((first.folder / CONFIG).read_text(encoding="utf-8"))["asked"]["task"]
        drawn = data["source"] == "synthetic"
        arms = dict(sorted(runs.items(), key=lambda item: (order[item[0]], item[0])))
        yield Block(
            task, shots, hidden, joint, arms, not (drawn and asked["folds"] == 0), data["source"],
            drawn and asked["env_id"] != "MaskAug-Synthetic-v0",
        )  # fmt: skip


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
            seeds = [s for s in runs if s in block.runs["random"]]
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
        f"Images: {block.source}. AUROC on held-out images; intervals of paired differences are clustered {clusters}."
    )
    empty = [i for i in range(len(columns)) if all(row[i] in ("", None) for row in rows)]
    return Table(
        block.title, [c for i, c in enumerate(columns) if i not in empty],
        [[v for i, v in enumerate(row) if i not in empty] for row in rows], note, stand_in=block.stand_in,
    )  # fmt: skip


def over_tasks(found: Sequence[Block]) -> Table | None:
    """All blocks as the tasks of one table: interquartile means, and each arm beside none and random; None for one."""
    arms = [arm for arm in found[0].runs if all(arm in block.runs for block in found)] if found else []
    if len(found) < 2 or not {"none", "random"} <= set(arms):
        return None
    scores = {arm: [block.values(arm) for block in found] for arm in arms}
    if min(len(v) for columns in scores.values() for v in columns) < 2:
        return None
    rows = []
    for arm in arms:
        row: list[Any] = [title_of(arm), stratified_bootstrap(scores[arm]).text(signed=False)]
        for other in ("none", "random"):
            equal = all(len(a) == len(b) for a, b in zip(scores[arm], scores[other], strict=True))
            if arm == other or not equal:
                row += ["", "", ""]
                continue
            gain = bootstrap_difference(scores[arm], scores[other])
            chance = probability_of_improvement(scores[arm], scores[other])
            row += [gain.text(), chance.text(2, signed=False), verdict(gain)]
        rows.append(row)
    columns = ["second view", "IQM (95 %)"]
    for other in ("no masks", "random"):
        columns += [f"− {other}", f"P(better than {other})", f"against {other}"]
    tasks = "; ".join(block.title for block in found)
    note = f"AUROC over {len(found)} tasks ({tasks}): interquartile mean, seeds resampled within each task."
    return Table("over all tasks", columns, rows, note)


def masks_table(
    cells: Iterable[Cell], figures: Mapping[str, Mapping[str, float]], task: str, shots: int | None
) -> Table | None:
    """What the masks themselves find, at 25 % of the image; None where no masker is done."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for cell in cells:
        config = cell.config
        here = cell.work.endswith(":masks") and (config["task"]["name"], config["shots"]) == (task, shots)
        if here and cell.name in figures:
            found.setdefault(config["arm"], []).append(figures[cell.name])
    if not found:
        return None
    columns, rows = ["mask", "seeds"], []
    shown = {
        "retention": "retention.agent", "swapped": "retention.swapped", "hit rate": "hit.agent", "IoU": "iou.agent",
        "pointing game": "pointing.agent",
    }  # fmt: skip
    curves = [f"{what}.{fill}" for what in ("deletion", "insertion") for fill in ("zero", "mean", "blur")]
    columns += [*shown, *(f"{curve} − random" for curve in curves), "CPU-s"]
    order = {arm: place for place, arm in enumerate(TITLES)}
    for arm, seeds in sorted(found.items(), key=lambda item: order[item[0]]):
        row: list[Any] = [TITLES[arm], len(seeds)]
        for name in shown.values():
            values = [s[name] for s in seeds if name in s]
            row.append(float(np.mean(values)) if values else None)
        for curve in curves:
            values = [s[f"{curve}.own"] - s[f"{curve}.random"] for s in seeds]
            row.append(_by_seed(values))
        row.append(float(np.mean([s["cpu_s"] for s in seeds])))
        rows.append(row)
    first = next(iter(found.values()))
    for name in ("random", "centre", "mean_region", "ceiling"):
        if f"retention.{name}" not in first[0]:
            continue
        kept = [
            float(np.mean([s[f"{what}.{name}"] for s in first])) for what in ("retention", "hit", "iou", "pointing")
        ]
        rows.append(
            [f"control: {name.replace('_', ' ')}", len(first), kept[0], None, *kept[1:], *[""] * len(curves), None]
        )
    budget = "all labels" if shots is None else f"{shots} labels a class"
    note = (
        "Held-out images. Deletion (lower is better) and insertion (higher) on a classifier that was not the judge, "
        "minus those of random rankings, 95 % interval over seeds."
    )
    return Table(f"{task}, {budget}: the masks themselves, 25 % of the image", columns, rows, note)


def _by_seed(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:+.3f}" if values else ""
    return stratified_bootstrap(np.array(values)[:, None], statistic=lambda x: float(np.mean(x))).text()
