"""How sure a classifier's metric, or the difference between two arms, is: over runs and over patients at once.

A run is one repetition: a seed or split, its training, and its test split's probabilities. Images of one patient, one
study or one group of near-duplicates are right or wrong together, and a patient that is tested in several runs is easy
or hard in all of them. Counting images as independent makes intervals too short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from maskaug.benchmarks.statistics import Interval, bootstrap_counts, check_draws, percentile_interval
from maskaug.benchmarks.weighted_metrics import METRICS, Array, Labels, Measure
from maskaug.envs.errors import ConfigurationError

Method = Literal["two-way", "pigeonhole"]

#: numbers in the largest array of weights: 32 MB.
CHUNK = 2**22


class PairedRun(NamedTuple):
    """What two arms said of one run's n test images; a plain tuple will do as well.

    Attributes:
        labels: (n,) integers, 0 … C − 1.
        groups: (n,) integers or strings: the patient, study or near-duplicate group of each image.
        first: (n, C) probabilities of the first arm; or (D, n, C), those of D classifiers, whose metrics are averaged.
        second: likewise of the second.
    """

    labels: npt.NDArray[np.integer[Any]]
    groups: npt.NDArray[Any]
    first: npt.NDArray[np.floating[Any]]
    second: npt.NDArray[np.floating[Any]]


class Run(NamedTuple):
    """What one arm said of one run's n test images; see `PairedRun`."""

    labels: npt.NDArray[np.integer[Any]]
    groups: npt.NDArray[Any]
    probabilities: npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class ScoredRun:
    """One run: its groups (n,), and its figure: weights (B, n) → (B,), NaN where a class has no weight."""

    groups: npt.NDArray[Any]
    score: Callable[[Array], Array]


def clustered_difference(
    runs: Sequence[PairedRun | tuple[Any, Any, Any, Any]],
    metric: str = "auroc",
    *,
    shared: bool,
    method: Method = "two-way",
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    test_share: float = 0.0,
) -> Interval:
    """The first arm − the second, mean over the runs, with an interval over runs and groups.

    "two-way": value ± Student's t · √V with V = V(runs) + V(groups) − V(groups within runs), and at least the larger of
    the first two. Cameron, Gelbach & Miller, "Robust inference with multiway clustering", Journal of Business &
    Economic Statistics 29(2), 2011. V(runs) is that of the mean over runs; the others are bootstrapped, a group that is
    tested in several runs (`shared`) with one weight in all of them for V(groups). Degrees of freedom are
    Satterthwaite's, V² ÷ (V(runs)² ÷ (runs − 1) + V(groups)² ÷ (groups − 1)).

    "pigeonhole": in every draw both runs and groups are drawn with replacement, independently, and an image's weight
    is the product of how often its run and its group were drawn; the interval lies between the percentiles. Owen, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007. It counts threefold what is due neither to the run
    nor to the group alone: too long where that dominates, and too short with few runs that differ.

    Without a true difference a 95 % interval should leave 0 outside in 5 % of cases. Simulated as in the tests, two-way
    and pigeonhole: 5 and 6 % where patients differ, 6 and 7 % where runs do too (ten runs of 40 patients); 5 and 16 %
    where four runs differ and patients do not; 2 and 0.1 % where neither does.

    Neither can know that training sets overlap. With splits of one data set give `test_share`: V(runs) is then
    s²·(1/n + test ÷ train) instead of s²/n (Nadeau & Bengio, Machine Learning 52, 2003, eq. 9), as `paired_interval`'s.

    A run in which a class drew no weight has no such metric (accuracy has) and is left out of that draw.

    Args:
        runs: at least two independent repetitions, both arms tested on the same images. Draws of labels within one
            split are not independent: they are one run, (D, n, C). The mean of their probabilities would be another
            classifier, which has seen more labels than any of them.
        metric: "auroc", "accuracy", "balanced_accuracy" or "macro_f1", see `weighted_metrics`.
        shared: whether a group's name means the same patient in all runs, as in splits of one real data set. False:
            every run has patients of its own, as where every seed makes its own data.
        method: see above. Choose it before looking.
        draws: how many resamples.
        confidence: of the interval.
        seed: of the resamples; the same seed draws the same runs and groups for all arms and metrics.
        test_share: tested images ÷ all others where the runs split the same images anew: 1 ÷ (k − 1) with k folds; 0
            where each has images of its own. "two-way" only.

    Raises:
        ConfigurationError: fewer than two runs, or than two groups in one; arrays that do not fit together; a class
            that a run does not test; or one in so few groups that most draws miss it.
    """
    scored = [scored_pair(i, run, metric) for i, run in enumerate(runs)]
    return interval_of(scored, shared, method, draws, confidence, seed, test_share)


