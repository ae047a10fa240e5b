"""How much the environment and the agent cost beyond the passes through networks that nobody can avoid.

Ratios of CPU time, both sides measured in turn (A B A B …) in one process, the median of the rounds: absolute times
mean nothing on a shared machine.
"""

from __future__ import annotations

import copy
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from maskaug.agents.apga import APGA
from maskaug.agents.intelligent_masking import IntelligentMasking
from maskaug.agents.sb3_agent import SB3Agent
from maskaug.benchmarks.presets import APGA_PRESETS, apga_run
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.files import atomic_write
from maskaug.envs.judges import make_judge
from maskaug.envs.networks import to_float

REPEAT = 4
UPDATES = 4  # a call of learn(), so that its start is not taken for a part of each step


def ratio(numerator: Callable[[], None], denominator: Callable[[], None], rounds: int) -> tuple[float, float, float]:
    """(median, 10 %, 90 %) of CPU time of `numerator` ÷ that of `denominator`, over rounds of both in turn."""
    numerator()
    denominator()
    found = []
    for i in range(rounds):
        seconds = {}
        # Who goes first changes with every round: the second finds a warmer cache.
        for side in (numerator, denominator) if i % 2 else (denominator, numerator):
            began = time.process_time()
            side()
            seconds[side] = time.process_time() - began
        found.append(seconds[numerator] / seconds[denominator])
    low, middle, high = np.percentile(found, [10, 50, 90])
    return float(middle), float(low), float(high)


