"""Intelligent Masking's choices and settings: exploration, ties, schedules, presets; each setting does something."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from patch_game import frozen_env, joint_env
from torch import Tensor

from maskaug.agents.agent import GridSpec, MaskAgent
from maskaug.agents.intelligent_masking import PUBLISHED, IntelligentMasking, IntelligentMaskingSettings
from maskaug.agents.networks import ImaginingQMap, PaperQMap, QMap
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import top_cells


def bare(patch_cells: int = 2, grid: int = 5, cells: int = 0, seed: int = 0, **settings: Any) -> IntelligentMasking:
    """An agent that only predicts; its Q-maps are given by hand."""
    spec = GridSpec((1, 8 * grid, 8 * grid), grid, cells or patch_cells**2, patch_cells)
    return IntelligentMasking(spec, seed=seed, **{"network": "plain", "loss": "huber", "width": 8, **settings})


def at(agent: IntelligentMasking, progress: float) -> IntelligentMasking:
    agent.horizon, agent.num_timesteps = 1000, round(1000 * progress)
    return agent


def random_q(agent: IntelligentMasking, n: int = 1, seed: int = 0) -> Tensor:
    shape = (1, agent._roles, agent.spec.grid, agent.spec.grid)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).expand(n, -1, -1, -1)


# ---- exploration -----------------------------------------------------------------------------------------------------


def test_epsilon_falls_linearly_over_six_tenths() -> None:
    agent = bare(epsilon_start=0.9, epsilon_end=0.3)
    shares = [at(agent, p)._epsilon() for p in (0, 0.2, 0.3, 0.6, 0.8, 1)]
    assert shares == pytest.approx([0.9, 0.7, 0.6, 0.3, 0.3, 0.3])


def test_epsilon_is_the_share_of_random_patches() -> None:
    agent, n = at(bare(), 0.3), 8000
    q = random_q(agent, n)
    best = int(agent._best(q)[0])
    counts = np.bincount(agent._choose(q), minlength=16) / n
    expected = np.full(16, 0.55 / 16)
    expected[best] += 0.45
    # A standard deviation is at most .0056; five of them.
    np.testing.assert_allclose(counts, expected, atol=0.028)


def test_published_is_random_for_a_fifth_and_greedy_afterwards() -> None:
    agent, n = bare(target="patch", loss="squared", mirror=False, exploration="published"), 8000
    q = random_q(agent, n)
    best = agent._best(q)
    for progress in (0, 0.1, 0.199):
        counts = np.bincount(at(agent, progress)._choose(q), minlength=16)
        assert len(counts) == 16
        # 500 each, a standard deviation of 22; five of them.
        np.testing.assert_allclose(counts, n / 16, atol=110)
    for progress in (0.2, 0.5, 1):
        assert torch.equal(at(agent, progress)._choose(q), best)


@pytest.mark.parametrize("patch_cells", [2, 3])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_softmax_draws_patches_with_the_softmaxs_frequencies(patch_cells: int, temperature: float) -> None:
    agent, n = bare(patch_cells, exploration="softmax", temperature=temperature), 20_000
    q = random_q(agent, n)
    expected = (agent._values(q[:1])[0] / temperature).softmax(0).numpy()
    counts = np.bincount(agent._choose(q), minlength=len(expected)) / n
    assert expected.max() > 1.3 * expected.min()
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected / n)).all()


@pytest.mark.parametrize(
    ("settings", "random"),
    [({"epsilon_end": 0.0}, 0.0), ({"epsilon_end": 0.5}, 0.5), ({"exploration": "softmax", "temperature": 1e-3}, 0)],
)
def test_of_a_set_of_cells_q_chooses_a_share_that_rises(settings: dict[str, Any], random: float) -> None:
    agent, n, k = bare(0, 5, 12, share=0.75, **settings), 600, 12
    q = random_q(agent, n)
    order = q[0].flatten().argsort(descending=True)
    for progress in (0.0, 0.3, 0.6, 0.8, 1.0):
        hidden = at(agent, progress)._choose(q)
        assert (hidden.flatten(1).sum(1) == k).all()
        explore = 1 - min(1, progress / 0.6) * (1 - random) if not settings.get("exploration") else 0
        chosen = round(0.75 * progress * (1 - explore) * k)
        often = hidden.flatten(1).double().mean(0)[order]
        assert (often[:chosen] == 1).all()
        # The rest is random: (k − chosen) of (25 − chosen) cells; five standard deviations.
        np.testing.assert_allclose(often[chosen:], (k - chosen) / (25 - chosen), atol=0.1)
    assert chosen == round(0.75 * (1 - random) * k) > 0


def test_before_and_after_the_run_it_acts_as_at_the_end() -> None:
    agent = bare()
    assert agent.progress == 1
    assert agent._epsilon() == pytest.approx(0.1)
    assert at(agent, 3).progress == 1


# ---- ties ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 1.0, 1e4, -1e-9])
def test_ties_are_broken_at_random_but_always_alike(level: float) -> None:
    first = []
    for seed in range(12):
        agent = bare(seed=seed)
        best = agent._best(torch.full((3, 4, 5, 5), level))
        assert len(set(best.tolist())) == 1
        assert torch.equal(best, agent._best(torch.full((3, 4, 5, 5), level)))
        first.append(int(best[0]))
        cells = bare(0, 5, 6, seed=seed)._best(torch.full((2, 1, 5, 5), level))
        assert (cells.flatten(1).sum(1) == 6).all()
        assert torch.equal(cells[0], cells[1])
    assert len(set(first)) >= 6


def test_ties_give_way_to_the_smallest_difference() -> None:
    for seed, place in ((s, p) for s in range(4) for p in range(25)):
        q = torch.ones(1, 1, 5, 5)
        q.view(-1)[place] = float(np.nextafter(np.float32(1), np.float32(2)))
        assert int(bare(0, 5, 1, seed=seed)._best(q).flatten().int().argmax()) == place


def test_deterministic_predictions_are_deterministic_and_draws_are_not() -> None:
    images = np.zeros((40, 1, 40, 40), np.uint8)
    agent = bare(exploration="softmax")
    best, drawn = agent.predict(images, deterministic=True)[0], agent.predict(images)[0]
    assert np.array_equal(best, agent.predict(images, deterministic=True)[0])
    assert not np.array_equal(drawn, agent.predict(images)[0])
    twin = bare(exploration="softmax")
    twin.predict(images, deterministic=True)
    assert np.array_equal(drawn, twin.predict(images)[0])


@pytest.mark.parametrize(("make", "capacity", "updates"), [(joint_env, 16, 1), (frozen_env, 65_536, 6)])
def test_how_much_is_remembered_follows_from_the_game(
    monkeypatch: pytest.MonkeyPatch, make: Any, capacity: int, updates: int
) -> None:
    agent = IntelligentMasking(make(2), width=8, replay_batch=5)
    assert agent._replay.capacity == capacity
    sizes: list[int] = []
    learn = agent._learn
    monkeypatch.setattr(agent, "_learn", lambda q, errors: sizes.append(len(q)) or learn(q, errors))  # type: ignore[func-returns-value]
    agent.learn(4)
    assert sizes == [2, *[5] * updates] * 2
    assert len(agent._replay) == 4


# ---- schedules -------------------------------------------------------------------------------------------------------


def rates(env: Any, updates: int, **settings: Any) -> tuple[list[float], list[float]]:
    agent, own, judges = IntelligentMasking(env, width=8, replay_batch=4, **settings), [], []

    def watch(_: MaskAgent, __: Any) -> None:
        own.append(agent.optimiser.param_groups[0]["lr"])
        optimiser = env.game.reward_model.optimiser
        judges.append(optimiser.param_groups[0]["lr"] if optimiser is not None else 0.0)

    agent.learn(updates * env.num_envs, watch)
    return own, judges


def test_published_rates_fall_after_each_third_for_both_networks() -> None:
    own, judges = rates(joint_env(2, judge_lr=2e-3), 9, schedule="published", learning_rate=1e-2)
    factors = [1.0] * 3 + [0.33] * 3 + [0.33**2] * 3
    assert own == pytest.approx([1e-2 * f for f in factors])
    assert judges == pytest.approx([2e-3 * f for f in factors])
    assert rates(frozen_env(2), 3, schedule="published")[0] == pytest.approx([3e-3 * f for f in (1, 0.33, 0.33**2)])


def test_linear_rates_fall_over_the_second_half_and_constant_ones_do_not() -> None:
    own, judges = rates(joint_env(2), 8, schedule="linear")
    assert own == pytest.approx([3e-3 * f for f in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)])
    assert judges == pytest.approx([1e-3] * 8)
    assert rates(joint_env(2), 4, schedule="constant")[0] == pytest.approx([3e-3] * 4)


def test_the_first_learn_sets_the_horizon_and_later_ones_keep_it() -> None:
    agent = IntelligentMasking(frozen_env(2), width=8, replay=0, schedule="constant")
    agent.learn(40, lambda *_: False)
    assert agent.horizon == 40
    assert agent.progress == 0.05
    agent.learn(38)
    assert agent.horizon == 40
    assert agent.progress == 1
    agent.learn(4)
    assert agent.horizon == 40


def test_a_run_whose_learning_rate_has_fallen_to_nothing_is_not_gone_on_with() -> None:
    agent = IntelligentMasking(frozen_env(2), width=8, replay=0)
    agent.learn(8, lambda *_: False)
    # Half of these would be learnt at a rate of 0.
    for too_many in (7, 14):
        with pytest.raises(ConfigurationError, match=r"set agent\.horizon"):
            agent.learn(too_many)
        assert (agent.num_timesteps, agent.horizon) == (2, 8)
    agent.learn(6)
    with pytest.raises(ConfigurationError, match="start a longer one anew"):
        agent.learn(1)
    pieces = IntelligentMasking(frozen_env(2), width=8, replay=0)
    pieces.horizon = 16
    whole = IntelligentMasking(frozen_env(2), width=8, replay=0).learn(16)
    pieces.learn(8).learn(8)
    for a, b in zip(pieces.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_scores_of_others_are_explored_as_its_own_would_be() -> None:
    agent = bare(0, 5, 12, network="imagining", loss="log")
    scores = torch.randn(200, 5, 5, generator=torch.Generator().manual_seed(0)) * 1000
    best = top_cells(scores, 12)
    kept = [float((agent.explore(scores, p) & best).flatten(1).sum(1).float().mean()) for p in (0, 0.5, 1)]
    # Of 12 cells, 0, 1 and 5 by their scores; the others at random, of which some are among the best too.
    assert kept == sorted(kept)
    assert kept[0] == pytest.approx(12 * 12 / 25, abs=0.4)
    assert kept[2] == pytest.approx(5 + 7 * 7 / 20, abs=0.4)
    agent.horizon = 77
    agent.explore(scores, 0.5)
    assert (agent.num_timesteps, agent.horizon) == (0, 77)
    with pytest.raises(ConfigurationError, match="exploration='epsilon'"):
        bare(0, 5, 12, exploration="softmax").explore(scores, 0.5)
    with pytest.raises(ConfigurationError, match="sets of cells"):
        bare(2).explore(scores, 0.5)


# ---- presets ---------------------------------------------------------------------------------------------------------


def test_published_has_the_papers_settings_and_keeps_what_is_given() -> None:
    agent = IntelligentMasking(GridSpec((1, 288, 288), 9, 4, 2), mode="published")
    expected = {
        "network": "paper", "learning_rate": 1e-3, "schedule": "published", "max_grad_norm": 0.0,
        "exploration": "published", "target": "patch", "loss": "squared", "low_pass": False, "replay": 0,
        "average": 0.0, "mirror": False,
    }  # fmt: skip
    assert {name: getattr(agent.settings, name) for name in expected} == expected
    # An entry that repeats the default would be no preset.
    assert expected == PUBLISHED
    given: dict[str, Any] = {"network": "plain", "learning_rate": 5e-3, "replay": 9, "average": 0.5, "width": 8}
    agent = IntelligentMasking(GridSpec((1, 40, 40), 5, 4, 2), mode="published", **given)
    for name, value in {**expected, **given}.items():
        assert getattr(agent.settings, name) == value


def test_the_papers_network_has_cells_of_32_pixels() -> None:
    agent = IntelligentMasking(GridSpec((1, 288, 288), 9, 4, 2), mode="published")
    assert isinstance(agent.policy, PaperQMap)
    assert sum(p.numel() for p in agent.policy.parameters()) == pytest.approx(0.66e6, rel=0.02)
    small = IntelligentMasking(GridSpec((3, 96, 96), 3, 4, 2), network="paper", loss="huber")
    assert small.scores(np.zeros((2, 3, 96, 96), np.uint8)).shape == (2, 3, 3)
    for shape, grid in (((1, 288, 288), 8), ((1, 64, 64), 8), ((1, 300, 300), 9), ((1, 288, 320), 9)):
        with pytest.raises(ConfigurationError, match=rf"images of {32 * grid}.*network='plain'"):
            IntelligentMasking(GridSpec(shape, grid, 4, 2), mode="published")


@pytest.mark.parametrize(("network", "size", "grid"), [(ImaginingQMap, 40, 5), (QMap, 36, 6), (QMap, 128, 8)])
def test_networks_have_a_map_for_each_role_and_are_fresh_by_seed(network: Any, size: int, grid: int) -> None:
    spec = GridSpec((2, size, size), grid, 9, 3)
    name, loss = ("imagining", "log") if network is ImaginingQMap else ("plain", "huber")
    agents = [IntelligentMasking(spec, seed=s, network=name, loss=loss, width=8) for s in (0, 0, 1)]
    assert isinstance(agents[0].policy, network)
    x = torch.rand(2, 2, size, size, generator=torch.Generator().manual_seed(0))
    first, again, other = (a.policy(x) for a in agents)
    assert first.shape == (2, 9, grid, grid)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ---- every setting ---------------------------------------------------------------------------------------------------

#: setting → (another value, what has to stand beside it).
OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "mode": ("published", {"network": "plain", "loss": "huber"}),
    "network": ("plain", {}),
    "width": (16, {}),
    "learning_rate": (1e-3, {}),
    "schedule": ("constant", {}),
    "max_grad_norm": (0.01, {}),
    "exploration": ("softmax", {}),
    "temperature": (50.0, {"exploration": "softmax"}),
    "epsilon_start": (0.0, {}),
    "epsilon_end": (1.0, {}),
    "share": (1.0, {}),
    "target": ("patch", {"mirror": False}),
    "loss": ("ranking", {}),
    "low_pass": (True, {}),
    "replay": (0, {}),
    "replay_updates": (2, {}),
    "replay_batch": (9, {}),
    "average": (0.2, {}),
    "mirror": (False, {}),
}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(IntelligentMaskingSettings)])
def test_every_setting_does_something(field: str) -> None:
    value, beside = OTHER[field]

    def scores(**settings: Any) -> Any:
        env = joint_env(action="grid" if field == "share" else "patch")
        batch = {} if settings.get("replay") == 0 or "mode" in settings else {"replay_batch": 8}
        agent = IntelligentMasking(env, seed=1, **{**batch, **settings}).learn(24)
        return agent.scores(env.dataset.images[:3])

    base = {"width": 8, **beside}
    first = scores(**base)
    if field == "mode":
        assert np.array_equal(first, scores(**base))
    assert not np.array_equal(first, scores(**{**base, field: value}))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"mode": "paper"}, "published"),
        ({"network": "unet"}, "imagining"),
        ({"exploration": "greedy"}, "epsilon"),
        ({"target": "pixels"}, "cells"),
        ({"loss": "mse"}, "huber"),
        ({"schedule": "cosine"}, "linear"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"learning_rate": "fast"}, "a number"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"max_grad_norm": float("inf")}, "0 does not clip"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm"),
        ({"exploration": "softmax", "temperature": 0.0}, "temperature"),
        ({"exploration": "softmax", "temperature": float("nan")}, "temperature"),
        ({"epsilon_start": 1.5}, "epsilon_start"),
        ({"epsilon_end": -0.1}, "epsilon_end"),
        ({"epsilon_end": float("nan")}, "epsilon_end"),
        ({"share": 2.0}, "share"),
        ({"average": 1.0}, "average"),
        ({"width": 12}, "multiple of 8"),
        ({"width": 16.0}, "integer"),
        ({"mirror": 1}, "True or False"),
        ({"replay": -2}, "replay"),
        ({"replay_updates": 0}, "replay_updates"),
        ({"replay_batch": 0}, "replay_batch"),
        ({"loss": "huber"}, "network='plain'"),
        ({"network": "imagining", "loss": "squared"}, "logarithms"),
        ({"target": "patch"}, "mirror=False"),
        ({"target": "patch", "mirror": False, "low_pass": True}, "low_pass=False"),
        ({"target": "patch", "mirror": False, "loss": "ranking"}, "'squared'"),
        ({"temperature": 2.0}, "does nothing with exploration='epsilon'"),
        ({"exploration": "softmax", "epsilon_end": 0.3}, "does nothing"),
        ({"exploration": "published", "epsilon_start": 0.3}, "does nothing"),
        ({"replay": 0, "replay_updates": 3}, "does nothing with replay=0"),
        ({"replay": 0, "replay_batch": 3}, "does nothing with replay=0"),
        ({"network": "paper", "loss": "huber", "width": 8}, "does nothing with network='paper'"),
        ({"share": 0.2}, "does nothing with action='patch'"),
        ({"mode": "published", "mirror": True}, "target='patch'"),
        ({"learning_rte": 0.1}, "learning_rate"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        IntelligentMasking(GridSpec((1, 40, 40), 5, 4, 2), **settings)


def test_published_needs_patches() -> None:
    with pytest.raises(ConfigurationError, match="action='patch'"):
        IntelligentMasking(joint_env(action="grid"), mode="published", network="plain")