def clustered_metric(
    runs: Sequence[Run | tuple[Any, Any, Any]],
    metric: str = "auroc",
    *,
    shared: bool,
    method: Method = "two-way",
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    test_share: float = 0.0,
) -> Interval:
    """One arm's metric, mean over the runs, with an interval over runs and groups.

    Arguments and errors as those of `clustered_difference`; the ends stay within 0 and 1, as the metrics do. Two arms
    whose intervals overlap may differ all the same: compare them with `clustered_difference`.
    """
    measure = _measure(metric)
    scored = []
    for i, run in enumerate(runs):
        labels, groups, (probabilities,) = _checked(i, metric, run[0], run[1], run[2:])
        scored.append(ScoredRun(groups, partial(measure, labels, probabilities)))
    found = interval_of(scored, shared, method, draws, confidence, seed, test_share)
    return Interval(found.value, max(0.0, found.low), min(1.0, found.high))


def clusters_note(what: str, shared: bool, test_share: float) -> str:
    """A sentence for people: how intervals of `what` are clustered, and what they know of shared training images.

    >>> clusters_note("differences", False, 0.0)
    'Intervals of differences are clustered by seed, each with images of its own, and image.'
    """
    clusters = (
        "by seed and by group of the one data set" if shared else "by seed, each with images of its own, and image"
    )
    text = f"Intervals of {what} are clustered {clusters}"
    if test_share:
        return (
            f"{text}; since folds share training images, the variance over n of them counts 1/n + {test_share:.2f} in "
            "place of 1/n (Nadeau & Bengio 2003)."
        )
    return text + ("; that training sets overlap they do not know." if shared else ".")


def scored_pair(number: int, run: PairedRun | tuple[Any, Any, Any, Any], metric: str) -> ScoredRun:
    """Run `number`, its figure being the difference of the metric; arguments and errors of `clustered_difference`."""
    labels, groups, (first, second) = _checked(number, metric, run[0], run[1], run[2:])
    return ScoredRun(groups, partial(_difference, _measure(metric), labels, first, second))


def _difference(measure: Measure, labels: Labels, first: Array, second: Array, weights: Array) -> Array:
    return measure(labels, first, weights) - measure(labels, second, weights)


def interval_of(
    runs: Sequence[ScoredRun],
    shared: bool,
    method: Method,
    draws: int,
    confidence: float,
    seed: int,
    test_share: float = 0.0,
) -> Interval:
    """What `clustered_difference` says of its figures, said of any others."""
    if len(runs) < 2:
        raise ConfigurationError(f"an interval over runs needs at least two, got {len(runs)}; run more seeds or splits")
    if method not in ("two-way", "pigeonhole"):
        raise ConfigurationError(f"method={method!r} must be 'two-way' or 'pigeonhole'")
    if not 0 <= test_share < math.inf:
        raise ConfigurationError(f"test_share={test_share} must be a finite number of at least 0")
    if test_share and method != "two-way":
        raise ConfigurationError(f"test_share={test_share} corrects method='two-way'; leave it out, or use that")
    kinds = {run.groups.dtype.kind for run in runs}
    if len(kinds) > 1:
        raise ConfigurationError("groups are integers in some runs and strings in others; name them alike in all")
    check_draws(draws, confidence)
    points = np.array([run.score(np.ones((1, len(run.groups))))[0] for run in runs])
    value = float(points.mean())
    of_runs, of_groups, of_cells = np.random.SeedSequence(seed).spawn(3)
    if method == "pigeonhole":
        values, _ = _draw_groups(runs, shared, draws, of_groups)
        weights = bootstrap_counts(np.random.default_rng(of_runs), draws, len(runs))
        return percentile_interval(value, _mean(values, weights), confidence)
    values, sizes = _draw_groups(runs, False, draws, of_cells)
    for known in np.isfinite(values).T:
        _check_known(known)
    by_run = float(points.var(ddof=1)) * (1 / len(runs) + test_share)
    by_cell = float(np.sum(np.nanvar(values, axis=0, ddof=1) * _unbiased(sizes))) / len(runs) ** 2
    by_group, groups = by_cell, sum(sizes)
    if shared:
        values, sizes = _draw_groups(runs, True, draws, of_groups)
        by_group = float(_mean(values, np.ones_like(values)).var(ddof=1) * _unbiased(sizes)[0])
        groups = sizes[0]
    variance = max(by_run + by_group - by_cell, by_run, by_group)
    if variance == 0:
        return Interval(value, value, value)
    freedom = variance**2 / (by_run**2 / (len(runs) - 1) + by_group**2 / (groups - 1))
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance)
    return Interval(value, value - reach, value + reach)


