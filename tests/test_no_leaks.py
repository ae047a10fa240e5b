"""Nothing that is played, reset, made and closed again and again stays behind: memory, threads, file handles.

Each part is measured by `leak_check.py` in a process of its own, warmed up first. `make slow` plays the whole lengths.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_helpers import judge_for, pictures, same

from maskaug.envs.environment import MaskEnv, MaskVectorEnv

SCRIPT = Path(__file__).with_name("leak_check.py")
MEBIBYTE = 2**20
# part: (quick, whole). Steps of vector environments are counted slot by slot: 16 slots, so many ÷ 16 calls.
PARTS = {
    "single": (2_000, 100_000),
    "vector": (2_000, 100_000),
    "tensors": (2_000, 100_000),
    "joint-classifier": (2_000, 100_000),
    "joint-reconstructor": (2_000, 100_000),
    "resets": (50, 1_000),
    "makes": (5, 100),
}
linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures by /proc, which Linux has")


def measured(part: str, count: int) -> dict[str, float]:
    """What `leak_check.py` prints of one part."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), part, str(count)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(part, count, found)
    return found


@linux
@pytest.mark.parametrize("part", PARTS)
def test_a_short_game_leaves_nothing_behind(part: str) -> None:
    found = measured(part, PARTS[part][0])
    # A quarter of what is allowed after fifty times as many steps; measured: 0.07 MiB at most.
    assert found["memory"] <= MEBIBYTE / 4
    assert found["mapped_files"] == found["threads"] == found["handles"] == 0
    assert found["objects"] <= 20


@linux
@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_long_game_leaves_nothing_behind(part: str) -> None:
    found = measured(part, PARTS[part][1])
    assert found["memory"] <= MEBIBYTE
    assert found["mapped_files"] == found["threads"] == found["handles"] == 0
    assert found["objects"] <= 20


@linux
def test_what_is_kept_is_noticed() -> None:
    # One image of 1 600 bytes a call, one thread and one file.
    found = measured("leaky", 4_800)
    assert found["memory"] > MEBIBYTE / 4
    assert found["threads"] == found["handles"] == 1


@pytest.mark.parametrize("objective", ["adversarial", "reconstruction"])
@pytest.mark.parametrize("tensors", [False, True])
def test_a_closed_environment_is_collected_and_so_is_all_it_held(objective: str, tensors: bool) -> None:
    data = pictures(8, 40)
    env: Any = MaskVectorEnv(
        3, dataset=data, objective=objective, grid=5, judge_batch=3, tensors=tensors, device="cpu",
        reward_model=judge_for(objective, data), render_mode="rgb_array",
    )  # fmt: skip
    env.reset(seed=0)
    for _ in range(4):
        env.step(np.ones((3, 25)))
    env.render()
    held_out = env.evaluation(dataset=pictures(6, 40))
    held_out.reset(seed=0)
    game = env.game
    parts = [env, game, game.pictures, game.judging, game.schedule, game.progress, game.worth]
    parts += [game.reward_model.model, data, held_out, held_out.game]
    left = [weakref.ref(part) for part in parts]
    env.close()
    held_out.close()
    del env, held_out, game, parts, data
    gc.collect()
    assert [type(part()).__name__ for part in left if part() is not None] == []


@pytest.mark.parametrize("tensors", [False, True])
def test_closing_gives_the_images_memory_back_and_the_game_may_go_on(tensors: bool) -> None:
    data = pictures(8, 40)

    def made() -> Any:
        keywords: Any = {"joint": False, "reward_model": judge_for("adversarial", data), "render_mode": "rgb_array"}
        return MaskVectorEnv(3, dataset=data, grid=5, tensors=tensors, device="cpu", **keywords)

    def played(env: Any) -> list[Any]:
        return [np.asarray(env.step(np.ones((3, 25)))[0]) for _ in range(6)]

    env, other = made(), made()
    for one in (env, other):
        one.reset(seed=0)
        one.step(np.ones((3, 25)))
    assert (env.game.pictures.resident is not None) == tensors
    scene, last = weakref.ref(env.game._look()), weakref.ref(env._last)
    env.close()
    assert env.closed
    assert env.game.pictures.resident is None
    assert scene() is last() is None
    assert same(played(env), played(other))


def test_closing_one_environment_gives_back_what_it_looks_at() -> None:
    data = pictures(8, 40)
    env: Any = gym.wrappers.OrderEnforcing(MaskEnv(dataset=data, grid=5, device="cpu", render_mode="rgb_array"))
    env.reset(seed=0)
    env.step(np.ones(25))
    inner = env.unwrapped
    # As on a CUDA device, where images wait there for the next step.
    inner.game.pictures.resident, inner.game.pictures._ahead = data.images, (0, 0, 0)
    left = weakref.ref(inner._last)
    env.close()
    pictures_kept = inner.game.pictures
    assert (pictures_kept.resident, pictures_kept._ahead, inner.game._scene, left()) == (None, None, None, None)
    env.close()
