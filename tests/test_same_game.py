"""One table: however a game is played, it is the same game. Every objective, every action, mirrored images or not.

The vector environment in float32 is what all others are compared with: single environments, tensors, bfloat16, channels
last. Observations, indices, tries and labels are equal to the bit; how near rewards are is said by `TOLERANCE`.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from env_helpers import same
from scipy.stats import spearmanr
from torch import Tensor, nn

from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.judges import make_judge
from maskaug.envs.pretrain import FitSettings, fit_classifier

OBJECTIVES = ("adversarial", "preserving", "both", "sensitivity", "reconstruction")
ACTIONS = ("grid", "patch", "pixel", "box")
SLOTS, STEPS, SEED = 3, 10, 5
Game = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Played:
    """What came back: images, where each slot was, and numbers; a row a step.

    Attributes:
        seen: (STEPS + 1, N, C, H, W) uint8, what was observed before each step and after the last.
        hidden: (STEPS, N, C, H, W) uint8, `final_obs`.
        where: index, try, label and area, (STEPS, N) each.
        numbers: the reward, every term of it and cell_error, (STEPS, N, …) each.
    """

    seen: npt.NDArray[np.uint8]
    hidden: npt.NDArray[np.uint8]
    where: dict[str, npt.NDArray[Any]]
    numbers: dict[str, npt.NDArray[np.float32]]


EXACT = ("index", "try", "label", "area")


def played(seen: list[Any], hidden: list[Any], infos: list[dict[str, Any]]) -> Played:
    rows = {name: np.stack([np.asarray(info[name]) for info in infos]) for name in infos[0]}
    numbers = {name: row for name, row in rows.items() if name not in EXACT}
    return Played(np.stack(seen), np.stack(hidden), {name: rows[name] for name in EXACT}, numbers)


@pytest.fixture(scope="module")
def radiographs() -> ImageDataset:
    return load_dataset("synthetic", n=80, image_size=40, difficulty="easy", seed=0)


@pytest.fixture(scope="module")
def judges(radiographs: ImageDataset) -> dict[bool, nn.Module]:
    """Trained for a moment, so that what is hidden matters to them: whether it reconstructs → the judge."""
    classifier = make_judge("small", 1, 2, 0)
    fit_classifier(classifier, radiographs, None, FitSettings(updates=60), device=torch.device("cpu"))
    env = MaskVectorEnv(16, dataset=radiographs, objective="reconstruction", judge_batch=16, device="cpu")
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(30):
        env.step(env.action_space.sample())
    return {False: classifier, True: env.game.reward_model.model}


def actions(kind: str) -> npt.NDArray[Any]:
    rng = np.random.default_rng(1)
    if kind == "grid":
        return rng.integers(0, 2, (STEPS, SLOTS, 64))
    if kind == "patch":
        return rng.integers(0, 49, (STEPS, SLOTS))
    shape = (40, 40) if kind == "pixel" else (4,)
    return rng.uniform(-1, 1, (STEPS, SLOTS, *shape)).astype(np.float32)


def as_vector(keywords: Game, chosen: npt.NDArray[Any]) -> Played:
    env: Any = MaskVectorEnv(SLOTS, **keywords)
    observation, info = env.reset(seed=SEED)
    seen, hidden, infos = [observation], [], []
    for action in chosen:
        observation, reward, _, _, info = env.step(torch.from_numpy(action) if env.game.tensors else action)
        if env.game.tensors:
            assert isinstance(observation, Tensor)
        seen.append(observation)
        hidden.append(info["final_obs"])
        final = {name: value for name, value in info["final_info"].items() if not name.startswith("_")}
        infos.append({**final, "reward": reward})
    return played(seen, hidden, infos)


def as_single(keywords: Game, chosen: npt.NDArray[Any]) -> Played:
    slots = []
    for slot in range(SLOTS):
        env = MaskEnv(**keywords)
        seen, hidden, infos = [env.reset(seed=SEED + slot)[0]], [], []
        for action in chosen[:, slot]:
            after, reward, _, _, info = env.step(action)
            hidden.append(after)
            infos.append({**info, "reward": reward})
            seen.append(env.reset()[0])
        slots.append(played(seen, hidden, infos))
    return Played(
        np.stack([one.seen for one in slots], 1),
        np.stack([one.hidden for one in slots], 1),
        {name: np.stack([one.where[name] for one in slots], 1) for name in slots[0].where},
        {name: np.stack([one.numbers[name] for one in slots], 1) for name in slots[0].numbers},
    )


def agree(one: Played, other: Played, relative: float, absolute: float) -> None:
    """Images, places and areas to the bit, numbers as near as that."""
    assert same(one.seen, other.seen)
    assert same(one.hidden, other.hidden)
    assert same({k: v.tolist() for k, v in one.where.items()}, {k: v.tolist() for k, v in other.where.items()})
    assert one.numbers.keys() == other.numbers.keys()
    for name, row in one.numbers.items():
        np.testing.assert_allclose(other.numbers[name], row, rtol=relative, atol=absolute, err_msg=name)


# how: what is asked for, and how far numbers may be from those of the vector environment, relative and absolute. What
# a judge computes for one image alone differs in its last bits; bfloat16 as `Acceleration` says it.
HOW: dict[str, tuple[Game, float, float]] = {
    "single": ({}, 1e-5, 3e-6),
    "tensors": ({"tensors": True}, 0, 0),
    "channels_last": ({"channels_last": True}, 1e-5, 3e-6),
    "bf16": ({"precision": "bf16"}, 0.02, 0.03),
}
objectives = pytest.mark.parametrize("objective", OBJECTIVES)
kinds = pytest.mark.parametrize("kind", ACTIONS)


def keywords_of(objective: str, kind: str, judges: dict[bool, nn.Module], **more: Any) -> Game:
    # Copies: a layout is applied in place.
    model = copy.deepcopy(judges[objective == "reconstruction"])
    frozen: Game = {"joint": False, "reward_model": model, "device": "cpu", "repeat": 2}
    return {"objective": objective, "action": kind, **frozen, **more}


@pytest.fixture(scope="module")
def compared_with() -> dict[tuple[str, str, bool], Played]:
    """What the vector environment gave, played once for all that is compared with it."""
    return {}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("flip", [False, True])
@kinds
@objectives
def test_it_is_the_same_game(
    objective: str, kind: str, flip: bool, how: str, radiographs: ImageDataset, judges: dict[bool, nn.Module],
    compared_with: dict[tuple[str, str, bool], Played],
) -> None:  # fmt: skip
    def keywords(**more: Any) -> Game:
        return keywords_of(objective, kind, judges, dataset=radiographs, flip=flip, fill="noise", **more)

    chosen, key = actions(kind), (objective, kind, flip)
    if key not in compared_with:
        compared_with[key] = as_vector(keywords(), chosen)
    one = compared_with[key]
    more, relative, absolute = HOW[how]
    other = as_single(keywords(), chosen) if how == "single" else as_vector(keywords(**more), chosen)
    agree(one, other, relative, absolute)
    exact, rounded = one.numbers["reward"], other.numbers["reward"]
    if how == "bf16":
        assert not np.array_equal(exact, rounded)
        assert objective != "reconstruction" or np.abs(rounded - exact).max() < 0.005
        assert spearmanr(exact.ravel(), rounded.ravel()).statistic > 0.99
    # Rewards that are all alike would agree however wrong they were.
    assert exact.std() > 0.02
    assert len(np.unique(one.where["index"])) > 5
    assert set(one.where["try"].ravel().tolist()) == {0, 1}


@kinds
@objectives
def test_flip_shows_the_same_images_some_of_them_in_a_mirror(
    objective: str, kind: str, radiographs: ImageDataset, judges: dict[bool, nn.Module]
) -> None:
    def game(dataset: ImageDataset, flip: bool) -> Played:
        return as_vector(keywords_of(objective, kind, judges, dataset=dataset, fill="mean", flip=flip), actions(kind))

    mirrored = dataclasses.replace(radiographs, images=radiographs.images[..., ::-1].copy())
    flipped, plain, mirror = game(radiographs, True), game(radiographs, False), game(mirrored, False)
    turned = (flipped.seen[:-1] != plain.seen[:-1]).any((2, 3, 4))
    assert 0.2 < turned.mean() < 0.8

    def chosen(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.where(turned.reshape(*turned.shape, *[1] * (one.ndim - 2)), one, other)

    assert same(flipped.seen[:-1], chosen(mirror.seen[:-1], plain.seen[:-1]))
    assert same(flipped.hidden, chosen(mirror.hidden, plain.hidden))
    assert same(flipped.where, plain.where)
    for name, row in flipped.numbers.items():
        expected = chosen(mirror.numbers[name], plain.numbers[name])
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=3e-6, err_msg=name)
