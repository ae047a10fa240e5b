"""What training costs beyond the passes through networks that nobody can avoid, and what collecting a rollout does.

"over_passes" is seconds of a training step ÷ those of its unavoidable passes (1 = nothing else costs anything), in the
only order there is: the policy's backward pass has to wait for the rewards.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskaug.agents.apga import APGA
from maskaug.agents.intelligent_masking import IntelligentMasking
from maskaug.agents.sb3_agent import SB3Agent
from maskaug.benchmarks.presets import apga_run
from maskaug.benchmarks.throughput_settings import ThroughputSettings
from maskaug.benchmarks.timing import Clock, forget_peaks, in_turn, peak_cuda_mb, peak_mb, spread
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.judges import make_judge
from maskaug.envs.networks import to_float

REPEAT = 4
UPDATES = 4  # a call of learn(), so that its start is not taken for a part of each step

#: the training steps, their passes, and the images of one such side.
Sides = tuple[Callable[[], Any], Callable[[], Any], int]


def measured(agent: str, num_envs: int, settings: ThroughputSettings, device: torch.device) -> dict[str, Any]:
    """One row: its figure as a `Spread`, images a second, and memory; see `maskaug.benchmarks.throughput_games`.

    Args:
        agent: of `maskaug.benchmarks.throughput_settings.AGENTS`. "ppo" has "step_policy", the images a second of
            collecting a rollout ÷ the bare judge's; all others have "over_passes".
        num_envs: N.
        settings: for its rounds.
        device: where.
    """
    gc.collect()
    forget_peaks(device)
    ours, theirs, images = SIDES[agent](num_envs, device, settings.images)
    clock = Clock(device)
    seconds, floor = in_turn((ours, theirs), settings.rounds, clock)
    collects = agent == "ppo"
    speeds = {"judge_images_s": images / float(np.median(floor))} if collects else {}
    return {
        "step_policy" if collects else "over_passes": spread(floor / seconds if collects else seconds / floor),
        "seconds": clock.kind, "images_s": images / float(np.median(seconds)), **speeds, "memory_mb": peak_mb(),
        "cuda_mb": peak_cuda_mb(device),
    }  # fmt: skip


def collecting(num_envs: int, device: torch.device, images: int) -> Sides:
    """Stable-Baselines3's PPO collects a rollout, against the bare judge.

    A rollout is its policy's passes, the adapter, the environment's steps and its buffer; the bare judge gets the same
    number of uint8 images, and gives one loss for each.
    """
    judge = make_judge("small", 1, 2, 0)
    env = MaskVectorEnv(num_envs, n=images, split="all", action="patch", joint=False, reward_model=judge, device=device)
    agent = SB3Agent(env, algorithm="ppo", device=device)
    # Until every clean loss is known.
    agent.learn(2 * num_envs * (len(env.dataset) // num_envs + 1))
    ppo = agent.algorithm
    shown, labels = _first_images(env, num_envs)
    _, callback = ppo._setup_learn(0, None, reset_num_timesteps=False)

    def collect() -> None:
        ppo.collect_rollouts(ppo.env, callback, ppo.rollout_buffer, ppo.n_steps)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(ppo.n_steps):
                functional.cross_entropy(judge(to_float(shown)), labels, reduction="none").cpu().numpy()

    return collect, bare, ppo.n_steps * num_envs


def apga(num_envs: int, device: torch.device, images: int, joint: bool = False) -> Sides:
    """APGA's training step.

    Unavoidable: the policy forward and backward over N images; the judge forward over S·N masked images; and in the
    joint game the judge forward over N clean images, and forward and backward over N clean images and N aiding views.
    """
    judge = make_judge("small", 1, 2, 0)
    keywords = {"joint": True, "judge_batch": num_envs} if joint else {"joint": False}
    env = MaskVectorEnv(num_envs, n=images, split="all", reward_model=judge, repeat=REPEAT, device=device, **keywords)
    agent = APGA(env, seed=0, device=device)
    # With a frozen judge: until every clean loss is known.
    agent.learn(REPEAT * num_envs if joint else 12 * REPEAT * len(env.dataset))
    shown, labels = _first_images(env, num_envs)
    policy, bare_judge = (net.to(device) for net in (agent._make_policy(), make_judge("small", 1, 2, 0)))

    def floor() -> None:
        scores = policy(to_float(shown))
        with torch.no_grad():
            for _ in range(REPEAT + int(joint)):
                bare_judge(to_float(shown))
        if joint:
            pair = to_float(torch.cat([shown, shown]))
            functional.cross_entropy(bare_judge(pair), torch.cat([labels, labels])).backward()  # type: ignore[no-untyped-call]
        scores.sum().backward()

    return _repeated(agent, floor, REPEAT * num_envs)


def apga_joint(num_envs: int, device: torch.device, images: int) -> Sides:
    """The same in the joint game."""
    return apga(num_envs, device, images, joint=True)


def intelligent_masking(num_envs: int, device: torch.device, images: int, mode: str = "default") -> Sides:
    """One joint step of Intelligent Masking.

    Unavoidable: the Q-map forward and backward over N images and, by default, over each batch from the replay; the
    reconstructor forward and backward over N hidden images.
    """
    play: dict[str, Any] = {"action": "grid", "area": 0.5} if mode == "default" else {"action": "patch"}
    own = {} if mode == "default" else {"mode": "published", "network": "plain"}
    judge = make_judge("small", 1, None, 0)
    env = MaskVectorEnv(
        num_envs, n=images, split="all", kind="ultrasound", objective="reconstruction", reward_model=judge,
        judge_batch=num_envs, device=device, **play,
    )  # fmt: skip
    agent = IntelligentMasking(env, seed=0, device=device, **own)
    # So long that neither exploration nor learning rates change while it is measured.
    agent.horizon = 10**9
    agent.learn(4 * num_envs)
    shown, _ = _first_images(env, num_envs)
    again, _ = _first_images(env, agent.settings.replay_batch)
    policy, bare_judge = (net.to(device) for net in (agent._make_policy(), make_judge("small", 1, None, 0)))
    again_count = 1 if mode == "default" else 0  # what replay_updates=-1 is in a joint game

    def floor() -> None:
        q = policy(to_float(shown))
        x = to_float(shown)
        (bare_judge(x) - x).square().mean().backward()
        q.sum().backward()
        for _ in range(again_count):
            policy(to_float(again)).sum().backward()

    return _repeated(agent, floor, num_envs)


def intelligent_masking_published(num_envs: int, device: torch.device, images: int) -> Sides:
    """The same as published, with a small network."""
    return intelligent_masking(num_envs, device, images, "published")


def apga_published(num_envs: int, device: torch.device, images: int, **changes: Any) -> Sides:
    """One joint step of APGA's preset "published", at its own size: many minutes on a CPU.

    Unavoidable, for a batch of N: the policy forward over N images; the judge forward over N clean images (its weights
    have changed since it last saw them) and N with the marked part hidden; the judge forward and backward over N clean
    images and N aiding views, and its Adam; the policy backward, and its Adam. `changes`: keywords of the environment
    over the preset's.
    """
    run = apga_run("published", {**changes, "judge_batch": num_envs}, {}, num_envs=num_envs)
    env = MaskVectorEnv(num_envs, **{"n": images, "split": "all", "device": device, **run.env})
    agent = APGA(env, seed=0, device=device, **run.settings)
    shown, labels = _first_images(env, num_envs)
    policy: nn.Module = copy.deepcopy(agent.policy)
    judge = copy.deepcopy(env.game.reward_model.model)
    optimisers = [
        torch.optim.Adam(model.parameters(), lr, fused=True)
        for model, lr in ((judge, run.env["judge_lr"]), (policy, agent.settings.learning_rate))
    ]

    def floor() -> None:
        scores = policy(to_float(shown))
        judge.eval()
        with torch.no_grad():
            for _ in ("clean", "hidden"):
                judge(to_float(shown))
        judge.train()
        pair = to_float(torch.cat([shown, shown]))
        for optimiser, loss in (
            (optimisers[0], lambda: functional.cross_entropy(judge(pair), torch.cat([labels, labels]))),
            (optimisers[1], scores.mean),
        ):
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()

    return (lambda: agent.learn(num_envs)), floor, num_envs


#: name of `maskaug.benchmarks.throughput_settings.AGENTS` → (N, device, number of synthetic images) → what is measured.
SIDES: Mapping[str, Callable[[int, torch.device, int], Sides]] = {
    "apga": apga,
    "apga_joint": apga_joint,
    "apga_published": apga_published,
    "intelligent_masking": intelligent_masking,
    "intelligent_masking_published": intelligent_masking_published,
    "ppo": collecting,
}


def _first_images(env: MaskVectorEnv, count: int) -> tuple[Tensor, Tensor]:
    # (images, labels) on the device; so many, even if the data set has fewer.
    index = np.arange(count) % len(env.dataset)
    assert env.dataset.labels is not None
    labels = torch.from_numpy(env.dataset.labels[index]).to(env.game.device)
    return env.game.pictures.at(index), labels


def _repeated(agent: APGA | IntelligentMasking, floor: Callable[[], None], timesteps: int) -> Sides:
    def floors() -> None:
        for _ in range(UPDATES):
            floor()

    return (lambda: agent.learn(UPDATES * timesteps)), floors, UPDATES * timesteps
