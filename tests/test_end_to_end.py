"""The end-to-end arm: its loss by hand, a known answer found, the judge left alone, and kept as the others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import BrightnessJudge, FlatJudge, pictures, same
from marker_game import GRID, SIDE, SIZE, MarkerJudge, marker_env, marker_images
from marker_game import joint_env as learning_env
from patch_game import joint_env as reconstruction_env
from torch import Tensor, nn
from torch.nn import functional

import maskaug
from maskaug.agents.agent import GridSpec
from maskaug.agents.end_to_end import EndToEnd, EndToEndSettings
from maskaug.agents.masker import Masker, load_agent
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.networks import SmallClassifier, seeded_weights


class SoftMarkerJudge(nn.Module):
    """Log-odds that rise with the darkest pixel of the brightest 4×4 square: `MarkerJudge` with a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        darkest = -functional.max_pool2d(-images, SIDE, 1)
        seen = darkest.amax((1, 2, 3))
        return torch.stack([torch.zeros_like(seen), 10 * seen - 6], 1)


def small_env(num_envs: int = 4, **keywords: Any) -> MaskVectorEnv:
    """A frozen small judge on small noisy pictures."""
    with seeded_weights(5):
        judge = SmallClassifier(1, 2)
    play = {"grid": 4, "joint": False, "reward_model": judge, "device": "cpu", **keywords}
    return MaskVectorEnv(num_envs, dataset=pictures(12, size=16), **play)


def metrics_of(agent: EndToEnd, masks: int) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []

    def keep(_: Any, metrics: Any) -> None:
        found.append({k: v for k, v in metrics.items() if k.startswith("train/")})

    agent.learn(masks, keep)
    return found


def rise(env: MaskVectorEnv, slope: float, left: float) -> float:
    """By how much a `BrightnessJudge`'s loss rises when that share of each image the slots see is left."""
    data, index = env.dataset, env.game.index
    assert data.labels is not None
    mean, sign = data.images[index].mean((1, 2, 3)) / 255, np.where(data.labels[index] == 1, 1, -1)
    clean, masked = (np.log1p(np.exp(-sign * slope * share * mean)).mean() for share in (1.0, left))
    return float(masked - clean)


# ---- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "sign", "left"), [("adversarial", 1, 0.6), ("preserving", -1, 0.4)])
def test_the_loss_by_hand(objective: str, sign: int, left: float) -> None:
    data = pictures(8)
    env = MaskVectorEnv(
        8, dataset=data, grid=4, area=0.25, area_price=3.0, joint=False, reward_model=BrightnessJudge(4.0),
        objective=objective, device="cpu",
    )  # fmt: skip
    agent = EndToEnd(env, seed=0, device="cpu")
    with torch.no_grad():
        # 40 % of every pixel is hidden, or left.
        agent.policy.head.bias.fill_(math.log(0.4 / 0.6))  # type: ignore[union-attr, operator]
    env.reset(seed=0)
    gain, price = sign * rise(env, 4.0, left), 3.0 * (0.15 / 0.75) ** 2
    (metrics,) = metrics_of(agent, 8)
    assert metrics["train/soft_gain"] == pytest.approx(gain, rel=1e-4)
    assert metrics["train/soft_area"] == pytest.approx(0.4)
    assert metrics["train/price"] == pytest.approx(price, rel=1e-5)
    assert metrics["train/loss"] == pytest.approx(price - gain, rel=1e-4)


@pytest.mark.parametrize("fill", ["zero", "mean", "blur"])
@pytest.mark.parametrize("objective", ["adversarial", "preserving"])
def test_a_mask_that_is_not_soft_earns_what_the_game_gives(fill: str, objective: str) -> None:
    data = pictures(6, size=16)
    judge = FlatJudge(data)
    env = MaskVectorEnv(
        6, dataset=data, grid=4, fill=fill, objective=objective, joint=False, reward_model=judge, device="cpu"
    )
    env.reset(seed=0)
    cells = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.4
    agent = EndToEnd(env, device="cpu")
    mask = cells.float().repeat_interleave(4, 1).repeat_interleave(4, 2)
    gain = agent._gain(env, env.game.pictures.at(env.game.index), mask)
    torch.testing.assert_close(gain.detach(), env.game.play(cells).terms["gain"], rtol=1e-4, atol=1e-5)


def test_the_first_soft_mask_has_the_area() -> None:
    for area in (0.25, 0.5):
        (metrics,) = metrics_of(EndToEnd(small_env(area=area), device="cpu"), 4)
        assert metrics["train/soft_area"] == pytest.approx(area, rel=1e-5)
        assert metrics["train/price"] == pytest.approx(0, abs=1e-9)


