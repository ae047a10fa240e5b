"""docs/wrappers.md: each of its rows, and its code as written."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_helpers import FlatJudge, pictures
from gymnasium import wrappers
from gymnasium.error import DependencyNotInstalled
from gymnasium.wrappers import vector
from PIL import Image
from test_docs import blocks, run

import maskaug  # noqa: F401
from maskaug.envs.errors import ConfigurationError

DATA = pictures(8)
ID = "MaskAug-Synthetic-v0"
N = 3


def keywords(**more: Any) -> dict[str, Any]:
    return {"dataset": DATA, "grid": 4, "joint": False, "reward_model": FlatJudge(DATA), "device": "cpu", **more}


def single(**more: Any) -> Any:
    return gym.make(ID, **keywords(**more))


def batch(**more: Any) -> Any:
    return gym.make_vec(ID, num_envs=N, **keywords(**more))


def twice(reward: Any) -> Any:
    return 2 * reward


def played(env: Any, steps: int) -> list[Any]:
    """The answers to the same random actions, however the environment is wrapped."""
    space = env.unwrapped.action_space
    space.seed(0)
    answers: list[Any] = [env.reset(seed=0)]
    for _ in range(steps):
        answers.append(env.step(space.sample()))
        over = answers[-1][2] | answers[-1][3]
        if not isinstance(env.unwrapped, gym.vector.VectorEnv) and over:
            env.reset()
    return answers


def test_record_episode_statistics_of_one() -> None:
    plain, wrapped = played(single(steps=3), 3), played(wrappers.RecordEpisodeStatistics(single(steps=3)), 3)
    episode = wrapped[-1][4]["episode"]
    assert episode["r"] == pytest.approx(sum(answer[1] for answer in plain[1:]))
    assert episode["l"] == 3


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP", "DISABLED"])
def test_record_episode_statistics_of_a_batch(mode: str) -> None:
    plain = played(batch(steps=3), 3)
    answers = played(vector.RecordEpisodeStatistics(batch(steps=3, autoreset_mode=mode)), 3)
    assert "episode" not in answers[-2][4]
    episode = answers[-1][4]["episode"]
    np.testing.assert_allclose(episode["r"], sum(answer[1] for answer in plain[1:]), rtol=1e-6)
    assert episode["l"].tolist() == [3] * N
    assert answers[-1][4]["_episode"].all()


def test_record_episode_statistics_refuses_tensors() -> None:
    env: Any = vector.RecordEpisodeStatistics(batch(tensors=True))
    env.reset(seed=0)
    with pytest.raises(TypeError):
        env.step(env.action_space.sample())


@pytest.mark.parametrize("many", [False, True])
def test_record_video_asks_for_moviepy(many: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moviepy", None)
    env = batch(render_mode="rgb_array", autoreset_mode="DISABLED") if many else single(render_mode="rgb_array")
    record: Any = vector.RecordVideo if many else wrappers.RecordVideo
    with pytest.raises(DependencyNotInstalled, match=r"(?i)moviepy is not installed"):
        record(env, str(tmp_path))


def test_record_video_of_a_batch_shows_the_mask_that_was_judged_last() -> None:
    env = batch(render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    _, _, terminated, *_ = env.step(np.eye(16, dtype=np.int8)[:N])
    assert terminated.all()
    assert all((one != other).any() for one, other in zip(before, env.render(), strict=True))


def test_render_collection_keeps_frames_over_episodes() -> None:
    env = wrappers.RenderCollection(single(render_mode="rgb_array"), reset_clean=False)
    played(env, 3)
    frames: Any = env.render()
    # One at each reset and one at each step.
    assert len(frames) == 7
    assert {frame.shape for frame in frames} == {frames[0].shape}


@pytest.mark.parametrize("many", [False, True])
def test_numpy_to_torch_needs_a_package_and_has_an_alternative(many: bool) -> None:
    plain = played(batch() if many else single(), 2)
    if importlib.util.find_spec("array_api_compat") is None:
        with pytest.raises(ModuleNotFoundError, match="array_api_compat"):
            _ = wrappers.NumpyToTorch
        with pytest.raises(ModuleNotFoundError, match="array_api_compat"):
            _ = vector.NumpyToTorch
    else:
        answers = played(vector.NumpyToTorch(batch()) if many else wrappers.NumpyToTorch(single()), 2)
        assert torch.equal(answers[-1][0], torch.as_tensor(plain[-1][0]))
    if many:
        tensors = played(batch(tensors=True), 2)
        assert torch.equal(tensors[-1][0], torch.as_tensor(plain[-1][0]))
        assert torch.equal(tensors[-1][1], torch.as_tensor(plain[-1][1]))


@pytest.mark.parametrize("many", [False, True])
def test_transform_reward(many: bool) -> None:
    env = vector.TransformReward(batch(), twice) if many else wrappers.TransformReward(single(), twice)
    plain = played(batch() if many else single(), 2)
    for one, other in zip(plain[1:], played(env, 2)[1:], strict=True):
        np.testing.assert_array_equal(2 * one[1], other[1])
        gains = [info["final_info"]["gain"] if many else info["gain"] for info in (one[4], other[4])]
        np.testing.assert_array_equal(*gains)


def test_clip_and_normalize_reward() -> None:
    clipped = played(vector.ClipReward(batch(), -0.01, 0.01), 3)[1:]
    assert all(np.abs(answer[1]).max() <= 0.01 for answer in clipped)
    rewards = np.stack([answer[1] for answer in played(vector.NormalizeReward(batch()), 3)[1:]])
    assert np.isfinite(rewards).all()
    assert wrappers.ClipReward(single(), -0.01, 0.01).reset(seed=0)[0].shape == DATA.shape


@pytest.mark.parametrize("how", ["wrapper", "make"])
def test_time_limit_truncates_and_the_next_episode_begins_anew(how: str) -> None:
    env = wrappers.TimeLimit(single(steps=5), 2) if how == "wrapper" else single(steps=5, max_episode_steps=2)
    env.reset(seed=0)
    answers = [env.step(np.eye(16, dtype=np.int8)[i]) for i in (0, 5)]
    assert [answer[3] for answer in answers] == [False, True]
    assert not answers[-1][2]
    following, info = env.reset()
    assert info["step"] == 0
    assert info["area"] == 0
    # Nothing of it is hidden.
    np.testing.assert_array_equal(following, DATA.images[info["index"]])


def test_a_batch_has_steps_instead_of_a_time_limit() -> None:
    with pytest.raises(ConfigurationError, match=r"max_episode_steps goes with gym\.make; use steps=3"):
        batch(max_episode_steps=3)
    assert played(batch(steps=2), 2)[-1][2].all()


def test_frame_stack_shows_what_was_selected_when() -> None:
    stacked = played(wrappers.FrameStackObservation(single(steps=3), 3), 2)
    plain = played(single(steps=3), 2)
    np.testing.assert_array_equal(stacked[-1][0], np.stack([answer[0] for answer in plain]))


def test_a_native_batch_refuses_wrappers_and_a_sync_one_takes_them() -> None:
    stack = [lambda env: wrappers.FrameStackObservation(env, 2)]
    with pytest.raises(gym.error.Error, match="wrappers argument"):
        gym.make_vec(ID, num_envs=2, wrappers=stack, **keywords())
    envs = gym.make_vec(ID, num_envs=2, vectorization_mode="sync", wrappers=stack, **keywords())
    assert envs.reset(seed=0)[0].shape == (2, 2, *DATA.shape)


def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "docs"}
    for code in blocks("wrappers.md"):
        run(code, names)
    with Image.open("masks.gif") as gif:
        assert gif.n_frames == 15  # type: ignore[attr-defined]
    assert names["infos"]["episode"]["l"].tolist() == [3] * 4
    assert names["frames"].shape == (3, 1, 64, 64)
    assert names["truncated"]
    assert not names["terminated"]
    assert names["stacked"].observation_space.shape == (4, 3, 1, 64, 64)
