"""What `maskaug bench algorithms` runs: our agents and Stable-Baselines3's algorithms on two frozen games.

One seed = one draw of the data and one judge, trained on its training split and then frozen; every arm of that seed
plays against that judge. A run is looked at on held-out images before it begins, then after 64, 128, 256, … judged
masks, and at its end, by its greedy policy. What looking takes is not in its CPU seconds, which are those of one
thread.

* "reconstruction": one patch an image, a frozen reconstructor's error. All patches are judged, so that 0 is exactly
  what a random patch earns, and 1 what the best one does.
* "classification": a quarter of the cells hidden, the rise of a frozen classifier's loss. There are too many masks to
  try them all: 0 is the mean of ten random ones, and 1 what `greedy_search` finds with the label and 904 judged masks
  an image. That is a lower bound of the best, so that more than 1 is possible, and it is far from what an agent that
  sees the image alone can reach: much of it fools the judge outside the finding. A reward alone does not say that a
  mask lies where the finding is, so the share of the region that is kept stands beside it. Every arm's mask is the
  same number of its best cells, whatever area its policy would have chosen.

`APGA`, with either loss, and `EndToEnd` start from the frozen judge's own weights, which is most of what they know
after a few masks; "APGA, random start" does not, as the algorithms of Stable-Baselines3 do not.

What a step is: a judged mask. Of `Distilled`, which asks the frozen judge nothing, it is an image that one of its own
judges is trained on, or a map that its network learns from: half of its steps go into two judges. `EndToEnd` has a pass
backwards through the judge in each.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from maskaug.agents.sb3_defaults import ALGORITHMS
from maskaug.benchmarks.grid import Cell
from maskaug.envs.errors import ConfigurationError

#: the work of the two kinds of cells.
JUDGE_WORK, RUN_WORK = (f"maskaug.benchmarks.algorithm_runs:{name}" for name in ("judge_cell", "run_cell"))
#: what stands behind the name of an algorithm that is set up as Stable-Baselines3 does.
AS_SB3 = "_default"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to play.

    Attributes:
        title: in tables and legends.
        agent: a name of `maskaug.agents.masker.AGENTS`, an algorithm, or an algorithm and "_default": as
            Stable-Baselines3 sets it up, with its NatureCNN, its defaults and one environment.
        settings: the agent's.
        repeat: tries on each image.
    """

    title: str
    agent: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    repeat: int = 1

    @property
    def package(self) -> str | None:
        """The optional package that it needs."""
        row = ALGORITHMS.get(self.agent.removesuffix(AS_SB3))
        return "sb3_contrib" if row is not None and row.package == "sb3_contrib" else None


_SB3 = {name: Arm(row.title, name) for name, row in ALGORITHMS.items() if name != "sac"}  # SAC plays neither game
_PLAIN = {f"{name}{AS_SB3}": Arm(f"{name.upper()} as SB3 has it", f"{name}{AS_SB3}") for name in ("ppo", "a2c", "dqn")}
_DISCRETE = ("dqn", "qrdqn", "dqn_default")

#: game → its arms; the first is our own agent, against which the others are paired.
ARMS: dict[str, dict[str, Arm]] = {
    "reconstruction": {
        "intelligent_masking": Arm("Intelligent Masking", "IntelligentMasking"),
        # The paper's network has 32 pixels a cell, and these images have 8.
        "published": Arm(
            "Intelligent Masking, published", "IntelligentMasking", {"mode": "published", "network": "plain"}
        ),
        **_SB3,
        **_PLAIN,
    },
    "classification": {
        # Each of the four tries counts.
        "apga": Arm("APGA", "APGA", repeat=4),
        "apga_random": Arm("APGA, random start", "APGA", {"init": "random"}, repeat=4),
        "published": Arm("APGA, published loss", "APGA", {"loss": "published"}),
        "end_to_end": Arm("end-to-end", "EndToEnd"),
        "distilled": Arm("distilled", "Distilled", {"judges": 2}),
        **{name: arm for name, arm in {**_SB3, **_PLAIN}.items() if name not in _DISCRETE},
    },
}
#: those that run where none is named.
USUAL = {
    "reconstruction": ("intelligent_masking", "published", "dqn", "qrdqn", "ppo", "a2c", "trpo"),
    "classification": ("apga", "apga_random", "published", "end_to_end", "distilled", "ppo", "a2c", "trpo"),
}


