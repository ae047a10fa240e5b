"""One cell of `maskaug bench algorithms`: what a judge leaves, what a run measures, and every arm's agent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from algorithm_grid import CELLS, PATCHES, SMALL, TINY, finished

from maskaug.benchmarks import retention
from maskaug.benchmarks.algorithm_agents import PlainSB3, make_agent
from maskaug.benchmarks.algorithm_runs import follow, judge_cell, run_cell
from maskaug.benchmarks.algorithms import ARMS, judge_name, run_name
from maskaug.benchmarks.grid import Grid
from maskaug.benchmarks.regret import normalised_rewards
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import JudgeError
from maskaug.envs.judges import make_judge


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return finished(tmp_path_factory.mktemp("algorithms"))


class Learner:
    """Spends a known time on each of ten updates of ten masks."""

    num_timesteps = 0

    def learn(self, total: int, callback: Any) -> None:
        while self.num_timesteps < total:
            until = time.process_time() + 0.01
            while time.process_time() < until:
                pass
            self.num_timesteps += 10
            if self.num_timesteps != 50:  # no callback at this one
                callback(self, {})


def test_a_run_is_looked_at_on_the_way_and_looking_costs_it_nothing() -> None:
    seen: list[int] = []

    def look(agent: Any) -> dict[str, float]:
        seen.append(agent.num_timesteps)
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        return {"normalised": float(agent.num_timesteps), "swapped.normalised": -1.0}

    figures = follow(Learner(), look, 25, 95)
    # 25, 50 and 95 are due; where there was no callback the next one serves.
    assert seen == [0, 30, 60, 100]
    assert [figures[f"curve.{n:07d}.normalised"] for n in seen] == seen
    assert (figures["steps"], figures["normalised"], figures["swapped.normalised"]) == (100, 100, -1)
    assert 0.1 <= figures["cpu_s"] < 0.15
    assert figures["curve.0000030.cpu_s"] == pytest.approx(0.03, abs=0.01)
    assert figures["curve.0000000.cpu_s"] == 0
    assert figures["wall_s"] >= figures["cpu_s"] * 0.9
    assert not any(name.startswith("curve.") and "swapped" in name for name in figures)
    # The end is looked at where no callback came there.
    seen.clear()
    assert follow(Learner(), look, 1000, 50)["curve.0000050.normalised"] == 50
    assert seen == [0, 50]


def test_looking_does_not_change_what_is_learnt(grid: Grid) -> None:
    for name, cell in grid.cells.items():
        if cell.needs:
            (judge,) = cell.needs
            once = run_cell({**cell.config, "first": 10**6}, grid.root / name, {judge: grid.root / judge})
            often = grid.results()[name]
            # APGA's and A2C's updates are 128 masks each.
            looks = 2 + TINY.games[cell.config["game"]].timesteps // 128 - 1
            assert sum(key.endswith(".cpu_s") for key in once) == 2
            assert sum(key.endswith(".cpu_s") for key in often) >= looks
            assert once["normalised"] == often["normalised"]
            assert once.get("retention") == often.get("retention")
            # Another seed of the agent learns something else, or at least starts elsewhere.
            other = run_cell({**cell.config, "seed": 1}, grid.root / name, {judge: grid.root / judge})
            assert {k: v for k, v in other.items() if k.endswith("normalised")} != {
                k: v for k, v in often.items() if k.endswith("normalised")
            }


def test_patches_are_measured_between_random_and_the_best(grid: Grid) -> None:
    results = grid.results()
    judge, name = results[judge_name("reconstruction", 0)], judge_name("reconstruction", 0)
    config = grid.cells[name].config
    keywords = {
        "dataset": "synthetic", **config["env"], "seed": 0, "joint": False, "device": "cpu",
        "reward_model": str(grid.root / name / "judge.safetensors"),
    }  # fmt: skip
    env = MaskVectorEnv(4, **keywords)
    every = np.load(grid.root / name / "rewards.npy", allow_pickle=False)
    held_out = env.evaluation("test")
    np.testing.assert_allclose(every, held_out.game.action_rewards(np.arange(len(held_out.dataset))), rtol=1e-5)
    assert judge["random.reward"] == pytest.approx(every.mean())
    assert judge["best.reward"] == pytest.approx(every.max(1).mean())
    # The old way to say it, on an agent that learns the same.
    agent = make_agent("a2c", keywords, {}, 1, 0, "cpu").learn(256)
    found = normalised_rewards(held_out, {"a2c": agent})
    run = results[run_name("reconstruction", "a2c", 0)]
    assert run["normalised"] == pytest.approx(found["a2c.normalised"], abs=1e-5)
    assert run["steps"] == 256
    chosen = agent.predict(np.array(held_out.dataset.images), deterministic=True)[0]
    others = [every[i, c] for i in range(len(every)) for j, c in enumerate(chosen) if i != j]
    spread = judge["best.reward"] - judge["random.reward"]
    assert run["swapped.normalised"] == pytest.approx((np.mean(others) - judge["random.reward"]) / spread, abs=1e-5)


def test_cells_are_measured_between_random_and_the_search(grid: Grid) -> None:
    judge = grid.results()[judge_name("classification", 0)]
    assert (judge["random.normalised"], judge["search.normalised"]) == (0, 1)
    assert judge["ceiling.retention"] >= judge["mean_region.retention"]
    assert judge["random.retention"] == pytest.approx(6 / 25, abs=0.15)
    assert judge["input_gradient.normalised"] < 1
    run = grid.results()[run_name("classification", "apga", 0)]
    assert {"normalised", "retention", "swapped.normalised", "swapped.retention", "cpu_s", "wall_s", "steps"} <= set(
        run
    )
    assert run["normalised"] < 1
    assert 0 <= run["retention"] <= 1
    assert run["steps"] == 128


def test_a_judge_that_sees_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = [c for c in TINY.cells() if c.name == judge_name("reconstruction", 0)]
    monkeypatch.setattr(
        "maskaug.envs.game.MaskGame.action_rewards", lambda self, index: np.ones((len(index), 16), np.float32)
    )
    with pytest.raises(JudgeError, match="nothing to learn; train the judge longer"):
        judge_cell(cell.config, tmp_path, {})


@pytest.mark.parametrize("game", ["classification", "reconstruction"])
def test_an_arm_as_stable_baselines3_has_it_is_its_own(game: str) -> None:
    keywords: dict[str, Any] = {
        "dataset": "synthetic", **SMALL, "action": "grid" if game == "classification" else "patch", "joint": False,
        "reward_model": make_judge("small", 1, 2, 0),
    }  # fmt: skip
    agent = make_agent("a2c_default", keywords, {}, 1, 0, "cpu")
    told: list[int] = []
    agent.learn(10, lambda one, _: told.append(one.num_timesteps))
    assert told == [5, 10]
    assert isinstance(agent, PlainSB3)
    assert (agent.model.n_envs, agent.num_timesteps) == (1, 10)
    assert type(agent.model.policy.features_extractor).__name__ == "NatureCNN"
    images = np.array(MaskVectorEnv(1, **keywords).dataset.images[:3])
    assert agent.predict(images, deterministic=True)[0].shape == ((3, 25) if game == "classification" else (3,))
    if game == "classification":
        scores = agent.scores(images)
        chosen = agent.predict(images, deterministic=True)[0].reshape(3, 5, 5).astype(bool)
        np.testing.assert_array_equal(scores > 0, chosen)


def test_every_arm_can_be_made_and_has_its_own_number_of_environments() -> None:
    for game, env in (("reconstruction", PATCHES), ("classification", CELLS)):
        judge = make_judge("small", 1, None if game == "reconstruction" else 2, 0)
        keywords = {"dataset": "synthetic", **env, "joint": False, "reward_model": judge}
        for arm in ARMS[game].values():
            settings = {**arm.settings, "judge_updates": 1} if arm.agent == "Distilled" else arm.settings
            agent = make_agent(arm.agent, keywords, settings, arm.repeat, 0, "cpu")
            if not isinstance(agent, PlainSB3):
                assert agent.env.num_envs == {"ppo": 16, "dqn": 8}.get(arm.agent, agent.env.num_envs)
                assert agent.env.game.repeat == arm.repeat
                agent.check_env(agent.env)


def test_a_classifier_is_trained_where_its_game_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[torch.device] = []
    monkeypatch.setattr(retention, "resolve_device", lambda name: torch.device("meta" if name == "gpu" else name))
    monkeypatch.setattr(retention, "fit_classifier", lambda *_, device: where.append(device))
    for env in ({**CELLS, "device": "gpu"}, CELLS):
        retention.frozen_classifier("MaskAug-Synthetic-v0", env, 1, 0)
    assert where == [torch.device("meta"), torch.device("cpu")]
