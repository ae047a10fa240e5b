"""The reconstruction game: what a mask earns, when and from what the judge learns, and what every action would earn."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import Counter
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from env_helpers import FlatJudge, pictures, reconstructor, same
from torch import Tensor, nn

from maskaug.agents.sb3 import as_vec_env
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, InvalidAction, JudgeError
from maskaug.envs.masking import cells_to_mask
from maskaug.envs.networks import seeded_weights, to_float
from maskaug.envs.rewards import ClassifierReward, ReconstructionReward, frozen_reward, mean_over

DATA = pictures(8, channels=3)
GRID = 4
CPU = torch.device("cpu")
Game = dict[str, Any]
Cells = npt.NDArray[np.int64]


class Constant(nn.Module):
    """One grey value everywhere, whatever it sees."""

    def __init__(self, answer: float = 0.25) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer))
        #: the number of images of each forward pass
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return torch.zeros_like(images) + self.answer


class Smooth(nn.Module):
    """Two convolutions without any norm: each image's answer is its own, in training as in evaluation mode."""

    def __init__(self, channels: int = 3, seed: int = 0) -> None:
        super().__init__()
        with seeded_weights(seed):
            self.layers = nn.Sequential(
                nn.Conv2d(channels, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, channels, 3, padding=1)
            )

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.layers(images)
        return answer