@dataclasses.dataclass(frozen=True)
class Game:
    """One frozen game.

    Attributes:
        env: keywords of MaskAug-Synthetic-v0, the game's own among them.
        judge_updates: of the judge before it is frozen.
        timesteps: masks that each arm has judged.
        arms: names in `ARMS`.
    """

    env: Mapping[str, Any]
    judge_updates: int
    timesteps: int
    arms: Sequence[str]


@dataclasses.dataclass(frozen=True)
class AlgorithmSettings:
    """One setting of the benchmark.

    Attributes:
        games: by their names in `ARMS`.
        seeds: how many, from 0.
        first: judged masks before the first look; between looks they double.
        split: the held-out images that are scored.
        device: where judge, environment and agents live.
    """

    games: Mapping[str, Game]
    seeds: int
    first: int = 256
    split: str = "test"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.first < 1:
            raise ConfigurationError(f"seeds={self.seeds} and first={self.first} must be at least 1")
        if self.split not in ("val", "test"):
            raise ConfigurationError(f"split={self.split!r} is not held out; use test, or val while choosing")
        for name, game in self.games.items():
            if name not in ARMS:
                raise ConfigurationError(f"games={name!r} is unknown; use some of {', '.join(ARMS)}")
            if unknown := [arm for arm in game.arms if arm not in ARMS[name]]:
                raise ConfigurationError(
                    f"unknown arm {', '.join(unknown)} of the {name} game; use some of {', '.join(ARMS[name])}"
                )
            if not game.arms or len(set(game.arms)) < len(game.arms):
                raise ConfigurationError(f"arms of the {name} game must name at least one, and none of them twice")

    def cells(self) -> list[Cell]:
        """A judge for every game and seed, and every arm against it."""
        return [
            cell
            for name, game in self.games.items()
            for seed in range(self.seeds)
            for cell in [self._judge(name, game, seed), *(self._run(name, game, arm, seed) for arm in game.arms)]
        ]

    def _judge(self, name: str, game: Game, seed: int) -> Cell:
        return Cell(judge_name(name, seed), JUDGE_WORK, self._common(name, game, seed))

    def _run(self, name: str, game: Game, arm: str, seed: int) -> Cell:
        row = ARMS[name][arm]
        settings = dict(row.settings)
        if row.agent == "Distilled":
            settings["judge_updates"] = max(1, game.timesteps // 2 // (settings["judges"] * 32))
        config = {
            **self._common(name, game, seed), "agent": row.agent, "settings": settings, "repeat": row.repeat,
            "timesteps": game.timesteps, "first": self.first,
        }  # fmt: skip
        return Cell(run_name(name, arm, seed), RUN_WORK, config, (judge_name(name, seed),))

    def _common(self, name: str, game: Game, seed: int) -> dict[str, Any]:
        return {
            "game": name, "env_id": "MaskAug-Synthetic-v0", "env": dict(game.env), "judge_updates": game.judge_updates,
            "seed": seed, "split": self.split, "device": self.device,
        }  # fmt: skip


def judge_name(game: str, seed: int) -> str:
    """The name of the cell that trains a game's judge.

    >>> judge_name("classification", 3)
    'classification/seed-003/judge'
    """
    return run_name(game, "judge", seed)


def run_name(game: str, arm: str, seed: int) -> str:
    """The name of an arm's cell."""
    return f"{game}/seed-{seed:03d}/{arm}"


_PATCHES = {"kind": "ultrasound", "objective": "reconstruction", "action": "patch"}
_CELLS = {"kind": "radiograph", "objective": "adversarial", "action": "grid", "fill": "blur"}
_SMALL = {"n": 120, "image_size": 40, "grid": 5}
# Of the usual ones; TRPO takes as long as all others together.
_QUICK = {game: tuple(arm for arm in arms if arm != "trpo") for game, arms in USUAL.items()}

PRESETS: dict[str, AlgorithmSettings] = {
    # Whether everything runs: nothing is learnt in a thousand masks of forty pixels.
    "smoke": AlgorithmSettings(
        {
            "reconstruction": Game({**_PATCHES, **_SMALL}, 40, 1024, USUAL["reconstruction"]),
            "classification": Game({**_CELLS, **_SMALL}, 60, 1024, USUAL["classification"]),
        },
        seeds=2,
        first=128,
    ),
    "cpu": AlgorithmSettings(
        {
            "reconstruction": Game({**_PATCHES, "n": 3000}, 800, 8192, _QUICK["reconstruction"]),
            "classification": Game(_CELLS, 1500, 8192, _QUICK["classification"]),
        },
        seeds=5,
        first=64,
    ),
    "paper": AlgorithmSettings(
        {
            "reconstruction": Game({**_PATCHES, "n": 3000}, 3000, 65_536, tuple(ARMS["reconstruction"])),
            "classification": Game({**_CELLS, "n": 3000}, 3000, 65_536, tuple(ARMS["classification"])),
        },
        seeds=20,
        first=64,
        device="auto",
    ),
}  # fmt: skip


def settings_of(
    preset: str,
    *,
    seeds: int | None = None,
    games: Sequence[str] | None = None,
    arms: Sequence[str] | None = None,
    split: str | None = None,
) -> tuple[AlgorithmSettings, tuple[str, ...]]:
    """(a preset with what was given over it, the arms that are left out since a package is not installed).

    Args:
        preset: a key of `PRESETS`.
        seeds: how many, from 0.
        games: which; all.
        arms: which, in the games that have them; one that was named and cannot run is an error.
        split: the images that are scored.
    """
    if preset not in PRESETS:
        raise ConfigurationError(f"preset={preset!r} is unknown; use one of {', '.join(PRESETS)}")
    base = PRESETS[preset]
    if (games is not None and (unknown := [name for name in games if name not in ARMS])) or games == ():
        raise ConfigurationError(f"games={unknown or 'none'} are unknown; use some of {', '.join(ARMS)}")
    chosen = {name: game for name, game in base.games.items() if games is None or name in games}
    missing: tuple[str, ...] = ()
    if arms is not None:
        every = {arm: row for name in chosen for arm, row in ARMS[name].items()}
        if not arms or (unknown := [arm for arm in arms if arm not in every]):
            raise ConfigurationError(f"arms={unknown if arms else 'none'} are unknown; use some of {', '.join(every)}")
        if lacking := _lacking(every, arms):
            raise ConfigurationError(
                f"{', '.join(lacking)}: sb3-contrib is not installed; pip install 'maskaug[contrib]', or leave them out"
            )
        chosen = {
            name: dataclasses.replace(game, arms=tuple(arm for arm in arms if arm in ARMS[name]))
            for name, game in chosen.items()
            if games is not None or any(arm in ARMS[name] for arm in arms)
        }
    else:
        missing = tuple(dict.fromkeys(arm for name, game in chosen.items() for arm in _lacking(ARMS[name], game.arms)))
        chosen = {
            name: dataclasses.replace(game, arms=tuple(arm for arm in game.arms if arm not in missing))
            for name, game in chosen.items()
        }
    given = {"seeds": seeds, "split": split}
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(base, games=chosen, **changed), missing


def _lacking(rows: Mapping[str, Arm], arms: Sequence[str]) -> list[str]:
    needed = {arm: rows[arm].package for arm in arms}
    return [arm for arm, package in needed.items() if package and importlib.util.find_spec(package) is None]
