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
from maskaug.envs.masking import patch_scores


class MaskVecEnv(VecEnv):
    """A `MaskVectorEnv` in Stable-Baselines3's clothes; made by `as_vec_env`.

    Each step's info holds the terms of what was judged, `TimeLimit.truncated`, which is always False, and at the end of
    an episode `terminal_observation`; the infos of the next episode are in `reset_infos`, as SB3 has it. `VecMonitor`
    and `VecNormalize(norm_obs=False)` go on top.

    Args:
        env: the environment, perhaps inside Gymnasium's vector wrappers.
        inner: what is inside.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], inner: MaskVectorEnv) -> None:
        self.env, self.inner = env, inner
        self.render_mode = inner.render_mode
        super().__init__(inner.num_envs, inner.single_observation_space, inner.single_action_space)
        self._actions: Any = None

    def reset(self) -> VecEnvObs:
        """(N, C, H, W) uint8. Seeds given by `seed()` are used once, slot by slot."""
        seeds = [s for s in self._seeds if s is not None]
        observation, info = self.env.reset(seed=seeds if len(seeds) == self.num_envs else None)  # type: ignore[arg-type]
        self.reset_infos = _slots(info, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observation  # type: ignore[no-any-return]

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Nothing, of nothing: these environments have no options that an SB3 reset of all slots could use."""
        if any(options) if isinstance(options, list) else options:
            raise ConfigurationError(
                f"options={options!r} would do nothing: all slots are reset together here; give keywords to "
                "gym.make_vec, or reset single slots of the native environment by options={'reset_mask': …}"
            )
        super().set_options(options)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """(observations, rewards, dones, infos) of the kept actions."""
        observation, reward, terminated, truncated, info = self.env.step(self._actions)
        final, images = info.pop("final_info"), info.pop("final_obs")
        # What a wrapper adds describes the episode that ends, an environment's own infos the one that begins.
        added = {name: value for name, value in info.items() if name not in final}
        n, cut = self.num_envs, truncated.tolist()
        infos = _slots({**final, **added}, n)
        begun = _slots({name: info[name] for name in final}, n)
        running = infos if terminated.all() else _slots(info, n)
        for i, ended in enumerate(terminated.tolist()):
            if ended:
                # Copied: a buffer may keep it while others write into the batch.
                infos[i]["terminal_observation"] = images[i].copy()
                self.reset_infos[i] = begun[i]
            else:
                infos[i] = running[i]
            infos[i]["TimeLimit.truncated"] = cut[i]
        return observation, reward, terminated | truncated, infos

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Which actions MaskablePPO may choose, (N, A) bool: those that select something new.

        With steps=1 all of them. Else not the cells that are selected already, and not the patches that lie within
        them, unless these are all. Of a grid two numbers a cell, off and on. There are none for pixels and boxes.
        """
        rule = self.inner.game.rule
        if rule.kind not in ("grid", "patch"):
            raise ConfigurationError(f"action={rule.kind!r} has no masks of actions; they go with 'grid' and 'patch'")
        selected = self.inner.game.selected.cpu()
        if rule.kind == "grid":
            may = ~selected.flatten(1).numpy()
            return np.stack([np.ones_like(may), may], 2).reshape(self.num_envs, -1)
        may = (patch_scores(selected.float(), rule.patch_cells) < 1).numpy()
        result: npt.NDArray[np.bool_] = may | ~may.any(1, keepdims=True)
        return result

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """One frame a slot."""
        frames = self.inner.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The environment's attribute, once for each slot: all slots share it."""
        owner = self if attr_name == "action_masks" else self.inner
        return [getattr(owner, attr_name) for _ in self._get_indices(indices)]

    def has_attr(self, attr_name: str) -> bool:
        """Whether `get_attr` has it. Only grids and patches have `action_masks`."""
        if attr_name == "action_masks":
            return self.inner.game.rule.kind in ("grid", "patch")
        return hasattr(self.inner, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute for all slots; for some of them alone is an error, since they share it."""
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ConfigurationError("the slots share their attributes: set_attr works on all of them, indices=None")
        setattr(self.inner, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the batched environment once; its result is given once for each index.

        What `action_masks` and `render` give is one row a slot, and each index gets its own.
        """
        if method_name in ("action_masks", "render"):
            rows = self.action_masks() if method_name == "action_masks" else self.get_images()
            return [rows[i] for i in self._get_indices(indices)]
        result = getattr(self.inner, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Never: a slot of a batch has no wrappers of its own."""
        return [False for _ in self._get_indices(indices)]


def as_vec_env(env: gym.vector.VectorEnv[Any, Any, Any]) -> MaskVecEnv:
    """Stable-Baselines3's view of a vector environment, for `PPO("CnnPolicy", …)`, `evaluate_policy` and the like.

    Args:
        env: from `gym.make_vec("MaskAug-…-v0", num_envs=N)`, or that inside vector wrappers that leave its spaces as
            they are, for example `RecordEpisodeStatistics` or one that changes rewards.
    """
    inner = getattr(env, "unwrapped", env)
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
    if inner.game.tensors:
        raise ConfigurationError(
            "Stable-Baselines3 keeps its rollouts as numpy arrays, and this environment plays with tensors; make it "
            "without tensors=True"
        )
    spaces = (env.single_observation_space, env.single_action_space)
    if spaces != (inner.single_observation_space, inner.single_action_space):
        raise ConfigurationError(
            f"a wrapper has changed the spaces to {spaces[0]} and {spaces[1]}, which neither the images that end an "
            "episode nor the masks of actions would follow; leave it out, and wrap what as_vec_env returns"
        )
    return MaskVecEnv(env, inner)


def _slots(info: dict[str, Any], n: int) -> list[dict[str, Any]]:
    # A batch's infos as one dict for each of its n slots; column by column, as there are far fewer of them.
    columns = {
        name: _slots(value, n) if isinstance(value, dict) else value.tolist() if value.ndim == 1 else list(value.copy())
        for name, value in info.items()
        if not name.startswith("_")
    }
    if not columns:
        return [{} for _ in range(n)]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
