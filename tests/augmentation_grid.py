"""A tiny grid of `maskaug bench apga` with every arm of both settings, and who was given what while one was trained."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from maskaug.benchmarks import augmentation_cells
from maskaug.benchmarks.augmentation import JOINT, TITLES, Sweep, Training, cells
from maskaug.benchmarks.grid import Grid
from maskaug.benchmarks.tasks import Task, parts
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.pretrain import fit_classifier

TOYS = Task("toys", "MaskAug-Synthetic-v0", {"n": 60, "image_size": 40, "grid": 5, "difficulty": "easy"})
QUICK = Training(updates=3, batch=8, timesteps=64, num_envs=8, joint_updates=2)
HERE = "toys/k6/seed0"


def sweep(*arms: str, **changes: Any) -> Sweep:
    """Of 12 labelled toys, 60 % hidden."""
    return Sweep(**{"tasks": [TOYS], "shots": [6], "seeds": [0], "arms": arms, "hidden": [0.6], **changes})


def run(root: Path, *sweeps: Sweep, training: Training = QUICK, split: str = "test") -> Grid:
    """All cells, done."""
    grid = Grid(root, cells(sweeps, training, split))
    lines: list[str] = []
    assert set(grid.run(say=lines.append).values()) == {"done"}, lines
    return grid


@functools.cache
def whole_grid(folder: Path) -> Grid:
    """Every arm of both settings, run once for all tests of a session, which only read it."""
    return run(folder / "augmentation-grid", sweep(*TITLES), sweep(*JOINT, joint=True))


def config_of(arm: str, **changes: Any) -> dict[str, Any]:
    """Of the classifier of an arm, with some of it changed."""
    (*_, cell) = cells([sweep(arm)], QUICK)
    return {**cell.config, **changes}


def new(folder: Path) -> Path:
    """A folder for a cell."""
    folder.mkdir(parents=True)
    return folder


def bits(model: nn.Module) -> str:
    """What tells two networks' weights apart."""
    h = hashlib.sha256()
    for value in model.state_dict().values():
        h.update(value.numpy().tobytes())
    return h.hexdigest()


@dataclasses.dataclass
class Fit:
    """What one call of `fit_classifier` was given, and what the network saw of it."""

    weights: str
    train: str
    val: str
    settings: Any
    seen: list[Tensor]


def watch_fits(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    """A list to which every classifier that a cell trains is added."""
    found: list[Fit] = []

    def watched(model: nn.Module, train: ImageDataset, val: ImageDataset, settings: Any, **more: Any) -> Any:
        seen: list[Tensor] = []
        found.append(Fit(bits(model), train.digest, val.digest, settings, seen))

        def look(network: nn.Module, inputs: tuple[Tensor]) -> None:
            if network.training:
                seen.append(inputs[0].detach().clone())

        handle = model.register_forward_pre_hook(look)
        result = fit_classifier(model, train, val, settings, **more)
        handle.remove()
        return result

    monkeypatch.setattr(augmentation_cells, "fit_classifier", watched)
    return found


def replace_parts(monkeypatch: pytest.MonkeyPatch, **others: Any) -> None:
    """Let cells find other images: name of a part → function of what it is."""

    def changed(task: Task, shots: int | None, seed: int) -> dict[str, ImageDataset]:
        found = parts(task, shots, seed)
        return {name: others.get(name, lambda part: part)(part) for name, part in found.items()}

    monkeypatch.setattr("maskaug.benchmarks.tasks.parts", changed)
