"""`maskaug bench sb3`: arms beside each other on a frozen judge."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from maskaug.agents.sb3_defaults import defaults_for
from maskaug.benchmarks import sb3_comparison as module
from maskaug.benchmarks import throughput_agents
from maskaug.benchmarks.sb3_comparison import ComparisonSettings, PlainSB3, comparison, learn
from maskaug.cli import main
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import make_judge

TINY = ComparisonSettings(
    "classification", "MaskAug-Synthetic-v0", {"n": 40, "action": "grid", "image_size": 40, "grid": 5}, 2, 64, ("apga",)
)
PATCHES = dataclasses.replace(
    TINY, game="reconstruction", env={"n": 40, "image_size": 40, "grid": 5}, arms=("intelligent_masking", "ppo")
)


def test_classification_has_every_arm_and_control(tmp_path: Path) -> None:
    said: list[str] = []
    settings = dataclasses.replace(TINY, arms=("apga", "ppo"))
    summary = comparison(settings, 2, tmp_path / "a.json", said.append)
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["summary"] == summary
    assert len(written["seeds"]) == 2
    first = written["seeds"][0]
    assert {"apga", "swapped.apga", "ppo", "swapped.ppo", "random", "centre", "mean_region", "ceiling"} <= set(first)
    assert all(0 <= first[name] <= 1 for name in ("apga", "ppo", "swapped.ppo", "random"))
    differences = [row["ppo"] - row["apga"] for row in written["seeds"]]
    assert summary["ppo − apga.mean"] == pytest.approx(np.mean(differences))
    assert summary["ppo − apga.low"] < summary["ppo − apga.mean"] < summary["ppo − apga.high"]
    assert any("ppo − apga" in line for line in said)


def test_reconstruction_has_rewards_between_random_and_the_best(tmp_path: Path) -> None:
    row = module.one_seed(PATCHES, 0)
    assert set(row) == {
        "intelligent_masking", "ppo", "local_variance", "centre", "cpu_s.intelligent_masking", "cpu_s.ppo"
    }  # fmt: skip
    assert all(row[arm] <= 1 for arm in ("intelligent_masking", "ppo", "local_variance", "centre"))


@pytest.mark.parametrize("game", ["classification", "reconstruction"])
def test_an_arm_as_stable_baselines3_has_it_is_its_own(game: str) -> None:
    action = "grid" if game == "classification" else "patch"
    judge = make_judge("small", 1, 2, 0)
    keywords: dict[str, Any] = {
        "dataset": "synthetic", "n": 40, "image_size": 40, "grid": 5, "action": action, "joint": False,
        "reward_model": judge,
    }  # fmt: skip
    agent, _ = learn("a2c_default", keywords, 0, 10)
    assert isinstance(agent, PlainSB3)
    assert agent.model.n_envs == 1
    assert agent.model.num_timesteps == 10
    assert type(agent.model.policy.features_extractor).__name__ == "NatureCNN"
    images = np.array(MaskVectorEnv(1, **keywords).dataset.images[:3])
    assert agent.predict(images, deterministic=True)[0].shape == ((3, 25) if action == "grid" else (3,))
    if action == "grid":
        scores = agent.scores(images)
        assert scores.shape == (3, 5, 5)
        chosen = agent.predict(images, deterministic=True)[0].reshape(3, 5, 5).astype(bool)
        np.testing.assert_array_equal(scores > 0, chosen)


def test_each_try_of_apga_counts_and_the_seed_matters() -> None:
    keywords: dict[str, Any] = {
        "dataset": "synthetic", "n": 40, "image_size": 40, "grid": 5, "action": "grid", "joint": False,
        "reward_model": make_judge("small", 1, 2, 0),
    }  # fmt: skip
    agent, _ = learn("apga", keywords, 0, 128)
    assert agent.num_timesteps == 128
    assert agent.env.game.repeat == 4
    other, _ = learn("apga", keywords, 1, 128)
    images = np.array(agent.env.dataset.images[:3])
    assert not np.array_equal(agent.scores(images), other.scores(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"game": "chess"}, "game='chess' is unknown"),
        ({"arms": ("dqn",)}, "unknown arm dqn of the classification game; use some of apga, ppo"),
        ({"arms": ()}, "at least one"),
        ({"arms": ("ppo", "ppo")}, "none of them twice"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(TINY, **changes)  # type: ignore[arg-type]


def test_no_seed_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="seeds=0"):
        comparison(TINY, 0)


def test_the_command_line_plays_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ComparisonSettings] = []

    def noted(settings: ComparisonSettings, seeds: int, out: Path | None) -> dict[str, float]:
        asked.append(settings)
        return {}

    monkeypatch.setattr(module, "comparison", noted)
    assert main(["bench", "sb3"]) == 0
    assert (asked[0].game, asked[0].timesteps, asked[0].judge_updates) == ("reconstruction", 8192, 800)
    assert asked[0].env == {"kind": "ultrasound", "n": 3000}
    words = (
        "bench sb3 --game classification --arms apga trpo --total-timesteps 7 --judge-updates 3 --split val --env.n 50"
    )
    assert main(words.split()) == 0
    assert asked[1] == ComparisonSettings(
        "classification", "MaskAug-Synthetic-v0",
        {"objective": "adversarial", "action": "grid", "fill": "blur", "n": 50}, 3, 7, ("apga", "trpo"), "val",
    )  # fmt: skip


def test_collecting_is_measured_against_the_bare_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sides: list[list[str]] = []
    rollout, play, judge = OnPolicyAlgorithm.collect_rollouts, MaskVectorEnv.step, make_judge("small", 1, 2, 0)
    judge.register_forward_hook(lambda _module, images, _logits: calls.append(f"judged {len(images[0])}"))

    def collect_rollouts(self: Any, env: Any, callback: Any, buffer: Any, n_rollout_steps: int) -> bool:
        calls.append(f"rollout of {n_rollout_steps} steps")
        return rollout(self, env, callback, buffer, n_rollout_steps)

    def step(self: MaskVectorEnv, actions: Any) -> Any:
        calls.append(f"step of {len(actions)}")
        return play(self, actions)

    monkeypatch.setattr(OnPolicyAlgorithm, "collect_rollouts", collect_rollouts)
    monkeypatch.setattr(MaskVectorEnv, "step", step)
    monkeypatch.setattr(throughput_agents, "make_judge", lambda *_: judge)
    *measured, images = throughput_agents.collecting(4, torch.device("cpu"), 8)
    for side in measured:
        calls.clear()
        side()
        sides.append([*calls])
    collected, bare = sides
    steps = defaults_for("ppo", "patch")["n_steps"]
    assert images == steps * 4
    assert bare == ["judged 4"] * steps
    assert [c for c in collected if "judged" not in c] == [f"rollout of {steps} steps", *["step of 4"] * steps]
