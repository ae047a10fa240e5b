"""Intelligent Masking: its numbers against hand computations, and its learning against a game with a known answer."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_helpers import same
from patch_game import CELL, GRID, SIZE, Copy, corners_of, frozen_env, joint_env, square_images
from torch import Tensor, nn
from torch.nn import functional

from maskaug.agents.agent import GridSpec, MaskAgent
from maskaug.agents.intelligent_masking import FLOOR, IntelligentMasking
from maskaug.agents.losses import low_passed, ranking_loss
from maskaug.agents.masker import load_agent
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError

NAN = float("nan")
HELD_OUT = square_images(80, seed=99)


def bare(patch_cells: int, grid: int = 3, cells: int = 0, **settings: Any) -> IntelligentMasking:
    """An agent that only predicts; its Q-maps are given by hand."""
    spec = GridSpec((1, 8 * grid, 8 * grid), grid, cells or patch_cells**2, patch_cells)
    return IntelligentMasking(spec, **{"network": "plain", "loss": "huber", "width": 8, **settings})


def record(agent: MaskAgent, timesteps: int, updates: int = 10**9) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []

    def keep(_: object, metrics: Any) -> bool:
        rows.append({k: v for k, v in metrics.items() if k != "time/fps"})
        return len(rows) < updates

    agent.learn(timesteps, keep)
    return rows


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "settings"),
    [(480, {}), (560, {"exploration": "softmax", "loss": "huber", "network": "plain"}),
     (1920, {"mode": "published", "network": "plain"})],
    ids=["default", "softmax", "published"],
)  # fmt: skip
def test_it_finds_the_best_patch_of_images_it_has_not_seen(steps: int, settings: dict[str, Any]) -> None:
    env = frozen_env()
    agent = IntelligentMasking(env, seed=0, width=8, replay_batch=32 if steps < 1000 else 64, **settings)
    rows = record(agent, steps)
    best = env.evaluation(dataset=HELD_OUT).game.action_rewards(np.arange(80)).argmax(1)
    assert np.array_equal(best, corners_of(HELD_OUT))
    chosen, _ = agent.predict(np.asarray(HELD_OUT.images), deterministic=True)
    # At random it would be one in sixteen.
    assert (chosen == best).mean() >= 0.9
    if not settings:
        rewards = [row["rollout/ep_rew_mean"] for row in rows]
        assert np.mean(rewards[-5:]) > 2 * np.mean(rewards[:3])
        assert [row["rollout/random"] for row in (rows[0], rows[-1])] == pytest.approx([1, 0.1])
        # NaN where all the errors of a batch are equal, as those of the square are.
        assert np.nanmean([row["train/correlation"] for row in rows[-12:]]) > 0.8


@pytest.mark.parametrize("loss", ["log", "ranking"])
def test_it_finds_the_hardest_cells(loss: str) -> None:
    agent = IntelligentMasking(frozen_env(action="grid", area=0.32), seed=0, width=8, loss=loss, replay_batch=32).learn(
        320
    )
    chosen, _ = agent.predict(np.asarray(HELD_OUT.images), deterministic=True)
    assert HELD_OUT.regions is not None
    region = np.asarray(HELD_OUT.regions).reshape(80, GRID, CELL, GRID, CELL).any((2, 4))
    # Four cells of 25, in masks of eight.
    assert (chosen.astype(bool) & region.reshape(80, -1)).sum() / region.sum() >= 0.95
    scores = agent.scores(np.asarray(HELD_OUT.images))
    assert scores[region].min() > np.median(scores[~region])


# ---- the loss --------------------------------------------------------------------------------------------------------

#: errors of two patches of 2×2 cells on a 3×3 grid: one in the middle of the top, one in the last corner.
ERRORS = torch.tensor([[[NAN, 0.5, 1.0], [NAN, 2.0, 0.0], [NAN] * 3], [[NAN] * 3, [NAN, 4.0, 0.1], [NAN, 0.3, 9.0]]])
#: (image, role, row, column, error): the roles are top left, top right, bottom left, bottom right.
SEEN = [(0, 0, 0, 1, 0.5), (0, 1, 0, 2, 1.0), (0, 2, 1, 1, 2.0), (0, 3, 1, 2, 0.0),
        (1, 0, 1, 1, 4.0), (1, 1, 1, 2, 0.1), (1, 2, 2, 1, 0.3), (1, 3, 2, 2, 9.0)]  # fmt: skip


def q_maps(n: int, roles: int, grid: int) -> Tensor:
    return torch.randn(n, roles, grid, grid, generator=torch.Generator().manual_seed(2)).requires_grad_()


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def by_hand(q: Tensor, seen: list[tuple[int, int, int, int, float]], loss: str) -> float:
    """The loss of numbers at (image, role, row, column), from Python's own arithmetic."""
    q = q.detach()
    pairs = [(i, float(q[i, role, row, col]), error) for i, role, row, col, error in seen]
    if loss == "ranking":
        total = weights = 0.0
        for i, a, error_a in pairs:
            for j, b, error_b in pairs:
                if i == j and error_a > error_b:
                    total += (error_a - error_b) * np.log1p(np.exp(b - a))
                    weights += error_a - error_b
        return float(total / weights)
    if loss == "log":
        return float(np.mean([(a - np.log(error + FLOOR)) ** 2 for _, a, error in pairs]))
    return float(np.mean([huber(a - error) if loss == "huber" else (a - error) ** 2 for _, a, error in pairs]))


