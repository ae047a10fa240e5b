"""The processes that run a grid's cells: killed, stopped, several at one folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grid_cells
import pytest
from grid_cells import alive, begun, cell, eventually, sleepers

from maskaug.benchmarks import workers
from maskaug.benchmarks.grid import Grid
from maskaug.benchmarks.grid_cell import Outcome
from maskaug.envs.errors import MaskAugError


@pytest.fixture(autouse=True)
def spawned_processes_know_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_serve", grid_cells.serve)


@pytest.mark.parametrize(("cores", "wanted", "threads"), [(2, 2, 1), (64, 2, 2), (64, 1, 1)])
def test_processes_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, wanted: int, threads: int
) -> None:
    """Half of them for each of two, if OMP_NUM_THREADS does not ask for fewer."""
    there = len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("OMP_NUM_THREADS", str(wanted))
    grid = Grid(tmp_path, [cell("t", "threads")])
    grid.run(jobs=2, say=str)
    assert grid.results() == {"t": {"threads": min(threads, there)}}


def test_a_killed_process_fails_its_cell_and_no_other(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    grid = Grid(tmp_path, [cell("k", "killed"), *(cell(name, "sleeping", seconds=0.2) for name in names)])
    lines: list[str] = []
    assert grid.run(jobs=2, say=lines.append) == {"k": "failed", **dict.fromkeys(names, "done")}
    reason = "its process died (SIGKILL: somebody killed it, or the machine ran out of memory)"
    assert f"failed: k: {reason}" in lines
    error = json.loads((tmp_path / "k" / "error.json").read_text(encoding="utf-8"))
    assert error == {"type": "Killed", "message": reason, "traceback": ""}
    assert [len(begun(tmp_path, name)) for name in names] == [1] * 4
    (tmp_path / "switch").touch()
    assert grid.run(jobs=2, say=str)["k"] == "done"


def start(root: Path, n: int, seconds: float, jobs: int) -> subprocess.Popen[bytes]:
    code = f"import sys, grid_cells; grid_cells.main({str(root)!r}, *sys.argv[1:])"
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, str(n), str(seconds), str(jobs)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_grid_that_is_stopped_leaves_no_process_and_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    seconds = 60 if how == signal.SIGINT else 1.5
    with start(tmp_path, 5, seconds, 2) as process:
        eventually(lambda: all(begun(tmp_path, f"s/{i}") for i in range(2)))
        process.send_signal(how)
        process.communicate(timeout=30)
    assert process.returncode == -how
    working = [begun(tmp_path, f"s/{i}")[0] for i in range(2)]
    # Asked to stop they stop at once; when nobody is there to ask they do their cell and no more.
    eventually(lambda: not any(map(alive, working)), 20)
    grid = sleepers(tmp_path, 5, seconds)
    done = 0 if how == signal.SIGINT else 2
    assert list(grid.status().values()) == ["done"] * done + ["left"] * (5 - done)
    if how == signal.SIGKILL:
        quick = Grid(tmp_path, list(grid.cells.values())[:3])
        assert set(quick.run(say=str).values()) == {"done"}
        assert [len(begun(tmp_path, name)) for name in quick.cells] == [1, 1, 1]


def test_processes_that_share_a_folder_share_the_work(tmp_path: Path) -> None:
    n = 8
    ours = [start(tmp_path, n, 0.5, 1) for _ in range(2)]
    for process in ours:
        output = process.communicate(timeout=60)[0].decode()
        assert process.returncode == 0, output
        # Each sees it through to the end, whoever does the last cell.
        assert output.endswith(f"{n} of {n} cells done, 0 failed, 0 left\n")
    did = [begun(tmp_path, f"s/{i}") for i in range(n)]
    assert [len(processes) for processes in did] == [1] * n
    assert {processes[0] for processes in did} == {process.pid for process in ours}


def test_a_killed_process_is_noticed_though_its_child_lives_on(tmp_path: Path) -> None:
    lines: list[str] = []
    assert Grid(tmp_path, [cell("k", "orphaning", seconds=300)]).run(jobs=2, say=lines.append) == {"k": "failed"}
    child = int((tmp_path / "k" / "child.txt").read_text(encoding="utf-8"))
    assert alive(child)
    os.kill(child, signal.SIGKILL)
    assert lines[1].startswith("failed: k: its process died (SIGKILL")
    assert len(begun(tmp_path, "k")) == 1


def test_a_process_that_is_killed_at_its_start_fails_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_serve", grid_cells.serve_nobody)
    lines: list[str] = []
    assert Grid(tmp_path, [cell("a", x=1)]).run(jobs=2, say=lines.append) == {"a": "failed"}
    assert lines[0].startswith("a failed after 0.0 s: its process died (SIGKILL")
    assert begun(tmp_path, "a") == []


def test_a_process_that_cannot_start_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_serve", sys.exit)
    with pytest.raises(MaskAugError, match=r"could not start \(exit code 1\).*__name__ =="):
        Grid(tmp_path, [cell("a", x=1)]).run(jobs=2, say=str)
    assert not (tmp_path / "a").exists()


def test_who_has_nothing_to_do_goes_by_itself_and_who_works_is_killed(tmp_path: Path) -> None:
    """A killed process leaves what it holds, such as tqdm's semaphore, and Python warns of it."""
    both = workers.Processes(tmp_path, 2)
    both.start(cell("short"))
    both.start(cell("long", "sleeping", seconds=60))
    ended: list[Outcome] = []
    while not ended:
        ended += both.finished(None)
    (idle,), (busy,) = both._idle, both._busy
    both.close()
    assert [outcome.name for outcome in ended] == ["short"]
    assert (idle.process.exitcode, busy.process.exitcode) == (0, -signal.SIGKILL)
