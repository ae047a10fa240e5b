"""A small table of `maskaug bench intelligent-masking`, which takes seconds."""

from __future__ import annotations

import dataclasses
from typing import Any

from maskaug.benchmarks.encoder_arms import Arm, Played, pretrain_arm
from maskaug.benchmarks.encoders import Encoding, Pretraining
from maskaug.benchmarks.readouts import DownstreamSettings
from maskaug.benchmarks.tasks import Task, parts

DATA: dict[str, Any] = {"kind": "ultrasound", "task": "presence", "n": 90, "image_size": 40, "grid": 5}
TASK = Task("tiny", "MaskAug-Synthetic-v0", DATA)
TINY = Pretraining(updates=3, batch=8)
READING = DownstreamSettings(budgets=(6, None), draws=2, readouts=("logistic",))
TABLE = Encoding([TASK], (0, 1), ("none", "random", "ours", "swapped", "random_patch", "published"), TINY, READING)


def left_by(arm: str, played: Played | None = None, seed: int = 0, **changes: Any) -> Arm:
    """One arm of `TINY`, with what is changed of it."""
    return pretrain_arm(dataclasses.replace(TINY, **changes), arm, parts(TASK, None, seed)["train"], 5, seed, played)


def ignore(text: object) -> None:
    """For those who say nothing."""
