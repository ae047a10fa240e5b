from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from maskaug.benchmarks.intervals import paired_interval
from maskaug.benchmarks.statistics import (
    Interval,
    bootstrap_counts,
    check_draws,
    iqm,
    percentile_interval,
    probability_of_improvement,
    stratified_bootstrap,
    verdict,
)
from maskaug.envs.errors import ConfigurationError

Array = npt.NDArray[np.float64]


def arms() -> tuple[Array, Array]:
    """(10, 3) and (8, 3); rounded, so that there are ties."""
    rng = np.random.default_rng(2021)
    first = np.round(rng.normal([0.6, 0.7, 0.8], 0.05, (10, 3)), 2)
    second = np.round(rng.normal([0.58, 0.7, 0.75], 0.05, (8, 3)), 2)
    return first, second


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def test_an_interval_excludes_what_lies_outside() -> None:
    interval = Interval(0.02, -0.01, 0.05)
    assert [interval.excludes(x) for x in (-0.02, -0.01, 0.0, 0.05, 0.06)] == [True, False, False, False, True]
    assert Interval(*paired_interval([0.01, 0.03, 0.02])).excludes(0.05)


@pytest.mark.parametrize("wrong", [(math.nan, 0, 1), (0, -math.inf, 1), (0, 0, math.nan), (0.5, 1, 0)])
def test_what_is_no_interval_is_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigurationError, match="is no interval"):
        Interval(*wrong)


def test_no_better_unless_the_interval_says_so() -> None:
    assert verdict(Interval(0.3, -0.001, 0.6)) == "not established"
    assert verdict(Interval(0.0, 0.0, 0.0)) == "not established"
    assert verdict(Interval(0.3, 0.0, 0.6)) == "not established"
    assert verdict(Interval(0.3, 0.001, 0.6)) == "better"
    assert verdict(Interval(-0.3, -0.6, -0.001)) == "worse"
    assert verdict(Interval(0.3, 0.001, 0.6), larger_is_better=False) == "worse"
    assert verdict(Interval(-0.3, -0.6, -0.001), larger_is_better=False) == "better"
    assert verdict(Interval(0.6, 0.4, 0.8), 0.5) == "not established"
    assert verdict(Interval(0.3, 0.1, 0.49), 0.5) == "worse"


@pytest.mark.parametrize(
    ("interval", "arguments", "text"),
    [
        (Interval(0.03, -0.003, 0.063), {}, "+.030 (−.003 … +.063)"),
        (Interval(-1.5, -10.25, 0.0), {}, "−1.500 (−10.250 … +.000)"),
        (Interval(0.935, 0.925, 1.0), {"signed": False}, ".935 (.925 … 1.000)"),
        (Interval(-0.027, -0.04, 10.04), {"signed": False, "digits": 1}, "−.0 (−.0 … 10.0)"),
        (Interval(0.03, -2, 20.3), {"digits": 0}, "+0 (−2 … +20)"),
    ],
)
def test_intervals_are_written_as_in_the_results(interval: Interval, arguments: dict[str, Any], text: str) -> None:
    assert interval.text(**arguments) == text


def test_the_interquartile_mean_by_hand_and_by_scipy() -> None:
    assert iqm(np.array([[1.0, 100.0], [-50.0, 3.0]])) == 2
    first, _ = arms()
    for n in range(1, 11):
        assert iqm(first[:n]) == pytest.approx(stats.trim_mean(first[:n], 0.25, axis=None), abs=1e-15)
    ragged = [np.array([1.0, 2.0, 9.0]), np.array([-7.0, 3.0, 4.0, 5.0, 8.0])]
    assert iqm(ragged) == np.mean([2, 3, 4, 5])


