from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

from maskaug.benchmarks import clustered_bootstrap
from maskaug.benchmarks.clustered_bootstrap import Method, PairedRun, Run, clustered_difference, clustered_metric
from maskaug.benchmarks.intervals import paired_interval
from maskaug.benchmarks.statistics import Interval, verdict
from maskaug.benchmarks.weighted_metrics import METRICS
from maskaug.envs.errors import ConfigurationError

Array = npt.NDArray[np.float64]
METHODS: tuple[Method, ...] = ("two-way", "pigeonhole")


def length(interval: Interval) -> float:
    return interval.high - interval.low


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def probabilities(right: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> Array:
    """(n, 2): sure of the label where it is right, of the other class elsewhere."""
    return np.eye(2)[np.where(right, labels, 1 - labels)]


def toy(runs: int = 4, classes: int = 2, patients: int = 12) -> list[PairedRun]:
    """Three images of each patient, who is easy or hard in all runs; the first arm is a little better."""
    rng = np.random.default_rng(5)
    ease = rng.normal(1.2, 1, patients)
    made = []
    for _ in range(runs):
        groups = np.repeat(np.arange(patients), 3)
        labels = np.tile(np.arange(classes), patients * 3)[: patients * 3]
        logits = rng.normal(size=(2, len(labels), classes)) + ease[groups][None, :, None] * np.eye(classes)[labels]
        logits[0] += 0.5 * np.eye(classes)[labels]
        odds = np.exp(logits)
        first, second = odds / odds.sum(axis=2, keepdims=True)
        made.append(PairedRun(labels, groups, first, second))
    return made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", METRICS)
def test_the_value_is_the_mean_over_runs(metric: str, method: Method) -> None:
    runs = toy(classes=3)
    ones = np.ones((1, 36))
    first, second = (
        np.mean(
            [METRICS[metric](run.labels.astype(np.int64), probs, ones) for run, probs in zip(runs, arm, strict=True)]
        )
        for arm in ([run.first.astype(float) for run in runs], [run.second.astype(float) for run in runs])
    )
    found = clustered_difference(runs, metric, shared=True, method=method)
    assert found.value == pytest.approx(first - second, abs=1e-12)
    assert found.low < found.value < found.high
    single = clustered_metric([Run(*run[:3]) for run in runs], metric, shared=True, method=method)
    assert single.value == pytest.approx(first, abs=1e-12)
    assert 0 <= single.low < single.value < single.high <= 1


@pytest.mark.parametrize("shared", [True, False])
def test_the_pigeonhole_by_repeating_images(shared: bool) -> None:
    """Two patients alone are positive: one draw in about seven misses both, and the run is left out of it."""
    rng = np.random.default_rng(2)
    runs = []
    for r in range(3):
        groups = np.repeat(np.arange(15), 2)
        labels = (groups < 2).astype(np.int64)
        first, second = (
            np.stack([-x, x], axis=1) for x in (np.round(rng.normal(size=30) + a * labels, 1) for a in (2 + r / 2, 0))
        )
        runs.append(PairedRun(labels, groups, first, second))

    def area(scores: Any, labels: npt.NDArray[np.int64]) -> float:
        x, y = scores[labels == 1], scores[labels == 0]
        return float(np.mean(np.greater.outer(x, y) + np.equal.outer(x, y) / 2))

    values, as_zero, left_out = [], [], 0
    for _ in range(6000):
        drawn = rng.integers(15, size=(3, 15))
        known, all_runs = [], []
        for r in rng.integers(3, size=3):
            labels, groups, first, second = runs[r]
            images = np.concatenate([np.flatnonzero(groups == g) for g in drawn[0 if shared else r]])
            y = labels[images]
            left_out += not y.any()
            if y.any():
                known.append(area(first[images, 1], y) - area(second[images, 1], y))
            all_runs.append(known[-1] if y.any() else 0.0)
        if known:
            values.append(np.mean(known))
        as_zero.append(np.mean(all_runs))
    assert left_out > 1500
    expected = np.quantile(values, [0.05, 0.25, 0.75, 0.95])
    found = [
        end
        for c in (0.9, 0.5)
        for end in ends(clustered_difference(runs, shared=shared, method="pigeonhole", confidence=c, draws=6000))
    ]
    assert np.array(found)[[0, 2, 3, 1]] == pytest.approx(expected, abs=0.03)
    # To count such a run as "no difference" would give another interval.
    assert np.abs(np.quantile(as_zero, [0.05, 0.25, 0.75, 0.95]) - expected).max() > 0.08


def test_with_groups_of_their_own_the_variances_are_those_of_the_runs() -> None:
    rng = np.random.default_rng(0)
    runs = []
    for share in (0.5, 0.6, 0.9, 1.0):
        labels = np.arange(400) % 2
        first, second = (probabilities(rng.permutation(400) < 400 * s, labels) for s in (share, 0.6))
        runs.append(PairedRun(labels, np.arange(400), first, second))
    found = clustered_difference(runs, "accuracy", shared=False, method="two-way")
    assert (found.value, found.low, found.high) == pytest.approx(paired_interval([-0.1, 0.0, 0.3, 0.4]), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_patients_that_all_runs_share_are_no_new_patients(method: Method) -> None:
    """Patients differ and runs do not: four runs of ten patients say as little as one."""
    labels, groups = np.arange(40) % 2, np.repeat(np.arange(10), 4)
    right = groups % 2 == 0
    run = (labels, groups, probabilities(right, labels))
    shared = clustered_metric([run] * 4, "accuracy", shared=True, method=method, draws=4000)
    own = clustered_metric([run] * 4, "accuracy", shared=False, method=method, draws=4000)
    images = clustered_metric([(labels, np.arange(40), run[2])] * 4, "accuracy", shared=True, method=method, draws=4000)
    assert {shared.value, own.value, images.value} == {0.5}
    if method == "pigeonhole":
        # The mean of ten patients, binomial: 2.5 % are at most .2 (5.5 %) or .1 (1.1 %).
        assert ends(shared) == (0.2, 0.8)
        assert length(images) < 0.6 * length(shared)
    else:
        # The runs are equal, which leaves t(.975, groups − 1) · √(¼ ÷ (groups − 1)).
        assert length(shared) / 2 == pytest.approx(2.26216 * (0.25 / 9) ** 0.5, rel=0.03)
        assert length(images) / 2 == pytest.approx(2.02269 * (0.25 / 39) ** 0.5, rel=0.03)
    assert length(own) < 0.9 * length(shared)


@pytest.mark.parametrize("method", METHODS)
def test_names_of_groups_do_not_matter_and_their_meaning_does(method: Method) -> None:
    runs = toy()
    plain = clustered_difference(runs, shared=True, method=method)
    named = [run._replace(groups=np.array([f"patient {11 - g:02d}" for g in run.groups])) for run in runs]
    turned = clustered_difference(named, shared=True, method=method)
    assert turned.value == plain.value
    assert length(turned) == pytest.approx(length(plain), rel=0.1)
    renamed = [run._replace(groups=run.groups + 100 * r) for r, run in enumerate(runs)]
    assert ends(clustered_difference(renamed, shared=True, method=method)) != ends(plain)
    own = clustered_difference(runs, shared=False, method=method)
    assert clustered_difference(renamed, shared=False, method=method) == own != plain


@pytest.mark.parametrize("method", METHODS)
def test_every_argument_does_something(method: Method) -> None:
    runs = toy()
    plain = clustered_difference(runs, shared=True, method=method)
    assert clustered_difference(runs, "auroc", shared=True, method=method, seed=0, draws=2000) == plain
    assert ends(clustered_difference(runs, shared=True, method=method, seed=1)) != ends(plain)
    assert ends(clustered_difference(runs, shared=True, method=method, draws=500)) != ends(plain)
    half = clustered_difference(runs, shared=True, method=method, confidence=0.5)
    assert plain.low < half.low < half.high < plain.high
    assert len({clustered_difference(runs, metric, shared=True, method=method) for metric in METRICS}) == 4
    arms = [clustered_metric([(run.labels, run.groups, run[arm]) for run in runs], shared=True) for arm in (2, 3)]
    assert arms[0] != arms[1]
    same = clustered_difference([run._replace(second=run.first) for run in runs], shared=True, method=method)
    assert same == Interval(0, 0, 0)
    swapped = clustered_difference([run._replace(first=run[3], second=run[2]) for run in runs], shared=True)
    assert swapped.value == pytest.approx(-plain.value)


def test_methods_differ_and_the_first_is_the_default() -> None:
    found = {method: clustered_difference(toy(), shared=True, method=method) for method in METHODS}
    assert found["two-way"] == clustered_difference(toy(), shared=True) != found["pigeonhole"]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_chunks_do_not_change_a_bit(method: Method, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = clustered_difference(toy(), shared=shared, method=method)
    monkeypatch.setattr(clustered_bootstrap, "CHUNK", 777)
    assert clustered_difference(toy(), shared=shared, method=method) == plain


def no_difference(rng: np.random.Generator, runs: int, of_run: float, of_patient: float) -> list[PairedRun]:
    """Runs that test the same 40 patients, five images each; what decides which arm is right has mean 0."""
    patients, images = 40, 5
    labels, groups = np.arange(patients * images) % 2, np.repeat(np.arange(patients), images)
    patient = rng.normal(0, of_patient, patients)[groups]
    made = []
    for _ in range(runs):
        favour = rng.normal(0, of_run) + patient + rng.normal(0, 1, len(groups))
        made.append(
            PairedRun(labels, groups, probabilities(favour > -0.5, labels), probabilities(favour < 0.5, labels))
        )
    return made


@pytest.mark.parametrize(
    ("runs", "of_run", "of_patient"), [(10, 0.0, 1.0), (10, 0.3, 1.0), (4, 0.5, 0.0), (10, 0.0, 0.0)]
)
def test_without_a_difference_one_interval_in_twenty_says_there_is_one(
    runs: int, of_run: float, of_patient: float
) -> None:
    rng = np.random.default_rng(1)
    said = {"two-way": 0, "pigeonhole": 0, "images": 0}
    for _ in range(300):
        paired = no_difference(rng, runs, of_run, of_patient)
        for method in METHODS:
            found = clustered_difference(paired, "accuracy", shared=True, method=method, draws=200)
            said[method] += found.excludes(0)
        images = [run._replace(groups=np.arange(len(run.groups))) for run in paired]
        said["images"] += clustered_difference(images, "accuracy", shared=False, draws=200).excludes(0)
    print(said)
    # It should be 15. With another seed, 1 500 repetitions: two-way 5.1, 6.3, 5.3, 1.7 %; pigeonhole 6.0, 6.8, 16.3,
    # 0.1 %, since it counts what is due to neither of them threefold, and four runs as if they were many.
    assert 3 <= said["two-way"] <= 27
    if of_patient:
        # Images are not independent: to draw them one by one says "better" or "worse" far too often.
        assert said["images"] > 45
        assert 3 <= said["pigeonhole"] <= 35
    elif of_run:
        assert said["pigeonhole"] > 27
    else:
        assert said["pigeonhole"] < 3


@pytest.mark.parametrize("method", METHODS)
def test_a_difference_that_is_there_is_found(method: Method) -> None:
    runs = toy(runs=8, patients=60)
    found = clustered_difference(runs, shared=True, method=method)
    assert verdict(found) == "better"
    assert verdict(clustered_difference([run._replace(first=run[3], second=run[2]) for run in runs], shared=True)) == (
        "worse"
    )


def test_overlapping_training_sets_make_intervals_longer_and_leave_the_value() -> None:
    plain, wide, wider = (clustered_difference(toy(), shared=True, test_share=s) for s in (0.0, 0.25, 0.5))
    assert plain.value == wide.value == wider.value
    assert length(plain) < length(wide) < length(wider)
    metric = [clustered_metric([run[:3] for run in toy()], shared=True, test_share=s) for s in (0.0, 0.25)]
    assert length(metric[0]) < length(metric[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_share": -0.1}, "test_share=-0.1 must be"),
        ({"test_share": float("inf")}, "test_share=inf must be"),
        ({"test_share": 0.25, "method": "pigeonhole"}, "corrects method='two-way'"),
    ],
)
def test_a_share_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        clustered_difference(toy(), shared=True, **changes)


def test_a_metric_stays_between_0_and_1() -> None:
    labels, groups = np.arange(40) % 2, np.repeat(np.arange(10), 4)
    for wrong, ends_there in ((groups == 3, "high"), (groups != 3, "low")):
        right = (labels, groups, probabilities(~wrong, labels))
        all_right = (labels, groups, probabilities(np.full(40, ends_there == "high"), labels))
        found = clustered_metric([right, all_right, all_right], "accuracy", shared=True)
        assert getattr(found, ends_there) == (1 if ends_there == "high" else 0)
        against_nothing = [
            (*run, probabilities(np.full(40, ends_there != "high"), labels)) for run in (right, all_right)
        ]
        assert abs(getattr(clustered_difference(against_nothing, "accuracy", shared=True), ends_there)) > 1


def one(**changes: Any) -> PairedRun:
    return toy(runs=1)[0]._replace(**changes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (one(first=np.zeros((36, 3))), r"run 1: probabilities .*\(36, 3\), \(36, 2\)"),
        (one(first=np.zeros((36, 1)), second=np.zeros((36, 1))), "two classes or more"),
        (one(first=np.zeros(36), second=np.zeros(36)), "two classes or more"),
        (one(labels=np.zeros(35, np.int64)), "run 1: labels must be 36 integers"),
        (one(labels=np.zeros(36)), "run 1: labels must be 36 integers"),
        (one(groups=np.zeros(35, np.int64)), "groups as many"),
        (one(groups=np.zeros(36)), "groups as many"),
        (one(groups=np.zeros(36, np.int64)), "at least two groups"),
        (one(groups=np.array(["a", "b"] * 18)), "name them alike"),
        (one(labels=np.arange(36) % 3), "labels must be 0 to 1"),
        (one(labels=np.arange(36) % 2 - 1), "labels must be 0 to 1"),
        (one(first=np.full((36, 2), np.nan)), "finite"),
        (one(labels=np.zeros(36, np.int64)), "run 1: no test image of class 1, so that its auroc"),
    ],
)
def test_runs_that_do_not_fit_are_refused(wrong: PairedRun, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        clustered_difference([one(), wrong], shared=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "loss"}, "metric='loss' must be one of auroc, accuracy"),
        ({"method": "jackknife"}, "method='jackknife' must be"),
        ({"draws": 99}, "draws=99 must be at least 100"),
        ({"confidence": 1.0}, "confidence=1.0 between 0 and 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        clustered_difference(toy(), **({"shared": True} | change))
    with pytest.raises(ConfigurationError, match=message):
        clustered_metric([run[:3] for run in toy()], **({"shared": True} | change))


@pytest.mark.parametrize("runs", [[], toy(runs=1)])
def test_one_run_says_nothing_about_others(runs: list[PairedRun]) -> None:
    with pytest.raises(ConfigurationError, match=f"at least two, got {len(runs)}; run more seeds"):
        clustered_difference(runs, shared=True)


@pytest.mark.parametrize("method", METHODS)
def test_classes_of_one_patient_each_give_no_interval(method: Method) -> None:
    groups = np.repeat(np.arange(3), 4)
    run = (groups, groups, np.eye(3)[groups] * 0.8 + 0.1)
    with pytest.raises(ConfigurationError, match=r"of 2000 draws miss a class: it is in too few groups"):
        clustered_metric([run] * 3, shared=True, method=method)
    if method == "two-way":
        # The variance within each run is needed.
        with pytest.raises(ConfigurationError, match="too few groups"):
            clustered_metric([run] * 3, shared=False, method=method)
    assert clustered_metric([run] * 3, "accuracy", shared=True, method=method) == Interval(1, 1, 1)


def test_the_accuracy_needs_no_second_class() -> None:
    wrong = one(labels=np.zeros(36, np.int64))
    assert clustered_difference([one(), wrong], "accuracy", shared=True).value != 0


def test_several_classifiers_of_a_run_have_the_mean_of_their_metrics() -> None:
    rng = np.random.default_rng(3)
    runs, alone = [], []
    for _ in range(3):
        labels = np.arange(30) % 3
        first, second = rng.dirichlet(np.ones(3), (4, 30)), rng.dirichlet(np.ones(3), (2, 30))
        runs.append((labels, np.arange(30) // 2, first, second))
        alone.append(
            np.mean([roc_auc_score(labels, p, multi_class="ovr") for p in first])
            - np.mean([roc_auc_score(labels, p, multi_class="ovr") for p in second])
        )
    found = clustered_difference(runs, shared=False, draws=200)
    assert found.value == pytest.approx(np.mean(alone))
    averaged = clustered_difference([(y, g, a.mean(0), b.mean(0)) for y, g, a, b in runs], shared=False, draws=200)
    assert averaged.value != pytest.approx(found.value)
    # One classifier is one, whichever way it is given; two that are alike count as one.
    one = clustered_difference([(y, g, a[0], b[0]) for y, g, a, b in runs], shared=False, draws=200)
    same = clustered_difference([(y, g, a[[0, 0]], b[:1]) for y, g, a, b in runs], shared=False, draws=200)
    assert (same.value, same.low, same.high) == pytest.approx((one.value, one.low, one.high))
    with pytest.raises(ConfigurationError, match="images, classes"):
        clustered_difference([(y, g, a[:0], b) for y, g, a, b in runs], shared=False)
