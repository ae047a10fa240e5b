"""`autoreset_mode`: what follows the end of an episode, in each of Gymnasium's three ways."""

from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from maskaug.agents.apga import APGA
from maskaug.agents.sb3 import as_vec_env
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError

N = 3


def make(mode: Any, **keywords: Any) -> MaskVectorEnv:
    return MaskVectorEnv(N, n=40, autoreset_mode=mode, **keywords)


def actions(env: MaskVectorEnv, count: int) -> list[Any]:
    env.action_space.seed(3)
    return [env.action_space.sample() for _ in range(count)]


@pytest.mark.parametrize("mode", ["NEXT_STEP", "NextStep", AutoresetMode.NEXT_STEP])
def test_a_mode_is_a_name_a_value_or_the_enum(mode: Any) -> None:
    env = make(mode)
    assert env.autoreset_mode is env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert MaskVectorEnv.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


@pytest.mark.parametrize("mode", ["NEXT_STEP", "DISABLED"])
def test_an_evaluation_resets_in_the_same_step_unless_asked(mode: str) -> None:
    env = make(mode)
    held_out = env.evaluation()
    assert held_out.autoreset_mode is held_out.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    as_vec_env(held_out).reset()
    assert env.evaluation(autoreset_mode=mode).autoreset_mode is AutoresetMode[mode]
    with pytest.raises(ConfigurationError, match="autoreset_mode='never' is unknown"):
        env.evaluation(autoreset_mode="never")


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="autoreset_mode='never' is unknown; use one of 'NEXT_STEP'"):
        make("never")


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("mode", ["NEXT_STEP", "DISABLED"])
def test_every_mode_plays_the_same_game(mode: str, steps: int) -> None:
    same, other = make("SAME_STEP", steps=steps), make(mode, steps=steps)
    a, _ = same.reset(seed=5)
    b, _ = other.reset(seed=5)
    for action in actions(same, 6):
        np.testing.assert_array_equal(a, b)
        a, reward, ended, _, info = same.step(action)
        b, other_reward, other_ended, _, other_info = other.step(action)
        np.testing.assert_array_equal(reward, other_reward)
        np.testing.assert_array_equal(ended, other_ended)
        if not ended.any():
            continue
        np.testing.assert_array_equal(b, info["final_obs"])
        for name, value in info["final_info"].items():
            np.testing.assert_array_equal(value, other_info[name])
        if mode == "NEXT_STEP":
            b, nothing, over, _, other_info = other.step(action)
            assert not nothing.any()
            assert not over.any()
        else:
            b, other_info = other.reset(options={"reset_mask": other_ended})
        for name in other_info:
            np.testing.assert_array_equal(info[name], other_info[name])


def test_next_step_refuses_a_partial_reset_and_a_whole_one_begins_anew() -> None:
    env = make("NEXT_STEP")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    with pytest.raises(ConfigurationError, match="use 'DISABLED' for reset_mask"):
        env.reset(options={"reset_mask": np.ones(N, np.bool_)})
    env.reset()
    assert env.step(env.action_space.sample())[2].all()


def test_an_episode_that_is_over_must_be_reset_when_nothing_resets_it() -> None:
    env = make("DISABLED")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.reset(options={"reset_mask": np.array([True, False, True])})
    state = env.game.state()
    with pytest.raises(ResetNeeded, match=r"slots \[1\] are over"):
        env.step(env.action_space.sample())
    np.testing.assert_array_equal(env.game.state()["position"], state["position"])
    env.reset(options={"reset_mask": np.array([False, True, False])})
    env.step(env.action_space.sample())


def test_a_reset_of_nobody_is_an_error() -> None:
    env = make("SAME_STEP")
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match="names no slot"):
        env.reset(options={"reset_mask": np.zeros(N, np.bool_)})


def test_tensors_stay_tensors_in_every_mode() -> None:
    for mode in ("NEXT_STEP", "DISABLED"):
        env = make(mode, tensors=True)
        env.reset(seed=0)
        first = env.step(env.action_space.sample())
        answers = [*first[:4], *first[4].values()]
        if mode == "NEXT_STEP":
            second = env.step(env.action_space.sample())
            answers += [*second[:4], *second[4].values()]
        assert {type(answer).__name__ for answer in answers} == {"Tensor"}


def test_agents_and_the_adapter_name_the_mode_that_they_need() -> None:
    env = make("DISABLED", repeat=4)
    with pytest.raises(ConfigurationError, match="SAME_STEP"):
        APGA(env).learn(12)
    with pytest.raises(ConfigurationError, match="SAME_STEP"):
        as_vec_env(env)
