"""Images in a mirror: who sees what when, and that whatever is known of an image is known of it as it was seen."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from env_helpers import BrightnessJudge, FlatJudge, pictures, reconstructor, same, small
from gymnasium.utils import seeding
from torch import Tensor

from maskaug.agents.apga import APGA
from maskaug.agents.distilled import Distilled
from maskaug.agents.gradients import gradient_map
from maskaug.agents.intelligent_masking import IntelligentMasking
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.pictures import Pictures
from maskaug.envs.reconstruction import ReconstructionReward
from maskaug.envs.rendering import mask_row
from maskaug.envs.rewards import ClassifierReward

DATA = pictures(7)
MIRRORED = DATA.images[..., ::-1]
Game = dict[str, Any]


def play(**more: Any) -> Game:
    frozen: Game = {"joint": False, "reward_model": FlatJudge(DATA)}
    return {"dataset": DATA, "grid": 4, "device": "cpu", "flip": True, **frozen, **more}


def actions(steps: int, num_envs: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 2, (steps, num_envs, 16))


def turned(observation: npt.NDArray[np.uint8], index: npt.NDArray[np.int64]) -> list[bool]:
    """Whether each of the untouched images (N, C, H, W) is shown mirrored."""
    answer = []
    for seen, i in zip(observation, index, strict=True):
        assert same(seen, DATA.images[i]) != same(seen, MIRRORED[i])
        answer.append(same(seen, MIRRORED[i]))
    return answer


def hide(image: npt.NDArray[np.uint8], action: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    return np.where(np.kron(action.reshape(4, 4), np.ones((4, 4))) > 0, 0, image).astype(np.uint8)


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_half_of_the_images_are_mirrored_anew_each_time() -> None:
    env = MaskVectorEnv(4, **play())
    observation, info = env.reset(seed=0)
    shown = []
    for action in actions(140, 4):
        shown.append([*zip(info["index"].tolist(), turned(observation, info["index"]), strict=True)])
        observation, _, _, _, info = env.step(action)
    share = np.mean([mirrored for row in shown for _, mirrored in row])
    # 560 fair coins: four standard deviations.
    assert abs(share - 0.5) < 0.085
    assert {seen for row in shown for seen in row} == {(i, m) for i in range(7) for m in (False, True)}
    assert len({tuple(m for _, m in column) for column in zip(*shown, strict=True)}) == 4


@pytest.mark.parametrize("flip", [False, True])
def test_the_generators_are_asked_for_nothing_else(flip: bool) -> None:
    env = MaskVectorEnv(2, **play(flip=flip, repeat=2))
    seen: list[list[tuple[int, bool]]] = [[], []]
    observation, info = env.reset(seed=3)
    for action in actions(40, 2):
        for slot, pair in enumerate(zip(info["index"], turned(observation, info["index"]), strict=True)):
            seen[slot].append(pair)
        observation, _, _, _, info = env.step(action)
    for slot in range(2):
        rng = seeding.np_random(3 + slot)[0]
        expected: list[tuple[int, bool]] = []
        while len(expected) < 20:
            for i in rng.permutation(7):
                expected.append((i, bool(flip and rng.random() < 0.5)))
        assert seen[slot][::2] == seen[slot][1::2] == expected[:20]


@pytest.mark.parametrize("more", [{"repeat": 3}, {"steps": 3}, {"repeat": 2, "steps": 2}])
def test_all_tries_and_all_masks_of_one_image_show_one_orientation(more: Game) -> None:
    env = MaskVectorEnv(3, **play(**more))
    observation, info = env.reset(seed=0)
    length, chosen = more.get("repeat", 1) * more.get("steps", 1), actions(30, 3)
    for first in range(0, 30, length):
        index, mirrored = info["index"], turned(observation, info["index"])
        images = np.where(np.array(mirrored)[:, None, None, None], MIRRORED[index], DATA.images[index])
        for at, action in enumerate(chosen[first : first + length]):
            since = chosen[first + at - at % more.get("steps", 1) : first + at + 1].max(0)
            hidden = np.stack([hide(image, cells) for image, cells in zip(images, since, strict=True)])
            observation, _, terminated, _, info = env.step(action)
            if terminated.all():
                assert same(info["final_obs"], hidden)
            else:
                assert same(observation, hidden)
            if at < length - 1 and terminated.all():
                assert same(observation, images)


def test_a_slot_that_moves_on_turns_no_other() -> None:
    env = MaskVectorEnv(3, **play(repeat=2))
    observation, info = env.reset(seed=0)
    moved = []
    for slots in np.random.default_rng(0).random((60, 3)) < 0.5:
        if not slots.any():
            continue
        before, tries, index = observation, info["try"], info["index"]
        observation, info = env.reset(options={"reset_mask": slots})
        for slot in range(3):
            if slots[slot] and tries[slot] == 1:
                moved.append(turned(observation[slot : slot + 1], info["index"][slot : slot + 1])[0])
            else:
                assert info["index"][slot] == index[slot]
                assert same(observation[slot], before[slot])
    assert 0.2 < np.mean(moved) < 0.8


@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_a_single_environment_sees_what_a_slot_sees(fill: str) -> None:
    keywords = play(fill=fill, repeat=2)
    vector, singles = MaskVectorEnv(2, **keywords), [MaskEnv(**keywords) for _ in range(2)]
    seen, _ = vector.reset(seed=5)
    one = [env.reset(seed=5 + i)[0] for i, env in enumerate(singles)]
    assert same(seen, np.stack(one))
    for action in actions(40, 2):
        seen, rewards, _, _, info = vector.step(action)
        for i, env in enumerate(singles):
            hidden, reward, *_ = env.step(action[i])
            assert same(hidden, info["final_obs"][i])
            assert reward == pytest.approx(float(rewards[i]), rel=1e-5, abs=1e-6)
            assert same(env.reset()[0], seen[i])


@pytest.mark.parametrize("action", ["grid", "patch"])
def test_tensors_are_the_same_game(action: str) -> None:
    keywords = play(action=action, joint=True, judge_batch=3)
    plain = MaskVectorEnv(3, **{**keywords, "reward_model": FlatJudge(DATA)})
    tensors = MaskVectorEnv(3, **{**keywords, "reward_model": FlatJudge(DATA)}, tensors=True)
    assert tensors.game.pictures.resident is not None
    assert same(plain.reset(seed=0)[0], tensors.reset(seed=0)[0].numpy())  # type: ignore[attr-defined]
    plain.action_space.seed(0)
    for _ in range(20):
        chosen = plain.action_space.sample()
        got, expected = tensors.step(torch.from_numpy(chosen)), plain.step(chosen)
        assert same(got[0].numpy(), expected[0])  # type: ignore[attr-defined]
        assert same(got[1].numpy(), expected[1])  # type: ignore[attr-defined]
    assert same(plain.game.state(), tensors.game.state())


@pytest.mark.parametrize("resident", [False, True])
def test_pictures_above_the_images_numbers_are_mirrored(resident: bool) -> None:
    kept = Pictures(DATA.images, torch.device("cpu"), resident=resident)
    expected = np.concatenate([DATA.images, MIRRORED])
    for number in ([0, 3, 3], [7, 13, 8], [10, 3, 0, 10]):
        assert same(kept.at(np.array(number)), torch.from_numpy(expected[number]))
        kept.at(np.array(number)).fill_(0)
    assert np.asarray(DATA.images).any()


def test_what_was_fetched_ahead_is_mirrored_on_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a CUDA device, with streams and events that do nothing.
    class Stream:
        def wait_event(self, event: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    kept = Pictures(DATA.images, torch.device("cpu"), resident=False)
    index = np.array([2, 5])
    ahead: Any = (index, torch.from_numpy(DATA.images[index]) // 2, None)
    kept._ahead = ahead
    expected = np.stack([DATA.images[2], MIRRORED[5]])
    assert same(kept.at(np.array([2, 12])), torch.from_numpy(expected // 2))
    assert kept._ahead is None
    assert same(kept.at(np.array([2, 12])), torch.from_numpy(expected))


def test_a_frame_shows_image_and_region_as_they_were_seen() -> None:
    assert DATA.regions is not None
    env = MaskVectorEnv(3, **play(render_mode="rgb_array"))
    seen = []
    for seed, action in enumerate(actions(4, 3)):
        observation, info = env.reset(seed=seed)
        mirrored, index = turned(observation, info["index"]), info["index"]
        seen += mirrored
        for after in (False, True):
            if after:
                env.step(action)
            frames = env.render()
            assert frames is not None
            for slot, i in enumerate(index):
                way = -1 if mirrored[slot] else 1
                mask = np.kron(action[slot].reshape(4, 4) * after, np.ones((4, 4))) > 0
                panels = mask_row(DATA.images[i][..., ::way], DATA.regions[i][:, ::way], mask, 192)[1:3]
                assert same(frames[slot][:192, :384], np.concatenate(panels, axis=1))
    assert 0 < sum(seen) < 12


# ---- what it earns ---------------------------------------------------------------------------------------------------


def loss(judge: FlatJudge, images: npt.NDArray[np.uint8], index: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    assert DATA.labels is not None
    with torch.no_grad():
        logits = judge(torch.from_numpy(images.copy()).float() / 255)
        labels = torch.from_numpy(DATA.labels[index])
        result: npt.NDArray[np.float32] = torch.nn.functional.cross_entropy(logits, labels, reduction="none").numpy()
    return result


def test_the_reward_is_of_the_orientation_that_was_seen() -> None:
    judge = FlatJudge(DATA)
    env = MaskVectorEnv(3, **play(reward_model=judge, area_price=0.0))
    observation, info = env.reset(seed=0)
    for action in actions(60, 3):
        index, images = info["index"], observation
        observation, reward, _, _, info = env.step(action)
        hidden = np.stack([hide(image, cells) for image, cells in zip(images, action, strict=True)])
        assert same(hidden, info["final_obs"])
        np.testing.assert_allclose(reward, loss(judge, hidden, index) - loss(judge, images, index), atol=1e-5)


def test_the_clean_loss_is_computed_once_for_each_orientation() -> None:
    judge = BrightnessJudge()
    env = MaskVectorEnv(3, **play(reward_model=judge, repeat=2))
    judge.seen.clear()
    env.reset(seed=0)
    for action in actions(120, 3):
        env.step(action)
    assert sum(judge.seen) - 3 * 120 == 2 * len(DATA)


def test_an_error_names_the_image_however_it_is_turned() -> None:
    class Sulking(BrightnessJudge):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits * torch.nan if len(self.seen) > 1 else logits

    env = MaskVectorEnv(7, **play(reward_model=Sulking()))
    observation, info = env.reset(seed=0)
    assert any(turned(observation, info["index"]))
    with pytest.raises(JudgeError) as caught:
        env.step(actions(1, 7)[0])
    assert f"not finite for {', '.join(f'picture {i}' for i in sorted(set(info['index'])))[:19]}" in str(caught.value)


def test_the_oracle_looks_at_what_is_seen() -> None:
    env = MaskVectorEnv(7, **play(action="patch", fill="noise"))
    observation, info = env.reset(seed=1)
    mirrored = turned(observation, info["index"])
    assert 0 < sum(mirrored) < 7
    judge = env.game.reward_model.model
    quiet = play(action="patch", fill="mean", reward_model=judge)
    plain = MaskVectorEnv(7, **quiet)
    other = MaskVectorEnv(7, **{**quiet, "dataset": dataclasses.replace(DATA, images=MIRRORED.copy()), "flip": False})
    observation, info = plain.reset(seed=1)
    mirrored = turned(observation, info["index"])
    index = info["index"]
    as_seen, as_it_is = plain.game.action_rewards(), plain.game.action_rewards(index)
    expected = np.where(np.array(mirrored)[:, None], other.game.action_rewards(index), as_it_is)
    np.testing.assert_allclose(as_seen, expected, atol=1e-6)
    assert not np.allclose(as_seen, as_it_is)
    np.testing.assert_allclose(plain.oracle_reward(), as_seen.max(1))
    chosen = np.arange(7) % 9
    np.testing.assert_allclose(plain.step(chosen)[1], as_seen[np.arange(7), chosen], atol=1e-5)
    # And with noise: each picture has its own, always the same.
    assert same(env.game.action_rewards(), env.game.action_rewards())
    with pytest.raises(ConfigurationError, match="positions from 0 to 6"):
        env.game.action_rewards(np.array([7]))


# ---- what is learnt --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeat", [1, 2])
def test_a_classifier_learns_from_what_was_shown(repeat: int) -> None:
    env = MaskVectorEnv(2, **play(joint=True, judge_batch=20, repeat=repeat, reward_model=small(DATA)))
    reward_model = env.game.reward_model
    assert isinstance(reward_model, ClassifierReward)
    taught: list[tuple[Tensor, Tensor, Tensor]] = []
    reward_model.update = lambda *batch: taught.append(batch) or {"judge_loss": 0.0}  # type: ignore[method-assign,func-returns-value]
    observation, info = env.reset(seed=0)
    expected, mirrored = [], []
    for round_ in range(10):
        images, index = observation, info["index"]
        mirrored += turned(images, index)
        best, cells = np.full(2, -np.inf), np.zeros((2, 16))
        for action in actions(repeat, 2, seed=round_):
            observation, reward, _, _, info = env.step(action)
            cells[reward > best] = action[reward > best]
            best = np.maximum(best, reward)
        expected += list(zip(images, cells, index, strict=True))
    ((clean, aiding, labels),) = taught
    assert DATA.labels is not None
    assert 0 < sum(mirrored) < 20
    for i, (image, chosen, number) in enumerate(expected):
        assert same(clean[i].numpy(), image)
        assert same(aiding[i].numpy(), image - hide(image, chosen.astype(np.int64)))
        assert labels[i] == DATA.labels[number]


@pytest.mark.parametrize("joint", [False, True])
def test_a_reconstructor_is_asked_for_what_was_shown(joint: bool) -> None:
    keywords = play(objective="reconstruction", joint=joint, reward_model=reconstructor(DATA))
    env = MaskVectorEnv(3, **keywords)
    reward_model = env.game.reward_model
    assert isinstance(reward_model, ReconstructionReward)
    asked: list[tuple[Tensor, Tensor]] = []
    learn = reward_model.learn if joint else reward_model.score

    def spy(images: Tensor, hidden: Tensor, cells: Tensor) -> Any:
        asked.append((images.clone(), hidden.clone()))
        return learn(images, hidden, cells)

    setattr(reward_model, "learn" if joint else "score", spy)
    observation, info = env.reset(seed=0)
    mirrored = []
    for action in actions(12, 3):
        images = observation
        mirrored += turned(images, info["index"])
        asked.clear()
        observation, _, _, _, info = env.step(action)
        # In parts, where an update falls into the middle.
        assert same(np.concatenate([part.numpy() for part, _ in asked]), images)
        assert same(np.concatenate([part.numpy() for _, part in asked]), info["final_obs"])
    assert 0 < sum(mirrored) < 36


def test_an_evaluation_mirrors_nothing() -> None:
    env = MaskVectorEnv(4, **play(joint=True))
    held_out = env.evaluation(dataset=DATA)
    observation, info = held_out.reset(seed=0)
    for action in actions(20, 4):
        assert same(observation, DATA.images[info["index"]])
        observation, _, _, _, info = held_out.step(action)


# ---- agents ----------------------------------------------------------------------------------------------------------

LARGE = pictures(9, size=40)


def shown_to(agent: Any, num_envs: int) -> list[npt.NDArray[np.uint8]]:
    """Every observation that the agent's environment hands out from now on, in order."""
    seen: list[npt.NDArray[np.uint8]] = []
    observe = agent.env.observe

    def spy() -> npt.NDArray[np.uint8]:
        seen.append(observe())
        return np.array(seen[-1])

    agent.env.observe = spy
    return seen


