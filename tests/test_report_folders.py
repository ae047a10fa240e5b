"""Folders that are not as they should be, and the command `maskaug report`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from report_page import Page, made
from report_toy import cell, everything, picture, write

from maskaug.benchmarks.report import report
from maskaug.benchmarks.report_found import collect
from maskaug.cli import main

# ---- folders that are not as they should be --------------------------------------------------------------------------


def test_files_that_cannot_be_used_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    cell(root / "good", {"auroc": 0.5})
    for name, text in {"a": "{", "b": "[1]", "c": "[" * 100_000, "d": '{"x": ' + "1" * 5000 + "}"}.items():
        write(root / name / "results.json", text)
    write(root / "e/config.json", "\x00")
    write(root / "f/tables.json", [{"title": "t"}])
    write(root / "g/gallery.safetensors", "no gallery")
    write(root / "good/masks.png", "no picture")
    write(root / "good/metrics.csv", 'loss,"')
    (root / "h").mkdir()
    os.mkfifo(root / "h/config.json")
    page = made(tmp_path / "page.html", root)
    assert "10 files could not be used" in page.text
    for name in ("a/results.json", "b/results.json", "c/results.json", "d/results.json", "e/config.json"):
        assert f"{root}/{name} " in page.text
    for name in ("f/tables.json", "g/gallery.safetensors", "good/masks.png", "good/metrics.csv", "h/config.json"):
        assert f"{root}/{name}" in page.text
    assert "good" in page.column("runs", "run")


def test_numbers_that_are_none_do_no_harm(tmp_path: Path) -> None:
    write(tmp_path / "a/results.json", '{"a": NaN, "b": Infinity, "c": 1e999, "d": 1e308, "e": -5e-324, "f": true}')
    write(tmp_path / "a/metrics.csv", "timesteps,x,y\n1,1e308,nan\n2,-1e308,inf\n3,1e999,\nq,1,1\n")
    write(tmp_path / "a/config.json", {"asked": {"seed": 10**400, "agent": ["x"]}})
    page = made(tmp_path / "page.html", tmp_path / "a")
    assert page.titles("runs")[4:] == ["d", "e"]
    assert "nan" not in "".join(a.get("points", "") for _, a in page.tags)
    assert [len(a["points"].split()) for tag, a in page.tags if tag == "polyline"] == [2]


def test_nothing_outside_and_nothing_hidden_is_looked_at(tmp_path: Path) -> None:
    cell(tmp_path / "outside", {"secret": 1.0})
    picture(tmp_path / "outside/private.png")
    root = tmp_path / "runs"
    cell(root / "a/deep/er", {"auroc": 0.5})
    for name in (".trash/b", "c/checkpoints", "c/tensorboard"):
        cell(root / name, {"auroc": 0.1})
    write(root / "other/config.json", {"model_type": "bert"})
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "a/deep/er/masks.png").symlink_to(tmp_path / "outside/private.png")
    (root / "d").mkdir()
    (root / "d/results.json").symlink_to(tmp_path / "outside/results.json")
    found = collect([root])
    assert [run.name for run in found.runs] == ["a/deep/er"]
    assert found.runs[0].pictures == []


def test_a_folder_inside_another_is_not_counted_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        cell(tmp_path / "runs" / name, {"auroc": 0.5})
    cell(tmp_path / "more/c", {"auroc": 0.5})
    found = collect([tmp_path / "runs", tmp_path / "runs/a", tmp_path / "more"])
    assert [run.name for run in found.runs] == ["more/c", "runs/a", "runs/b"]


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    cell(tmp_path / "runs/a", {"auroc": 0.5})
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    for name in ("gallery.safetensors", "masks.png", "metrics.csv", "tables.json", "error.json", "gallery.npz"):
        (tmp_path / "runs/a" / name).write_bytes(evil)
    found = report([tmp_path / "runs"], tmp_path / "page.html")
    assert not (tmp_path / "ran").exists()
    assert len(found.runs) == 1


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = everything(tmp_path / "all"), tmp_path / "new/page.html"
    words = ["--title", "Ours & theirs", "--metrics", "*auroc*", "--megabytes", "3"]
    assert main(["report", str(root / "grid"), str(root / "apga"), "--out", str(out), *words]) == 0
    assert capsys.readouterr().out == f"7 of 9 runs done, 1 failed, 1 unfinished; wrote {out}\n"
    page = Page(out.read_text(encoding="utf-8"))
    assert page.text.count("Ours & theirs") == 2
    assert [title for title in page.titles("runs") if "auroc" in title] == ["judge.val.auroc", "test.auroc"]
    assert "apga/seed0" in page.column("runs", "run")
    write(root / "analysis/more/tables.json", "{")
    assert main(["report", str(root / "analysis"), "--out", str(out)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"2 × table, 1 × figure, 1 × gallery; wrote {out}"
    assert second == "1 files could not be used; the page says which"
    # Its own page is written over.
    assert main(["report", str(root / "dqn"), "--out", str(out)]) == 0
    assert Page(out.read_text(encoding="utf-8")).column("runs", "run") == ["seed1"]
    assert [p.name for p in out.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ([], "at least one folder"),
        (["nowhere"], "nowhere is not a folder"),
        (["empty"], "empty holds nothing to report: no config.json, results.json"),
        (["runs", "empty"], "empty holds nothing to report"),
        (["runs", "--out", "page.txt"], ".html"),
        (["runs", "--out", "mine.html"], "mine.html exists and is no page of"),
        (["runs", "--out", "folder.html"], "folder.html exists"),
        (["runs", "--megabytes", "0"], "megabytes=0"),
        (["runs", "--metrics", "f1"], "no run has a metric 'f1'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    words: list[str], cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cell(Path("runs/a"), {"auroc": 0.5})
    Path("empty/sub").mkdir(parents=True)
    Path("folder.html").mkdir()
    Path("mine.html").write_text("mine")
    assert main(["report", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("maskaug: error: ")
    assert cause in line
    assert Path("mine.html").read_text() == "mine"
    assert not Path("report.html").exists()


def test_it_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell(tmp_path / "runs/a", {"auroc": 0.5})
    report([tmp_path / "runs"], tmp_path / "page.html")
    before = (tmp_path / "page.html").read_bytes()

    def broken(path: Path, data: bytes) -> None:
        path.write_bytes(data[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr("maskaug.envs.files._write_bytes", broken)
    with pytest.raises(OSError, match="no space"):
        report([tmp_path / "runs"], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == before
    assert sorted(p.name for p in tmp_path.glob("*.*")) == ["page.html"]
