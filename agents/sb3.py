"""Stable-Baselines3 plays the vector environments through `as_vec_env`: a VecEnv over a SAME_STEP `MaskVectorEnv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError


class MaskVecEnv(VecEnv):
    """A `MaskVectorEnv` in Stable-Baselines3's clothes; made by `as_vec_env`.

    Each step's info holds the terms of what was judged, `TimeLimit.truncated`, and at the end of an episode
    `terminal_observation`; the infos of the next episode are in `reset_infos`, as SB3 has it.
    """

    def __init__(self, env: MaskVectorEnv) -> None:
        self.env = env
        self.render_mode = env.render_mode
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._actions: Any = None

    def reset(self) -> VecEnvObs:
        """(N, C, H, W) uint8. Seeds given by `seed()` are used once, slot by slot."""
        seeds = [s for s in self._seeds if s is not None]
        observation, info = self.env.reset(seed=seeds if len(seeds) == self.num_envs else None)
        self.reset_infos = [_slot(info, i) for i in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """(observations, rewards, dones, infos) of the kept actions."""
        observation, reward, terminated, truncated, info = self.env.step(self._actions)
        final, images = info.pop("final_info"), info.pop("final_obs")
        infos = []
        for i in range(self.num_envs):
            extra = {"TimeLimit.truncated": bool(truncated[i])}
            if terminated[i]:
                # Copied: a buffer may keep it while others write into the batch.
                infos.append({**_slot(final, i), "terminal_observation": images[i].copy(), **extra})
                self.reset_infos[i] = _slot(info, i)
            else:
                infos.append({**_slot(info, i), **extra})
        return observation, reward, terminated | truncated, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """One frame a slot."""
        frames = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The environment's attribute, once for each slot: all slots share it."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute for all slots; for some of them alone is an error, since they share it."""
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ConfigurationError("the slots share their attributes: set_attr works on all of them, indices=None")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the batched environment once; its result is given once for each index."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Never: a slot of a batch has no wrappers of its own."""
        return [False for _ in self._get_indices(indices)]


def as_vec_env(env: gym.vector.VectorEnv[Any, Any, Any]) -> MaskVecEnv:
    """Stable-Baselines3's view of a vector environment, for `PPO("CnnPolicy", …)`, `evaluate_policy` and the like.

    Args:
        env: from `gym.make_vec("MaskAug-…-v0", num_envs=N)`.
    """
    inner = env.unwrapped
    if not isinstance(inner, MaskVectorEnv):
        raise ConfigurationError(
            f"as_vec_env takes MaskAug's native vector environments, got {type(inner).__name__}; make one with "
            "gym.make_vec('MaskAug-…-v0', num_envs=N)"
        )
    if inner.autoreset_mode != AutoresetMode.SAME_STEP:
        raise ConfigurationError(
            f"Stable-Baselines3 resets in the same step, and this environment has autoreset_mode="
            f"{inner.autoreset_mode.name!r}; make it with 'SAME_STEP', the default"
        )
    return MaskVecEnv(inner)


def _slot(info: dict[str, Any], i: int) -> dict[str, Any]:
    return {
        name: value[i].item() if value.ndim == 1 else value[i].copy()
        for name, value in info.items()
        if not name.startswith("_")
    }