class Normed(nn.Module):
    """Batch norm, whose statistics move with every training pass; and it can sulk.

    Attributes:
        sulks: at this forward pass, counted from 0 on, the answer is NaN in the image's first pixel.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        with seeded_weights(0):
            self.layers = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.sulks: int | None = None

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.layers(images)
        if self.sulks is not None:
            self.sulks -= 1
            if self.sulks < 0:
                answer = torch.where(torch.arange(16) == 0, torch.nan, answer)
        return answer


def frozen(**more: Any) -> Game:
    reconstructs: Game = {"objective": "reconstruction", "joint": False, "reward_model": Smooth()}
    return {"dataset": DATA, "grid": GRID, "device": "cpu", **reconstructs, **more}


def joint(**more: Any) -> Game:
    return frozen(**{"joint": True, "reward_model": Smooth(), **more})


def chosen(steps: int, num_envs: int, seed: int = 0) -> Cells:
    """Grid actions (steps, num_envs, 16)."""
    return np.random.default_rng(seed).integers(0, 2, (steps, num_envs, GRID**2))


def judge_of(env: MaskVectorEnv | MaskEnv) -> ReconstructionReward:
    reward_model = env.game.reward_model
    assert isinstance(reward_model, ReconstructionReward)
    return reward_model


def everything(module: nn.Module) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def by_hand(image: npt.NDArray[np.uint8], answer: npt.NDArray[Any], cells: Cells) -> tuple[float, Cells]:
    """(gain, error of each hidden cell (g, g)), pixel by pixel in double precision, pixels in [−1, 1]."""
    square = ((2.0 * answer - 1) - (image / 127.5 - 1.0)) ** 2
    side = image.shape[-1] // GRID
    errors = np.full((GRID, GRID), np.nan)
    hidden: list[float] = []
    for row, column in np.argwhere(cells.reshape(GRID, GRID)):
        block = square[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        errors[row, column] = block.mean()
        hidden += block.ravel().tolist()
    return float(np.mean(hidden)) if hidden else 0.0, errors


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


# ---- how the judge learns --------------------------------------------------------------------------------------------


# 20 masks in 5 steps; an update after every 6th falls into the middle of two of these steps.
@pytest.mark.parametrize(("judge_batch", "passes"), [(3, 7), (4, 5), (100, 5)])
def test_each_image_goes_through_the_network_once(judge_batch: int, passes: int) -> None:
    model = Constant()
    env = MaskVectorEnv(4, **joint(reward_model=model, judge_batch=judge_batch, repeat=2))
    env.reset(seed=0)
    model.seen.clear()
    for step, action in enumerate(chosen(5, 4)):
        env.step(action)
        assert sum(model.seen) == 4 * (step + 1)
    assert len(model.seen) == passes
    model.seen.clear()
    single = MaskEnv(**joint(reward_model=model, judge_batch=2))
    single.reset(seed=0)
    model.seen.clear()
    for action in chosen(5, 1):
        single.step(action[0])
        single.reset()
    assert model.seen == [1] * 5


@pytest.mark.parametrize("visible_weight", [0.0, 0.7])
def test_the_gradient_is_that_of_the_mean_reward(visible_weight: float) -> None:
    model = Smooth()
    reward = ReconstructionReward(model, CPU, trainable=True, batch=8, visible_weight=visible_weight)
    images = torch.from_numpy(DATA.images)
    cells = torch.from_numpy(chosen(1, 8)[0].reshape(-1, GRID, GRID)).bool()
    cells[2], cells[3] = False, True
    mask = cells_to_mask(cells, 16, 16)
    hidden = images * ~mask[:, None]
    first = reward.learn(images[:3], hidden[:3], cells[:3])
    assert (reward.waiting, reward.room, reward.version) == (3, 5, 0)
    reward.learn(images[3:7], hidden[3:7], cells[3:7])
    got = gradients(model)

    twin = Smooth().double()
    square = ((2 * twin(hidden.double() / 255) - 1) - (images.double() / 127.5 - 1)).square()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(7):
        inside, outside = square[i][:, mask[i]], square[i][:, ~mask[i]]
        # The mean over 8 masks, of which 7 have been judged.
        total = total + (inside.mean() if inside.numel() else 0) / 8
        total = total + visible_weight * (outside.mean() if outside.numel() else 0) / 8
        if i < 3 and inside.numel():
            assert first[0][i].item() == pytest.approx(inside.mean().item(), rel=1e-5)
    total.backward()  # type: ignore[no-untyped-call]
    for a, b in zip(got, twin.parameters(), strict=True):
        assert a is not None
        assert b.grad is not None
        torch.testing.assert_close(a.double(), b.grad, rtol=1e-4, atol=1e-7)

    before = everything(model)
    reward.learn(images[7:], hidden[7:], cells[7:])
    assert (reward.waiting, reward.room, reward.version) == (0, 8, 1)
    assert not same(before, everything(model))
    assert not model.training


def test_the_visible_pixels_never_enter_the_reward() -> None:
    rewards = []
    for weight in (None, 0.0, 5.0):
        env = MaskVectorEnv(3, **joint(judge_batch=100, visible_weight=weight))
        env.reset(seed=0)
        rewards.append([env.step(action)[1:] for action in chosen(4, 3)])
    assert same(rewards[0], rewards[1])
    assert same(rewards[0], rewards[2])


@pytest.mark.parametrize("num_envs", [1, 3, 5, 8, 13])
@pytest.mark.parametrize("repeat", [1, 2])
def test_an_update_is_made_of_so_many_masks_however_many_slots(num_envs: int, repeat: int) -> None:
    env = MaskVectorEnv(num_envs, **joint(reward_model=Constant(), judge_batch=5, repeat=repeat))
    env.reset(seed=0)
    assert np.isnan(env.game.judge_loss)
    for step, action in enumerate(chosen(12, num_envs), 1):
        _, _, _, _, info = env.step(action)
        assert env.game.reward_model.version == step * num_envs // (5 * repeat)
        assert judge_of(env).waiting == step * num_envs % (5 * repeat)
        assert env.game.judge_loss == pytest.approx(info["final_info"]["gain"].mean(), rel=1e-6)


def play_in_line(num_envs: int, judge_batch: int, actions: Cells) -> tuple[list[float], dict[str, Any]]:
    """Rewards one after the other and the last weights of a game whose slots share out one sequence of images."""
    env = MaskVectorEnv(num_envs, **joint(reward_model=Smooth(), judge_batch=judge_batch, judge_lr=0.01))
    env.reset(seed=0)
    order = np.arange(4 * num_envs * len(DATA)).reshape(-1, num_envs).T[:, : len(DATA)]
    env.game._order[:] = order % len(DATA)
    env.game._scene = None
    rewards: list[float] = []
    for step in range(0, len(actions), num_envs):
        if step == num_envs * len(DATA):
            env.game._order[:] = order % len(DATA)
            env.game._scene = None
        rewards += env.step(actions[step : step + num_envs])[1].tolist()
    return rewards, everything(env.game.reward_model.model)


@pytest.mark.parametrize("judge_batch", [1, 3, 4, 5])
def test_slots_beside_one_another_learn_as_if_one_after_the_other(judge_batch: int) -> None:
    actions = chosen(16, 1)[:, 0]
    rewards, weights = play_in_line(1, judge_batch, actions)
    assert len(set(rewards)) > 1
    for num_envs in (2, 4, 8):
        others, theirs = play_in_line(num_envs, judge_batch, actions)
        np.testing.assert_allclose(others, rewards, rtol=1e-4)
        for name, value in weights.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)
    start = everything(Smooth())
    assert all(not torch.equal(start[name], weights[name]) for name in start)


def test_the_judge_learns_to_fill_in() -> None:
    model = Constant(0.0)
    env = MaskVectorEnv(8, **joint(reward_model=model, judge_batch=8, judge_lr=0.02, action="patch"))
    env.reset(seed=0)
    gains = [env.step(np.arange(8))[1].mean() for _ in range(60)]
    assert gains[-1] < gains[0] / 2
    # The best constant is the mean of what was hidden.
    assert model.answer.item() == pytest.approx(DATA.images.mean() / 255, abs=0.08)


def test_gradients_that_a_module_brings_along_are_not_its_judges() -> None:
    fresh, used = Smooth(), Smooth()
    for parameter in used.parameters():
        parameter.grad = torch.full_like(parameter, 100)
    ends = []
    for model in (fresh, used):
        env = MaskVectorEnv(2, **joint(reward_model=model, judge_batch=3))
        env.reset(seed=0)
        ends.append([env.step(action)[1] for action in chosen(4, 2)])
        ends[-1].append(everything(model))  # type: ignore[arg-type]
    assert same(*ends)


def test_a_seed_forgets_what_waited_for_an_update() -> None:
    env, twin = (MaskVectorEnv(2, **joint(reward_model=Smooth(), judge_batch=5)) for _ in range(2))
    env.reset(seed=3)
    env.step(chosen(1, 2, seed=9)[0])
    assert judge_of(env).waiting == 2
    assert same(env.reset(seed=0), twin.reset(seed=0))
    assert judge_of(env).waiting == 0
    for action in chosen(6, 2):
        assert same(env.step(action), twin.step(action))
    # Without a seed the game goes on, and so does the update.
    assert judge_of(env).waiting == 2
    env.reset()
    assert judge_of(env).waiting == 2


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


# ---- state, pickle, deepcopy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["zero", "noise"])
@pytest.mark.parametrize("how", ["state", "pickle", "deepcopy"])
def test_a_game_goes_on_to_the_bit_with_gradients_that_wait(fill: str, how: str) -> None:
    keywords = joint(fill=fill, repeat=2, judge_batch=5, judge_lr=0.01)
    env = MaskVectorEnv(3, **{**keywords, "reward_model": Normed()})
    env.reset(seed=0)
    played = chosen(30, 3)
    for action in played[:9]:
        env.step(action)
    assert env.game.reward_model.version > 0
    assert judge_of(env).waiting == 7
    saved = env.game.state()
    untouched = copy.deepcopy(saved)
    if how == "state":
        twin = MaskVectorEnv(3, **{**keywords, "reward_model": Normed()}, seed=5)
        twin.reset(seed=8)
        twin.step(played[0])
        twin.game.load_state(saved)
        np.testing.assert_array_equal(twin.game.observe(), env.game.observe())
    else:
        twin = pickle.loads(pickle.dumps(env)) if how == "pickle" else copy.deepcopy(env)  # noqa: S301
    assert same(gradients(env.game.reward_model.model), gradients(twin.game.reward_model.model))
    assert same(env.game.state(), twin.game.state())
    for action in played[9:]:
        assert same(env.step(action), twin.step(action))
    assert same(env.game.state(), twin.game.state())
    assert same(saved, untouched)
    assert same(env.reset(seed=9), twin.reset(seed=9))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_evaluation_copied_along_leaves_the_gradients_that_wait(order: tuple[int, int]) -> None:
    env = MaskVectorEnv(2, **joint(judge_batch=5))
    held_out = env.evaluation(dataset=DATA)
    env.reset(seed=0)
    env.step(chosen(1, 2)[0])
    pair = [(env, held_out)[i] for i in order]
    for copied in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):  # noqa: S301
        twin, shared = (copied[order.index(i)] for i in (0, 1))
        assert shared.game.reward_model.model is twin.game.reward_model.model
        assert same(gradients(twin.game.reward_model.model), gradients(env.game.reward_model.model))
        assert gradients(twin.game.reward_model.model)[0] is not None


# ---- what is not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["zero", "noise"])
@pytest.mark.parametrize(("judge_batch", "sulks"), [(100, 0), (4, 0), (3, 1), (1, 3)])
def test_a_judge_that_fails_leaves_everything_as_it_was(fill: str, judge_batch: int, sulks: int) -> None:
    keywords = joint(fill=fill, judge_batch=judge_batch, judge_lr=0.01)
    model = Normed()
    env = MaskVectorEnv(4, **{**keywords, "reward_model": model})
    twin = MaskVectorEnv(4, **{**keywords, "reward_model": Normed()})
    env.reset(seed=0)
    twin.reset(seed=0)
    for step, action in enumerate(chosen(8, 4)):
        action[:, 0] = 1
        if step in (0, 1, 5):
            # In the middle of a step, too: what its first part has taught is taken back.
            model.sulks = sulks
            before, waiting = env.game.state(), gradients(model)
            with pytest.raises(JudgeError, match=r"not finite after .* lower judge_lr"):
                env.step(action)
            assert same(before, env.game.state())
            assert same([g for g in waiting if g is not None], [g for g in gradients(model) if g is not None])
            assert not model.training
            model.sulks = None
        assert same(env.step(action), twin.step(action))
    assert same(env.game.state(), twin.game.state())


def test_an_error_that_is_not_finite_in_what_was_left_never_reaches_the_weights() -> None:
    model = Normed()
    env = MaskVectorEnv(2, **joint(reward_model=model, judge_batch=2))
    env.reset(seed=0)
    action = np.zeros((2, 16))
    action[:, 5] = 1
    model.sulks = 0
    with pytest.raises(JudgeError, match="not finite"):
        env.step(action)
    model.sulks = None
    env.step(action)
    assert all(torch.isfinite(value).all() for value in everything(model).values())


def test_a_frozen_judge_that_fails_is_named_with_its_images() -> None:
    model = Normed()
    env = MaskVectorEnv(2, **frozen(reward_model=model, fill="noise"))
    _, info = env.reset(seed=0)
    before = env.game.state()
    model.sulks = 0
    with pytest.raises(JudgeError, match=r"not finite for picture \d.*; check its weights") as caught:
        env.step(np.ones((2, 16)))
    assert all(f"picture {index}" in str(caught.value) for index in info["index"])
    assert same(before, env.game.state())


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


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learns", [False, True])
def test_nothing_waits_for_a_single_image(learns: bool) -> None:
    counts: list[Counter[str]] = []
    data = pictures(40)
    for num_envs in (8, 32):
        model = reconstructor(data)
        batch = num_envs if learns else 1000
        env = MaskVectorEnv(
            num_envs,
            **joint(dataset=data, reward_model=model, judge_batch=batch, action="patch", grid=2, patch_cells=1),
        )
        env.reset(seed=0)
        action = np.arange(num_envs) % 4
        env.step(action)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            env.step(action)
        counts.append(Counter({event.key: event.count for event in profile.key_averages()}))
        assert env.game.reward_model.version == 2 * learns
    # One question, whether the error is finite; and on the CPU the fused optimiser asks each parameter for its step.
    most = 1 + learns * len(list(model.parameters()))
    for name in ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"):
        assert counts[0][name] == counts[1][name] <= most, name
    assert counts[0]["aten::nonzero"] == 0
    # Nothing at all is done once an image: 24 more images are no 24 more calls of anything. (Not quite the same ones,
    # since the convolutions choose their way by the batch's size.)
    assert max((counts[1] - counts[0]).values(), default=0) < 24
    assert counts[0]["aten::convolution"] == counts[1]["aten::convolution"] > 0
