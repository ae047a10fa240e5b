"""What the cells of `maskaug.benchmarks.augmentation` do: a function for each kind, (config, folder, inputs) → figures.

Beside its figures a cell leaves data.json (name, source, digest and licence of the images), and a classifier
predictions.safetensors: "labels", "groups" and "probabilities" of every scored image, "averaged" with test-time
averaging, "studies" where there are any. A masker leaves scores.safetensors, "train" and "scored", and
curves.safetensors: the areas under the deletion and insertion curves of single images, and their "groups".
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maskaug.agents.base import GridSpec
from maskaug.benchmarks import augmentation_arms as arms
from maskaug.benchmarks.augmentation import DRAWN, PLAIN, Training
from maskaug.benchmarks.curves import CURVE_FILLS, curve_aucs
from maskaug.benchmarks.joint import train_joint
from maskaug.benchmarks.mask_metrics import mask_figures
from maskaug.benchmarks.masks import oracle_scores
from maskaug.benchmarks.metrics import classification_metrics
from maskaug.benchmarks.reports import all_scores
from maskaug.benchmarks.tasks import PREDICTIONS, Task, check_classes, divided_for, write_data
from maskaug.benchmarks.training import env_keywords
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.defaults import default_grid
from maskaug.envs.devices import resolve_device
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.files import write_safetensors
from maskaug.envs.judges import load_judge, make_judge, save_judge
from maskaug.envs.masking import cells_for_area, cells_to_mask, filler, keep
from maskaug.envs.networks import at_once, to_float
from maskaug.envs.pretrain import FitSettings, as_writable, fit_classifier, predict_logits

JUDGE, SCORES = "judge.safetensors", "scores.safetensors"
CURVES = "curves.safetensors"
#: scored images that deletion and insertion are measured on, evenly spaced.
MOST = 64
#: random rankings beside each.
DRAWS = 2
Inputs = Mapping[str, Path]


class _Cell:
    """What every cell begins with: its settings as objects, and its images."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        self.task, self.training = Task(**config["task"]), Training(**config["training"])
        self.seed: int = config["seed"]
        self.split: str = config["split"]
        self.parts = divided_for(self.task, config["shots"], self.seed, self.split)
        self.train, self.scored = self.parts["train"], self.parts["test"]
        self.device = resolve_device(self.training.device)
        check_classes(self.task, self.seed, self.scored)
        play = env_keywords(self.task.env_id, self.task.env)
        self.grid: int = play.get("grid") or default_grid("grid", self.train.shape[1:])
        write_data(folder, self.parts)

    def network(self, first_weights: int) -> nn.Module:
        """A classifier with first weights drawn from a number of the seed's own."""
        channels, classes = self.train.shape[0], len(self.train.class_names)
        return make_judge(self.training.judge, channels, classes, 10 * self.seed + first_weights)

    def fit(self, network: nn.Module, train: ImageDataset, **more: Any) -> float:
        """Train `network` in place; the CPU seconds that it took."""
        t = self.training
        batch, updates = more.pop("batch", t.batch), more.pop("updates", t.updates)
        settings = FitSettings(updates=updates, batch_size=batch, lr=t.lr, seed=self.seed)
        began = time.process_time()
        fit_classifier(network, train, self.parts["val"], settings, clean=True, device=self.device, **more)
        return time.process_time() - began

    def score(self, network: nn.Module, folder: Path, kept: Tensor | None = None) -> dict[str, float]:
        """Predictions into a file, and their figures; with masks also "averaged.…", test-time averaging."""
        scored, device = self.scored, self.device
        assert scored.labels is not None
        found = {"probabilities": predict_logits(network, scored.images, device=device).double().softmax(1)}
        if kept is not None:
            aiding = _aiding_probabilities(network, scored, kept, self.training.fill, device)
            found["averaged"] = (found["probabilities"] + aiding) / 2
        if not all(bool(values.isfinite().all()) for values in found.values()):
            raise JudgeError("the classifier's probabilities are not finite: it has diverged; lower lr")
        kept_along = {"labels": as_writable(scored.labels), "groups": as_writable(scored.groups)}
        if scored.studies is not None:
            kept_along["studies"] = as_writable(scored.studies)
        write_safetensors(folder / PREDICTIONS, {**found, **kept_along}, {})
        plain = classification_metrics(found["probabilities"].numpy(), scored.labels, scored.studies)
        if kept is None:
            return plain
        averaged = classification_metrics(found["averaged"].numpy(), scored.labels, scored.studies)
        return {**plain, **{f"averaged.{k}": v for k, v in averaged.items()}}


def judge(config: Mapping[str, Any], folder: Path, inputs: Inputs) -> dict[str, float]:
    """A classifier of the labelled images, which maskers ask."""
    return _judge(_Cell(config, folder), folder, 1)


def referee(config: Mapping[str, Any], folder: Path, inputs: Inputs) -> dict[str, float]:
    """A classifier of the whole training split that nobody learns from: deletion and insertion are measured on it."""
    return _judge(_Cell(config, folder), folder, 2)


def _judge(cell: _Cell, folder: Path, first_weights: int) -> dict[str, float]:
    network = cell.network(first_weights)
    seconds = cell.fit(network, cell.train, updates=cell.training.updates_of_judge)
    save_judge(folder / JUDGE, network)
    return {**cell.score(network, folder), "cpu_s": seconds}