@pytest.mark.parametrize("action", ["grid", "patch"])
@pytest.mark.parametrize("joint", [False, True])
def test_intelligent_masking_replays_what_it_saw(action: str, joint: bool) -> None:
    keywords: Game = {"dataset": LARGE, "reward_model": reconstructor(LARGE), "objective": "reconstruction"}
    env = MaskVectorEnv(4, **play(**keywords, action=action, joint=joint))
    agent = IntelligentMasking(env, seed=0, device="cpu", width=8, mirror=False, replay=64, replay_batch=8)
    add, learn, maps = agent._replay.add, agent._learn, agent._q_maps
    transitions: dict[bytes, list[npt.NDArray[np.float32]]] = {}
    looked: list[Tensor] = []
    replayed: list[bytes] = []

    def remember(index: Any, errors: npt.NDArray[np.float32], corner: Any) -> None:
        for image, error in zip(looked[-1].numpy(), errors, strict=True):
            transitions.setdefault(image.tobytes(), []).append(error.astype(np.float16))
        add(index, errors, corner)

    def look(images: Tensor) -> Tensor:
        looked.append(images)
        return maps(images)

    def fit(q: Tensor, errors: Tensor) -> tuple[float, float]:
        if len(errors) == 8:
            for image, error in zip(looked[-1].numpy(), errors.numpy(), strict=True):
                # These errors came of this very picture, turned as it is now.
                known = transitions[image.tobytes()]
                assert any(np.array_equal(error.astype(np.float16), one, equal_nan=True) for one in known)
                replayed.append(image.tobytes())
        return learn(q, errors)

    agent._replay.add, agent._q_maps, agent._learn = remember, look, fit  # type: ignore[method-assign]
    agent.learn(80)
    either = {bytes_ for i in LARGE.images for bytes_ in (i.tobytes(), i[..., ::-1].tobytes())}
    plain = {i.tobytes() for i in LARGE.images}
    assert set(replayed) <= either
    assert set(replayed) & plain
    assert set(replayed) - plain


