"""The arms of `maskaug bench apga` differ in what is hidden and in nothing else, and nobody sees what is tested."""

from __future__ import annotations

import dataclasses
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
    new,
    replace_parts,
    run,
    sweep,
    watch_fits,
    whole_grid,
)
from env_helpers import pictures
from safetensors.numpy import load_file
from torch import Tensor

from maskaug.benchmarks import augmentation_arms
from maskaug.benchmarks import augmentation_cells as module
from maskaug.benchmarks.augmentation import (
    SWAPPED,
    TITLES,
    cells,
)
from maskaug.benchmarks.augmentation_cells import JUDGE, SCORES
from maskaug.benchmarks.grid import Grid
from maskaug.benchmarks.joint import train_joint
from maskaug.benchmarks.tasks import PREDICTIONS, parts
from maskaug.envs.datasets import ImageDataset


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return whole_grid(tmp_path_factory.getbasetemp())


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    return watch_fits(monkeypatch)


def test_all_arms_begin_and_learn_alike(grid: Grid, fits: list[Fit], tmp_path: Path) -> None:
    arms: dict[str, Fit] = {}
    for name, cell in grid.cells.items():
        if cell.work.endswith(":classifier"):
            module.classifier(cell.config, new(tmp_path / name), {n: grid.root / n for n in cell.needs})
            arms[name.removeprefix(f"{HERE}/")] = fits[-1]
    assert len(fits) == len(arms) == len(TITLES) + 8
    none, train, val = arms.pop("none"), parts(TOYS, 6, 0)["train"], parts(TOYS, 6, 0)["val"]
    assert (none.train, none.val) == (train.digest, val.digest)
    for name, fit in arms.items():
        assert (fit.weights, fit.train, fit.val) == (none.weights, none.train, none.val), name
        twice = 2 if name == "none_twice" else 1
        assert fit.settings == dataclasses.replace(none.settings, batch_size=8 * twice), name
        assert len(fit.seen) == len(none.seen) == 3
        if name != "none_twice":
            # The clean half is the same images in the same order with the same flips and shifts.
            assert all(torch.equal(a[:8], b) for a, b in zip(fit.seen, none.seen, strict=True)), name
        assert [len(x) for x in fit.seen] == [16, 16, 16]
    # And the other half differs from arm to arm, twins included.
    views = {name: fit.seen[0][8:].numpy().tobytes() for name, fit in arms.items()}
    assert len(set(views.values())) == len(views)
    for name, fit in arms.items():
        if name not in ("none_twice", "random_erasing-h60"):
            clean, view = fit.seen[0][:8], fit.seen[0][8:]
            # Shifts lose rows at one border and repeat those of the other, of masks too: the share is exact before.
            black = float(((view == 0) & (clean > 0)).sum() / (clean > 0).sum())
            assert 0.4 < black < 0.8, name


def test_swapped_twins_have_the_masks_of_others(grid: Grid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[bool, Tensor] = {}
    original = augmentation_arms.kept_view
    for twin in (False, True):
        cell = grid.cells[f"{HERE}/apga{SWAPPED if twin else ''}-h60"]

        def kept_view(images: ImageDataset, kept: Tensor, fill: str, twin: bool = twin) -> Any:
            given[twin] = kept
            return original(images, kept, fill)

        with monkeypatch.context() as patch:
            patch.setattr(augmentation_arms, "kept_view", kept_view)
            module.classifier(cell.config, new(tmp_path / cell.name), {n: grid.root / n for n in cell.needs})
    whose = augmentation_arms.exchanged(12, 0)
    assert torch.equal(given[True], given[False][whose])
    assert not torch.equal(given[True], given[False])
    assert given[False].flatten(1).sum(1).tolist() == [10] * 12


def test_joint_arms_begin_with_the_weights_of_the_decoupled_classifiers(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fits: list[Fit]
) -> None:
    given: list[str] = []
    original = train_joint

    def watched(player: Any, train: Any, val: Any, **more: Any) -> Any:
        given.append(bits(more["env"]["reward_model"]))
        return original(player, train, val, **more)

    monkeypatch.setattr(module, "train_joint", watched)
    for arm in ("none", "apga"):
        cell = grid.cells[f"{HERE}/joint-{arm}-h60"]
        module.joint(cell.config, new(tmp_path / arm), {})
    module.classifier(grid.cells[f"{HERE}/none"].config, new(tmp_path / "classifier"), {})
    assert given == [fits[0].weights] * 2


# ---- what nobody may see ---------------------------------------------------------------------------------------------

_LEARNING = ("centre", "mean_region", "brightness", "grad_cam", "end_to_end", "apga", "apga_published", "ppo")


def shuffled(part: ImageDataset) -> ImageDataset:
    """Other images, labels and regions of the same number."""
    other = pictures(len(part), size=40, seed=5)
    return dataclasses.replace(other, class_names=part.class_names, groups=part.groups, split=part.split)


def test_what_is_tested_reaches_nobody_who_learns(grid: Grid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replace_parts(monkeypatch, test=shuffled)
    other = run(tmp_path, sweep("none", "random", *_LEARNING, swapped=False))
    for arm in _LEARNING:
        mine, theirs = (load_file(g.root / HERE / f"masks-{arm}" / SCORES) for g in (grid, other))
        assert np.array_equal(mine["train"], theirs["train"]), arm
    for name in (f"{HERE}/judge", "toys/all/seed0/referee"):
        assert (grid.root / name / JUDGE).read_bytes() == (other.root / name / JUDGE).read_bytes()


def test_regions_reach_nobody_but_those_who_are_told(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown(part: ImageDataset) -> ImageDataset:
        return dataclasses.replace(part, regions=None)

    replace_parts(monkeypatch, train=unknown, val=unknown, test=unknown)
    blind = [arm for arm in _LEARNING if arm != "mean_region"]
    other = run(tmp_path / "blind", sweep(*blind, swapped=False))
    for arm in blind:
        mine, theirs = (load_file(g.root / HERE / f"masks-{arm}" / SCORES) for g in (grid, other))
        assert np.array_equal(mine["scored"], theirs["scored"]), arm
        mine, theirs = (load_file(g.root / HERE / f"{arm}-h60" / PREDICTIONS) for g in (grid, other))
        assert np.array_equal(mine["averaged"], theirs["averaged"]), arm
        # Where no region is known, masks are not scored against one.
        assert "retention.agent" not in other.results()[f"{HERE}/masks-{arm}"]
    told = Grid(tmp_path / "told", cells([sweep("oracle", "mean_region")], QUICK))
    state = told.run(say=lambda _: None)
    assert {state[f"{HERE}/masks-{arm}"] for arm in ("oracle", "mean_region")} == {"failed"}


def test_nobody_learns_from_the_images_that_choose(grid: Grid, fits: list[Fit], tmp_path: Path) -> None:
    cell = grid.cells[f"{HERE}/random-h60"]
    module.classifier(cell.config, new(tmp_path / "random"), {})
    found = parts(TOYS, 6, 0)
    groups = [set(part.groups.tolist()) for part in found.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert (fits[0].train, fits[0].val) == (found["train"].digest, found["val"].digest)
