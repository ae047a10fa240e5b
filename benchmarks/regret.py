"""Intelligent Masking as an RL problem: how near a Q-map comes to the best patch. `maskaug bench regret`.

One seed = one draw of synthetic images, one reconstructor pre-trained on random patches and frozen, one agent against
it. Every patch of every held-out image is judged, so that the best and the mean reward are known exactly.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.agents.heuristics import FixedMask, LocalVariance
from maskaug.agents.intelligent_masking import IntelligentMasking
from maskaug.benchmarks.intervals import paired_interval
from maskaug.benchmarks.training import env_keywords
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_json
from maskaug.envs.judges import make_judge
from maskaug.envs.networks import at_once


@dataclasses.dataclass(frozen=True)
class RegretSettings:
    """One setting of the benchmark; every field is written into its results.

    Attributes:
        env_id: whose images.
        env: keywords of the environment.
        judge_updates: of the reconstructor on random patches, 32 images each, before it is frozen.
        judge_lr: of its Adam.
        timesteps: patches that the agent has judged.
        num_envs: images a batch.
        split: the held-out images that are scored.
        agent: the agent's settings.
    """

    env_id: str = "MaskAug-Synthetic-v0"
    env: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"kind": "ultrasound", "n": 3000})
    judge_updates: int = 800
    judge_lr: float = 2e-3
    timesteps: int = 8192
    num_envs: int = 32
    split: str = "test"
    agent: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def frozen_reconstructor(
    env_id: str, env: Mapping[str, Any], judge_updates: int, judge_lr: float, seed: int
) -> dict[str, Any]:
    """Keywords of the patch game against a reconstructor that has learnt from random patches and is frozen now."""
    play = {**env_keywords(env_id, env), "objective": "reconstruction", "action": "patch"}
    keywords = {**play, "seed": seed}
    judge = make_judge("small", keywords.get("channels", 1), None, seed)
    school = MaskVectorEnv(32, **{**keywords, "reward_model": judge, "judge_lr": judge_lr})
    school.reset(seed=seed)
    school.action_space.seed(seed)
    for _ in range(judge_updates):
        school.step(school.action_space.sample())
    return {**keywords, "reward_model": judge, "joint": False}


def normalised_rewards(held_out: MaskVectorEnv, maskers: Mapping[str, Any]) -> dict[str, float]:
    """How near each masker comes to the best patch.

    Args:
        held_out: an evaluation environment, action="patch".
        maskers: name → whatever has `predict`.

    Returns:
        "random" and "oracle", the mean and the best reward of all patches; of each masker "….reward" and
        "….normalised", (achieved − random) ÷ (oracle − random).
    """
    every = held_out.game.action_rewards(np.arange(len(held_out.dataset)))
    random, oracle = float(every.mean()), float(every.max(1).mean())
    result = {"random": random, "oracle": oracle}
    for name, masker in maskers.items():
        reward = achieved(every, chosen_patches(held_out.dataset, masker))
        result[f"{name}.reward"] = reward
        result[f"{name}.normalised"] = (reward - random) / (oracle - random)
    return result


def chosen_patches(dataset: ImageDataset, masker: Any) -> npt.NDArray[np.int64]:
    """(M,) the number of the patch that whatever has `predict` chooses on each image."""
    images, chunk = dataset.images, at_once(*dataset.shape[1:])
    parts = [
        masker.predict(np.array(images[first : first + chunk]), deterministic=True)[0]
        for first in range(0, len(images), chunk)
    ]
    return np.concatenate(parts)


def achieved(every: npt.NDArray[np.float32], chosen: npt.NDArray[np.int64]) -> float:
    """The mean reward of chosen patches (M,), of the rewards of all of them (M, A).

    >>> achieved(np.array([[1.0, 2.0], [3.0, 5.0]], np.float32), np.array([1, 0]))
    2.5
    """
    return float(every[np.arange(len(every)), chosen].mean())


def one_seed(settings: RegretSettings, seed: int) -> dict[str, float]:
    """Flat figures of one seed; "….normalised" is (achieved − random) ÷ (oracle − random) reward."""
    keywords = frozen_reconstructor(settings.env_id, settings.env, settings.judge_updates, settings.judge_lr, seed)
    env = MaskVectorEnv(settings.num_envs, **keywords)
    agent = IntelligentMasking(env, seed=seed, **settings.agent)
    began = time.process_time()
    agent.learn(settings.timesteps)
    seconds = time.process_time() - began
    maskers = {"agent": agent, "local_variance": LocalVariance(agent.spec), "centre": FixedMask.centre(agent.spec)}
    result = {"cpu_s": seconds, "steps_per_cpu_s": agent.num_timesteps / seconds}
    return {**result, **normalised_rewards(env.evaluation(settings.split), maskers)}


def regret(
    settings: RegretSettings, seeds: int, out: Path | None = None, say: Callable[[str], None] = print
) -> dict[str, float]:
    """Every figure's mean and 95 % interval (Student's t) over seeds.

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
    summary: dict[str, float] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        summary[f"{name}.mean"] = float(np.mean(values))
        if seeds > 1:
            _, summary[f"{name}.low"], summary[f"{name}.high"] = paired_interval(values)
    say(f"\n{'(achieved − random) ÷ (oracle − random), ' + settings.split + ' split':<52}{'mean':>8}   95 % interval")
    for name in ("agent", "local_variance", "centre"):
        low, high = (summary.get(f"{name}.normalised.{end}", float("nan")) for end in ("low", "high"))
        say(f"{name:<52}{summary[name + '.normalised.mean']:>8.3f}   {low:.3f} … {high:.3f}")
    if out is not None:
        write_json(out, {"settings": dataclasses.asdict(settings), "summary": summary, "seeds": rows})
    return summary