def test_a_map_is_distilled_of_what_is_seen() -> None:
    env = MaskVectorEnv(4, **play(dataset=LARGE, joint=True, reward_model=small(LARGE)))
    agent = Distilled(env, seed=0, device="cpu", judges=1, judge_updates=4, width=8, mirror=False)
    found = agent._target
    checked = []

    def target(pictures: npt.NDArray[np.int64], images: Tensor) -> Tensor:
        result = found(pictures, images)
        assert agent._judges is not None
        assert same(images.numpy(), env.observe())
        for image, one in zip(images, result, strict=True):
            own = gradient_map(agent._judges, image[None], 4, mirror=False)
            own = (own - own.mean((1, 2), keepdim=True)) / own.std((1, 2), keepdim=True)
            torch.testing.assert_close(own[0], one, rtol=1e-3, atol=1e-4)
        checked.extend((pictures >= len(LARGE)).tolist())
        return result

    agent._target = target  # type: ignore[method-assign]
    agent.learn(4 * 32 + 60)
    assert 0 < sum(checked) < len(checked)


def test_a_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    def agent() -> APGA:
        judge = small(LARGE)
        env = MaskVectorEnv(3, **play(dataset=LARGE, joint=True, judge_batch=4, repeat=2, reward_model=judge))
        return APGA(env, seed=0, device="cpu", width=8)

    whole, first, second = agent().learn(72), agent().learn(36), agent()
    first.save_checkpoint(tmp_path / "c")
    second.load_checkpoint(tmp_path / "c")
    second.learn(36)
    for a, b in zip(whole.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.env is not None
    assert second.env is not None
    assert same(whole.env.game.state(), second.env.game.state())
    assert whole.env.game.state()["flipped"].any()


# ---- keeping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["state", "pickle"])
def test_a_saved_game_continues_to_the_bit(how: str) -> None:
    keywords = play(joint=True, judge_batch=5, repeat=2, fill="noise")
    env = MaskVectorEnv(3, **{**keywords, "reward_model": FlatJudge(DATA)})
    env.reset(seed=0)
    chosen = actions(60, 3)
    for action in chosen[:25]:
        env.step(action)
    state = env.game.state()
    # In the middle of an image, and one that waits for the judge is mirrored.
    assert state["try"].tolist() == [1, 1, 1]
    assert state["flipped"].any()
    assert not state["flipped"].all()
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(env))  # noqa: S301
    else:
        twin = MaskVectorEnv(3, **{**keywords, "reward_model": FlatJudge(DATA)})
        twin.reset(seed=9)
        twin.game.load_state(copy.deepcopy(state))
    for action in chosen[25:]:
        assert same(env.step(action), twin.step(action))
    assert same(env.game.state(), twin.game.state())
