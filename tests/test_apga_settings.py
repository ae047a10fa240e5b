"""APGA's settings: each does something, and what cannot work is refused."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from marker_game import GRID, SIZE, joint_env, marker_env
from torch import nn

from maskaug.agents.agent import GridSpec
from maskaug.agents.apga import APGA, APGASettings
from maskaug.envs.errors import ConfigurationError

OTHER: dict[str, Any] = {
    "loss": "published", "estimator": "bernoulli", "network": "ternausnet",
    "learning_rate": 1e-3, "entropy": 0.5, "normalise": False, "max_grad_norm": 0.01,
    "average": 0.5, "mirror": False, "init": "random", "smooth": False, "width": 8, "loss_scale": 1.0,
    "penalty_none": 9.0, "penalty_all": 9.0, "baseline_decay": 0.1,
}  # fmt: skip
PUBLISHED_ONLY = {"loss_scale", "penalty_none", "penalty_all", "baseline_decay"}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(APGASettings)])
def test_every_setting_does_something(field: str) -> None:
    def scores(**settings: Any) -> Any:
        # TernausNet takes multiples of 32.
        env = joint_env(repeat=1, area=0.16, **({"image_size": 64, "grid": 8} if field == "network" else {}))
        agent = APGA(env, seed=1, **settings).learn(12)
        return agent.scores(env.dataset.images[:3])

    base: dict[str, Any] = {"loss": "published", "max_grad_norm": 0.0} if field in PUBLISHED_ONLY else {}
    assert np.array_equal(scores(**base), scores(**base))
    assert not np.array_equal(scores(**base), scores(**{**base, field: OTHER[field]}))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"loss": "ppo"}, "reinforce"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": "fast"}, "a number"),
        ({"max_grad_norm": -1}, "max_grad_norm"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm"),
        ({"entropy": -1.0}, "entropy"),
        ({"entropy": float("inf")}, "entropy"),
        ({"average": 1.0}, "average"),
        ({"init": "imagenet"}, "random"),
        ({"estimator": "gumbel"}, "bernoulli"),
        ({"network": "unet"}, "ternausnet"),
        ({"network": "ternausnet", "width": 32}, "does nothing with network='ternausnet'"),
        ({"network": "ternausnet", "smooth": False}, "does nothing with network='ternausnet'"),
        ({"loss": "published", "estimator": "bernoulli"}, "does nothing with loss='published'"),
        ({"width": 12}, "multiple of 8"),
        ({"width": 16.0}, "integer"),
        ({"mirror": "no"}, "True or False"),
        ({"loss": "published", "baseline_decay": 1.0}, "baseline_decay"),
        ({"loss": "published", "loss_scale": float("nan")}, "loss_scale"),
        ({"loss_scale": 10.0}, "does nothing"),
        ({"loss": "published", "entropy": 0.1}, "does nothing"),
        ({"learning_rte": 0.1}, "learning_rate"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        APGA(GridSpec((1, SIZE, SIZE), GRID, 4), **settings)


def test_init_judge_takes_the_judges_trunk_and_needs_one() -> None:
    env = joint_env()
    agent = APGA(env, init="judge")
    trunk = env.game.reward_model.model.trunk
    assert isinstance(trunk, nn.Module)
    for mine, its in zip(agent.policy.trunk.parameters(), trunk.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(mine, its)
        assert mine is not its
    with pytest.raises(ConfigurationError, match="init='random'"):
        APGA(marker_env(), init="judge")
