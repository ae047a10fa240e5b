"""Tasks of the benchmarks, and how repetitions divide them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskaug.benchmarks.tasks import Task, parts, write_data
from maskaug.envs import busi
from maskaug.envs.errors import ConfigurationError

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
