"""`tensors=True`: the same game with tensors in and out; and images that are kept on the device."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_helpers import FlatJudge, pictures, reconstructor, same
from torch import Tensor

from maskaug.agents.apga import APGA
from maskaug.agents.intelligent_masking import IntelligentMasking
from maskaug.envs.environment import MaskEnv, MaskVectorEnv, on_host
from maskaug.envs.errors import ConfigurationError, InvalidAction
from maskaug.envs.pictures import Pictures

DATA = pictures(8)
KINDS = ("grid", "patch", "pixel", "box")
Game = dict[str, Any]


def play(**more: Any) -> Game:
    return {"dataset": DATA, "grid": 4, "device": "cpu", "judge_batch": 3, "reward_model": FlatJudge(DATA), **more}


def actions(kind: str, steps: int, num_envs: int) -> Any:
    rng = np.random.default_rng(0)
    if kind == "patch":
        return rng.integers(0, 9, (steps, num_envs))
    if kind == "grid":
        return rng.integers(0, 2, (steps, num_envs, 16))
    return rng.uniform(-1, 1, (steps, num_envs, *((16, 16) if kind == "pixel" else (4,)))).astype(np.float32)


def arrays(value: Any) -> Any:
    """Tensors as arrays, however deep."""
    if isinstance(value, dict):
        return {k: arrays(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(arrays(v) for v in value)
    return value.numpy() if isinstance(value, Tensor) else value


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return [t for v in value for t in tensors_in(v)]
    assert isinstance(value, Tensor), type(value)
    return [value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", ["adversarial", "preserving", "both", "sensitivity", "reconstruction"])
@pytest.mark.parametrize("more", [{}, {"fill": "noise", "repeat": 2}, {"steps": 2}])
def test_it_is_the_same_game_to_the_bit(kind: str, objective: str, more: Game) -> None:
    def model() -> torch.nn.Module:
        return reconstructor(DATA) if objective == "reconstruction" else FlatJudge(DATA)

    keywords = play(action=kind, objective=objective, **more)
    plain = MaskVectorEnv(3, **{**keywords, "reward_model": model()})
    env = MaskVectorEnv(3, **{**keywords, "reward_model": model()}, tensors=True)
    assert env.single_action_space == plain.single_action_space
    first = env.reset(seed=0)
    assert same(arrays(first), plain.reset(seed=0))
    for action in actions(kind, 12, 3):
        got = env.step(torch.from_numpy(action))
        assert len(tensors_in(got)) > 10
        assert same(arrays(got), plain.step(action))
    assert same(env.game.state(), plain.game.state())
    assert same(arrays(env.reset()), plain.reset())


def test_types_and_devices() -> None:
    env = MaskVectorEnv(3, **play(tensors=True))
    played: Any = env
    observation, info = played.reset(seed=0)
    assert (observation.dtype, tuple(observation.shape)) == (torch.uint8, (3, 1, 16, 16))
    _, reward, terminated, truncated, info = played.step(torch.zeros(3, 16))
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (torch.float32, torch.bool, torch.bool)
    assert terminated.all()
    assert not truncated.any()
    assert info["index"].dtype == info["label"].dtype == torch.int64
    assert info["gain"].dtype == info["area"].dtype == torch.float32
    assert info["_gain"].dtype == info["final_info"]["_gain"].dtype == torch.bool
    assert env.observe().dtype == torch.uint8


@pytest.mark.parametrize("more", [{}, {"steps": 2, "area_price": 0.0}, {"objective": "sensitivity", "area_price": 0.0}])
def test_what_is_handed_out_may_be_written_into(more: Game) -> None:
    envs = [MaskVectorEnv(3, **play(**more, tensors=True, reward_model=FlatJudge(DATA))) for _ in range(2)]
    for env in envs:
        env.reset(seed=0)
    for action in actions("grid", 10, 3):
        sent = torch.from_numpy(action)
        got, expected = envs[0].step(sent), envs[1].step(sent.clone())
        assert same(arrays(got), arrays(expected))
        handed = tensors_in(got)
        places = [t.data_ptr() for t in handed if t.numel()]
        assert len(places) == len(set(places))
        for tensor in [*handed, sent]:
            tensor.fill_(1)
    assert same(envs[0].game.state(), envs[1].game.state())
    assert np.asarray(DATA.images).max() > 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.uint16, torch.int64, torch.bfloat16, torch.float64])
def test_actions_of_any_type(dtype: torch.dtype) -> None:
    env = MaskVectorEnv(2, **play(tensors=True, joint=False, judge_batch=None))
    env.reset(seed=0)
    cells = torch.zeros(2, 16)
    cells[0, 3] = cells[1, 5] = 1
    assert env.step(cells.to(dtype))[4]["final_info"]["area"].tolist() == [1 / 16] * 2
    assert env.step(cells.numpy())[4]["final_info"]["area"].tolist() == [1 / 16] * 2
    patches = MaskVectorEnv(2, **play(tensors=True, joint=False, judge_batch=None, action="patch"))
    patches.reset(seed=0)
    hidden = patches.step(torch.tensor([1, 0]).to(dtype))[4]["final_obs"]
    assert not hidden[0, 0, :8, 4:12].any()
    assert not hidden[1, 0, :8, :8].any()


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        ("grid", torch.full((2, 16), 0.5)),
        ("grid", torch.full((2, 16), torch.nan)),
        ("grid", torch.zeros(2, 15)),
        ("grid", torch.zeros(2, 16, dtype=torch.complex64)),
        ("grid", torch.zeros(2, 16).to_sparse()),
        ("grid", torch.zeros(2, 16, device="meta")),
        ("grid", torch.full((2, 16), 2, dtype=torch.uint8)),
        ("patch", torch.tensor([0, 9])),
        ("patch", torch.tensor([0, -1])),
        ("patch", torch.tensor([0, 0.5])),
        ("patch", torch.tensor([0, torch.inf])),
        ("pixel", torch.full((2, 16, 16), 1.5)),
        ("box", torch.full((2, 4), -128, dtype=torch.int8)),
        ("box", torch.full((2, 4), torch.nan)),
    ],
)
def test_what_is_no_action_changes_nothing(kind: str, action: Tensor) -> None:
    env = MaskVectorEnv(2, **play(tensors=True, action=kind, fill="noise"))
    env.reset(seed=0)
    before = env.game.state()
    with pytest.raises(InvalidAction):
        env.step(action)
    with pytest.raises(InvalidAction):
        env.step(action[0])
    assert same(before, env.game.state())


def test_one_environment_has_no_tensors() -> None:
    with pytest.raises(ConfigurationError, match=r"gym\.make_vec"):
        MaskEnv(**play(tensors=True))
    with pytest.raises(ConfigurationError, match="True or False"):
        MaskVectorEnv(2, **play(tensors=1))
    env = gym.make_vec("MaskAug-Synthetic-v0", num_envs=2, n=20, tensors=True, device="cpu")
    assert isinstance(env.reset(seed=0)[0], Tensor)


@pytest.mark.parametrize("agent", [APGA, IntelligentMasking])
@pytest.mark.parametrize("action", ["grid", "patch"])
def test_agents_learn_the_same_from_tensors(agent: Any, action: str) -> None:
    if agent is APGA and action == "patch":
        pytest.skip("APGA plays sets of cells")
    data = pictures(8, size=40)
    learnt = []
    for tensors in (False, True):
        judge = reconstructor(data) if agent is IntelligentMasking else FlatJudge(data)
        objective = "reconstruction" if agent is IntelligentMasking else "adversarial"
        keywords = play(dataset=data, reward_model=judge, objective=objective, action=action, repeat=2)
        one = agent(MaskVectorEnv(4, **keywords, tensors=tensors), seed=0, device="cpu", width=8).learn(48)
        learnt.append([p.detach() for p in one.policy.parameters()])
    assert same(*learnt)


def test_an_evaluation_plays_with_what_its_game_plays_with() -> None:
    env = MaskVectorEnv(2, **play(tensors=True))
    assert isinstance(env.evaluation(dataset=DATA).reset(seed=0)[0], Tensor)


def test_a_game_with_tensors_is_copied_and_pickled() -> None:
    env = MaskVectorEnv(2, **play(tensors=True))
    env.reset(seed=0)
    env.step(torch.ones(2, 16))
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):  # noqa: S301
        other = copy.deepcopy(env)
        assert same(arrays(twin.step(torch.ones(2, 16))), arrays(other.step(torch.ones(2, 16))))


def test_frames_are_drawn_of_tensors_too() -> None:
    env = MaskVectorEnv(2, **play(tensors=True), render_mode="rgb_array")
    env.reset(seed=0)
    env.step(torch.ones(2, 16))
    frames = env.render()
    assert frames is not None
    assert [frame.dtype for frame in frames] == [np.uint8] * 2


def test_pictures_are_gathered_where_they_are() -> None:
    for resident in (False, True):
        kept = Pictures(DATA.images, torch.device("cpu"), resident=resident)
        assert (kept.resident is not None) == resident
        index = np.array([5, 0, 5])
        kept.fetch(index)
        assert same(kept.at(index), torch.from_numpy(DATA.images[index]))
        kept.at(index).fill_(0)
        assert same(kept.at(index), torch.from_numpy(DATA.images[index]))


def test_pictures_that_must_not_be_written_to(tmp_path: Any) -> None:
    np.save(tmp_path / "images.npy", DATA.images)
    frozen = np.load(tmp_path / "images.npy", mmap_mode="r")
    kept = Pictures(frozen, torch.device("cpu"), resident=True)
    assert same(kept.at(np.arange(8)), torch.from_numpy(DATA.images))


def test_terms_of_all_shapes_come_to_the_host_as_they_are() -> None:
    class Elsewhere(Tensor):
        """As if it were on another device."""

        @property
        def device(self) -> Any:  # type: ignore[override]
            return torch.device("meta")

    terms = {"a": torch.arange(3.0), "map": torch.rand(3, 2, 2), "b": torch.rand(3)}
    moved: Any = {name: value.as_subclass(Elsewhere) for name, value in terms.items()}
    assert same(on_host(moved), on_host(terms))
