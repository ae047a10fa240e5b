"""APGA: its numbers against hand computations, and its learning against a game with a known answer."""

import random
from collections.abc import Mapping
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from marker_game import GRID, SIZE, MarkerJudge, joint_env, marker_env, marker_images
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from torch import Tensor, nn

from maskaug.agents import plackett_luce
from maskaug.agents.agent import GridSpec, MaskAgent
from maskaug.agents.apga import APGA, leave_one_out
from maskaug.agents.sb3 import as_vec_env
from maskaug.benchmarks.masks import mask_report
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import to_float

Metrics = Mapping[str, float]


def weights(agent: MaskAgent) -> Tensor:
    return torch.cat([p.detach().flatten() for p in [*agent.policy.parameters(), *agent.averaged.module.parameters()]])


def record(agent: MaskAgent, timesteps: int) -> list[dict[str, float]]:
    seen: list[dict[str, float]] = []
    agent.learn(timesteps, lambda _, metrics: seen.append({k: v for k, v in metrics.items() if k != "time/fps"}))
    return seen


# ---- the estimator ---------------------------------------------------------------------------------------------------


def test_leave_one_out_by_hand() -> None:
    several = leave_one_out(torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]]))
    torch.testing.assert_close(several, torch.tensor([[-3.0, -1.5], [-1.5, -1.5], [4.5, 3.0]]))
    # One try an image: the others are the rest of the batch.
    torch.testing.assert_close(leave_one_out(torch.tensor([[1.0, 2.0, 6.0]])), torch.tensor([[-3.0, -1.5, 4.5]]))


