"""What the cells of `maskaug.benchmarks.augmentation` came to: arms that may be compared, and how they differ."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from maskaug.benchmarks.augmentation import PLAIN, SWAPPED, TITLES, Training
from maskaug.benchmarks.grid import Cell
from maskaug.benchmarks.paired import METRIC, Paired, Scored
from maskaug.benchmarks.tasks import DATA, fold_share, scored_on

#: the row of the judge that maskers asked: a classifier too, of the same images.
ITSELF = "judge"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result(Scored):
    """One classifier that is done; its arm has `SWAPPED` at the end where masks are of other images, or is `ITSELF`.

    Attributes:
        shots: labelled images of each class; None: all.
        hidden: share of the image that second views hide; None where there are none.
        joint: whether judge and masker learnt along.
        about: the task's settings, as its config has them.
        training: how it was trained.
        split: what was scored, see `Paired`.
    """

    shots: int | None
    hidden: float | None
    joint: bool
    about: Mapping[str, Any]
    training: Training
    split: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block(Paired[Result]):
    """Arms that may be compared: one task, budget, hidden share and setting.

    Arms without a second view stand in every block of their task and budget.

    Attributes:
        shots: labelled images of each class; None: all.
        hidden: share that second views hide; None where no arm that is done has one.
        joint: the joint setting.
        stand_in: whether made-up images stand in for real ones.
        about: the task's settings.
        data: what data.json of one of its cells says.
        training: how its arms were trained.
    """

    shots: int | None
    hidden: float | None
    joint: bool
    stand_in: bool
    about: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Training

    @property
    def title(self) -> str:
        """For people."""
        hidden = "" if self.hidden is None else f", {self.hidden:.0%} hidden"
        joint = ", joint" if self.joint else ""
        return f"{self.task}, {budget_of(self.shots)}{hidden}{joint}{scored_on(self.split)}"

    def value(self, result: Result, figure: str = METRIC) -> float:
        """See `Paired.value`."""
        return float(result.figures.get(figure, math.nan))

    def probabilities(self, result: Result) -> npt.NDArray[Any]:
        """See `Paired.probabilities`."""
        return result.predictions["probabilities"]


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
                task=config["task"]["name"], shots=config["shots"], seed=config["seed"], arm=arm,
                hidden=config.get("hidden"), joint=kind == "joint", figures=figures[cell.name],
                folder=Path(root) / cell.name, about=config["task"], training=Training(**config["training"]),
                split=config["split"],
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
        folds = first.about["folds"]
        yield Block(
            task=task, shots=shots, hidden=hidden, joint=joint, runs=arms, shared=not (drawn and folds == 0),
            test_share=fold_share(folds), source=data["source"],
            stand_in=drawn and first.about["env_id"] != "MaskAug-Synthetic-v0", about=first.about, data=data,
            training=first.training, split=first.split,
        )  # fmt: skip


def budget_of(shots: int | None) -> str:
    """For people."""
    return "all labels" if shots is None else f"{shots} labels a class"


def title_of(arm: str) -> str:
    """For people."""
    if arm == ITSELF:
        return "the judge itself"
    return TITLES[arm.removesuffix(SWAPPED)] + (", swapped" if arm.endswith(SWAPPED) else "")
