"""Cells of `maskaug bench apga` whose figures are made up, so that what tables should say is known."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from maskaug.benchmarks import augmentation_cells
from maskaug.benchmarks.augmentation import SWAPPED
from maskaug.benchmarks.augmentation_analysis import ITSELF
from maskaug.benchmarks.augmentation_cells import CURVES, SCORES
from maskaug.benchmarks.curves import CURVE_FILLS
from maskaug.benchmarks.metrics import classification_metrics
from maskaug.benchmarks.tasks import DATA, PREDICTIONS
from maskaug.envs.files import write_json

#: test images, two of each patient.
IMAGES = 80
LABELS = np.arange(IMAGES) // 2 % 2
#: how far the logits of the classes lie apart; of arms that are not named, 1.
STRENGTHS = {"apga": 3.0, f"apga{SWAPPED}": 1.0, "oracle": 1.0, "cutout": -0.5}


def make_up(
    monkeypatch: pytest.MonkeyPatch, source: str = "synthetic", strengths: Mapping[str, float] | None = None
) -> None:
    """Let cells write what `strengths` says of their arm instead of training anything."""
    known = STRENGTHS if strengths is None else strengths

    def classifier(config: Mapping[str, Any], folder: Path, inputs: object) -> dict[str, float]:
        _data(folder, source)
        arm = config.get("arm", ITSELF) + (SWAPPED if config.get("swapped") else "")
        # Of one seed all arms have the same noise: what differs is the arm.
        rng = np.random.default_rng([config["seed"], len(config["task"]["name"])])
        noise, own = (
            rng.normal(size=IMAGES),
            np.random.default_rng([config["seed"], zlib.crc32(arm.encode())]).normal(size=IMAGES),
        )
        positive = 1 / (1 + np.exp(-(known.get(arm, 1.0) * (2 * LABELS - 1) / 2 + noise + 0.3 * own)))
        found = np.stack([1 - positive, positive], axis=1)
        groups = np.arange(IMAGES) // 2
        save_file(
            {
                "probabilities": torch.from_numpy(found), "labels": torch.from_numpy(LABELS),
                "groups": torch.from_numpy(groups),
            },
            folder / PREDICTIONS,
        )  # fmt: skip
        return {**classification_metrics(found, LABELS), "cpu_s": 1.0}

    def masks(config: Mapping[str, Any], folder: Path, inputs: object) -> dict[str, float]:
        _data(folder, source)
        rng = np.random.default_rng([config["seed"], len(config["arm"])])
        save_file({"scored": torch.from_numpy(rng.random((9, 5, 5), np.float32))}, folder / SCORES)
        # APGA's deletion is lower and its insertion higher than others'.
        gain = 0.2 if config["arm"] == "apga" else 0.0
        curves = {}
        for fill in CURVE_FILLS:
            chance = 0.5 + 0.05 * np.random.default_rng(config["seed"]).normal(size=(2, 9))
            for what, values, sign in (("deletion", chance[0], -1), ("insertion", chance[1], 1)):
                curves[f"{what}.{fill}.random"] = values
                curves[f"{what}.{fill}.own"] = values + sign * gain + 0.02 * rng.normal(size=9)
        arrays = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in curves.items()}
        save_file({**arrays, "groups": torch.arange(9)}, folder / CURVES)
        regions = {f"{w}.{n}": 0.3 for w in ("retention", "hit", "iou", "pointing") for n in ("random", "centre")}
        own = {f"{w}.agent": 0.25 + gain for w in ("retention", "hit", "iou", "pointing")}
        means = {name: float(values.mean()) for name, values in curves.items()}
        return {**regions, **own, "retention.swapped": 0.2, **means, "cpu_s": 2.0}

    def network(config: Mapping[str, Any], folder: Path, inputs: object) -> dict[str, float]:
        _data(folder, source)
        return {"auroc": 0.7}

    for name, work in (
        ("classifier", classifier), ("joint", classifier), ("judge", classifier), ("masks", masks),
        ("referee", network),
    ):  # fmt: skip
        monkeypatch.setattr(augmentation_cells, name, work)


def _data(folder: Path, source: str) -> None:
    write_json(folder / DATA, {
        "name": "made up", "source": source, "licence": "none", "citation": "",
        "images": {"train": 12, "val": 34, "test": IMAGES}, "shape": [1, 40, 40],
    })  # fmt: skip
