"""What the cells of `maskaug.benchmarks.augmentation` came to: arms that may be compared, and how they differ."""

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

from maskaug.benchmarks.augmentation import PLAIN, SWAPPED, TITLES, Training
from maskaug.benchmarks.augmentation_cells import PREDICTIONS
from maskaug.benchmarks.clustered_bootstrap import Method, Run, clustered_difference, clustered_metric
from maskaug.benchmarks.grid import Cell
from maskaug.benchmarks.statistics import Interval
from maskaug.benchmarks.tasks import DATA, check_pair, scored_on
from maskaug.envs.errors import ConfigurationError

METRIC = "auroc"
#: chosen before anything was looked at: of the two it is nearer to its confidence with few runs.
METHOD: Method = "two-way"
DRAWS = 1000
#: said below every table of comparisons.
ALONE = "Each interval stands alone: of twenty comparisons of equals one would be called better or worse."
#: the row of the judge that maskers asked: a classifier too, of the same images.
ITSELF = "judge"


@dataclasses.dataclass(frozen=True)
class Result:
    """One classifier that is done.

    Attributes:
        task: its name.
        shots: labelled images of each class; None: all.
        seed: its repetition.
        arm: with `SWAPPED` at the end where masks are of other images; `ITSELF` of the judge.
        hidden: share of the image that second views hide; None where there are none.
        joint: whether judge and masker learnt along.
        figures: of results.json.
        folder: its cell's.
        about: the task's settings, as its config has them.
        training: how it was trained.
        split: what was scored: "test", or "val" for one half of the validation images.
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
    training: Training
    split: str

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
        source: of the images: "synthetic", or the data set's name.
        stand_in: whether made-up images stand in for real ones.
        about: the task's settings.
        data: what data.json of one of its cells says.
        training: how its arms were trained.
        split: what was scored, see `Result`.
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
    data: Mapping[str, Any]
    training: Training
    split: str
    refused: set[str] = dataclasses.field(default_factory=set, repr=False)
    _known: dict[tuple[str, str, str], Interval | None] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """For people."""
        hidden = "" if self.hidden is None else f", {self.hidden:.0%} hidden"
        joint = ", joint" if self.joint else ""
        return f"{self.task}, {budget_of(self.shots)}{hidden}{joint}{scored_on(self.split)}"

    @property
    def test_share(self) -> float:
        """Tested images ÷ all others where seeds are folds of one data set, whose training sets overlap; else 0."""
        return 1 / (self.about["folds"] - 1) if self.about["folds"] else 0.0

    def values(self, arm: str, figure: str = METRIC) -> npt.NDArray[np.float64]:
        """(R,) a figure of all seeds that have it."""
        return np.array([r.figures[figure] for r in self.runs[arm].values() if figure in r.figures])

    def common(self, arm: str, other: str) -> list[int]:
        """The seeds that both arms have."""
        return [seed for seed in self.runs.get(arm, {}) if seed in self.runs.get(other, {})]

    def pair(self, arm: str, other: str, seed: int) -> tuple[npt.NDArray[Any], ...]:
        """What `clustered_difference` wants to know of one seed.

        Raises:
            ConfigurationError: the arms were tested on different images.
        """
        one, two = (self.runs[name][seed].predictions for name in (arm, other))
        check_pair(one, two, f"{self.title}, seed {seed}, {title_of(arm)!r} and {title_of(other)!r}")
        return one["labels"], one["groups"], one["probabilities"], two["probabilities"]

    def interval(self, arm: str, metric: str = METRIC) -> Interval | None:
        """`metric` of one arm, over its seeds and images; None where `difference` would give none."""
        known = self.runs[arm].values()
        if len(known) < 2:
            return None
        try:
            return clustered_metric(
                [Run(*(r.predictions[name] for name in ("labels", "groups", "probabilities"))) for r in known],
                metric, shared=self.shared, method=METHOD, draws=DRAWS, test_share=self.test_share,
            )  # fmt: skip
        except ConfigurationError as error:
            self.refused.add(str(error))
            return None

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
            return clustered_difference(
                pairs, metric, shared=self.shared, method=METHOD, draws=DRAWS, test_share=self.test_share
            )
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
        if kind not in ("classifier", "joint", "judge") or cell.name not in figures:
            continue
        arm = ITSELF if kind == "judge" else config["arm"] + (SWAPPED if config.get("swapped") else "")
        found.append(
            Result(
                config["task"]["name"], config["shots"], config["seed"], arm, config.get("hidden"), kind == "joint",
                figures[cell.name], Path(root) / cell.name, config["task"], Training(**config["training"]),
                config["split"],
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
    rows = (*PLAIN, ITSELF, *(arm for arm in TITLES if arm not in PLAIN))
    order = {name: place for place, arm in enumerate(rows) for name in (arm, arm + SWAPPED)}
    for task, shots, hidden, joint in keys:
        runs: dict[str, dict[int, Result]] = {}
        for r in found:
            # In the joint setting "none" has a hidden share too, which says nothing.
            if (r.task, r.shots, r.joint) == (task, shots, joint) and (r.hidden == hidden or r.arm in (*PLAIN, ITSELF)):
                runs.setdefault(r.arm, {})[r.seed] = r
        first = next(iter(next(iter(runs.values())).values()))
        data = json.loads((first.folder / DATA).read_text(encoding="utf-8"))
        drawn = data["source"] == "synthetic"
        arms = dict(sorted(runs.items(), key=lambda item: (order[item[0]], item[0])))
        yield Block(
            task, shots, hidden, joint, arms, not (drawn and first.about["folds"] == 0), data["source"],
            drawn and first.about["env_id"] != "MaskAug-Synthetic-v0", first.about, data,
            first.training, first.split,
        )  # fmt: skip


def budget_of(shots: int | None) -> str:
    """For people."""
    return "all labels" if shots is None else f"{shots} labels a class"


def title_of(arm: str) -> str:
    """For people."""
    if arm == ITSELF:
        return "the judge itself"
    return TITLES[arm.removesuffix(SWAPPED)] + (", swapped" if arm.endswith(SWAPPED) else "")