@pytest.mark.parametrize("loss", ["log", "huber", "squared", "ranking"])
def test_loss_of_a_patchs_cells_by_hand(loss: str) -> None:
    agent, q = bare(2, loss=loss), q_maps(2, 4, 3)
    value, correlation = agent._learn(q, ERRORS)
    assert value == pytest.approx(by_hand(q, SEEN, loss), rel=1e-5)
    # Each cell teaches the map of its role and no other one; in particular nothing wraps around the border.
    assert q.grad is not None
    assert set(map(tuple, q.grad.nonzero().tolist())) == {place[:4] for place in SEEN}
    target = np.array([e for *_, e in SEEN])
    said = np.array([float(q.detach()[place[:4]]) for place in SEEN])
    expected = np.corrcoef(said, np.log(target + FLOOR) if loss == "log" else target)[0, 1]
    assert correlation == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("loss", ["log", "huber", "squared"])
def test_loss_of_a_whole_patch_by_hand(loss: str) -> None:
    agent, q = bare(2, loss=loss, target="patch", mirror=False), q_maps(2, 1, 3)
    value, _ = agent._learn(q, ERRORS)
    seen = [(0, 0, 0, 1, 3.5 / 4), (1, 0, 1, 1, 13.4 / 4)]
    assert value == pytest.approx(by_hand(q, seen, loss), rel=1e-5)
    assert q.grad is not None
    assert set(map(tuple, q.grad.nonzero().tolist())) == {place[:4] for place in seen}


@pytest.mark.parametrize("loss", ["log", "huber", "squared", "ranking"])
def test_loss_of_a_set_of_cells_by_hand(loss: str) -> None:
    agent, q = bare(0, cells=4, loss=loss), q_maps(2, 1, 3)
    value, _ = agent._learn(q, ERRORS)
    assert value == pytest.approx(by_hand(q, [(i, 0, row, col, e) for i, _, row, col, e in SEEN], loss), rel=1e-5)


def test_low_passed_by_hand() -> None:
    values, seen = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 4, 4).bool()
    seen[0, 1:3, 2] = False
    seen[1] = torch.eye(4).bool()
    expected = np.zeros((2, 4, 4))
    for i, row, col in np.argwhere(seen.numpy()):
        near = [
            ((2 - abs(a)) * (2 - abs(b)), float(values[i, row + a, col + b]))
            for a in (-1, 0, 1)
            for b in (-1, 0, 1)
            if 0 <= row + a < 4 and 0 <= col + b < 4 and seen[i, row + a, col + b]
        ]
        expected[i, row, col] = sum(w * v for w, v in near) / sum(w for w, _ in near)
    np.testing.assert_allclose(low_passed(values, seen).numpy(), expected, rtol=1e-6)


def test_low_pass_smooths_the_target() -> None:
    agent, q = bare(0, cells=4, loss="squared", low_pass=True), q_maps(2, 1, 3)
    value, _ = agent._learn(q, ERRORS)
    smooth = low_passed(ERRORS.nan_to_num(), ERRORS.isfinite())
    seen = [(i, 0, row, col, float(smooth[i, row, col])) for i, _, row, col, _ in SEEN]
    assert value == pytest.approx(by_hand(q, seen, "squared"), rel=1e-5)


