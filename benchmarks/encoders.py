"""Does Intelligent Masking help? The settings of `maskaug bench intelligent-masking`: tasks × seeds × arms.

One seed = one draw (or fold by group) of the data and one first set of weights. Every arm pre-trains the same
reconstructor on the training split, without labels, for the same number of updates of the same images in the same
order; its encoder is frozen and read out with few labels, which are the same for every arm.

Arms differ in what is hidden. Equal hidden area: "ours" beside "random", "centre", "variance" (the cells of the highest
local variance, which needs no learning) and "swapped" (in every image what the agent chose for another one). One patch,
the paper's own game: "published" beside "random_patch", "centre_patch" and "swapped_patch". "mae" hides 75 %, as masked
autoencoders do; "autoencoder" hides nothing and reconstructs what it sees; "none" is not pre-trained. Where a table has
further `areas`, the arms of `MAP` are pre-trained with those shares hidden as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from maskaug.benchmarks.grid import Cell
from maskaug.benchmarks.readouts import DownstreamSettings
from maskaug.benchmarks.tasks import Task
from maskaug.envs.errors import ConfigurationError

#: arm → title.
TITLES = {
    "none": "no pre-training",
    "autoencoder": "nothing hidden",
    "random": "random cells",
    "centre": "centre",
    "mae": "random cells, 75 %",
    "variance": "local variance",
    "swapped": "Intelligent Masking's, swapped",
    "ours": "Intelligent Masking",
    "random_patch": "random patch",
    "centre_patch": "centre patch",
    "swapped_patch": "as published, swapped",
    "published": "as published",
}
ARMS = tuple(TITLES)
#: random masks of equal area, of those that there are any of.
CONTROL = {
    "centre": "random", "variance": "random", "swapped": "random", "ours": "random", "centre_patch": "random_patch",
    "swapped_patch": "random_patch", "published": "random_patch",
}  # fmt: skip
#: learned arm → all that stands beside it.
BESIDE = {
    "ours": ("none", "autoencoder", "random", "centre", "mae", "variance", "swapped"),
    "published": ("none", "autoencoder", "random_patch", "centre_patch", "swapped_patch"),
}
#: arm → whose masks it plays on other images.
SWAPS = {"swapped": "ours", "swapped_patch": "published"}
#: arms that hide one patch, as in the paper.
PATCHES = ("random_patch", "centre_patch", "swapped_patch", "published")
#: arms that hide the share that they are told.
AREA = ("random", "centre", "variance", "swapped", "ours")
#: the arms of a map of areas: the learned one, chance, one fixed mask.
MAP = ("random", "centre", "ours")


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """How encoders are pre-trained: the same for all arms.

    Attributes:
        updates: of the reconstructor.
        batch: images each, at least 2, since masks are swapped between them.
        area: share hidden by the arms that hide cells, but "mae".
        fill: what hidden pixels become in them; 0 in those of one patch, as in the paper.
        judge_lr: learning rate of the reconstructor in them; the paper's in those of one patch.
        reconstructor: "small", or "context_encoder", the paper's.
        network: of "published": "plain" for small images, or "paper", which has 32 pixels a cell.
        device: where everything runs.
    """

    updates: int = 800
    batch: int = 32
    area: float = 0.5
    fill: str = "mean"
    judge_lr: float = 2e-3
    reconstructor: str = "small"
    network: str = "plain"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.updates < 1 or self.batch < 2:
            raise ConfigurationError(f"updates={self.updates} must be at least 1, and batch={self.batch} at least 2")
        if not 0 < self.area < 1:
            raise ConfigurationError(f"area={self.area} must be a share between 0 and 1")
        if self.network not in ("plain", "paper"):
            raise ConfigurationError(f"network={self.network!r} is unknown; use 'plain' or 'paper'")


@dataclasses.dataclass(frozen=True)
class Encoding:
    """One table.

    Attributes:
        tasks: images.
        seeds: which.
        arms: of `ARMS`; those whose masks an arm swaps are run as well.
        pretraining: how.
        reading: how encoders are read out; each cell's seed takes the place of its own.
        split: "test", or "val" while choices are still made: one half of it, by group, is scored, the other chooses.
        areas: shares besides `Pretraining.area` that those of `arms` that are of `MAP` hide in runs of their own; where
            none of them is, nothing is run. These are read out by logistic regression alone where it is among the
            read-outs: the head takes as long as the pre-training.
    """

    tasks: Sequence[Task]
    seeds: Sequence[int]
    arms: Sequence[str] = ARMS
    pretraining: Pretraining = dataclasses.field(default_factory=Pretraining)
    reading: DownstreamSettings = dataclasses.field(default_factory=DownstreamSettings)
    split: str = "test"
    areas: Sequence[float] = ()

    def __post_init__(self) -> None:
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ConfigurationError(f"unknown arm {', '.join(unknown)}; use some of {', '.join(ARMS)}")
        named = {"tasks": [task.name for task in self.tasks], "seeds": self.seeds, "arms": self.arms}
        for what, values in named.items():
            if not values or len(set(values)) < len(values):
                raise ConfigurationError(f"{what} must name at least one, and none of them twice")
        if min(self.seeds) < 0:
            raise ConfigurationError("seeds must be at least 0")
        if self.split not in ("test", "val"):
            raise ConfigurationError(f"split={self.split!r} is no part to score on; use test, or val while choosing")
        shares = [self.pretraining.area, *self.areas]
        if len(set(shares)) < len(shares) or not all(0 < share < 1 for share in shares):
            raise ConfigurationError(
                f"areas={tuple(self.areas)} must be different shares between 0 and 1, and none of them the "
                f"{self.pretraining.area:g} of all arms' runs"
            )

    def cells(self) -> list[Cell]:
        """One for every seed, task and arm, "<task>/seed<s>/<arm>", with "-<area>" behind it where that is another one.

        Seed by seed, so that what is cut off is whole, and all areas after what they stand beside.
        """
        reading = {k: v for k, v in dataclasses.asdict(self.reading).items() if k != "seed"}
        brief = {**reading, "readouts": ("logistic",)} if "logistic" in self.reading.readouts else reading
        arms = [arm for arm in ARMS if arm in self.arms or any(SWAPS.get(other) == arm for other in self.arms)]
        # Learned masks come before the arm that swaps them.
        arms.sort(key=SWAPS.__contains__)
        kinds = [(arm, arm, self.pretraining, reading) for arm in arms]
        for area in self.areas:
            other = dataclasses.replace(self.pretraining, area=area)
            kinds += [(arm, f"{arm}-{area:g}", other, brief) for arm in MAP if arm in self.arms]
        result = []
        for seed in self.seeds:
            for task in self.tasks:
                folder = f"{task.name}/seed{seed}"
                for arm, name, pretraining, readouts in kinds:
                    config: Mapping[str, Any] = {
                        "task": dataclasses.asdict(task), "seed": seed, "arm": arm, "split": self.split,
                        "pretraining": dataclasses.asdict(pretraining), "reading": readouts,
                    }  # fmt: skip
                    needs = (f"{folder}/{SWAPS[arm]}",) if arm in SWAPS else ()
                    result.append(Cell(f"{folder}/{name}", "maskaug.benchmarks.encoder_cells:arm_cell", config, needs))
        return result
