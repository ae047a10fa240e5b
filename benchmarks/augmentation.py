"""Does training with masks help? The settings of `maskaug bench apga`: tasks × label budgets × seeds × arms.

**Decoupled.** A judge learns from the few labelled images and is frozen; a masker is trained against it, on the same
images; a new classifier learns from each image and from a second view of it, in which a share of the image is hidden.
Arms differ in what is hidden, and in nothing else: same first weights, same images in the same order, same flips and
shifts, same number of updates, same looks at the validation split. "none" shows the image alone, "none, twice" twice as
many different images an update, as many passes as the arms with a second view have.

**Joint.** Judge and masker learn along, as in APGA's paper (arXiv 1909.04108); the judge is what is scored.

A masker's cells are ranked, and the second view keeps the best of them (APGA's aiding view). Random masks, Cutout and
random erasing draw what they hide anew each time. Each learnt mask has a twin, "swapped": every image gets the mask of
another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maskaug.benchmarks.grid import Cell
from maskaug.benchmarks.tasks import Task
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import JUDGES

#: arm → title. "none" shows no second view.
TITLES = {
    "none": "no masks",
    "none_twice": "no masks, twice the images",
    "random": "random cells",
    "cutout": "Cutout",
    "random_erasing": "random erasing",
    "centre": "centre",
    "mean_region": "mean training region (privileged)",
    "brightness": "brightness",
    "grad_cam": "Grad-CAM",
    "input_gradient": "|input × gradient|",
    "end_to_end": "end-to-end",
    "apga_published": "APGA, published loss",
    "apga": "APGA",
    "ppo": "PPO",
    "distilled": "distilled",
    "oracle": "the true region (oracle)",
}
PLAIN = ("none", "none_twice")
#: what is hidden is drawn anew for every view.
DRAWN = ("random", "cutout", "random_erasing")
#: maskers that look at the image, and so have a twin whose masks are swapped.
LOOKING = ("brightness", "grad_cam", "input_gradient", "end_to_end", "apga_published", "apga", "ppo", "distilled")
#: maskers that ask the judge.
ASKING = LOOKING[1:]
#: arms of the joint setting.
JOINT = ("none", "random", "cutout", "centre", "apga_published", "apga", "ppo")
SWAPPED = "_swapped"
_WORKS = "maskaug.benchmarks.augmentation_cells"


@dataclasses.dataclass(frozen=True)
class Training:
    """How judges, maskers and classifiers are trained: the same for all arms.

    Attributes:
        judge: "small" or "densenet169": the network of judges and classifiers.
        updates: of every classifier.
        batch: images an update.
        lr: peak learning rate of both, see `maskaug.envs.pretrain.FitSettings`; the joint setting has `joint_lr`.
        timesteps: masks that a masker which plays has judged.
        num_envs: images a batch, of maskers.
        fill: what hidden pixels become in the second view: "zero", "mean" or "blur".
        joint_updates: of the judge in the joint setting.
        judge_updates: of the judge that maskers ask, of the distilled masker's own ones, and of the referee; None: as
            `updates`. No masker can know more than its judge.
        joint_lr: learning rate of the judge in the joint setting.
        published: whether the arm "apga_published" also has the paper's network, learning rate and views, for images
            whose sides are multiples of 32, and not its loss alone; its masks are whole cells all the same.
        device: where everything runs; "auto" is decided where a cell runs.
    """

    judge: str = "small"
    updates: int = 400
    batch: int = 32
    lr: float = 2e-3
    timesteps: int = 9600
    num_envs: int = 32
    fill: str = "zero"
    joint_updates: int = 400
    judge_updates: int | None = None
    joint_lr: float = 1e-3
    published: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.judge not in JUDGES:
            raise ConfigurationError(f"judge={self.judge!r} is no classifier; use one of {', '.join(JUDGES)}")
        for name in ("lr", "joint_lr"):
            if not 0 < (rate := getattr(self, name)) < math.inf:
                raise ConfigurationError(f"{name}={rate} must be a finite number above 0")
        for name in ("updates", "batch", "timesteps", "num_envs", "joint_updates", "judge_updates"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigurationError(f"{name}={value} must be at least 1")
        if self.fill not in ("zero", "mean", "blur"):
            raise ConfigurationError(f"fill={self.fill!r} is no filling of second views; use zero, mean or blur")

    @property
    def updates_of_judge(self) -> int:
        """How long judge and referee learn."""
        return self.updates if self.judge_updates is None else self.judge_updates


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One block of a table: every combination of what it lists.

    Attributes:
        tasks: images.
        shots: labelled images of each class; None: all of the training split.
        seeds: which.
        arms: of `TITLES`; in the joint setting of `JOINT`.
        hidden: shares of the image that second views hide.
        swapped: whether masks that depend on the image also train a classifier with another image's; None: yes. The
            joint setting has no such twins, and takes None or False.
        joint: the joint setting, in which `hidden` says what aiding views hide.
    """

    tasks: Sequence[Task]
    shots: Sequence[int | None]
    seeds: Sequence[int]
    arms: Sequence[str]
    hidden: Sequence[float]
    swapped: bool | None = None
    joint: bool = False

    def __post_init__(self) -> None:
        known = JOINT if self.joint else tuple(TITLES)
        if unknown := [arm for arm in self.arms if arm not in known]:
            raise ConfigurationError(f"unknown arm {', '.join(unknown)}; use some of {', '.join(known)}")
        for name in ("tasks", "shots", "seeds", "arms", "hidden"):
            values = getattr(self, name)
            if not values or len({str(v) for v in values}) < len(values):
                raise ConfigurationError(f"{name} must name at least one, and none of them twice")
        if not all(0 < share < 1 for share in self.hidden):
            raise ConfigurationError(f"hidden={list(self.hidden)} must be shares between 0 and 1")
        if len({_percent(share) for share in self.hidden}) < len(self.hidden):
            raise ConfigurationError(f"hidden={list(self.hidden)} must differ by whole per cents, which name the runs")
        if self.joint and self.swapped:
            raise ConfigurationError("swapped=True needs masks that come first, and joint=True has none; leave it out")
        if any(seed < 0 for seed in self.seeds) or any(shots is not None and shots < 1 for shots in self.shots):
            raise ConfigurationError("seeds must be at least 0, and shots at least 1")