def test_ranking_loss_knows_only_order_within_an_image() -> None:
    target, seen = torch.tensor([[[1.0, 2.0], [3.0, NAN]]]).nan_to_num(), torch.tensor([[[True, True], [True, False]]])
    right, wrong = torch.tensor([[[-50.0, 0.0], [50.0, 99.0]]]), torch.tensor([[[50.0, 0.0], [-50.0, 99.0]]])
    assert ranking_loss(right, target, seen) == pytest.approx(0, abs=1e-6)
    # Distances of 50, 50 and 100, weighing 1, 1 and 2.
    assert ranking_loss(wrong, target, seen) == pytest.approx(75)
    # Nothing to compare is no error.
    assert ranking_loss(right, torch.ones_like(target), seen) == 0


def test_errors_are_learnt_in_units_of_their_running_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    env = frozen_env(4)
    agent = IntelligentMasking(env, width=8, replay=0)
    played, learnt = [], []
    step, learn = env.step, agent._learn
    monkeypatch.setattr(env, "step", lambda a: played.append((out := step(a))[4]["final_info"]) or out)  # type: ignore[func-returns-value]
    monkeypatch.setattr(agent, "_learn", lambda q, errors: learnt.append(errors) or learn(q, errors))  # type: ignore[func-returns-value]
    agent.learn(12)
    scale = float(played[0]["gain"].mean())
    for info, errors in zip(played, learnt, strict=True):
        scale = 0.98 * scale + 0.02 * float(info["gain"].mean())
        np.testing.assert_allclose(errors.numpy(), info["cell_error"] / scale, rtol=1e-5)
        np.testing.assert_allclose(np.nanmean(info["cell_error"], (1, 2)), info["gain"], rtol=1e-5)


def test_an_agent_that_diverges_says_so() -> None:
    with pytest.raises(ConfigurationError, match="lower learning_rate"):
        IntelligentMasking(frozen_env(4), width=8, learning_rate=1e30, network="plain", loss="squared").learn(80)


# ---- roles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patch_cells", "grid"), [(2, 3), (3, 5), (1, 4)])
@pytest.mark.parametrize("loss", ["huber", "log"])
def test_a_patch_is_worth_the_mean_of_its_cells_in_their_roles(patch_cells: int, grid: int, loss: str) -> None:
    agent = bare(patch_cells, grid, loss=loss)
    q = torch.arange(2.0 * patch_cells**2 * grid**2).view(2, patch_cells**2, grid, grid)[torch.tensor([1, 0])] / 40
    values, side = agent._values(q), grid - patch_cells + 1
    assert values.shape == (2, side**2)
    along = range(patch_cells)
    for i, top, left in np.ndindex(2, side, side):
        cells = [float(q[i, a * patch_cells + b, top + a, left + b]) for a in along for b in along]
        expected = np.mean([np.exp(min(v, 8)) - FLOOR for v in cells] if loss == "log" else cells)
        assert float(values[i, top * side + left]) == pytest.approx(expected, rel=1e-5)


def test_a_cell_scores_the_mean_of_the_patches_that_hold_it() -> None:
    agent = bare(2, 4)
    q = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    values, scores = agent._values(q).view(3, 3), agent._cell_scores(q)[0]
    for row, col in np.ndindex(4, 4):
        holding = values[max(row - 1, 0) : row + 1, max(col - 1, 0) : col + 1]
        assert float(scores[row, col]) == pytest.approx(float(holding.mean()), abs=1e-6)


class Sides(nn.Module):
    """What a patch's cell is worth depends on the side that it lies on: its outer third of pixels, times its row."""

    def __init__(self, patch_cells: int) -> None:
        super().__init__()
        self.patch_cells = patch_cells
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        thirds = functional.avg_pool2d(images[:, 0], (9, 3))
        n, g, _ = thirds.shape
        thirds = thirds.view(n, g, g, 3)
        kept = {2: (0, 2), 3: (0, 1, 2)}[self.patch_cells]
        return torch.stack([(a + 1) * thirds[..., b] for a in range(self.patch_cells) for b in kept], 1)


