"""The cells of `maskaug bench apga` on data sets in the layouts of BUSI and MURA: folds, shots, studies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from augmentation_grid import (
    run,
    sweep,
)
from safetensors.numpy import load_file

from maskaug.benchmarks.tasks import DATA, PREDICTIONS, Task, parts
from maskaug.envs import busi, mura
from maskaug.envs.dataset_registry import load_dataset

# ---- data sets -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busi.write_example(tmp_path_factory.mktemp("busi"), n_per_class=14)


def of_lesions(root: Path, **changes: Any) -> Task:
    env = {"root": str(root), "image_size": 40, "grid": 5, "task": "diagnosis", "classes": 2}
    return Task("lesions", "MaskAug-BUSI-v0", env, **{"folds": 3, "val_share": 0.3, **changes})


def test_folds_test_every_image_once_a_deal_and_keep_groups_together(lesions: Path) -> None:
    task = of_lesions(lesions)
    everything = load_dataset("busi", **{k: v for k, v in task.env.items() if k != "grid"}, split="all").names
    deals = []
    for deal in (0, 1):
        tested: list[str] = []
        for seed in range(3 * deal, 3 * deal + 3):
            found = parts(task, None, seed)
            groups: Mapping[str, set[int]] = {name: set(part.groups.tolist()) for name, part in found.items()}
            assert (
                not groups["train"] & groups["val"] | groups["train"] & groups["test"] | groups["val"] & groups["test"]
            )
            names = [name for part in found.values() for name in part.names]
            assert len(names) == len(set(names)) == len(everything)
            tested += found["test"].names
        assert sorted(tested) == sorted(everything)
        deals.append(tested)
    assert deals[0] != deals[1]


def test_val_share_is_of_what_is_not_tested(lesions: Path) -> None:
    few, many = (parts(of_lesions(lesions, val_share=share), None, 0) for share in (0.2, 0.5))
    assert len(few["val"]) < len(many["val"])
    assert set(few["test"].names) == set(many["test"].names)


def test_shots_draw_from_the_training_part_and_leave_the_others_whole(lesions: Path) -> None:
    whole, few = (parts(of_lesions(lesions), shots, 0) for shots in (None, 4))
    assert len(few["train"]) == 8
    assert set(few["train"].names) < set(whole["train"].names)
    assert (few["val"].digest, few["test"].digest) == (whole["val"].digest, whole["test"].digest)


def test_without_folds_a_seed_splits_by_group(lesions: Path) -> None:
    one, two = (parts(of_lesions(lesions, folds=0), None, seed) for seed in (0, 1))
    assert set(one["test"].names) != set(two["test"].names)
    assert not set(one["test"].groups.tolist()) & set(one["train"].groups.tolist())


def test_a_fold_runs_with_every_kind_of_cell(lesions: Path, tmp_path: Path) -> None:
    done = run(tmp_path, sweep("none", "apga", "mean_region", "oracle", tasks=[of_lesions(lesions)], shots=[4]))
    assert json.loads((done.root / "lesions/k4/seed0/none" / DATA).read_text())["source"] == "busi"
    assert "retention.agent" in done.results()["lesions/k4/seed0/masks-apga"]


def test_studies_have_their_kappa(tmp_path: Path) -> None:
    root = mura.write_example(tmp_path / "mura", n=80, side=(40, 60))
    bones = Task("bones", "MaskAug-MURA-v0", {"root": str(root), "image_size": 40, "grid": 5})
    done = run(tmp_path / "runs", sweep("none", "apga", tasks=[bones], shots=[4], swapped=False))
    found = load_file(done.root / "bones/k4/seed0/apga-h60" / PREDICTIONS)
    figures = done.results()["bones/k4/seed0/apga-h60"]
    assert figures["study.n"] == len(np.unique(found["studies"])) < len(found["studies"])
    assert figures["study.kappa"] <= 1
    assert {"averaged.study.kappa", "study.auroc"} <= figures.keys()
    # The official validation part is what is tested, whatever the seed.
    assert {parts(bones, None, seed)["test"].digest for seed in (0, 1)} == {
        json.loads((done.root / "bones/k4/seed0/none" / DATA).read_text())["digest_test"]
    }