def _unbiased(sizes: list[int]) -> Array:
    """What the bootstrap's variance of a mean of so many groups falls short by."""
    n = np.array(sizes, np.float64)
    return n / (n - 1)


def _draw_groups(
    runs: Sequence[ScoredRun], shared: bool, draws: int, seeds: np.random.SeedSequence
) -> tuple[Array, list[int]]:
    """Every run's figure in every draw of groups, (draws, runs), NaN where a class has no weight; how many groups.

    The groups are one population that all runs share, or each run has its own.
    """
    if shared:
        names, flat = np.unique(np.concatenate([run.groups for run in runs]), return_inverse=True)
        codes = np.split(flat, np.cumsum([len(run.groups) for run in runs])[:-1])
        sizes = [len(names)]
    else:
        codes = [np.unique(run.groups, return_inverse=True)[1] for run in runs]
        sizes = [int(code.max()) + 1 for code in codes]
    # A generator for every population, so that what is drawn depends neither on the chunks nor on the other runs.
    rngs = [np.random.default_rng(seed) for seed in seeds.spawn(len(sizes))]
    values = np.empty((draws, len(runs)))
    rows = max(1, CHUNK // max(sum(sizes), *(len(code) for code in codes)))
    for start in range(0, draws, rows):
        part = slice(start, min(start + rows, draws))
        counts = [bootstrap_counts(rng, part.stop - start, size) for rng, size in zip(rngs, sizes, strict=True)]
        for i, (run, code) in enumerate(zip(runs, codes, strict=True)):
            values[part, i] = run.score(counts[0 if shared else i][:, code])
    return values, sizes


def _mean(values: Array, weights: Array) -> Array:
    """Weighted mean over the runs whose value is known, of the draws that have one: (at most draws,)."""
    known = np.isfinite(values)
    total: Array = np.sum(weights * known, axis=1)
    some = total > 0
    _check_known(some)
    mean: Array = np.sum(weights * np.where(known, values, 0), axis=1)[some] / total[some]
    return mean


def _check_known(known: npt.NDArray[np.bool_]) -> None:
    if known.mean() < 0.5:
        raise ConfigurationError(
            f"{known.size - known.sum()} of {known.size} draws miss a class: it is in too few groups for an interval; "
            "test more groups, or compare accuracy"
        )


def _measure(metric: str) -> Measure:
    if metric not in METRICS:
        raise ConfigurationError(f"metric={metric!r} must be one of {', '.join(METRICS)}")
    return partial(_mean_of, METRICS[metric])


def _mean_of(measure: Measure, labels: Labels, probabilities: Array, weights: Array) -> Array:
    """The mean over D of the metric of each, (D, n, C) probabilities: (B,)."""
    found: Array = np.mean([measure(labels, one, weights) for one in probabilities], axis=0)
    return found


def _checked(
    number: int, metric: str, labels: Any, groups: Any, probabilities: Sequence[Any]
) -> tuple[Labels, npt.NDArray[Any], list[Array]]:
    y, g, arms = np.asarray(labels), np.asarray(groups), [np.asarray(p, np.float64) for p in probabilities]
    shape = arms[0].shape[-2:]
    if any(p.ndim not in (2, 3) or p.shape[-2:] != shape or not p.size for p in arms) or shape[1] < 2:
        raise ConfigurationError(
            f"run {number}: probabilities must be (images, classes), two classes or more, the same of both arms, or "
            f"(classifiers, images, classes), got {[p.shape for p in arms]}"
        )
    arms = [p.reshape(-1, *shape) for p in arms]
    if y.shape != shape[:1] or g.shape != shape[:1] or y.dtype.kind not in "iu" or g.dtype.kind not in "iU":
        raise ConfigurationError(
            f"run {number}: labels must be {shape[0]} integers and groups as many integers or strings, got {y.dtype} "
            f"{y.shape} and {g.dtype} {g.shape}"
        )
    if len(np.unique(g)) < 2:
        raise ConfigurationError(f"run {number}: an interval over groups needs at least two groups of test images")
    if y.min() < 0 or y.max() >= shape[1] or not all(np.isfinite(p).all() for p in arms):
        raise ConfigurationError(
            f"run {number}: labels must be 0 to {shape[1] - 1}, one for each column of probabilities, and these finite"
        )
    missing = sorted(set(range(shape[1])) - set(y.tolist()))
    if missing and metric != "accuracy":
        raise ConfigurationError(
            f"run {number}: no test image of class {missing[0]}, so that its {metric} is unknown; split by class, or "
            "compare accuracy"
        )
    return y.astype(np.int64), g, arms
