"""`maskaug bench intelligent-masking`: its cells, what they measure, tables, pictures, going on, and the command."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from encoder_grid import READING, TABLE, TASK, TINY
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.metrics import roc_auc_score

from maskaug.benchmarks import encoder_analysis as analysis
from maskaug.benchmarks import encoder_cells
from maskaug.benchmarks.demo_intelligent_masking import demo
from maskaug.benchmarks.encoder_arms import pretrain_arm
from maskaug.benchmarks.encoder_output import run_encoding, write_analysis
from maskaug.benchmarks.encoder_presets import DATA, DEMO, PRESETS, encoding_of
from maskaug.benchmarks.encoders import ARMS, BESIDE, CONTROL, PATCHES, SWAPS, TITLES, Encoding
from maskaug.benchmarks.gallery import read_gallery
from maskaug.benchmarks.grid import Grid
from maskaug.benchmarks.tables import read_tables
from maskaug.benchmarks.tasks import Task, parts
from maskaug.cli import main
from maskaug.envs import busi, lgg
from maskaug.envs.errors import ConfigurationError
from maskaug.options import Arm as ArmOption


def ignore(text: object) -> None:
    """For those who say nothing."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    assert run_encoding(TABLE, folder, say=ignore)
    return folder


def grid_in(out: Path, table: Encoding = TABLE) -> Grid:
    return Grid(out / "runs", table.cells())


def blocks_in(out: Path) -> list[analysis.Block]:
    grid = grid_in(out)
    cells = list(grid.cells.values())
    return list(analysis.blocks(analysis.results(grid.root, cells, grid.results()), cells))


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
    assert (
        Grid(tmp_path, made.cells()).say()
        == f"0 of {len(made.seeds) * 12} cells done, 0 failed, {len(made.cells())} left"
    )
    (task,) = made.tasks
    assert task.env.get("root") == (None if root is None else str(root))
    assert (task.folds == 0) == (data == "synthetic")
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


# ---- cells -----------------------------------------------------------------------------------------------------------


def test_a_cell_leaves_what_intervals_are_made_of(out: Path) -> None:
    folder = out / "runs/tiny/seed0/ours"
    found, figures = load_file(folder / "predictions.safetensors"), json.loads((folder / "results.json").read_text())
    labels = found["labels"]
    assert set(found) == {"labels", "groups", "logistic.6", "logistic.all"}
    assert found["logistic.6"].shape == (READING.draws, len(labels), 2)
    each = [roc_auc_score(labels, p[:, 1]) for p in found["logistic.6"]]
    assert each[0] != each[1]
    assert figures["logistic.6.auroc"] == pytest.approx(np.mean(each))
    assert {"cpu_s", "readout_cpu_s", "correlation.agent", "hit.swapped", "retention.random"} <= set(figures)
    assert not [name for name in json.loads((folder.parent / "random/results.json").read_text()) if "hit" in name]
    about = json.loads((folder / "data.json").read_text())
    assert about["images"] == {"train": 63, "val": 14, "test": 13}
    # The same images and labels for every arm, and others for another seed.
    for arm in ("none", "swapped", "published"):
        assert json.loads((folder.parent / arm / "data.json").read_text()) == about
    assert json.loads((out / "runs/tiny/seed1/ours/data.json").read_text())["digest_test"] != about["digest_test"]


def test_what_was_played_is_read_back(out: Path) -> None:
    train = parts(TASK, None, 0)["train"]
    for arm in ("ours", "published"):
        played = pretrain_arm(TINY, arm, train, 5, 0).played
        assert played is not None
        assert (encoder_cells._read_played(out / f"runs/tiny/seed0/{arm}", 5) == played).all()
    assert not (out / "runs/tiny/seed0/random/played.safetensors").exists()


