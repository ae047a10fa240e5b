"""What a process holds before and after it has played for long. A script: run in a process of its own, for Linux.

`python tests/leak_check.py PART COUNT` prints one line of JSON: by how much memory (bytes), mapped files, threads and
file handles have grown, and Python's objects. Memory is what is not a file's, in RAM or swapped out, after garbage
collection, and after glibc has given back what it keeps for later.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from env_helpers import judge_for, pictures

import maskaug
from maskaug.envs.busi import write_example
from maskaug.envs.environment import MaskEnv, MaskVectorEnv

SLOTS = 16
Numbers = dict[str, float]


def held() -> Numbers:
    """What this process holds now."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    # Not the whole resident set: pages of files (libraries, memory maps) come and go with the machine's memory.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {
        "memory": 1024 * sum(int(status[name].split()[0]) for name in ("RssAnon", "VmSwap")),
        "mapped_files": len({line.split(maxsplit=5)[5] for line in maps if "/" in line}),
        "threads": len(os.listdir("/proc/self/task")),
        "handles": len(os.listdir("/proc/self/fd")),
        "objects": len(gc.get_objects()),
    }


def grown(work: Callable[[int], None], warm: int, count: int) -> Numbers:
    """By how much what is held grows from `warm` units of work to `count` more."""
    work(warm)
    held()  # what measuring takes, too
    before, began = held(), time.process_time()
    work(count)
    seconds, after = time.process_time() - began, held()
    return {**{name: after[name] - before[name] for name in after}, "cpu_seconds": round(seconds, 1)}


def single_steps(count: int) -> Numbers:
    """`count` steps of one environment; each has an episode of its own, and so a reset."""
    data = pictures(40, 40)
    env = MaskEnv(dataset=data, grid=5, joint=False, reward_model=judge_for("adversarial", data), device="cpu")
    env.action_space.seed(0)
    env.reset(seed=0)

    def work(steps: int) -> None:
        for _ in range(steps):
            env.step(env.action_space.sample())
            env.reset()

    return grown(work, max(200, count // 20), count)


def vector_steps(count: int, objective: str = "adversarial", **keywords: Any) -> Numbers:
    """`count` steps of environments, 16 at once, so `count` ÷ 16 calls."""
    data = pictures(40, 40)
    judge: dict[str, Any] = {
        "reward_model": judge_for(objective, data),
        "judge_batch": 5 if keywords.get("joint") else None,
    }
    env: Any = MaskVectorEnv(SLOTS, dataset=data, objective=objective, grid=5, device="cpu", **judge, **keywords)
    env.action_space.seed(0)
    env.reset(seed=0)

    def work(steps: int) -> None:
        for _ in range(steps // SLOTS):
            action = env.action_space.sample()
            env.step(torch.from_numpy(action) if keywords.get("tensors") else action)

    return grown(work, max(60 * SLOTS, count // 20), count)


def resets(count: int) -> Numbers:
    """`count` resets with new seeds of a vector environment and of a single one, each with a step after it."""
    data = pictures(40, 40)
    play: dict[str, Any] = {"dataset": data, "grid": 5, "device": "cpu", "fill": "noise", "flip": True}
    play |= {"joint": False, "reward_model": judge_for("adversarial", data)}
    envs: list[Any] = [MaskVectorEnv(SLOTS, **play), MaskEnv(**play)]

    def work(times: int) -> None:
        for seed in range(times):
            for env in envs:
                env.reset(seed=seed)
                env.step(np.ones(env.action_space.shape))

    return grown(work, 50, count)


def makes(count: int) -> Numbers:
    """`count` times `gym.make`, `gym.make_vec` and `evaluation`, their images read anew; played, closed, deleted."""
    maskaug.register_envs()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MASKAUG_CACHE"] = f"{folder}/cache"
        root = write_example(Path(folder), n_per_class=8)
        seeds = iter(range(10**6))

        def made(seed: int) -> Iterator[Any]:
            # Another seed is another drawing, and other crops to be decoded: nothing is remembered.
            yield gym.make("MaskAug-Synthetic-v0", n=60, image_size=40, grid=5, seed=seed, device="cpu")
            yield gym.make_vec(
                "MaskAug-BUSI-v0", num_envs=3, root=str(root), image_size=64, seed=seed, device="cpu", tensors=True
            )
            env: Any = gym.make_vec("MaskAug-Synthetic-v0", num_envs=2, n=60, image_size=40, grid=5, seed=seed)
            yield env.evaluation("val")

        def work(times: int) -> None:
            for _ in range(times):
                for env in made(next(seeds)):
                    env.action_space.seed(0)
                    for _ in range(3):
                        env.reset(seed=0)
                        env.step(env.action_space.sample())
                    game = weakref.ref(env.unwrapped.game)
                    env.close()
                    del env
                    gc.collect()
                    assert game() is None, "a closed environment is still held by somebody"

        return grown(work, 6, count)


def leaky_steps(count: int) -> Numbers:
    """As "vector", but somebody keeps an image of each call, and by the end a file and a thread: to be noticed."""
    kept: list[object] = []
    step, calls = MaskVectorEnv.step, 0

    def keep(self: MaskVectorEnv, actions: Any) -> Any:
        nonlocal calls
        calls += 1
        result = step(self, actions)
        kept.append(result[0][0].copy())
        if calls == count // SLOTS:  # the warm-up is over by then
            kept.append(Path(os.devnull).open("rb"))  # noqa: SIM115 (that nobody closes it is the point)
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        return result

    MaskVectorEnv.step = keep  # type: ignore[method-assign]
    return vector_steps(count, joint=False)


PARTS: dict[str, Callable[[int], Numbers]] = {
    "single": single_steps,
    "vector": lambda count: vector_steps(count, joint=False),
    "tensors": lambda count: vector_steps(count, joint=False, tensors=True),
    "joint-classifier": lambda count: vector_steps(count, joint=True),
    "joint-reconstructor": lambda count: vector_steps(count, "reconstruction", joint=True),
    "resets": resets,
    "makes": makes,
    "leaky": leaky_steps,
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(PARTS[sys.argv[1]](int(sys.argv[2]))))
