"""Arms that may be compared, seed by seed and image by image: what each comes to, and how two of them differ."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from maskaug.benchmarks.clustered_bootstrap import Method, Run, clustered_difference, clustered_metric
from maskaug.benchmarks.statistics import FEWEST, Interval, probability_of_improvement
from maskaug.benchmarks.tasks import PREDICTIONS, check_pair
from maskaug.envs.errors import ConfigurationError

METRIC = "auroc"
#: chosen before anything was looked at: of the two it is nearer to its confidence with few runs.
METHOD: Method = "two-way"
DRAWS = 1000
#: said below every table of comparisons.
ALONE = "Each interval stands alone: of twenty comparisons of equals one would be called better or worse."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """One arm of one seed that is done.

    Attributes:
        task: its name.
        seed: its repetition.
        arm: its name.
        figures: of results.json.
        folder: its cell's.
    """

    task: str
    seed: int
    arm: str
    figures: Mapping[str, float]
    folder: Path

    @functools.cached_property
    def predictions(self) -> dict[str, npt.NDArray[Any]]:
        """What predictions.safetensors holds: "labels" and "groups" (N,), and probabilities."""
        return load_file(self.folder / PREDICTIONS)


R = TypeVar("R", bound=Scored)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paired(abc.ABC, Generic[R]):
    """Arms with the same images, labels and updates, which are compared with each other and with nothing else.

    Attributes:
        task: its name.
        runs: arm → seed → result.
        shared: whether all seeds test images of one data set.
        test_share: tested images ÷ all others where seeds are folds of one data set, whose training sets overlap; else
            0.
        source: of the images: "synthetic", or the data set's name.
        split: what was scored: "test", or "val" for one half of the validation images.
        refused: why there are intervals missing; filled as they are asked for.
    """

    task: str
    runs: Mapping[str, Mapping[int, R]]
    shared: bool
    test_share: float
    source: str
    split: str
    refused: set[str] = dataclasses.field(default_factory=set, repr=False)
    _known: dict[tuple[str, str, str], Interval | None] = dataclasses.field(default_factory=dict, repr=False)

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """For people."""

    @abc.abstractmethod
    def value(self, result: R, figure: str = METRIC) -> float:
        """A figure of one seed; NaN where it has none of that name."""

    @abc.abstractmethod
    def probabilities(self, result: R) -> npt.NDArray[Any]:
        """(N, K), or (D, N, K) with D draws of labels, whose metrics are averaged."""

    def values(self, arm: str, figure: str = METRIC) -> npt.NDArray[np.float64]:
        """(R,) a figure of all seeds that have it."""
        found = np.array([self.value(result, figure) for result in self.runs[arm].values()], np.float64)
        return found[~np.isnan(found)]

    def common(self, arm: str, other: str) -> list[int]:
        """The seeds that both arms have."""
        return [seed for seed in self.runs.get(arm, {}) if seed in self.runs.get(other, {})]

    def pair(self, arm: str, other: str, seed: int) -> tuple[npt.NDArray[Any], ...]:
        """What `clustered_difference` wants to know of one seed.

        Raises:
            ConfigurationError: the arms were tested on different images.
        """
        one, two = (self.runs[name][seed] for name in (arm, other))
        check_pair(one.predictions, two.predictions, f"{self.title}, seed {seed}, {one.folder} and {two.folder}")
        known = one.predictions
        return known["labels"], known["groups"], self.probabilities(one), self.probabilities(two)

    def interval(self, arm: str, metric: str = METRIC) -> Interval | None:
        """`metric` of one arm, over its seeds and images; None where `difference` would give none."""
        known = self.runs[arm].values()
        if len(known) < 2:
            return None
        try:
            return clustered_metric(
                [Run(r.predictions["labels"], r.predictions["groups"], self.probabilities(r)) for r in known],
                metric, shared=self.shared, method=METHOD, draws=DRAWS, test_share=self.test_share,
            )  # fmt: skip
        except ConfigurationError as error:
            self.refused.add(str(error))
            return None

    def difference(self, arm: str, other: str | None, metric: str = METRIC) -> Interval | None:
        """`metric` of `arm` − `other`, paired by seed and image, and by draw where there are several.

        None without another arm or with fewer than two seeds in common, and where the images are too few for an
        interval; see `refused`.
        """
        if other is None or arm == other:
            return None
        if (arm, other, metric) not in self._known:
            self._known[arm, other, metric] = self._difference(arm, other, metric)
        return self._known[arm, other, metric]

    def _difference(self, arm: str, other: str, metric: str) -> Interval | None:
        seeds = self.common(arm, other)
        if len(seeds) < 2:
            return None
        pairs: list[Any] = [self.pair(arm, other, seed) for seed in seeds]
        try:
            return clustered_difference(
                pairs, metric, shared=self.shared, method=METHOD, draws=DRAWS, test_share=self.test_share
            )
        except ConfigurationError as error:
            self.refused.add(str(error))
            return None

    def improves(self, arm: str, other: str | None) -> Interval | None:
        """How probable it is that a seed of `arm` has the higher `METRIC`; None with fewer than `FEWEST` in common."""
        if other is None or arm == other or len(seeds := self.common(arm, other)) < FEWEST:
            return None
        one, two = (np.array([[self.value(self.runs[name][seed])] for seed in seeds]) for name in (arm, other))
        return probability_of_improvement(one, two, paired=True)
