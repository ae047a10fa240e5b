"""Which image comes when, what a slot sees, and what a vector environment promises."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from env_helpers import FlatJudge, pictures, same, small
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import FILLS

DATA = pictures(7)
GRID = 4
ACTIONS = ("grid", "patch", "pixel", "box")
Game = dict[str, Any]


def frozen(**more: Any) -> Game:
    return {"dataset": DATA, "grid": GRID, "joint": False, "reward_model": FlatJudge(DATA), **more}


def actions(kind: str, steps: int, num_envs: int, seed: int = 0) -> npt.NDArray[Any]:
    rng = np.random.default_rng(seed)
    if kind in ("pixel", "box"):
        return rng.uniform(-1, 1, (steps, num_envs, *((16, 16) if kind == "pixel" else (4,))))
    size: tuple[int, ...] = (steps, num_envs, 16) if kind == "grid" else (steps, num_envs)
    return rng.integers(0, 2 if kind == "grid" else 9, size)


# ---- which image comes when ------------------------------------------------------------------------------------------


def test_every_image_comes_once_an_epoch_in_a_new_order() -> None:
    env = MaskEnv(**frozen())
    seen = [env.reset(seed=3)[1]["index"]]
    seen += [env.reset()[1]["index"] for _ in range(3 * len(DATA) - 1)]
    epochs = [seen[i : i + len(DATA)] for i in range(0, len(seen), len(DATA))]
    assert [sorted(epoch) for epoch in epochs] == [list(range(len(DATA)))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_observation_is_the_image_and_after_the_step_the_image_with_its_mask_hidden() -> None:
    env = MaskEnv(**frozen())
    observation, info = env.reset(seed=0)
    np.testing.assert_array_equal(observation, DATA.images[info["index"]])
    assert info["label"] == DATA.labels[info["index"]]  # type: ignore[index]
    action = np.zeros(16)
    action[5] = 1
    hidden, *_ = env.step(action)
    expected = observation.copy()
    expected[:, 4:8, 4:8] = 0
    np.testing.assert_array_equal(hidden, expected)


def test_repeat_shows_one_image_so_many_times_and_counts_the_tries() -> None:
    env = MaskEnv(**frozen(repeat=3))
    infos = [env.reset(seed=1)[1]]
    for _ in range(3 * len(DATA) - 1):
        _, _, _, _, done = env.step(np.zeros(16))
        assert (done["index"], done["try"]) == (infos[-1]["index"], infos[-1]["try"])
        infos.append(env.reset()[1])
    assert [info["try"] for info in infos] == [0, 1, 2] * len(DATA)
    images = [info["index"] for info in infos]
    assert images[::3] == images[1::3] == images[2::3]
    assert sorted(images[::3]) == list(range(len(DATA)))


@pytest.mark.parametrize("seed", [0, 123])
def test_a_seed_starts_the_same_game_whatever_was_before(seed: int) -> None:
    for make in (MaskEnv, lambda **k: MaskVectorEnv(3, **k)):
        env, fresh = make(**frozen(fill="noise")), make(**frozen(fill="noise"))
        env.reset(seed=99)
        shape = (16,) if isinstance(env, MaskEnv) else (3, 16)
        env.step(np.ones(shape))
        env.reset()
        assert same(env.reset(seed=seed), fresh.reset(seed=seed))
        for _ in range(9):
            assert same(env.step(np.ones(shape)), fresh.step(np.ones(shape)))
            assert same(env.reset(), fresh.reset())
        assert not same(env.reset(seed=seed + 1), fresh.reset(seed=seed))


def test_without_a_seed_every_game_is_another_and_a_reset_goes_on() -> None:
    orders = []
    for _ in range(3):
        env = MaskEnv(**frozen())
        orders.append(tuple(env.reset()[1]["index"] for _ in range(len(DATA))))
        assert sorted(orders[-1]) == list(range(len(DATA)))
    assert len(set(orders)) > 1


def test_labels_regions_groups_and_names_never_reach_an_observation() -> None:
    assert DATA.labels is not None
    assert DATA.regions is not None
    changed: Game = {
        "labels": 1 - DATA.labels,
        "regions": ~np.asarray(DATA.regions),
        "groups": DATA.groups + 9,
        "names": ("x",) * 7,
    }
    other = dataclasses.replace(DATA, **changed)
    one, two = (MaskVectorEnv(2, **frozen(dataset=d, fill="noise")) for d in (DATA, other))
    np.testing.assert_array_equal(one.reset(seed=0)[0], two.reset(seed=0)[0])
    for action in actions("grid", 10, 2):
        a, b = one.step(action), two.step(action)
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[4]["final_obs"], b[4]["final_obs"])
        assert not np.array_equal(a[1], b[1])


def test_types_of_what_comes_back() -> None:
    env = MaskEnv(**frozen())
    observation, info = env.reset(seed=0)
    after, reward, terminated, truncated, final = env.step(np.ones(16))
    for image in (observation, after):
        assert image.dtype == np.uint8
        assert env.observation_space.contains(image)
    assert [type(value) for value in (reward, terminated, truncated)] == [float, bool, bool]
    assert (terminated, truncated) == (True, False)
    assert list(info) == list(final) == ["index", "try", "label", "area", "loss_clean", "loss_hidden", "gain", "price"]
    assert {type(value) for values in (info, final) for value in values.values()} == {int, float}


def test_a_step_needs_a_reset_and_an_episode_has_one_step() -> None:
    env, vector = MaskEnv(**frozen()), MaskVectorEnv(2, **frozen())
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.ones(16))
    with pytest.raises(gym.error.ResetNeeded):
        vector.step(np.ones((2, 16)))
    env.reset(seed=0)
    env.step(np.ones(16))
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(np.ones(16))


# ---- vector environments ---------------------------------------------------------------------------------------------


def test_a_vector_environment_says_what_it_is() -> None:
    env = MaskVectorEnv(3, **frozen())
    assert env.metadata["autoreset_mode"] is env.autoreset_mode is AutoresetMode.SAME_STEP
    assert env.observation_space.shape == (3, 1, 16, 16)
    assert env.single_observation_space.shape == (1, 16, 16)
    assert env.action_space.shape == (3, 16)
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    after, reward, terminated, truncated, step_info = env.step(env.action_space.sample())
    assert env.observation_space.contains(after)
    assert reward.dtype == np.float32
    assert terminated.dtype == truncated.dtype == np.bool_
    assert reward.shape == terminated.shape == truncated.shape == (3,)
    assert terminated.all()
    assert not truncated.any()
    keys = {"index", "try", "label", "area", "loss_clean", "loss_hidden", "gain", "price"}
    assert set(info) == keys | {f"_{key}" for key in keys}
    assert set(step_info["final_info"]) == set(info)
    assert set(step_info) == set(info) | {"final_obs", "_final_obs", "final_info", "_final_info"}
    assert env.observation_space.contains(step_info["final_obs"])
    for key, value in [*info.items(), *step_info.items(), *step_info["final_info"].items()]:
        if key != "final_info":
            assert len(value) == 3
        if key.startswith("_"):
            assert value.dtype == np.bool_
            assert value.all()


@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("repeat", [1, 2])
def test_vector_sync_and_single_play_the_same_game(kind: str, fill: str, repeat: int) -> None:
    keywords = frozen(action=kind, fill=fill, repeat=repeat, reward_model=small(DATA))
    n, steps, seed = 3, 2 * repeat * len(DATA) + 3, 5
    vector = MaskVectorEnv(n, **keywords)
    sync = SyncVectorEnv([lambda: MaskEnv(**keywords)] * n, autoreset_mode=AutoresetMode.SAME_STEP)
    singles = [MaskEnv(**keywords) for _ in range(n)]
    first, second = vector.reset(seed=seed), sync.reset(seed=seed)
    resets = [env.reset(seed=seed + i) for i, env in enumerate(singles)]
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[0], np.stack([observation for observation, _ in resets]))
    # The same keys; Gymnasium's own class widens the numbers.
    assert same({k: v.tolist() for k, v in first[1].items()}, {k: v.tolist() for k, v in second[1].items()})
    for action in actions(kind, steps, n):
        got, expected = vector.step(action), sync.step(action)
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-5, atol=1e-6)
        for i, env in enumerate(singles):
            hidden, reward, _, _, info = env.step(action[i])
            np.testing.assert_array_equal(got[4]["final_obs"][i], hidden)
            assert got[1][i] == pytest.approx(reward, rel=1e-5, abs=1e-6)
            for name, value in info.items():
                assert got[4]["final_info"][name][i] == pytest.approx(value, rel=1e-5, abs=1e-6)
            observation, info = env.reset()
            np.testing.assert_array_equal(got[0][i], observation)
            assert [got[4][name][i] for name in info] == list(info.values())
        assert set(got[4]) == set(expected[4])
        np.testing.assert_array_equal(got[4]["final_obs"], np.stack(list(expected[4]["final_obs"])))
        for name, value in expected[4]["final_info"].items():
            np.testing.assert_allclose(got[4]["final_info"][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_a_slots_images_depend_neither_on_the_others_nor_on_the_judges_learning(fill: str) -> None:
    games = [
        MaskVectorEnv(n, dataset=DATA, grid=GRID, fill=fill, joint=True, judge_batch=batch, reward_model=small(DATA))
        for n, batch in ((1, 2), (3, 2), (5, 3))
    ]
    for env in games:
        env.reset(seed=4)
    for _ in range(3 * len(DATA)):
        steps = [env.step(np.ones((env.num_envs, 16))) for env in games]
        for n, small_game, large in ((1, steps[0], steps[1]), (3, steps[1], steps[2])):
            np.testing.assert_array_equal(small_game[0], large[0][:n])
            np.testing.assert_array_equal(small_game[4]["final_obs"], large[4]["final_obs"][:n])


def test_seeds_one_by_one() -> None:
    env, other = MaskVectorEnv(3, **frozen()), MaskVectorEnv(3, **frozen())
    assert same(env.reset(seed=[5, 6, 7]), other.reset(seed=5))
    assert env.np_random_seed == 5
    np.testing.assert_array_equal(env.reset(seed=[5, None, 7])[0][[0, 2]], other.reset(seed=5)[0][[0, 2]])
    with pytest.raises(ConfigurationError, match="2 seeds were given for 3"):
        env.reset(seed=[1, 2])


def test_a_partial_reset_moves_the_chosen_slots_alone() -> None:
    env, twin = MaskVectorEnv(3, **frozen(repeat=2)), MaskVectorEnv(3, **frozen(repeat=2))
    with pytest.raises(ConfigurationError, match="reset all slots first"):
        env.reset(options={"reset_mask": np.ones(3, np.bool_)})
    before, info = env.reset(seed=0)
    twin.reset(seed=0)
    after, moved = env.reset(options={"reset_mask": np.array([False, True, False])})
    all_moved = twin.reset()
    np.testing.assert_array_equal(after, before)
    assert moved["try"].tolist() == [0, 1, 0]
    after, moved = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert moved["try"].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert moved["index"][1] != info["index"][1]
    assert all_moved[1]["try"].tolist() == [1, 1, 1]
    assert moved["index"][1] == twin.reset()[1]["index"][1]
    for wrong in ([True, False, True], np.ones(2, np.bool_), np.ones(3, np.int64)):
        if not isinstance(wrong, list):
            with pytest.raises(ConfigurationError, match="bool of shape"):
                env.reset(options={"reset_mask": wrong})
    with pytest.raises(ConfigurationError, match="no seed"):
        env.reset(seed=1, options={"reset_mask": np.ones(3, np.bool_)})


def scribble(value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():
            scribble(item)
    elif isinstance(value, tuple | list):
        for item in value:
            scribble(item)
    elif isinstance(value, np.ndarray):
        value[...] = 1 if value.dtype == np.bool_ else 111


def arrays(value: Any) -> list[npt.NDArray[Any]]:
    if isinstance(value, np.ndarray):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else []
    return [array for item in inner for array in arrays(item)]


def test_no_two_arrays_of_a_step_share_memory() -> None:
    # With patches there is no price, and the reward is the gain.
    env = MaskVectorEnv(2, **frozen(action="patch"))
    parts = arrays(env.reset(seed=0)) + arrays(env.step(np.array([0, 1])))
    assert len(parts) > 30
    assert not any(np.shares_memory(a, b) for i, a in enumerate(parts) for b in parts[:i])


@pytest.mark.parametrize("joint", [False, True])
def test_what_is_handed_out_may_be_written_into(joint: bool) -> None:
    for n in (None, 3):
        runs = []
        for spoil in (False, True):
            keywords = frozen(repeat=2, joint=joint, judge_batch=3 if joint else None)
            env: Any = MaskEnv(**keywords) if n is None else MaskVectorEnv(n, **keywords)
            results = []
            out: Any = env.reset(seed=0)
            for action in actions("grid", 20, n or 1):
                results.append(copy.deepcopy(out))
                if spoil:
                    scribble(out)
                sent = action if n else action[0]
                out = env.step(sent)
                results.append(copy.deepcopy(out))
                if spoil:
                    scribble(sent)
                    scribble(out)
                out = env.reset()
            runs.append(results)
        assert same(*runs)
    assert DATA.digest == pictures(7).digest
