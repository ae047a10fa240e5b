"""Environment steps against the bare judge at the sizes of a GPU: `maskaug bench device`.

Wall time, both sides in turn with the device waited for, the median of the rounds: a GPU's work takes no CPU time.
"""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from maskaug.agents.agent import as_tensor
from maskaug.envs.devices import resolve_device
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import atomic_write
from maskaug.envs.judges import make_judge
from maskaug.envs.networks import to_float

#: how the judge is computed.
WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "channels_last": {"channels_last": True},
    "bf16": {"channels_last": True, "precision": "bf16"},
    "compiled": {"channels_last": True, "precision": "bf16", "compile": True},
}


@dataclasses.dataclass(frozen=True)
class DeviceSettings:
    """What is measured.

    Attributes:
        judge: a name of `maskaug.envs.judges.JUDGES`.
        image_size: pixels a side.
        images: how many synthetic images are played.
        ways: of `WAYS`.
        rounds: how often both sides are measured in turn.
        steps: of the environment in a measurement.
    """

    judge: str = "densenet169"
    image_size: int = 224
    images: int = 512
    ways: Sequence[str] = tuple(WAYS)
    rounds: int = 10
    steps: int = 4


def one_row(settings: DeviceSettings, num_envs: int, way: str, tensors: bool, device: torch.device) -> dict[str, Any]:
    """Images a second of environment steps and of the bare judge, and the first ÷ the second (1 = nothing else costs).

    The bare judge gets as many uint8 images that lie on the device already, computed in the same way, and gives one
    loss each, which numpy environments also bring to the host. Clean losses are known, as after one pass over the data
    with a frozen judge.
    """
    judge = make_judge(settings.judge, 1, 2, 0)
    env = MaskVectorEnv(
        num_envs, n=settings.images, split="all", image_size=settings.image_size, joint=False, reward_model=judge,
        device=device, tensors=tensors, **WAYS[way],
    )  # fmt: skip
    game = env.game
    env.action_space.seed(0)
    actions = env.action_space.sample()
    if tensors:
        actions = as_tensor(actions, device)
    env.reset(seed=0)
    seen: set[int] = set()
    while len(seen) < len(env.dataset):
        seen.update(game.index.tolist())
        env.step(actions)
    images = game.pictures.at(game.index)
    assert env.dataset.labels is not None
    labels = torch.from_numpy(env.dataset.labels[game.index]).to(device)

    def play() -> None:
        for _ in range(settings.steps):
            env.step(actions)

    @torch.no_grad()
    def bare() -> None:
        for _ in range(settings.steps):
            logits = game.acceleration.forward(judge, to_float(images))
            losses = functional.cross_entropy(logits, labels, reduction="none")
            if not tensors:
                losses.cpu()

    def seconds(side: Callable[[], None]) -> float:
        _wait(device)
        began = time.perf_counter()
        side()
        _wait(device)
        return time.perf_counter() - began

    seconds(play)
    seconds(bare)
    found = []
    for i in range(settings.rounds):
        # Who goes first changes with every round: the second finds a warmer cache.
        order = (play, bare) if i % 2 else (bare, play)
        taken = {side: seconds(side) for side in order}
        found.append((taken[play], taken[bare]))
    ours, theirs = (float(np.median(side)) for side in zip(*found, strict=True))
    env.close()
    count = num_envs * settings.steps
    return {
        "judge": settings.judge, "image_size": settings.image_size, "num_envs": num_envs, "way": way,
        "tensors": tensors, "environment_images_s": count / ours, "judge_images_s": count / theirs,
        "ratio": float(np.median([bare / play for play, bare in found])),
    }  # fmt: skip


def device_throughput(
    settings: DeviceSettings,
    num_envs: Sequence[int],
    device: str = "auto",
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Every number of environments, way and kind of observation, one row each; see `one_row`.

    Args:
        settings: what is measured.
        num_envs: batches.
        device: where.
        out: a CSV file to write beside the table; the device's name is in it.
        say: where lines for people go.
    """
    unknown = [way for way in settings.ways if way not in WAYS]
    if unknown or not settings.ways or not num_envs or min(num_envs) < 1:
        raise ConfigurationError(
            f"ways={list(settings.ways)} must be some of {', '.join(WAYS)}, and num_envs={list(num_envs)} at least 1"
        )
    if settings.rounds < 1 or settings.steps < 1:
        raise ConfigurationError("rounds and steps must be at least 1")
    where = resolve_device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    say(f"{name}: images a second, {settings.judge} at {settings.image_size}×{settings.image_size}")
    say(f"{'N':>6} {'way':<14}{'observations':<14}{'environment':>13}{'bare judge':>13}{'ratio':>8}")
    rows = []
    for count in num_envs:
        for way in settings.ways:
            for tensors in (True, False):
                row = one_row(settings, count, way, tensors, where)
                rows.append({"device": name, **row})
                kind = "tensors" if tensors else "numpy"
                speeds = f"{row['environment_images_s']:>13.1f}{row['judge_images_s']:>13.1f}"
                say(f"{count:>6} {way:<14}{kind:<14}{speeds}{row['ratio']:>8.3f}")
    if out is not None:
        atomic_write(out, lambda path: _write(path, rows))
        say(f"wrote {out}")
    return rows


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