def masks(config: Mapping[str, Any], folder: Path, inputs: Inputs) -> dict[str, float]:
    """A masker: its scores of the labelled and the scored images, and how good its masks are."""
    cell = _Cell(config, folder)
    arm, grid, seed = config["arm"], cell.grid, cell.seed
    known = {name.rpartition("/")[2]: load_judge(path / JUDGE)[0].to(cell.device) for name, path in inputs.items()}
    began = time.process_time()
    if arm == "oracle":
        scores = {
            name: oracle_scores(part, grid, seed) for name, part in (("train", cell.train), ("scored", cell.scored))
        }
    else:
        ranker = arms.masker(arm, cell.train, known.get("judge"), grid, cell.training, seed)
        scores = {name: all_scores(ranker, part) for name, part in (("train", cell.train), ("scored", cell.scored))}
    figures = {"cpu_s": time.process_time() - began}
    if not all(np.isfinite(values).all() for values in scores.values()):
        raise ConfigurationError(f"{arm} gave scores that are not finite; its judge cannot be used")
    write_safetensors(folder / SCORES, {name: torch.from_numpy(values) for name, values in scores.items()}, {})
    spec = GridSpec(cell.train.shape, grid, cells_for_area(arms.PLAYED_AREA, grid))
    if cell.scored.outlined.any():
        figures |= mask_figures(scores["scored"], cell.scored, cell.train, spec, seed)
    return figures | _curves(cell, known["referee"], scores["scored"], folder)


def _curves(cell: _Cell, referee: nn.Module, scores: npt.NDArray[np.float32], folder: Path) -> dict[str, float]:
    # "deletion.zero.own" and the like, and those of random rankings of the same images; image by image into a file.
    some = np.unique(np.linspace(0, len(scores) - 1, min(MOST, len(scores))).astype(int))
    chance = np.random.default_rng([cell.seed, 0xDE1]).random((DRAWS, *scores[some].shape), np.float32)
    images = np.array(cell.scored.images[some])
    values: dict[str, npt.NDArray[np.float64]] = {}
    for fill in CURVE_FILLS:
        found = curve_aucs(referee, images, {"own": scores[some], "random": chance}, fill, seed=cell.seed)
        values |= {f"{what}.{fill}.{name}": v for name, both in found.items() for what, v in both.items()}
    kept_along = {"groups": as_writable(cell.scored.groups[some])}
    write_safetensors(folder / CURVES, {**{name: as_writable(v) for name, v in values.items()}, **kept_along}, {})
    return {name: float(v.mean()) for name, v in values.items()}


def classifier(config: Mapping[str, Any], folder: Path, inputs: Inputs) -> dict[str, float]:
    """A new classifier, trained on the images and their second views."""
    cell = _Cell(config, folder)
    arm, network = config["arm"], cell.network(3)
    if arm in PLAIN:
        twice = 2 if arm == "none_twice" else 1
        seconds = cell.fit(network, cell.train, batch=twice * cell.training.batch)
        return {**cell.score(network, folder), "cpu_s": seconds}
    hidden, fill = config["hidden"], cell.training.fill
    if not 0 < cells_for_area(hidden, cell.grid) < cell.grid**2:
        raise ConfigurationError(f"hidden={hidden} of {cell.grid}×{cell.grid} cells is none, or all; use a finer grid")
    if arm in DRAWN:
        view = arms.drawn_view(arm, cell.train, cell.grid, hidden, fill, cell.seed)
        seconds = cell.fit(network, cell.train, view=view)
        return {**cell.score(network, folder), "cpu_s": seconds}
    (source,) = inputs.values()
    kept = {k: arms.kept_cells(v.numpy(), hidden) for k, v in load_file(source / SCORES).items()}
    if config["swapped"]:
        kept = {name: cells[arms.exchanged(len(cells), cell.seed)] for name, cells in kept.items()}
    seconds = cell.fit(network, cell.train, view=arms.kept_view(cell.train, kept["train"], fill))
    return {**cell.score(network, folder, kept["scored"]), "cpu_s": seconds}


def joint(config: Mapping[str, Any], folder: Path, inputs: Inputs) -> dict[str, float]:
    """Judge and masker learn along; the judge is scored."""
    cell = _Cell(config, folder)
    arm, training = config["arm"], cell.training
    player, keywords = arms.joint_player(arm, config["hidden"], training)
    found = train_joint(
        player, cell.train, cell.parts["val"], updates=training.joint_updates, checks=min(10, training.joint_updates),
        batch=training.batch, seed=cell.seed, device=cell.device,
        env={
            "grid": cell.grid, "fill": training.fill, "reward_model": cell.network(3), "judge_lr": training.joint_lr,
            **keywords,
        },
    )  # fmt: skip
    return {**cell.score(found.judge, folder), **found.figures}


@torch.no_grad()
def _aiding_probabilities(
    network: nn.Module, dataset: ImageDataset, kept: Tensor, fill: str, device: torch.device
) -> Tensor:
    # (N, C) float64: of the images with all but their own cells hidden.
    network.eval()
    chunk, found = at_once(*dataset.shape[1:]), []
    for i in range(0, len(dataset), chunk):
        images = as_writable(dataset.images[i : i + chunk]).to(device)
        mask = cells_to_mask(kept[i : i + chunk], *images.shape[2:]).to(device)
        found.append(network(to_float(keep(images, mask, filler(images, fill)))).double().softmax(1).cpu())
    return torch.cat(found)
