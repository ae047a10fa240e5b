"""`maskaug bench throughput`: its flags, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from maskaug.options import Action, Passes, Precision, ThroughputAgent, ThroughputPreset, Vectorization


def bench_throughput(
    preset: ThroughputPreset = "cpu",
    num_envs: tuple[int, ...] | None = None,
    image_size: tuple[int, ...] | None = None,
    judge: tuple[Literal["small", "densenet169"], ...] | None = None,
    precision: tuple[Precision, ...] | None = None,
    passes: tuple[Passes, ...] | None = None,
    tensors: tuple[bool, ...] | None = None,
    vectorization: tuple[Vectorization, ...] | None = None,
    action: tuple[Action, ...] | None = None,
    repeat: tuple[int, ...] | None = None,
    agents: tuple[ThroughputAgent, ...] | None = None,
    rounds: int | None = None,
    device: str | None = None,
    out: Path | None = None,
) -> None:
    """Steps, steps with a policy and with its training, against the bare judge; training steps against their passes.

    A preset is a list of rows. Any of the axes that follow replaces its games by all combinations of those given; what
    is not given is as in its first game. CPU seconds on a CPU, those of worker processes too; wall time on a GPU.

    Args:
        preset: smoke, in seconds; cpu, small judge; or paper, DenseNet-169 at 224 pixels, for a GPU.
        num_envs: an axis: games side by side.
        image_size: an axis: pixels a side.
        judge: an axis: small or densenet169.
        precision: an axis: fp32 or bf16.
        passes: an axis: how they are computed; compiled is channels last, too.
        tensors: an axis: torch in, torch out (native only).
        vectorization: an axis: native; sync or async, Gymnasium's, of single games; or dummy, Stable-Baselines3's.
        action: an axis: APGA's policy is measured with grid and pixel.
        repeat: an axis: tries on an image.
        agents: training steps and rollouts to measure, in place of the preset's; alone, where at most N is given too.
        rounds: how often all sides of a row are measured in turn; 10 % and 90 % are in the files beside the median.
        device: auto, cpu, cuda, …; cpu, or auto of the paper's preset, if left out.
        out: a folder for results.csv, tables.json and tables.md.
    """
    from maskaug.benchmarks.throughput import throughput
    from maskaug.benchmarks.throughput_settings import settings_of

    axes = {
        "num_envs": num_envs, "image_size": image_size, "judge": judge, "precision": precision, "passes": passes,
        "tensors": tensors, "vectorization": vectorization, "action": action, "repeat": repeat,
    }  # fmt: skip
    given = {name: values for name, values in axes.items() if values is not None}
    throughput(settings_of(preset, given, agents, rounds, device), out)
