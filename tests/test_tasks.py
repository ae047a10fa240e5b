"""Tasks of the benchmarks, and how repetitions divide them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskaug.benchmarks.grid import Cell
from maskaug.benchmarks.tasks import Task, check_classes, check_data, check_source, parts, write_data
from maskaug.envs import busi, mura
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError

SMALL: dict[str, Any] = {"n": 60, "image_size": 40, "grid": 5}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "BUSI"}, "small letters"), ({"name": ""}, "small letters"), ({"folds": 1}, "folds=1"),
        ({"folds": -2}, "folds=-2"), ({"val_share": 0.0}, "val_share"), ({"val_share": 1.0}, "val_share"),
    ],
)  # fmt: skip
def test_tasks_that_cannot_be_are_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        Task(**{"name": "x", "env_id": "MaskAug-Synthetic-v0", **change})


def test_synthetic_images_are_drawn_anew_by_seed() -> None:
    task = Task("x", "MaskAug-Synthetic-v0", SMALL)
    one, again, other = parts(task, None, 0), parts(task, None, 0), parts(task, None, 1)
    for name in ("train", "val", "test"):
        assert one[name].digest == again[name].digest != other[name].digest
    few = parts(task, 3, 0)
    assert len(few["train"]) == 6
    assert few["test"].digest == one["test"].digest


def test_folds_test_every_image_once_and_then_are_dealt_anew(tmp_path: Path) -> None:
    root = busi.write_example(tmp_path, n_per_class=12)
    env = {"root": str(root), "image_size": 40, "grid": 5}
    task = Task("x", "MaskAug-BUSI-v0", env, folds=2)
    first, second, third = (parts(task, None, seed) for seed in range(3))
    whole = sorted(name for part in first.values() for name in part.names)
    assert sorted((*first["test"].names, *second["test"].names)) == whole
    assert set(third["test"].names) not in (set(first["test"].names), set(second["test"].names))
    for divided in (first, second, third):
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            assert not np.intersect1d(divided[one].groups, divided[other].groups).size
    larger = parts(Task("x", "MaskAug-BUSI-v0", env, folds=2, val_share=0.5), None, 0)
    assert len(larger["val"]) > len(first["val"])
    assert larger["test"].digest == first["test"].digest


def test_what_a_cell_has_run_on_is_written_down(tmp_path: Path) -> None:
    divided = parts(Task("x", "MaskAug-Synthetic-v0", SMALL), None, 0)
    write_data(tmp_path, divided)
    found = json.loads((tmp_path / "data.json").read_text())
    assert found["images"] == {"train": 42, "val": 9, "test": 9}
    assert found["digest_val"] == divided["val"].digest
    assert (found["source"], found["shape"]) == ("synthetic", [1, 40, 40])


@pytest.mark.parametrize(
    ("folds", "share", "words"),
    [
        (30, 0.18, r"fold \d+ of 30 has no test images: .* and there are \d+ \(of 6 images\) to deal; bring more"),
        (2, 0.01, "fold 1 of 2 has no validation images: .*1% of what is not tested being kept for validation; bring"),
        (2, 0.99, "fold 1 of 2 has no training images"),
    ],
)  # fmt: skip
def test_folds_of_too_few_images_are_named(tmp_path: Path, folds: int, share: float, words: str) -> None:
    env = {"root": str(busi.write_example(tmp_path, n_per_class=3)), "image_size": 40, "grid": 5}
    with pytest.raises(DatasetError, match=f"task tiny, seed 0: {words}"):
        parts(Task("tiny", "MaskAug-BUSI-v0", env, folds, share), None, 0)


def test_a_folder_that_cannot_be_read_is_named_with_its_task(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"task bones, seed 3, train images: .*nowhere"):
        parts(Task("bones", "MaskAug-MURA-v0", {"root": str(tmp_path / "nowhere")}), None, 3)


def test_an_example_in_which_a_seed_leaves_a_part_empty_says_why(tmp_path: Path) -> None:
    root = mura.write_example(tmp_path)
    task = Task("humerus", "MaskAug-MURA-v0", {"root": str(root), "body_part": "humerus", "image_size": 40})
    assert len(parts(task, None, 0)["val"]) > 0
    with pytest.raises(DatasetError, match=r"task humerus, seed 1, val images: .*complete the folder .*whole patients"):
        parts(task, None, 1)


def test_a_class_that_is_not_scored_is_refused() -> None:
    task = Task("x", "MaskAug-Synthetic-v0", SMALL)
    test = parts(task, None, 0)["test"]
    check_classes(task, 0, test)
    assert test.labels is not None
    with pytest.raises(DatasetError, match=f"task x, seed 0: no test image is '{test.class_names[1]}'"):
        check_classes(task, 0, test.subset(test.labels == 0))


# ---- the same images for all that is compared ------------------------------------------------------------------------


def ran(root: Path, name: str, divided: Mapping[str, ImageDataset], shots: int | None = None, seed: int = 0) -> Cell:
    """A finished cell that has run on these images."""
    folder = root / name
    folder.mkdir(parents=True)
    write_data(folder, divided)
    (folder / "results.json").write_text("{}")
    task = dataclasses.asdict(Task("x", "MaskAug-Synthetic-v0", SMALL))
    return Cell(name, "maskaug.benchmarks.encoder_cells:arm_cell", {"task": task, "seed": seed, "shots": shots})


def changed(divided: Mapping[str, ImageDataset], part: str) -> dict[str, ImageDataset]:
    images = np.array(divided[part].images)
    images[0, 0, 0, 0] ^= 1
    return {**divided, part: dataclasses.replace(divided[part], images=images)}


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_cells_of_other_images_are_not_compared(tmp_path: Path, part: str) -> None:
    task = Task("x", "MaskAug-Synthetic-v0", SMALL)
    divided, other = parts(task, 3, 0), parts(task, 3, 1)
    one = ran(tmp_path, "x/k3/seed0/none", divided, 3)
    two = ran(tmp_path, "x/k3/seed1/none", other, 3, seed=1)
    # In a folder of its own nobody stands beside it.
    wrong = ran(tmp_path, "elsewhere/x/seed0/apga", changed(divided, part), 3)
    check_data(tmp_path, [one, two])
    left = dataclasses.replace(one, name="x/k3/seed0/left")
    check_data(tmp_path, [one, two, left])
    with pytest.raises(ConfigurationError, match=f"the {part} images of .*seed0/none were others .*seed0/apga.* --out"):
        check_data(tmp_path, [one, two, wrong])


def test_cells_of_fewer_labels_are_scored_on_the_same_images(tmp_path: Path) -> None:
    task = Task("x", "MaskAug-Synthetic-v0", SMALL)
    few = ran(tmp_path, "x/k3/seed0/none", parts(task, 3, 0), 3)
    every = ran(tmp_path, "x/all/seed0/none", parts(task, None, 0))
    check_data(tmp_path, [few, every])
    wrong = ran(tmp_path, "x/k5/seed0/none", changed(parts(task, 5, 0), "test"), 5)
    with pytest.raises(ConfigurationError, match="the test images of"):
        check_data(tmp_path, [few, every, wrong])


def test_a_cell_begins_only_beside_cells_of_its_images(tmp_path: Path) -> None:
    divided = parts(Task("x", "MaskAug-Synthetic-v0", SMALL), None, 0)
    ran(tmp_path, "x/seed0/none", divided)
    ran(tmp_path, "x/seed0/random", divided)
    with pytest.raises(ConfigurationError, match=r"the val images of .*seed0/none were others.*seed0/apga"):
        ran(tmp_path, "x/seed0/apga", changed(divided, "val"))
    assert not (tmp_path / "x/seed0/apga/data.json").exists()
    for name in ("none", "random"):
        # What is not done is run again, on the images that there are now.
        (tmp_path / f"x/seed0/{name}/results.json").unlink()
    write_data(tmp_path / "x/seed0/apga", changed(divided, "val"))


def test_what_is_gone_on_with_has_the_same_images(tmp_path: Path) -> None:
    divided = parts(Task("x", "MaskAug-Synthetic-v0", SMALL), None, 0)
    cells = [ran(tmp_path, "x/seed0/none", divided), ran(tmp_path, "y/seed0/none", changed(divided, "test"))]
    asked: list[Any] = []

    def now(config: Mapping[str, Any]) -> Mapping[str, ImageDataset]:
        asked.append(config["seed"])
        return divided

    check_source(tmp_path, cells[:1], now)
    assert asked == [0]
    with pytest.raises(ConfigurationError, match=r"the test images of .*y/seed0/none were others than those of what"):
        check_source(tmp_path, cells[1:], now)
    # Nothing is drawn for a grid that has not begun.
    (tmp_path / "x/seed0/none/results.json").unlink()
    check_source(tmp_path, cells[:1], now)
    assert len(asked) == 2


def test_a_folder_is_looked_at_before_a_grid_begins(tmp_path: Path) -> None:
    task = dataclasses.asdict(Task("x", "MaskAug-BUSI-v0", {"root": str(tmp_path)}))
    cell = Cell("x/k3/seed2/none", "maskaug.benchmarks.x:y", {"task": task, "seed": 2, "shots": 3})
    asked: list[Any] = []

    def now(config: Mapping[str, Any]) -> Mapping[str, ImageDataset]:
        asked.append((config["seed"], config["shots"]))
        raise DatasetError("nothing there")

    with pytest.raises(DatasetError, match="nothing there"):
        check_source(tmp_path / "runs", [cell], now)
    assert asked == [(2, None)]