@pytest.mark.parametrize("patch_cells", [2, 3])
def test_mirrored_is_the_exact_mirror_for_roles(patch_cells: int) -> None:
    grid = 5
    agent = bare(patch_cells, grid)
    images = torch.rand(3, 1, 9 * grid, 9 * grid, generator=torch.Generator().manual_seed(1))
    network = Sides(patch_cells)
    q, q_mirror = network(images), network(images.flip(-1))
    torch.testing.assert_close(agent._mirrored(q_mirror), q)
    assert not torch.allclose(q_mirror, q)
    side = grid - patch_cells + 1
    values, of_mirror = (agent._values(x).view(3, side, side) for x in (q, q_mirror))
    torch.testing.assert_close(of_mirror.flip(-1), values)


def test_mirrored_training_images_have_their_roles_put_back() -> None:
    spec = GridSpec((1, 45, 45), 5, 4, 2)
    agent = IntelligentMasking(spec, network="plain", loss="huber", width=8)
    network = Sides(2)
    agent.policy = network
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = torch.randint(0, 256, (16, 1, 45, 45), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.testing.assert_close(agent._q_maps(images), network(images / 255))
    flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(seen[0], images / 255, strict=True)]
    assert 0 < sum(flipped) < 16


def test_one_weight_for_all_places() -> None:
    # A Q-map that could tell places apart could learn them by heart.
    agent = IntelligentMasking(GridSpec((1, SIZE, SIZE), GRID, 4, 2), width=8, mirror=False)
    assert agent.scores(np.zeros((1, 1, SIZE, SIZE), np.uint8))[0, 2, 2] != 0
    assert all(p.numel() < 10**5 for p in agent.policy.parameters())


# ---- files, environments, speed --------------------------------------------------------------------------------------


def test_loaded_agents_choose_the_same(tmp_path: Path) -> None:
    games: list[tuple[MaskVectorEnv, dict[str, Any]]] = [
        (frozen_env(4), {"replay_batch": 8}),
        (frozen_env(4, patch_cells=3), {"mode": "published", "network": "plain"}),
        (joint_env(4, action="grid"), {}),
    ]
    for i, (env, settings) in enumerate(games):
        agent = IntelligentMasking(env, seed=3, width=8, **settings).learn(40)
        agent.save(tmp_path / str(i))
        loaded = load_agent(tmp_path / str(i))
        assert isinstance(loaded, IntelligentMasking)
        assert loaded.settings == agent.settings
        assert loaded.spec == agent.spec
        assert np.array_equal(loaded.scores(np.asarray(HELD_OUT.images)), agent.scores(np.asarray(HELD_OUT.images)))
        chosen = [a.predict(np.asarray(HELD_OUT.images), deterministic=True)[0] for a in (loaded, agent)]
        assert np.array_equal(chosen[0], chosen[1])
        assert env.single_action_space.contains(chosen[0][0])
        single, _ = loaded.predict(HELD_OUT.images[0], deterministic=True)
        assert np.array_equal(single, chosen[0][0])
        again = IntelligentMasking.load(tmp_path / str(i), env=env).learn(20)
        assert again.num_timesteps == 20


#: every way of playing that keeps something of its own.
GAMES: dict[str, tuple[Any, dict[str, Any]]] = {
    "joint patch": (lambda: joint_env(4), {"replay_batch": 8}),
    "joint grid": (lambda: joint_env(3, action="grid", fill="noise"), {"loss": "ranking"}),
    "frozen patch": (lambda: frozen_env(4, 30), {"replay": 10, "exploration": "softmax", "replay_batch": 8}),
    "frozen grid": (lambda: frozen_env(3, 30, action="grid"), {"low_pass": True, "replay": 0}),
    "published": (lambda: joint_env(4), {"mode": "published", "network": "plain", "replay": 20}),
    "repeated": (lambda: joint_env(3, repeat=2), {"exploration": "softmax", "replay_batch": 8}),
}


