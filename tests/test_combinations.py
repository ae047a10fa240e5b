"""Everything at once: mirrored, several judges, bfloat16, channels last, masks in steps, tensors, kept and copied."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from env_helpers import judge_for, pictures, same, small
from torch import Tensor

from maskaug.agents.checkpoint import read_state, write_state
from maskaug.agents.end_to_end import EndToEnd
from maskaug.envs.environment import MaskEnv, MaskVectorEnv

DATA = pictures(5, 40, channels=3)
ALL: dict[str, Any] = {
    "grid": 5, "flip": True, "precision": "bf16", "channels_last": True, "steps": 2, "repeat": 2, "fill": "noise",
    "device": "cpu",
}  # fmt: skip
HOW = ("file", "pickle", "deepcopy", "tensors")


def game(objective: str, joint: bool, **more: Any) -> MaskVectorEnv:
    one = judge_for(objective, DATA) if objective == "reconstruction" else [small(DATA, 0), small(DATA, 1)]
    learns = {"judge_batch": 3, "judge_lr": 0.01} if joint else {}
    return MaskVectorEnv(
        3, dataset=DATA, objective=objective, joint=joint, reward_model=one, **{**ALL, **learns, **more}
    )


def actions(steps: int, kind: str) -> npt.NDArray[Any]:
    rng = np.random.default_rng(0)
    if kind == "patch":
        return rng.integers(0, 16, (steps, 3))
    return rng.integers(0, 2, (steps, 3, 25)) if kind == "grid" else rng.uniform(-1, 1, (steps, 3, 4))


def arrays(value: Any) -> Any:
    """Tensors as arrays, however deep."""
    if isinstance(value, dict):
        return {k: arrays(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(arrays(v) for v in value)
    return value.numpy() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(
    ("objective", "kind"),
    [("adversarial", "grid"), ("both", "box"), ("sensitivity", "patch"), ("reconstruction", "grid")],
)
def test_a_game_of_everything_goes_on_to_the_bit(
    objective: str, kind: str, joint: bool, how: str, tmp_path: Path
) -> None:
    env, chosen = game(objective, joint, action=kind), actions(23, kind)
    twin = game(objective, joint, action=kind, tensors=how == "tensors")
    env.reset(seed=3)
    twin.reset(seed=3 if how == "tensors" else 8)
    # Into the middle of an episode of the second try.
    for action in chosen[:7]:
        env.step(action)
        if how == "tensors":
            twin.step(action)
    if how == "file":
        write_state(tmp_path / "state", env.game.state())
        twin.game.load_state(read_state(tmp_path / "state"))
    elif how in ("pickle", "deepcopy"):
        twin = pickle.loads(pickle.dumps(env)) if how == "pickle" else copy.deepcopy(env)  # noqa: S301
    assert env.game.state()["step"].tolist() == env.game.state()["try"].tolist() == [1, 1, 1]
    assert same(arrays(twin.observe()), env.observe())
    for at, action in enumerate(chosen[7:]):
        if at == 3:
            moved = {"reset_mask": np.array([True, False, True])}
            assert same(arrays(twin.reset(options=moved)), env.reset(options=moved))
        assert same(arrays(twin.step(action)), env.step(action))
    assert same(arrays(twin.game.state()), arrays(env.game.state()))
    assert env.game.reward_model.version == twin.game.reward_model.version
    assert (env.game.reward_model.version > 1) == joint


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
def test_a_copy_does_not_take_an_old_judges_answers_for_those_of_the_new_one(copied: Any) -> None:
    # One image alone, learnt from after each mask: its clean loss is another each time.
    data = pictures(1, 40)
    env = MaskEnv(dataset=data, grid=5, judge_batch=1, judge_lr=0.05, reward_model=small(data), device="cpu")
    env.reset(seed=0)
    env.step(np.ones(25))
    twin, losses = copied(env), []
    for _ in range(4):
        assert same(env.reset(), twin.reset())
        expected, got = env.step(np.ones(25)), twin.step(np.ones(25))
        assert same(expected, got)
        losses.append(got[4]["loss_clean"])
    assert len(set(losses)) == 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
def test_a_copy_knows_what_is_known_of_clean_images(copied: Any) -> None:
    env = game("adversarial", False)
    env.reset(seed=0)
    for action in actions(12, "grid"):
        env.step(action)
    known = env.game.judging.state()["known"]
    assert known.any()
    twin = copied(env)
    assert same(twin.game.judging.state()["known"], known)
    assert same(copied(twin).game.judging.state()["known"], known)


def test_a_copy_of_an_agent_knows_the_clean_losses_it_knew() -> None:
    agent = EndToEnd(game("adversarial", False, steps=1), seed=0, device="cpu").learn(12)
    other = copy.deepcopy(agent)
    assert other._clean
    assert same(other._learning_state()["clean"], agent._learning_state()["clean"])
    assert same(other.learn(6).scores(np.asarray(DATA.images)), agent.learn(6).scores(np.asarray(DATA.images)))
