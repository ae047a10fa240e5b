"""`maskaug bench apga` as a command: what it leaves, going on, and one line for bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from augmentation_made_up import make_up

from maskaug.benchmarks import augmentation_cells, augmentation_presets
from maskaug.benchmarks.augmentation_presets import Preset, preset_of
from maskaug.benchmarks.tables import read_tables
from maskaug.cli import main
from maskaug.envs import busi, mura

SMOKE = ["bench", "apga", "--preset", "smoke"]


def test_the_smallest_smoke_leaves_every_file_and_goes_on_without_running_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMOKE, "--out", str(tmp_path), "--arms", "none", "random", "apga", "--seeds", "1"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "0 of 10 cells done" in first
    assert "10 of 10 cells done, 0 failed, 0 left" in first
    assert "### radiographs-easy, 8 labels a class, 60% hidden" in first
    for name in ("tables.json", "tables.md", "results.csv", "gallery.safetensors"):
        assert (tmp_path / name).is_file(), name
    assert {t.unfinished for t in read_tables(tmp_path / "tables.json")} == {""}
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("results.json")}
    assert len(stamps) == 10
    assert main(words) == 0
    again = capsys.readouterr().out
    assert again.startswith("10 of 10 cells done")
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    # More seeds later: only what is new is run, and the folder is the same.
    assert main([*words[:-1], "2"]) == 0
    assert "10 of 20 cells done" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    assert list(tmp_path.glob("forest-*.png"))


def test_other_settings_in_the_same_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_up(monkeypatch)
    words = [*SMOKE, "--out", str(tmp_path), "--arms", "none", "random"]
    assert main(words) == 0
    assert main([*words, "--split", "val"]) == 2
    assert "holds a run with another split" in capsys.readouterr().err


def test_a_run_that_fails_is_a_status_and_marked_in_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_up(monkeypatch)
    whole = augmentation_cells.classifier

    def broken(config: dict[str, object], folder: Path, inputs: object) -> dict[str, float]:
        if config["arm"] == "cutout":
            raise ValueError("broken on purpose")
        return whole(config, folder, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(augmentation_cells, "classifier", broken)
    words = [*SMOKE, "--out", str(tmp_path), "--arms", "none", "random", "cutout", "--seeds", "2"]
    assert main(words) == 1
    assert "broken on purpose" in capsys.readouterr().out
    tables = read_tables(tmp_path / "tables.json")
    assert tables
    assert all("2 failed" in t.unfinished for t in tables)
    # Mended: only what had failed is run.
    monkeypatch.setattr(augmentation_cells, "classifier", whole)
    assert main(words) == 0
    assert "2 failed" in capsys.readouterr().out.splitlines()[0]
    assert not any(t.unfinished for t in read_tables(tmp_path / "tables.json"))


@pytest.mark.parametrize("data", ["busi", "mura"])
def test_data_sets_come_from_their_root(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = (
        busi.write_example(tmp_path, n_per_class=30)
        if data == "busi"
        else mura.write_example(tmp_path, n=90, body_parts=["humerus"], side=(40, 60))
    )
    words = [*SMOKE, "--data", data, "--root", str(root), "--arms", "none", "random", "--seeds", "1"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert f"Images: {data}" in shown
    assert "MADE-UP" not in shown.upper()
    assert ("| humerus | no masks | 1 |" in shown and "85.69 ± 0.93 | 288 |" in shown) == (data == "mura")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "busi"], "name the data set's folder by --root"),
        (["--root", "."], "leave it out"),
        (["--data", "busi", "--root", "nowhere"], "nowhere"),
        (["--data", "mura", "--root", "."], "MURA"),
        (["--seeds", "0"], "seeds=0"),
        (["--arms", "magic"], "unknown arm magic"),
        (["--jobs", "0"], "jobs=0"),
        (["--gpus", "0.5"], "gpus=0.5"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_made(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SMOKE, "--out", "out", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "out").exists()


def test_the_preset_is_that_of_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_up(monkeypatch)
    asked: list[object] = []

    def spy(*arguments: object) -> Preset:
        asked.append(arguments)
        return preset_of("synthetic", "smoke", seeds=1, arms=["none"])

    monkeypatch.setattr(augmentation_presets, "preset_of", spy)
    root = tmp_path / "root"
    assert main(["bench", "apga", "--out", str(tmp_path / "out"), "--preset", "paper", "--seeds", "7"]) == 0
    assert asked == [("synthetic", "paper", None, 7, None)]
    assert not root.exists()
