"""`maskaug.benchmarks.clustered_bootstrap` for what is no metric of one test set: means of images, means over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.benchmarks.clustered_bootstrap import Method, PairedRun, ScoredRun, interval_of, scored_pair
from maskaug.benchmarks.statistics import Interval
from maskaug.envs.errors import ConfigurationError

Array = npt.NDArray[np.float64]


def clustered_mean_difference(
    runs: Sequence[tuple[Any, Any, Any]],
    *,
    shared: bool,
    method: Method = "two-way",
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    test_share: float = 0.0,
) -> Interval:
    """First − second, the mean over the runs of the mean over their images, with an interval over runs and groups.

    Args:
        runs: at least two independent repetitions: (groups (n,) integers or strings, first (n,), second (n,)), what two
            rankings, or whatever else is compared, came to on the same n images.
        shared: see `clustered_difference`, as all that follows.
        method: "two-way" or "pigeonhole".
        draws: how many resamples.
        confidence: of the interval.
        seed: of the resamples.
        test_share: tested images ÷ all others where the runs split the same images anew.

    Raises:
        ConfigurationError: fewer than two runs, or than two groups in one; arrays that do not fit together, or hold
            what is not finite.
    """
    scored = [_scored(i, *run) for i, run in enumerate(runs)]
    return interval_of(scored, shared, method, draws, confidence, seed, test_share)


def clustered_task_difference(
    runs: Sequence[Sequence[PairedRun | tuple[Any, Any, Any, Any]]],
    metric: str = "auroc",
    *,
    shared: bool,
    method: Method = "two-way",
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    test_share: float = 0.0,
) -> Interval:
    """First − second, the mean over runs and tasks, with an interval over runs and groups.

    A seed is drawn with all its tasks: what it does to them all is not averaged away. Groups are those of their task;
    a patient who is tested in two tasks counts as two. The tasks are taken as they are: the interval speaks of other
    seeds and patients, not of other tasks.

    Args:
        runs: of each seed the same tasks in the same order, each as `clustered_difference` wants its runs.
        metric: see there, as all that follows.
        shared: whether a group's name means, within a task, the same patient for all seeds.
        method: "two-way" or "pigeonhole".
        draws: how many resamples.
        confidence: of the interval.
        seed: of the resamples.
        test_share: tested images ÷ all others where the runs split the same images anew.

    Raises:
        ConfigurationError: seeds with different numbers of tasks, or none; and as `clustered_difference`.
    """
    if not runs or not runs[0] or len({len(tasks) for tasks in runs}) > 1:
        raise ConfigurationError(f"every seed must have the same tasks, got {[len(tasks) for tasks in runs]} of them")
    scored = [_together([scored_pair(i, task, metric) for task in tasks]) for i, tasks in enumerate(runs)]
    return interval_of(scored, shared, method, draws, confidence, seed, test_share)


def _scored(number: int, groups: Any, first: Any, second: Any) -> ScoredRun:
    names, (a, b) = np.asarray(groups), (np.asarray(values, np.float64) for values in (first, second))
    if names.ndim != 1 or a.shape != names.shape or b.shape != names.shape or names.dtype.kind not in "iuUS":
        raise ConfigurationError(
            f"run {number}: groups must be (n,) integers or strings, and each side have one value for each of the n "
            f"images, got {names.dtype} {names.shape}, {a.shape} and {b.shape}"
        )
    if len(np.unique(names)) < 2 or not np.isfinite(a - b).all():
        raise ConfigurationError(f"run {number}: an interval over groups needs two groups, and values that are finite")

    def score(weights: Array) -> Array:
        total = weights.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(total > 0, weights @ (a - b) / total, np.nan))

    return ScoredRun(names, score)


def _together(tasks: Sequence[ScoredRun]) -> ScoredRun:
    """Several tasks as one run, whose figure is the mean of theirs."""
    ends = np.cumsum([len(task.groups) for task in tasks])[:-1]

    def score(weights: Array) -> Array:
        parts = np.split(weights, ends, axis=1)
        return np.asarray(np.mean([task.score(part) for task, part in zip(tasks, parts, strict=True)], axis=0))

    return ScoredRun(np.concatenate([[f"{i}/{name}" for name in task.groups] for i, task in enumerate(tasks)]), score)
