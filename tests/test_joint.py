"""The joint setting: every arm learns as often, from the same images in the same order, and its best moment is kept."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np
import pytest
import torch
from env_helpers import FlatJudge, pictures, same, small
from torch import Tensor, nn
from torch.nn import functional

from maskaug.agents.apga import APGA
from maskaug.agents.base import spec_of
from maskaug.agents.heuristics import Brightness, Cutout, FixedMask, Heuristic, RandomMasks
from maskaug.agents.saliency import GradCAM, InputGradient
from maskaug.agents.sb3_agent import SB3Agent
from maskaug.benchmarks import joint
from maskaug.benchmarks.joint import Hiding, Joint, Player, nothing_hidden, train_joint
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.networks import to_float
from maskaug.envs.rewards import ClassifierReward

ALL = pictures(18)
TRAIN, VAL = ALL.subset(np.arange(10), "train"), ALL.subset(np.arange(10, 18), "val")
#: 36 pixels are the least for Stable-Baselines3.
WIDE = pictures(18, size=36)
GRID = {"grid": 4}


def random(env: MaskVectorEnv, seed: int) -> Heuristic:
    return RandomMasks(spec_of(env, ("grid",)), seed)


def cutout(env: MaskVectorEnv, seed: int) -> Heuristic:
    return Hiding(Cutout(spec_of(env, ("grid",)), seed))


def apga(env: MaskVectorEnv, seed: int) -> APGA:
    return APGA(env, seed=seed, device="cpu")


def play(player: Player, train: ImageDataset = TRAIN, val: ImageDataset = VAL, **changes: Any) -> Joint:
    arguments: dict[str, Any] = {"updates": 6, "checks": 3, "batch": 4, "seed": 1, "device": "cpu", "env": GRID}
    return train_joint(player, train, val, **{**arguments, **changes})


Taught = list[tuple[Tensor, Tensor, Tensor]]


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> Taught:
    """(images, aiding views, labels) of every update of any judge."""
    seen: Taught = []
    update = ClassifierReward.update

    def spy(self: ClassifierReward, images: Tensor, aiding: Tensor, labels: Tensor) -> dict[str, float]:
        seen.append((images.clone(), aiding.clone(), labels.clone()))
        return update(self, images, aiding, labels)

    monkeypatch.setattr(ClassifierReward, "update", spy)
    return seen


PLAYERS: dict[str, tuple[Player, dict[str, Any]]] = {
    "none": (nothing_hidden, {}),
    "random": (random, {}),
    "centre": (lambda env, seed: FixedMask.centre(spec_of(env, ("grid",))), {"fill": "mean"}),
    "brightness": (lambda env, seed: Brightness(spec_of(env, ("grid",)), seed), {}),
    "cutout": (cutout, {}),
    "grad-cam": (lambda env, seed: GradCAM(spec_of(env, ("grid",)), env.game.reward_model.model, seed=seed), {}),
    "gradient": (lambda env, seed: InputGradient(spec_of(env, ("grid",)), env.game.reward_model.model), {}),
    "published": (lambda env, seed: APGA(env, seed=seed, device="cpu", loss="published"), {}),
    "apga": (apga, {"repeat": 4}),
    "ppo": (lambda env, seed: SB3Agent(env, seed=seed, device="cpu", algorithm="ppo", n_steps=4, batch_size=8), {}),
}


@pytest.mark.parametrize("flip", [False, True])
def test_every_arm_learns_as_often_from_the_same_images_in_the_same_order(taught: Taught, flip: bool) -> None:
    train, val = WIDE.subset(np.arange(10), "train"), WIDE.subset(np.arange(10, 18), "val")
    first: list[list[Any]] = []
    starts = []
    for player, keywords in PLAYERS.values():
        taught.clear()
        made: list[Any] = []

        def remembered(env: MaskVectorEnv, seed: int, player: Player = player, made: list[Any] = made) -> Any:
            made.append([p.detach().clone() for p in env.game.reward_model.model.parameters()])
            return player(env, seed)

        found = play(remembered, train, val, env={**GRID, "flip": flip, **keywords}, updates=6)
        assert found.figures["updates"] == 6
        assert found.figures["timesteps"] == 6 * 4 * keywords.get("repeat", 1)
        assert [row["update"] for row in found.curve] == [2, 4, 6]
        # PPO ends its rollout; its judge is that of the sixth update or before.
        assert len(taught) == (8 if player is PLAYERS["ppo"][0] else 6)
        first.append([(images, labels) for images, _, labels in taught[:6]])
        starts.append(made[0])
    assert all(same(one, first[0]) for one in first)
    assert all(same(one, starts[0]) for one in starts)
    # Over two epochs, and another seed has another order.
    taught.clear()
    play(nothing_hidden, train, val, env={**GRID, "flip": flip}, seed=2)
    assert not same([(images, labels) for images, _, labels in taught], first[0])


def test_what_the_aiding_views_show(taught: Taught) -> None:
    shown = {}
    for name in ("none", "random", "cutout", "brightness"):
        taught.clear()
        play(PLAYERS[name][0])
        assert all(((aiding == images) | (aiding == 0)).all() for images, aiding, _ in taught)
        shown[name] = [(aiding == images).float().mean((1, 2, 3)) for images, aiding, _ in taught]
    # All; a quarter; all but a quarter.
    for name, share in (("none", 1.0), ("random", 0.25), ("cutout", 0.75), ("brightness", 0.25)):
        assert all(torch.allclose(part, torch.tensor(share), atol=0.01) for part in shown[name]), name


def test_none_is_adam_on_the_clean_images(taught: Taught) -> None:
    by_hand = FlatJudge(TRAIN, seed=5)
    found = play(nothing_hidden, env={**GRID, "reward_model": FlatJudge(TRAIN, seed=5), "judge_lr": 0.02}, checks=1)
    optimiser = torch.optim.Adam(by_hand.parameters(), 0.02)
    for images, _, labels in taught:
        optimiser.zero_grad()
        functional.cross_entropy(by_hand(to_float(images)), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    for mine, other in zip(found.judge.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    assert found.figures["update"] == 6


def test_the_game_s_objective_and_area_price_do_not_matter_to_none() -> None:
    weights = [
        dict(play(nothing_hidden, env={**GRID, **keywords}).judge.state_dict())
        for keywords in ({}, {"objective": "both", "area_price": 0.0}, {"area": 0.5, "fill": "blur", "action": "pixel"})
    ]
    assert same(weights[0], weights[1])
    assert same(weights[0], weights[2])


def misleading(n: int, seed: int, *, honest: bool) -> ImageDataset:
    """The centre says the label, faintly; a corner says it louder, unless `honest`, where it says nothing."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(90, 110, (n, 1, 16, 16))
    loud = rng.integers(0, 2, n) if honest else labels
    images[:, 0, :4, :4] += 25 * (2 * loud - 1)[:, None, None]
    images[:, 0, 4:12, 4:12] += 10 * (2 * labels - 1)[:, None, None]
    names = tuple(f"{seed} {i}" for i in range(n))
    groups = np.arange(n, dtype=np.int64) + 1000 * seed
    return ImageDataset("m", images.astype(np.uint8), labels, None, groups, ("no", "yes"), names)


