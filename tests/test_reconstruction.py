"""The reconstruction game: what a mask earns, what every action would earn, and a frozen judge."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from env_helpers import FlatJudge, pictures, same
from reconstruction_game import (
    CPU,
    DATA,
    GRID,
    Constant,
    Game,
    Normed,
    Smooth,
    by_hand,
    chosen,
    everything,
    frozen,
    gradients,
    joint,
    judge_of,
)

from maskaug.agents.sb3 import as_vec_env
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, InvalidAction
from maskaug.envs.judging import frozen_reward
from maskaug.envs.networks import to_float
from maskaug.envs.reconstruction import ReconstructionReward, mean_over
from maskaug.envs.rewards import ClassifierReward

# ---- what a mask earns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_joint", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_reward_is_the_mean_squared_error_over_the_hidden_pixels(channels: int, is_joint: bool) -> None:
    data = pictures(8, channels=channels)
    more: Game = {"judge_batch": 10_000} if is_joint else {}
    env = MaskVectorEnv(4, **frozen(dataset=data, joint=is_joint, reward_model=Constant(0.25), area_price=0.0, **more))
    images, _ = env.reset(seed=0)
    played = chosen(6, 4)
    played[0] = 1
    played[1, 2] = 0
    for action in played:
        following, reward, _, _, info = env.step(action)
        final = info["final_info"]
        for slot in range(4):
            gain, errors = by_hand(images[slot], np.full(images[slot].shape, 0.25), action[slot])
            assert reward[slot] == final["gain"][slot] == pytest.approx(gain, rel=1e-5)
            np.testing.assert_allclose(final["cell_error"][slot], errors, rtol=1e-5)
            # NaN exactly where nothing was hidden; the mean of the rest is the gain.
            np.testing.assert_array_equal(np.isnan(final["cell_error"][slot]), action[slot].reshape(GRID, GRID) == 0)
            if action[slot].any():
                assert np.nanmean(final["cell_error"][slot]) == pytest.approx(gain, rel=1e-5)
            assert final["area"][slot] == action[slot].mean()
        images = following


def test_the_scale_is_that_of_minus_one_to_one() -> None:
    black = dataclasses.replace(DATA, images=np.zeros_like(DATA.images))
    env = MaskEnv(**frozen(dataset=black, reward_model=Constant(1.0), action="patch"))
    env.reset(seed=0)
    # White for black: 2 on the scale of [−1, 1], 4 squared; 1 on the scale of the pixels.
    assert env.step(0)[1] == 4.0


def test_the_judge_sees_the_image_with_the_selected_part_hidden() -> None:
    env = MaskEnv(**frozen(fill="mean", area_price=2.0, area=0.5))
    image, _ = env.reset(seed=0)
    action = chosen(1, 1)[0, 0]
    hidden, reward, _, _, info = env.step(action)
    mask = np.kron(action.reshape(GRID, GRID), np.ones((4, 4))).astype(bool)
    np.testing.assert_array_equal(hidden[:, ~mask], image[:, ~mask])
    np.testing.assert_array_equal(hidden[:, mask], np.repeat(image.mean((1, 2)).round()[:, None], mask.sum(), 1))
    with torch.no_grad():
        answer = env.game.reward_model.model(to_float(torch.from_numpy(hidden[None])))[0].double().numpy()
    gain, errors = by_hand(image, answer, action)
    assert info["gain"] == pytest.approx(gain, rel=1e-5)
    np.testing.assert_allclose(info["cell_error"], errors, rtol=1e-4)
    assert reward == pytest.approx(info["gain"] - info["price"], rel=1e-6)
    assert info["price"] == pytest.approx(2 * ((action.mean() - 0.5) / 0.5) ** 2)


def test_mean_over_takes_nothing_from_cells_that_are_not_selected() -> None:
    values = torch.tensor([[[1.0, torch.nan], [3.0, torch.inf]], [[torch.nan, 1.0], [1.0, 1.0]]])
    cells = torch.tensor([[[True, False], [True, False]], [[False, False], [False, False]]])
    assert mean_over(values, cells).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("visible_weight", [None, 1.0])
def test_an_empty_or_a_full_mask_earns_and_teaches_what_it_should(visible_weight: float | None) -> None:
    for value in (0, 1):
        env = MaskVectorEnv(3, **joint(judge_batch=4, area_price=0.0, visible_weight=visible_weight))
        model = env.game.reward_model.model
        before = everything(model)
        env.reset(seed=0)
        for _ in range(3):
            _, reward, _, _, info = env.step(np.full((3, 16), value))
            assert np.isnan(info["final_info"]["cell_error"]).all() == (value == 0)
            if value == 0:
                assert reward.tolist() == info["final_info"]["gain"].tolist() == [0, 0, 0]
            else:
                assert (reward > 0).all()
            if judge_of(env).waiting:
                assert all(g is not None and torch.isfinite(g).all() for g in gradients(model))
        assert env.game.reward_model.version == 2
        learned = value == 1 or visible_weight is not None
        assert same(before, everything(model)) != learned


@pytest.mark.parametrize("action", ["grid", "patch"])
def test_the_infos_have_one_form_everywhere(action: str) -> None:
    keywords = frozen(action=action)
    names = {"index", "try", "label", "area", "gain", "cell_error"} | ({"price"} if action == "grid" else set())
    mask: Any = np.ones(16) if action == "grid" else 3
    many = np.stack([mask, mask])

    env = MaskEnv(**keywords)
    _, info = env.reset(seed=0)
    assert info.keys() == names
    assert (info["gain"], info["cell_error"].shape) == (0.0, (GRID, GRID))
    assert np.isnan(info["cell_error"]).all()
    info = env.step(mask)[4]
    assert info.keys() == names
    assert (info["cell_error"].shape, info["cell_error"].dtype.name) == ((GRID, GRID), "float32")
    assert all(isinstance(info[name], int | float) for name in names - {"cell_error"})

    vector = MaskVectorEnv(2, **keywords)
    _, info = vector.reset(seed=0)
    assert info.keys() == names | {f"_{name}" for name in names}
    for values in (info, vector.step(many)[4]["final_info"]):
        assert values["cell_error"].shape == (2, GRID, GRID)
        assert values["_cell_error"].tolist() == [True, True]
    info = vector.step(many)[4]
    assert info["final_info"].keys() == names | {f"_{name}" for name in names}
    assert np.isnan(info["cell_error"]).all()

    wrapped = as_vec_env(MaskVectorEnv(2, **keywords))
    wrapped.seed(0)
    wrapped.reset()
    infos = wrapped.step(many)[3]
    for slot in range(2):
        assert infos[slot].keys() == names | {"terminal_observation", "TimeLimit.truncated"}
        assert wrapped.reset_infos[slot].keys() == names
        assert infos[slot]["cell_error"].shape == (GRID, GRID)
    assert not np.array_equal(infos[0]["cell_error"], infos[1]["cell_error"], equal_nan=True)


@pytest.mark.parametrize("is_joint", [False, True])
def test_what_is_handed_out_may_be_written_into(is_joint: bool) -> None:
    keywords = joint(judge_batch=3) if is_joint else frozen()
    env, twin = (MaskVectorEnv(2, **{**keywords, "reward_model": Smooth()}, repeat=2) for _ in range(2))
    single, other = (MaskEnv(**{**keywords, "reward_model": Smooth()}, repeat=2) for _ in range(2))
    vandalised: list[Any] = [env.reset(seed=0), single.reset(seed=0)]
    twin.reset(seed=0)
    other.reset(seed=0)
    for action in chosen(6, 2):
        ours, theirs = env.step(action), twin.step(action)
        assert same(ours, theirs)
        alone, reference = single.step(action[0]), other.step(action[0])
        assert same(alone, reference)
        vandalised += [ours, alone, single.reset()]
        assert same(vandalised[-1], other.reset())
        for shown in vandalised:
            for part in shown:
                for array in [part] if isinstance(part, np.ndarray) else _arrays(part):
                    array[:] = 1
        vandalised.clear()
    np.testing.assert_array_equal(DATA.images, pictures(8, channels=3).images)


def _arrays(info: Any) -> list[npt.NDArray[Any]]:
    if isinstance(info, np.ndarray):
        return [info]
    return [array for value in info.values() for array in _arrays(value)] if isinstance(info, dict) else []


@pytest.mark.parametrize("is_joint", [False, True])
@pytest.mark.parametrize("action", ["pixel", "box"])
def test_the_error_over_hidden_pixels_of_every_cell(action: str, is_joint: bool) -> None:
    """Any set of pixels: the reward is their mean error, and a cell's error that of its hidden pixels."""
    model = Constant(0.25)
    keywords = (joint if is_joint else frozen)(action=action, area_price=0.0, reward_model=model)
    env = MaskVectorEnv(3, **keywords)
    _, info = env.reset(seed=0)
    index = info["index"]
    space: Any = env.single_action_space
    rng = np.random.default_rng(0)
    chosen = rng.uniform(-1, 1, (3, *space.shape))
    if action == "box":
        chosen[:2] = [0.1, -0.2, 0.1, 0.3], [-0.6, 0.5, -0.2, 0.0]
    chosen[2] = -1
    masks = env.game.rule.to_cells(chosen, 3).numpy()
    assert 0 < masks[0].sum() < masks[0].size
    _, reward, _, _, info = env.step(chosen)
    square = ((2 * 0.25 - 1) - (DATA.images[index] / 127.5 - 1.0)) ** 2
    for i in range(2):
        assert reward[i] == pytest.approx(square[i].mean(0)[masks[i]].mean(), rel=1e-5)
        for row in range(GRID):
            for column in range(GRID):
                block = np.s_[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                hidden = square[i].mean(0)[block][masks[i][block]]
                got = info["final_info"]["cell_error"][i, row, column]
                assert np.isnan(got) if not hidden.size else got == pytest.approx(hidden.mean(), rel=1e-5)
    assert reward[2] == 0
    assert np.isnan(info["final_info"]["cell_error"][2]).all()


@pytest.mark.parametrize("joint_too", [False, True])
def test_images_without_labels_are_played(joint_too: bool) -> None:
    data = dataclasses.replace(DATA, labels=None, regions=None, class_names=())
    env = MaskVectorEnv(3, **(joint if joint_too else frozen)(dataset=data, action="patch"))
    _, info = env.reset(seed=0)
    assert info["label"].tolist() == [-1, -1, -1]
    assert (env.step([0, 4, 8])[1] > 0).all()
    assert env.oracle_reward().shape == (3,)


def test_one_class_alone_is_played_jointly() -> None:
    env = MaskVectorEnv(2, **joint(only_class="b", judge_batch=2))
    assert len(env.dataset) == 4
    _, info = env.reset(seed=0)
    for action in chosen(6, 2):
        assert info["label"].tolist() == [1, 1]
        info = env.step(action)[4]
    assert env.game.reward_model.version == 6
    one_class = pictures(4, channels=3, classes=1)
    assert MaskEnv(**joint(dataset=one_class)).dataset is one_class


@pytest.mark.parametrize("patch_cells", [1, 2, 3])
def test_a_patch_is_always_whole(patch_cells: int) -> None:
    env = MaskEnv(**frozen(action="patch", patch_cells=patch_cells, repeat=100))
    assert isinstance(env.action_space, gym.spaces.Discrete)
    corners = [(i, j) for i in range(GRID - patch_cells + 1) for j in range(GRID - patch_cells + 1)]
    assert env.action_space.n == len(corners)
    image, _ = env.reset(seed=0)
    for action, (top, left) in enumerate(corners):
        hidden, _, _, _, info = env.step(action)
        expected = np.zeros((GRID, GRID), np.bool_)
        expected[top : top + patch_cells, left : left + patch_cells] = True
        np.testing.assert_array_equal(~np.isnan(info["cell_error"]), expected)
        assert info["area"] == patch_cells**2 / GRID**2
        np.testing.assert_array_equal((hidden == 0).all(0), np.kron(expected, np.ones((4, 4))).astype(bool))
        np.testing.assert_array_equal(hidden[hidden != 0], image[hidden != 0])
        env.reset()
    for outside in (len(corners), -1):
        with pytest.raises(InvalidAction, match=f"from 0 to {len(corners) - 1}"):
            env.step(outside)


# ---- frozen ----------------------------------------------------------------------------------------------------------


def test_a_frozen_judge_never_changes() -> None:
    model = Normed()
    env = MaskVectorEnv(4, **frozen(reward_model=model))
    model.train()  # as somebody else's training loop may have left it
    before = everything(model)
    env.reset(seed=0)
    first = [env.step(action)[1] for action in chosen(10, 4)]
    assert same(before, everything(model))
    assert gradients(model) == [None] * 4
    assert not model.training
    env.reset(seed=0)
    assert same(first, [env.step(action)[1] for action in chosen(10, 4)])
    with pytest.raises(ConfigurationError, match="make the environment with joint=True"):
        judge_of(env).learn(*(torch.zeros(1, 3, 16, 16, dtype=torch.uint8),) * 2, torch.ones(1, GRID, GRID).bool())
    assert same(before, everything(model))


def test_an_evaluation_shares_the_judge_and_leaves_it_alone() -> None:
    model = Normed()
    env = MaskVectorEnv(2, **joint(reward_model=model, judge_batch=5, judge_lr=0.05))
    held_out = env.evaluation(dataset=DATA.subset([1, 4, 6]))
    assert held_out.game.reward_model.model is model
    assert held_out.game.objective == "reconstruction"
    env.reset(seed=0)
    for step, action in enumerate(chosen(6, 2)):
        env.step(action)
        before, waiting = everything(model), gradients(model)
        held_out.reset(seed=step)
        reward = held_out.step(action)[1]
        fresh = MaskVectorEnv(2, **frozen(dataset=held_out.dataset, reward_model=copy.deepcopy(model)))
        fresh.reset(seed=step)
        np.testing.assert_allclose(reward, fresh.step(action)[1], rtol=1e-5)
        held_out.game.load_state(held_out.game.state())
        assert same(before, everything(model))
        assert same(waiting, gradients(model))
    assert judge_of(env).waiting == 2


def test_a_frozen_reconstructor_of_its_own() -> None:
    model = Constant(0.25)
    reward = frozen_reward(model, "reconstruction", CPU)
    assert isinstance(reward, ReconstructionReward)
    images = torch.from_numpy(DATA.images)
    cells = torch.zeros(8, GRID, GRID, dtype=torch.bool)
    cells[:, 1, 2] = True
    gain, errors = reward.score(images, images, cells)
    expected = [by_hand(image, np.full(image.shape, 0.25), cells[0].numpy())[0] for image in DATA.images]
    assert gain.tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(errors[:, 1, 2], gain)
    rows = torch.tensor([5, 5, 0])
    gains = reward.against(images, torch.zeros(8))(rows, images[rows], cells[rows])
    assert torch.equal(gains, gain[rows])
    assert reward.terms == ("gain",)
    assert isinstance(frozen_reward(FlatJudge(DATA), "adversarial", CPU), ClassifierReward)


# ---- what every action earns -----------------------------------------------------------------------------------------


def enumerable(objective: str, **more: Any) -> Game:
    model = Smooth() if objective == "reconstruction" else FlatJudge(DATA)
    return frozen(objective=objective, action="patch", reward_model=model, **more)


@pytest.mark.parametrize("fill", ["zero", "mean", "blur"])
@pytest.mark.parametrize("objective", ["adversarial", "sensitivity", "reconstruction"])
def test_action_rewards_are_the_steps_rewards(objective: str, fill: str) -> None:
    env = MaskVectorEnv(3, **enumerable(objective, fill=fill, repeat=9))
    env.reset(seed=0)
    every = env.game.action_rewards()
    assert (every.shape, every.dtype.name) == ((3, 9), "float32")
    assert len(np.unique(every)) == every.size
    current = env.game.index.copy()
    np.testing.assert_array_equal(env.oracle_reward(), every.max(1))
    for action in range(9):
        _, reward, *_ = env.step([action, 8 - action, action])
        expected = every[range(3), [action, 8 - action, action]]
        np.testing.assert_allclose(reward, expected, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(env.game.index, current)
    np.testing.assert_allclose(env.game.action_rewards(current), every, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("objective", ["adversarial", "reconstruction"])
@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_action_rewards_are_independent_of_the_chunk(objective: str, fill: str) -> None:
    env = MaskVectorEnv(2, **enumerable(objective, fill=fill))
    index = [3, 0, 3, 7, 1]
    whole = env.game.action_rewards(index, chunk=10_000)
    np.testing.assert_array_equal(whole, env.game.action_rewards(np.array(index), chunk=10_000))
    for chunk in (1, 4, 9, 20):
        np.testing.assert_allclose(env.game.action_rewards(index, chunk=chunk), whole, rtol=1e-5, atol=1e-6)
    # An image's rewards are its own, noise included, wherever it stands.
    np.testing.assert_allclose(whole[0], whole[2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(env.game.action_rewards(7)[0], whole[3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(env.oracle_reward(index), whole.max(1), rtol=1e-5, atol=1e-6)
    assert env.game.action_rewards(np.zeros(0, np.int64)).shape == (0, 9)


@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_action_rewards_change_nothing(fill: str) -> None:
    keywords = joint(action="patch", fill=fill, judge_batch=5, judge_lr=0.01)
    env, twin = (MaskVectorEnv(2, **{**keywords, "reward_model": Normed()}) for _ in range(2))
    env.reset(seed=0)
    twin.reset(seed=0)
    model = env.game.reward_model.model
    for step in range(6):
        version, before, waiting = env.game.reward_model.weights_version(), env.game.state(), gradients(model)
        env.game.action_rewards()
        env.oracle_reward([step])
        assert env.game.reward_model.weights_version() == version
        assert same(before, env.game.state())
        assert same([g for g in waiting if g is not None], [g for g in gradients(model) if g is not None])
        assert not model.training
        assert same(env.step([step, 8 - step]), twin.step([step, 8 - step]))


def test_the_oracle_of_one_environment() -> None:
    env = MaskEnv(**enumerable("reconstruction", repeat=9))
    env.reset(seed=0)
    best = env.oracle_reward()
    assert isinstance(best, float)
    rewards = []
    for action in range(9):
        rewards.append(env.step(action)[1])
        env.reset()
    assert best == pytest.approx(max(rewards), rel=1e-5)


def test_what_cannot_be_enumerated_says_why() -> None:
    grid, patch = MaskEnv(**frozen()), MaskVectorEnv(2, **enumerable("reconstruction"))
    grid.reset(seed=0)
    with pytest.raises(ConfigurationError, match=r"action='grid' has too many actions .* needs action='patch'"):
        grid.oracle_reward()
    for env in (patch, MaskEnv(**enumerable("reconstruction"))):
        with pytest.raises(gym.error.ResetNeeded, match="call reset"):
            env.oracle_reward()
    assert patch.oracle_reward([0]).shape == (1,)
    wrong: list[Any] = [[8], [-1], [[0]], [0.5], [True, False], ["0"], [2**40]]
    for index in wrong:
        with pytest.raises(ConfigurationError, match=r"index must be \(M,\) whole positions from 0 to 7"):
            patch.oracle_reward(index)
    with pytest.raises(ConfigurationError, match="chunk=0 must be an integer of at least 1"):
        patch.game.action_rewards(chunk=0)
