"""A grid on a Ray cluster: two nodes on this machine, one of which is killed."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grid_cells
import pytest
from grid_cells import alive, begun, cell, eventually

from maskaug.benchmarks import cluster
from maskaug.benchmarks.grid import Grid
from maskaug.envs.errors import ConfigurationError

# ---- without Ray -----------------------------------------------------------------------------------------------------


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"a cluster needs Ray .*pip install 'maskaug\[cluster\]'"):
        Grid(tmp_path, [cell("a", x=1)]).run(cluster=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gpus", [-0.5, 1.5, 1e-6, float("nan"), float("inf")])
def test_a_share_of_a_gpu_that_cannot_be_is_refused(tmp_path: Path, gpus: float) -> None:
    with pytest.raises(ConfigurationError, match=f"gpus={gpus} must be a share between 0 and 1, or a whole number"):
        Grid(tmp_path, [cell("a", x=1)]).run(cluster=True, gpus=gpus)


@pytest.mark.parametrize(("gpus", "seen"), [(0.0, ""), (0.5, "3")])
def test_a_node_runs_a_cell_only_in_the_folder_that_it_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: float, seen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    (tmp_path / "token").touch()
    with pytest.raises(ConfigurationError, match="put it on storage that all nodes share"):
        cluster.run_task(tmp_path / "other", tmp_path / "other" / "token", gpus, cell("a", x=1))
    assert not (tmp_path / "other").exists()
    assert cluster.run_task(tmp_path, tmp_path / "token", gpus, cell("a", x=1)).state == "done"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


# ---- two nodes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The head with one core, and the fixture's `add_node` for more."""
    utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setattr(cluster, "run_task", grid_cells.run_task)
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    started = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    monkeypatch.setenv("RAY_ADDRESS", started.address)
    yield started
    started.shutdown()


@pytest.mark.slow
def test_a_node_is_killed_and_the_grid_still_finishes(tmp_path: Path, nodes: Any) -> None:
    second = nodes.add_node(num_cpus=1, num_gpus=0)
    n = 8
    grid = Grid(tmp_path, [cell(f"s/{i}", "on_node", seconds=2) for i in range(n)] + [cell("sum", "add", ("s/0",))])
    seen: dict[str, Any] = {}

    def kill() -> None:
        """Once the second node has finished a cell and begun with another."""
        while "victim" not in seen:
            time.sleep(0.05)
            there = [name for name in grid.cells if second.node_id in grid_cells.nodes_of(tmp_path, name)]
            under_way = [name for name in there if grid.status()[name] == "left"]
            if len(there) > 1 and under_way:
                seen["victim"], seen["before"] = under_way[0], [name for name in there if name not in under_way]
                nodes.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    lines: list[str] = []
    status = grid.run(cluster=True, say=lines.append)
    killer.join()
    assert set(status.values()) == {"done"}, lines
    # Each once in the table, and each said once.
    assert list(grid.results()) == list(grid.cells)
    assert sorted(line.split(": ")[0] for line in lines[:-1]) == sorted(grid.cells)
    assert lines[-1] == f"{n + 1} of {n + 1} cells done, 0 failed, 0 left"
    # What the killed node had finished was not done again; what it was at was begun again, elsewhere.
    times = {name: len(begun(tmp_path, name)) for name in grid.cells}
    assert times == {**dict.fromkeys(grid.cells, 1), seen["victim"]: 2}
    where = grid_cells.nodes_of(tmp_path, seen["victim"])
    assert where[0] == second.node_id != where[1]
    assert seen["before"]
    # The file by which nodes know the folder is gone.
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == []


@pytest.mark.slow
def test_failures_and_killed_processes(tmp_path: Path, nodes: Any) -> None:
    grid = Grid(
        tmp_path,
        [
            cell("third", "third_time"),
            cell("bad", "switched"),
            cell("killed", "killed"),
            cell("after", "add", ("killed",)),
            cell("cores", "threads"),
        ],
    )
    lines: list[str] = []
    status = grid.run(cluster=True, say=lines.append, retries=2)
    assert status == {"third": "done", "bad": "failed", "killed": "failed", "after": "left", "cores": "done"}
    assert [len(begun(tmp_path, name)) for name in ("third", "bad")] == [3, 3]
    assert grid.results()["cores"] == {"threads": 1}
    (reason,) = [line for line in lines if line.startswith("failed: killed: ")]
    assert reason.startswith("failed: killed: Ray lost it (WorkerCrashedError)")
    assert len(reason.splitlines()) == 1
    assert "left: after needs killed, which failed" in lines
    # A process that is lost is Ray's to begin again, for each of ours.
    assert len(begun(tmp_path, "killed")) == 3 * (1 + cluster._LOSSES)
    # On one's own machine it goes on from there.
    (tmp_path / "switch").touch()
    assert set(grid.run(say=str).values()) == {"done"}


@pytest.mark.slow
def test_cells_share_a_gpu(tmp_path: Path, nodes: Any) -> None:
    """Ray's nodes have as many as one says, for its bookkeeping."""
    nodes.add_node(num_cpus=2, num_gpus=2)
    for gpus, seen in ((0, 0), (0.5, 1), (2, 2)):
        made = Grid(tmp_path / str(gpus), [cell(f"{i}", "gpus") for i in range(2)])
        made.run(cluster=True, say=str, gpus=gpus)
        assert made.results() == {name: {"share": gpus, "seen": seen} for name in "01"}


@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_waited_for(tmp_path: Path, nodes: Any) -> None:
    with pytest.warns(UserWarning, match="no node of the Ray cluster has a GPU: cells wait until one joins"):
        tasks = cluster.Cluster(tmp_path, 0.25)
    tasks.start(cell("a", "gpus"))
    assert tasks.finished(1.0) == []
    nodes.add_node(num_cpus=1, num_gpus=1)
    assert [outcome.state for outcome in tasks.finished(None)] == ["done"]
    tasks.start(cell("b", "sleeping", seconds=600))
    eventually(lambda: bool(begun(tmp_path, "b")))
    # What is under way when the run is stopped ends with it, and is left.
    tasks.close()
    eventually(lambda: not alive(begun(tmp_path, "b")[0]))
    grid = Grid(tmp_path, [cell("a", "gpus"), cell("b", "sleeping", seconds=600)])
    assert grid.status() == {"a": "done", "b": "left"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "ray://127.0.0.1:9", "[::1]:9", "nobody.invalid:6379", "auto", "x:y"]
)
def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"no Ray cluster to connect to .* correct or unset RAY_ADDRESS"):
        Grid(tmp_path, [cell("a", x=1)]).run(cluster=True)
    assert time.monotonic() - began < 30
    assert list(tmp_path.iterdir()) == []
