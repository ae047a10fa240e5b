"""Stable-Baselines3 beside our own agents on the two frozen games: `maskaug bench sb3`.

One seed = one draw of the data, one judge that is trained and frozen, and every arm against it with the same number of
judged masks. An arm is one of our agents, an algorithm as this package sets it up ("ppo"), or as Stable-Baselines3
does, with its NatureCNN and one environment ("ppo_default").
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import stable_baselines3
import torch

from maskaug.agents.agent import GridSpec
from maskaug.agents.apga import APGA
from maskaug.agents.heuristics import FixedMask, LocalVariance
from maskaug.agents.intelligent_masking import IntelligentMasking
from maskaug.agents.sb3 import as_vec_env
from maskaug.agents.sb3_agent import SB3Agent
from maskaug.agents.sb3_defaults import ALGORITHMS, DEFAULTS
from maskaug.benchmarks.intervals import paired_interval
from maskaug.benchmarks.masks import control_masks, retentions
from maskaug.benchmarks.regret import frozen_reconstructor, normalised_rewards
from maskaug.benchmarks.reports import all_scores
from maskaug.benchmarks.retention import frozen_classifier
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_json

#: game → its arms where none are named; the first is our own agent, against which the others are paired.
ARMS = {
    "reconstruction": ("intelligent_masking", "dqn", "ppo", "a2c", "dqn_default", "ppo_default", "a2c_default"),
    "classification": ("apga", "ppo", "a2c", "ppo_default"),
}
_PLAIN = "_default"


@dataclasses.dataclass(frozen=True)
class ComparisonSettings:
    """One setting of the benchmark; every field is written into its results.

    Attributes:
        game: "reconstruction" (patches, normalised reward) or "classification" (a quarter of the cells, retention).
        env_id: whose images.
        env: keywords of the environment.
        judge_updates: of the judge's training, before it is frozen.
        timesteps: masks that each arm has judged.
        arms: see `ARMS`.
        split: the held-out images that are scored.
    """

    game: str
    env_id: str
    env: Mapping[str, Any]
    judge_updates: int
    timesteps: int
    arms: Sequence[str]
    split: str = "test"

    def __post_init__(self) -> None:
        if self.game not in ARMS:
            raise ConfigurationError(f"game={self.game!r} is unknown; use one of {', '.join(ARMS)}")
        kind = "patch" if self.game == "reconstruction" else "grid"
        plain = [f"{name}{_PLAIN}" for name in ("ppo", "a2c", "dqn") if (name, kind) in DEFAULTS]
        known = [ARMS[self.game][0], *(name for name, other in DEFAULTS if other == kind), *plain]
        if unknown := [arm for arm in self.arms if arm not in known]:
            raise ConfigurationError(
                f"unknown arm {', '.join(unknown)} of the {self.game} game; use some of {', '.join(known)}"
            )
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise ConfigurationError("arms must name at least one, and none of them twice")


class PlainSB3:
    """An algorithm exactly as Stable-Baselines3 sets it up for images: NatureCNN, its defaults, one environment.

    Args:
        name: "ppo", "a2c" or "dqn".
        env: of one slot.
        seed: of everything that it draws.
    """

    def __init__(self, name: str, env: MaskVectorEnv, seed: int) -> None:
        rule = env.game.rule
        self.spec = GridSpec(env.dataset.shape, rule.grid, rule.cells, rule.patch_cells)
        self.model: Any = getattr(stable_baselines3, ALGORITHMS[name].title)(
            "CnnPolicy", as_vec_env(env), seed=seed, device="cpu", verbose=0
        )

    def predict(self, observation: npt.NDArray[np.uint8], deterministic: bool = False) -> tuple[Any, None]:
        """(N, C, H, W) uint8 → actions (N, …), and nothing."""
        return self.model.predict(observation, deterministic=deterministic)[0], None

    @torch.no_grad()
    def scores(self, observation: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(N, C, H, W) uint8 → (N, g, g) float32: the logits of the cells."""
        images, _ = self.model.policy.obs_to_tensor(observation)
        logits = self.model.policy.get_distribution(images).distribution.logits
        result: npt.NDArray[np.float32] = logits.reshape(-1, self.spec.grid, self.spec.grid).numpy()
        return result


