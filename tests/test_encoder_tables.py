"""`maskaug bench intelligent-masking`: what its cells measure, tables, pictures, and going on."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_grid import READING, TABLE, TASK, TINY, ignore
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.metrics import roc_auc_score

from maskaug.benchmarks import encoder_analysis as analysis
from maskaug.benchmarks import encoder_cells
from maskaug.benchmarks.encoder_arms import pretrain_arm
from maskaug.benchmarks.encoder_output import run_encoding, write_analysis
from maskaug.benchmarks.encoders import ARMS, BESIDE, TITLES, Encoding
from maskaug.benchmarks.gallery import read_gallery
from maskaug.benchmarks.grid import Grid
from maskaug.benchmarks.statistics import verdict
from maskaug.benchmarks.tables import read_tables
from maskaug.benchmarks.tasks import divided_for, parts
from maskaug.envs.errors import ConfigurationError


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
    test, val = (divided_for(TASK, None, 0, split) for split in ("test", "val"))
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
    # Two seeds are too few to resample.
    assert few.improves("ours", "random") is None


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
    assert row["against random"] == verdict(interval)
    patch = next(r for r in main_table.rows if r[0] == "as published")
    against = block.difference("published", "random_patch")
    assert against is not None
    assert dict(zip(main_table.columns, patch, strict=True))["− random of equal area (95 %)"] == against.text()
    controls = tables["tiny: learned masks and their controls"]
    assert [row[:2] for row in controls.rows] == [
        [TITLES[arm], TITLES[other]] for arm, others in BESIDE.items() for other in others if other in TABLE.arms
    ]
    for arm, said in zip(block.runs, main_table.rows, strict=True):
        gain = block.difference(arm, "none")
        assert dict(zip(main_table.columns, said, strict=True))["against none"] == (verdict(gain) if gain else "")


def test_better_is_said_where_the_interval_says_so(tmp_path: Path) -> None:
    # Nobody is right but "ours", who always is.
    names = {(arm, seed): f"tiny/seed{seed}/{arm}" for arm in ("none", "random", "ours") for seed in range(5)}
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
        figures |= {"logistic.6.auroc": auroc, "cpu_s": 1.0}
        result = analysis.Result(task="tiny", seed=seed, arm=arm, figures=figures, folder=folder, area=TINY.area)
        found.append(result)
    cells = dataclasses.replace(TABLE, reading=dataclasses.replace(READING, budgets=(6,))).cells()
    (block,) = analysis.blocks(found, cells)
    table = analysis.table(block)
    said = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert said["Intelligent Masking"]["against random"] == said["Intelligent Masking"]["against none"] == "better"
    assert said["random cells"]["against none"] == "not established"
    controls = analysis.controls_table([block])
    assert controls is not None
    assert [row[1:3] + row[5:6] for row in map(list, controls.rows)] == [
        ["no pre-training", 5, "better"], ["random cells", 5, "better"]
    ]  # fmt: skip
    chance, other = block.improves("ours", "random"), block.improves("random", "none")
    assert chance is not None
    assert other is not None
    assert chance.value == 1
    wins = [a > b for a in block.values("random") for b in block.values("none")]
    ties = [a == b for a in block.values("random") for b in block.values("none")]
    assert other.value == pytest.approx(np.mean(wins) + np.mean(ties) / 2)


def test_folds_of_one_data_set_share_their_groups(out: Path) -> None:
    cells = dataclasses.replace(TABLE, tasks=[dataclasses.replace(TASK, folds=2)]).cells()
    found = analysis.results(out / "runs", cells, grid_in(out).results())
    folds, apart = (list(analysis.blocks(found, some)) for some in (cells, TABLE.cells()))
    assert {(block.shared, block.test_share) for block in folds} == {(True, 1.0)}
    assert {(block.shared, block.test_share) for block in apart} == {(False, 0.0)}
    # Two folds: the variance of their mean counts 1/2 + 1 in place of 1/2.
    ours, plain = (some[0].difference("ours", "none") for some in (folds, apart))
    assert ours is not None
    assert plain is not None
    assert ours.value == pytest.approx(plain.value)
    assert ours.high - ours.low > 1.5 * (plain.high - plain.low)
    assert "1/n + 1.00" in analysis.table(folds[0]).note


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


def test_a_map_of_areas_stands_beside_what_all_arms_hide(out: Path, tmp_path: Path) -> None:
    assert not list(out.glob("map-*"))
    reading = dataclasses.replace(READING, readouts=("logistic", "paper"), epochs=2)
    some = dataclasses.replace(TABLE, arms=("none", "random", "ours", "published"), reading=reading, areas=(0.2,))
    assert run_encoding(some, tmp_path, say=ignore)
    tables = {table.title: table for table in read_tables(tmp_path / "tables.json")}
    assert [row[0] for row in tables["tiny, logistic regression, 6 labels"].rows] == [TITLES[arm] for arm in some.arms]
    # One half comes from the runs of all arms, whichever read-outs those have besides.
    areas = tables["tiny: areas"]
    names = ["random cells", "Intelligent Masking"]
    assert [row[:5] for row in areas.rows] == [
        [name, *area, labels, 2]
        for name in names for area in (("20%", "5 of 25"), ("50%", "12 of 25")) for labels in ("6", "all")
    ]  # fmt: skip
    figures = Grid(tmp_path / "runs", some.cells()).results()
    mean = {
        area: np.mean([figures[f"tiny/seed{seed}/ours{area}"]["logistic.all.auroc"] for seed in (0, 1)])
        for area in ("-0.2", "")
    }
    assert mean[""] != mean["-0.2"]
    said = {(row[0], row[1], row[3]): dict(zip(areas.columns, row, strict=True)) for row in areas.rows}
    for area, share in (("-0.2", "20%"), ("", "50%")):
        row = said["Intelligent Masking", share, "all"]
        assert row["AUROC"] == pytest.approx(mean[area])
        for other, column in (("none", "− no pre-training (95 %)"), (f"random{area}", "− random of equal area (95 %)")):
            theirs = np.mean([figures[f"tiny/seed{s}/{other}"]["logistic.all.auroc"] for s in (0, 1)])
            gain = float(str(row[column]).split()[0].replace("−", "-"))
            assert gain == pytest.approx(mean[area] - theirs, abs=6e-4)
    assert all("paper.6.auroc" not in figures[f"tiny/seed0/{arm}-0.2"] for arm in ("random", "ours"))
    assert areas.note.startswith("Logistic regression. Images: synthetic.")
    assert {path.name for path in tmp_path.glob("map-*")} == {"map-tiny.png"}
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = [(r["seed"], r["arm"], r["area"]) for r in csv.DictReader(file)]
    assert {row for row in rows if row[0] == "1"} == {
        ("1", arm, area) for arm in ("random", "ours") for area in ("0.5", "0.2")
    } | {("1", "none", ""), ("1", "published", "")}  # fmt: skip
    gallery = read_gallery(tmp_path / "gallery.safetensors").masks
    assert gallery["Intelligent Masking"].mean() == pytest.approx(12 / 25)
    assert "of twenty comparisons" in areas.note
    assert "IQM" not in areas.note
    # Without further areas the map goes.
    run_encoding(dataclasses.replace(some, areas=()), tmp_path, say=ignore)
    assert not list(tmp_path.glob("map-*"))


def test_other_areas_do_not_stand_in_for_what_all_arms_hide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = dataclasses.replace(TABLE, arms=("random", "ours"), areas=(0.2,))

    def fails(settings: Any, arm: str, *more: Any) -> Any:
        if settings.area == 0.5 and arm in failing:
            raise RuntimeError("the lights went out")
        return pretrain_arm(settings, arm, *more)

    monkeypatch.setattr(encoder_cells, "pretrain_arm", fails)
    failing = ["random", "ours"]
    # With nothing of the share that all arms hide there is nothing to say, and nothing to show.
    assert not run_encoding(some, tmp_path, say=ignore)
    assert read_tables(tmp_path / "tables.json") == []
    assert not (tmp_path / "gallery.safetensors").exists()
    failing = ["ours"]
    assert not run_encoding(some, tmp_path, say=ignore)
    tables = {table.title: table for table in read_tables(tmp_path / "tables.json")}
    assert [row[0] for row in tables["tiny, logistic regression, all labels"].rows] == ["random cells"]
    assert list(read_gallery(tmp_path / "gallery.safetensors").masks) == ["random cells"]
    areas = tables["tiny: areas"]
    assert [row[:2] for row in areas.rows if row[3] == "all"] == [
        ["random cells", "20%"], ["random cells", "50%"], ["Intelligent Masking", "20%"]
    ]  # fmt: skip
    assert areas.unfinished == "6 of 8 cells done, 2 failed, 0 left"
    # Of different seeds it is said.
    failing = []
    (tmp_path / "runs/tiny/seed1/random/results.json").unlink()
    grid = grid_in(tmp_path, some)
    uneven = {table.title: table for table in write_analysis(grid, tmp_path)}["tiny: areas"]
    assert "Rows have 1 or 2 seeds" in uneven.note


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
    assert "UNFINISHED: 3 of 4 cells done" in (tmp_path / "tables.md").read_text(encoding="utf-8")
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
