"""What `maskaug bench intelligent-masking` runs: tables by data and preset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskaug.benchmarks.encoders import ARMS, Encoding, Pretraining
from maskaug.benchmarks.readouts import DownstreamSettings
from maskaug.benchmarks.tasks import Task
from maskaug.envs.errors import ConfigurationError

PRESETS = ("smoke", "cpu", "paper")
#: data → environment, and what chooses the images; the name is the task's, but for synthetic ones.
DATA: dict[str, tuple[str, dict[str, Any]]] = {
    "synthetic": ("MaskAug-Synthetic-v0", {"kind": "ultrasound", "task": "presence", "n": 3000}),
    "busi": ("MaskAug-BUSI-v0", {"task": "diagnosis"}),
    "busi-presence": ("MaskAug-BUSI-v0", {"task": "presence"}),
    "lgg": ("MaskAug-LGG-v0", {}),
}
#: shares hidden besides one half; a smoke run has the first of them, and "cpu" none of synthetic images.
AREAS = (0.05, 0.2, 0.6)
#: the smallest setting in which everything runs.
_SMOKE = (
    Pretraining(updates=4, batch=8),
    DownstreamSettings(budgets=(6, None), draws=2, epochs=4, strengths=(0.1,)),
)
#: 800 updates: where the seven arms of `arms-synthetic-800.json` had learnt, see benchmarks/results.
_CPU = (Pretraining(), DownstreamSettings(budgets=(25, 100, None), draws=5))
#: the paper's sizes, networks and batch; its 300 epochs of the 378 training images of a fold of BUSI are 7 100 updates.
_PAPER = (
    Pretraining(updates=7100, batch=16, reconstructor="context_encoder", network="paper", device="auto"),
    DownstreamSettings(budgets=(25, 100, None), draws=10, most_updates=20_000),
)


def encoding_of(
    data: str,
    preset: str,
    root: Path | None = None,
    seeds: int | None = None,
    arms: Sequence[str] | None = None,
    split: str = "test",
) -> Encoding:
    """The table of one data set.

    Args:
        data: a name in `DATA`.
        preset: "smoke" (whether everything runs), "cpu" (100 minutes at most on two cores) or "paper".
        root: the folder of BUSI or LGG.
        seeds: how many, from 0; the preset's if None. Of real images a seed is one of five folds.
        arms: of `ARMS`; all if None.
        split: see `Encoding`.

    Raises:
        ConfigurationError: an unknown name, no root where one is needed, or no seed.
    """
    for name, value, known in (("data", data, tuple(DATA)), ("preset", preset, PRESETS)):
        if value not in known:
            raise ConfigurationError(f"{name}={value!r} is unknown; use one of {', '.join(known)}")
    made_up = data == "synthetic"
    if (root is None) != made_up:
        cure = "leave it out" if root is not None else "name the data set's folder by --root"
        raise ConfigurationError(f"root={None if root is None else str(root)!r} does not go with data={data!r}; {cure}")
    if seeds is not None and seeds < 1:
        raise ConfigurationError(f"seeds={seeds} must be at least 1")
    env_id, options = DATA[data]
    pretraining, reading = {"smoke": _SMOKE, "cpu": _CPU, "paper": _PAPER}[preset]
    size = {
        # A crop of BUSI is a part of a picture.
        "cpu": {"image_size": 64, "grid": 8} if made_up or data == "busi-presence" else {"image_size": 96, "grid": 12},
        "smoke": {"image_size": 40, "grid": 5}, "paper": {"image_size": 288, "grid": 9},
    }[preset]  # fmt: skip
    env = {**options, **size, **({} if root is None else {"root": str(root)})}
    if made_up and preset == "smoke":
        env["n"] = 150
    # A smoke run has two seeds: the two halves of one deal.
    folds = 0 if made_up else 2 if preset == "smoke" else 5
    count = {"smoke": 2, "cpu": 10 if made_up else 5, "paper": 20}[preset] if seeds is None else seeds
    areas = {"smoke": AREAS[:1], "cpu": () if made_up else AREAS, "paper": AREAS}[preset]
    task = Task("ultrasound" if made_up else data, env_id, env, folds)
    return Encoding([task], range(count), ARMS if arms is None else arms, pretraining, reading, split, areas)


#: what `make demo-intelligent-masking` runs: a few minutes on two cores.
DEMO = Encoding(
    [Task("ultrasound", "MaskAug-Synthetic-v0", {**DATA["synthetic"][1], "image_size": 64, "grid": 8})],
    range(2),
    ("none", "autoencoder", "random", "ours", "random_patch", "published"),
    dataclasses.replace(_CPU[0], updates=150),
    DownstreamSettings(budgets=(100,), draws=5, readouts=("logistic",)),
)
