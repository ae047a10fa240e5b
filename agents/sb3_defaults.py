"""How Stable-Baselines3's algorithms are set up here: one table, by algorithm and kind of action.

An algorithm plays the kinds that the table has a row for, and has the settings of its row. Measured on the frozen
reconstruction game (patch, 8 192 masks, normalised reward, two seeds): PPO .82 and DQN .87, against .54 of DQN as SB3
has it. The rest was looked at on the small games of the tests, one or two seeds each: PPO, A2C and MaskablePPO learn
grids, PPO, A2C and SAC boxes. Pixels PPO learnt only with one pass over short rollouts, which makes it A2C, probably
because the ratios of a thousand independent pixels leave every clipping after one step; SAC had
learnt nothing there in 4 096 masks. TRPO's rows are untested beyond that they run, and it takes seconds an update.

The discount is not in the table. Where an episode is one mask nothing follows from what was chosen: gamma is 0, and
would change nothing, since no algorithm looks beyond the end of an episode. With `steps` it is 1, since rewards are
increments that add up to what all masks of the episode are worth.

Memory. Rollouts and replay hold images as uint8: n_steps · num_envs · C·H·W bytes (and 4·H·W of each action of
action="pixel"), 2 MB for PPO's 32 × 16 images of 64×64 pixels and 26 MB of 224×224, where SB3's own 2 048 steps of 16
environments would be 1.6 GB; replay 34 MB and 411 MB, once and not twice, since the image that follows a mask is that
of the next row, and no target looks at it where an episode ends.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from maskaug.agents.sb3 import MaskVecEnv
from maskaug.agents.sb3_policies import CellFeatures
from maskaug.agents.unwrapping import native_env_of
from maskaug.envs.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """Where an algorithm lies, and what is the same for all its actions.

    Attributes:
        title: its name, and that of its class.
        package: stable_baselines3 or sb3_contrib.
        policy: module:class of its policy.
        fixed: keywords that nobody chooses.
        policy_keywords: those of its policy.
        feature_keywords: those of its `CellFeatures`.
        width: channels of its network's first stage. PPO learns as well with half of them (.81 against .82), and
            collects its masks half as fast again.
    """

    title: str
    package: str
    policy: str
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    policy_keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    feature_keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    width: int = 16


_OURS, _CONTRIB = "maskaug.agents.sb3_policies", "maskaug.agents.sb3_contrib_policies"
# SB3 starts its layers orthogonal, which would undo the read-out and the first shares.
_ACTOR = {"ortho_init": False}
# No episode here is cut short, so that what SB3 warns of cannot happen.
_REPLAY = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm("PPO", "stable_baselines3", f"{_OURS}:CellPolicy", {}, _ACTOR, width=8),
    "a2c": Algorithm(
        "A2C", "stable_baselines3", f"{_OURS}:CellPolicy", {"use_rms_prop": False, "normalize_advantage": True}, _ACTOR
    ),
    "dqn": Algorithm(
        "DQN", "stable_baselines3", f"{_OURS}:CellDQNPolicy", {**_REPLAY, "target_update_interval": 1024}
    ),
    "sac": Algorithm("SAC", "stable_baselines3", f"{_OURS}:CellSACPolicy", _REPLAY),
    "trpo": Algorithm(
        "TRPO", "sb3_contrib", f"{_OURS}:CellPolicy", {"cg_max_steps": 5}, _ACTOR, {"channels_last": False}
    ),
    "qrdqn": Algorithm(
        "QRDQN", "sb3_contrib", f"{_CONTRIB}:CellQRDQNPolicy", {**_REPLAY, "target_update_interval": 1024},
        {"n_quantiles": 25},
    ),
    "maskableppo": Algorithm("MaskablePPO", "sb3_contrib", f"{_CONTRIB}:CellMaskablePolicy", {}, _ACTOR),
    "recurrentppo": Algorithm(
        "RecurrentPPO", "sb3_contrib", f"{_CONTRIB}:CellRecurrentPolicy", {}, {**_ACTOR, "lstm_hidden_size": 64}
    ),
}  # fmt: skip

_PPO = {
    "num_envs": 16, "n_steps": 32, "batch_size": 128, "n_epochs": 8, "learning_rate": 1.5e-3, "ent_coef": 0.0,
    "clip_range": 0.2,
}  # fmt: skip
_PIXEL = {**_PPO, "n_steps": 8, "n_epochs": 1, "learning_rate": 3e-4}
_A2C = {"num_envs": 16, "n_steps": 8, "learning_rate": 1.5e-3, "ent_coef": 0.0}
_TRPO = {"num_envs": 16, "n_steps": 32, "batch_size": 128, "target_kl": 0.02, "learning_rate": 1.5e-3}
_OFF_POLICY = {
    "num_envs": 8, "buffer_size": 8192, "learning_starts": 256, "batch_size": 64, "train_freq": 4, "gradient_steps": 8,
    "learning_rate": 2e-3,
}  # fmt: skip
_DQN = {
    **_OFF_POLICY, "exploration_initial_eps": 1.0, "exploration_final_eps": 0.2, "exploration_fraction": 0.7,
}  # fmt: skip
_SAC = {**_OFF_POLICY, "learning_rate": 1e-3, "train_freq": 1, "gradient_steps": 2}

#: (algorithm, kind of action) → num_envs, and the settings that the algorithm has, with their defaults.
DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("ppo", "patch"): _PPO,
    # A mask of cells has many parts that are right or wrong together: several passes over a rollout, as patches like
    # them, follow its noise (a frozen classifier, 20 000 masks, validation: .45 of the region kept, against .83).
    ("ppo", "grid"): {**_PPO, "n_steps": 8, "n_epochs": 1},
    ("ppo", "pixel"): _PIXEL,
    ("ppo", "box"): _PPO,
    ("a2c", "patch"): _A2C,
    ("a2c", "grid"): _A2C,
    ("a2c", "pixel"): {**_A2C, "learning_rate": 3e-4},
    ("a2c", "box"): _A2C,
    ("trpo", "patch"): _TRPO,
    ("trpo", "grid"): _TRPO,
    ("trpo", "pixel"): _TRPO,
    ("trpo", "box"): _TRPO,
    ("recurrentppo", "patch"): _PPO,
    ("recurrentppo", "grid"): _PPO,
    ("recurrentppo", "pixel"): _PIXEL,
    ("recurrentppo", "box"): _PPO,
    ("maskableppo", "patch"): _PPO,
    ("maskableppo", "grid"): _PPO,
    ("dqn", "patch"): _DQN,
    ("qrdqn", "patch"): _DQN,
    ("sac", "box"): _SAC,
    ("sac", "pixel"): {**_SAC, "buffer_size": 2048},
}


#: names of `maskaug train` that are accepted wherever an algorithm is named.
SPELLINGS = {"maskable-ppo": "maskableppo", "recurrent-ppo": "recurrentppo"}


def named(algorithm: str) -> str:
    """The key of `ALGORITHMS`, of either spelling, or an error that lists them."""
    key = SPELLINGS.get(algorithm, algorithm)
    find(key)
    return key


def find(algorithm: str) -> Algorithm:
    """The row of `ALGORITHMS`, or an error that lists them."""
    if algorithm not in ALGORITHMS:
        raise ConfigurationError(f"algorithm={algorithm!r} is unknown; use one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[algorithm]


def kinds_of(algorithm: str) -> tuple[str, ...]:
    """The kinds of action that an algorithm plays."""
    find(algorithm)
    return tuple(kind for name, kind in DEFAULTS if name == algorithm)


def defaults_for(algorithm: str, kind: str) -> dict[str, Any]:
    """The row of `DEFAULTS`; an error that names who plays that action, and what the algorithm plays."""
    title = find(algorithm).title
    if (algorithm, kind) not in DEFAULTS:
        others = ", ".join(name for name, other in DEFAULTS if other == kind)
        raise ConfigurationError(
            f"{title} does not play action={kind!r}, which is for {others}; choose one of these, or make the "
            f"environment with action={' or '.join(map(repr, kinds_of(algorithm)))}"
        )
    return dict(DEFAULTS[algorithm, kind])


def load_class(algorithm: str) -> Any:
    """The algorithm's class; an error with the pip command where sb3-contrib is not installed."""
    row = find(algorithm)
    try:
        return getattr(importlib.import_module(row.package), row.title)
    except ModuleNotFoundError as error:
        if error.name != "sb3_contrib":
            raise
        raise ConfigurationError(
            f"{row.title} is part of sb3-contrib, which is not installed; pip install 'maskaug[contrib]'"
        ) from None


