"""A training process is killed (SIGKILL) at random moments and resumed until it ends: it must equal a calm run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ARGUMENTS = [
    "train", "apga", "--env.n", "200", "--env.image-size", "40", "--env.grid", "5", "--env.fill", "noise",
    "--env.judge-batch", "7", "--num-envs", "4", "--checkpoint-every", "32", "--device", "cpu", "--seed", "3",
]  # fmt: skip


def start(out: Path, timesteps: int, *, resume: bool) -> subprocess.Popen[bytes]:
    words = [*ARGUMENTS, "--out", str(out), "--total-timesteps", str(timesteps), *(["--resume"] if resume else [])]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "maskaug", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=quiet
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def calm_run(out: Path, timesteps: int) -> float:
    """Train without a kill; returns how long the process took."""
    began = time.monotonic()
    finish(start(out, timesteps, resume=False))
    return time.monotonic() - began


def killed_run(out: Path, timesteps: int, delays: list[float]) -> list[float]:
    """Train with a kill after each of `delays` seconds; returns those at which there was something left to kill."""
    hits = []
    for delay in delays:
        process = start(out, timesteps, resume=True)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            hits.append(delay)
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 0, process.stderr.read().decode() if process.stderr else ""
        if process.stderr:
            process.stderr.close()
    finish(start(out, timesteps, resume=True))
    return hits


def assert_equal_runs(one: Path, two: Path) -> None:
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()
    for name in ("masker.safetensors", "judge.safetensors"):
        first, second = load_file(one / name), load_file(two / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert (one / "results.json").read_bytes() == (two / "results.json").read_bytes()
    last = [sorted((run / "checkpoints").iterdir()) for run in (one, two)]
    assert [p.name for p in last[0]] == [p.name for p in last[1]]
    # The last checkpoint holds all that could differ and not show yet: generators, places, optimisers.
    assert last[0][-1].read_bytes() == last[1][-1].read_bytes()
    assert not list(two.rglob("*.part"))


def test_two_kills_leave_no_trace(tmp_path: Path) -> None:
    whole = calm_run(tmp_path / "calm", 320)
    rng = random.Random(1)
    # In the second half of a process's life there is something to lose: before that it imports.
    hits = killed_run(tmp_path / "killed", 320, [whole * rng.uniform(0.5, 0.95) for _ in range(2)])
    assert hits
    assert_equal_runs(tmp_path / "calm", tmp_path / "killed")


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tmp_path: Path) -> None:
    whole = calm_run(tmp_path / "calm", 3200)
    rng = random.Random(2026)
    kills = runs = 0
    while kills < 20:
        runs += 1
        out = tmp_path / f"killed {runs}"
        hits = killed_run(out, 3200, [rng.uniform(0, whole) for _ in range(min(5, 20 - kills))])
        assert_equal_runs(tmp_path / "calm", out)
        kills += len(hits)
        print(f"run {runs}: killed after {', '.join(f'{h:.2f}' for h in hits)} s of {whole:.2f}; equal to the calm run")
    assert kills == 20