def test_the_price_keeps_the_soft_mask_near_the_area() -> None:
    areas = []
    for price in (0.0, 1.0, 20.0):
        env = marker_env(16, 1, reward_model=SoftMarkerJudge(), area_price=price)
        areas.append(metrics_of(EndToEnd(env, seed=0, device="cpu"), 16 * 120)[-1]["train/soft_area"])
    assert areas[0] > 0.9
    assert areas[0] > areas[1] > areas[2]
    assert areas[2] == pytest.approx(0.25, abs=0.06)


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["adversarial", "preserving"])
def test_it_finds_the_marker_without_a_single_action(objective: str) -> None:
    env = marker_env(16, 1, reward_model=SoftMarkerJudge(), objective=objective, area=1 / 8)
    env.step = None  # type: ignore[method-assign, assignment]
    agent = EndToEnd(env, seed=0, device="cpu")
    held_out = marker_images(200, 99)
    assert held_out.regions is not None

    def kept(masks: Any) -> float:
        assert held_out.regions is not None
        return float(((masks & held_out.regions).sum((1, 2)) / np.asarray(held_out.regions).sum((1, 2))).mean())

    before = kept(Masker(agent)(np.asarray(held_out.images)))
    masks = Masker(agent.learn(16 * 200))(np.asarray(held_out.images))
    assert before < 0.3
    assert kept(masks) > 0.95
    assert kept(np.roll(masks, 1, axis=0)) < 0.25
    assert (masks.sum((1, 2)) == SIZE * SIZE // 8).all()


def test_it_learns_masks_of_pixels() -> None:
    env = marker_env(16, 1, reward_model=SoftMarkerJudge(), action="pixel")
    agent = EndToEnd(env, seed=0, device="cpu").learn(16 * 60)
    held_out = marker_images(50, 99)
    assert held_out.regions is not None
    actions, _ = agent.predict(np.asarray(held_out.images), deterministic=True)
    assert actions.shape == (50, SIZE, SIZE)
    masks = actions > 0
    assert (masks.sum((1, 2)) == SIZE * SIZE // 4).all()
    assert ((masks & held_out.regions).sum((1, 2)) / SIDE**2).mean() > 0.8


def test_predictions_are_the_top_cells_with_or_without_chance() -> None:
    agent = EndToEnd(small_env(), device="cpu").learn(8)
    images = np.asarray(pictures(3, size=16).images)
    chosen, _ = agent.predict(images, deterministic=True)
    assert (chosen.sum(1) == 4).all()
    assert np.array_equal(chosen, agent.predict(images)[0])


# ---- the judge and the game ------------------------------------------------------------------------------------------


def test_the_judge_is_left_alone() -> None:
    env = small_env()
    judge = env.game.reward_model.model
    first = next(judge.parameters())
    first.grad = torch.ones_like(first)
    judge.train()
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    EndToEnd(env, seed=0, device="cpu").learn(20)
    assert same(before, dict(judge.state_dict()))
    assert torch.equal(first.grad, torch.ones_like(first))
    assert [p.grad for p in judge.parameters()][1:] == [None] * (len(list(judge.parameters())) - 1)
    assert all(p.requires_grad for p in judge.parameters())
    assert not judge.training


def test_every_mask_counts_and_a_clean_image_is_judged_once() -> None:
    judge = BrightnessJudge()
    env = MaskVectorEnv(4, dataset=pictures(4), grid=4, joint=False, reward_model=judge, device="cpu")
    judge.seen.clear()
    agent = EndToEnd(env, device="cpu").learn(20)
    assert (agent.num_timesteps, agent.updates) == (20, 5)
    # The probe; each of five batches; the clean images of those that had new ones (the slots' orders differ).
    batches = judge.seen[1:]
    assert judge.seen[0] == 1
    assert 5 + 1 <= len(batches) <= 5 + 4
    judge.seen.clear()
    agent.learn(20)
    assert judge.seen == [1, 4, 4, 4, 4, 4]


def test_clean_losses_are_those_of_the_judge_as_it_is() -> None:
    judge = BrightnessJudge()
    env = MaskVectorEnv(8, dataset=pictures(8), grid=4, joint=False, reward_model=judge, device="cpu")
    agent = EndToEnd(env, seed=0, device="cpu", learning_rate=1e-12)
    env.reset(seed=0)
    # Far more often than there are images: nothing is new any more.
    for slope in [4.0] * 12 + [1.0] * 12:
        with torch.no_grad():
            judge.slope.fill_(slope)
        expected = rise(env, slope, 0.75)
        assert metrics_of(agent, 8)[0]["train/soft_gain"] == pytest.approx(expected, abs=1e-5)


def test_tries_beyond_the_first_are_passed_over() -> None:
    def weights(repeat: int) -> Any:
        return dict(EndToEnd(small_env(repeat=repeat), seed=0, device="cpu").learn(40).policy.state_dict())

    assert same(weights(1), weights(3))


def test_a_judge_that_is_not_finite_is_named_before_anything_is_learnt() -> None:
    env = small_env()
    agent = EndToEnd(env, seed=0, device="cpu").learn(4)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    with torch.no_grad():
        env.game.reward_model.model.head.bias.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(JudgeError, match="not finite"):
        agent.learn(4)
    assert same(before, dict(agent.policy.state_dict()))


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (learning_env, r"joint=False and reward_model=FILE"),
        (lambda: small_env(objective="sensitivity"), "not of 'sensitivity'"),
        (lambda: reconstruction_env(action="grid", area=0.24), "not of 'reconstruction'"),
        (lambda: marker_env(reward_model=MarkerJudge()), "no gradient in the image"),
        (lambda: small_env(action="patch"), "plays action='grid' or 'pixel'"),
    ],
)
def test_games_it_cannot_learn_are_refused(env: Callable[[], MaskVectorEnv], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        EndToEnd(env(), device="cpu").learn(1)


def test_a_judge_with_parameters_behind_a_threshold_has_no_gradient_either() -> None:
    class Threshold(BrightnessJudge):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward((images > 0.5).float())

    env = MaskVectorEnv(4, dataset=pictures(8), grid=4, joint=False, reward_model=Threshold(), device="cpu")
    with pytest.raises(ConfigurationError, match="Threshold has no gradient"):
        EndToEnd(env, device="cpu").learn(1)


# ---- settings and keeping --------------------------------------------------------------------------------------------


OTHER: dict[str, Any] = {
    "learning_rate": 1e-4, "max_grad_norm": 1e-3, "average": 0.5, "mirror": False, "init": "random", "smooth": False,
    "width": 8,
}  # fmt: skip


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(EndToEndSettings)])
def test_every_setting_does_something(field: str) -> None:
    def scores(**settings: Any) -> Any:
        env = small_env()
        agent = EndToEnd(env, seed=1, device="cpu", **settings)
        return agent.learn(16).scores(env.dataset.images[:3])

    assert same(scores(), scores())
    assert not same(scores(), scores(**{field: OTHER[field]}))


