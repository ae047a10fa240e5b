"""Policies and defaults for Stable-Baselines3: how they begin, and that they learn games with a known answer."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from marker_game import marker_env, marker_images
from patch_game import corners_of, frozen_env, square_images
from stable_baselines3 import DQN, PPO
from torch import Tensor

from maskaug.agents.masker import Masker
from maskaug.agents.networks import QMap
from maskaug.agents.sb3 import as_vec_env
from maskaug.agents.sb3_agent import SB3Agent, SB3Settings
from maskaug.agents.sb3_defaults import ALGORITHMS, DEFAULTS, defaults_for, keywords, kinds_of, load_class, resolve
from maskaug.agents.sb3_policies import CellFeatures
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import lean_pass

ROWS = sorted(DEFAULTS)


def space(size: int = 40, channels: int = 1) -> spaces.Box:
    return spaces.Box(0, 255, (channels, size, size), np.uint8)


# ---- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "grid", "channels"), [(36, 6, 1), (40, 5, 3), (64, 8, 1), (224, 16, 1)])
def test_features_are_one_value_a_place_at_every_size(size: int, grid: int, channels: int) -> None:
    images = torch.rand(2, channels, size, size)
    cells = CellFeatures(space(size, channels), "grid", grid, 0, 0.25)
    assert cells(images).shape == (2, grid * grid)
    corners = CellFeatures(space(size, channels), "patch", grid, 2, 0.25)
    assert corners(images).shape == (2, (grid - 1) ** 2)
    assert corners.features_dim == (grid - 1) ** 2


def test_a_corner_is_the_mean_of_its_cells_each_with_a_map_of_its_own() -> None:
    features = CellFeatures(space(), "patch", 5, 2, 0.16)
    images = torch.rand(3, 1, 40, 40)
    maps = features.network(images)
    expected = (maps[:, 0, :-1, :-1] + maps[:, 1, :-1, 1:] + maps[:, 2, 1:, :-1] + maps[:, 3, 1:, 1:]) / 4
    torch.testing.assert_close(features(images), expected.flatten(1))


@pytest.mark.parametrize("size", [36, 42, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_passes_that_nobody_learns_from_are_lean_and_say_the_same(
    size: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lean: list[int] = []

    def watched(trunk: Any, images: Tensor) -> Tensor:
        lean.append(len(images))
        return lean_pass(trunk, images)

    monkeypatch.setattr("maskaug.agents.networks.lean_pass", watched)
    features = CellFeatures(space(size, channels), "patch", 6, 2, 0.25, 8)
    images = torch.rand(5, channels, size, size)
    learnt = features(images)
    assert not lean
    with torch.no_grad():
        torch.testing.assert_close(features(images), learnt, atol=1e-4, rtol=1e-4)
        assert lean == [5]
        # Our own agents' predictions are to the bit what they were trained with.
        QMap(channels, 6)(images)
    assert lean == [5]
    learnt.sum().backward()


def test_first_masks_have_the_area_on_average() -> None:
    images = np.array(marker_images(64, 0).images)
    for kind, area in (("grid", 0.25), ("grid", 0.5), ("pixel", 0.25)):
        agent = SB3Agent(marker_env(16, 1, action=kind, area=area), algorithm="ppo", device="cpu")
        assert np.mean(agent.predict(images)[0] > 0) == pytest.approx(area, abs=0.12)


def test_width_and_layout_change_the_network_and_the_memory_alone() -> None:
    wide = CellFeatures(space(), "grid", 5, 0, 0.25, 32)
    narrow = CellFeatures(space(), "grid", 5, 0, 0.25, 8)
    assert sum(p.numel() for p in wide.parameters()) > 8 * sum(p.numel() for p in narrow.parameters())
    plain = CellFeatures(space(), "grid", 5, 0, 0.25, 8, channels_last=False)
    plain.load_state_dict(narrow.state_dict())
    images = torch.rand(2, 1, 40, 40)
    torch.testing.assert_close(plain(images), narrow(images))
    first = narrow.network.trunk[0](images)
    assert type(plain.network.trunk) is not type(narrow.network.trunk)
    assert first.shape == plain.network.trunk[0](images).shape


# ---- how a policy begins ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "kind"), ROWS)
def test_values_begin_as_the_features(algorithm: str, kind: str) -> None:
    agent = SB3Agent(marker_env(2, 1, action=kind), algorithm=algorithm, device="cpu")
    images = torch.from_numpy(np.array(marker_images(3, 1).images))
    policy: Any = agent.policy
    with torch.no_grad():
        values = policy.values(images)
        owner = next(
            getattr(policy, name) for name in ("actor", "q_net", "quantile_net", "features_extractor")
            if hasattr(policy, name)
        )  # fmt: skip
        extractor = getattr(owner, "features_extractor", owner)
        features = extractor(images.float() / 255)
    if kind == "box":
        assert values.shape == (3, 4)
        return
    if kind == "pixel":
        maps = torch.nn.functional.interpolate(features.reshape(3, 1, 4, 4), (32, 32), mode="bilinear").flatten(1)
        features = maps.tanh() if algorithm == "sac" else maps
    torch.testing.assert_close(values, features)


def test_the_critic_of_pixels_sees_cells() -> None:
    env = marker_env(2, 1, action="pixel")
    agent = SB3Agent(env, algorithm="sac", device="cpu")
    critic = agent.policy.critic
    images = torch.from_numpy(np.array(marker_images(2, 1).images))
    actions = torch.rand(2, 32 * 32) * 2 - 1
    shuffled = actions.reshape(2, 4, 8, 4, 8).flip(2, 4).reshape(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(critic(images, actions)[0], critic(images, shuffled)[0])
        assert not torch.allclose(critic(images, actions)[0], critic(images, -actions)[0])
    assert sum(p.numel() for p in critic.parameters()) < 200_000


# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_table_and_the_settings_name_the_same() -> None:
    named = {name for row in DEFAULTS.values() for name in row} - {"num_envs"}
    assert named | {"algorithm", "gamma", "width", "grid"} == set(SB3Settings.__dataclass_fields__)
    assert {name for name, _ in DEFAULTS} == set(ALGORITHMS)


@pytest.mark.parametrize(("algorithm", "kind"), ROWS)
def test_every_row_plays_its_kind_and_every_other_kind_is_refused(algorithm: str, kind: str) -> None:
    load_class(algorithm)(
        env=as_vec_env(marker_env(2, 1, action=kind)), **keywords(algorithm, marker_env(2, 1, action=kind))
    )
    for other in {"grid", "patch", "pixel", "box"} - set(kinds_of(algorithm)):
        with pytest.raises(ConfigurationError, match=f"does not play action='{other}', which is for ppo") as error:
            SB3Agent(marker_env(2, 1, action=other), algorithm=algorithm, device="cpu")
        assert repr(kind) in str(error.value)


def test_plain_stable_baselines_takes_the_keywords() -> None:
    env = frozen_env(4)
    model = PPO(env=as_vec_env(env), seed=0, device="cpu", **keywords("ppo", env, n_steps=4, n_epochs=1, width=8))
    model.learn(16)
    assert (model.n_steps, model.batch_size, model.gamma) == (4, 16, 0.0)
    extractor = model.policy.features_extractor
    assert isinstance(extractor, CellFeatures)
    assert extractor.network.head.in_channels == 32


def test_the_discount_follows_the_steps() -> None:
    assert keywords("dqn", frozen_env(2))["gamma"] == 0
    assert keywords("dqn", frozen_env(2, steps=3))["gamma"] == 1
    assert keywords("dqn", frozen_env(2, steps=3), gamma=0.5)["gamma"] == 0.5
    with pytest.raises(ConfigurationError, match=r"gamma=0\.9 does nothing"):
        keywords("dqn", frozen_env(2), gamma=0.9)


@pytest.mark.parametrize(
    ("slots", "n_steps", "batch"), [(16, 32, 128), (3, 32, 96), (1, 7, 7), (5, 3, 15), (1, 131, 131)]
)
def test_the_batch_divides_the_rollout(slots: int, n_steps: int, batch: int) -> None:
    assert resolve("ppo", "patch", slots, 1, {"n_steps": n_steps})["batch_size"] == batch


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"algorithm": "dpo"}, "algorithm='dpo' is unknown"),
        ({"algorithm": "ppo", "buffer_size": 100}, "PPO has no buffer_size; it has batch_size"),
        ({"algorithm": "dqn", "n_steps": 4}, "DQN has no n_steps"),
        ({"algorithm": "ppo", "batch_size": 48}, "batch_size=48 must be at least 2 and divide"),
        ({"algorithm": "ppo", "n_steps": 0}, "n_steps=0"),
        ({"algorithm": "ppo", "n_steps": True}, "n_steps=True"),
        ({"algorithm": "ppo", "learning_rate": float("nan")}, "learning_rate=nan"),
        ({"algorithm": "ppo", "learning_rate": 0}, "learning_rate=0"),
        ({"algorithm": "ppo", "ent_coef": -0.1}, "ent_coef=-0.1"),
        ({"algorithm": "ppo", "width": 12}, "width=12"),
        ({"algorithm": "ppo", "grid": 4}, "grid=4 is for pixels and boxes"),
        ({"algorithm": "dqn", "exploration_final_eps": 1.5}, "exploration_final_eps=1.5"),
        ({"algorithm": "dqn", "buffer_size": 7}, "buffer_size=7"),
        ({"algorithm": "dqn", "mirror": True}, "unknown setting mirror"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigurationError, match=cause):
        SB3Agent(frozen_env(4), device="cpu", **settings)


def test_rollouts_of_one_mask_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 2 masks"):
        SB3Agent(frozen_env(1), algorithm="a2c", n_steps=1, device="cpu")


def test_without_contrib_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", gone)
    with pytest.raises(ConfigurationError, match=r"pip install 'maskaug\[contrib\]'"):
        SB3Agent(frozen_env(2), algorithm="trpo", device="cpu")


def test_rollouts_and_replay_keep_images_as_bytes_and_once() -> None:
    ppo = SB3Agent(frozen_env(4), algorithm="ppo", device="cpu").algorithm
    assert ppo.rollout_buffer.observations.dtype == np.uint8
    assert ppo.rollout_buffer.observations.nbytes == 32 * 4 * 40 * 40
    dqn = SB3Agent(frozen_env(4), algorithm="dqn", buffer_size=100, device="cpu").algorithm
    assert dqn.replay_buffer.observations.dtype == np.uint8
    assert dqn.replay_buffer.observations.nbytes == 100 * 40 * 40
    assert not hasattr(dqn.replay_buffer, "next_observations")


# ---- learning --------------------------------------------------------------------------------------------------------


def hits(agent: SB3Agent) -> float:
    """How often the best patch is exactly the bright square; 1 of 16 at random."""
    held_out = square_images(100, 99)
    chosen = agent.predict(np.array(held_out.images), deterministic=True)[0]
    return float((chosen == corners_of(held_out)).mean())


LENGTHS = {"ppo": 4096, "a2c": 3072, "dqn": 1024, "qrdqn": 1024, "maskableppo": 2048, "recurrentppo": 2048}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("qrdqn", "maskableppo", "recurrentppo")]


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "dqn", *SLOW])
def test_patches_are_learnt(algorithm: str) -> None:
    agent = SB3Agent(frozen_env(defaults_for(algorithm, "patch")["num_envs"]), algorithm=algorithm, device="cpu")
    assert hits(agent) < 0.3
    agent.learn(LENGTHS[algorithm])
    assert hits(agent) > 0.9


def test_as_stable_baselines_has_it_nothing_is_learnt_in_that_time() -> None:
    # What the defaults and the policies are for.
    model = DQN("CnnPolicy", as_vec_env(frozen_env(8)), seed=0, device="cpu", buffer_size=2000)
    model.learn(1024)
    held_out = square_images(100, 99)
    chosen = model.predict(np.array(held_out.images), deterministic=True)[0]
    assert (chosen == corners_of(held_out)).mean() < 0.5


def kept(agent: SB3Agent, images: Any) -> float:
    masks: Any = Masker(agent)(np.array(images.images))
    return float(((masks & images.regions).sum((1, 2)) / images.regions.sum((1, 2))).mean())


def test_grids_are_learnt() -> None:
    env: MaskVectorEnv = marker_env(16, 1)
    agent = SB3Agent(env, algorithm="a2c", device="cpu")
    test = marker_images(100, 99)
    assert kept(agent, test) < 0.5
    agent.learn(8192)
    assert kept(agent, test) > 0.9
    # The area has been learnt too: the policy's own masks, and not only the best cells, are of about the share.
    own: Tensor = torch.from_numpy(agent.predict(np.array(test.images), deterministic=True)[0])
    assert 0.1 < own.float().mean() < 0.4


def test_boxes_are_learnt() -> None:
    env = frozen_env(16, action="box", area=0.16, patch_cells=None, area_price=0.2)
    agent = SB3Agent(env, algorithm="a2c", device="cpu")
    rewards: list[float] = []
    agent.learn(6144, lambda _, metrics: rewards.append(metrics["rollout/reward"]))
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.5
    assert kept(agent, square_images(100, 99)) > 0.45  # 0.16 at random


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_pixels_are_learnt(algorithm: str) -> None:
    env = frozen_env(16, action="pixel", area=0.16, patch_cells=None, area_price=0.2)
    agent = SB3Agent(env, algorithm=algorithm, device="cpu")
    rewards: list[float] = []
    agent.learn(8192, lambda _, metrics: rewards.append(metrics["rollout/reward"]))
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.5


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sac", "ppo"])
def test_boxes_are_learnt_by_others(algorithm: str) -> None:
    env = frozen_env({"sac": 8, "ppo": 16}[algorithm], action="box", area=0.16, patch_cells=None, area_price=0.2)
    agent = SB3Agent(env, algorithm=algorithm, device="cpu").learn(4096)
    assert kept(agent, square_images(100, 99)) > {"sac": 0.85, "ppo": 0.45}[algorithm]
