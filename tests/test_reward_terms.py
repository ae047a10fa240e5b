"""`reward_terms`: what a user adds to the reward counts wherever the reward does, and breaks nothing."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import FlatJudge, pictures, reconstructor, same, small
from torch import Tensor

from maskaug.agents.sb3 import as_vec_env
from maskaug.envs import check_vector_env
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, JudgeError

DATA = pictures(8)
N = 3


def brightness(images: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """The selected pixels' share of all light, plus the label: each argument matters."""
    light = images.float().mean(1)
    return (light * mask).sum((1, 2)) / light.sum((1, 2)) + labels


TERMS = {"brightness": brightness}


def make(num_envs: int = N, **more: Any) -> MaskVectorEnv:
    play: dict[str, Any] = {
        "dataset": DATA,
        "grid": 4,
        "joint": False,
        "reward_model": FlatJudge(DATA),
        "device": "cpu",
    }
    return MaskVectorEnv(num_envs, **{**play, "reward_terms": TERMS, **more})


def played(env: MaskVectorEnv, steps: int = 4) -> list[Any]:
    env.action_space.seed(0)
    answers: list[Any] = [env.reset(seed=0)]
    return answers + [env.step(env.action_space.sample()) for _ in range(steps)]


def test_the_term_is_added_and_stands_in_infos_under_its_name() -> None:
    plain, own = played(make(reward_terms=None)), played(make())
    env = make()
    env.action_space.seed(0)
    env.reset(seed=0)
    for before, after in zip(plain[1:], own[1:], strict=True):
        final = after[4]["final_info"]
        np.testing.assert_allclose(after[1], before[1] + final["brightness"], rtol=1e-6)
        # By hand, from the action.
        for slot, action in enumerate(env.action_space.sample()):
            light = DATA.images[final["index"][slot]].mean(0)
            mask = np.kron(action.reshape(4, 4), np.ones((4, 4)))
            expected = (light * mask).sum() / light.sum() + final["label"][slot]
            assert final["brightness"][slot] == pytest.approx(expected, rel=1e-5)
        assert after[4]["brightness"].tolist() == [0] * N
    assert own[0][1]["brightness"].tolist() == [0] * N
    assert "brightness" not in plain[0][1]


def test_a_single_environment_and_tensors_give_the_same() -> None:
    whole, tensors = played(make()), played(make(tensors=True))
    single = MaskEnv(dataset=DATA, grid=4, joint=False, reward_model=FlatJudge(DATA), device="cpu", reward_terms=TERMS)
    _, info = single.reset(seed=0)
    assert info["brightness"] == 0
    env = make()
    env.action_space.seed(0)
    for one, other in zip(whole[1:], tensors[1:], strict=True):
        assert torch.equal(other[1], torch.from_numpy(one[1]))
        assert isinstance(other[4]["final_info"]["brightness"], Tensor)
        _, reward, _, _, info = single.step(env.action_space.sample()[0])
        assert reward == pytest.approx(one[1][0], rel=1e-5)
        assert info["brightness"] == pytest.approx(one[4]["final_info"]["brightness"][0], rel=1e-6)
        single.reset()


@pytest.mark.parametrize("objective", ["adversarial", "reconstruction"])
def test_the_oracle_counts_it(objective: str) -> None:
    judge = reconstructor(DATA) if objective == "reconstruction" else FlatJudge(DATA)
    env = make(objective=objective, action="patch", reward_model=judge)
    env.reset(seed=0)
    worth = env.game.action_rewards()
    for action in range(worth.shape[1]):
        env.reset(seed=0)
        _, reward, *_ = env.step(np.full(N, action))
        np.testing.assert_allclose(reward, worth[:, action], rtol=1e-5, atol=1e-6)
    plain = make(objective=objective, action="patch", reward_model=judge, reward_terms=None)
    plain.reset(seed=0)
    assert not np.allclose(worth, plain.game.action_rewards())


def test_with_steps_its_increase_is_earned() -> None:
    env, once = make(steps=2), make()
    env.reset(seed=0)
    once.reset(seed=0)
    first, second = np.eye(16, dtype=np.int8)[[[0, 1, 2], [5, 6, 7]]]
    rewards = [env.step(action)[1] for action in (first, second)]
    np.testing.assert_allclose(sum(rewards), once.step(first | second)[1], rtol=1e-5, atol=1e-6)