def policy_of(algorithm: str) -> Any:
    """The class of the algorithm's policy."""
    load_class(algorithm)
    module, name = find(algorithm).policy.split(":")
    return getattr(importlib.import_module(module), name)


def policy_keywords(algorithm: str, kind: str, grid: int, patch_cells: int, area: float, width: int) -> dict[str, Any]:
    """`policy_kwargs` for `policy_of`; see `CellFeatures` for the arguments."""
    return {
        "features_extractor_class": CellFeatures,
        "features_extractor_kwargs": {
            "kind": kind, "grid": grid, "patch_cells": patch_cells, "area": area, "width": width,
            **find(algorithm).feature_keywords,
        },
        # A box is a function of the whole map; everything else is read from its own place.
        "net_arch": [64, 64] if kind == "box" else (_critic() if algorithm == "sac" else []),
        **find(algorithm).policy_keywords,
    }  # fmt: skip


def _critic() -> dict[str, list[int]]:
    return {"pi": [], "qf": [64, 64]}


def keywords(
    algorithm: str, env: Any, width: int | None = None, grid: int | None = None, **settings: Any
) -> dict[str, Any]:
    """All keywords of an algorithm's class for `env`, for those who use Stable-Baselines3 themselves.

    ``PPO(env=as_vec_env(env), **keywords("ppo", env))``. An `SB3Agent` does no more than that.

    Args:
        algorithm: a key of `ALGORITHMS` or of `SPELLINGS`.
        env: a native vector environment, or what `as_vec_env` made of it, wrapped or not: for its kind of action, its
            grid, its number of slots and of steps.
        width: channels of the network's first stage; None takes the algorithm's.
        grid: cells along each side of its map; None takes the environment's.
        settings: any of the row's, in place of the table's; and gamma.
    """
    algorithm = named(algorithm)
    innermost = getattr(env, "unwrapped", env)
    inner = innermost.inner if isinstance(innermost, MaskVecEnv) else native_env_of(env)
    rule = inner.game.rule
    row = find(algorithm)
    chosen = resolve(algorithm, rule.kind, inner.num_envs, inner.game.steps, settings)
    made = policy_keywords(algorithm, rule.kind, grid or rule.grid, rule.patch_cells, rule.area, width or row.width)
    return {"policy": policy_of(algorithm), "policy_kwargs": made, **row.fixed, **chosen}


