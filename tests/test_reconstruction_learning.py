"""The reconstruction game: when and from what the judge learns, what is kept of it, and what a step costs."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import pictures, reconstructor, same
from reconstruction_game import (
    CPU,
    DATA,
    GRID,
    Cells,
    Constant,
    Normed,
    Smooth,
    chosen,
    everything,
    frozen,
    gradients,
    joint,
    judge_of,
)

from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import JudgeError
from maskaug.envs.masking import cells_to_mask
from maskaug.envs.reconstruction import ReconstructionReward

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
    env.game.schedule.order[:] = order % len(DATA)
    env.game._scene = None
    rewards: list[float] = []
    for step in range(0, len(actions), num_envs):
        if step == num_envs * len(DATA):
            env.game.schedule.order[:] = order % len(DATA)
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
    assert model.answer.item() == pytest.approx(np.asarray(DATA.images).mean() / 255, abs=0.08)


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
