"""Every keyword of an environment does something, and what cannot work says what would."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import FlatJudge, pictures, same, small

from maskaug.envs.devices import resolve_device
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.game import MaskGame
from maskaug.envs.judges import make_judge, save_judge

DATA = pictures(7)
GRID = 4
Game = dict[str, Any]


def frozen(**more: Any) -> Game:
    return {"dataset": DATA, "grid": GRID, "joint": False, "reward_model": FlatJudge(DATA), **more}


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
        if hasattr(space, "n"):
            count = int(space.n)
            shown.append(env.step(rng.integers(0, 2, (2, count)) if space.shape else rng.integers(0, count, 2)))
        else:
            shown.append(env.step(rng.uniform(-1, 1, (2, *space.shape))))
    shown.append([value.clone() for value in env.game.reward_model.model.state_dict().values()])
    return shown


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_judge(path, make_judge("small", 1, 2, 5))
    return path


def share(images: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return mask.float().mean((1, 2))


RECONSTRUCTION: Game = {"objective": "reconstruction"}
CHANGES: list[tuple[Game, Game]] = [
    ({}, {"split": "val"}),
    ({}, {"image_size": 48}),
    ({}, {"channels": 3}),
    ({}, {"n_shot": 4}),
    ({"n_shot": 4}, {"n_shot": 5}),
    ({}, {"flip": True}),
    (RECONSTRUCTION, {**RECONSTRUCTION, "flip": True}),
    ({}, {"objective": "sensitivity"}),
    ({"objective": "sensitivity"}, {"objective": "sensitivity", "sensitivity": "features"}),
    ({}, {"objective": "preserving"}),
    ({"objective": "preserving"}, {"objective": "both"}),
    ({}, {"objective": "both"}),
    ({}, {"action": "patch"}),
    ({}, {"action": "pixel"}),
    ({"action": "pixel"}, {"action": "pixel", "area": 0.5}),
    ({}, {"action": "box"}),
    ({"action": "box"}, {"action": "box", "area_price": 2.0}),
    ({}, {"grid": 4}),
    ({"action": "patch"}, {"action": "patch", "patch_cells": 3}),
    ({}, {"area": 0.5}),
    ({}, {"area_price": 2.0}),
    ({}, {"fill": "mean"}),
    ({"fill": "mean"}, {"fill": "blur"}),
    ({}, {"fill": "noise"}),
    ({}, {"reward_terms": {"own": share}}),
    ({"reward_terms": {"own": share}}, {"reward_terms": {"other": share}}),
    ({}, {"judge_lr": 0.02}),
    ({}, {"judge_batch": 3}),
    ({}, {"repeat": 2}),
    ({}, {"steps": 2}),
    ({}, {"precision": "bf16"}),
    ({}, {"seed": 1}),
    ({}, {"kind": "mr"}),
    ({}, {"difficulty": "hard"}),
    ({}, {"n": 30}),
    ({"kind": "ultrasound"}, {"kind": "ultrasound", "task": "presence"}),
    ({"kind": "ultrasound", "task": "presence"}, {"kind": "ultrasound", "task": "presence", "difficulty": "hard"}),
    ({}, {"objective": "reconstruction"}),
    (RECONSTRUCTION, {**RECONSTRUCTION, "visible_weight": 0.5}),
    (RECONSTRUCTION, {**RECONSTRUCTION, "action": "patch"}),
    (RECONSTRUCTION, {**RECONSTRUCTION, "action": "box"}),
    (RECONSTRUCTION, {**RECONSTRUCTION, "steps": 2}),
    (RECONSTRUCTION, {**RECONSTRUCTION, "judge_lr": 0.02}),
    (RECONSTRUCTION, {**RECONSTRUCTION, "judge_batch": 3}),
    (RECONSTRUCTION, {**RECONSTRUCTION, "repeat": 2}),
    (RECONSTRUCTION, {**RECONSTRUCTION, "fill": "mean"}),
    (RECONSTRUCTION, {**RECONSTRUCTION, "seed": 1}),
    (RECONSTRUCTION, {**RECONSTRUCTION, "only_class": "fracture"}),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=lambda change: " ".join(change) or "-")
def test_every_keyword_changes_something(before: Game, after: Game) -> None:
    assert same(outcome(**before), outcome(**before))
    assert not same(outcome(**before), outcome(**after))


def test_the_judges_keywords_change_something(file: Path) -> None:
    assert not same(outcome(), outcome(reward_model=file))
    assert not same(outcome(), outcome(reward_model=["small", "small"]))
    assert not same(outcome(reward_model=file), outcome(reward_model=[file, "small"]))
    assert same(outcome(), outcome(reward_model=["small"]))
    still: Game = {"joint": False, "judge_batch": None, "reward_model": file}
    assert not same(outcome(reward_model=file), outcome(**still))
    played = outcome(**still, only_class="fracture")
    assert set(played[0][1]["label"]) == {1}
    assert not same(outcome(**still), played)
    assert not same(played, outcome(**still, only_class="normal"))


def test_every_keyword_has_its_test() -> None:
    import inspect

    tested = {name for change in CHANGES for name in change[1]} | {"joint", "reward_model", "only_class"}
    elsewhere = {"num_envs", "dataset", "root", "device", "tensors", "channels_last", "compile", "options"}
    assert set(inspect.signature(MaskGame).parameters) == (tested | elsewhere) - {"kind", "difficulty", "n", "task"}


def test_defaults_are_those_that_are_documented() -> None:
    assert same(outcome(), outcome(area=0.25, area_price=1.0, fill="zero", joint=True, judge_lr=1e-3, grid=8, repeat=1))
    assert same(outcome(), outcome(steps=1, flip=False))
    changes: Game = {"objective": "sensitivity"}
    assert same(outcome(**changes), outcome(**changes, sensitivity="output"))
    assert same(outcome(), outcome(objective="adversarial", action="grid", reward_model="small", seed=0, split="train"))
    assert same(outcome(), outcome(precision="fp32", channels_last=False, compile=False))
    assert same(outcome(judge_batch=None), outcome(judge_batch=32))
    assert same(outcome(action="patch"), outcome(action="patch", patch_cells=2))
    assert same(outcome(**RECONSTRUCTION), outcome(**RECONSTRUCTION, visible_weight=0.0, reward_model="small"))
    assert same(outcome(kind="ultrasound"), outcome(kind="ultrasound", task="diagnosis"))


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


LEARNS: Game = {"objective": "reconstruction", "joint": True, "reward_model": None}


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"objective": "deleting"}, "use one of .*adversarial.*preserving.*both.*sensitivity.*reconstruction"),
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
        ({"dataset": "synthetic", "task": "presence"}, "is for kind='ultrasound'; a radiograph image's label asks"),
        ({"dataset": "synthetic", "task": "mood"}, "task='mood' is unknown; use one of diagnosis, presence"),
        ({"sensitivity": "output"}, "sensitivity='output' does nothing with objective='adversarial'; leave it out"),
        ({**LEARNS, "sensitivity": "features"}, "does nothing with objective='reconstruction'"),
        ({"objective": "sensitivity", "sensitivity": "labels"}, r"use one of \('output', 'features'\)"),
        ({"objective": "sensitivity", "sensitivity": "features"}, "FlatJudge has none; give it a method features"),
        ({"reward_model": 5}, "reward_model=5 must be a name"),
        ({"reward_model": []}, "reward_model is an empty list"),
        ({**LEARNS, "reward_model": ["small", "small"]}, "for classifiers only"),
        ({"visible_weight": 1.0}, "use objective='reconstruction' with joint=True, or leave it out"),
        ({"joint": True, "visible_weight": 0.0}, "visible_weight is for a reconstructor that learns"),
        ({"objective": "reconstruction", "visible_weight": 0.0}, "visible_weight is for a reconstructor that learns"),
        ({**LEARNS, "visible_weight": -1}, "visible_weight=-1 must be a finite number of at least 0"),
        ({**LEARNS, "visible_weight": float("nan")}, "must be a finite number of at least 0"),
        ({**LEARNS, "visible_weight": True}, "must be a finite number of at least 0"),
        ({**LEARNS, "visible_weight": "much"}, "must be a finite number of at least 0"),
        ({"objective": "reconstruction"}, r"must return images of the shape it is given, \(1, 1, 16, 16\)"),
        ({"objective": "reconstruction", "reward_model": None}, "joint=False freezes the judge"),
        ({**LEARNS, "only_class": "z"}, "not a class of pictures"),
        ({**LEARNS, "dataset": dataclasses.replace(DATA, labels=None), "only_class": "a"}, "not a class of pictures"),
        ({"dataset": "imagenet"}, "known are busi"),
        ({"root": "/data"}, r"root='/data' cannot be combined with dataset=ImageDataset\(...\)"),
        ({"split": "test"}, "whose split is 'all'; leave it out"),
        ({"image_size": 128}, "whose image_size is 16; leave it out"),
        ({"channels": 3}, "whose channels is 1; leave it out"),
        ({"n_shot": 2}, r"n_shot=2 cannot be combined .* bring along dataset.few\(n_shot, seed\)"),
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


def test_an_evaluation_plays_held_out_images_with_the_same_judge_and_never_trains_it() -> None:
    env = MaskVectorEnv(4, n=60, repeat=2, fill="mean", area=0.5, area_price=2.0)
    held_out = env.evaluation("val", num_envs=3)
    assert (held_out.dataset.split, held_out.num_envs, held_out.game.repeat) == ("val", 3, 1)
    assert not set(held_out.dataset.names) & set(env.dataset.names)
    assert (held_out.game.fill, held_out.game.rule.area, held_out.game.rule.price) == ("mean", 0.5, 2.0)
    judge = env.game.reward_model.model
    assert held_out.game.reward_model.model is judge
    before = [p.clone() for p in judge.parameters()]
    held_out.reset(seed=0)
    for _ in range(40):
        held_out.step(held_out.action_space.sample())
    assert all(torch.equal(a, b) for a, b in zip(before, judge.parameters(), strict=True))


@pytest.mark.parametrize("action", ["grid", "patch"])
def test_an_evaluation_of_a_reconstructor_shares_it_frozen(action: str) -> None:
    more: Game = {"area": 0.5, "area_price": 0.0} if action == "grid" else {"patch_cells": 3}
    env = MaskVectorEnv(
        2, n=60, objective="reconstruction", action=action, fill="mean", image_size=40, visible_weight=0.5, **more
    )
    held_out = env.evaluation("test", num_envs=3)
    assert held_out.game.reward_model.model is env.game.reward_model.model
    assert (held_out.game.objective, held_out.game.joint, held_out.game.fill) == ("reconstruction", False, "mean")
    assert held_out.single_action_space == env.single_action_space
    assert (held_out.game.rule.area, held_out.game.rule.price) == (env.game.rule.area, env.game.rule.price)
    before = [value.clone() for value in env.game.reward_model.model.state_dict().values()]
    held_out.reset(seed=0)
    for _ in range(5):
        held_out.step(held_out.action_space.sample())
    assert same(before, [value.clone() for value in env.game.reward_model.model.state_dict().values()])


def test_an_evaluation_of_patches_and_of_images_that_were_brought_along() -> None:
    env = MaskVectorEnv(2, dataset=DATA, action="patch", patch_cells=1, grid=GRID)
    with pytest.raises(ConfigurationError, match="dataset=…"):
        env.evaluation()
    held_out = env.evaluation(dataset=DATA.subset([0, 1]))
    assert (len(held_out.dataset), held_out.game.rule.patch_cells) == (2, 1)


def test_an_evaluation_plays_the_same_class() -> None:
    env = MaskVectorEnv(2, n=60, image_size=40, objective="reconstruction", only_class="fracture")
    labels = env.evaluation("test").dataset.labels
    assert labels is not None
    assert set(labels.tolist()) == {1}


def test_a_state_goes_only_into_the_same_game() -> None:
    play: Game = {"n": 60, "image_size": 40, "objective": "reconstruction", "judge_batch": 4}
    env = MaskVectorEnv(2, **play)
    env.reset(seed=0)
    state = env.game.state()
    others: list[Game] = [
        {"grid": 4},
        {"visible_weight": 1.0},
        {"judge_lr": 0.1},
        {"action": "patch"},
        {"fill": "mean"},
        {"area": 0.3},
        {"area_price": 3.0},
        {"repeat": 2},
        {"flip": True},
        {"judge_batch": 8},
    ]
    for other in [
        *others,
        {"joint": False, "judge_batch": None, "reward_model": env.game.reward_model.model},
        {"objective": "adversarial"},
    ]:
        twin = MaskVectorEnv(2, **{**play, **other})
        twin.reset(seed=1)
        before = twin.game.state()
        with pytest.raises(ConfigurationError, match="make it with the same keywords"):
            twin.game.load_state(state)
        assert same(before, twin.game.state())


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"joint": "False"}, "True or False"),
        ({"flip": 1}, "flip=1 must be True or False"),
        ({"device": "meta"}, "not supported"),
    ],
)
def test_types_that_would_be_taken_for_something_else(keywords: Game, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        MaskEnv(n=60, **keywords)