def test_masks_that_keep_what_matters_teach_it_and_others_do_not() -> None:
    train, val = misleading(60, 0, honest=False), misleading(60, 1, honest=True)
    judge = FlatJudge(train)
    nn.init.zeros_(judge.linear.weight)
    env = {**GRID, "reward_model": judge, "judge_lr": 0.02, "fill": "mean"}
    found = {
        name: play(PLAYERS[name][0], train, val, env=env, updates=600, batch=8, checks=5).figures
        for name in ("none", "random", "centre")
    }
    assert found["centre"]["val.accuracy"] > 0.95
    assert found["centre"]["val.loss"] < 0.3
    for name in ("none", "random"):
        assert found[name]["val.accuracy"] < 0.7
        assert found[name]["val.loss"] > 0.5
    assert found["none"]["val.loss"] != found["random"]["val.loss"]


LOSSES = [0.5, 0.2, 0.4, 0.3]


@pytest.mark.parametrize("player", [random, apga])
def test_the_best_moment_is_kept_judge_and_masker(monkeypatch: pytest.MonkeyPatch, player: Player) -> None:
    looked: list[Any] = []
    agents: list[Any] = []

    def remembered(env: MaskVectorEnv, seed: int) -> Any:
        agents.append(player(env, seed))
        return agents[0]

    def look(model: nn.Module, val: ImageDataset, images: Any, *, device: Any) -> dict[str, float]:
        assert val is VAL
        assert images is TRAIN.images
        masker = agents[0].predictor.state_dict() if isinstance(agents[0], APGA) else {}
        looked.append([{k: v.clone() for k, v in state.items()} for state in (model.state_dict(), masker)])
        return {"loss": LOSSES[len(looked) - 1], "accuracy": 0.1 * len(looked), "auroc": float("nan")}

    monkeypatch.setattr(joint, "evaluate_on_clean", look)
    found = play(remembered, updates=9, checks=4)
    assert [row["update"] for row in found.curve] == [2, 4, 6, 9]
    assert [row["loss"] for row in found.curve] == LOSSES
    assert found.figures["update"] == 4
    assert found.figures["val.loss"] == 0.2
    assert found.figures["val.accuracy"] == pytest.approx(0.2)
    assert "val.auroc" not in found.figures
    assert same(dict(found.judge.state_dict()), looked[1][0])
    assert not same(looked[1][0], looked[3][0])
    assert found.player is agents[0]
    if isinstance(found.player, APGA):
        assert same(dict(found.player.predictor.state_dict()), looked[1][1])
        assert not same(looked[1][1], looked[3][1])


