"""SIGKILL while an entry is built: never is a wrong or partial one accepted, and nothing stays behind."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from maskaug.envs.cache import cache_folder, cached_array

#: everything that a builder does to the disk goes through these.
STEPS = ("write", "pwrite", "fsync", "fchmod", "replace", "rename", "unlink")
IMAGES, SIDE = 3, 8


def expected(root: Path, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """The array as it must come out: file i is a seed."""
    return np.stack([picture(file, side) for file in sorted(root.glob("*.txt"))])


def picture(file: Path, side: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(int(file.read_text())).integers(0, 256, (1, side, side), np.uint8)


def build(root: Path, side: int = SIDE, slow: float = 0.0, workers: int = 1) -> npt.NDArray[np.uint8]:
    files = sorted(root.glob("*.txt"))

    def decode(file: Path) -> tuple[npt.NDArray[np.uint8], str]:
        time.sleep(slow)
        return picture(file, side)[None], file.name

    cached = cached_array(
        "kill", root=root, sources=files, parameters={}, items=files, decode=decode, workers=workers,
        finish=lambda notes: {"names": notes},
    )  # fmt: skip
    assert cached.details == {"names": [file.name for file in files]}
    return np.asarray(cached.array)


def make_root(folder: Path, seed: int, images: int = IMAGES) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(images):
        (folder / f"{i:03}.txt").write_text(str(1000 * seed + i))
    return folder


def half_written() -> list[Path]:
    return list(cache_folder().glob(".*.part"))


def _die_at(root: Path, cache: Path, step: int, after: bool) -> None:
    os.environ["MASKAUG_CACHE"] = str(cache)
    done = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **more: Any) -> Any:
            nonlocal done
            done += 1
            if done == step and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = original(*args, **more)
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return wrapper

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    build(root)
    os._exit(77)


def _build(root: Path, cache: Path, side: int, slow: float, workers: int) -> None:
    os.environ["MASKAUG_CACHE"] = str(cache)
    build(root, side, slow, workers)


def forkserver() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maskaug.envs.cache"])
    return context


@pytest.mark.parametrize(("after", "rebuilt"), [(False, False), (True, True)])
def test_killed_at_every_step_to_the_disk(tmp_path: Path, after: bool, rebuilt: bool) -> None:
    root, survived, step = make_root(tmp_path / "data", 1), False, 0
    while not survived:
        step += 1
        for old in cache_folder().glob("*") if cache_folder().exists() else []:
            old.unlink()
        if rebuilt:
            # The entry of an earlier state is there, and must not be taken for the new one.
            build(make_root(root, 2))
        make_root(root, 1)
        process = forkserver().Process(target=_die_at, args=(root, cache_folder(), step, after))
        process.start()
        process.join(60)
        survived = process.exitcode == 77
        assert survived or process.exitcode == -signal.SIGKILL
        assert np.array_equal(build(root), expected(root)), step
        assert half_written() == []
        assert len(list(cache_folder().glob("*.npy"))) == 1
    # Rows one by one, the header, and both files' way to the disk.
    assert step > IMAGES + 10


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    generator = random.Random(0)
    side, context, killed, whole = 256, forkserver(), 0, 0.0
    root = tmp_path / "data"
    # The first one also waits for the server to come up.
    for seed in (1, 2):
        make_root(root, seed, 60)
        began = time.monotonic()
        process = context.Process(target=_build, args=(root, cache_folder(), side, 0.02, 2))
        process.start()
        process.join(120)
        assert process.exitcode == 0
        whole = time.monotonic() - began
    for i in range(20):
        make_root(root, 3 + i, 60)
        process = context.Process(target=_build, args=(root, cache_folder(), side, 0.02, 2))
        process.start()
        # A quarter of them around the end, where files get their names.
        time.sleep(whole * (generator.uniform(0.9, 1.05) if i % 4 == 3 else generator.uniform(0.05, 1.0)))
        process.kill()
        process.join(60)
        killed += process.exitcode == -signal.SIGKILL
        assert np.array_equal(build(root, side), expected(root, side)), i
        assert half_written() == []
        assert len(list(cache_folder().glob("*.npy"))) == 1
    assert killed >= 12