def learn(arm: str, keywords: Mapping[str, Any], seed: int, timesteps: int) -> tuple[Any, float]:
    """(the arm after `timesteps` judged masks, CPU seconds of its learning)."""
    plain = arm.endswith(_PLAIN)
    name = arm.removesuffix(_PLAIN)
    n = 1 if plain else 32 if name not in ALGORITHMS else DEFAULTS[name, keywords["action"]]["num_envs"]
    # APGA compares several tries on one image; each of them counts.
    env = MaskVectorEnv(n, **{**keywords, "device": "cpu", **({"repeat": 4} if arm == "apga" else {})})
    agent: Any
    if plain:
        made = PlainSB3(name, env, seed)
        agent, teach = made, made.model.learn
    elif name in ALGORITHMS:
        agent = SB3Agent(env, algorithm=name, seed=seed, device="cpu")
        teach = agent.learn
    else:
        agent = (APGA if arm == "apga" else IntelligentMasking)(env, seed=seed, device="cpu")
        teach = agent.learn
    began = time.process_time()
    teach(timesteps)
    return agent, time.process_time() - began


def one_seed(settings: ComparisonSettings, seed: int) -> dict[str, float]:
    """Flat figures of one seed: "arm" → normalised reward or retention, "swapped.arm", "random", …, "cpu_s.arm"."""
    return (_reconstruction if settings.game == "reconstruction" else _classification)(settings, seed)


def _reconstruction(settings: ComparisonSettings, seed: int) -> dict[str, float]:
    keywords = frozen_reconstructor(settings.env_id, settings.env, settings.judge_updates, 2e-3, seed)
    learnt = {arm: learn(arm, keywords, seed, settings.timesteps) for arm in settings.arms}
    env = MaskVectorEnv(16, **keywords)
    rule = env.game.rule
    spec = GridSpec(env.dataset.shape, rule.grid, rule.cells, rule.patch_cells)
    fixed = {"local_variance": LocalVariance(spec), "centre": FixedMask.centre(spec)}
    maskers = {**{arm: agent for arm, (agent, _) in learnt.items()}, **fixed}
    found = normalised_rewards(env.evaluation(settings.split), maskers)
    return {
        **{name: found[f"{name}.normalised"] for name in maskers},
        **{f"cpu_s.{arm}": seconds for arm, (_, seconds) in learnt.items()},
    }


def _classification(settings: ComparisonSettings, seed: int) -> dict[str, float]:
    judged = frozen_classifier(settings.env_id, settings.env, settings.judge_updates, seed)
    figures: dict[str, float] = {}
    for arm in settings.arms:
        agent, seconds = learn(arm, judged.keywords, seed, settings.timesteps)
        masks = control_masks(all_scores(agent, judged.test), judged.test, judged.train, agent.spec, seed)
        kept = {name: float(values.mean()) for name, values in retentions(masks, judged.test).items()}
        figures |= {arm: kept.pop("agent"), f"swapped.{arm}": kept.pop("swapped"), **kept, f"cpu_s.{arm}": seconds}
    return figures


def comparison(
    settings: ComparisonSettings, seeds: int, out: Path | None = None, say: Callable[[str], None] = print
) -> dict[str, float]:
    """Mean and 95 % interval (Student's t over seeds) of every figure, and of each arm minus the first, by seed.

    Args:
        settings: what is run.
        seeds: how many, from 0.
        out: a JSON file to write.
        say: where lines for people go.
    """
    if seeds < 1:
        raise ConfigurationError(f"seeds={seeds} must be at least 1")
    rows = []
    for seed in range(seeds):
        rows.append(one_seed(settings, seed))
        say(f"seed {seed}: " + "  ".join(f"{k} {v:.3f}" for k, v in rows[-1].items()))
    first = settings.arms[0]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns |= {f"{arm} − {first}": [row[arm] - row[first] for row in rows] for arm in settings.arms[1:]}
    summary: dict[str, float] = {}
    what = "normalised reward" if settings.game == "reconstruction" else "share of the region kept"
    say(f"\n{what}, {settings.timesteps} masks, {seeds} seeds, {settings.split} split")
    say(f"{'':<54}{'mean':>8}   95 % interval")
    for name, values in columns.items():
        summary[f"{name}.mean"] = float(np.mean(values))
        low = high = float("nan")
        if seeds > 1:
            _, low, high = paired_interval(values)
            summary |= {f"{name}.low": low, f"{name}.high": high}
        say(f"{name:<54}{np.mean(values):>8.3f}   {low:.3f} … {high:.3f}")
    if out is not None:
        write_json(out, {"settings": dataclasses.asdict(settings), "summary": summary, "seeds": rows})
    return summary
