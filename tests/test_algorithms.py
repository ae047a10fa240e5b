"""`maskaug bench algorithms`: its cells, what a run measures, the table, the pictures, and going on."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from algorithm_grid import TINY, finished

from maskaug.agents.apga import APGA
from maskaug.benchmarks import algorithms as module
from maskaug.benchmarks.algorithm_analysis import (
    COLOURS,
    curve_of,
    markdown,
    picture,
    t_interval,
    table_rows,
    unfinished,
    write_analysis,
)
from maskaug.benchmarks.algorithms import (
    ARMS,
    PRESETS,
    USUAL,
    AlgorithmSettings,
    Game,
    judge_name,
    run_name,
    settings_of,
)
from maskaug.benchmarks.grid import Grid
from maskaug.cli import main
from maskaug.envs.errors import ConfigurationError, JudgeError


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return finished(tmp_path_factory.mktemp("algorithms"))


# ---- settings --------------------------------------------------------------------------------------------------------


def test_a_judge_and_every_arm_of_every_seed_and_game() -> None:
    settings = dataclasses.replace(TINY, seeds=2)
    cells = {cell.name: cell for cell in settings.cells()}
    assert len(cells) == 2 * 2 * 3
    run = cells["classification/seed-001/apga"]
    assert run.needs == ("classification/seed-001/judge",)
    assert (run.config["seed"], run.config["repeat"], run.config["timesteps"]) == (1, 4, 128)
    judge = cells["classification/seed-001/judge"]
    assert judge.config.items() <= run.config.items()
    for name in ("env", "judge_updates", "split", "device", "game"):
        assert name in judge.config
    assert run.config != cells["classification/seed-000/apga"].config


@pytest.mark.parametrize("preset", PRESETS)
def test_every_arm_of_a_preset_exists_has_a_colour_and_fits_its_run(preset: str) -> None:
    settings = PRESETS[preset]
    assert set(settings.games) == set(ARMS)
    for game, setting in settings.games.items():
        assert set(USUAL[game]) - {"trpo"} <= set(setting.arms) <= set(ARMS[game]) <= set(COLOURS)
        assert setting.arms[0] in ("intelligent_masking", "apga")
    (distilled,) = [c.config for c in settings.cells() if c.name == "classification/seed-000/distilled"]
    fitted = distilled["settings"]["judges"] * distilled["settings"]["judge_updates"] * 32
    assert 0.4 * distilled["timesteps"] < fitted <= distilled["timesteps"] / 2
    assert {"smoke": 2, "cpu": 5, "paper": 20}[preset] == settings.seeds


def test_what_is_given_replaces_the_preset() -> None:
    settings, skipped = settings_of("smoke", seeds=3, games=("reconstruction",), arms=("ppo", "dqn"), split="val")
    assert (settings.seeds, settings.split, list(settings.games), skipped) == (3, "val", ["reconstruction"], ())
    assert settings.games["reconstruction"].arms == ("ppo", "dqn")
    both, _ = settings_of("smoke", arms=("ppo", "apga"))
    assert {name: game.arms for name, game in both.games.items()} == {
        "reconstruction": ("ppo",), "classification": ("ppo", "apga")
    }  # fmt: skip
    # A game that has none of the named arms is left out, unless it was asked for.
    assert set(settings_of("smoke", arms=("apga",))[0].games) == {"classification"}
    assert settings_of("smoke") == (PRESETS["smoke"], ())


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"preset": "huge"}, "preset='huge'"),
        ({"seeds": 0}, "seeds=0"),
        ({"split": "train"}, "not held out"),
        ({"games": ("chess",)}, "'chess'"),
        ({"games": ()}, "games=none"),
        ({"arms": ("apgo",)}, "'apgo'"),
        ({"arms": ()}, "arms=none"),
        ({"arms": ("ppo", "ppo")}, "none of them twice"),
        ({"games": ("reconstruction",), "arms": ("apga",)}, "'apga'"),
        ({"games": ("reconstruction", "classification"), "arms": ("apga",)}, "at least one"),
    ],
)
def test_what_cannot_be_run_is_named(given: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigurationError, match=cause):
        settings_of(given.pop("preset", "smoke"), **given)


def test_without_sb3_contrib_its_arms_are_skipped_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sb3_contrib" else find(name))
    settings, skipped = settings_of("smoke")
    assert skipped == ("qrdqn", "trpo")
    assert settings.games["reconstruction"].arms == ("intelligent_masking", "published", "dqn", "ppo", "a2c")
    assert "Skipped: qrdqn, trpo (sb3-contrib" in markdown(settings, {}, skipped)
    with pytest.raises(ConfigurationError, match="trpo: sb3-contrib is not installed"):
        settings_of("smoke", arms=("ppo", "trpo"))


# ---- what is said ----------------------------------------------------------------------------------------------------


def made(values: dict[str, list[float]], game: str = "reconstruction") -> tuple[AlgorithmSettings, dict[str, Any]]:
    """Settings of as many seeds as the first arm has values, and results with these ends."""
    seeds = len(next(iter(values.values())))
    settings = AlgorithmSettings({game: Game({}, 1, 400, tuple(values))}, seeds, 100)
    results: dict[str, Any] = {judge_name(game, seed): {"centre.normalised": 0.25 + seed} for seed in range(seeds)}
    for arm, ends in values.items():
        for seed, end in enumerate(ends):
            results[run_name(game, arm, seed)] = {
                "steps": 400.0, "cpu_s": 8.0, "wall_s": 9.0, "normalised": end, "swapped.normalised": 0.1,
                "curve.0000000.normalised": 0.0, "curve.0000000.cpu_s": 0.0, "curve.0000100.normalised": end / 2,
                "curve.0000100.cpu_s": 2.0 + seed, "curve.0000400.normalised": end, "curve.0000400.cpu_s": 8.0,
            }  # fmt: skip
    return settings, results


def test_the_table_by_hand() -> None:
    settings, results = made({"intelligent_masking": [0.8, 0.9, 1.0], "ppo": [0.5, 0.9, 0.7]})
    ours, ppo, centre = table_rows(settings, results)
    assert (ours["title"], ours["seeds"], ours["steps_per_cpu_s"]) == ("Intelligent Masking", 3, 50)
    assert ours["normalised"] == pytest.approx(0.9)
    # t(.975, 2) = 4.3027, s = 0.1.
    assert ours["normalised.low"] == pytest.approx(0.9 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert ours["normalised.untrained"] == 0
    assert ours["normalised.swapped"] == pytest.approx(0.1)
    assert "normalised.difference" not in ours
    assert ppo["normalised.difference"] == pytest.approx((-0.3 + 0.0 - 0.3) / 3)
    assert ppo["normalised.better"] == pytest.approx(1.5 / 9)
    assert ppo["normalised.verdict"] == "not established"
    assert ppo["normalised.iqm"] == pytest.approx(0.7)
    assert (centre["title"], centre["seeds"]) == ("centre", 3)
    assert centre["normalised"] == pytest.approx(1.25)
    text = markdown(settings, results)
    end = "-0.200 [-0.630, +0.230] | 0.17 | not established |"
    assert f"| PPO | 3 | 400 | 8 | 50 | 0.700 [0.203, 1.197] | 0.000 | 0.100 | {end}" in text
    assert "0 is what a random patch of each image earns, 1 what the best one does. Untrained: " in text
    assert "Student's t; − Intelligent Masking: paired by seed." in text
    other = markdown(*made({"apga": [0.8, 0.9], "ppo": [0.5, 0.6]}, "classification"))
    assert "1 what greedy search finds" in other
    assert "| 0.00 | worse |" in other
    assert "UNFINISHED" not in text
    assert t_interval([0.5]) is None


def test_what_is_missing_is_marked_everywhere(tmp_path: Path) -> None:
    settings, results = made({"intelligent_masking": [0.8, 0.9, 1.0], "ppo": [0.5, 0.9, 0.7]})
    whole = picture(settings, results, "reconstruction", "normalised")
    assert unfinished(settings, results) == ""
    del results[run_name("reconstruction", "ppo", 1)]
    assert unfinished(settings, results) == "8 of 9 cells done"
    text = markdown(settings, results)
    assert "**UNFINISHED: 8 of 9 cells done**" in text
    assert "| PPO | 2 of 3 |" in text
    part = picture(settings, results, "reconstruction", "normalised")
    assert whole is not None
    assert part is not None
    assert part.shape[0] == whole.shape[0] + 34
    # Differences are of the seeds that both have.
    (ppo,) = [row for row in table_rows(settings, results) if row["arm"] == "ppo"]
    assert ppo["normalised.difference"] == pytest.approx(-0.3)
    assert write_analysis(settings, {}, tmp_path)[-1] == tmp_path / "curves.csv"
    assert picture(settings, {}, "reconstruction", "normalised") is None


def test_a_curve_by_hand(tmp_path: Path) -> None:
    settings, results = made({"intelligent_masking": [0.8, 1.0]})
    curve = curve_of(settings, results, "reconstruction", "intelligent_masking", "normalised")
    assert curve is not None
    assert curve.steps.tolist() == [0, 100, 400]
    assert curve.cpu_s.tolist() == [0, 2.5, 8]
    assert curve.values.tolist() == [[0, 0.4, 0.8], [0, 0.5, 1.0]]
    assert curve_of(settings, results, "reconstruction", "intelligent_masking", "retention") is None
    write_analysis(settings, results, tmp_path)
    with (tmp_path / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["steps"] for row in rows] == ["0", "100", "400"]
    assert float(rows[1]["mean"]) == pytest.approx(0.45)
    assert float(rows[1]["low"]) == pytest.approx(0.45 - 12.7062 * 0.05, abs=1e-3)


def test_pictures_of_another_measure_differ(grid: Grid, tmp_path: Path) -> None:
    files = write_analysis(TINY, grid.results(), tmp_path)
    assert {file.name for file in files} == {
        "tables.json", "table.csv", "tables.md", "curves.csv", "reconstruction.png", "classification.png",
        "classification-retention.png",
    }  # fmt: skip
    assert all(file.is_file() for file in files)
    one, other = (picture(TINY, grid.results(), "classification", m) for m in ("normalised", "retention"))
    assert one is not None
    assert other is not None
    assert (one != other).any()
    text = (tmp_path / "tables.md").read_text()
    assert "\\|input × gradient\\|" in text
    assert len({line.replace("\\|", "").count("|") for line in text.split("###")[2].splitlines() if "|" in line}) == 1


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_runs_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(module.PRESETS, "smoke", TINY)
    words = ["bench", "algorithms", "--out", str(tmp_path), "--preset", "smoke", "--games", "classification"]
    assert main([*words, "--arms", "apga"]) == 0
    assert "2 of 2 cells done" in capsys.readouterr().out
    results = tmp_path / "runs/classification/seed-000/apga/results.json"
    before = (results.read_bytes(), results.stat().st_mtime_ns)
    assert main([*words, "--arms", "apga", "end_to_end"]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 cells done" in said
    assert "| APGA | 1 | 128 |" in said
    assert (results.read_bytes(), results.stat().st_mtime_ns) == before
    assert "end-to-end" in (tmp_path / "tables.md").read_text()
    assert json.loads((tmp_path / "runs/classification/seed-000/apga/config.json").read_text())["asked"]["repeat"] == 4
    # Another split is another benchmark.
    assert main([*words, "--arms", "apga", "--split", "val"]) == 2
    assert "split" in capsys.readouterr().err


def test_a_run_that_fails_is_marked_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(module.PRESETS, "smoke", TINY)
    words = ["bench", "algorithms", "--out", str(tmp_path), "--preset", "smoke", "--arms", "apga", "end_to_end"]
    learn = APGA.learn

    def fails(self: APGA, *arguments: Any) -> APGA:
        raise JudgeError("the judge has left")

    monkeypatch.setattr(APGA, "learn", fails)
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "JudgeError: the judge has left" in said
    assert "**UNFINISHED: 2 of 3 cells done**" in said
    assert "| end-to-end | 1 |" in said
    assert "| APGA |" not in said
    monkeypatch.setattr(APGA, "learn", learn)
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "| APGA | 1 |" in said
    assert "UNFINISHED" not in (tmp_path / "tables.md").read_text()


def test_every_flag_reaches_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(self: Grid, jobs: int, cluster: bool, retries: int, gpus: float) -> None:
        asked.append((len(self.cells), jobs, cluster, retries, gpus))

    monkeypatch.setattr(Grid, "run", run)
    words = ["bench", "algorithms", "--out", str(tmp_path)]
    # Nothing was run, and the status says so.
    assert main([*words, "--jobs", "2"]) == 1
    more = "--preset paper --seeds 4 --games reconstruction --cluster --retries 2 --gpus 0.5"
    assert main([*words, *more.split()]) == 1
    reconstruction = len(PRESETS["cpu"].games["reconstruction"].arms)
    classification = len(PRESETS["cpu"].games["classification"].arms)
    assert asked == [
        (5 * (2 + reconstruction + classification), 2, False, 0, 0.0),
        (4 * (1 + len(ARMS["reconstruction"])), 1, True, 2, 0.5),
    ]
    assert main([*words, "--arms", "nobody"]) == 2