def test_a_cell_is_its_seed_and_arm(out: Path, tmp_path: Path) -> None:
    cells = {cell.name: cell for cell in TABLE.cells()}
    first = load_file(out / "runs/tiny/seed0/random/predictions.safetensors")
    encoder_cells.arm_cell(cells["tiny/seed0/random"].config, tmp_path, {})
    again = load_file(tmp_path / "predictions.safetensors")
    for name in first:
        assert (first[name] == again[name]).all()
    other = load_file(out / "runs/tiny/seed0/random_patch/predictions.safetensors")
    assert (first["logistic.6"] != other["logistic.6"]).any()


def test_choices_are_made_on_one_half_of_the_validation_images_and_scored_on_the_other() -> None:
    test, val = (encoder_cells.divided_for(TASK, 0, split) for split in ("test", "val"))
    assert test["train"].digest == val["train"].digest
    assert set(val["val"].names) | set(val["test"].names) == set(test["val"].names)
    assert not set(val["val"].names) & set(val["test"].names)
    assert not set(val["test"].names) & set(test["test"].names)
    assert val["test"].split == "val"


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_differences_are_those_of_the_mean_over_draws(out: Path) -> None:
    both, few, every = blocks_in(out)
    assert (both.keys, few.keys, every.keys) == (("logistic.6", "logistic.all"), ("logistic.6",), ("logistic.all",))
    assert not few.shared
    for block in (both, few, every):
        interval = block.difference("ours", "random")
        assert interval is not None
        assert interval.value == pytest.approx(np.mean(block.values("ours") - block.values("random")))
        assert interval.low < interval.value < interval.high
    assert both.values("ours") == pytest.approx((few.values("ours") + every.values("ours")) / 2)
    assert few.difference("ours", "ours") is few.difference("none", None) is few.difference("ours", "mae") is None
    chance = few.improves("ours", "random")
    assert chance is not None
    wins = [a > b for a in few.values("ours") for b in few.values("random")]
    ties = [a == b for a in few.values("ours") for b in few.values("random")]
    assert chance.value == pytest.approx(np.mean(wins) + np.mean(ties) / 2)


def test_the_tables_say_what_is_known(out: Path) -> None:
    tables = {table.title: table for table in read_tables(out / "tables.json")}
    assert list(tables) == [
        "tiny, mean over read-outs and numbers of labels", "tiny, logistic regression, 6 labels",
        "tiny, logistic regression, all labels", "tiny: learned masks and their controls", "tiny: what the maps know",
    ]  # fmt: skip
    main_table = tables["tiny, logistic regression, 6 labels"]
    assert [row[0] for row in main_table.rows] == [TITLES[arm] for arm in ARMS if arm in TABLE.arms]
    assert {table.unfinished for table in tables.values()} == {""}
    row = dict(zip(main_table.columns, next(r for r in main_table.rows if r[0] == "Intelligent Masking"), strict=True))
    block = blocks_in(out)[1]
    assert row["AUROC"] == pytest.approx(block.values("ours").mean())
    assert row["seeds"] == 2
    interval = block.difference("ours", "random")
    assert interval is not None
    assert row["− random of equal area (95 %)"] == interval.text()
    assert row["against random"] == ("not established" if not interval.excludes(0) else row["against random"])
    patch = next(r for r in main_table.rows if r[0] == "as published")
    against = block.difference("published", "random_patch")
    assert against is not None
    assert dict(zip(main_table.columns, patch, strict=True))["− random of equal area (95 %)"] == against.text()
    controls = tables["tiny: learned masks and their controls"]
    assert [row[:2] for row in controls.rows] == [
        [TITLES[arm], TITLES[other]] for arm, others in BESIDE.items() for other in others if other in TABLE.arms
    ]
    assert "better" not in {cell for table in tables.values() for row in table.rows for cell in row} or any(
        i is not None and i.excludes(0) for b in blocks_in(out) for a in b.runs for i in [b.difference(a, "none")]
    )


