"""Images a second of a game with a frozen judge, against the bare judge's: steps, with a policy, with its training.

The bare judge gets N uint8 images that lie on the device already, computed in the same way, and gives one loss for
each, which environments without `tensors` also bring to the host. Clean losses are known, as they are after one pass
over the data with a frozen judge. The policy is APGA's: `predict` before every step; and its training is `learn`, which
plays the steps itself, one pass of the policy serving all tries on an image.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from torch.nn import functional

from maskaug.agents.agent import as_tensor
from maskaug.agents.apga import APGA
from maskaug.benchmarks.throughput_settings import PASSES, Game, ThroughputSettings
from maskaug.benchmarks.timing import Clock, forget_peaks, in_turn, peak_cuda_mb, peak_mb, spread
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.judges import make_judge
from maskaug.envs.networks import to_float

#: what a row says, (median, 10 %, 90 %) each: see `measured`.
FIGURES = ("step", "step_policy", "step_policy_training", "native_times", "over_passes")
Step = Callable[[Any], Any]


def measured(game: Game, settings: ThroughputSettings, device: torch.device) -> dict[str, Any]:
    """One row: its figures as `Spread`s (those that it does not have are missing), speeds and memory.

    "step", "step_policy" and "step_policy_training" are images a second ÷ the bare judge's (1 = nothing else costs).
    Only native environments train APGA, and only grids and pixels are its actions. "native_times" is how many times as
    many images a second a native environment plays. "images_s" are those of steps and "judge_images_s" the bare
    judge's, for each second of `Clock`.
    """
    gc.collect()
    forget_peaks(device)
    env = _native(game, settings, device)
    agent = None
    if game.action in APGA.action_kinds and game.num_envs * game.repeat > 1:
        agent = APGA(env, seed=0, device=device)
    native = game.vectorization == "native"
    if agent is not None and native:
        # Its first call resets the environment, which forgets the clean losses.
        agent.learn(game.num_envs * game.repeat)
    actions = _actions(game, env)
    _know_all(env, actions)
    with _stepped(game, env) as (step, workers):
        for _ in range(0 if native else len(env.dataset) * game.repeat):
            step(actions)
        steps = -(-settings.steps // game.repeat) * game.repeat
        sides: dict[str, Callable[[], Any]] = {
            "judge": _bare(env, steps), "step": functools.partial(_steps, step, actions, steps),
        }  # fmt: skip
        if agent is not None:
            sides["step_policy"] = _Policy(agent, step, step(actions), steps)
            if native:
                sides["step_policy_training"] = functools.partial(agent.learn, steps * game.num_envs)
        if not native:
            sides["native"] = functools.partial(_steps, _native_step(env), actions, steps)
        clock = Clock(device, workers)
        seconds = dict(zip(sides, in_turn(list(sides.values()), settings.rounds, clock), strict=True))
        memory = peak_mb(workers)
    env.close()
    found: dict[str, Any] = {
        name: spread(seconds["judge"] / taken) for name, taken in seconds.items() if name in FIGURES
    }  # fmt: skip
    if not native:
        found["native_times"] = spread(seconds["step"] / seconds["native"])
    images = steps * game.num_envs
    return {
        **found, "seconds": clock.kind, "images_s": images / float(np.median(seconds["step"])),
        "judge_images_s": images / float(np.median(seconds["judge"])), "memory_mb": memory,
        "cuda_mb": peak_cuda_mb(device),
    }  # fmt: skip


def _native(game: Game, settings: ThroughputSettings, device: torch.device) -> MaskVectorEnv:
    env = MaskVectorEnv(
        game.num_envs, n=settings.images, split="all", image_size=game.image_size, joint=False,
        reward_model=make_judge(game.judge, 1, 2, 0), action=game.action, repeat=game.repeat, tensors=game.tensors,
        device=device, precision=game.precision, **PASSES[game.passes],
    )  # fmt: skip
    env.reset(seed=0)
    return env


def _actions(game: Game, env: MaskVectorEnv) -> Any:
    env.action_space.seed(0)
    actions = env.action_space.sample()
    return as_tensor(actions, env.game.device) if game.tensors else actions


def _know_all(env: MaskVectorEnv, actions: Any) -> None:
    seen: set[int] = set()
    while len(seen) < len(env.dataset):
        seen.update(env.game.index.tolist())
        env.step(actions)


def _native_step(env: MaskVectorEnv) -> Step:
    return lambda actions: env.step(actions)[0]


def _steps(step: Step, actions: Any, count: int) -> None:
    for _ in range(count):
        step(actions)


class _Policy:
    # Some steps with a policy, which go on where the last ones ended.
    def __init__(self, agent: APGA, step: Step, observation: Any, count: int) -> None:
        self.agent, self.step, self.observation, self.count = agent, step, observation, count

    def __call__(self) -> None:
        for _ in range(self.count):
            self.observation = self.step(self.agent.predict(self.observation)[0])


def _bare(env: MaskVectorEnv, count: int) -> Callable[[], None]:
    game = env.game
    judge, images = game.reward_model.model, game.pictures.at(game.index)
    assert env.dataset.labels is not None
    labels = torch.from_numpy(env.dataset.labels[game.index]).to(game.device)

    @torch.no_grad()
    def passes() -> None:
        for _ in range(count):
            logits = game.acceleration.forward(judge, to_float(images))
            losses = functional.cross_entropy(logits, labels, reduction="none")
            if not game.tensors:
                losses.cpu().numpy()

    return passes


@contextlib.contextmanager
def _stepped(game: Game, env: MaskVectorEnv) -> Iterator[tuple[Step, Sequence[int]]]:
    """(actions → observations, ids of worker processes) of N games side by side; native is `env` itself.

    The others play its images and its judge, each worker process with copies of both and one thread.
    """
    if game.vectorization == "native":
        yield _native_step(env), ()
        return
    threads = 1 if game.vectorization == "async" else None
    single = functools.partial(
        _single, threads, dataset=env.dataset, image_grid=env.game.rule.grid, game=game,
        judge=env.game.reward_model.model, device=env.game.device,
    )  # fmt: skip
    makers = [single] * game.num_envs
    if game.vectorization == "dummy":
        together = DummyVecEnv(makers)  # type: ignore[arg-type]
        together.reset()
        step, workers = (lambda actions: together.step(actions)[0]), []
    else:
        same = AutoresetMode.SAME_STEP
        if game.vectorization == "sync":
            vector: Any = SyncVectorEnv(makers, autoreset_mode=same)
        else:
            # Not forked from here: threads that torch has started would be missing there.
            multiprocessing.get_context("forkserver").set_forkserver_preload(["maskaug.envs.environment"])
            vector = AsyncVectorEnv(makers, context="forkserver", autoreset_mode=same)
        vector.reset(seed=0)
        together, step = vector, lambda actions: vector.step(actions)[0]
        workers = [process.pid for process in getattr(vector, "processes", [])]
    try:
        yield step, workers
    finally:
        together.close()


def _single(
    threads: int | None, *, dataset: ImageDataset, image_grid: int, game: Game, judge: nn.Module, device: torch.device
) -> MaskEnv:
    if threads is not None:
        torch.set_num_threads(threads)
    return MaskEnv(
        dataset=dataset, grid=image_grid, joint=False, reward_model=judge, action=game.action, repeat=game.repeat,
        device=device, precision=game.precision, **PASSES[game.passes],
    )  # fmt: skip
