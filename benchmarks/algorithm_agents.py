"""The agents that `maskaug bench algorithms` compares, behind one face: predict, scores, learn with a callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import stable_baselines3
import torch
from stable_baselines3.common.callbacks import BaseCallback

from maskaug.agents.agent import GridSpec
from maskaug.agents.masker import AGENTS
from maskaug.agents.sb3 import as_vec_env
from maskaug.agents.sb3_agent import SB3Agent
from maskaug.agents.sb3_defaults import ALGORITHMS, DEFAULTS
from maskaug.benchmarks.algorithms import AS_SB3
from maskaug.envs.environment import MaskVectorEnv

#: images a batch of our own agents; Stable-Baselines3's have the table's, and one as SB3 has them.
NUM_ENVS = 32


class PlainSB3:
    """An algorithm exactly as Stable-Baselines3 sets it up for images: NatureCNN, its defaults, one environment.

    Args:
        name: "ppo", "a2c" or "dqn".
        env: of one slot.
        seed: of everything that it draws.
        device: where the policy lives.
    """

    def __init__(self, name: str, env: MaskVectorEnv, seed: int, device: str = "cpu") -> None:
        rule = env.game.rule
        self.spec = GridSpec(env.dataset.shape, rule.grid, rule.cells, rule.patch_cells)
        self.model: Any = getattr(stable_baselines3, ALGORITHMS[name].title)(
            "CnnPolicy", as_vec_env(env), seed=seed, device=device, verbose=0
        )

    @property
    def num_timesteps(self) -> int:
        """Judged masks."""
        return int(self.model.num_timesteps)

    def learn(self, total_timesteps: int, callback: Callable[..., object] | None = None) -> PlainSB3:
        """Learn from so many masks, or as many more as fill a rollout; `callback(self, {})` after every update."""
        self.model.learn(total_timesteps, None if callback is None else _Tell(self, callback))
        return self

    def predict(self, observation: npt.NDArray[np.uint8], deterministic: bool = False) -> tuple[Any, None]:
        """(N, C, H, W) uint8 → actions (N, …), and nothing."""
        return self.model.predict(observation, deterministic=deterministic)[0], None

    @torch.no_grad()
    def scores(self, observation: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(N, C, H, W) uint8 → (N, g, g) float32: the logits of the cells."""
        images, _ = self.model.policy.obs_to_tensor(observation)
        logits = self.model.policy.get_distribution(images).distribution.logits
        result: npt.NDArray[np.float32] = logits.reshape(-1, self.spec.grid, self.spec.grid).cpu().numpy()
        return result


class _Tell(BaseCallback):
    """Calls back between an update and the next rollout, and at the end."""

    def __init__(self, agent: PlainSB3, callback: Callable[..., object]) -> None:
        super().__init__()
        self._agent, self._callback = agent, callback

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self._callback(self._agent, {})

    def _on_training_end(self) -> None:
        self._callback(self._agent, {})


def make_agent(
    name: str, keywords: Mapping[str, Any], settings: Mapping[str, Any], repeat: int, seed: int, device: str
) -> Any:
    """An agent of `maskaug.benchmarks.algorithms.Arm.agent` in its own environment.

    Args:
        name: see there.
        keywords: of the environment, a frozen judge among them.
        settings: the agent's.
        repeat: tries on each image.
        seed: of everything that it draws.
        device: where it lives.
    """
    plain, known = name.endswith(AS_SB3), name in ALGORITHMS
    n = 1 if plain else DEFAULTS[name, keywords["action"]]["num_envs"] if known else NUM_ENVS
    env = MaskVectorEnv(n, **{**keywords, "device": device, "repeat": repeat})
    if plain:
        return PlainSB3(name.removesuffix(AS_SB3), env, seed, device)
    if known:
        return SB3Agent(env, algorithm=name, seed=seed, device=device, **settings)
    return AGENTS[name](env, seed=seed, device=device, **settings)
