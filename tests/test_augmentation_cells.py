"""The cells of `maskaug bench apga`: what they leave behind, that they repeat, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from augmentation_grid import (
    HERE,
    QUICK,
    TOYS,
    Fit,
    bits,
    config_of,
    new,
    replace_parts,
    run,
    sweep,
    watch_fits,
    whole_grid,
)
from safetensors.numpy import load_file

from maskaug.benchmarks import augmentation_cells as module
from maskaug.benchmarks import tasks
from maskaug.benchmarks.augmentation import (
    DRAWN,
    JOINT,
    PLAIN,
    TITLES,
)
from maskaug.benchmarks.augmentation_cells import CURVES, JUDGE, SCORES
from maskaug.benchmarks.curves import CURVE_FILLS
from maskaug.benchmarks.grid import Grid
from maskaug.benchmarks.metrics import classification_metrics
from maskaug.benchmarks.tasks import DATA, PREDICTIONS, divided_for, parts
from maskaug.benchmarks.training import dataset_of
from maskaug.envs.errors import ConfigurationError, DatasetError, JudgeError
from maskaug.envs.judges import load_judge
from maskaug.envs.pretrain import predict_logits
from maskaug.envs.statistics import has_statistics, reestimate_statistics


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return whole_grid(tmp_path_factory.getbasetemp())


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    return watch_fits(monkeypatch)


# ---- what is left ----------------------------------------------------------------------------------------------------


def test_every_cell_leaves_its_figures_and_what_they_are_made_of(grid: Grid) -> None:
    held_out = parts(TOYS, 6, 0)["test"]
    assert held_out.labels is not None
    for name, figures in grid.results().items():
        folder, kind = grid.root / name, grid.cells[name].work.rpartition(":")[2]
        data = json.loads((folder / DATA).read_text())
        assert (data["source"], data["digest_test"]) == ("synthetic", held_out.digest)
        assert data["images"] == {"train": len(parts(TOYS, None, 0)["train"]) if "/all/" in name else 12, "val": 9,
                                  "test": 9}  # fmt: skip
        if kind == "masks":
            continue
        found = load_file(folder / PREDICTIONS)
        assert np.array_equal(found["labels"], held_out.labels)
        assert np.array_equal(found["groups"], held_out.groups)
        assert "studies" not in found
        own = classification_metrics(found["probabilities"], held_out.labels)
        assert {k: figures[k] for k in own} == own


def test_who_has_masks_also_has_test_time_averages_apart(grid: Grid) -> None:
    for name, figures in grid.results().items():
        config = grid.cells[name].config
        averages = grid.cells[name].work.endswith(":classifier") and config["arm"] not in (*PLAIN, *DRAWN)
        assert ("averaged.auroc" in figures) == averages, name
        if averages:
            found = load_file(grid.root / name / PREDICTIONS)
            assert found["averaged"].sum(axis=1) == pytest.approx(1)
            own = classification_metrics(found["averaged"], found["labels"])
            assert figures["averaged.auroc"] == own["auroc"]
            assert not np.array_equal(found["averaged"], found["probabilities"])


def test_masks_are_measured_at_equal_area_and_on_a_second_classifier(grid: Grid) -> None:
    outlined = parts(TOYS, 6, 0)["test"].outlined.sum()
    assert outlined
    maskers = [arm for arm in TITLES if arm not in (*PLAIN, *DRAWN)]
    for arm in maskers:
        name = f"{HERE}/masks-{arm}"
        figures, scores = grid.results()[name], load_file(grid.root / name / SCORES)
        assert {k: v.shape for k, v in scores.items()} == {"train": (12, 5, 5), "scored": (9, 5, 5)}
        curves = load_file(grid.root / name / CURVES)
        assert np.array_equal(curves.pop("groups"), parts(TOYS, 6, 0)["test"].groups)
        assert set(curves) == {
            f"{w}.{f}.{n}" for w in ("deletion", "insertion") for f in CURVE_FILLS for n in ("own", "random")
        }
        assert {k: figures[k] for k in curves} == {k: pytest.approx(v.mean()) for k, v in curves.items()}
    shared = [k for k in grid.results()[f"{HERE}/masks-apga"] if k.endswith((".random", ".centre", ".ceiling"))]
    assert len(shared) >= 6
    for key in shared:
        assert len({grid.results()[f"{HERE}/masks-{arm}"][key] for arm in maskers}) == 1, key
    oracle = grid.results()[f"{HERE}/masks-oracle"]
    assert oracle["retention.agent"] == oracle["retention.ceiling"]
    assert oracle["retention.agent"] > oracle["retention.random"]


def test_the_second_classifier_is_neither_the_judge_nor_of_its_few_labels(grid: Grid) -> None:
    judge, referee = (load_judge(grid.root / name / JUDGE)[0] for name in (f"{HERE}/judge", "toys/all/seed0/referee"))
    assert not torch.equal(next(judge.parameters()), next(referee.parameters()))
    images = parts(TOYS, 6, 0)["test"].images
    found = load_file(grid.root / "toys/all/seed0/referee" / PREDICTIONS)
    assert predict_logits(referee, images).double().softmax(1).numpy() == pytest.approx(found["probabilities"])


# ---- repeating -------------------------------------------------------------------------------------------------------


def test_twice_is_the_same_to_the_bit(grid: Grid, tmp_path: Path) -> None:
    # PPO once, and those that learn; each in a new folder.
    again = run(tmp_path, sweep("none", "random", "cutout", "random_erasing", "apga", "ppo"), sweep("apga", joint=True))
    for name in again.cells:
        for file in (PREDICTIONS, SCORES, CURVES, JUDGE, DATA):
            if (again.root / name / file).is_file():
                assert (again.root / name / file).read_bytes() == (grid.root / name / file).read_bytes(), (name, file)
        timed = {k: v for k, v in again.results()[name].items() if k != "cpu_s"}
        assert timed == {k: v for k, v in grid.results()[name].items() if k != "cpu_s"}


def test_seeds_draw_other_images_and_weights(grid: Grid, tmp_path: Path) -> None:
    other = run(tmp_path, sweep("none", seeds=[1]))
    one, two = (load_file(g.root / f"toys/k6/seed{s}/none" / PREDICTIONS) for g, s in ((grid, 0), (other, 1)))
    assert not np.array_equal(one["probabilities"], two["probabilities"])
    digests = [json.loads((g.root / f"toys/k6/seed{s}/none" / DATA).read_text()) for g, s in ((grid, 0), (other, 1))]
    assert digests[0]["digest_test"] != digests[1]["digest_test"]


@pytest.mark.parametrize(
    "change", [{"updates": 5}, {"batch": 6}, {"lr": 1e-4}, {"fill": "mean"}, {"judge": "densenet169"}]
)
def test_every_setting_of_training_changes_a_classifier(grid: Grid, tmp_path: Path, change: dict[str, Any]) -> None:
    training = dataclasses.replace(QUICK, **change)
    other = run(tmp_path, sweep("random"), training=training)
    mine, theirs = (load_file(g.root / HERE / "random-h60" / PREDICTIONS) for g in (grid, other))
    assert not np.array_equal(mine["probabilities"], theirs["probabilities"])


@pytest.mark.parametrize("change", [{"joint_updates": 4}, {"batch": 6}, {"fill": "mean"}, {"joint_lr": 1e-4}])
def test_every_setting_of_joint_training_changes_the_judge(grid: Grid, tmp_path: Path, change: dict[str, Any]) -> None:
    other = run(tmp_path, sweep("random", joint=True), training=dataclasses.replace(QUICK, **change))
    mine, theirs = (load_file(g.root / HERE / "joint-random-h60" / PREDICTIONS) for g in (grid, other))
    assert not np.array_equal(mine["probabilities"], theirs["probabilities"])


def test_the_scored_part_is_that_of_the_split(tmp_path: Path, fits: list[Fit]) -> None:
    done = run(tmp_path, sweep("none", tasks=[dataclasses.replace(TOYS, env={**TOYS.env, "n": 120})]), split="val")
    task = dataclasses.replace(TOYS, env={**TOYS.env, "n": 120})
    whole = parts(task, 6, 0)["val"].groups.tolist()
    found = divided_for(task, 6, 0, "val")
    # What chooses the moment and what is reported are two halves, and nothing is left over.
    assert not set(found["val"].groups.tolist()) & set(found["test"].groups.tolist())
    assert sorted([*found["val"].groups, *found["test"].groups]) == sorted(whole)
    assert min(len(found["val"]), len(found["test"])) > len(whole) // 3
    assert np.array_equal(load_file(done.root / "toys/k6/seed0/none" / PREDICTIONS)["groups"], found["test"].groups)
    assert [fit.val for fit in fits] == [found["val"].digest]


def test_what_the_joint_setting_s_masks_hide_is_told(grid: Grid) -> None:
    told = {arm: grid.results()[f"{HERE}/joint-{arm}-h60"].get("hidden_share") for arm in JOINT}
    free = [told.pop(arm) for arm in ("ppo", "apga_published")]
    assert told.pop("none") == 0
    assert told == {arm: pytest.approx(0.6) for arm in ("random", "cutout", "centre", "apga")}
    assert all(share is not None and 0 <= share <= 1 and abs(share - 0.6) > 1e-6 for share in free)


def test_the_judge_and_the_referee_learn_for_as_long_as_they_are_told(tmp_path: Path, fits: list[Fit]) -> None:
    longer = {**dataclasses.asdict(QUICK), "judge_updates": 5}
    for i, training in enumerate((dataclasses.asdict(QUICK), longer)):
        for work in (module.judge, module.referee, module.classifier):
            work(config_of("none", training=training), new(tmp_path / f"{work.__name__}{i}"), {})
    assert [fit.settings.updates for fit in fits] == [3, 3, 3, 5, 5, 3]
    assert [len(fit.seen) for fit in fits] == [3, 3, 3, 5, 5, 3]


# ---- batch norm ------------------------------------------------------------------------------------------------------


def test_batch_norms_end_with_the_statistics_of_clean_images(tmp_path: Path) -> None:
    training = {**dataclasses.asdict(QUICK), "judge": "densenet169", "updates": 1}
    module.judge(config_of("none", training=training), new(tmp_path / "judge"), {})
    judge, _ = load_judge(tmp_path / "judge" / JUDGE)
    assert has_statistics(judge)
    before = bits(judge)
    assert bits(reestimate_statistics(judge, parts(TOYS, 6, 0)["train"].images)) == before


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_share_that_is_no_cell_is_refused(tmp_path: Path) -> None:
    for hidden in (0.01, 0.99):
        with pytest.raises(ConfigurationError, match="use a finer grid"):
            module.classifier(config_of("random", hidden=hidden), new(tmp_path / str(hidden)), {})


def test_a_class_that_is_not_tested_is_named_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fits: list[Fit]
) -> None:
    replace_parts(monkeypatch, test=lambda part: part.subset(part.labels == 0))
    with pytest.raises(DatasetError, match="no test image is "):
        module.classifier(config_of("none"), new(tmp_path / "none"), {})
    assert not fits


def test_images_without_labels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "dataset_of", lambda *a: dataclasses.replace(dataset_of(*a), labels=None))
    with pytest.raises(ConfigurationError, match="has no labels"):
        parts(TOYS, None, 0)


def test_a_classifier_that_diverged_is_an_error_and_no_row(tmp_path: Path) -> None:
    training = {**dataclasses.asdict(QUICK), "lr": 1e30, "updates": 12}
    with pytest.raises(JudgeError, match="lower lr"):
        module.classifier(config_of("random", training=training), new(tmp_path / "random"), {})
    assert not (tmp_path / "random" / PREDICTIONS).exists()


def test_the_device_is_found_where_the_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def found(device: str) -> torch.device:
        asked.append(device)
        return torch.device("cpu")

    monkeypatch.setattr(module, "resolve_device", found)
    done = run(tmp_path, sweep("random", "grad_cam", swapped=False), sweep("none", joint=True),
               training=dataclasses.replace(QUICK, device="auto"))  # fmt: skip
    assert asked == ["auto"] * len(done.cells)
