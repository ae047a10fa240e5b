"""`check_vector_env` raises no false alarm on Gymnasium's own batches, in any autoreset mode."""

from typing import Any

import gymnasium as gym
import pytest
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode

from maskaug.envs import check_vector_env


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_gymnasiums_own_vector_environments_pass(env_id: str, mode: AutoresetMode) -> None:
    def make(n: int) -> Any:
        return gym.make_vec(env_id, n, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})

    check_vector_env(make(3), make=make, steps=40)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("seed", [3, 4])
def test_few_steps_that_end_or_not_raise_no_false_alarm(mode: AutoresetMode, seed: int) -> None:
    env = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    check_vector_env(env, seed=seed, steps=14)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_processes_pass(mode: AutoresetMode) -> None:
    # In DISABLED these play on past an end, where SyncVectorEnv raises: neither is wrong.
    keywords = {"autoreset_mode": mode, "context": "spawn"}
    env = gym.make_vec("CartPole-v1", 2, vectorization_mode="async", vector_kwargs=keywords)
    check_vector_env(env, steps=40)


class Bandit(gym.Env[Any, Any]):
    """One step an episode, whose context stays: final_obs and final_info are rightly the episode's first."""

    observation_space, action_space = Discrete(3), Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.context = int(self.np_random.integers(3))
        return self.context, {"context": self.context}

    def step(self, action: Any) -> Any:
        return self.context, float(action == self.context), True, False, {"context": self.context}


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("seed", range(10))
def test_a_game_whose_observations_stay_raises_no_false_alarm(mode: AutoresetMode, seed: int) -> None:
    def make(n: int) -> Any:
        return gym.vector.SyncVectorEnv([Bandit] * n, autoreset_mode=mode)

    check_vector_env(make(2), make=make, seed=seed, steps=12)
