"""When and from what the judge learns, what is refused, and that a saved game continues to the bit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from env_helpers import BrightnessJudge, FlatJudge, pictures, same, small, values
from torch import Tensor, nn

from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.game import MaskGame
from maskaug.envs.rewards import ClassifierReward

DATA = pictures(7)
GRID = 4
Game = dict[str, Any]


def frozen(**more: Any) -> Game:
    return {"dataset": DATA, "grid": GRID, "joint": False, "reward_model": FlatJudge(DATA), **more}


def judge_of(env: MaskVectorEnv | MaskEnv) -> ClassifierReward:
    reward_model = env.game.reward_model
    assert isinstance(reward_model, ClassifierReward)
    return reward_model


def actions(kind: str, steps: int, num_envs: int, seed: int = 0) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    size: tuple[int, ...] = (steps, num_envs, 16) if kind == "grid" else (steps, num_envs)
    return rng.integers(0, 2 if kind == "grid" else 9, size)


# ---- the judge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("repeat", [1, 2])
def test_the_judge_learns_after_so_many_images_however_many_slots(num_envs: int, repeat: int) -> None:
    env = MaskVectorEnv(num_envs, dataset=DATA, grid=GRID, repeat=repeat, judge_batch=5, reward_model=small(DATA))
    sizes: list[int] = []
    update = judge_of(env).update

    def spy(images: Tensor, aiding: Tensor, labels: Tensor) -> dict[str, float]:
        sizes.append(len(images))
        return update(images, aiding, labels)

    judge_of(env).update = spy  # type: ignore[method-assign]
    env.reset(seed=0)
    for step in range(1, 25):
        env.step(np.ones((num_envs, 16)))
        assert env.game.reward_model.version == (step // repeat) * num_envs // 5
    assert set(sizes) == {5}
    assert np.isfinite(env.game.judge_loss)


def test_the_judge_learns_from_the_clean_image_and_what_its_best_rewarded_try_keeps() -> None:
    taught: list[tuple[Tensor, Tensor, Tensor]] = []
    env = MaskVectorEnv(2, dataset=DATA, grid=GRID, repeat=3, judge_batch=20, reward_model=small(DATA))
    judge_of(env).update = lambda *batch: taught.append(batch) or {"judge_loss": 0.0}  # type: ignore[method-assign,func-returns-value]
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
    judge_of(env).update = lambda images, aiding, labels: taught.append(aiding) or {"judge_loss": 0.0}  # type: ignore[method-assign,func-returns-value]
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
    assert len(env.game.state()["judging"]["pending_index"]) == 1
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