@pytest.mark.parametrize("name", GAMES)
def test_continuing_is_equal_to_the_bit(tmp_path: Path, name: str) -> None:
    make, settings = GAMES[name]

    def agent() -> IntelligentMasking:
        return IntelligentMasking(make(), seed=2, width=8, **settings)

    whole, first, second = agent(), agent(), agent()
    total = 7 * whole.env.num_envs  # type: ignore[union-attr]
    expected = record(whole, total)
    rows = record(first, total, 3)
    first.save_checkpoint(tmp_path / "c", note="kept")
    record(first, 2 * first.env.num_envs)  # type: ignore[union-attr]  # what is lost by a kill must leave no trace in the file

    assert second.load_checkpoint(tmp_path / "c") == {"note": "kept"}
    assert second.horizon == total
    rows += record(second, total - second.num_timesteps)
    assert same(rows, expected)
    # One file holds all that learning changes: weights, optimisers, memory, generators and the game.
    whole.save_checkpoint(tmp_path / "whole")
    second.save_checkpoint(tmp_path / "second")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_seed_means_its_training_and_the_global_generators_are_left_alone() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]

    def run(seed: int) -> tuple[Any, Any]:
        agent = IntelligentMasking(joint_env(fill="noise"), seed=seed, width=8, replay_batch=8)
        rows = record(agent, 24)
        agent.predict(HELD_OUT.images[:2])
        return rows, dict(agent.policy.state_dict())

    first, again, other = run(0), run(0), run(1)
    assert same(first, again)
    assert not same(first[0], other[0])
    assert not same(first[1], other[1])
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # type: ignore[index]
    assert states[2] == random.getstate()


@pytest.mark.parametrize("action", ["patch", "grid"])
def test_one_environment_is_enough_and_labels_are_not_needed(action: str) -> None:
    play: dict[str, Any] = {"objective": "reconstruction", "action": action, "grid": GRID, "repeat": 2}
    images = square_images(7, 1, labels=False)
    env = gym.make("MaskAug-Synthetic-v0", dataset=images, joint=False, reward_model=Copy(), **play)
    agent = IntelligentMasking(env, width=8, replay_batch=8).learn(5)
    assert agent.num_timesteps == 5
    observation, _ = env.reset(seed=0)
    _, reward, _, _, info = env.step(agent.predict(observation, deterministic=True)[0])
    assert float(reward) > 0
    assert np.isfinite(info["cell_error"]).sum() == agent.spec.cells
    joint = joint_env(1, action=action, dataset=images, repeat=2)
    assert IntelligentMasking(joint, width=8, replay_batch=8).learn(4).updates == 4


def test_every_try_on_an_image_is_played_also_when_it_is_looked_at_in_between() -> None:
    env = frozen_env(2, repeat=3)
    agent = IntelligentMasking(env, width=8, replay=0, schedule="constant")
    seen = []
    step = env.step

    def watched(actions: Any) -> Any:
        seen.append(env.game.index.tolist())
        return step(actions)

    env.step = watched  # type: ignore[method-assign]
    for _ in range(6):
        agent.learn(2)
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5]


@pytest.mark.parametrize("env", [frozen_env(2, objective="adversarial", reward_model=None, joint=True), None])
def test_what_cannot_be_learnt_from_is_refused_and_leaves_no_trace(env: MaskVectorEnv | None) -> None:
    agent = IntelligentMasking(env or GridSpec((1, SIZE, SIZE), GRID, 4, 2), width=8)
    with pytest.raises(ConfigurationError, match="env=" if env is None else "objective='reconstruction'"):
        agent.learn(10)
    with pytest.raises(ConfigurationError):
        agent.learn(-5)
    assert agent.horizon == 0


@pytest.mark.parametrize(("make", "action"), [(joint_env, "patch"), (frozen_env, "grid")])
def test_nothing_waits_for_single_images(make: Any, action: str) -> None:
    def waits(num_envs: int) -> Counter[str]:
        keywords = {"judge_batch": num_envs} if make is joint_env else {}
        agent = IntelligentMasking(make(num_envs, action=action, **keywords), width=8, replay_batch=8)
        agent.horizon = 100 * num_envs
        agent.learn(num_envs)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            agent.learn(2 * num_envs)
        # Adam reads its count of steps once for each tensor, on the CPU only.
        events = [e for e in profile.events() or [] if not (e.cpu_parent and "adam" in e.cpu_parent.name)]
        return Counter(e.name for e in events if e.name in ("aten::item", "aten::nonzero"))

    few, many = waits(8), waits(32)
    assert many == few
    assert many["aten::nonzero"] == 0
    # Per update: whether the reconstruction is finite, whether the average has begun, and the judge's loss for the log.
    assert many["aten::item"] <= 3 * 3
