"""What throughput is measured with: rounds of several sides in turn, a clock for each device, and the peak of memory.

Times of their own mean little on a shared machine: sides are measured in turn in one process, and ratios are made
round by round. On a CPU the clock is CPU time, of worker processes too; a GPU's work takes none, so that there it is
wall time with the device waited for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maskaug.envs.devices import resolve_device

Seconds = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of the rounds' ratios.

    Attributes:
        median: half of them are below.
        low: a tenth.
        high: nine tenths.
    """

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Clock:
    """Seconds: CPU time of this process and of `workers`, or wall time of a CUDA device that is waited for.

    Attributes:
        device: where the networks compute.
        workers: ids of other processes whose CPU time counts too; they must be alive, and are not looked at on CUDA.
    """

    device: torch.device
    workers: Sequence[int] = ()

    @property
    def kind(self) -> str:
        """What it counts: "CPU" or "wall" seconds."""
        return "wall" if self.device.type == "cuda" else "CPU"

    def __call__(self) -> float:
        """Seconds since some beginning."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        # Linux's own number for the clock of another process, what clock_getcpuclockid(3) gives; in nanoseconds, where
        # /proc/PID/stat counts hundredths of a second.
        others = sum(time.clock_gettime((~pid << 3) | 2) for pid in self.workers)
        return time.process_time() + others


def in_turn(
    sides: Sequence[Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.process_time
) -> list[Seconds]:
    """Seconds of each side, (rounds,) float64, measured A B, B A, A B, … after one of each that does not count.

    The second finds a warmer cache, so that who goes first changes with every round.

    Args:
        sides: what is measured.
        rounds: how often, at least 1.
        clock: seconds since some beginning; CPU time of this process by default.
    """
    found: list[list[float]] = [[] for _ in sides]
    for i in range(-1, rounds):
        order = range(len(sides))
        for number in order if i % 2 else reversed(order):
            began = clock()
            sides[number]()
            if i >= 0:
                found[number].append(clock() - began)
    return [np.array(one) for one in found]


def spread(ratios: Seconds) -> Spread:
    """Median, 10 % and 90 % of (rounds,) ratios."""
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    return Spread(float(middle), float(low), float(high))


def forget_peaks(device: torch.device) -> None:
    """From now on `peak_mb` and `peak_cuda_mb` are those of what follows."""
    # A container may forbid it: the peak is then that of the process's whole life.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(workers: Sequence[int] = ()) -> float:
    """The largest resident set, in MB, of this process since `forget_peaks`, and of `workers` since they began.

    Pages that several processes share count for each of them.
    """
    total = 0
    for pid in ("self", *workers):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        total += int(found[1]) if found else 0
    return total * 1024 / 1e6


def peak_cuda_mb(device: torch.device) -> float | None:
    """The most that torch had allocated on a CUDA device, in MB, since `forget_peaks`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


@contextlib.contextmanager
def one_thread(device: str) -> Iterator[None]:
    """One thread on a CPU: CPU seconds are those of work, not of waiting, and do not depend on who runs beside."""
    before = torch.get_num_threads()
    if resolve_device(device).type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
