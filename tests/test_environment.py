"""The rules of the game: which image comes when, what a slot sees, when the judge learns, what is refused."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from env_helpers import BrightnessJudge, FlatJudge, pictures, same, small, values
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, DatasetError, JudgeError
from maskaug.envs.game import MaskGame, resolve_device
from maskaug.envs.judges import make_judge, save_judge
from maskaug.envs.masking import FILLS

DATA = pictures(7)
GRID = 4
ACTIONS = ("grid", "patch")
Game = dict[str, Any]


def frozen(**more: Any) -> Game:
    return {"dataset": DATA, "grid": GRID, "joint": False, "reward_model": FlatJudge(DATA), **more}


def actions(kind: str, steps: int, num_envs: int, seed: int = 0) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(seed)
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
        "regions": ~DATA.regions,
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


# ---- the judge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("repeat", [1, 2])
def test_the_judge_learns_after_so_many_images_however_many_slots(num_envs: int, repeat: int) -> None:
    env = MaskVectorEnv(num_envs, dataset=DATA, grid=GRID, repeat=repeat, judge_batch=5, reward_model=small(DATA))
    sizes: list[int] = []
    update = env.game.reward_model.update

    def spy(images: Tensor, aiding: Tensor, labels: Tensor) -> dict[str, float]:
        sizes.append(len(images))
        return update(images, aiding, labels)

    env.game.reward_model.update = spy  # type: ignore[method-assign]
    env.reset(seed=0)
    for step in range(1, 25):
        env.step(np.ones((num_envs, 16)))
        assert env.game.reward_model.version == (step // repeat) * num_envs // 5
    assert set(sizes) == {5}
    assert np.isfinite(env.game.judge_loss)


def test_the_judge_learns_from_the_clean_image_and_what_its_best_rewarded_try_keeps() -> None:
    taught: list[tuple[Tensor, Tensor, Tensor]] = []
    env = MaskVectorEnv(2, dataset=DATA, grid=GRID, repeat=3, judge_batch=20, reward_model=small(DATA))
    env.game.reward_model.update = lambda *batch: taught.append(batch) or {"judge_loss": 0.0}  # type: ignore[method-assign,func-returns-value]
    _, info = env.reset(seed=0)
    expected: list[tuple[int, npt.NDArray[np.float64]]] = []
    for _ in range(10):
        best = np.full(2, -np.inf)
        masks = np.zeros((2, 16))
        index = info["index"]
        for action in actions("grid", 3, 2, seed=len(expected)):
            _, reward, _, _, info = env.step(action)
            assert info["final_info"]["index"].tolist() == index.tolist()
            masks[reward > best] = action[reward > best]
            best = np.maximum(best, reward)
        expected += list(zip(index, masks, strict=True))
    ((images, aiding, labels),) = taught
    assert DATA.labels is not None
    for i, (index, cells) in enumerate(expected):
        mask = np.kron(cells.reshape(4, 4), np.ones((4, 4))).astype(bool)
        np.testing.assert_array_equal(images[i].numpy(), DATA.images[index])
        np.testing.assert_array_equal(aiding[i].numpy(), np.where(mask, DATA.images[index], 0))
        assert labels[i] == DATA.labels[index]


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_the_aiding_view_is_filled_as_the_hidden_one_is(fill: str) -> None:
    taught: list[Tensor] = []
    env = MaskEnv(dataset=DATA, grid=GRID, judge_batch=1, fill=fill, reward_model=small(DATA))
    env.game.reward_model.update = lambda images, aiding, labels: taught.append(aiding) or {"judge_loss": 0.0}  # type: ignore[method-assign,func-returns-value]
    for seed in (0, 0, 1):
        env.reset(seed=seed)
        env.step(np.zeros(16))
        env.reset()
    assert torch.equal(taught[0], taught[1])
    assert (len(values(taught[0])) == 1) == (fill == "mean")


def test_a_try_that_was_never_played_teaches_nothing() -> None:
    env = MaskEnv(dataset=DATA, grid=GRID, judge_batch=1, reward_model=small(DATA))
    for _ in range(5):
        env.reset()
    assert env.game.reward_model.version == 0
    env.step(np.ones(16))
    assert env.game.reward_model.version == 0
    env.reset()
    assert env.game.reward_model.version == 1


def test_a_seed_forgets_what_the_judge_was_still_to_learn() -> None:
    env = MaskEnv(dataset=DATA, grid=GRID, judge_batch=2, reward_model=small(DATA))
    for seed in (0, 1, 2):
        env.reset(seed=seed)
        env.step(np.ones(16))
        env.reset()
        assert env.game.reward_model.version == 0
    env.step(np.ones(16))
    env.reset()
    assert env.game.reward_model.version == 1


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def test_a_frozen_judge_never_changes() -> None:
    judge = small(DATA)
    before = weights(judge)
    env = MaskVectorEnv(4, **frozen(reward_model=judge))
    env.reset(seed=0)
    for action in actions("grid", 20, 4):
        env.step(action)
    assert same(before, weights(judge))
    assert all(p.grad is None for p in judge.parameters())


def test_an_evaluation_shares_the_weights_and_never_trains_them() -> None:
    judge = small(DATA)
    training = MaskVectorEnv(4, dataset=DATA, grid=GRID, judge_batch=4, judge_lr=0.05, reward_model=judge)
    evaluation = MaskVectorEnv(4, **frozen(reward_model=judge, repeat=9))
    assert evaluation.game.reward_model.model is training.game.reward_model.model is judge
    training.reset(seed=0)
    evaluation.reset(seed=0)
    for action in actions("grid", 6, 4):
        before = weights(judge)
        reward = evaluation.step(action)[1]
        assert same(before, weights(judge))
        # What the same weights say in an environment that has seen nothing else: no loss may be of older weights.
        fresh = MaskVectorEnv(4, **frozen(reward_model=copy.deepcopy(judge), repeat=9))
        fresh.reset(seed=0)
        np.testing.assert_allclose(reward, fresh.step(action)[1], rtol=1e-5, atol=1e-6)
        training.step(action)
        assert not same(before, weights(judge))


@pytest.mark.parametrize("repeat", [1, 4])
def test_the_clean_loss_is_computed_once_per_image(repeat: int) -> None:
    judge = BrightnessJudge()
    env = MaskVectorEnv(3, **frozen(repeat=repeat, reward_model=judge))
    judge.seen.clear()
    env.reset(seed=0)
    steps = 2 * repeat * len(DATA)
    for action in actions("grid", steps, 3):
        env.step(action)
    assert sum(judge.seen) - 3 * steps == len(DATA)


class Sulking(BrightnessJudge):
    """NaN for everything, for as long as it sulks."""

    def __init__(self) -> None:
        super().__init__()
        self.sulks = False

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits * torch.nan if self.sulks else logits


@pytest.mark.parametrize("fill", ["zero", "noise"])
@pytest.mark.parametrize("joint", [False, True])
def test_nan_from_the_judge_names_the_image_and_the_step_can_be_tried_again(fill: str, joint: bool) -> None:
    keywords: Game = {"dataset": DATA, "grid": GRID, "fill": fill, "joint": joint, "repeat": 2}
    judge = Sulking()
    env, twin = MaskVectorEnv(2, **keywords, reward_model=judge), MaskVectorEnv(2, **keywords, reward_model=Sulking())
    _, info = env.reset(seed=0)
    twin.reset(seed=0)
    for step, action in enumerate(actions("grid", 12, 2)):
        if step in (0, 1, 7):
            judge.sulks = True
            before = env.game.state()
            with pytest.raises(JudgeError, match=r"not finite for picture \d.*; check") as caught:
                env.step(action)
            assert all(f"picture {index}" in str(caught.value) for index in info["index"])
            assert same(before, env.game.state())
            judge.sulks = False
        got, expected = env.step(action), twin.step(action)
        assert same(got, expected)
        info = got[4]


def test_only_the_images_that_are_not_finite_are_named() -> None:
    class Picky(BrightnessJudge):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            odd = (images * 255 == torch.from_numpy(DATA.images[3]).float()).flatten(1).all(1)
            return logits.masked_fill(odd[:, None], torch.inf)

    env = MaskVectorEnv(7, **frozen(reward_model=Picky()))
    env.reset(seed=0)
    while True:
        named = [f"picture {i}" for i in env.game.index if i == 3]
        if named:
            with pytest.raises(JudgeError, match=f"not finite for {', '.join(named[:3])}[;a ]"):
                env.step(np.ones((7, 16)))
            break
        env.step(np.ones((7, 16)))


# ---- state and pickle ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["zero", "noise"])
@pytest.mark.parametrize("how", ["state", "pickle"])
def test_a_saved_game_continues_to_the_bit(fill: str, how: str) -> None:
    keywords: Game = {"dataset": DATA, "grid": GRID, "fill": fill, "repeat": 2, "judge_batch": 5, "judge_lr": 0.01}
    env = MaskVectorEnv(3, **keywords)
    env.reset(seed=0)
    played = actions("grid", 80, 3)
    for action in played[:25]:
        env.step(action)
    # In the middle of an image, with a judge that has learned and a batch for it that is half full.
    assert env.game.reward_model.version > 0
    assert env.game.state()["try"].tolist() == [1, 1, 1]
    assert len(env.game.state()["pending_index"]) == 1
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(env))  # noqa: S301
    else:
        twin = MaskVectorEnv(3, **keywords, seed=77)
        state = env.game.state()
        untouched = copy.deepcopy(state)
        twin.game.load_state(state)
        np.testing.assert_array_equal(twin.game.observe(), env.game.observe())
    for action in played[25:]:
        assert same(env.step(action), twin.step(action))
    assert same(env.game.state(), twin.game.state())
    if how == "state":
        assert same(state, untouched)
    assert same(env.reset(seed=9), twin.reset(seed=9))


def test_a_game_that_has_not_begun_can_be_saved_too() -> None:
    env, twin = MaskEnv(**frozen()), MaskEnv(**frozen())
    twin.game.load_state(env.game.state())
    assert same(env.reset(seed=1), twin.reset(seed=1))


def test_a_state_of_another_game_is_refused() -> None:
    state = MaskGame(2, **frozen()).state()
    for other in (MaskGame(3, **frozen()), MaskGame(2, **frozen(dataset=pictures(7, seed=1)))):
        with pytest.raises(ConfigurationError, match="other images or another number of environments"):
            other.load_state(state)


def test_saving_forgets_what_older_weights_said() -> None:
    judge = small(DATA)
    env = MaskEnv(**frozen(reward_model=judge))
    env.reset(seed=0)
    env.step(np.ones(16))
    with torch.no_grad():
        judge.head.bias.add_(torch.tensor([3.0, 0.0]))
    twin = MaskEnv(**frozen(reward_model=small(DATA)))
    twin.game.load_state(env.game.state())
    env.reset(seed=0)
    twin.reset(seed=0)
    assert same(env.step(np.ones(16)), twin.step(np.ones(16)))


# ---- keywords --------------------------------------------------------------------------------------------------------


def outcome(**keywords: Any) -> list[Any]:
    """All that a game shows from outside over some steps, its judge included."""
    given: Game = {"dataset": "synthetic", "n": 24, "image_size": 40, "difficulty": "easy", "judge_batch": 4}
    given |= keywords
    given = {name: value for name, value in given.items() if value is not None}
    env = MaskVectorEnv(2, **given)
    shown: list[Any] = [env.reset(seed=0), str(env.single_action_space)]
    rng = np.random.default_rng(0)
    for _ in range(8):
        space: Any = env.single_action_space
        count = int(space.n)
        low = rng.integers(0, 2, (2, count)) if space.shape else rng.integers(0, count, 2)
        shown.append(env.step(low))
    shown.append([value.clone() for value in env.game.reward_model.model.state_dict().values()])
    return shown


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_judge(path, make_judge("small", 1, 2, 5))
    return path


CHANGES: list[tuple[Game, Game]] = [
    ({}, {"split": "val"}),
    ({}, {"image_size": 48}),
    ({}, {"channels": 3}),
    ({}, {"objective": "sensitivity"}),
    ({}, {"action": "patch"}),
    ({}, {"grid": 4}),
    ({"action": "patch"}, {"action": "patch", "patch_cells": 3}),
    ({}, {"area": 0.5}),
    ({}, {"area_price": 2.0}),
    ({}, {"fill": "mean"}),
    ({"fill": "mean"}, {"fill": "blur"}),
    ({}, {"fill": "noise"}),
    ({}, {"judge_lr": 0.02}),
    ({}, {"judge_batch": 3}),
    ({}, {"repeat": 2}),
    ({}, {"seed": 1}),
    ({}, {"kind": "mr"}),
    ({}, {"difficulty": "hard"}),
    ({}, {"n": 30}),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=lambda change: " ".join(change) or "-")
def test_every_keyword_changes_something(before: Game, after: Game) -> None:
    assert same(outcome(**before), outcome(**before))
    assert not same(outcome(**before), outcome(**after))


def test_the_judges_keywords_change_something(file: Path) -> None:
    assert not same(outcome(), outcome(reward_model=file))
    still: Game = {"joint": False, "judge_batch": None, "reward_model": file}
    assert not same(outcome(reward_model=file), outcome(**still))
    played = outcome(**still, only_class="fracture")
    assert set(played[0][1]["label"]) == {1}
    assert not same(outcome(**still), played)
    assert not same(played, outcome(**still, only_class="normal"))


def test_every_keyword_has_its_test() -> None:
    import inspect

    tested = {name for change in CHANGES for name in change[1]} | {"joint", "reward_model", "only_class"}
    elsewhere = {"num_envs", "dataset", "root", "device", "options"}
    assert set(inspect.signature(MaskGame).parameters) == (tested | elsewhere) - {"kind", "difficulty", "n"}


def test_defaults_are_those_that_are_documented() -> None:
    assert same(outcome(), outcome(area=0.25, area_price=1.0, fill="zero", joint=True, judge_lr=1e-3, grid=8, repeat=1))
    assert same(outcome(), outcome(objective="adversarial", action="grid", reward_model="small", seed=0, split="train"))
    assert same(outcome(judge_batch=None), outcome(judge_batch=32))
    assert same(outcome(action="patch"), outcome(action="patch", patch_cells=2))


def test_device_is_where_the_judge_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for device, words in (("cuda", "no CUDA device here"), ("gpu", "is not a device"), (None, "is not a device")):
        with pytest.raises(ConfigurationError, match=words):
            MaskEnv(dataset=DATA, grid=GRID, device=device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda")
    with pytest.raises(ConfigurationError, match="sees 1 CUDA devices"):
        resolve_device("cuda:1")


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"objective": "preserving"}, r"unknown in this version; use one of \('adversarial', 'sensitivity'\)"),
        ({"fill": "black"}, "use one of .*'zero', 'mean', 'noise', 'blur'"),
        ({"judge_lr": 1e-3}, "do nothing with joint=False; leave them out"),
        ({"judge_batch": 8}, "do nothing with joint=False; leave them out"),
        ({"joint": True, "judge_lr": 0}, "judge_lr=0 must be a finite number above 0"),
        ({"joint": True, "judge_lr": "fast"}, "must be a finite number above 0"),
        ({"joint": True, "judge_batch": 0}, "judge_batch=0 must be an integer of at least 1"),
        ({"repeat": 0}, "repeat=0 must be an integer of at least 1"),
        ({"repeat": 1.5}, "repeat=1.5 must be an integer"),
        ({"num_envs": 0}, "num_envs=0 must be"),
        ({"reward_model": None}, "reward_model=FILE from `maskaug pretrain`"),
        ({"joint": True, "only_class": "a"}, "add joint=False and reward_model=FILE"),
        ({"only_class": "z"}, r"not a class of pictures: \('a', 'b'\)"),
        ({"patch_cells": 2}, "patch_cells goes with action='patch'"),
        ({"action": "patch", "area": 0.25}, "give patch_cells alone"),
        ({"grid": 5}, "choose a grid that does"),
        ({"aera": 0.25}, "unknown keyword 'aera'; did you mean 'area'?"),
        ({"rewardmodel": "small"}, "did you mean 'reward_model'?"),
        ({"zzzz": 1}, "unknown keyword 'zzzz'; Known are: action, area"),
        ({"dataset": "synthetic", "dificulty": "easy"}, "did you mean 'difficulty'?"),
        ({"dataset": "synthetic", "task": "presence"}, "unknown keyword 'task'"),
        ({"dataset": "imagenet"}, "known are busi"),
        ({"root": "/data"}, r"root='/data' cannot be combined with dataset=ImageDataset\(...\)"),
        ({"split": "test"}, "whose split is 'all'; leave it out"),
        ({"image_size": 128}, "whose image_size is 16; leave it out"),
        ({"channels": 3}, "whose channels is 1; leave it out"),
        ({"dataset": dataclasses.replace(DATA, labels=None)}, "has no labels"),
        ({"dataset": pictures(4, classes=1)}, "one class alone"),
        ({"joint": True, "reward_model": small(DATA).requires_grad_(False)}, "use joint=False"),
    ],
)  # fmt: skip
def test_what_cannot_work_says_what_would(keywords: Game, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        MaskVectorEnv(**{"num_envs": 1, **frozen(), **keywords})


def test_a_data_sets_own_values_may_be_said_again() -> None:
    assert MaskEnv(**frozen(split="all", image_size=16, channels=1)).dataset is DATA


def test_one_environment_has_no_num_envs() -> None:
    with pytest.raises(ConfigurationError, match=r"gym.make_vec\(id, num_envs=N\)"):
        MaskEnv(**frozen(), num_envs=2)


def test_a_wrong_root_is_a_data_sets_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=str(tmp_path)):
        MaskEnv(dataset="busi", root=tmp_path / "x")


def test_over_shares_an_existing_game() -> None:
    game = MaskGame(2, **frozen())
    env = MaskVectorEnv.over(game)
    env.reset(seed=0)
    assert env.game is game
    assert game.started
    assert env.step(np.ones((2, 16)))[1].shape == (2,)
