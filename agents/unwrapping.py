"""From what a user hands over to the batched environment inside; wrappers that an agent would drop are refused."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium import wrappers
from gymnasium.wrappers import vector

from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError

# Exactly these: a subclass may change what it records. The first two are `gym.make`'s own.
_CHANGE_NOTHING = (
    wrappers.PassiveEnvChecker, wrappers.OrderEnforcing, wrappers.RecordEpisodeStatistics, wrappers.RecordVideo,
    wrappers.RenderCollection, wrappers.HumanRendering, vector.RecordEpisodeStatistics, vector.RecordVideo,
    vector.HumanRendering,
)  # fmt: skip


def native_env_of(env: Any) -> MaskVectorEnv:
    """The batched environment behind `env`, a `MaskVectorEnv` or `MaskEnv`, wrapped or not."""
    inner = env.unwrapped if hasattr(env, "unwrapped") else env
    if isinstance(inner, MaskEnv):
        return MaskVectorEnv.over(inner.game)
    if not isinstance(inner, MaskVectorEnv):
        raise ConfigurationError(
            f"this agent learns on MaskAug's own environments, got {type(inner).__name__}; make one with "
            "gym.make_vec('MaskAug-…-v0', num_envs=N)"
        )
    return inner


def vector_env_of(env: Any) -> MaskVectorEnv:
    """As `native_env_of`, for an agent, which plays what is inside: its game knows more than Gymnasium's interface.

    Raises:
        ConfigurationError: a wrapper may change rewards, observations, actions or ends, which the agent would not see.
            Those that only record or show are played past: they record nothing.
    """
    inner = native_env_of(env)
    while isinstance(env, gym.Wrapper | gym.vector.VectorWrapper):
        if type(env) not in _CHANGE_NOTHING:
            raise ConfigurationError(
                f"this agent plays the environment inside {type(env).__name__}, so what that changes would be lost; "
                "take it off and give reward_terms= for a reward of your own, or play Stable-Baselines3 itself on "
                "as_vec_env(env), which keeps it"
            )
        env = env.env
    return inner