def test_evaluations_have_it_and_sb3_sees_it() -> None:
    held_out = make().evaluation(dataset=DATA)
    assert held_out.game.own_terms.functions == TERMS
    vec = as_vec_env(held_out)
    vec.reset()
    assert vec.step(held_out.action_space.sample())[3][0]["brightness"] > 0


def test_a_joint_classifier_learns_from_what_was_best_with_it() -> None:
    def learnt(terms: Any) -> list[Tensor]:
        judge = small(DATA)
        env = make(joint=True, reward_model=judge, judge_batch=2, repeat=3, reward_terms=terms, num_envs=2)
        played(env, 9)
        return [p.detach().clone() for p in judge.parameters()]

    assert same(learnt(None), learnt({"nothing": lambda images, mask, labels: 0.0 * labels}))
    assert not same(
        learnt(None), learnt({"large": lambda images, mask, labels: 1e3 * brightness(images, mask, labels)})
    )


def test_checkpoints_ask_for_terms_of_the_same_names() -> None:
    env = make()
    played(env)
    state, twin = env.game.state(), make()
    twin.reset(seed=9)
    twin.game.load_state(state)
    action = env.action_space.sample()
    assert same(env.step(action), twin.step(action))
    with pytest.raises(ConfigurationError, match=r"written with reward_terms=\['brightness'\]"):
        make(reward_terms=None).game.load_state(state)


def test_functions_may_write_into_what_they_get() -> None:
    def scribbles(images: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        result = brightness(images, mask, labels)
        for tensor in (images, mask, labels):
            tensor.zero_()
        return result

    assert same(played(make()), played(make(reward_terms={"brightness": scribbles})))
    kept = torch.zeros(N)
    env = make(reward_terms={"kept": lambda images, mask, labels: kept})
    env.reset(seed=0)
    env.step(env.action_space.sample())[4]["final_info"]["kept"][:] = 5
    assert not kept.any()


def test_the_rules_hold_with_it() -> None:
    check_vector_env(make(), make=make)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda images, mask, labels: 1.0, "must return a tensor (3,), a number an image; got 1.0"),
        (lambda images, mask, labels: mask.float(), "got one of shape (3, 16, 16), torch.float32"),
        (lambda images, mask, labels: labels / 0.0 * 0.0, "the reward term 'own' is not finite"),
    ],
)
@pytest.mark.parametrize("objective", ["adversarial", "reconstruction"])
def test_a_wrong_answer_is_an_error_before_anything_has_changed(answer: Any, message: str, objective: str) -> None:
    judge = reconstructor(DATA) if objective == "reconstruction" else small(DATA)
    env = make(objective=objective, joint=True, reward_model=judge, judge_batch=2, reward_terms={"own": answer})
    env.reset(seed=0)
    before = copy.deepcopy(env.game.state())
    with pytest.raises(JudgeError, match=re.escape(message)):
        env.step(env.action_space.sample())
    assert same(before, env.game.state())


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([brightness], "must be a dict"),
        ({"gain": brightness}, "infos have 'gain' already"),
        ({"loss_clean": brightness}, "infos have 'loss_clean' already"),
        ({"index": brightness}, "infos have 'index' already"),
        ({"area": brightness}, "infos have 'area' already"),
        ({"cell_error": brightness}, "infos have 'cell_error' already"),
        ({"episode": brightness}, "infos have 'episode' already"),
        ({"terminal_observation": brightness}, "infos have 'terminal_observation' already"),
        ({"TimeLimit.truncated": brightness}, "'TimeLimit.truncated' cannot be a name"),
        ({"_own": brightness}, "'_own' cannot be a name"),
        ({"my term": brightness}, "'my term' cannot be a name"),
        ({3: brightness}, "3 cannot be a name"),
        ({"own": 0.5}, "'own' is 0.5, not a function"),
    ],
)
def test_what_cannot_be_a_term_is_said_at_once(terms: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(reward_terms=terms)
