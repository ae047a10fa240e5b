"""What a cell of `maskaug.benchmarks.encoders` does: pre-train one arm's encoder and read it out with few labels.

Beside its figures it leaves

* data.json: name, source, digests and licence of the images;
* predictions.safetensors: "labels" and "groups" (N,) of the scored images, and for each read-out and budget, such as
  "paper.100" or "logistic.all", the probabilities (draws, N, classes);
* played.safetensors, of a learned arm: every mask of its run, for the arm that swaps them;
* shown.safetensors, of an arm that has a masker: its masks of a few scored images, and for the one in the middle what
  was hidden and what came back.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor

from maskaug.benchmarks.downstream import read_out
from maskaug.benchmarks.encoder_arms import Arm, Played, pretrain_arm
from maskaug.benchmarks.encoders import BESIDE, SWAPS, Pretraining
from maskaug.benchmarks.masks import control_masks, hits, retentions
from maskaug.benchmarks.metrics import classification_metrics
from maskaug.benchmarks.pictures import fill_in
from maskaug.benchmarks.readouts import DownstreamSettings
from maskaug.benchmarks.reports import all_scores, correlations, own_masks
from maskaug.benchmarks.tasks import PREDICTIONS, Task, check_classes, divided_for, write_data
from maskaug.benchmarks.timing import one_thread
from maskaug.benchmarks.training import env_keywords
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.defaults import default_grid
from maskaug.envs.files import write_safetensors
from maskaug.envs.masking import cells_to_mask
from maskaug.envs.networks import at_once
from maskaug.envs.pretrain import as_writable
from maskaug.envs.statistics import reestimate_statistics

PLAYED, SHOWN = "played.safetensors", "shown.safetensors"
#: scored images whose masks are kept, evenly spaced.
MOST_SHOWN = 6
#: side in cells of the patch that the map of an arm without one is asked for.
PATCH = 2


def arm_cell(config: Mapping[str, Any], folder: Path, inputs: Mapping[str, Path]) -> dict[str, float]:
    """One arm, pre-trained and read out: "<read-out>.<budget>.<metric>", means over draws, and what its masks find."""
    task, pretraining = Task(**config["task"]), Pretraining(**config["pretraining"])
    seed, arm = config["seed"], config["arm"]
    tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["reading"].items()}
    reading = DownstreamSettings(**tuples, seed=seed)
    divided = divided_for(task, None, seed, config["split"])
    train, scored = divided["train"], divided["test"]
    check_classes(task, seed, scored)
    write_data(folder, divided)
    grid = grid_of(task, train)
    with one_thread(pretraining.device):
        played = _read_played(next(iter(inputs.values())), grid) if arm in SWAPS else None
        left = pretrain_arm(pretraining, arm, train, grid, seed, played)
        if arm in SWAPS.values() and left.played is not None:
            _write_played(folder, left.played)
        encoder = left.judge.model.encoder()  # type: ignore[operator]
        # What training saw has hidden parts; so that "none" has statistics at all, too.
        reestimate_statistics(encoder, train.images, batch=at_once(*train.shape[1:]))
        began = time.process_time()
        found: dict[str, list[npt.NDArray[np.float64]]] = {}
        for one in read_out(encoder, train, divided["val"], scored, reading, left.judge.device):
            found.setdefault(f"{one.readout}.{one.budget}", []).append(one.probabilities)
        figures = {"cpu_s": left.cpu_s, "readout_cpu_s": time.process_time() - began}
        if arm in BESIDE:
            figures |= mask_figures(left, train, scored, seed)
        if left.masker is not None:
            _write_shown(folder, left, scored)
    assert scored.labels is not None
    tensors = {name: torch.from_numpy(np.stack(draws)) for name, draws in found.items()}
    about = {"labels": as_writable(scored.labels), "groups": as_writable(scored.groups)}
    write_safetensors(folder / PREDICTIONS, {**tensors, **about}, {})
    for name, draws in found.items():
        metrics = [classification_metrics(probabilities, scored.labels) for probabilities in draws]
        figures |= {f"{name}.{metric}": float(np.mean([m[metric] for m in metrics])) for metric in metrics[0]}
    return figures


def grid_of(task: Task, images: ImageDataset) -> int:
    """Cells along each side."""
    return int(env_keywords(task.env_id, task.env).get("grid") or default_grid("grid", images.shape[1:]))


def shown_of(scored: ImageDataset) -> ImageDataset:
    """The scored images that are shown: evenly spaced among those with a region, where there are any."""
    rows = np.flatnonzero(scored.outlined) if scored.outlined.any() else np.arange(len(scored))
    return scored.subset(rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST_SHOWN, len(rows))).astype(int))])


def mask_figures(arm: Arm, train: ImageDataset, scored: ImageDataset, seed: int) -> dict[str, float]:
    """What a learned map knows of held-out images: the error's ranking, and the region at the size of one patch."""
    found = correlations(arm.masker, scored, arm.judge, arm.fill)
    result = {k.removeprefix(f"{scored.split}."): v for k, v in found.items()}
    if not scored.outlined.any():
        return result
    side = arm.spec.patch_cells or PATCH
    spec = dataclasses.replace(arm.spec, cells=side**2, patch_cells=side)
    masks = control_masks(all_scores(arm.masker, scored), scored, train, spec, seed, own_masks(arm.masker, scored))
    for what, values in (("hit", hits(masks, scored)), ("retention", retentions(masks, scored))):
        result |= {f"{what}.{name}": float(v.mean()) for name, v in values.items()}
    return result


def _write_played(folder: Path, played: Played) -> None:
    packed = {"corners": played} if played.ndim == 2 else {"cells": np.packbits(played, axis=-1)}
    write_safetensors(folder / PLAYED, {k: torch.from_numpy(v) for k, v in packed.items()}, {})


def _read_played(folder: Path, grid: int) -> Played:
    found = {name: tensor.numpy() for name, tensor in load_file(folder / PLAYED).items()}
    if "corners" in found:
        return found["corners"]
    return np.unpackbits(found["cells"], axis=-1, count=grid**2)


def _write_shown(folder: Path, arm: Arm, scored: ImageDataset) -> None:
    some = shown_of(scored)
    images = np.array(some.images)
    cells = arm.spec.cells_of(arm.masker.predict(images, deterministic=True)[0])
    masks, middle = cells_to_mask(cells, *some.shape[1:]), slice(len(some) // 2, len(some) // 2 + 1)
    hidden, restored = fill_in(arm.judge, images[middle], masks[middle], arm.fill)
    kept: dict[str, Tensor] = {
        "masks": masks.to(torch.uint8), "hidden": torch.from_numpy(hidden), "restored": torch.from_numpy(restored),
        "scores": torch.from_numpy(arm.masker.scores(images[middle])),
    }  # fmt: skip
    write_safetensors(folder / SHOWN, kept, {})
