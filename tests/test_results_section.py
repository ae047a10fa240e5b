"""README's results section is what benchmarks/results holds, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from maskaug.benchmarks.results_section import BEGIN, END, SHOWN, Shown, section, update
from maskaug.benchmarks.tables import Table, write_tables
from maskaug.envs.errors import ConfigurationError

HERE = Path(__file__).resolve().parents[1]
ONE = Shown("a", "first", ("arm", "AUROC", "no such column"), "What helps?", "maskaug bench apga --out DIR", "map.png")


def results(folder: Path) -> Path:
    (folder / "a").mkdir()
    rows: list[list[float | int | str | None]] = [["none", 3, 0.5], ["|x|", 3, -0.25]]
    tables = [
        Table("other", ["arm"], [["none"]]),
        Table("first, 60 %", ["arm", "seeds", "AUROC"], rows, "A note.", "3 left"),
    ]
    write_tables(folder / "a" / "tables.json", tables)
    return folder


def test_the_committed_readme_is_up_to_date() -> None:
    text = (HERE / "README.md").read_text(encoding="utf-8")
    assert section(HERE / "benchmarks" / "results") in text
    for one in SHOWN:
        folder = HERE / "benchmarks" / "results" / one.folder
        assert not folder.is_dir() or not one.picture or (folder / one.picture).is_file(), one


def test_a_section_by_hand(tmp_path: Path) -> None:
    text = section(results(tmp_path), [ONE, Shown("missing", "x", (), "", "")])
    assert text.split("\n") == [
        BEGIN, "", "### What helps?", "", "**UNFINISHED: 3 left**", "",
        "`maskaug bench apga --out DIR` ([the whole table](benchmarks/results/a/tables.md)). A note.", "",
        "| arm | AUROC |", "|---|---|", "| none | 0.500 |", "| \\|x\\| | −0.250 |", "",
        "![What helps?](benchmarks/results/a/map.png)", "", END,
    ]  # fmt: skip


def test_a_section_of_some_rows(tmp_path: Path) -> None:
    text = section(results(tmp_path), [dataclasses.replace(ONE, rows=("|x|",))])
    assert [line for line in text.split("\n") if line.startswith("|")] == [
        "| arm | AUROC |", "|---|---|", "| \\|x\\| | −0.250 |",
    ]  # fmt: skip


def test_a_readme_is_written_between_its_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Top\n\n{BEGIN}\nold figures\n{END}\n\nbottom\n")
    (tmp_path / "results").mkdir()
    assert update(readme, tmp_path / "results")
    assert readme.read_text() == f"# Top\n\n{BEGIN}\n\n{END}\n\nbottom\n"
    assert not update(readme, tmp_path / "results")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Top\n")
    with pytest.raises(ConfigurationError, match="has no results section"):
        update(readme, tmp_path)
    with pytest.raises(ConfigurationError, match="no table whose title begins with 'third'"):
        section(results(tmp_path), [Shown("a", "third", (), "", "")])
