"""What `maskaug bench throughput` measures: the rows of its presets, and those that axes make."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from maskaug.envs.acceleration import PRECISIONS
from maskaug.envs.actions import ACTIONS
from maskaug.envs.errors import ConfigurationError

#: how the judge's passes are computed beside their precision; "compiled" is channels last, too.
PASSES: dict[str, dict[str, Any]] = {
    "eager": {},
    "channels_last": {"channels_last": True},
    "compiled": {"channels_last": True, "compile": True},
}
#: classifiers that are played against.
JUDGES = ("small", "densenet169")
#: how single games are put side by side: in one batch (native), one after the other or each in a process (Gymnasium's
#: SyncVectorEnv and AsyncVectorEnv), or one after the other by Stable-Baselines3's DummyVecEnv.
VECTORIZATIONS = ("native", "sync", "async", "dummy")
#: rows of training steps against the passes that nobody can avoid, and of Stable-Baselines3's PPO against the judge.
AGENTS = ("apga", "apga_joint", "apga_published", "intelligent_masking", "intelligent_masking_published", "ppo")


@dataclasses.dataclass(frozen=True)
class Game:
    """One row: a game that is stepped; each attribute is an axis.

    Attributes:
        num_envs: N.
        image_size: pixels a side.
        judge: of `JUDGES`.
        precision: of its passes, fp32 or bf16.
        passes: of `PASSES`.
        tensors: torch in, torch out; native only.
        vectorization: of `VECTORIZATIONS`.
        action: grid, patch, pixel or box. APGA plays grids and pixels: other rows have no policy.
        repeat: tries on an image.
    """

    num_envs: int = 64
    image_size: int = 64
    judge: str = "small"
    precision: str = "fp32"
    passes: str = "eager"
    tensors: bool = False
    vectorization: str = "native"
    action: str = "grid"
    repeat: int = 1

    def __post_init__(self) -> None:
        for name in ("num_envs", "image_size", "repeat"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1")
        for name, known in (
            ("judge", JUDGES), ("precision", PRECISIONS), ("passes", tuple(PASSES)), ("action", ACTIONS),
            ("vectorization", VECTORIZATIONS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ConfigurationError(f"{name}={getattr(self, name)!r} is unknown; use one of {known}")
        if self.tensors and self.vectorization != "native":
            raise ConfigurationError(
                f"tensors=True goes with vectorization='native', not {self.vectorization!r}: single environments speak "
                "numpy; measure them in another call"
            )


@dataclasses.dataclass(frozen=True)
class ThroughputSettings:
    """What is measured.

    Attributes:
        games: rows of steps, with and without a policy and its training.
        agents: rows of `AGENTS`, each with its N.
        images: how many synthetic images are played.
        rounds: how often all sides of a row are measured in turn.
        steps: of the environment in a measurement; more where `repeat` is larger.
        device: "auto", "cpu", "cuda", …
    """

    games: Sequence[Game]
    agents: Sequence[tuple[str, int]] = ()
    images: int = 128
    rounds: int = 20
    steps: int = 2
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("images", "rounds", "steps"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1")
        for agent, count in self.agents:
            if agent not in AGENTS or count < 2:
                raise ConfigurationError(
                    f"agents has {agent!r} with N={count}; use some of {', '.join(AGENTS)}, with N of at least 2"
                )
        if not self.games and not self.agents:
            raise ConfigurationError("there is no row to measure: every axis needs a value")


_SMALL: dict[str, Any] = {"image_size": 40}
_PAPER: dict[str, Any] = {"judge": "densenet169", "image_size": 224}
_WAYS = (("fp32", "eager"), ("fp32", "channels_last"), ("bf16", "channels_last"), ("bf16", "compiled"))
PRESETS: dict[str, ThroughputSettings] = {
    "smoke": ThroughputSettings(
        (
            Game(4, **_SMALL), Game(4, action="patch", **_SMALL), Game(4, tensors=True, **_SMALL),
            *(Game(4, vectorization=name, **_SMALL) for name in VECTORIZATIONS[1:]),
        ),
        (("apga", 4), ("apga_joint", 4), ("intelligent_masking", 4), ("ppo", 4)), images=16, rounds=2,
    ),
    "cpu": ThroughputSettings(
        (
            Game(), Game(repeat=4), Game(action="patch"), Game(tensors=True), Game(16),
            Game(vectorization="sync"), Game(vectorization="dummy"), Game(16, vectorization="async"),
        ),
        (
            *((name, n) for name in ("apga", "apga_joint", "intelligent_masking", "intelligent_masking_published")
              for n in (32, 64)),
            ("ppo", 64),
        ),
    ),
    "paper": ThroughputSettings(
        tuple(
            Game(n, precision=precision, passes=passes, tensors=tensors, **_PAPER)
            for n in (64, 256, 1024) for precision, passes in _WAYS for tensors in (False, True)
        ),
        (("apga_published", 25),), images=512, rounds=10, steps=4, device="auto",
    ),
}  # fmt: skip


def settings_of(
    preset: str,
    axes: Mapping[str, Sequence[Any]],
    agents: Sequence[str] | None = None,
    rounds: int | None = None,
    device: str | None = None,
) -> ThroughputSettings:
    """A preset, or rows made of axes.

    Args:
        preset: of `PRESETS`.
        axes: names of `Game`'s attributes → values. Where there are any, the games are all their combinations, in place
            of the preset's; an axis that is not named is as in the preset's first game.
        agents: in place of the preset's agents, each with every `num_envs` of the axes, or with those that the preset
            has. Without axes but `num_envs` they alone are measured; with axes and without them no agent is.
        rounds: in place of the preset's.
        device: in place of the preset's.
    """
    if preset not in PRESETS:
        raise ConfigurationError(f"preset={preset!r} is unknown; use one of {tuple(PRESETS)}")
    base = PRESETS[preset]
    made: dict[str, Any] = {}
    if axes or agents is not None:
        alone = agents is not None and not set(axes) - {"num_envs"}
        combined = () if alone else itertools.product(*axes.values())
        made["games"] = tuple(
            dataclasses.replace(base.games[0], **dict(zip(axes, values, strict=True))) for values in combined
        )
        made["agents"] = tuple(
            (name, n) for name in agents or () for n in axes.get("num_envs") or _sizes(base, name)
        )  # fmt: skip
    for name, value in (("rounds", rounds), ("device", device)):
        if value is not None:
            made[name] = value
    return dataclasses.replace(base, **made)


def _sizes(settings: ThroughputSettings, agent: str) -> Sequence[int]:
    # That of the preset, of the paper, or of the preset's first game.
    own = [n for name, n in settings.agents if name == agent]
    return own or ([25] if agent == "apga_published" else [settings.games[0].num_envs])
