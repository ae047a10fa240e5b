"""Collecting a rollout through Stable-Baselines3's adapter, against the bare judge: a row of `bench throughput`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from maskaug.agents.sb3_defaults import defaults_for
from maskaug.benchmarks import throughput_agents
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.judges import make_judge


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
