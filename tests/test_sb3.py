"""Stable-Baselines3 on top of the vector environments: contract of VecEnv, and its algorithms at work."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import vector as wrappers
from marker_game import GRID, joint_env, marker_env
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import VecEnvWrapper, VecMonitor, VecNormalize

from maskaug.agents.sb3 import MaskVecEnv, as_vec_env
from maskaug.envs.errors import ConfigurationError


def adapted(num_envs: int = 3, **keywords: Any) -> MaskVecEnv:
    return as_vec_env(marker_env(num_envs, 1, **keywords))


def random_actions(env: MaskVecEnv) -> Any:
    return np.stack([env.action_space.sample() for _ in range(env.num_envs)])


def test_step_gives_rewards_dones_and_plain_infos() -> None:
    env = adapted()
    env.seed(0)
    first = env.reset()
    assert isinstance(first, np.ndarray)
    assert env.observation_space.contains(first[0])
    before = [info["index"] for info in env.reset_infos]
    observation, reward, done, infos = env.step(random_actions(env))
    assert isinstance(observation, np.ndarray)
    assert reward.dtype == np.float32
    assert done.dtype == np.bool_
    assert done.all()
    assert [info["index"] for info in infos] == before
    assert [info["index"] for info in env.reset_infos] != before
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is False
        assert info["gain"] - info["price"] == pytest.approx(reward[i], rel=1e-5)
        assert not any(name.startswith("_") for name in info)
        assert all(type(v) in (int, float, bool) for k, v in info.items() if k != "terminal_observation")
    assert [set(info) for info in env.reset_infos] == [
        set(infos[0]) - {"terminal_observation", "TimeLimit.truncated"}
    ] * 3


def test_the_terminal_observation_is_the_hidden_image_and_nobody_elses_memory() -> None:
    env = adapted()
    env.seed(0)
    start = np.array(env.reset())
    action = np.zeros((3, GRID * GRID), np.int8)
    action[:, 0] = 1
    observation, _, _, infos = env.step(action)
    assert isinstance(observation, np.ndarray)
    for i, info in enumerate(infos):
        expected = start[i].copy()
        expected[:, :8, :8] = 0
        assert np.array_equal(info["terminal_observation"], expected)
        # A view of the batch would keep all of it alive, and follow whoever writes into it.
        assert info["terminal_observation"].flags.owndata
        assert not np.shares_memory(info["terminal_observation"], observation)
    kept = [info["terminal_observation"].copy() for info in infos]
    env.step(action)
    assert all(np.array_equal(a, info["terminal_observation"]) for a, info in zip(kept, infos, strict=True))


def test_seeds_are_used_once_and_slot_by_slot() -> None:
    env = adapted()
    assert env.seed(7) == [7, 8, 9]
    first = np.array(env.reset())
    native, _ = marker_env(3, 1).reset(seed=7)
    assert np.array_equal(first, native)
    second = np.array(env.reset())
    assert not np.array_equal(first, second)
    env.seed(7)
    assert np.array_equal(first, np.array(env.reset()))


def test_attributes_and_methods() -> None:
    env = adapted()
    env.reset()
    assert env.get_attr("num_envs") == [3, 3, 3]
    assert env.get_attr("num_envs", indices=[0, 2]) == [3, 3]
    assert env.has_attr("dataset")
    assert not env.has_attr("no_such_thing")
    env.set_attr("note", "kept")
    assert env.get_attr("note", 1) == ["kept"]
    with pytest.raises(ConfigurationError, match="share"):
        env.set_attr("note", "x", indices=0)
    assert env.env_method("render") == [None] * 3
    assert len(env.env_method("render", indices=[1])) == 1
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
    env.close()


def test_rendering_tiles_the_slots() -> None:
    env = as_vec_env(marker_env(4, 1, render_mode="rgb_array"))
    env.reset()
    one = env.get_images()[0]
    assert one is not None
    picture = env.render()
    assert picture is not None
    assert picture.shape == (2 * one.shape[0], 2 * one.shape[1], 3)


def test_wrappers_of_stable_baselines_work() -> None:
    env = VecMonitor(adapted())
    assert isinstance(env, VecEnvWrapper)
    env.reset()
    _, reward, _, infos = env.step(random_actions(env.venv))  # type: ignore[arg-type]
    for r, info in zip(reward, infos, strict=True):
        assert info["episode"]["l"] == 1
        assert info["episode"]["r"] == pytest.approx(r, abs=1e-5)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("make", [lambda: marker_env(4, 1), lambda: joint_env(4, 2)])
def test_policy_gradient_algorithms_run_on_the_grid(algorithm: Any, make: Any) -> None:
    small: dict[str, Any] = {"n_steps": 4, "policy_kwargs": {"normalize_images": True}}
    if algorithm is PPO:
        small |= {"batch_size": 8, "n_epochs": 1}
    model = algorithm("MlpPolicy", as_vec_env(make()), device="cpu", seed=0, **small)
    model.learn(32)
    assert model.num_timesteps == 32
    env = make()
    action, _ = model.predict(env.reset(seed=0)[0])
    env.step(action)


def test_a_convolutional_policy_takes_the_images_as_they_are() -> None:
    env = as_vec_env(joint_env(2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = A2C("CnnPolicy", env, device="cpu", seed=0, n_steps=2).learn(4)
    assert model.observation_space.shape == (1, 40, 40)


def test_dqn_runs_on_patches() -> None:
    env = as_vec_env(joint_env(2, 1, action="patch"))
    model = DQN(
        "MlpPolicy", env, device="cpu", seed=0, buffer_size=100, learning_starts=8, batch_size=8, train_freq=2,
    )  # fmt: skip
    model.learn(24)
    assert model.num_timesteps == 24
    # Every transition ends its episode: nothing is bootstrapped over images.
    assert model.replay_buffer is not None
    assert (model.replay_buffer.dones[: model.replay_buffer.pos] == 1).all()


def test_other_environments_are_refused_with_the_cure() -> None:
    foreign = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")])
    with pytest.raises(ConfigurationError, match="make_vec"):
        as_vec_env(foreign)
    sync = gym.make_vec("MaskAug-Synthetic-v0", num_envs=2, vectorization_mode="sync", n=40, image_size=40, grid=5)
    with pytest.raises(ConfigurationError, match="make_vec"):
        as_vec_env(sync)
    with pytest.raises(ConfigurationError, match="got NoneType; make one with"):
        as_vec_env(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"bogus": 1}, [{}, {"bogus": 1}, {}]])
def test_options_that_would_do_nothing_are_refused(options: Any) -> None:
    env = adapted()
    with pytest.raises(ConfigurationError, match=r"bogus.* would do nothing: .*reset_mask"):
        env.set_options(options)
    env.set_options()
    env.set_options([{}, {}, {}])
    env.reset()


def test_tensors_and_wrapped_spaces_are_refused_with_the_cure() -> None:
    with pytest.raises(ConfigurationError, match="without tensors=True"):
        adapted(tensors=True)
    rescaled = wrappers.RescaleAction(marker_env(3, 1, action="box"), np.zeros(4, np.float32), np.ones(4, np.float32))
    with pytest.raises(ConfigurationError, match="wrap what as_vec_env returns"):
        as_vec_env(rescaled)


def test_wrappers_of_gymnasium_are_played_through() -> None:
    inner = marker_env(3, 1)
    env = as_vec_env(wrappers.TransformReward(wrappers.RecordEpisodeStatistics(inner), lambda reward: 2 * reward))
    env.seed(0)
    env.reset()
    _, reward, _, infos = env.step(np.eye(3, GRID * GRID, dtype=np.int8))
    for r, info in zip(reward, infos, strict=True):
        assert r == pytest.approx(2 * (info["gain"] - info["price"]), rel=1e-5)
        # What the wrapper knows of the episode that has ended goes with it, as SB3's Monitor has it.
        assert info["episode"]["l"] == 1
        assert info["episode"]["r"] == pytest.approx(r / 2, rel=1e-5)
    assert all("episode" not in info for info in env.reset_infos)


def test_rewards_can_be_normalised() -> None:
    env = VecNormalize(adapted(), norm_obs=False)
    env.seed(0)
    start = env.reset()
    assert isinstance(start, np.ndarray)
    assert start.dtype == np.uint8
    for _ in range(8):
        observation, reward, _, _ = env.step(random_actions(adapted()))
    assert isinstance(observation, np.ndarray)
    assert observation.dtype == np.uint8
    np.testing.assert_allclose(reward, env.normalize_reward(env.get_original_reward()), rtol=1e-5)
    assert not np.allclose(reward, env.get_original_reward())


def test_every_action_that_selects_something_is_allowed() -> None:
    grid, patch = adapted(), adapted(action="patch")
    for env, count in ((grid, 2 * GRID * GRID), (patch, 9)):
        env.reset()
        assert env.has_attr("action_masks")
        assert env.action_masks().shape == (3, count)
        assert env.action_masks().all()
        rows = env.env_method("action_masks", indices=[0, 2])
        assert [row.shape for row in rows] == [(count,)] * 2
        # A view that SB3 wraps is asked too.
        assert np.stack(VecMonitor(env).env_method("action_masks")).shape == (3, count)
    box = adapted(action="box")
    assert not box.has_attr("action_masks")
    with pytest.raises(ConfigurationError, match="no masks of actions"):
        box.action_masks()


def test_what_is_selected_already_is_not_offered_again() -> None:
    grid = adapted(steps=2)
    grid.reset()
    action = np.zeros((3, GRID * GRID), np.int8)
    action[1, 5] = 1
    grid.step(action)
    masks = grid.action_masks().reshape(3, GRID * GRID, 2)
    assert masks[:, :, 0].all()
    assert np.array_equal(masks[:, :, 1], action == 0)
    assert not grid.env_method("action_masks", indices=1)[0].all()
    grid.step(action)
    assert grid.action_masks().all()  # the next image's
    patch = adapted(action="patch", patch_cells=3, steps=5)  # four corners
    patch.reset()
    for corner in range(4):
        patch.step(np.array([corner, 0, 0]))
        expected = [[c > corner for c in range(4)], [False, True, True, True], [False, True, True, True]]
        if corner == 3:
            expected[0] = [True] * 4  # nothing is left to select: whatever
        assert patch.action_masks().tolist() == expected
