"""A grid of runs: one folder a cell, done once, going on from wherever it was stopped."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import grid_cells
import pytest
from filelock import FileLock
from grid_cells import begun, cell

from maskaug.benchmarks import grid_cell, workers
from maskaug.benchmarks.grid import Cell, Grid, run_cell
from maskaug.benchmarks.grid_cell import BusyError, Outcome, lost
from maskaug.benchmarks.run import versions
from maskaug.envs.errors import ConfigurationError

WORK = "maskaug.grid_cells:double"


@pytest.fixture(autouse=True)
def spawned_processes_know_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_serve", grid_cells.serve)


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


# ---- cells -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/.b", ".", "a\nb", "a b", "ä", "x" * 256])
def test_a_name_that_is_no_folder_below_the_root_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a cell's name"):
        Cell(name, WORK, {})


@pytest.mark.parametrize(
    "work", ["os:system", "maskaug:x", "maskaug.a", "maskaug.a:b.c", "maskaugs.a:b", "maskaug.a:b()", "maskaug..a:b"]
)
def test_only_our_own_functions_are_run(work: str) -> None:
    with pytest.raises(ConfigurationError, match=r"only MaskAug's own functions are run"):
        Cell("a", work, {})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"a": {"b": [1.0, float("nan")]}}, r"config.a.b\[1\] is nan"),
        ({"a": float("inf")}, "config.a is inf"),
        ({"a": {1: 2}}, "config.a has the key 1"),
        ({"a": Path("x")}, "config.a is a .*Path"),
        ({"a": {1, 2}}, "config.a is a set"),
    ],
)
def test_a_config_is_json(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"cell a: {said}"):
        Cell("a", WORK, config)


def test_a_cell_keeps_its_config_as_it_will_be_read_again() -> None:
    areas = [0.1, 0.2]
    made = Cell("a", WORK, {"areas": areas, "shape": (1, 2)})
    areas.append(0.3)
    assert made.config == {"areas": [0.1, 0.2], "shape": [1, 2]}


# ---- one cell --------------------------------------------------------------------------------------------------------


def test_a_cell_is_done_once_and_its_folder_says_everything(tmp_path: Path) -> None:
    made = cell("a/b", x=4, seed=3)
    assert run_cell(tmp_path, made) == {"value": 8.0}
    assert run_cell(tmp_path, made) == {"value": 8.0}
    assert begun(tmp_path, "a/b") == [os.getpid()]
    folder = tmp_path / "a" / "b"
    config = {"asked": {"x": 4, "seed": 3}, "work": WORK, "needs": [], "versions": versions()}
    assert read(folder / "config.json") == config
    assert versions()["commit"]
    # What is not finite is left out.
    assert read(folder / "results.json") == {"value": 8.0}
    assert {file.name for file in folder.iterdir()} == {"config.json", "results.json", "begun.txt", ".lock"}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (cell("a", x=5), "another x;"),
        (cell("a", x=4, y=1), "another y;"),
        (cell("a", "add", x=4), "another work;"),
        (cell("a", x=4, needs=("b",)), "another needs;"),
    ],
)
@pytest.mark.parametrize("done", [True, False])
def test_a_folder_of_another_cell_is_left_as_it_is(tmp_path: Path, other: Cell, said: str, done: bool) -> None:
    run_cell(tmp_path, cell("a", x=4))
    run_cell(tmp_path, cell("b", x=1))
    if not done:
        (tmp_path / "a" / "results.json").unlink()
    before = {file: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    grid = Grid(tmp_path, [other, cell("b", x=1), cell("new", x=1)])
    for use in (lambda: run_cell(tmp_path, other), grid.status, grid.results, grid.run):
        with pytest.raises(ConfigurationError, match=f"{tmp_path / 'a'} holds a run with {said} remove that folder"):
            use()
    assert {file: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before
    # The grid looks at all folders before it begins with one.
    assert not (tmp_path / "new").exists()


def test_results_without_a_config_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="it is no cell of a grid; remove it"):
        run_cell(tmp_path, cell("a", x=1))


def test_a_failure_is_written_down_and_goes_on_to_the_caller(tmp_path: Path) -> None:
    made = cell("a", "switched")
    with pytest.raises(OSError, match="the switch is off"):
        run_cell(tmp_path, made)
    error = read(tmp_path / "a" / "error.json")
    assert (error["type"], error["message"]) == ("OSError", "the switch is off\nsays the second line")
    assert "in switched" in error["traceback"]
    assert Grid(tmp_path, [made]).status() == {"a": "failed"}
    (tmp_path / "switch").touch()
    assert run_cell(tmp_path, made) == {"value": 1.0}
    assert not (tmp_path / "a" / "error.json").exists()
    assert len(begun(tmp_path, "a")) == 2


def test_a_cell_gets_the_folders_that_it_needs(tmp_path: Path) -> None:
    run_cell(tmp_path, cell("judges/a", x=4))
    made = cell("b", "add", ("judges/a",))
    assert run_cell(tmp_path, made) == {"judges/a": len('{\n  "value": 8.0\n}\n')}
    late = cell("c", "add", ("judges/a", "d"))
    with pytest.raises(ConfigurationError, match="cell c needs d, which is not done; run that one first"):
        run_cell(tmp_path, late)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("nothing", "grid_cells:nothing returned a NoneType for a; a cell's result is name → number"),
        ("words", "a: the figure 'value' is 'high', which is no number"),
        ("missing", "cell a: there is no maskaug.grid_cells:missing"),
    ],
)
def test_work_that_is_none_fails(tmp_path: Path, work: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        run_cell(tmp_path, cell("a", work))
    assert Grid(tmp_path, [cell("a", work)]).status() == {"a": "failed"}


def test_a_cell_that_another_process_is_running_is_left_to_that(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with FileLock(tmp_path / "a" / ".lock"), pytest.raises(BusyError, match="another process is running"):
        run_cell(tmp_path, cell("a", x=1))
    assert run_cell(tmp_path, cell("a", x=1)) == {"value": 2.0}


# ---- a grid ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([cell("a"), cell("a", x=1)], "two cells are called a;"),
        ([cell("a/b"), cell("a")], "cell a/b would lie in the folder of cell a$"),
        ([cell("a", needs=("b",))], "cell a needs b, which is no cell of the grid"),
        (
            [cell(n, needs=(m,)) for n, m in ("ab", "bc", "ca", "da")],
            "circle: (a needs b needs c|b.*c.*a|c.*a.*b) need",
        ),
        ([cell("a", needs=("a",))], "circle: a needs a"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(tmp_path: Path, cells: list[Cell], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Grid(tmp_path, cells)


def some(root: Path) -> Grid:
    """Needs before what they are for, one cell that fails, one that needs it, one that needs that."""
    return Grid(
        root,
        [
            cell("sum", "add", ("x/1", "x/2")),
            cell("x/1", x=1),
            cell("bad", "switched"),
            cell("after", "add", ("bad", "x/1")),
            cell("after-that", "add", ("after",)),
            cell("x/2", x=2),
        ],
    )


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_stops_only_what_needs_it_and_running_again_goes_on(tmp_path: Path, jobs: int) -> None:
    grid = some(tmp_path)
    lines: list[str] = []
    assert grid.say() == "0 of 6 cells done, 0 failed, 6 left"
    status = grid.run(jobs=jobs, say=lines.append)
    left = {"after": "left", "after-that": "left"}
    assert status == {"sum": "done", "x/1": "done", "x/2": "done", "bad": "failed", **left} == grid.status()
    assert list(status) == list(grid.cells)
    # A line for each that has ended, in that order, and the reckoning.
    ended, reckoning = lines[:4], lines[4:]
    done = [line for line in ended if not line.startswith("bad")]
    assert [line.split(": ")[1].split(", ")[1] for line in done] == ["1 of 6", "2 of 6", "3 of 6"]
    assert done[-1].startswith("sum: ")
    (bad,) = set(ended) - set(done)
    assert bad.startswith("bad failed after 0.")
    assert bad.endswith("s: OSError: the switch is off")
    assert reckoning == [
        "failed: bad: OSError: the switch is off",
        "left: after needs bad, which failed",
        "left: after-that needs after, which is left",
        "3 of 6 cells done, 1 failed, 2 left",
    ]
    assert grid.results()["x/2"] == {"value": 4.0}
    assert set(grid.results()) == {"sum", "x/1", "x/2"}
    begun_in = {process for name in grid.cells for process in begun(tmp_path, name)}
    assert (os.getpid() in begun_in) == (jobs == 1)
    # Processes stay for the cells that come after.
    assert len(begun_in) <= jobs

    (tmp_path / "switch").touch()
    again: list[str] = []
    assert set(grid.run(jobs=1, say=again.append).values()) == {"done"}
    assert [line.split(": ")[0] for line in again[:-1]] == ["bad", "after", "after-that"]
    assert again[-1] == "6 of 6 cells done, 0 failed, 0 left"
    assert list(grid.results()) == list(grid.cells)
    assert {name: len(begun(tmp_path, name)) for name in grid.cells} == {**dict.fromkeys(grid.cells, 1), "bad": 2}


def test_retries(tmp_path: Path) -> None:
    grid = Grid(tmp_path, [cell("a", "third_time"), cell("b", "leaving")])
    lines: list[str] = []
    assert grid.run(say=lines.append, retries=1) == {"a": "failed", "b": "failed"}
    assert len(begun(tmp_path, "a")) == 2
    assert [line.endswith("to be tried again: OSError: not yet") for line in lines[:4]] == [True, False, False, False]
    assert lines[1].endswith("to be tried again: SystemExit: nothing to do here")
    (tmp_path / "a" / "begun.txt").unlink()
    assert grid.run(say=lines.append, retries=2)["a"] == "done"


def test_an_interruption_leaves_the_cell_to_go_on_from(tmp_path: Path) -> None:
    grid = Grid(tmp_path, [cell("a", x=1), cell("b", "resuming"), cell("c", x=1)])
    with pytest.raises(KeyboardInterrupt):
        grid.run(say=str)
    assert grid.status() == {"a": "done", "b": "left", "c": "left"}
    assert set(grid.run(say=str).values()) == {"done"}
    assert grid.results()["b"] == {"value": 42.0}


def test_a_lost_cell_that_somebody_else_has_begun_with_is_left_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cell("a", x=1)
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(grid_cell, "_PATIENCE", 0.1)
    with FileLock(tmp_path / "a" / ".lock"):
        assert lost(tmp_path, made, "no word\nsays Ray") == Outcome("a", "failed", message="no word")
        assert Grid(tmp_path, [made]).status() == {"a": "left"}
    # Given time, they let go of it.
    monkeypatch.setattr(grid_cell, "_PATIENCE", 60.0)
    lock = FileLock(tmp_path / "a" / ".lock", thread_local=False)
    lock.acquire()
    threading.Timer(0.5, lock.release).start()
    assert lost(tmp_path, made, "no word\nsays Ray").state == "failed"
    assert read(tmp_path / "a" / "error.json") == {"type": "Killed", "message": "no word\nsays Ray", "traceback": ""}
    run_cell(tmp_path, made)
    assert lost(tmp_path, made, "no word") == Outcome("a", "done")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"jobs": 0}, "jobs=0 must be a whole number of at least 1"),
        ({"jobs": 1.5}, "jobs=1.5 must be"),
        ({"retries": -1}, "retries=-1 must be a whole number of at least 0"),
        ({"retries": True}, "retries=True must be"),
        ({"gpus": 0.5}, "gpus=0.5 is for a cluster"),
        ({"jobs": 2, "cluster": True}, "jobs=2 is for this machine"),
    ],
)
def test_arguments_that_cannot_be(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Grid(tmp_path, [cell("a", x=1)]).run(**wrong)
    assert not (tmp_path / "a").exists()


def test_finished_cells_of_another_call_are_named(tmp_path: Path) -> None:
    large = Grid(tmp_path, [cell("x/2", x=1), cell("x/1", x=1), cell("y", x=1), cell("bad", "words")])
    assert large.others() == []
    assert large.run(say=str)["bad"] == "failed"
    assert large.others() == []
    # What failed has no figures that anybody could miss.
    assert Grid(tmp_path, [cell("x/2", x=1)]).others() == ["x/1", "y"]