def resolve(algorithm: str, kind: str, num_envs: int, steps: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an algorithm: the given ones, and the table's for the rest.

    Where none is given, `batch_size` of the algorithms that learn from whole rollouts is the largest
    number up to the table's that divides a rollout of n_steps · num_envs.
    """
    row = defaults_for(algorithm, kind)
    del row["num_envs"]
    known = {**row, "gamma": 0.0 if steps == 1 else 1.0}
    title = find(algorithm).title
    if unknown := sorted(set(settings) - set(known)):
        raise ConfigurationError(f"{title} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    if steps == 1 and settings.get("gamma", 0.0):
        raise ConfigurationError(
            f"gamma={settings['gamma']} does nothing where an episode is one mask (steps=1); leave it out"
        )
    chosen = {**known, **settings}
    if "n_steps" in chosen:
        rollout = chosen["n_steps"] * num_envs
        if rollout < 2:
            raise ConfigurationError(f"{title} needs rollouts of at least 2 masks: more num_envs, or n_steps above 1")
        if "batch_size" in chosen:
            if "batch_size" not in settings:
                parts = [n for n in range(2, min(chosen["batch_size"], rollout) + 1) if rollout % n == 0]
                chosen["batch_size"] = parts[-1] if parts else rollout
            if chosen["batch_size"] < 2 or rollout % chosen["batch_size"]:
                raise ConfigurationError(
                    f"batch_size={chosen['batch_size']} must be at least 2 and divide a rollout of n_steps × num_envs "
                    f"= {chosen['n_steps']} × {num_envs} = {rollout} masks; choose one that does"
                )
    if chosen.get("buffer_size", 2 * num_envs) < 2 * num_envs:
        raise ConfigurationError(
            f"buffer_size={chosen['buffer_size']} must hold two masks of each of the {num_envs} environments"
        )
    return chosen