def cells(sweeps: Iterable[Sweep], training: Training, split: str = "test") -> list[Cell]:
    """The grid's cells, each once: "<task>/<shots>/seed<s>/<what>".

    "judge", "masks-<arm>" (scores of all images), and the classifiers "none", "<arm>-h25", "<arm>_swapped-h25", in the
    joint setting "joint-<arm>-h25"; and "<task>/all/seed<s>/referee", on which deletion and insertion are measured.

    Args:
        sweeps: blocks; what two of them share is run once.
        training: how.
        split: "test", or "val" while choices are still made.

    Raises:
        ConfigurationError: an unknown split, or two tasks of one name that are not the same.
    """
    if split not in ("test", "val"):
        raise ConfigurationError(f"split={split!r} is no part to score on; use test, or val while choosing")
    found: dict[str, Cell] = {}
    for sweep in sweeps:
        # Seed by seed, so that a grid that is cut off has whole seeds.
        for seed in sweep.seeds:
            for task in sweep.tasks:
                for shots in sweep.shots:
                    base = {
                        "task": dataclasses.asdict(task), "shots": shots, "seed": seed, "split": split,
                        "training": dataclasses.asdict(training),
                    }  # fmt: skip
                    for cell in _of_one(sweep, task, base):
                        if found.setdefault(cell.name, cell) != cell:
                            raise ConfigurationError(f"two tasks are called {task.name!r}; give each a name of its own")
    return list(found.values())


def folder_of(task: str, shots: int | None, seed: int) -> str:
    """Where the cells of one task, budget and seed lie."""
    return f"{task}/{'all' if shots is None else f'k{shots}'}/seed{seed}"


def _percent(share: float) -> int:
    return round(100 * share)


def _of_one(sweep: Sweep, task: Task, base: Mapping[str, Any]) -> Iterable[Cell]:
    folder, seed = folder_of(task.name, base["shots"], base["seed"]), base["seed"]
    if sweep.joint:
        for arm in sweep.arms:
            for share in sweep.hidden[: 1 if arm == "none" else None]:
                name = f"{folder}/joint-{arm}-h{_percent(share)}"
                yield Cell(name, f"{_WORKS}:joint", {**base, "arm": arm, "hidden": share})
        return
    judge, referee = f"{folder}/judge", f"{folder_of(task.name, None, seed)}/referee"
    asked = any(arm in ASKING for arm in sweep.arms)
    if asked:
        yield Cell(judge, f"{_WORKS}:judge", base)
    if any(arm not in (*PLAIN, *DRAWN) for arm in sweep.arms):
        yield Cell(referee, f"{_WORKS}:referee", {**base, "shots": None})
    for arm in sweep.arms:
        if arm in PLAIN:
            yield Cell(f"{folder}/{arm}", f"{_WORKS}:classifier", {**base, "arm": arm})
            continue
        needs: tuple[str, ...] = ()
        if arm not in DRAWN:
            needs = (f"{folder}/masks-{arm}",)
            yield Cell(
                needs[0], f"{_WORKS}:masks", {**base, "arm": arm}, (referee, *([judge] if arm in ASKING else []))
            )
        twins = [arm, f"{arm}{SWAPPED}"] if sweep.swapped is not False and arm in LOOKING else [arm]
        for name in twins:
            for share in sweep.hidden:
                config = {**base, "arm": arm, "swapped": name != arm, "hidden": share}
                yield Cell(f"{folder}/{name}-h{_percent(share)}", f"{_WORKS}:classifier", config, needs)