def test_the_validation_scores_are_those_of_the_kept_judge() -> None:
    from maskaug.envs.pretrain import evaluate_classifier

    found = play(random)
    again = evaluate_classifier(found.judge, VAL)
    assert not found.judge.training
    assert {k: found.figures[f"val.{k}"] for k in again} == again


class Normed(nn.Module):
    """Batch norm of pixels, then a linear answer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), small(TRAIN).eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(images))
        return logits


def test_batch_norms_end_with_the_statistics_of_clean_images() -> None:
    found = play(random, env={**GRID, "reward_model": Normed()})
    assert isinstance(found.judge, Normed)
    assert found.judge.norm.running_mean is not None
    clean = np.asarray(TRAIN.images, np.float64) / 255
    assert found.judge.norm.running_mean.item() == pytest.approx(clean.mean(), rel=1e-4)


@pytest.mark.parametrize("name", ["random", "cutout", "apga", "ppo"])
def test_one_seed_is_one_judge_and_a_module_is_not_trained_in_place(name: str) -> None:
    player, keywords = PLAYERS[name]
    train, val = WIDE.subset(np.arange(10), "train"), WIDE.subset(np.arange(10, 18), "val")
    judge = small(train, 3)
    before = {k: v.clone() for k, v in judge.state_dict().items()}
    env = {**GRID, **keywords, "reward_model": judge}
    one, two, other = (play(player, train, val, env=env, seed=seed) for seed in (1, 1, 2))
    assert same(before, dict(judge.state_dict()))
    assert one.judge is not judge
    assert same(dict(one.judge.state_dict()), dict(two.judge.state_dict()))
    assert one.curve == two.curve
    assert not same(dict(one.judge.state_dict()), dict(other.judge.state_dict()))


def test_updates_checks_and_batch_are_what_they_say(taught: Taught) -> None:
    assert len(play(random, updates=5, checks=5).curve) == 5
    assert len(taught) == 5
    assert {len(images) for images, *_ in taught} == {4}
    play(random, batch=3)
    assert len(taught[-1][0]) == 3


def test_hiding_is_the_complement() -> None:
    env = MaskVectorEnv(4, dataset=TRAIN, grid=4, device="cpu")
    images = np.asarray(TRAIN.images)
    spec = spec_of(env, ("grid",))
    hidden, _ = Cutout(spec, 3).predict(images)
    hiding = Hiding(Cutout(spec, 3))
    assert hiding.spec == dataclasses.replace(spec, cells=12)
    shown, _ = hiding.predict(images)
    assert np.array_equal(shown, 1 - hidden)
    assert shown.dtype == np.int8
    # Ties are the heuristic's to break.
    level = FixedMask(spec, np.zeros((4, 4)))
    assert np.array_equal(Hiding(level).predict(images)[0], 1 - level.predict(images)[0])
    assert np.array_equal(Hiding(level).scores(images), -level.scores(images))
    with pytest.raises(ConfigurationError, match="no patch"):
        Hiding(RandomMasks(dataclasses.replace(spec, patch_cells=2)))


class Lazy(APGA):
    """Plays half of what it is asked for."""

    def learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Self:
        return super().learn(total_timesteps // 2, *args, **kwargs)


@pytest.mark.parametrize(
    ("player", "changes", "words"),
    [
        (random, {"updates": 0}, "updates=0 must be an integer"),
        (random, {"batch": True}, "batch=True must be an integer"),
        (random, {"checks": 7}, "checks=7 moments do not fit into updates=6"),
        (random, {"env": {"judge_batch": 3, "seed": 1}}, "judge_batch, seed cannot be given here"),
        (random, {"env": {"fill": "noise"}}, "fill='noise' is drawn for every try"),
        (random, {"env": {"objective": "reconstruction", **GRID}}, "a classifier learns here"),
        (random, {"val": TRAIN}, "share 10 groups, such as number 0; carve"),
        (random, {"val": dataclasses.replace(VAL, labels=None)}, "needs labels"),
        (nothing_hidden, {"env": {"action": "patch", **GRID}}, "not 'patch'"),
        (lambda env, seed: APGA(env, seed=seed + 1, device="cpu"), {}, "the seed that it is given, seed=1"),
        (lambda env, seed: APGA(MaskVectorEnv(2, dataset=TRAIN, grid=4), seed=seed), {}, "made of the environment"),
        (lambda env, seed: Lazy(env, seed=seed, device="cpu"), {}, "Lazy has let the judge learn 3 of 6 times"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(player: Player, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        play(player, **changes)


def test_a_judge_that_is_never_finite_on_validation_images_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nan = float("nan")
    monkeypatch.setattr(joint, "evaluate_on_clean", lambda *_, **__: {"loss": nan, "accuracy": 0.5, "auroc": nan})
    with pytest.raises(JudgeError, match="not finite at 3 moments; lower judge_lr"):
        play(random)