# Printed by this script, run once beside the unpacked sdist of rliable 1.2.0, with arch 8.0.0, numpy 2.4.6 and
# scipy 1.17.1 (pip install absl-py numpy scipy arch; python reference.py). Its intervals are of 50 000 draws.
#
#   import sys
#   import arch.bootstrap, numpy as np
#   for name in ("IIDBootstrap", "IndependentSamplesBootstrap"):  # arch 8 has no random_state, rliable does not use it
#       base = getattr(arch.bootstrap, name)
#       setattr(arch.bootstrap, name, type(name, (base,), {"__init__":
#           lambda self, *args, random_state=None, base=base, **kwargs: base.__init__(self, *args, **kwargs)}))
#   sys.path.insert(0, "rliable-1.2.0/rliable")
#   import library, metrics
#   rng = np.random.default_rng(2021)
#   first = np.round(rng.normal([0.6, 0.7, 0.8], 0.05, (10, 3)), 2)
#   second = np.round(rng.normal([0.58, 0.7, 0.75], 0.05, (8, 3)), 2)
#   print(metrics.aggregate_iqm(first), metrics.probability_of_improvement(first, second))
#   np.random.seed(0)
#   print(library.get_interval_estimates(
#       {"x": first}, lambda s: np.array([metrics.aggregate_iqm(s)]))[1]["x"].ravel())
#   print(library.get_interval_estimates(
#       {"x": (first, second)}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]))[1]["x"].ravel())
RLIABLE_IQM = 0.686875
RLIABLE_IQM_ENDS = (0.668125, 0.704375)
RLIABLE_PROBABILITY = 0.5708333333333333
RLIABLE_PROBABILITY_ENDS = (0.41041667, 0.72916667)


def test_rliable_says_the_same() -> None:
    first, second = arms()
    found = stratified_bootstrap(first, draws=10_000)
    assert found.value == pytest.approx(RLIABLE_IQM, abs=1e-12)
    assert ends(found) == pytest.approx(RLIABLE_IQM_ENDS, abs=8e-4)
    improvement = probability_of_improvement(first, second, draws=20_000)
    assert improvement.value == pytest.approx(RLIABLE_PROBABILITY, abs=1e-12)
    assert ends(improvement) == pytest.approx(RLIABLE_PROBABILITY_ENDS, abs=6e-3)


def test_scipy_gives_the_same_interval_of_tasks_with_different_numbers_of_runs() -> None:
    first, _ = arms()
    tasks = [first[:, 0], first[:4, 1], first[:7, 2] + 1]

    def spread(tasks: list[Array]) -> float:
        return float(np.mean([np.mean(task) for task in tasks]))

    expected = stats.bootstrap(
        tasks, lambda *tasks: spread(list(tasks)), n_resamples=9999, method="percentile", vectorized=False, rng=1
    ).confidence_interval
    found = stratified_bootstrap(tasks, spread, draws=9999)
    assert found.value == spread(tasks)
    assert ends(found) == pytest.approx((expected.low, expected.high), abs=1.5e-3)
    # Resampling all runs together would mix the tasks.
    pooled = stats.bootstrap((np.concatenate(tasks),), np.mean, method="percentile", rng=1).confidence_interval
    assert pooled.high - pooled.low > 3 * (found.high - found.low)


def test_the_probability_of_improvement_is_mann_whitneys_u() -> None:
    first, second = arms()
    for x, y in ((first, second), (second, first), (first[:, :1], second[:, 1:2])):
        expected = [stats.mannwhitneyu(x[:, t], y[:, t]).statistic / (len(x) * len(y)) for t in range(x.shape[1])]
        assert probability_of_improvement(x, y).value == pytest.approx(np.mean(expected), abs=1e-12)
    assert probability_of_improvement(first, first).value == 0.5
    assert probability_of_improvement([first[:, 0], first[:3, 1]], [second[:4, 0], second[:, 1]]).value != 0.5


def test_the_interval_of_the_probability_of_improvement_is_scipys() -> None:
    first, second = arms()
    x, y = first[:, 0], second[:, 0]

    def probability(x: Array, y: Array) -> float:
        return float(np.mean(np.greater.outer(x, y) + np.equal.outer(x, y) / 2))

    expected = stats.bootstrap(
        (x, y), probability, n_resamples=4000, method="percentile", vectorized=False, rng=1
    ).confidence_interval
    assert ends(probability_of_improvement(x[:, None], y[:, None], draws=9999)) == pytest.approx(
        (expected.low, expected.high), abs=0.02
    )
    x = x[:8]
    expected = stats.bootstrap(
        (x, y), probability, n_resamples=4000, method="percentile", vectorized=False, paired=True, rng=1
    ).confidence_interval
    assert ends(probability_of_improvement(x[:, None], y[:, None], draws=9999, paired=True)) == pytest.approx(
        (expected.low, expected.high), abs=0.02
    )


