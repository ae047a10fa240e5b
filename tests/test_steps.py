"""Episodes of several masks: masks add up, each earns what it adds, and the last one ends the episode."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_helpers import BrightnessJudge, FlatJudge, pictures, reconstructor, same
from stable_baselines3 import PPO

from maskaug.agents.apga import APGA
from maskaug.agents.sb3 import as_vec_env
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, InvalidAction

DATA = pictures(8)
GRID = 4
Game = dict[str, Any]


def play(**more: Any) -> Game:
    frozen: Game = {"joint": False, "reward_model": FlatJudge(DATA)}
    return {"dataset": DATA, "grid": GRID, "device": "cpu", "steps": 3, **frozen, **more}


def actions(kind: str, steps: int, num_envs: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    if kind == "patch":
        return rng.integers(0, 9, (steps, num_envs))
    if kind == "grid":
        return rng.random((steps, num_envs, 16)) < 0.2
    return rng.uniform(-1, 0.2, (steps, num_envs, *((16, 16) if kind == "pixel" else (4,))))


@pytest.mark.parametrize("kind", ["grid", "patch", "pixel", "box"])
@pytest.mark.parametrize("objective", ["adversarial", "preserving", "both", "sensitivity", "reconstruction"])
def test_rewards_add_up_to_what_the_union_earns(kind: str, objective: str) -> None:
    judge = reconstructor(DATA) if objective == "reconstruction" else FlatJudge(DATA)
    keywords = play(action=kind, objective=objective, reward_model=judge.eval())
    env = MaskVectorEnv(4, **keywords)
    # The union of patches is no patch: any set of pixels is.
    whole = MaskVectorEnv(4, **{**keywords, "steps": 1, "action": "pixel", "area_price": env.game.rule.price})
    env.reset(seed=0)
    whole.reset(seed=0)
    for episode in range(3):
        chosen = actions(kind, 3, 4, seed=episode)
        total, union = np.zeros(4), torch.zeros(4, 16, 16, dtype=torch.bool)
        for step, action in enumerate(chosen):
            cells = env.game.rule.to_cells(action, 4)
            union |= cells if cells.shape[1:] == (16, 16) else cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
            observation, reward, terminated, truncated, info = env.step(action)
            total += reward
            assert terminated.tolist() == [step == 2] * 4
            assert not truncated.any()
            if step < 2:
                assert info["step"].tolist() == [step] * 4
                assert not info["_final_info"].any()
                np.testing.assert_allclose(info["area"], union.flatten(1).float().mean(1))
                pictures_ = DATA.images[info["index"]]
                assert same(observation, np.where(union[:, None].numpy(), 0, pictures_).astype(np.uint8))
        assert info["step"].tolist() == [0] * 4
        assert info["final_info"]["step"].tolist() == [2] * 4
        _, expected, _, _, other = whole.step(np.where(union.numpy(), 1.0, -1.0))
        np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(info["final_info"]["gain"], other["final_info"]["gain"], rtol=1e-4, atol=1e-6)
        assert same(info["final_info"]["index"], other["final_info"]["index"])
        assert same(info["final_obs"], other["final_obs"])


def test_an_increment_by_hand() -> None:
    # The judge's log-odds are 4 · mean brightness: hiding a cell of 16 lowers them by 4 · its sum / 256.
    image = np.full((1, 1, 16, 16), 255, np.uint8)
    data = dataclasses.replace(
        pictures(1, classes=2), images=image, labels=np.ones(1, np.int64), regions=None, class_names=("a", "b")
    )
    env = MaskEnv(dataset=data, grid=4, joint=False, reward_model=BrightnessJudge(), steps=2, area_price=0)
    env.reset(seed=0)
    first, second = np.zeros((2, 16))
    first[[0, 1]], second[[1, 2, 3]] = 1, 1
    losses = [np.log1p(np.exp(-4 * (16 - hidden) / 16)) for hidden in (0, 2, 4)]
    observation, reward, terminated, _, info = env.step(first)
    assert reward == pytest.approx(losses[1] - losses[0], rel=1e-4)
    assert (terminated, info["step"]) == (False, 0)
    assert observation[0, 0].tolist() == [0] * 8 + [255] * 8
    observation, reward, terminated, _, info = env.step(second)
    assert reward == pytest.approx(losses[2] - losses[1], rel=1e-4)
    assert (terminated, info["step"]) == (True, 1)
    assert info["gain"] == pytest.approx(losses[2] - losses[0], rel=1e-4)
    assert info["area"] == 0.25
    assert not observation[0, 0].any()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(first)


def test_a_single_environment_sees_what_a_slot_sees() -> None:
    vector = MaskVectorEnv(2, **play(repeat=2))
    singles = [MaskEnv(**play(repeat=2, reward_model=vector.game.reward_model.model)) for _ in range(2)]
    seen, _ = vector.reset(seed=5)
    one = [env.reset(seed=5 + i)[0] for i, env in enumerate(singles)]
    assert same(seen, np.stack(one))
    for action in actions("grid", 15, 2):
        seen, rewards, terminated, _, info = vector.step(action)
        for i, env in enumerate(singles):
            own, reward, over, _, own_info = env.step(action[i])
            assert reward == pytest.approx(float(rewards[i]), rel=1e-5, abs=1e-6)
            assert over == terminated[i]
            theirs = info["final_info"] if over else info
            assert own_info["step"] == theirs["step"][i]
            assert own_info["try"] == theirs["try"][i]
            assert same(own, info["final_obs"][i] if over else seen[i])
            if over:
                own, _ = env.reset()
                assert same(own, seen[i])


@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_a_state_in_the_middle_of_an_episode_goes_on_to_the_bit(fill: str) -> None:
    keywords = play(fill=fill, joint=True, judge_batch=3, repeat=2)
    env = MaskVectorEnv(2, **{**keywords, "reward_model": FlatJudge(DATA)})
    env.reset(seed=0)
    chosen = actions("grid", 20, 2)
    for action in chosen[:7]:
        env.step(action)
    twin = MaskVectorEnv(2, **{**keywords, "reward_model": FlatJudge(DATA)})
    twin.reset(seed=9)
    twin.game.load_state(copy.deepcopy(env.game.state()))
    assert same(env.game.observe(), twin.game.observe())
    for action in chosen[7:]:
        assert same(env.step(action), twin.step(action))
    assert same(env.game.state(), twin.game.state())


def test_slots_may_be_at_different_steps() -> None:
    env = MaskVectorEnv(2, **play())
    env.reset(seed=0)
    chosen = actions("grid", 6, 2)
    env.step(chosen[0])
    before = env.game.index.tolist()
    seen, info = env.reset(options={"reset_mask": np.array([True, False])})
    assert info["step"].tolist() == [0, 1]
    assert env.game.index[0] != before[0]
    assert env.game.index[1] == before[1]
    assert same(seen[0], DATA.images[env.game.index[0]])
    assert env.step(chosen[1])[2].tolist() == [False, False]
    _, _, terminated, _, info = env.step(chosen[2])
    assert terminated.tolist() == [False, True]
    assert info["_final_info"].tolist() == info["_final_obs"].tolist() == [False, True]
    assert info["step"].tolist() == [1, 0]
    assert env.step(chosen[3])[2].tolist() == [True, False]


def test_a_refused_action_leaves_the_episode_where_it_is() -> None:
    env = MaskVectorEnv(2, **play(fill="noise"))
    env.reset(seed=0)
    env.step(actions("grid", 1, 2)[0])
    before = env.game.state()
    with pytest.raises(InvalidAction):
        env.step(np.full((2, 16), 0.5))
    assert same(before, env.game.state())


def test_the_judge_learns_from_whole_episodes_only() -> None:
    env = MaskVectorEnv(2, **play(joint=True, judge_batch=2, reward_model=FlatJudge(DATA)))
    env.reset(seed=0)
    versions = []
    for action in actions("grid", 9, 2):
        env.step(action)
        versions.append(env.game.reward_model.version)
    assert versions == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    # An episode that is left teaches nothing.
    env.reset()
    env.step(actions("grid", 1, 2)[0])
    for _ in range(4):
        env.reset()
    assert env.game.reward_model.version == 3


def test_a_reconstructor_learns_from_every_mask() -> None:
    keywords = play(objective="reconstruction", joint=True, judge_batch=2, reward_model=reconstructor(DATA))
    env = MaskVectorEnv(2, **keywords)
    env.reset(seed=0)
    versions = []
    for action in actions("grid", 6, 2):
        env.step(action)
        versions.append(env.game.reward_model.version)
    assert versions == [0, 0, 1, 1, 1, 2]


def test_stable_baselines_plays_long_episodes() -> None:
    env = as_vec_env(MaskVectorEnv(2, **play()))
    env.reset()
    for step, action in enumerate(actions("grid", 6, 2)):
        _, _, done, infos = env.step(action)
        assert done.tolist() == [step % 3 == 2] * 2
        assert ["terminal_observation" in info for info in infos] == [step % 3 == 2] * 2
        assert [info["step"] for info in infos] == [step % 3] * 2
    data = pictures(8, size=40)
    game = MaskVectorEnv(2, **play(dataset=data, reward_model=FlatJudge(data)))
    PPO("CnnPolicy", as_vec_env(game), n_steps=4, batch_size=8, n_epochs=1, seed=0).learn(16)


def test_what_needs_one_mask_an_episode_says_so() -> None:
    with pytest.raises(ConfigurationError, match="use steps=1"):
        APGA(MaskVectorEnv(2, **play()))
    env = MaskVectorEnv(2, **play(action="patch"))
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match="regret needs steps=1"):
        env.oracle_reward()
    assert env.evaluation(dataset=DATA).game.steps == 3
    with pytest.raises(ConfigurationError, match="steps=0"):
        MaskEnv(**play(steps=0))
