"""`maskaug bench algorithms`: its cells, what a run measures, the table, the pictures, and going on."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskaug.agents.apga import APGA
from maskaug.benchmarks import algorithms as module
from maskaug.benchmarks.algorithm_agents import PlainSB3, make_agent
from maskaug.benchmarks.algorithm_analysis import (
    _COLOURS,
    curve_of,
    interval_of,
    markdown,
    picture,
    table_rows,
    unfinished,
    write_analysis,
)
from maskaug.benchmarks.algorithm_runs import follow, judge_cell, run_cell
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
from maskaug.benchmarks.regret import normalised_rewards
from maskaug.cli import main
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.judges import make_judge

SMALL = {"n": 40, "image_size": 40, "grid": 5}
PATCHES = {"kind": "ultrasound", "objective": "reconstruction", "action": "patch", **SMALL}
CELLS = {"kind": "radiograph", "objective": "adversarial", "action": "grid", "fill": "blur", **SMALL}
TINY = AlgorithmSettings(
    {
        "reconstruction": Game(PATCHES, 2, 256, ("published", "a2c")),
        "classification": Game(CELLS, 4, 128, ("apga", "end_to_end")),
    },
    seeds=1,
    first=32,
)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    result = Grid(tmp_path_factory.mktemp("algorithms"), TINY.cells())
    assert set(result.run(say=lambda _: None).values()) == {"done"}
    return result


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
        assert set(USUAL[game]) <= set(setting.arms) <= set(ARMS[game]) <= set(_COLOURS)
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


# ---- runs ------------------------------------------------------------------------------------------------------------


class Learner:
    """Spends a known time on each of ten updates of ten masks."""

    num_timesteps = 0

    def learn(self, total: int, callback: Any) -> None:
        while self.num_timesteps < total:
            until = time.process_time() + 0.01
            while time.process_time() < until:
                pass
            self.num_timesteps += 10
            if self.num_timesteps != 50:  # no callback at this one
                callback(self, {})


def test_a_run_is_looked_at_on_the_way_and_looking_costs_it_nothing() -> None:
    seen: list[int] = []

    def look(agent: Any) -> dict[str, float]:
        seen.append(agent.num_timesteps)
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        return {"normalised": float(agent.num_timesteps), "swapped.normalised": -1.0}

    figures = follow(Learner(), look, 25, 95)
    # 25, 50 and 95 are due; where there was no callback the next one serves.
    assert seen == [0, 30, 60, 100]
    assert [figures[f"curve.{n:07d}.normalised"] for n in seen] == seen
    assert (figures["steps"], figures["normalised"], figures["swapped.normalised"]) == (100, 100, -1)
    assert 0.1 <= figures["cpu_s"] < 0.15
    assert figures["curve.0000030.cpu_s"] == pytest.approx(0.03, abs=0.01)
    assert figures["curve.0000000.cpu_s"] == 0
    assert figures["wall_s"] >= figures["cpu_s"] * 0.9
    assert not any(name.startswith("curve.") and "swapped" in name for name in figures)
    # The end is looked at where no callback came there.
    seen.clear()
    assert follow(Learner(), look, 1000, 50)["curve.0000050.normalised"] == 50
    assert seen == [0, 50]


def test_looking_does_not_change_what_is_learnt(grid: Grid) -> None:
    for name, cell in grid.cells.items():
        if cell.needs:
            (judge,) = cell.needs
            once = run_cell({**cell.config, "first": 10**6}, grid.root / name, {judge: grid.root / judge})
            often = grid.results()[name]
            # APGA's and A2C's updates are 128 masks each.
            looks = 2 + TINY.games[cell.config["game"]].timesteps // 128 - 1
            assert sum(key.endswith(".cpu_s") for key in once) == 2
            assert sum(key.endswith(".cpu_s") for key in often) >= looks
            assert once["normalised"] == often["normalised"]
            assert once.get("retention") == often.get("retention")
            # Another seed of the agent learns something else, or at least starts elsewhere.
            other = run_cell({**cell.config, "seed": 1}, grid.root / name, {judge: grid.root / judge})
            assert {k: v for k, v in other.items() if k.endswith("normalised")} != {
                k: v for k, v in often.items() if k.endswith("normalised")
            }


def test_patches_are_measured_between_random_and_the_best(grid: Grid) -> None:
    results = grid.results()
    judge, name = results[judge_name("reconstruction", 0)], judge_name("reconstruction", 0)
    config = grid.cells[name].config
    keywords = {
        "dataset": "synthetic", **config["env"], "seed": 0, "joint": False, "device": "cpu",
        "reward_model": str(grid.root / name / "judge.safetensors"),
    }  # fmt: skip
    env = MaskVectorEnv(4, **keywords)
    every = np.load(grid.root / name / "rewards.npy", allow_pickle=False)
    held_out = env.evaluation("test")
    np.testing.assert_allclose(every, held_out.game.action_rewards(np.arange(len(held_out.dataset))), rtol=1e-5)
    assert judge["random.reward"] == pytest.approx(every.mean())
    assert judge["best.reward"] == pytest.approx(every.max(1).mean())
    # The old way to say it, on an agent that learns the same.
    agent = make_agent("a2c", keywords, {}, 1, 0, "cpu").learn(256)
    found = normalised_rewards(held_out, {"a2c": agent})
    run = results[run_name("reconstruction", "a2c", 0)]
    assert run["normalised"] == pytest.approx(found["a2c.normalised"], abs=1e-5)
    assert run["steps"] == 256
    chosen = agent.predict(np.array(held_out.dataset.images), deterministic=True)[0]
    others = [every[i, c] for i in range(len(every)) for j, c in enumerate(chosen) if i != j]
    spread = judge["best.reward"] - judge["random.reward"]
    assert run["swapped.normalised"] == pytest.approx((np.mean(others) - judge["random.reward"]) / spread, abs=1e-5)


def test_cells_are_measured_between_random_and_the_search(grid: Grid) -> None:
    judge = grid.results()[judge_name("classification", 0)]
    assert (judge["random.normalised"], judge["search.normalised"]) == (0, 1)
    assert judge["ceiling.retention"] >= judge["mean_region.retention"]
    assert judge["random.retention"] == pytest.approx(6 / 25, abs=0.15)
    assert judge["input_gradient.normalised"] < 1
    run = grid.results()[run_name("classification", "apga", 0)]
    assert {"normalised", "retention", "swapped.normalised", "swapped.retention", "cpu_s", "wall_s", "steps"} <= set(
        run
    )
    assert run["normalised"] < 1
    assert 0 <= run["retention"] <= 1
    assert run["steps"] == 128


def test_a_judge_that_sees_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = [c for c in TINY.cells() if c.name == judge_name("reconstruction", 0)]
    monkeypatch.setattr(
        "maskaug.envs.game.MaskGame.action_rewards", lambda self, index: np.ones((len(index), 16), np.float32)
    )
    with pytest.raises(JudgeError, match="nothing to learn; train the judge longer"):
        judge_cell(cell.config, tmp_path, {})


@pytest.mark.parametrize("game", ["classification", "reconstruction"])
def test_an_arm_as_stable_baselines3_has_it_is_its_own(game: str) -> None:
    keywords: dict[str, Any] = {
        "dataset": "synthetic", **SMALL, "action": "grid" if game == "classification" else "patch", "joint": False,
        "reward_model": make_judge("small", 1, 2, 0),
    }  # fmt: skip
    agent = make_agent("a2c_default", keywords, {}, 1, 0, "cpu")
    told: list[int] = []
    agent.learn(10, lambda one, _: told.append(one.num_timesteps))
    assert told == [5, 10]
    assert isinstance(agent, PlainSB3)
    assert (agent.model.n_envs, agent.num_timesteps) == (1, 10)
    assert type(agent.model.policy.features_extractor).__name__ == "NatureCNN"
    images = np.array(MaskVectorEnv(1, **keywords).dataset.images[:3])
    assert agent.predict(images, deterministic=True)[0].shape == ((3, 25) if game == "classification" else (3,))
    if game == "classification":
        scores = agent.scores(images)
        chosen = agent.predict(images, deterministic=True)[0].reshape(3, 5, 5).astype(bool)
        np.testing.assert_array_equal(scores > 0, chosen)


def test_every_arm_can_be_made_and_has_its_own_number_of_environments() -> None:
    for game, env in (("reconstruction", PATCHES), ("classification", CELLS)):
        judge = make_judge("small", 1, None if game == "reconstruction" else 2, 0)
        keywords = {"dataset": "synthetic", **env, "joint": False, "reward_model": judge}
        for arm in ARMS[game].values():
            settings = {**arm.settings, "judge_updates": 1} if arm.agent == "Distilled" else arm.settings
            agent = make_agent(arm.agent, keywords, settings, arm.repeat, 0, "cpu")
            if not isinstance(agent, PlainSB3):
                assert agent.env.num_envs == {"ppo": 16, "dqn": 8}.get(arm.agent, agent.env.num_envs)
                assert agent.env.game.repeat == arm.repeat
                agent.check_env(agent.env)


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
    assert "| PPO | 3 | 400 | 8 | 50 | 0.700 [0.203, 1.197] | 0.000 | 0.100 | -0.200 [-0.630, +0.230] | 0.17 |" in text
    assert "UNFINISHED" not in text
    assert interval_of([0.5]) is None


def test_what_is_missing_is_marked_everywhere(tmp_path: Path) -> None:
    settings, results = made({"intelligent_masking": [0.8, 0.9, 1.0], "ppo": [0.5, 0.9, 0.7]})
    whole = picture(settings, results, "reconstruction", "normalised")
    assert unfinished(settings, results) == ""
    del results[run_name("reconstruction", "ppo", 1)]
    assert unfinished(settings, results) == "UNFINISHED: 8 of 9 cells done"
    text = markdown(settings, results)
    assert text.startswith("**UNFINISHED: 8 of 9 cells done**")
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
        "table.csv", "table.md", "curves.csv", "reconstruction.png", "classification.png",
        "classification-retention.png",
    }  # fmt: skip
    assert all(file.is_file() for file in files)
    one, other = (picture(TINY, grid.results(), "classification", m) for m in ("normalised", "retention"))
    assert one is not None
    assert other is not None
    assert (one != other).any()
    text = (tmp_path / "table.md").read_text()
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
    results = tmp_path / "classification/seed-000/apga/results.json"
    before = (results.read_bytes(), results.stat().st_mtime_ns)
    assert main([*words, "--arms", "apga", "end_to_end"]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 cells done" in said
    assert "| APGA | 1 | 128 |" in said
    assert (results.read_bytes(), results.stat().st_mtime_ns) == before
    assert "end-to-end" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "classification/seed-000/apga/config.json").read_text())["asked"]["repeat"] == 4
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
    assert "UNFINISHED" not in (tmp_path / "table.md").read_text()


def test_every_flag_reaches_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(self: Grid, jobs: int, cluster: bool) -> None:
        asked.append((len(self.cells), jobs, cluster))

    monkeypatch.setattr(Grid, "run", run)
    words = ["bench", "algorithms", "--out", str(tmp_path)]
    # Nothing was run, and the status says so.
    assert main([*words, "--jobs", "2"]) == 1
    assert main([*words, "--preset", "paper", "--seeds", "4", "--games", "reconstruction", "--cluster"]) == 1
    assert asked == [(5 * 2 * 8, 2, False), (4 * (1 + len(ARMS["reconstruction"])), 1, True)]
    assert main([*words, "--arms", "nobody"]) == 2
