"""Every registered id, by the table alone: a new row needs no new test."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_helpers import judge_for, pictures, same
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from maskaug.envs.busi import write_example
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.registration import TABLE, EnvRow

rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)


@contextlib.contextmanager
def stand_in(row: EnvRow) -> Iterator[None]:
    """Inside, `row` warns that it plays on synthetic images, unless these are its own; all else is an error."""
    if row.dataset == "synthetic":
        yield
    else:
        with pytest.warns(UserWarning, match=f"no real data for '{row.dataset}'.*synthetic"):
            yield


def make(row: EnvRow, **keywords: Any) -> Any:
    with stand_in(row):
        return gym.make(row.id, **keywords)


def make_vec(row: EnvRow, **keywords: Any) -> Any:
    with stand_in(row):
        return gym.make_vec(row.id, **keywords)


@rows
def test_an_id_runs_right_after_installation(row: EnvRow) -> None:
    env = make(row)
    assert env.unwrapped.dataset.source == "synthetic"
    assert env.observation_space == gym.spaces.Box(0, 255, (1, 64, 64), np.uint8)
    assert env.spec.nondeterministic
    assert env.spec.max_episode_steps is None
    game = env.unwrapped.game
    assert game.joint
    assert (game.rule.grid, game.rule.area) == (8, 0.25 if game.rule.kind == "grid" else 1 / 16)
    observation, info = env.reset(seed=0)
    after, reward, terminated, truncated, final = env.step(env.action_space.sample())
    assert info.keys() == final.keys()
    assert env.observation_space.contains(after)
    assert np.isfinite(reward)
    assert (terminated, truncated) == (True, False)
    assert not np.array_equal(observation, after)


@rows
def test_gymnasiums_checker(row: EnvRow) -> None:
    env = make(row, render_mode="rgb_array")
    # It makes the environment anew, once for each render mode.
    with stand_in(row):
        check_env(env.unwrapped)


@rows
def test_stable_baselines3s_checker(row: EnvRow) -> None:
    check_env_sb3(make(row).unwrapped)


@rows
def test_the_spec_survives_json_and_pickle(row: EnvRow) -> None:
    env = make(row, fill="mean", repeat=2, seed=3)
    start = env.reset(seed=1)
    action = env.action_space.sample()
    result = env.step(action)
    json.dumps(dict(gym.spec(row.id).kwargs))
    for spec in (EnvSpec.from_json(env.spec.to_json()), pickle.loads(pickle.dumps(env.spec))):  # noqa: S301
        with stand_in(row):
            again: Any = gym.make(spec)
        assert again.unwrapped.game.repeat == 2
        assert same(again.reset(seed=1), start)
        assert same(again.step(action), result)


@rows
def test_the_environment_survives_pickle(row: EnvRow) -> None:
    env = make(row, judge_batch=2)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(3):
        env.step(env.action_space.sample())
        env.reset()
    twin = pickle.loads(pickle.dumps(env))  # noqa: S301
    for _ in range(4):
        action = env.action_space.sample()
        assert same(env.step(action), twin.step(action))
        assert same(env.reset(), twin.reset())


@rows
def test_rgb_array(row: EnvRow) -> None:
    env = make(row, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(env.action_space.sample())
    after = env.render()
    assert before.dtype == after.dtype == np.uint8
    assert before.ndim == 3
    assert before.shape == after.shape
    assert before.shape[2] == 3
    assert not np.array_equal(before, after)


@rows
def test_make_vec_is_native(row: EnvRow) -> None:
    env = make_vec(row, num_envs=3, render_mode="rgb_array")
    assert isinstance(env, MaskVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.autoreset_mode is AutoresetMode.SAME_STEP
    assert env.spec is not None
    assert env.spec.id == row.id
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    _, reward, terminated, _, info = env.step(env.action_space.sample())
    assert reward.dtype == np.float32
    assert terminated.all()
    assert info["final_obs"].shape == observation.shape
    frames = env.render()
    assert frames is not None
    assert len(frames) == 3


@rows
def test_sync_and_native_agree(row: EnvRow) -> None:
    data = pictures(6, size=64)
    keywords: dict[str, Any] = {
        "dataset": data,
        "joint": False,
        "reward_model": judge_for(row.kwargs["objective"], data),
        "fill": "noise",
    }
    native = gym.make_vec(row.id, num_envs=2, **keywords)
    sync = gym.make_vec(
        row.id,
        num_envs=2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        **keywords,
    )
    assert isinstance(sync, SyncVectorEnv)
    np.testing.assert_array_equal(native.reset(seed=4)[0], sync.reset(seed=4)[0])
    native.action_space.seed(0)
    for _ in range(15):
        action = native.action_space.sample()
        got, expected = native.step(action), sync.step(action)
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-5, atol=1e-6)


@rows
def test_a_module_and_a_data_set_of_ones_own_are_used_as_they_are(row: EnvRow) -> None:
    data = pictures(4, size=64)
    judge = judge_for(row.kwargs["objective"], data)
    keywords: dict[str, Any] = {"dataset": data, "joint": False, "reward_model": judge}
    for env in (gym.make(row.id, **keywords), gym.make_vec(row.id, num_envs=2, **keywords)):
        inner: Any = env.unwrapped
        assert inner.dataset is data
        assert inner.game.reward_model.model is judge


@rows
def test_the_other_action_can_be_asked_for(row: EnvRow) -> None:
    data = pictures(4, size=64)
    assert isinstance(gym.make(row.id, dataset=data, action="grid", area=0.5).action_space, gym.spaces.MultiBinary)
    assert gym.make(row.id, dataset=data, action="patch", patch_cells=3).action_space == gym.spaces.Discrete(36)


@rows
def test_a_root_that_is_wrong_is_an_error_that_names_it(row: EnvRow, tmp_path: Path) -> None:
    for make_it in (gym.make, gym.make_vec):
        with pytest.raises(DatasetError, match=re.escape(str(tmp_path / "nowhere"))):
            make_it(row.id, root=str(tmp_path / "nowhere"))


@rows
def test_an_unknown_keyword_suggests_the_near_one(row: EnvRow) -> None:
    with pytest.raises(ConfigurationError, match="'repeats'; did you mean 'repeat'"):
        gym.make(row.id, repeats=3)


def test_ids_are_named_after_their_rows_and_unlike() -> None:
    assert all(re.fullmatch(r"MaskAug-[A-Za-z]+-v0", row.id) for row in TABLE)
    assert len({row.id for row in TABLE}) == len({row.dataset for row in TABLE}) == len(TABLE)


def test_real_images_are_found_below_maskaug_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_example(tmp_path, n_per_class=5)
    (row,) = (row for row in TABLE if row.dataset == "busi")
    monkeypatch.setenv("MASKAUG_DATA", str(tmp_path / "elsewhere"))
    assert make(row).unwrapped.dataset.source == "synthetic"
    monkeypatch.setenv("MASKAUG_DATA", str(tmp_path))
    env: Any = gym.make(row.id, split="all", image_size=48)
    assert (env.unwrapped.dataset.source, env.unwrapped.dataset.name) == ("busi", "busi")
    assert env.unwrapped.dataset.class_names == ("benign", "malignant", "normal")
    given: Any = gym.make_vec(row.id, num_envs=2, root=str(root), split="all", image_size=48)
    assert given.unwrapped.dataset.digest == env.unwrapped.dataset.digest
    presence: Any = gym.make(row.id, split="all", image_size=48, task="presence")
    assert presence.unwrapped.dataset.class_names == ("absent", "present")
    for real in (env, presence):
        real.reset(seed=0)
        _, reward, _, _, _ = real.step(real.action_space.sample())
        assert np.isfinite(reward)
        twin = pickle.loads(pickle.dumps(real))  # noqa: S301
        assert same(twin.reset(seed=0), real.reset(seed=0))


def test_a_folder_that_is_not_busi_shows_the_expected_tree(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"{re.escape(str(tmp_path))}[\s\S]*malignant \(1\).png"):
        gym.make("MaskAug-BUSI-v0", root=tmp_path)


def test_the_single_class_is_what_the_ids_make() -> None:
    env = gym.make("MaskAug-Synthetic-v0", n=12)
    assert type(env.unwrapped) is MaskEnv
