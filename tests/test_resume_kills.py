"""A training process is killed (SIGKILL) at random moments and resumed until it ends: it must equal a calm run."""

import contextlib
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

_GAME = [
    "--env.n", "200", "--env.image-size", "40", "--env.grid", "5", "--env.fill", "noise", "--env.judge-batch", "7",
    "--num-envs", "4", "--checkpoint-every", "32", "--device", "cpu", "--seed", "3",
]  # fmt: skip
ARGUMENTS = {
    "apga": _GAME,
    # A judge's batch of 7 leaves gradients waiting, and a replay of 24 has begun its second round at every kill.
    "intelligent-masking": [
        *_GAME,
        "--env-id",
        "MaskAug-Synthetic-v0",
        "--env.kind",
        "ultrasound",
        "--agent.replay",
        "24",
    ],
}


agents = pytest.mark.parametrize("agent", ARGUMENTS)


def start(agent: str, out: Path, timesteps: int, *, resume: bool) -> subprocess.Popen[bytes]:
    words = [
        "train",
        agent,
        *ARGUMENTS[agent],
        "--out",
        str(out),
        "--total-timesteps",
        str(timesteps),
        *(["--resume"] if resume else []),
    ]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "maskaug", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=quiet
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def calm_run(agent: str, out: Path, timesteps: int) -> float:
    """Train without a kill; returns how long the process took."""
    began = time.monotonic()
    finish(start(agent, out, timesteps, resume=False))
    return time.monotonic() - began


def kill(process: subprocess.Popen[bytes]) -> bool:
    """SIGKILL; whether it came before the process ended by itself."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    errors = process.stderr.read().decode() if process.stderr else ""
    if process.stderr:
        process.stderr.close()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0


def killed_after(agent: str, out: Path, timesteps: int, delays: list[float]) -> list[float]:
    """Train with a kill after each of `delays` seconds; returns those at which there was something left to kill."""
    hits = []
    for delay in delays:
        process = start(agent, out, timesteps, resume=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        if kill(process):
            hits.append(delay)
    finish(start(agent, out, timesteps, resume=True))
    return hits


def killed_at(agent: str, out: Path, timesteps: int, rows: list[int]) -> int:
    """Train with a kill once metrics.csv has each number of `rows`; returns how many kills hit."""
    hits = 0
    for row in rows:
        process = start(agent, out, timesteps, resume=True)
        metrics = out / "metrics.csv"
        while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") > row):
            time.sleep(0.01)
        hits += kill(process)
    finish(start(agent, out, timesteps, resume=True))
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


@agents
def test_two_kills_leave_no_trace(agent: str, tmp_path: Path) -> None:
    # 20 updates: by progress and not by the clock, so that a slow machine is killed at the same places.
    calm_run(agent, tmp_path / "calm", 320)
    assert killed_at(agent, tmp_path / "killed", 320, [5, 12]) == 2
    assert_equal_runs(tmp_path / "calm", tmp_path / "killed")


@pytest.mark.slow
@agents
def test_twenty_kills_leave_no_trace(agent: str, tmp_path: Path) -> None:
    # As long as it takes for the kills to fall into different checkpoints; a reconstructor's cost more to score.
    timesteps = {"apga": 3200, "intelligent-masking": 640}[agent]
    whole = calm_run(agent, tmp_path / "calm", timesteps)
    rng = random.Random(2026)
    kills = runs = 0
    while kills < 20:
        runs += 1
        out = tmp_path / f"killed {runs}"
        hits = killed_after(agent, out, timesteps, [rng.uniform(0, whole) for _ in range(min(5, 20 - kills))])
        assert_equal_runs(tmp_path / "calm", out)
        kills += len(hits)
        print(
            f"{agent}, run {runs}: killed after {', '.join(f'{h:.2f}' for h in hits)} s of {whole:.2f}; "
            "equal to the calm run"
        )
    assert kills == 20
