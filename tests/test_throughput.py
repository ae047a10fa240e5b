"""`maskaug bench throughput`: its rows are there, their ratios are ratios, and a slower environment shows.

No test here knows how fast a machine is.
"""

from __future__ import annotations

import csv
import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from maskaug import options
from maskaug.benchmarks import throughput as module
from maskaug.benchmarks import throughput_agents, throughput_games, throughput_settings
from maskaug.benchmarks.tables import read_tables
from maskaug.benchmarks.throughput import COLUMNS, throughput
from maskaug.benchmarks.throughput_settings import PRESETS, Game, ThroughputSettings, settings_of
from maskaug.benchmarks.timing import Clock, Spread, forget_peaks, in_turn, peak_cuda_mb, peak_mb, spread
from maskaug.cli import main
from maskaug.envs.acceleration import Acceleration
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError

CPU = torch.device("cpu")
TINY = Game(3, image_size=40)


def tiny(*games: Game, **changes: Any) -> ThroughputSettings:
    return ThroughputSettings(games or (TINY,), **{"images": 6, "rounds": 2, "steps": 1, **changes})


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_every_row_is_measured_said_and_written(tmp_path: Path) -> None:
    said: list[str] = []
    games = (
        TINY, dataclasses.replace(TINY, action="patch"), dataclasses.replace(TINY, tensors=True, repeat=2),
        dataclasses.replace(TINY, vectorization="sync"), dataclasses.replace(TINY, vectorization="dummy"),
    )  # fmt: skip
    rows = throughput(tiny(*games, agents=(("apga", 2), ("ppo", 2))), tmp_path / "new", said.append)
    steps = {"step", "step_policy", "step_policy_training"}
    expected = [
        steps, {"step"}, steps, {"step", "step_policy", "native_times"}, {"step", "step_policy", "native_times"},
        {"over_passes"}, {"step_policy"},
    ]  # fmt: skip
    assert [set(row) & set(throughput_games.FIGURES) for row in rows] == expected
    for row in rows:
        for figure in set(row) & set(throughput_games.FIGURES):
            assert 0 < row[f"{figure}_p10"] <= row[figure] <= row[f"{figure}_p90"]
        assert row["seconds"] == "CPU"
        assert row["images_s"] > 0
        assert row["memory_mb"] > 50
        assert row["cuda_mb"] is None
    with (tmp_path / "new/results.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        written = list(reader)
    assert tuple(reader.fieldnames or ()) == COLUMNS
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert [row["figure"] for row in written] == [row["figure"] for row in rows]
    assert len({row["figure"] for row in rows}) == len(rows)
    assert float(written[0]["step"]) == rows[0]["step"]
    assert written[1]["step_policy"] == ""
    assert [row["vectorization"] for row in written] == ["native"] * 3 + ["sync", "dummy", "", ""]
    assert all(any(row["figure"] in line for line in said) for row in rows)
    (table,) = read_tables(tmp_path / "new/tables.json")
    assert table.markdown() + "\n" == (tmp_path / "new/tables.md").read_text(encoding="utf-8")
    assert [row[0] for row in table.rows] == [row["figure"] for row in rows]
    assert "MB of the GPU" not in table.columns
    shown = dict(zip(table.columns, table.rows[0], strict=True))
    first = rows[0]
    assert shown["step"] == f"{first['step']:.3f} ({first['step_p10']:.3f} … {first['step_p90']:.3f})"
    assert shown["native ÷ this"] is None
    assert shown["images a second"] == round(first["images_s"])
    assert (table.unfinished, "2 rounds" in table.note, "CPU seconds" in table.note) == ("", True, True)


def test_rows_are_written_as_they_come_and_a_file_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = throughput_games.measured

    def second_fails(game: Game, *more: Any) -> Any:
        if game.action == "patch":
            raise RuntimeError("the lights went out")
        return measured(game, *more)

    monkeypatch.setattr(throughput_games, "measured", second_fails)
    with pytest.raises(RuntimeError, match="lights"):
        throughput(tiny(TINY, dataclasses.replace(TINY, action="patch")), tmp_path)
    (table,) = read_tables(tmp_path / "tables.json")
    assert (len(table.rows), table.unfinished) == (1, "1 of 2 rows are measured")
    with pytest.raises(ConfigurationError, match="must be a folder"):
        throughput(tiny(), tmp_path / "results.csv")
    with pytest.raises(ConfigurationError, match="device"):
        throughput(tiny(device="abacus"), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_slower_environment_shows_in_its_own_figures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy() -> None:
        began = time.process_time()
        while time.process_time() - began < 0.05:
            pass

    games = (TINY, dataclasses.replace(TINY, vectorization="sync"))
    before = [throughput_games.measured(game, tiny(), CPU) for game in games]
    native, single = MaskVectorEnv.step, MaskEnv.step

    def slowly(step: Any) -> Any:
        def slow_step(env: Any, action: Any) -> Any:
            busy()
            return step(env, action)

        return slow_step

    monkeypatch.setattr(MaskVectorEnv, "step", slowly(native))
    slow = [throughput_games.measured(game, tiny(), CPU) for game in games]
    for figure in throughput_games.FIGURES[:3]:
        assert slow[0][figure].median < before[0][figure].median / 2, figure
    assert slow[0]["images_s"] < 3 / 0.05
    assert slow[1]["native_times"].median < before[1]["native_times"].median / 2
    monkeypatch.setattr(MaskVectorEnv, "step", native)
    monkeypatch.setattr(MaskEnv, "step", slowly(single))
    slow = [throughput_games.measured(game, tiny(), CPU) for game in games]
    assert slow[0]["images_s"] > 3 / 0.05
    assert slow[1]["step"].median < before[1]["step"].median / 2
    assert slow[1]["native_times"].median > 2 * before[1]["native_times"].median


def test_worker_processes_count_and_are_gone_afterwards() -> None:
    # In a process of its own, whose forkserver is then nobody else's.
    code = """if True:
        import multiprocessing, torch
        from maskaug.benchmarks.throughput_games import measured
        from maskaug.benchmarks.throughput_settings import Game, ThroughputSettings

        games = [Game(2, image_size=40), Game(2, image_size=40, vectorization="async")]
        settings = ThroughputSettings(games, images=4, rounds=2, steps=1)
        one, several = (measured(game, settings, torch.device("cpu")) for game in games)
        assert several["memory_mb"] > one["memory_mb"] + 100, (one, several)
        assert several["native_times"].median > 0
        assert not multiprocessing.active_children()
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(("precision", "passes"), [("fp32", "eager"), ("bf16", "channels_last")])
def test_both_sides_are_computed_alike_and_as_often(
    precision: str, passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool, int]] = []
    original = Acceleration.forward

    def counted(self: Acceleration, network: Any, images: Any) -> Any:
        seen.append((self.precision, self.channels_last, len(images)))
        return original(self, network, images)

    monkeypatch.setattr(Acceleration, "forward", counted)
    # Patches have no policy here, so that all passes are the judge's.
    game = Game(4, image_size=40, action="patch", precision=precision, passes=passes)
    throughput_games.measured(game, tiny(rounds=3, steps=2), CPU)
    # Warm-up and three rounds of two steps on both sides, all clean losses being known.
    assert seen[-16:] == [(precision, passes == "channels_last", 4)] * 16


def test_clean_losses_are_known_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[bool] = []

    def watched(sides: Any, rounds: int, clock: Any) -> Any:
        def noting(side: Any) -> Any:
            def noted() -> None:
                known.append(all(game.judging._known.all() for game in games))
                side()

            return noted

        return in_turn([noting(side) for side in sides], rounds, clock)

    games: list[Any] = []
    made = MaskVectorEnv.__init__, MaskEnv.__init__

    def kept(number: int) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            made[number](self, *args, **kwargs)
            games.append(self.game)

        return init

    monkeypatch.setattr(throughput_games, "in_turn", watched)
    monkeypatch.setattr(MaskVectorEnv, "__init__", kept(0))
    monkeypatch.setattr(MaskEnv, "__init__", kept(1))
    for game in (TINY, dataclasses.replace(TINY, repeat=2), dataclasses.replace(TINY, vectorization="sync", repeat=2)):
        games.clear()
        throughput_games.measured(game, tiny(rounds=1), CPU)
        assert len(games) == (1 if game.vectorization == "native" else 4)
    assert known
    assert all(known)


@pytest.mark.parametrize("agent", ["apga_joint", "intelligent_masking", "intelligent_masking_published"])
def test_training_steps_are_measured_against_their_passes(agent: str) -> None:
    row = throughput_agents.measured(agent, 3, tiny(rounds=1), CPU)
    assert row["over_passes"].median > 0
    assert row["images_s"] > 0


# ---- time and memory -------------------------------------------------------------------------------------------------


def test_sides_are_measured_in_turn_after_a_warm_up() -> None:
    now, order = [0.0], []

    def side(name: str, seconds: float) -> Any:
        def run() -> None:
            order.append(name)
            now[0] += seconds

        return run

    found = in_turn([side("a", 1.0), side("b", 2.0), side("c", 4.0)], 3, lambda: now[0])
    assert "".join(order) == "abc" + "cba" + "abc" + "cba"
    assert [one.tolist() for one in found] == [[1.0] * 3, [2.0] * 3, [4.0] * 3]
    assert spread(np.arange(1.0, 12.0)) == Spread(6.0, 2.0, 10.0)


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[str]]:
    code = "x = bytearray(100_000_000)\nfor i in range(3_000_000): pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_the_clock_and_the_memory_of_workers_count(worker: subprocess.Popen[str]) -> None:
    assert worker.stdout is not None
    worker.stdout.readline()
    alone, together = Clock(CPU)(), Clock(CPU, (worker.pid,))()
    assert together > alone + 0.01
    assert peak_mb((worker.pid,)) > peak_mb() + 100


PEAKS = """
import numpy as np, torch
from maskaug.benchmarks.timing import forget_peaks, peak_cuda_mb, peak_mb
cpu = torch.device("cpu")
forget_peaks(cpu)
before = peak_mb()
large = np.ones(400_000_000, np.uint8)
assert peak_mb() > before + 300
del large
assert peak_mb() > before + 300
forget_peaks(cpu)
assert peak_mb() < before + 300
assert peak_cuda_mb(cpu) is None
"""


def test_peaks_are_forgotten() -> None:
    # In a process of its own: this one may give back more, at any moment, than is taken here.
    subprocess.run([sys.executable, "-c", PEAKS], check=True)


def test_a_gpu_is_waited_for_and_its_memory_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answering(name: str, answer: Any) -> Any:
        def answered(device: torch.device) -> Any:
            asked.append(f"{name} {device}")
            return answer

        return answered

    for name, answer in (("synchronize", None), ("reset_peak_memory_stats", None), ("max_memory_allocated", 3_000_000)):
        monkeypatch.setattr(torch.cuda, name, answering(name, answer))
    monkeypatch.setattr(time, "perf_counter", lambda: 7.0)
    device = torch.device("cuda:0")
    clock = Clock(device, (1,))
    assert (clock.kind, Clock(CPU).kind) == ("wall", "CPU")
    assert clock() == 7.0
    forget_peaks(device)
    assert peak_cuda_mb(device) == 3.0
    assert asked == [f"{name} cuda:0" for name in ("synchronize", "reset_peak_memory_stats", "max_memory_allocated")]


# ---- settings --------------------------------------------------------------------------------------------------------


def test_presets_have_the_rows_that_are_asked_for() -> None:
    cpu, paper, smoke = PRESETS["cpu"], PRESETS["paper"], PRESETS["smoke"]
    assert {Game(64), Game(64, vectorization="sync"), Game(64, vectorization="dummy")} <= set(cpu.games)
    assert {"apga", "apga_joint", "intelligent_masking", "ppo"} <= {name for name, _ in cpu.agents}
    assert {(g.judge, g.image_size) for g in paper.games} == {("densenet169", 224)}
    ways = (("fp32", "eager"), ("fp32", "channels_last"), ("bf16", "channels_last"), ("bf16", "compiled"))
    wanted = {(n, *way, tensors) for n in (64, 256, 1024) for way in ways for tensors in (True, False)}
    assert {(g.num_envs, g.precision, g.passes, g.tensors) for g in paper.games} == wanted
    assert {g.vectorization for g in smoke.games} == set(throughput_settings.VECTORIZATIONS)
    assert (cpu.device, paper.device) == ("cpu", "auto")
    # The command line names what there is.
    for literal, known in (
        (options.ThroughputPreset, PRESETS), (options.ThroughputAgent, throughput_settings.AGENTS),
        (options.Passes, throughput_settings.PASSES), (options.Vectorization, throughput_settings.VECTORIZATIONS),
        (options.ThroughputAgent, throughput_agents.SIDES), (options.ThroughputAgent, module.SAID),
    ):  # fmt: skip
        assert set(get_args(literal)) == set(known)


def test_flags_make_all_combinations(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ThroughputSettings] = []
    monkeypatch.setattr(module, "throughput", lambda settings, out: asked.append(settings))
    words = "bench throughput --num-envs 16 64 --tensors False True --precision bf16 --rounds 3 --device cpu"
    assert main(words.split()) == 0
    expected = [Game(n, tensors=t, precision="bf16") for n in (16, 64) for t in (False, True)]
    assert asked[-1] == dataclasses.replace(PRESETS["cpu"], games=tuple(expected), agents=(), rounds=3)
    words = (
        "bench throughput --preset paper --image-size 96 --judge small --passes compiled --vectorization sync --action "
        "pixel --repeat 2 --agents ppo"
    )
    assert main(words.split()) == 0
    game = Game(64, 96, "small", "fp32", "compiled", False, "sync", "pixel", 2)
    assert asked[-1] == dataclasses.replace(PRESETS["paper"], games=(game,), agents=(("ppo", 64),))


def test_agents_alone_are_measured_with_the_sizes_they_have() -> None:
    assert settings_of("cpu", {}) == PRESETS["cpu"]
    for axes, agents, expected in (
        ({}, ("apga",), (("apga", 32), ("apga", 64))),
        ({}, ("apga_published",), (("apga_published", 25),)),
        ({"num_envs": (4, 8)}, ("ppo",), (("ppo", 4), ("ppo", 8))),
    ):
        made = settings_of("cpu", axes, agents)
        assert (made.games, made.agents) == ((), expected)
    both = settings_of("smoke", {"action": ("patch",)}, ("apga_joint",))
    assert (both.games, both.agents) == ((dataclasses.replace(PRESETS["smoke"].games[0], action="patch"),),
                                         (("apga_joint", 4),))  # fmt: skip


@pytest.mark.parametrize(
    ("axes", "rest", "words"),
    [({"num_envs": (0,)}, {}, "num_envs=0"), ({"repeat": (0,)}, {}, "repeat=0"), ({"image_size": (0,)}, {}, "image_si"),
     ({"passes": ("fast",)}, {}, "use one of .*compiled"), ({"vectorization": ("ray",)}, {}, "use one of .*dummy"),
     ({"judge": ("big",)}, {}, "use one of .*densenet169"), ({"precision": ("fp8",)}, {}, "use one of .*bf16"),
     ({"action": ("dots",)}, {}, "use one of .*pixel"), ({"num_envs": ()}, {}, "every axis needs a value"),
     ({"tensors": (True,), "vectorization": ("async",)}, {}, "goes with vectorization='native', not 'async'"),
     ({}, {"rounds": 0}, "rounds=0"), ({}, {"agents": ("dqn",)}, "use some of apga"), ({}, {"agents": ()}, "no row"),
     ({"num_envs": (1,)}, {"agents": ("apga",)}, "N of at least 2")],
)  # fmt: skip
def test_bad_input_is_refused(axes: dict[str, Any], rest: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        settings_of("cpu", axes, **rest)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="use one of"):
        settings_of("fast", {})