def test_better_is_said_where_the_interval_says_so(tmp_path: Path) -> None:
    # Nobody is right but "ours", who always is.
    names = {(arm, seed): f"tiny/seed{seed}/{arm}" for arm in ("none", "random", "ours") for seed in (0, 1, 2)}
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    found = []
    for (arm, seed), name in names.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        given = np.stack([labels, labels]) * 1.0 if arm == "ours" else rng.random((2, 40))
        save_file(
            {"labels": labels, "groups": np.arange(40), "logistic.6": np.stack([1 - given, given], 2)},
            folder / "predictions.safetensors",
        )
        (folder / "data.json").write_text('{"source": "synthetic"}')
        auroc = float(np.mean([roc_auc_score(labels, p) for p in given]))
        figures = {f"logistic.6.{k}": 0.5 for k in ("accuracy", "balanced_accuracy", "macro_f1", "ece")}
        found.append(analysis.Result("tiny", seed, arm, {**figures, "logistic.6.auroc": auroc, "cpu_s": 1.0}, folder))
    cells = dataclasses.replace(TABLE, reading=dataclasses.replace(READING, budgets=(6,))).cells()
    (block,) = analysis.blocks(found, cells)
    table = analysis.table(block)
    said = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert said["Intelligent Masking"]["against random"] == said["Intelligent Masking"]["against none"] == "better"
    assert said["random cells"]["against none"] == "not established"
    controls = analysis.controls_table([block])
    assert controls is not None
    assert [row[1:3] + row[5:6] for row in map(list, controls.rows)] == [
        ["no pre-training", 3, "better"], ["random cells", 3, "better"]
    ]  # fmt: skip


def test_folds_of_one_data_set_share_their_groups(out: Path) -> None:
    cells = dataclasses.replace(TABLE, tasks=[dataclasses.replace(TASK, folds=2)]).cells()
    found = analysis.results(out / "runs", cells, grid_in(out).results())
    assert all(block.shared for block in analysis.blocks(found, cells))


def test_files_and_pictures(out: Path) -> None:
    names = {path.name for path in out.iterdir()}
    assert {"runs", "tables.json", "tables.md", "results.csv", "arms.png", "gallery.safetensors"} <= names
    assert len([name for name in names if name.startswith("forest-tiny-")]) == 3
    with (out / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["seed"], row["arm"]) for row in rows] == [
        ("tiny", str(cell.config["seed"]), cell.config["arm"]) for cell in TABLE.cells()
    ]
    figures = grid_in(out).results()["tiny/seed1/ours"]
    (own,) = [row for row in rows if (row["seed"], row["arm"]) == ("1", "ours")]
    assert float(own["logistic.all.auroc"]) == figures["logistic.all.auroc"]
    with Image.open(out / "arms.png") as picture:
        # A line for every arm with a masker: the arms that swap have none.
        assert picture.size[0] > 500
        assert picture.size[1] > 4 * 128
    gallery = read_gallery(out / "gallery.safetensors")
    assert list(gallery.masks) == ["random cells", "Intelligent Masking", "random patch", "as published"]
    areas = {name: masks.mean() for name, masks in gallery.masks.items()}
    assert areas["Intelligent Masking"] == pytest.approx(12 / 25)
    assert areas["as published"] == pytest.approx(4 / 25)
    assert gallery.regions is not None
    assert gallery.regions.any((1, 2)).all()


