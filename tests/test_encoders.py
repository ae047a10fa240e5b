"""`maskaug bench intelligent-masking`: its settings, presets, command and demo."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from encoder_grid import TABLE, TASK, ignore

from maskaug.benchmarks.demo_intelligent_masking import demo
from maskaug.benchmarks.encoder_output import run_encoding
from maskaug.benchmarks.encoder_presets import DATA, DEMO, PRESETS, encoding_of
from maskaug.benchmarks.encoders import ARMS, BESIDE, CONTROL, PATCHES, SWAPS
from maskaug.benchmarks.grid import Grid
from maskaug.benchmarks.tables import read_tables
from maskaug.benchmarks.tasks import Task, divided_for
from maskaug.cli import main
from maskaug.envs import busi, lgg
from maskaug.envs.errors import ConfigurationError
from maskaug.options import Arm as ArmOption

# ---- settings --------------------------------------------------------------------------------------------------------


def test_every_arm_has_its_controls() -> None:
    assert get_args(ArmOption) == ARMS
    assert set(CONTROL) | {"none", "autoencoder", "mae", "random", "random_patch"} == set(ARMS)
    for arm, others in BESIDE.items():
        # Chance, one fixed mask, and its own on other images; those of a patch play its game.
        assert CONTROL[arm] in others
        assert [other for other in others if SWAPS.get(other) == arm]
        assert [other for other in others if other.startswith("centre")]
        assert {other in PATCHES for other in others if other in CONTROL} == {arm in PATCHES}


def test_other_areas_are_runs_of_their_own_of_the_arms_that_hide_what_they_are_told() -> None:
    arms = ("none", "centre", "ours", "mae", "published")
    readouts = dataclasses.replace(TABLE.reading, readouts=("paper", "logistic"))
    cells = {
        c.name: c.config for c in dataclasses.replace(TABLE, arms=arms, areas=(0.05, 0.6), reading=readouts).cells()
    }
    seed = [name.removeprefix("tiny/seed1/") for name in cells if "seed1" in name]
    assert seed == ["none", "centre", "mae", "ours", "published", "centre-0.05", "ours-0.05", "centre-0.6", "ours-0.6"]
    other, usual = cells["tiny/seed1/ours-0.6"], cells["tiny/seed1/ours"]
    assert (other["pretraining"]["area"], usual["pretraining"]["area"]) == (0.6, 0.5)
    assert (other["reading"]["readouts"], usual["reading"]["readouts"]) == (["logistic"], ["paper", "logistic"])
    # All else is the same; and where there is no logistic regression, what there is reads out.
    assert {**other, "pretraining": 0, "reading": 0} == {**usual, "pretraining": 0, "reading": 0}
    head = dataclasses.replace(TABLE, areas=(0.6,), reading=dataclasses.replace(readouts, readouts=("paper",)))
    assert all(c.config["reading"]["readouts"] == ["paper"] for c in head.cells())


def test_a_cell_for_every_seed_and_arm_and_swaps_come_after_what_they_swap() -> None:
    cells = {cell.name: cell for cell in TABLE.cells()}
    assert len(cells) == 2 * 6
    swapped = cells["tiny/seed1/swapped"]
    assert swapped.needs == ("tiny/seed1/ours",)
    names = list(cells)
    assert names.index("tiny/seed0/ours") < names.index("tiny/seed0/swapped") < names.index("tiny/seed1/none")
    assert cells["tiny/seed1/ours"].needs == ()
    assert swapped.config["seed"] == 1
    assert "seed" not in swapped.config["reading"]
    # What is swapped has to be there.
    alone = dataclasses.replace(TABLE, arms=("swapped",)).cells()
    assert [cell.config["arm"] for cell in alone] == ["ours", "swapped"] * 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"arms": ("best",)}, "unknown arm best"), ({"arms": ("ours", "ours")}, "arms must name"),
        ({"arms": ()}, "arms must name"), ({"seeds": ()}, "seeds must name"), ({"seeds": (-1,)}, "at least 0"),
        ({"tasks": [TASK, TASK]}, "tasks must name"), ({"split": "train"}, "split='train'"),
        ({"areas": (0.5,)}, "areas="), ({"areas": (0.2, 0.2)}, "areas="), ({"areas": (1.0,)}, "areas="),
        ({"areas": (float("nan"),)}, "areas="),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_are_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        dataclasses.replace(TABLE, **change)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("data", list(DATA))
def test_every_preset_makes_a_grid(data: str, preset: str, tmp_path: Path) -> None:
    root = None if data == "synthetic" else tmp_path
    made = encoding_of(data, preset, root)
    count = len(made.seeds) * (12 + 3 * len(made.areas))
    assert Grid(tmp_path, made.cells()).say() == f"0 of {count} cells done, 0 failed, {count} left"
    assert (0.05 in made.areas) == (data != "synthetic" or preset != "cpu")
    (task,) = made.tasks
    assert task.name == {"synthetic": "ultrasound"}.get(data, data)
    assert task.env.get("root") == (None if root is None else str(root))
    assert (task.folds == 0) == (data == "synthetic")
    if preset == "cpu":
        assert (task.env["image_size"], task.env["grid"]) == ((96, 12) if data in ("busi", "lgg") else (64, 8))
    if preset == "paper":
        assert (task.env["image_size"], len(made.seeds), made.pretraining.device) == (288, 20, "auto")
        assert (made.pretraining.reconstructor, made.pretraining.network) == ("context_encoder", "paper")
    few = encoding_of(data, preset, root, seeds=1, arms=["none", "ours"], split="val")
    assert (list(few.seeds), few.arms, few.split) == ([0], ["none", "ours"], "val")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mura", "cpu"), "data='mura'"), (("synthetic", "quick"), "preset='quick'"), (("busi", "cpu"), "--root"),
        (("synthetic", "cpu", Path("x")), "leave it out"), (("synthetic", "cpu", None, 0), "seeds=0"),
    ],
)  # fmt: skip
def test_bad_presets_are_refused(words: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        encoding_of(*words)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "intelligent-masking", "--out", str(tmp_path), "--preset", "smoke", "--seeds", "2"]
    words += ["--arms", "none", "random", "ours"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "0 of 10 cells done, 0 failed, 10 left" in printed
    assert "### ultrasound, the paper's head, 6 labels" in printed
    assert main(words) == 0
    assert "10 of 10 cells done" in capsys.readouterr().out.splitlines()[0]
    assert main([*words, "--data", "busi"]) == 2
    assert "--root" in capsys.readouterr().err
    # A run that has failed is an exit status.
    (tmp_path / "runs/ultrasound/seed1/ours/results.json").unlink()
    blocked = tmp_path / "runs/ultrasound/seed1/ours/predictions.safetensors"
    blocked.unlink()
    blocked.mkdir()
    assert main(words) == 1
    assert "1 failed" in capsys.readouterr().out


@pytest.mark.parametrize("data", ["busi", "busi-presence", "lgg"])
def test_real_layouts_are_folds_of_whole_groups(data: str, tmp_path: Path) -> None:
    source = data.partition("-")[0]
    if source == "busi":
        root = busi.write_example(tmp_path, n_per_class=14)
    else:
        root = lgg.write_example(tmp_path, patients=12, slices=4, side=48).parent
    arms = ["none", "ours"]
    made = encoding_of(data, "smoke", root, arms=arms)
    reading = dataclasses.replace(made.reading, readouts=("logistic",))
    assert run_encoding(dataclasses.replace(made, reading=reading), tmp_path / "out", say=ignore)
    tests = []
    for seed in (0, 1):
        divided = divided_for(made.tasks[0], None, seed, "test")
        groups = {name: set(part.groups.tolist()) for name, part in divided.items()}
        assert not groups["train"] & groups["test"]
        assert not groups["val"] & groups["test"]
        tests.append(groups["test"])
        about = json.loads((tmp_path / f"out/runs/{data}/seed{seed}/none/data.json").read_text())
        assert about["source"] == source
    assert not tests[0] & tests[1]
    tables = read_tables(tmp_path / "out" / "tables.json")
    assert f"Images: {source}." in tables[0].note
    assert "by group" in tables[0].note
    assert not any(table.stand_in for table in tables)


def test_the_demo_leaves_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo(tmp_path, dataclasses.replace(TABLE, seeds=(0,), arms=("none", "random", "ours")), jobs=1)
    assert {"tables.md", "arms.png", "results.csv"} <= {path.name for path in tmp_path.iterdir()}
    assert "1 seeds × 3 arms, 3 updates each" in capsys.readouterr().out
    assert set(DEMO.arms) <= set(ARMS)
    assert isinstance(DEMO.tasks[0], Task)
