"""What a benchmark of read-outs or classifiers is run on: images with labels, and how repetitions divide them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskaug.benchmarks.training import dataset_of, env_keywords
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_json

DATA = "data.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclasses.dataclass(frozen=True)
class Task:
    """Images with labels, and how they are divided.

    Attributes:
        name: of small letters, digits and "-"; part of the cells' folders.
        env_id: a registered id.
        env: keywords of the environment that choose the images and the grid (root, task, difficulty, image_size, …).
        folds: into how many parts whole groups are dealt, each the test set once; seed s tests part s % folds of deal
            s // folds. 0: the data set's own division, or 70/15/15 by group; synthetic images are drawn anew by seed.
        val_share: with `folds`, of the images that are not tested, what is kept for validation.
    """

    name: str
    env_id: str
    env: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folds: int = 0
    val_share: float = 0.18

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(f"task {self.name!r} must be named by small letters, digits and '-'")
        if self.folds == 1 or self.folds < 0:
            raise ConfigurationError(f"folds={self.folds} must be 0 or at least 2")
        if not 0 < self.val_share < 1:
            raise ConfigurationError(f"val_share={self.val_share} must be between 0 and 1")


def parts(task: Task, shots: int | None, seed: int) -> dict[str, ImageDataset]:
    """{"train", "val", "test"} of one repetition; with `shots` so many training images of each class."""
    keywords = env_keywords(task.env_id, task.env)
    if not task.folds:
        found = {split: dataset_of({**keywords, "seed": seed}, split) for split in ("train", "val", "test")}
    else:
        # One set of images for all repetitions, crops included.
        data = dataset_of({**keywords, "seed": 0}, "all")
        deal, number = divmod(seed, task.folds)
        part = data.splits(deal, (1 / task.folds,) * task.folds)
        rest = data.subset(part != number, "train")
        held_out = rest.splits(seed + 1, (1 - task.val_share, task.val_share)) == 1
        found = {
            "train": rest.subset(~held_out, "train"),
            "val": rest.subset(held_out, "val"),
            "test": data.subset(part == number, "test"),
        }
    if found["train"].labels is None:
        raise ConfigurationError(f"task {task.name}: {found['train'].name} has no labels, and classifiers need them")
    return found if shots is None else {**found, "train": found["train"].few(shots, seed)}


def write_data(folder: Path, divided: Mapping[str, ImageDataset]) -> None:
    """What a cell has run on, into its data.json: name, source, digests and licence of the images, and how many.

    Args:
        folder: the cell's.
        divided: what `parts` gave.
    """
    first = divided["train"]
    about = {k: getattr(first, k) for k in ("name", "source", "licence", "citation")}
    counts = {name: len(part) for name, part in divided.items()}
    digests = {f"digest_{name}": part.digest for name, part in divided.items()}
    write_json(folder / DATA, {**about, "images": counts, "shape": list(first.shape), **digests})