def environment_ratio(num_envs: int, rounds: int, action: str = "grid", repeat: int = 1) -> tuple[float, float, float]:
    """Images per second of environment steps ÷ images per second of the bare judge (1 = the environment is free).

    The bare judge gets the same number of uint8 images, and gives one loss for each. The clean losses are known
    already, as they are after one pass over the data with a frozen judge.
    """
    judge = make_judge("small", 1, 2, 0)
    env = MaskVectorEnv(num_envs, n=500, action=action, joint=False, reward_model=judge, repeat=repeat, device="cpu")
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(2)]
    env.reset(seed=0)
    for step in range(2 * repeat * len(env.dataset) // num_envs + 1):
        env.step(actions[step % len(actions)])
    images = torch.from_numpy(np.array(env.dataset.images[:num_envs]))
    assert env.dataset.labels is not None
    labels = torch.from_numpy(env.dataset.labels[:num_envs])

    def steps() -> None:
        for action_batch in actions:
            env.step(action_batch)

    def bare() -> None:
        with torch.no_grad():
            for _ in actions:
                functional.cross_entropy(judge(to_float(images)), labels, reduction="none").numpy()

    return ratio(bare, steps, rounds)


def collection_ratio(num_envs: int, rounds: int, action: str = "patch") -> tuple[float, float, float]:
    """Images per second while Stable-Baselines3's PPO collects a rollout ÷ images per second of the bare judge.

    A rollout is its policy's passes, the adapter, the environment's steps and its buffer; the bare judge is as in
    `environment_ratio`.
    """
    judge = make_judge("small", 1, 2, 0)
    env = MaskVectorEnv(num_envs, n=500, action=action, joint=False, reward_model=judge, device="cpu")
    agent = SB3Agent(env, algorithm="ppo", device="cpu")
    agent.learn(2 * num_envs * (len(env.dataset) // num_envs + 1))
    ppo, images = agent.algorithm, torch.from_numpy(np.array(env.dataset.images[:num_envs]))
    assert env.dataset.labels is not None
    labels = torch.from_numpy(env.dataset.labels[:num_envs])
    _, callback = ppo._setup_learn(0, None, reset_num_timesteps=False)

    def collect() -> None:
        ppo.collect_rollouts(ppo.env, callback, ppo.rollout_buffer, ppo.n_steps)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(ppo.n_steps):
                functional.cross_entropy(judge(to_float(images)), labels, reduction="none").numpy()

    return ratio(bare, collect, rounds)


def agent_ratio(num_envs: int, rounds: int, joint: bool) -> tuple[float, float, float]:
    """CPU time of one APGA training step ÷ that of its unavoidable passes (1 = nothing else costs anything).

    Unavoidable: the policy forward and backward over N images; the judge forward over S·N masked images; and in the
    joint game the judge forward over N clean images, and forward and backward over N clean images and N aiding views.
    """
    judge = make_judge("small", 1, 2, 0)
    keywords = {"joint": True, "judge_batch": num_envs} if joint else {"joint": False}
    env = MaskVectorEnv(num_envs, n=150, reward_model=judge, repeat=REPEAT, device="cpu", **keywords)
    agent = APGA(env, seed=0, device="cpu")
    # With a frozen judge: until every clean loss is known.
    agent.learn(REPEAT * num_envs if joint else 6 * REPEAT * len(env.dataset))
    images = torch.from_numpy(np.array(env.dataset.images[:num_envs]))
    assert env.dataset.labels is not None
    labels = torch.from_numpy(env.dataset.labels[:num_envs])
    bare_policy, bare_judge = agent._make_policy(), make_judge("small", 1, 2, 0)

    def floor() -> None:
        # In the only order there is: the policy's backward pass has to wait for the rewards.
        scores = bare_policy(to_float(images))
        with torch.no_grad():
            for _ in range(REPEAT + int(joint)):
                bare_judge(to_float(images))
        if joint:
            pair = to_float(torch.cat([images, images]))
            functional.cross_entropy(bare_judge(pair), torch.cat([labels, labels])).backward()  # type: ignore[no-untyped-call]
        scores.sum().backward()

    def steps() -> None:
        agent.learn(UPDATES * REPEAT * num_envs)

    def floors() -> None:
        for _ in range(UPDATES):
            floor()

    return ratio(steps, floors, rounds)


def intelligent_masking_ratio(num_envs: int, rounds: int, mode: str = "default") -> tuple[float, float, float]:
    """CPU time of one joint step of Intelligent Masking ÷ that of its unavoidable passes (1 = nothing else costs).

    Unavoidable: the Q-map forward and backward over N images and, by default, over each batch from the replay; the
    reconstructor forward and backward over N hidden images.
    """
    play: dict[str, Any] = {"action": "grid", "area": 0.5} if mode == "default" else {"action": "patch"}
    own = {} if mode == "default" else {"mode": "published", "network": "plain"}
    judge = make_judge("small", 1, None, 0)
    env = MaskVectorEnv(
        num_envs, n=150, kind="ultrasound", objective="reconstruction", reward_model=judge, judge_batch=num_envs,
        device="cpu", **play,
    )  # fmt: skip
    agent = IntelligentMasking(env, seed=0, device="cpu", **own)
    # So long that neither exploration nor learning rates change while it is measured.
    agent.horizon = 10**9
    agent.learn(4 * num_envs)
    images = torch.from_numpy(np.array(env.dataset.images[:num_envs]))
    again = torch.from_numpy(np.array(env.dataset.images[: agent.settings.replay_batch]))
    bare_policy, bare_judge = agent._make_policy(), make_judge("small", 1, None, 0)
    again_count = 1 if mode == "default" else 0  # what replay_updates=-1 is in a joint game

    def floors() -> None:
        for _ in range(UPDATES):
            # In the only order there is: the Q-map's backward pass has to wait for the errors.
            q = bare_policy(to_float(images))
            x = to_float(images)
            (bare_judge(x) - x).square().mean().backward()
            q.sum().backward()
            for _ in range(again_count):
                bare_policy(to_float(again)).sum().backward()

    def steps() -> None:
        agent.learn(UPDATES * num_envs)

    return ratio(steps, floors, rounds)


def preset_ratio(preset: str, rounds: int, **changes: Any) -> tuple[float, float, float]:
    """CPU time of one joint step of a preset of APGA ÷ that of its unavoidable passes (1 = nothing else costs).

    Unavoidable, for a batch of N: the policy forward over N images; the judge forward over N clean images (its weights
    have changed since it last saw them) and N with the marked part hidden; the judge forward and backward over N clean
    images and N aiding views, and its Adam; the policy backward, and its Adam.

    Args:
        preset: of `APGA_PRESETS`, with a joint judge and one try an image.
        rounds: measurements.
        **changes: keywords of the environment over the preset's; `num_envs` and `judge_batch` are N.
    """
    num_envs = changes.pop("num_envs", APGA_PRESETS[preset].num_envs)
    run = apga_run(preset, {**changes, "judge_batch": num_envs}, {}, num_envs=num_envs)
    env = MaskVectorEnv(num_envs, **{"n": 4 * num_envs + 40, "device": "cpu", **run.env})
    agent = APGA(env, seed=0, device="cpu", **run.settings)
    images = torch.from_numpy(np.array(env.dataset.images[:num_envs]))
    assert env.dataset.labels is not None
    labels = torch.from_numpy(env.dataset.labels[:num_envs])
    policy, judge = copy.deepcopy(agent.policy), copy.deepcopy(env.game.reward_model.model)
    optimisers = [
        torch.optim.Adam(model.parameters(), lr, fused=True)
        for model, lr in ((judge, run.env["judge_lr"]), (policy, agent.settings.learning_rate))
    ]

    def floor() -> None:
        # In the only order there is: the policy's backward pass has to wait for the rewards.
        scores = policy(to_float(images))
        judge.eval()
        with torch.no_grad():
            for _ in ("clean", "hidden"):
                judge(to_float(images))
        judge.train()
        pair = to_float(torch.cat([images, images]))
        for optimiser, loss in (
            (optimisers[0], lambda: functional.cross_entropy(judge(pair), torch.cat([labels, labels]))),
            (optimisers[1], scores.mean),
        ):
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()

    def step() -> None:
        agent.learn(num_envs)

    return ratio(step, floor, rounds)


def throughput(
    *,
    num_envs: int | None = None,
    rounds: int | None = None,
    out: Path | None = None,
    preset: str = "default",
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Measure and print all ratios; `out` names a CSV file for them.

    Args:
        num_envs: N; None: 64, or what the preset says.
        rounds: measurements of each ratio; None: 20, or 3 of a preset's.
        out: where to write the CSV.
        preset: another than "default" measures the step of that preset alone, at its own size.
        say: where lines for people go.
    """
    if preset == "default":
        rows = _all_ratios(num_envs or 64, rounds or 20)
    else:
        batch = num_envs or APGA_PRESETS[preset].num_envs
        row = f"APGA step ÷ unavoidable passes, {preset}, joint, N={batch}"
        rows = {row: preset_ratio(preset, rounds or 3, num_envs=batch)}
    _show(rows, out, say)
    return {name: values[0] for name, values in rows.items()}


def _all_ratios(num_envs: int, rounds: int) -> dict[str, tuple[float, float, float]]:
    return {
        f"environment steps ÷ bare judge, grid, N={num_envs}": environment_ratio(num_envs, rounds),
        f"environment steps ÷ bare judge, grid, repeat={REPEAT}, N={num_envs}": environment_ratio(
            num_envs, rounds, repeat=REPEAT
        ),
        f"environment steps ÷ bare judge, patch, N={num_envs}": environment_ratio(num_envs, rounds, "patch"),
        f"Stable-Baselines3's PPO collecting ÷ bare judge, patch, N={num_envs}": collection_ratio(num_envs, rounds),
        **{
            f"APGA step ÷ unavoidable passes, {'joint' if joint else 'frozen judge'}, N={n}": agent_ratio(
                n, rounds, joint
            )
            for joint in (False, True)
            for n in sorted({32, num_envs})
        },
        **{
            f"Intelligent Masking step ÷ unavoidable passes, {mode}, N={n}": intelligent_masking_ratio(n, rounds, mode)
            for mode in ("default", "published")
            for n in sorted({32, num_envs})
        },
    }


def _show(rows: dict[str, tuple[float, float, float]], out: Path | None, say: Callable[[str], None]) -> None:
    say(f"{'CPU-time ratios, ' + str(torch.get_num_threads()) + ' threads':<62}{'median':>8}{'10 %':>8}{'90 %':>8}")
    for name, (middle, low, high) in rows.items():
        say(f"{name:<62}{middle:>8.3f}{low:>8.3f}{high:>8.3f}")
    if out is not None:

        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("ratio", "median", "p10", "p90"), *((k, *v) for k, v in rows.items())])

        atomic_write(out, write)
        say(f"wrote {out}")
