"""TorchRL's `GymWrapper` over our environments: its TensorDicts hold what they said. (Learning: test_docs.)"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from env_helpers import FlatJudge, pictures, reconstructor
from gymnasium.vector import AutoresetMode
from torchrl.envs import GymWrapper, check_env_specs

import maskaug  # noqa: F401

DATA = pictures(12)
N, STEPS = 3, 6
Game = dict[str, Any]
GAMES: dict[str, Game] = {
    "grid": {},
    "patch": {"action": "patch"},
    "pixel": {"action": "pixel"},
    "box": {"action": "box"},
    "steps": {"steps": 3},
    "tensors": {"tensors": True},
    "reconstruction": {"objective": "reconstruction", "action": "patch", "steps": 2},
}


def game(name: str) -> Game:
    more = GAMES[name]
    judge = reconstructor(DATA) if more.get("objective") == "reconstruction" else FlatJudge(DATA)
    return {"dataset": DATA, "grid": 4, "joint": False, "reward_model": judge, "device": "cpu", **more}


def batch(name: str, mode: str) -> Any:
    return gym.make_vec("MaskAug-Synthetic-v0", num_envs=N, autoreset_mode=mode, **game(name))


def as_array(value: Any) -> npt.NDArray[Any]:
    return np.asarray(value)


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_a_batch_as_it_is(mode: str, name: str) -> None:
    env = GymWrapper(batch(name, mode), categorical_action_encoding=True)
    check_env_specs(env)
    if mode == "DISABLED":
        env = env.auto_register_info_dict()
    env.set_seed(0)
    torch.manual_seed(0)
    rollout = env.rollout(STEPS, break_when_any_done=False)
    following = rollout["next"]
    # A rollout begins with a reset; in SAME_STEP another one follows where all episodes end together.
    same: Any = batch(name, mode)
    same.reset(seed=0)
    observation, _ = same.reset()
    for step in range(STEPS):
        assert torch.equal(rollout["observation"][:, step], torch.as_tensor(observation))
        answer = same.step(as_array(rollout["action"][:, step]))
        observation, reward, ended, _, info = answer
        ended = as_array(ended)
        if mode == "SAME_STEP" and ended.all():
            observation, info = info["final_obs"], info["final_info"]
        assert torch.equal(following["observation"][:, step], torch.as_tensor(observation))
        assert torch.equal(following["reward"][:, step, 0], torch.as_tensor(reward))
        assert torch.equal(following["done"][:, step, 0], torch.as_tensor(ended))
        for term in ("index", "try", "area", "gain"):
            np.testing.assert_array_equal(as_array(following[term][:, step]), as_array(info[term]), err_msg=term)
        if ended.all():
            everybody = {"reset_mask": ended} if mode == "DISABLED" else None
            observation, _ = same.reset(options=everybody)
    assert len(torch.unique(following["reward"])) > N


@pytest.mark.parametrize("name", [name for name in GAMES if name != "tensors"])
def test_one_environment_as_it_is(name: str) -> None:
    env = GymWrapper(gym.make("MaskAug-Synthetic-v0", **game(name)), categorical_action_encoding=True)
    check_env_specs(env)
    env.set_seed(0)
    rollout = env.rollout(STEPS, break_when_any_done=False)
    same: Any = gym.make("MaskAug-Synthetic-v0", **game(name))
    same.reset(seed=0)
    observation, _ = same.reset()
    for step in range(STEPS):
        np.testing.assert_array_equal(rollout["observation"][step].numpy(), observation)
        action = rollout["action"][step].numpy()
        observation, reward, ended, *_ = same.step(action if action.shape else int(action))
        np.testing.assert_array_equal(rollout["next"]["observation"][step].numpy(), observation)
        assert float(rollout["next"]["reward"][step]) == np.float32(reward)
        assert bool(rollout["next"]["done"][step]) == ended
        if ended:
            observation, _ = same.reset()


def test_what_resets_itself_in_the_next_step_is_refused_by_torchrl() -> None:
    with pytest.raises(RuntimeError, match="SAME_STEP or DISABLED"):
        GymWrapper(batch("grid", "NEXT_STEP"))
    assert batch("grid", "NEXT_STEP").autoreset_mode is AutoresetMode.NEXT_STEP


def test_only_disabled_shows_every_try() -> None:
    tries = {}
    for mode in ("SAME_STEP", "DISABLED"):
        env = GymWrapper(gym.make_vec("MaskAug-Synthetic-v0", N, autoreset_mode=mode, **game("grid"), repeat=2))
        if mode == "DISABLED":
            env = env.auto_register_info_dict()
        env.set_seed(0)
        tries[mode] = env.rollout(STEPS, break_when_any_done=False)["next", "try"][0].tolist()
    assert tries["DISABLED"] == [1, 0] * (STEPS // 2)
    # TorchRL resets once more what has reset itself.
    assert tries["SAME_STEP"] == [1] * STEPS