def test_a_table_is_gone_on_with_and_says_what_is_left(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = dataclasses.replace(TABLE, arms=("none", "random"))
    told: list[str] = []

    def fails(*more: Any) -> Any:
        if more[1] == "random" and more[4] == 1:
            raise RuntimeError("the lights went out")
        return pretrain_arm(*more)

    monkeypatch.setattr(encoder_cells, "pretrain_arm", fails)
    assert not run_encoding(some, tmp_path, say=lambda text: told.append(str(text)))
    assert any("the lights went out" in line for line in told)
    tables = read_tables(tmp_path / "tables.json")
    assert {table.unfinished for table in tables} == {"3 of 4 cells done, 1 failed, 0 left"}
    assert "Unfinished" in (tmp_path / "tables.md").read_text(encoding="utf-8")
    done: list[tuple[str, int]] = []

    def counted(*more: Any) -> Any:
        done.append((more[1], more[4]))
        return pretrain_arm(*more)

    monkeypatch.setattr(encoder_cells, "pretrain_arm", counted)
    assert run_encoding(some, tmp_path, say=ignore)
    assert done == [("random", 1)]
    assert {table.unfinished for table in read_tables(tmp_path / "tables.json")} == {""}
    # Cut off or not, alone or among other arms: the same figures.
    for name in ("none", "random"):
        one, two = (load_file(f / f"runs/tiny/seed1/{name}/predictions.safetensors") for f in (out, tmp_path))
        assert (one["logistic.6"] == two["logistic.6"]).all()
    # An arm is added to what is there.
    assert run_encoding(dataclasses.replace(some, arms=("none", "random", "centre")), tmp_path, say=ignore)
    assert done[1:] == [("centre", 0), ("centre", 1)]
    other = dataclasses.replace(some, pretraining=dataclasses.replace(TINY, updates=4))
    with pytest.raises(ConfigurationError, match=r"pretraining\.updates"):
        run_encoding(other, tmp_path, say=ignore)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    one = dataclasses.replace(TABLE, seeds=(0,), arms=("none", "random", "ours"))
    assert run_encoding(one, tmp_path, say=ignore)
    assert "…" not in (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("forest-*"))
    nothing = dataclasses.replace(one, arms=("none",))
    assert write_analysis(Grid(tmp_path / "other", nothing.cells()), tmp_path / "nothing") == []
    assert run_encoding(nothing, tmp_path / "none", say=ignore)
    assert not (tmp_path / "none" / "arms.png").exists()


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "intelligent-masking", "--out", str(tmp_path), "--preset", "smoke", "--seeds", "2"]
    words += ["--arms", "none", "random", "ours"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "0 of 6 cells done, 0 failed, 6 left" in printed
    assert "### ultrasound, the paper's head, 6 labels" in printed
    assert main(words) == 0
    assert "6 of 6 cells done" in capsys.readouterr().out.splitlines()[0]
    assert main([*words, "--data", "busi"]) == 2
    assert "--root" in capsys.readouterr().err
    # A run that has failed is an exit status.
    (tmp_path / "runs/ultrasound/seed1/ours/results.json").unlink()
    blocked = tmp_path / "runs/ultrasound/seed1/ours/predictions.safetensors"
    blocked.unlink()
    blocked.mkdir()
    assert main(words) == 1
    assert "1 failed" in capsys.readouterr().out


@pytest.mark.parametrize("data", ["busi", "lgg"])
def test_real_layouts_are_folds_of_whole_groups(data: str, tmp_path: Path) -> None:
    if data == "busi":
        root = busi.write_example(tmp_path, n_per_class=14)
    else:
        root = lgg.write_example(tmp_path, patients=12, slices=4, side=48).parent
    arms = ["none", "ours"]
    made = encoding_of(data, "smoke", root, arms=arms)
    reading = dataclasses.replace(made.reading, readouts=("logistic",))
    assert run_encoding(dataclasses.replace(made, reading=reading), tmp_path / "out", say=ignore)
    tests = []
    for seed in (0, 1):
        divided = encoder_cells.divided_for(made.tasks[0], seed, "test")
        groups = {name: set(part.groups.tolist()) for name, part in divided.items()}
        assert not groups["train"] & groups["test"]
        assert not groups["val"] & groups["test"]
        tests.append(groups["test"])
        assert json.loads((tmp_path / f"out/runs/{data}/seed{seed}/none/data.json").read_text())["source"] == data
    assert not tests[0] & tests[1]
    tables = read_tables(tmp_path / "out" / "tables.json")
    assert f"Images: {data}." in tables[0].note
    assert "by group" in tables[0].note
    assert not any(table.stand_in for table in tables)


def test_the_demo_leaves_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo(tmp_path, dataclasses.replace(TABLE, seeds=(0,), arms=("none", "random", "ours")), jobs=1)
    assert {"tables.md", "arms.png", "results.csv"} <= {path.name for path in tmp_path.iterdir()}
    assert "1 seeds × 3 arms, 3 updates each" in capsys.readouterr().out
    assert set(DEMO.arms) <= set(ARMS)
    assert isinstance(DEMO.tasks[0], Task)
