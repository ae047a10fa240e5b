"""Bernoulli draws of cells against the exact distribution, and APGA with them: on cells and on pixels."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import FlatJudge, pictures, same
from marker_game import marker_env, marker_images
from safetensors.torch import save_file
from torch import nn

import maskaug
from maskaug.agents import bernoulli
from maskaug.agents.agent import GridSpec
from maskaug.agents.apga import APGA
from maskaug.agents.masker import Masker
from maskaug.agents.ternausnet import TernausNet11
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import seeded_weights

EVERY = torch.tensor(list(itertools.product([False, True], repeat=3)))[:, None]
LOGITS = torch.tensor([[0.3, -1.2, 2.0]])


def test_probabilities_are_products_and_sum_to_one() -> None:
    log_p = bernoulli.log_prob(LOGITS, EVERY)[:, 0]
    p = LOGITS[0].sigmoid()
    expected = [math.prod(float(q if on else 1 - q) for q, on in zip(p, row[0], strict=True)) for row in EVERY]
    assert log_p.exp().tolist() == pytest.approx(expected, rel=1e-5)
    assert float(log_p.exp().sum()) == pytest.approx(1)


def test_draws_have_their_frequencies_and_a_seed() -> None:
    draws = bernoulli.sample(LOGITS, 20_000, torch.Generator().manual_seed(0))
    assert draws.shape == (20_000, 1, 3)
    np.testing.assert_allclose(draws.float().mean((0, 1)), LOGITS[0].sigmoid(), atol=0.02)
    pairs = (draws[..., 0] & draws[..., 1]).float().mean()
    assert float(pairs) == pytest.approx(float(LOGITS[0, :2].sigmoid().prod()), abs=0.02)
    assert torch.equal(draws, bernoulli.sample(LOGITS, 20_000, torch.Generator().manual_seed(0)))


def test_the_gradient_is_chosen_minus_probability() -> None:
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(bernoulli.log_prob(logits, EVERY[5:6]).sum(), logits)
    torch.testing.assert_close(gradient, EVERY[5].float() - LOGITS.sigmoid())


def test_entropy_by_hand_and_extremes_stay_finite() -> None:
    p = LOGITS.sigmoid()
    expected = -(p * p.log() + (1 - p) * (1 - p).log()).mean(1)
    torch.testing.assert_close(bernoulli.entropy(LOGITS), expected)
    extreme = torch.tensor([[-200.0, 200.0, 0.0]], requires_grad=True)
    value = bernoulli.entropy(extreme).sum() + bernoulli.log_prob(extreme, EVERY).sum()
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite()
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()


def test_it_learns_the_known_answer_and_keeps_its_area() -> None:
    env = marker_env(area_price=20.0)
    agent = APGA(env, seed=0, device="cpu", estimator="bernoulli", entropy=0.0)
    untrained = agent.scores(env.dataset.images[:1])
    assert untrained == pytest.approx(np.full((1, 4, 4), math.log(0.25 / 0.75)), abs=1e-5)
    areas: list[float] = []
    agent.learn(16_000, lambda _, metrics: areas.append(metrics["rollout/area"]))
    held_out = marker_images(64, seed=5)
    assert held_out.regions is not None
    masks = Masker(agent)(np.asarray(held_out.images))
    kept = (masks & held_out.regions).sum((1, 2)) / np.asarray(held_out.regions).sum((1, 2))
    assert kept.mean() > 0.9
    assert np.mean(areas[:5]) == pytest.approx(0.25, abs=0.05)
    assert 0.1 < np.mean(areas[-20:]) < 0.33


# ---- pixels ----------------------------------------------------------------------------------------------------------

DATA = pictures(8, size=32)


def pixels(**more: Any) -> MaskVectorEnv:
    play: dict[str, Any] = {"dataset": DATA, "grid": 4, "action": "pixel", "repeat": 2, "device": "cpu"}
    frozen = {"joint": False, "reward_model": FlatJudge(DATA)}
    return MaskVectorEnv(4, **{**play, **frozen, **more})


@pytest.mark.parametrize("settings", [{}, {"estimator": "bernoulli"}, {"loss": "published"}])
@pytest.mark.parametrize("network", ["grid", "ternausnet"])
def test_pixels_are_played_predicted_saved_and_loaded(settings: Any, network: str, tmp_path: Path) -> None:
    env = pixels(repeat=1) if settings else pixels()
    small = {"width": 8} if network == "grid" else {"network": network}
    agent = APGA(env, seed=0, device="cpu", **small, **settings).learn(16)
    assert agent.spec == GridSpec((1, 32, 32), 32, 256, pixels=True)
    images = DATA.images[:3]
    assert agent.scores(images).shape == (3, 32, 32)
    best, _ = agent.predict(images, deterministic=True)
    assert best.shape == (3, 32, 32)
    assert best.dtype == np.float32
    assert set(np.unique(best)) == {-1.0, 1.0}
    assert ((best > 0).sum((1, 2)) == 256).all()
    assert env.single_action_space.contains(agent.predict(images[0])[0])
    agent.save(tmp_path / "masker.safetensors")
    loaded = APGA.load(tmp_path / "masker.safetensors", env)
    assert same(loaded.scores(images), agent.scores(images))
    masks = maskaug.load_masker(tmp_path / "masker.safetensors")(images)
    assert same(masks, best > 0)
    assert (maskaug.load_masker(tmp_path / "masker.safetensors", area=0.1)(images).sum((1, 2)) == 102).all()


def test_pixels_go_on_to_the_bit(tmp_path: Path) -> None:
    whole = APGA(pixels(), seed=0, device="cpu", width=8).learn(32)
    first = APGA(pixels(), seed=0, device="cpu", width=8).learn(16)
    first.save_checkpoint(tmp_path / "c.safetensors")
    second = APGA(pixels(), seed=0, device="cpu", width=8)
    second.load_checkpoint(tmp_path / "c.safetensors")
    second.learn(16)
    assert same(dict(whole.policy.state_dict()), dict(second.policy.state_dict()))


def test_ternausnet_wants_its_multiples_and_pixels_a_square() -> None:
    with pytest.raises(ConfigurationError, match="multiples of 32, not 40×40"):
        APGA(GridSpec((1, 40, 40), 5, 4), network="ternausnet")
    data = pictures(8)
    wide = MaskVectorEnv(2, dataset=data, grid=4, action="pixel", joint=False, reward_model=FlatJudge(data))
    object.__setattr__(wide.game, "dataset", type("Wide", (), {"shape": (1, 16, 32)})())
    with pytest.raises(ConfigurationError, match="square images here, not 16×32"):
        APGA(wide)


def test_a_policy_starts_from_trained_weights_once(tmp_path: Path) -> None:
    with seeded_weights(7):
        trained = TernausNet11(1, 4)
    save_file(dict(trained.state_dict()), tmp_path / "whole.safetensors")
    agent = APGA(pixels(action="grid"), seed=0, device="cpu", network="ternausnet")
    agent.start_from(whole=tmp_path / "whole.safetensors")
    for network in (agent.policy, agent.averaged.module):
        assert isinstance(network, nn.Module)
        assert same(dict(network.state_dict()), dict(trained.state_dict()))
    for more in ({}, {"vgg11": "a", "whole": "b"}):
        with pytest.raises(ConfigurationError, match="one file of weights"):
            agent.start_from(**more)
    with pytest.raises(ConfigurationError, match="network='ternausnet'"):
        APGA(pixels(action="grid"), width=8).start_from(whole=tmp_path / "whole.safetensors")
    agent.learn(8)
    with pytest.raises(ConfigurationError, match="not learnt yet"):
        agent.start_from(whole=tmp_path / "whole.safetensors")
