"""Benchmarks whose images change between two calls, or are too few: one clear word, and no table of two data sets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from augmentation_grid import sweep
from encoder_grid import TABLE, TASK, ignore
from PIL import Image
from safetensors.numpy import load_file, save_file

from maskaug.benchmarks import augmentation_output, encoder_cells
from maskaug.benchmarks.augmentation import Training, cells
from maskaug.benchmarks.encoder_output import run_encoding, write_analysis
from maskaug.benchmarks.grid import Grid
from maskaug.benchmarks.tables import read_tables
from maskaug.benchmarks.tasks import divided_for
from maskaug.cli import main
from maskaug.envs import busi, dataset_registry
from maskaug.envs.errors import ConfigurationError, DatasetError

QUICK = dataclasses.replace(TABLE, arms=("none", "random"))


def pretend(folder: Path, part: str) -> None:
    """Let a finished cell have run on other images than it has."""
    about = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps({**about, f"digest_{part}": "0" * 64}))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    assert run_encoding(QUICK, tmp_path, say=ignore)
    return tmp_path


def test_no_table_is_made_of_two_data_sets(out: Path) -> None:
    before = (out / "tables.json").read_bytes()
    pretend(out / "runs/tiny/seed1/random", "test")
    with pytest.raises(ConfigurationError, match=r"the test images of .*seed1/none were others .*seed1/random"):
        write_analysis(Grid(out / "runs", QUICK.cells()), out)
    assert (out / "tables.json").read_bytes() == before


def test_going_on_with_other_images_is_refused_before_anything_runs(out: Path) -> None:
    pretend(out / "runs/tiny/seed0/none", "val")
    more = dataclasses.replace(QUICK, seeds=(0, 1, 2))
    with pytest.raises(ConfigurationError, match=r"the val images of .*seed0/none were others than those of what"):
        run_encoding(more, out, say=ignore)
    assert not (out / "runs/tiny/seed2").exists()


def test_apga_makes_no_table_of_two_data_sets_either(tmp_path: Path) -> None:
    training = Training(updates=2, batch=8)
    grid = Grid(tmp_path / "runs", cells([sweep("none", "random")], training))
    assert set(grid.run(say=ignore).values()) == {"done"}
    augmentation_output.write_analysis(grid, tmp_path)
    (random,) = [name for name in grid.cells if "random" in name]
    pretend(grid.root / random, "train")
    with pytest.raises(ConfigurationError, match="the train images of"):
        augmentation_output.write_analysis(grid, tmp_path)


@pytest.mark.parametrize("what", ["labels", "groups"])
def test_cells_that_have_scored_other_images_are_not_paired(what: str, out: Path, tmp_path: Path) -> None:
    def reversed_in(file: Path) -> None:
        found = load_file(file)
        save_file({**found, what: found[what][::-1].copy()}, file)

    reversed_in(out / "runs/tiny/seed1/random/predictions.safetensors")
    with pytest.raises(ConfigurationError, match=rf"seed1/random and .*seed1/none: the {what} of the scored images"):
        write_analysis(Grid(out / "runs", QUICK.cells()), out)
    grid = Grid(tmp_path / "apga", cells([sweep("none", "random", seeds=[0, 1])], Training(updates=2, batch=8)))
    grid.run(say=ignore)
    (random,) = [name for name in grid.cells if "seed1/random" in name]
    reversed_in(grid.root / random / "predictions.safetensors")
    with pytest.raises(ConfigurationError, match=rf"seed 1, .* and .*: the {what} of the scored"):
        augmentation_output.write_analysis(grid, tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("benchmark", ["apga", "intelligent-masking"])
def test_replaced_pictures_are_noticed(
    benchmark: str, split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = busi.write_example(tmp_path, n_per_class=60)
    words = ["bench", benchmark, "--data", "busi", "--preset", "smoke", "--root", str(root), "--seeds", "1"]
    words += ["--out", str(tmp_path / "out"), "--split", split, "--arms", "none"]
    assert main(words) == 0
    assert main(words) == 0
    for file in root.rglob("* (1*).png"):
        with Image.open(file) as picture:
            other = np.array(picture)[:, ::-1]
        Image.fromarray(other).save(file)
    # One process reads a folder once; the next call of the command reads it anew.
    dataset_registry._load_parts.cache_clear()
    capsys.readouterr()
    assert main([*words, "random"]) == 2
    assert "images of" in (said := capsys.readouterr().err)
    assert "choose another --out" in said
    assert not list((tmp_path / "out/runs").rglob("random*"))


def test_a_folder_that_is_not_there_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "intelligent-masking", "--data", "busi", "--preset", "smoke", "--root", str(tmp_path / "nope")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert str(tmp_path / "nope") in shown.err
    assert "failed:" not in shown.out
    assert not (tmp_path / "out").exists()


def test_an_example_that_is_too_small_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = busi.write_example(tmp_path, n_per_class=3)
    words = ["bench", "intelligent-masking", "--data", "busi", "--preset", "smoke", "--root", str(root)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "fold 1 of 2 has no" in said
    assert "bring more images" in said


# ---- pictures and tables of the last call ----------------------------------------------------------------------------


def test_a_smaller_call_leaves_nothing_of_a_larger_one(out: Path) -> None:
    assert list(out.glob("forest-*.png"))
    assert (out / "arms.png").is_file()
    (out / "mine.png").write_bytes(b"")
    small = dataclasses.replace(QUICK, seeds=(1,), arms=("none",))
    assert run_encoding(small, out, say=ignore)
    assert sorted(path.name for path in out.glob("*.png")) == ["mine.png"]
    assert not (out / "gallery.safetensors").exists()
    notes = {table.note for table in read_tables(out / "tables.json")}
    told = "Without 3 more runs in runs/, which this call did not ask for."
    assert notes
    assert all(told in note for note in notes)
    assert run_encoding(QUICK, out, say=ignore)
    assert not any("more runs in" in table.note for table in read_tables(out / "tables.json"))
    assert (out / "arms.png").is_file()


# ---- too few images for an interval, or for a score ------------------------------------------------------------------


def test_images_that_are_too_few_for_an_interval_still_have_their_tables(out: Path) -> None:
    for file in (out / "runs").rglob("predictions.safetensors"):
        found = load_file(file)
        save_file({**found, "groups": np.zeros_like(found["groups"])}, file)
    tables = write_analysis(Grid(out / "runs", QUICK.cells()), out)
    assert all("No interval: run 0: an interval over groups needs at least two groups" in t.note for t in tables)
    for table in tables:
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        assert {row["− no pre-training (95 %)"] for row in rows} == {""}
        assert all(isinstance(row["AUROC"], float) for row in rows)
    assert not list(out.glob("forest-*"))


def test_a_cell_that_cannot_be_scored_stops_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = divided_for(TASK, None, 0, "test")
    labels = whole["test"].labels
    assert labels is not None
    one_class = {**whole, "test": whole["test"].subset(labels == 0)}
    monkeypatch.setattr("maskaug.benchmarks.encoder_cells.divided_for", lambda *_: one_class)
    with pytest.raises(DatasetError, match="no test image is"):
        encoder_cells.arm_cell(QUICK.cells()[0].config, tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_validation_images_that_cannot_be_halved_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = divided_for(TASK, None, 0, "test")
    few = {**whole, "val": whole["val"].subset([0])}
    monkeypatch.setattr("maskaug.benchmarks.tasks.parts", lambda *_: few)
    with pytest.raises(DatasetError, match="task tiny, seed 0: the 1 validation images are too few groups"):
        divided_for(TASK, None, 0, "val")