@pytest.mark.parametrize(("repeat", "normalise"), [(3, False), (3, True), (1, True)])
def test_loss_is_the_hand_computed_one(monkeypatch: pytest.MonkeyPatch, repeat: int, normalise: bool) -> None:
    env = marker_env(2, repeat, area=0.125)
    agent = APGA(env, entropy=0.3, normalise=normalise)
    env.reset(seed=0)
    scores = torch.randn(2, GRID, GRID, generator=torch.Generator().manual_seed(5))
    orders = plackett_luce.sample(scores.flatten(1), repeat, torch.Generator().manual_seed(6))
    region = torch.from_numpy(env.dataset.regions[env.game.index])  # type: ignore[index]
    cell = int(region[0].reshape(GRID, SIZE // GRID, GRID, SIZE // GRID).any(3).any(1).flatten().nonzero())
    # One draw of the first image hits its marker, so that the rewards differ.
    orders[0, 0] = torch.tensor([cell, *(i for i in range(GRID * GRID) if i != cell)])
    monkeypatch.setattr(plackett_luce, "sample", lambda *_: orders)
    rewards = []
    step = env.step
    monkeypatch.setattr(env, "step", lambda a: rewards.append((out := step(a))[1]) or out)  # type: ignore[func-returns-value]
    loss, _, metrics = agent._reinforce(env, scores)

    table, s = np.array(rewards, np.float64), scores.flatten(1).double().numpy()
    assert np.ptp(table) > 1
    assert table.shape == (repeat, 2)
    total = table.sum(0) if repeat > 1 else table.sum(1, keepdims=True)
    advantage = table - (total - table) / ((repeat if repeat > 1 else 2) - 1)
    assert metrics["train/advantage_rms"] == pytest.approx(np.sqrt((advantage**2).mean()), rel=1e-5)
    if normalise:
        advantage = advantage / np.sqrt((advantage**2).mean())
    expected = 0.0
    for draw in range(repeat):
        for image in range(2):
            first, second = orders[draw, image, :2].tolist()
            weight = np.exp(s[image])
            p = weight[first] / weight.sum() * weight[second] / (weight.sum() - weight[first])
            expected -= advantage[draw, image] * np.log(p) / 2 / (2 * repeat)
    p = np.exp(s) / np.exp(s).sum(1, keepdims=True)
    expected -= 0.3 * -(p * np.log(p)).sum(1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert metrics["rollout/ep_rew_mean"] == pytest.approx(table.mean(), rel=1e-5)


def test_one_policy_pass_serves_all_tries() -> None:
    agent = APGA(marker_env(4, repeat=4))
    passes = []
    agent.policy.register_forward_hook(lambda *_: passes.append(1))
    agent.learn(3 * 16)
    assert agent.updates == len(passes) == 3
    assert agent.num_timesteps == 48


class BrightCells(nn.Module):
    """Scores that follow the picture wherever it goes: the mean of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.scale * nn.functional.avg_pool2d(images[:, 0], SIZE // GRID)


def test_mirrored_images_have_their_scores_mirrored_back(monkeypatch: pytest.MonkeyPatch) -> None:
    env = marker_env(16, 1)
    agent = APGA(env)
    agent.policy = policy = BrightCells()
    observation, _ = env.reset(seed=0)
    taken = []

    def keep(_: object, scores: Tensor) -> Any:
        taken.append(scores.detach())
        return scores.sum(), observation, {}

    monkeypatch.setattr(agent, "_reinforce", keep)
    agent._update(env, observation)
    images = to_float(torch.from_numpy(observation))
    (seen,) = policy.seen
    flipped = [torch.equal(a, b.flip(-1)) and not torch.equal(a, b) for a, b in zip(seen, images, strict=True)]
    assert 0 < sum(flipped) < 16
    torch.testing.assert_close(taken[0], nn.functional.avg_pool2d(images[:, 0], SIZE // GRID))


def test_all_tries_of_an_update_are_of_one_image_even_after_somebody_played_on() -> None:
    env = marker_env(4, repeat=3)
    agent = APGA(env)
    agent.learn(12)
    env.step(env.action_space.sample())
    seen = []
    step = env.step

    def watched(actions: Any) -> Any:
        seen.append(env.game.index.copy())
        return step(actions)

    env.step = watched  # type: ignore[method-assign]
    agent.learn(24)
    for one, two, three in (seen[:3], seen[3:]):
        assert (one == two).all()
        assert (two == three).all()


# ---- the published loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [1, 0])
def test_published_steps_are_the_hand_computed_ones(label: int) -> None:
    # With label 0 hiding the marker helps the judge: rewards and advantages are negative.
    env = marker_env(6, repeat=1, label=label)
    settings: dict[str, Any] = {"average": 0.0, "mirror": False, "max_grad_norm": 0.0, "learning_rate": 1e-4}
    agent = APGA(env, loss="published", seed=5, **settings)
    twin = APGA(marker_env(6, repeat=1, label=label), loss="published", seed=5, **settings).policy
    optimiser = torch.optim.Adam(twin.parameters(), 1e-4)
    observation, _ = marker_env(6, repeat=1).reset(seed=5)
    judge, baseline = MarkerJudge(), 0.0
    for _ in range(2):
        (metrics,) = record(agent, 1)
        images = to_float(torch.from_numpy(observation))
        p = twin(images).sigmoid()
        action = (p > 0.5).float()
        erased = images * (1 - action.repeat_interleave(8, 1).repeat_interleave(8, 2))[:, None]
        # The loss of label 1 is log(1 + exp(first − second logit)), that of label 0 the other way round.
        sign = 2 * label - 1
        change = [torch.log1p((sign * (judge(x) @ torch.tensor([1.0, -1.0]))).exp()) for x in (erased, images)]
        reward = float((change[0] - change[1]).mean())
        assert metrics["rollout/ep_rew_mean"] == pytest.approx(reward, rel=1e-5)
        assert metrics["rollout/area"] == pytest.approx(float(action.mean()))
        advantage = reward - baseline
        # Used before it is updated, and from 0: half a reward after the first step.
        baseline = 0.5 * baseline + 0.5 * reward
        assert metrics["train/baseline"] == pytest.approx(baseline, rel=1e-5)
        bce = -(action * p.log() + (1 - action) * (1 - p).log()).mean()
        price = 0.1 * -(1 - p).log().mean() + 0.01 * -p.log().mean()
        loss = 100 * bce * advantage + abs(advantage) * price
        assert advantage * sign > 0
        assert metrics["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for mine, its in zip(twin.parameters(), agent.policy.parameters(), strict=True):
            torch.testing.assert_close(its, mine, rtol=1e-4, atol=1e-6)
        assert agent.env is not None
        observation = agent.env.observe()


def test_published_starts_with_something_selected_and_something_not() -> None:
    # From level scores the threshold selects nothing, and the reward is 0 for ever: a dud of a baseline.
    areas = [record(APGA(marker_env(16, 1), loss="published", seed=s), 1)[0]["rollout/area"] for s in range(6)]
    assert all(0 < a < 1 for a in areas)
    agent = APGA(marker_env(16, 1), loss="published")
    before = weights(agent)
    agent.learn(64)
    assert not torch.equal(before, weights(agent))


# ---- environments ----------------------------------------------------------------------------------------------------


def test_one_environment_is_enough_with_several_tries() -> None:
    env = gym.make("MaskAug-Synthetic-v0", n=40, image_size=40, grid=5, repeat=4, device="cpu")
    agent = APGA(env).learn(8)
    assert agent.num_timesteps == 8
    observation, _ = env.reset(seed=0)
    env.step(agent.predict(observation)[0])


def test_one_try_of_one_image_is_refused_before_anything_starts() -> None:
    agent = APGA(marker_env(1, repeat=1))
    with pytest.raises(ConfigurationError, match="repeat=4"):
        agent.learn(10)
    assert agent.num_timesteps == 0
    with pytest.raises(ConfigurationError, match="repeat=1"):
        APGA(marker_env(2, repeat=2), loss="published").learn(10)


def test_patches_and_foreign_environments_are_refused_with_the_cure() -> None:
    with pytest.raises(ConfigurationError, match="action='grid'"):
        APGA(marker_env(action="patch"))
    with pytest.raises(ConfigurationError, match="make_vec"):
        APGA(gym.make("CartPole-v1"))
    with pytest.raises(ConfigurationError, match="make_vec"):
        APGA(gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")]))  # type: ignore[arg-type]


def test_learning_without_an_environment_or_for_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="env="):
        APGA(GridSpec((1, SIZE, SIZE), GRID, 4)).learn(10)
    with pytest.raises(ConfigurationError, match="total_timesteps"):
        APGA(marker_env()).learn(0)


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> APGA:
    return APGA(marker_env(), seed=0).learn(20_000)


def test_it_learns_the_known_answer(trained: APGA) -> None:
    held_out = marker_images(200, seed=99)
    report = mask_report(trained.scores(np.asarray(held_out.images)), held_out, marker_images(64, 0), trained.spec)
    assert report.area == 0.25
    assert report.retention["agent"] >= 0.95
    # The masks are each image's own, not a favourite place.
    assert report.retention["swapped"] < 0.4
    assert report.retention["random"] == pytest.approx(0.25, abs=0.05)
    assert report.retention["centre"] < 0.5


def test_training_reward_rises(trained: APGA) -> None:
    def reward(agent: APGA) -> float:
        mean, _ = evaluate_policy(cast(PolicyPredictor, agent), as_vec_env(marker_env(seed=9)), 64, warn=False)
        return float(cast(float, mean))

    # Hiding the marker turns the loss log(1 + e^-3) into log(1 + e^3): 3 nats.
    assert reward(trained) > 2.8
    assert reward(APGA(marker_env())) < 1.5


def test_published_is_playable_and_reports_its_area() -> None:
    agent = APGA(marker_env(16, 1), loss="published").learn(320)
    observation = np.asarray(marker_images(5, 1).images)
    drawn, _ = agent.predict(observation)
    assert np.array_equal(drawn, (agent.scores(observation) > 0).reshape(5, -1))
    best, _ = agent.predict(observation, deterministic=True)
    assert (best.sum(1) == agent.spec.cells).all()


def test_a_seed_means_its_training() -> None:
    def run(seed: int, **keywords: Any) -> tuple[Tensor, Tensor, list[dict[str, float]]]:
        env = joint_env(**keywords)
        agent = APGA(env, seed=seed)
        metrics = record(agent, 64)
        judge = torch.cat([p.detach().flatten() for p in env.game.reward_model.model.parameters()])
        return weights(agent), judge, [{k: v for k, v in m.items() if v == v} for m in metrics]

    first, again, other = run(0, fill="noise"), run(0, fill="noise"), run(1, fill="noise")
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[2] == again[2]
    assert not torch.equal(first[0], other[0])
    assert first[2] != other[2]


def test_the_global_generators_are_left_alone() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    agent = APGA(joint_env(fill="noise")).learn(32)
    assert agent.env is not None
    agent.predict(agent.env.dataset.images[:2])
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # type: ignore[index]
    assert states[2] == random.getstate()


def test_the_joint_game_teaches_the_judge_and_logs_its_loss() -> None:
    env = joint_env()
    before = [p.detach().clone() for p in env.game.reward_model.model.parameters()]
    metrics = record(APGA(env), 64)
    assert any(not torch.equal(a, b) for a, b in zip(before, env.game.reward_model.model.parameters(), strict=True))
    assert np.isfinite(metrics[-1]["train/judge_loss"])
    frozen = marker_env()
    assert "train/judge_loss" not in record(APGA(frozen), 64)[0]


def test_a_callback_that_returns_false_stops_and_none_goes_on() -> None:
    calls = []
    agent = APGA(marker_env(4, 4))

    def stop_at_second(current: MaskAgent, metrics: Metrics) -> bool | None:
        assert current is agent
        assert {"rollout/ep_rew_mean", "time/fps", "train/loss"} <= set(metrics)
        calls.append(current.num_timesteps)
        return False if len(calls) == 2 else None

    assert agent.learn(1000, stop_at_second) is agent
    assert calls == [16, 32]
    agent.learn(16)
    assert agent.num_timesteps == 48


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bar_is_shown_only_when_asked_for(capsys: pytest.CaptureFixture[str], shown: bool) -> None:
    APGA(marker_env(4, 4)).learn(32, progress_bar=shown)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("mask" in captured.err) == shown


# ---- using -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_gives_exactly_k_cells_of_the_right_shape(trained: APGA, deterministic: bool) -> None:
    images = np.asarray(marker_images(6, 4).images)
    batch, state = trained.predict(images, deterministic=deterministic)
    assert state is None
    assert batch.shape == (6, GRID * GRID)
    assert batch.dtype == np.int8
    assert (batch.sum(1) == 4).all()
    single, _ = trained.predict(images[0], deterministic=deterministic)
    assert single.shape == (GRID * GRID,)
    if deterministic:
        assert np.array_equal(single, batch[0])
    else:
        assert not np.array_equal(batch, trained.predict(images)[0])
    space = marker_env(6).action_space
    assert space.contains(batch)


def test_scores_have_their_shape_and_do_not_depend_on_the_batch(trained: APGA) -> None:
    images = np.asarray(marker_images(6, 4).images)
    scores = trained.scores(images)
    assert scores.shape == (6, GRID, GRID)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(trained.scores(images[2])[0], scores[2], rtol=1e-4, atol=1e-5)
    assert np.array_equal(trained.scores(torch.from_numpy(images)), scores)
    # Mirroring averages two views: the mirror image has the mirrored scores.
    np.testing.assert_allclose(trained.scores(images[..., ::-1].copy())[..., ::-1], scores, rtol=1e-3, atol=1e-4)


def test_scores_take_read_only_images(trained: APGA) -> None:
    images = np.asarray(marker_images(2, 4).images)
    images.flags.writeable = False
    assert trained.scores(images).shape == (2, GRID, GRID)


def test_images_of_another_kind_are_refused(trained: APGA) -> None:
    images = np.asarray(marker_images(2, 4).images)
    wrongs: list[Any] = [
        images / 255,
        images[:, :, :-1],
        images[:, 0],
        np.repeat(images, 3, 1),
        images.astype(np.int64),
    ]
    for wrong in wrongs:
        with pytest.raises(ConfigurationError, match="uint8"):
            trained.scores(wrong)


def test_sb3_evaluates_it_on_a_vector_and_on_a_single_environment(trained: APGA) -> None:
    agent = cast(PolicyPredictor, trained)
    returns, lengths = evaluate_policy(
        agent, as_vec_env(marker_env(4)), 12, deterministic=False, return_episode_rewards=True, warn=False
    )
    assert isinstance(lengths, list)
    assert isinstance(returns, list)
    assert len(returns) == 12
    assert set(lengths) == {1}
    single = gym.make(
        "MaskAug-Synthetic-v0", dataset=marker_images(20, 3), grid=GRID, joint=False, reward_model=MarkerJudge()
    )
    mean, _ = evaluate_policy(agent, single, 10, warn=False)
    assert cast(float, mean) > 2.5
