"""Intervals of means over images and over tasks: beside those of metrics, and on data whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from maskaug.benchmarks.clustered_bootstrap import Method, clustered_difference
from maskaug.benchmarks.clustered_means import clustered_mean_difference, clustered_task_difference
from maskaug.benchmarks.intervals import paired_interval
from maskaug.benchmarks.statistics import iqm, mean_of_iqms
from maskaug.envs.errors import ConfigurationError

METHODS: tuple[Method, ...] = ("pigeonhole", "two-way")


def predictions(seed: int, n: int = 40, shift: float = 0.5) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    first, second = (1 / (1 + np.exp(-rng.normal(strength * (2 * labels - 1)))) for strength in (1 + shift, 1))
    return labels, np.arange(n) // 2, np.stack([1 - first, first], 1), np.stack([1 - second, second], 1)


# ---- means of images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shared", [False, True])
def test_being_right_image_by_image_is_accuracy(method: Method, shared: bool) -> None:
    runs = [predictions(seed) for seed in range(4)]
    right = [(g, *((p.argmax(1) == y).astype(float) for p in both)) for y, g, *both in runs]
    mine = clustered_mean_difference(right, shared=shared, method=method, draws=200)
    theirs = clustered_difference(runs, "accuracy", shared=shared, method=method, draws=200)
    assert (mine.value, mine.low, mine.high) == pytest.approx((theirs.value, theirs.low, theirs.high))


def test_images_of_one_group_count_as_one() -> None:
    rng = np.random.default_rng(0)
    # All runs say the same: what is not known is due to the groups.
    own = [rng.normal(0.1, 1, 20)] * 6
    alone = [(np.arange(20), d, np.zeros(20)) for d in own]
    # Ten times the images, and nothing more known.
    tenfold = [(np.repeat(np.arange(20), 10), np.repeat(d, 10), np.zeros(200)) for d in own]
    as_if = [(np.arange(200), np.repeat(d, 10), np.zeros(200)) for d in own]
    one, same, short = (clustered_mean_difference(runs, shared=True, draws=400) for runs in (alone, tenfold, as_if))
    assert (same.low, same.high) == pytest.approx((one.low, one.high))
    assert short.high - short.low < 0.8 * (one.high - one.low)


def test_without_noise_between_images_it_is_student_s_t_over_the_runs() -> None:
    means = np.array([0.1, 0.3, 0.25, 0.4])
    runs = [(np.arange(9), np.full(9, m), np.zeros(9)) for m in means]
    found = clustered_mean_difference(runs, shared=True, method="two-way")
    low, high = stats.t.interval(0.95, 3, means.mean(), stats.sem(means))
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    "change", [{"draws": 300}, {"confidence": 0.8}, {"seed": 1}, {"method": "pigeonhole"}, {"test_share": 0.25}]
)
def test_every_argument_changes_the_interval(change: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    runs = [(np.arange(20) % 7, rng.normal(size=20), rng.normal(size=20)) for _ in range(4)]
    base = {"shared": False, "draws": 200, "confidence": 0.95, "seed": 0}
    one, two = (clustered_mean_difference(runs, **kw) for kw in (base, {**base, **change}))
    assert one.value == two.value
    assert (one.low, one.high) != (two.low, two.high)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ((np.zeros(4, int), np.ones(4), np.ones(4)), "two groups"),
        ((np.arange(4), np.ones(3), np.ones(4)), "one value for each"),
        ((np.arange(4.0), np.ones(4), np.ones(4)), "integers or strings"),
        ((np.arange(4), np.full(4, np.nan), np.ones(4)), "finite"),
    ],
)
def test_what_does_not_fit_is_refused(run: Any, words: str) -> None:
    fine = (np.arange(4), np.ones(4), np.zeros(4))
    with pytest.raises(ConfigurationError, match=words):
        clustered_mean_difference([fine, run], shared=False)
    with pytest.raises(ConfigurationError, match="at least two"):
        clustered_mean_difference([fine], shared=False)


def test_where_training_sets_overlap_it_is_nadeau_and_bengio_s() -> None:
    means = [0.1, 0.3, 0.25, 0.4]
    runs = [(np.arange(9), np.full(9, m), np.zeros(9)) for m in means]
    found = clustered_mean_difference(runs, shared=True, test_share=0.25)
    assert (found.value, found.low, found.high) == pytest.approx(paired_interval(means, test_share=0.25))


# ---- means over tasks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_of_one_task_it_is_the_difference_of_that_task(method: Method) -> None:
    runs = [predictions(seed) for seed in range(4)]
    mine = clustered_task_difference([[run] for run in runs], shared=False, method=method, draws=200)
    # Which name is drawn how often depends on the names' order.
    named = [(y, np.array([f"0/{group}" for group in g]), *both) for y, g, *both in runs]
    theirs = clustered_difference(named, shared=False, method=method, draws=200)
    assert (mine.value, mine.low, mine.high) == pytest.approx((theirs.value, theirs.low, theirs.high))


def test_of_several_it_is_their_mean_and_more_certain() -> None:
    tasks = [[predictions(10 * task + seed) for seed in range(5)] for task in range(4)]
    runs = [[task[seed] for task in tasks] for seed in range(5)]
    found = clustered_task_difference(runs, shared=False, method="two-way", draws=300)
    alone = [clustered_difference(task, shared=False, method="two-way", draws=300) for task in tasks]
    assert found.value == pytest.approx(np.mean([i.value for i in alone]))
    assert found.high - found.low < min(i.high - i.low for i in alone)


def test_what_a_seed_does_to_all_tasks_is_not_averaged_away() -> None:
    # The first arm is perfect with odd seeds and the second with even ones, on every task alike.
    labels, groups = np.arange(20) % 2, np.arange(20)
    good, bad = np.eye(2)[labels], np.eye(2)[1 - labels]
    pairs = [(good, bad) if seed % 2 else (bad, good) for seed in range(4)]
    runs = [[(labels, groups, *pair)] * 6 for pair in pairs]
    found = clustered_task_difference(runs, "accuracy", shared=False, method="two-way")
    low, high = stats.t.interval(0.95, 3, 0, stats.sem([1, -1, 1, -1]))
    assert (found.value, found.low, found.high) == pytest.approx((0, low, high))


def test_seeds_must_have_the_same_tasks() -> None:
    one = predictions(0)
    with pytest.raises(ConfigurationError, match="same tasks"):
        clustered_task_difference([[one, one], [one]], shared=False)
    with pytest.raises(ConfigurationError, match="same tasks"):
        clustered_task_difference([], shared=False)


def test_over_tasks_overlapping_training_sets_are_counted_too() -> None:
    runs = [[predictions(10 * task + seed) for task in range(2)] for seed in range(4)]
    plain, wide = (clustered_task_difference(runs, shared=True, draws=200, test_share=s) for s in (0.0, 0.25))
    assert plain.value == wide.value
    assert wide.high - wide.low > plain.high - plain.low


def test_the_mean_of_tasks_iqms_weighs_tasks_alike() -> None:
    tasks = [np.array([0.9, 0.91, 0.92, 0.93]), np.array([0.6, 0.2])]
    assert mean_of_iqms(tasks) == pytest.approx((0.915 + 0.4) / 2)
    assert mean_of_iqms(np.array([[0.9, 0.2], [0.91, 0.6]])) == pytest.approx((0.905 + 0.4) / 2)
    assert mean_of_iqms(tasks) != pytest.approx(iqm(tasks))
