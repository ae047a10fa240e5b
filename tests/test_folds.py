"""The benchmark of maskers on disjoint folds: who is tested where, what is compared, and that it goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from maskaug.benchmarks import folds
from maskaug.benchmarks.folds import ARMS, FoldSettings, fold_parts, maskers, one_fold
from maskaug.benchmarks.folds_table import folds_table, summary_of
from maskaug.benchmarks.intervals import paired_interval
from maskaug.envs.errors import ConfigurationError
from maskaug.options import MaskerArm

TINY = FoldSettings(
    "MaskAug-Synthetic-v0", {"n": 90, "image_size": 40, "grid": 5, "fill": "blur"}, ("bagged", "distilled"),
    folds=3, judge_updates=6, judges=2, bagged_updates=4, distil_updates=2, timesteps=64, num_envs=8,
)  # fmt: skip


def test_every_image_is_tested_once_and_groups_stay_whole() -> None:
    tested: list[str] = []
    for number in range(3):
        train, val, test = fold_parts(TINY, number)
        parts = [set(part.groups.tolist()) for part in (train, val, test)]
        assert not parts[0] & parts[1]
        assert not parts[2] & (parts[0] | parts[1])
        assert len(train) + len(val) + len(test) == 90
        assert 0.1 < len(val) / (len(train) + len(val)) < 0.26
        tested += test.names
    assert len(tested) == len(set(tested)) == 90
    other = fold_parts(dataclasses.replace(TINY, seed=1), 0)[2]
    assert set(other.names) != set(fold_parts(TINY, 0)[2].names)


def test_every_arm_runs_and_repeats() -> None:
    settings = dataclasses.replace(TINY, arms=tuple(ARMS))
    figures = one_fold(settings, 0)
    for arm in ARMS:
        assert 0 <= figures[f"{arm}.kept"] <= figures["ceiling.kept"]
        assert figures[f"{arm}.cpu_s"] >= 0
    assert {"random.kept", "centre.kept", "mean_region.kept", "judge.auroc"} <= figures.keys()
    again = one_fold(settings, 0)
    assert {k: v for k, v in figures.items() if "cpu" not in k} == {k: v for k, v in again.items() if "cpu" not in k}
    # Validation images are others.
    assert one_fold(TINY, 0, split="val")["bagged.kept"] != figures["bagged.kept"]
    assert set(ARMS) == set(get_args(MaskerArm))


@pytest.mark.parametrize(
    ("field", "value"),
    [("judge_updates", 9), ("judges", 3), ("bagged_updates", 8), ("distil_updates", 40),
     ("timesteps", 256), ("num_envs", 4), ("folds", 2),
     ("val_share", 0.4), ("seed", 3)],
)  # fmt: skip
def test_every_setting_does_something(field: str, value: Any) -> None:
    settings = dataclasses.replace(TINY, arms=("input_gradient", "distilled", "apga"))
    before, after = (one_fold(s, 0) for s in (settings, dataclasses.replace(settings, **{field: value})))
    kept = [k for k in before if k.endswith((".kept", "judge.loss"))]
    assert [before[k] for k in kept] != [after[k] for k in kept]


def test_what_is_there_is_not_run_again_and_arms_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "folds.json"
    said: list[str] = []
    maskers(TINY, [0], out, say=said.append)
    found = json.loads(out.read_text())
    assert found["unfinished"] is True
    assert found["data"]["source"] == "synthetic"
    before = found["folds"]["0"]

    def distilled(fold: folds.Fold) -> None:
        raise AssertionError("it was there already")

    monkeypatch.setitem(ARMS, "distilled", ("distilled", distilled))
    maskers(dataclasses.replace(TINY, arms=("distilled", "cutout")), [0], out, say=said.append)
    after = json.loads(out.read_text())["folds"]["0"]
    assert {k: after[k] for k in before} == before
    assert "cutout.kept" in after
    with pytest.raises(ConfigurationError, match="other settings"):
        maskers(dataclasses.replace(TINY, judges=3), [0], out)


def test_the_summary_is_paired_and_the_table_says_it() -> None:
    rows = [
        {"a.kept": 0.5, "a.swapped": 0.3, "distilled.kept": 0.6, "distilled.swapped": 0.3, "mean_region.kept": 0.4},
        {"a.kept": 0.7, "a.swapped": 0.4, "distilled.kept": 0.65, "distilled.swapped": 0.3, "mean_region.kept": 0.5},
    ]
    summary = summary_of(rows, ("a", "distilled"), 0.25)
    assert summary["a.kept.mean"] == pytest.approx(0.6)
    assert summary["a.kept.sd"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    expected = paired_interval([-0.1, 0.05], test_share=0.25)
    assert [summary[f"a-distilled.{end}"] for end in ("mean", "low", "high")] == pytest.approx(expected)
    assert summary["a-swapped.mean"] == pytest.approx(0.25)
    assert summary["a-mean_region.mean"] == pytest.approx(0.15)
    text = folds_table(summary, ("a", "distilled"), {"a": "arm A", "distilled": "distilled"})
    assert "arm A" in text
    assert "0.600 ± 0.141" in text
    assert "+0.150" in text
    assert summary_of([], ("a",), 0.25) == {"folds": 0.0}


@pytest.mark.parametrize(
    ("changes", "numbers", "words"),
    [({"arms": ("oracle",)}, [0], "use some of"), ({"arms": ()}, [0], "use some of"), ({"folds": 1}, [0], "at least 2"),
     ({}, [3], "0 to folds"), ({}, [], "at least 2"), ({"distil_updates": 0}, [0], "judges' training"),
     ({"env": {"n": 90, "joint": False}}, [0], "joint would do nothing"),
     ({"env": {"n": 90, "objective": "both"}, "arms": ("end_to_end",)}, [0], "not of 'both'")],
)  # fmt: skip
def test_bad_input_is_refused(changes: dict[str, Any], numbers: list[int], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        maskers(dataclasses.replace(TINY, **changes), numbers)


def test_a_split_or_a_folder_that_will_not_do_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no part to score"):
        maskers(TINY, [0], split="train")
    with pytest.raises(ConfigurationError, match="is a folder"):
        maskers(TINY, [0], tmp_path)


def test_who_asks_the_bagged_judges_pays_for_them() -> None:
    figures = one_fold(dataclasses.replace(TINY, bagged_updates=40, arms=("cutout", "bagged", "distilled")), 0)
    assert figures["cutout.cpu_s"] < figures["bagged.cpu_s"] / 2
    assert figures["distilled.cpu_s"] > figures["bagged.cpu_s"] / 2
