"""Collecting a rollout through Stable-Baselines3's adapter, against the bare judge: a row of `bench throughput`."""

from __future__ import annotations

from typing import Any

import pytest
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from maskaug.agents.sb3_defaults import defaults_for
from maskaug.benchmarks import throughput
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

    def ratio(numerator: Any, denominator: Any, rounds: int) -> tuple[float, float, float]:
        for side in (numerator, denominator):
            calls.clear()
            side()
            sides.append([*calls])
        return float(rounds), 0.0, 0.0

    monkeypatch.setattr(OnPolicyAlgorithm, "collect_rollouts", collect_rollouts)
    monkeypatch.setattr(MaskVectorEnv, "step", step)
    monkeypatch.setattr(throughput, "make_judge", lambda *_: judge)
    monkeypatch.setattr(throughput, "ratio", ratio)
    assert throughput.collection_ratio(4, 3) == (3.0, 0.0, 0.0)
    # Images a second of collecting ÷ those of the judge: the judge's time stands above.
    bare, collected = sides
    steps = defaults_for("ppo", "patch")["n_steps"]
    assert bare == ["judged 4"] * steps
    assert [c for c in collected if "judged" not in c] == [f"rollout of {steps} steps", *["step of 4"] * steps]