def test_the_fill_the_area_and_the_seed_matter() -> None:
    def scores(seed: int = 1, **keywords: Any) -> Any:
        env = small_env(**keywords)
        return EndToEnd(env, seed=seed, device="cpu", init="random").learn(16).scores(env.dataset.images[:3])

    everything = [scores(), scores(seed=2), scores(area=0.5), scores(area_price=9.0)]
    everything += [scores(fill=fill) for fill in ("mean", "blur", "noise")]
    assert len({s.tobytes() for s in everything}) == 7
    assert same(scores(fill="noise"), scores(fill="noise"))


def test_init_judge_needs_a_judge_that_fits() -> None:
    with pytest.raises(ConfigurationError, match="init='random'"):
        EndToEnd(marker_env(reward_model=SoftMarkerJudge()), init="judge")
    agent, env = EndToEnd(small_env(), init="judge", device="cpu"), small_env()
    trunk = env.game.reward_model.model.trunk
    assert isinstance(trunk, nn.Module)
    assert same(dict(agent.policy.trunk.state_dict()), dict(trunk.state_dict()))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate"), ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm"), ({"average": 1.0}, "average"), ({"init": "vgg"}, "random"),
        ({"width": 12}, "multiple of 8"), ({"mirror": 1}, "True or False"), ({"widht": 8}, "unknown setting widht"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        EndToEnd(GridSpec((1, SIZE, SIZE), GRID, 4), **settings)


@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_it_goes_on_to_the_bit(tmp_path: Path, fill: str) -> None:
    whole = EndToEnd(small_env(fill=fill), seed=0, device="cpu").learn(20)
    rest = metrics_of(whole, 20)
    EndToEnd(small_env(fill=fill), seed=0, device="cpu").learn(20).save_checkpoint(tmp_path / "c.safetensors")
    other = EndToEnd(small_env(fill=fill), seed=0, device="cpu")
    other.load_checkpoint(tmp_path / "c.safetensors")
    assert metrics_of(other, 20) == rest
    assert same(dict(whole.policy.state_dict()), dict(other.policy.state_dict()))
    assert same(dict(whole.averaged.state_dict()), dict(other.averaged.state_dict()))
    assert other.num_timesteps == 40


def test_it_is_saved_and_load_masker_reads_it(tmp_path: Path) -> None:
    agent = EndToEnd(small_env(), seed=0, device="cpu").learn(20)
    images = np.asarray(pictures(4, size=16).images)
    agent.save(tmp_path / "masker.safetensors")
    masker = maskaug.load_masker(tmp_path / "masker.safetensors")
    assert same(masker.agent.scores(images), agent.scores(images))
    assert (masker(images).sum((1, 2)) == 64).all()
    again = load_agent(tmp_path / "masker.safetensors", env=small_env(), device="cpu")
    assert isinstance(again, EndToEnd)
    assert not same(again.learn(8).scores(images), agent.scores(images))
