"""What a benchmark of read-outs or classifiers is run on: images with labels, and how repetitions divide them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.benchmarks.grid_cell import RESULTS, Cell
from maskaug.benchmarks.run import read_json
from maskaug.benchmarks.training import dataset_of, env_keywords
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.files import write_json

DATA = "data.json"
#: what a scored cell says of each image: "labels" and "groups" (N,), and probabilities.
PREDICTIONS = "predictions.safetensors"
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


def fold_share(folds: int) -> float:
    """Tested images ÷ all others where seeds are folds of one data set, whose training sets overlap; else 0.

    >>> fold_share(5), fold_share(0)
    (0.25, 0.0)
    """
    return 1 / (folds - 1) if folds else 0.0


def parts(task: Task, shots: int | None, seed: int) -> dict[str, ImageDataset]:
    """{"train", "val", "test"} of one repetition; with `shots` so many training images of each class.

    Raises:
        ConfigurationError: the images have no labels, or a class has fewer than `shots`.
        DatasetError: the folder cannot be read, or so few groups that a part is empty.
    """
    keywords = env_keywords(task.env_id, task.env)
    if not task.folds:
        found = {}
        for split in ("train", "val", "test"):
            try:
                found[split] = dataset_of({**keywords, "seed": seed}, split)
            except DatasetError as error:
                raise DatasetError(
                    f"task {task.name}, seed {seed}, {split} images: {error} (a seed divides whole patients anew: "
                    "with few of them a part can stay empty)"
                ) from error
    else:
        # One set of images for all repetitions, crops included.
        data = dataset_of({**keywords, "seed": 0}, "all")
        deal, number = divmod(seed, task.folds)
        part = data.splits(deal, (1 / task.folds,) * task.folds)
        train, test = part != number, part == number
        _check_fold(task, seed, data, "training", train)
        _check_fold(task, seed, data, "test", test)
        rest = data.subset(train, "train")
        held_out = rest.splits(seed + 1, (1 - task.val_share, task.val_share)) == 1
        _check_fold(task, seed, rest, "training", ~held_out)
        _check_fold(task, seed, rest, "validation", held_out)
        found = {
            "train": rest.subset(~held_out, "train"),
            "val": rest.subset(held_out, "val"),
            "test": data.subset(test, "test"),
        }
    if found["train"].labels is None:
        raise ConfigurationError(f"task {task.name}: {found['train'].name} has no labels, and classifiers need them")
    return found if shots is None else {**found, "train": found["train"].few(shots, seed)}


def _check_fold(task: Task, seed: int, data: ImageDataset, what: str, rows: npt.NDArray[np.bool_]) -> None:
    if rows.any():
        return
    groups = len(np.unique(data.groups))
    of = "" if what == "test" else f", {task.val_share:.0%} of what is not tested being kept for validation"
    fold = f"fold {seed % task.folds + 1} of {task.folds}"
    raise DatasetError(
        f"task {task.name}, seed {seed}: {fold} has no {what} images: whole groups are dealt, and there are {groups} "
        f"(of {len(data)} images) to deal{of}; bring more images, of more patients: "
        "the whole data set in place of an example or an excerpt"
    )


def divided_for(task: Task, shots: int | None, seed: int, split: str) -> dict[str, ImageDataset]:
    """`parts` of one repetition, "test" being what is scored: with split="val" one half of the validation images.

    The other half chooses every best moment: images that choose are not reported.

    Raises:
        DatasetError: as `parts`, and validation images of too few groups to be halved.
    """
    divided = parts(task, shots, seed)
    if split == "test":
        return divided
    half = divided["val"].splits(seed, (0.5, 0.5))
    if len(np.unique(half)) < 2:
        raise DatasetError(
            f"task {task.name}, seed {seed}: the {len(half)} validation images are too few groups to be halved by "
            "group; bring more images, of more patients, or score the test images"
        )
    return {**divided, "val": divided["val"].subset(half == 0), "test": divided["val"].subset(half == 1)}


def scored_on(split: str) -> str:
    """What titles say besides where it is not the test split that is scored.

    >>> scored_on("test"), scored_on("val")
    ('', ', validation split')
    """
    return "" if split == "test" else ", validation split"


def scored_images(split: str) -> str:
    """What is scored, for people: see `divided_for`."""
    if split == "test":
        return "held-out images"
    return "one half of the validation split, whose other half chose every classifier's best moment"


def check_classes(task: Task, seed: int, scored: ImageDataset) -> None:
    """Whether every class has an image to be scored: AUROC is unknown otherwise.

    Raises:
        DatasetError: one has none.
    """
    labels = () if scored.labels is None else scored.labels
    if missing := [name for i, name in enumerate(scored.class_names) if i not in labels]:
        raise DatasetError(
            f"task {task.name}, seed {seed}: no {scored.split} image is {missing[0]!r}, so that AUROC is unknown; "
            "bring more data, or leave that class out"
        )


def write_data(folder: Path, divided: Mapping[str, ImageDataset]) -> None:
    """What a cell is about to run on, into its data.json: name, source, digests and licence of the images, how many.

    Args:
        folder: the cell's; finished cells beside it, which are of the same repetition, must have had the same images.
        divided: what `parts` gave.

    Raises:
        ConfigurationError: a finished cell beside this one had other images; nothing is written.
    """
    found = _digests(divided)
    for beside in sorted(folder.parent.glob(f"*/{RESULTS}")):
        if beside.parent != folder and (known := _recorded(beside.parent)):
            _compare(f"what is about to run in {folder}", found, str(beside.parent), known)
    first = divided["train"]
    about = {k: getattr(first, k) for k in ("name", "source", "licence", "citation")}
    counts = {name: len(part) for name, part in divided.items()}
    write_json(folder / DATA, {**about, "images": counts, "shape": list(first.shape), **found})


def check_data(root: Path, cells: Iterable[Cell]) -> None:
    """Whether what is compared with each other has run on the same images; to be asked before any analysis.

    Args:
        root: the grid's folder.
        cells: of the grid; their configs hold "task", "seed" and maybe "shots".

    Raises:
        ConfigurationError: two finished cells of one task and seed had other validation or test images, or, of one
            number of labels, other training images.
    """
    seen: dict[str, tuple[str, dict[str, str]]] = {}
    for cell in cells:
        folder = Path(root) / cell.name
        if not (folder / RESULTS).is_file() or not (known := _recorded(folder)):
            continue
        shots = cell.config.get("shots")
        for name, digest in known.items():
            # Cells that learn from fewer labels are scored on the same images.
            which = [cell.config["task"], cell.config["seed"], name, shots if name == "digest_train" else None]
            other, theirs = seen.setdefault(json.dumps(which, sort_keys=True), (str(folder), {name: digest}))
            _compare(str(folder), {name: digest}, other, theirs)


def check_pair(one: Mapping[str, npt.NDArray[Any]], two: Mapping[str, npt.NDArray[Any]], names: str) -> None:
    """Whether two cells that are paired image by image have scored the same images.

    Args:
        one: "labels" and "groups", (N,) each.
        two: the other's.
        names: whose they are, for people.

    Raises:
        ConfigurationError: other labels, other groups, or in another order.
    """
    for name in ("labels", "groups"):
        if not np.array_equal(one[name], two[name]):
            raise ConfigurationError(
                f"{names}: the {name} of the scored images differ, so that they cannot be paired; remove the folders "
                "of both cells and run them again"
            )


def check_source(
    root: Path, cells: Iterable[Cell], divide: Callable[[Mapping[str, Any]], Mapping[str, ImageDataset]]
) -> None:
    """Whether the images can be read, and are still those that finished cells have had; to be asked before a grid runs.

    Of each task that has a finished cell the images of one are looked at, and of the first task of all where its images
    lie in a folder: one that cannot be read would else be the same error in every cell.

    Args:
        root: the grid's folder.
        cells: of the grid; their configs hold "task" and maybe "shots".
        divide: a cell's config → the images that it runs on, by part.

    Raises:
        ConfigurationError: the images are others than those that finished cells have had.
        DatasetError: they cannot be read, or not divided.
    """
    named: dict[str, list[Cell]] = {}
    for cell in cells:
        named.setdefault(cell.config["task"]["name"], []).append(cell)
    for place, own in enumerate(named.values()):
        done = next((cell for cell in own if (Path(root) / cell.name / RESULTS).is_file()), None)
        if done is not None:
            folder = Path(root) / done.name
            if known := _recorded(folder):
                _compare("what would be run now", _digests(divide(done.config)), str(folder), known)
        elif place == 0 and own[0].config["task"]["env"].get("root") is not None:
            # With all labels: too few for one budget are that budget's cells' own error.
            divide({**own[0].config, "shots": None})


def _digests(divided: Mapping[str, ImageDataset]) -> dict[str, str]:
    return {f"digest_{name}": part.digest for name, part in divided.items()}


def _recorded(folder: Path) -> dict[str, str]:
    """The digests in a cell's data.json; {} without one."""
    if not (folder / DATA).is_file():
        return {}
    return {name: value for name, value in read_json(folder / DATA).items() if name.startswith("digest_")}


def _compare(what: str, mine: Mapping[str, str], other: str, theirs: Mapping[str, str]) -> None:
    changed = [name.removeprefix("digest_") for name in mine if name in theirs and mine[name] != theirs[name]]
    if changed:
        raise ConfigurationError(
            f"the {', '.join(changed)} images of {other} were others than those of {what}: the data set, or how "
            "MaskAug reads it, has changed since, and figures of both must not stand in one table; bring the old "
            "images back, choose another --out, or remove the folders of the cells that are to be run again"
        )