def test_seeds_of_a_pair_are_drawn_together() -> None:
    seeds = np.linspace(0, 1, 12)[:, None]
    apart = probability_of_improvement(seeds + 0.01, seeds)
    together = probability_of_improvement(seeds + 0.01, seeds, paired=True)
    assert apart.value == together.value
    assert verdict(apart, 0.5) == "not established"
    assert verdict(together, 0.5) == "better"


BOOTSTRAPS: list[Callable[..., Interval]] = [
    lambda **arguments: stratified_bootstrap(arms()[0], **arguments),
    lambda **arguments: probability_of_improvement(*arms(), **arguments),
]


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_every_argument_of_a_bootstrap_does_something(bootstrap: Callable[..., Interval]) -> None:
    plain = bootstrap()
    assert bootstrap(seed=0, draws=2000, confidence=0.95) == plain
    assert ends(bootstrap(seed=1)) != ends(plain)
    assert ends(bootstrap(draws=150)) != ends(plain)
    half = bootstrap(confidence=0.5)
    assert plain.low < half.low < half.high < plain.high
    assert {bootstrap(seed=1).value, bootstrap(draws=150).value, half.value} == {plain.value}
    for wrong in ({"draws": 99}, {"confidence": 1.0}, {"confidence": 0.0}, {"confidence": math.nan}):
        with pytest.raises(ConfigurationError, match=r"must be at least 100.*between 0 and 1"):
            bootstrap(**wrong)


def test_the_statistic_gets_scores_in_their_own_form() -> None:
    first, _ = arms()
    forms: set[tuple[Any, ...]] = set()

    def form(scores: Any) -> float:
        forms.add((type(scores), *np.shape(scores)) if isinstance(scores, np.ndarray) else (type(scores), len(scores)))
        return 0.0

    stratified_bootstrap(first, form)
    assert forms == {(np.ndarray, 10, 3)}
    stratified_bootstrap(list(first.T), form)
    assert forms == {(np.ndarray, 10, 3), (list, 3)}
    assert stratified_bootstrap(first, np.mean).value == first.mean() != stratified_bootstrap(first).value


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros(5), r"scores\[:, None\]"),
        (np.zeros((1, 3)), "at least 2 runs each"),
        ([], "at least 2 runs each"),
        ([np.zeros(3), np.zeros(1)], "at least 2 runs each"),
        ([np.zeros((3, 2))], "at least 2 runs each"),
        (np.array([[0.0], [math.nan]]), "must be finite"),
    ],
)
def test_scores_that_give_no_interval_are_refused(scores: Any, message: str) -> None:
    good = np.zeros((3, 1))
    for call in (stratified_bootstrap, lambda s: probability_of_improvement(s, good)):
        with pytest.raises(ConfigurationError, match=message):
            call(scores)


def test_what_cannot_be_paired_is_refused() -> None:
    first, second = arms()
    with pytest.raises(ConfigurationError, match="same tasks and seeds"):
        probability_of_improvement(first, second, paired=True)
    with pytest.raises(ConfigurationError, match="3 tasks and the second 2"):
        probability_of_improvement(first, second[:, :2])
    with pytest.raises(ConfigurationError, match="at least 1 runs"):
        iqm(np.zeros((0, 2)))


def test_counts_are_those_of_drawing_with_replacement() -> None:
    counts = bootstrap_counts(np.random.default_rng(0), 4000, 5)
    assert counts.shape == (4000, 5)
    assert set(counts.sum(axis=1)) == {5}
    # Multinomial: mean 1, variance 1 − 1/5, covariance −1/5.
    assert counts.mean(axis=0) == pytest.approx(np.ones(5), abs=0.06)
    assert np.cov(counts.T) == pytest.approx(np.eye(5) - 0.2, abs=0.06)
    rng = np.random.default_rng(0)
    parts = [bootstrap_counts(rng, draws, 5) for draws in (1, 1499, 2500)]
    assert np.array_equal(np.concatenate(parts), counts)


def test_percentiles_are_numpys() -> None:
    values = np.arange(101.0)
    found = percentile_interval(7, values, 0.9)
    assert (found.value, found.low, found.high) == pytest.approx((7, 5, 95))
    check_draws(100, 0.5)
