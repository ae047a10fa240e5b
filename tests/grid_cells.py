"""What the grid's tests run, under a name that begins with maskaug; spawned processes come by it through `serve`."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from maskaug.benchmarks import cluster, workers
from maskaug.benchmarks.grid import Cell, Grid
from maskaug.benchmarks.grid_cell import Outcome

sys.modules["maskaug.grid_cells"] = sys.modules[__name__]
_serve, _run_task = workers._serve, cluster.run_task
Config = Mapping[str, Any]
Inputs = Mapping[str, Path]


def serve(connection: Connection, root: Path, threads: int) -> None:
    """Unpickled by a spawned process, which imports this module for it."""
    _serve(connection, root, threads)


def serve_nobody(connection: Connection, root: Path, threads: int) -> None:
    """As if memory ran out while it was starting."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_task(root: Path, token: Path, gpus: float, cell: Cell) -> Outcome:
    """The same for Ray."""
    return _run_task(root, token, gpus, cell)


def cell(name: str, work: str = "double", needs: tuple[str, ...] = (), **config: Any) -> Cell:
    return Cell(name, f"maskaug.grid_cells:{work}", config, needs)


def begun(root: Path, name: str) -> list[int]:
    """The processes that have begun with a cell, in order."""
    file = root / name / "begun.txt"
    return [int(line) for line in file.read_text(encoding="utf-8").split()] if file.exists() else []


def eventually(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def note(folder: Path) -> None:
    with (folder / "begun.txt").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")


def double(config: Config, folder: Path, inputs: Inputs) -> dict[str, float]:
    note(folder)
    assert not (folder / "results.json").exists()
    return {"value": 2.0 * config["x"], "nan": float("nan"), "inf": float("inf")}


def add(config: Config, folder: Path, inputs: Inputs) -> dict[str, float]:
    """What its inputs have come to."""
    note(folder)
    return {name: float(len((path / "results.json").read_text(encoding="utf-8"))) for name, path in inputs.items()}


def switched(config: Config, folder: Path, inputs: Inputs) -> dict[str, float]:
    """Fails until somebody puts a file "switch" beside the cells."""
    note(folder)
    if not (folder.parent / "switch").exists():
        raise OSError("the switch is off\nsays the second line")
    return {"value": 1.0}


def third_time(config: Config, folder: Path, inputs: Inputs) -> dict[str, float]:
    note(folder)
    if len(begun(folder.parent, folder.name)) < 3:
        raise OSError("not yet")
    return {"value": 3.0}


def resuming(config: Config, folder: Path, inputs: Inputs) -> dict[str, float]:
    """Interrupted the first time, and going on from what it has written then."""
    note(folder)
    half = folder / "half.txt"
    if not half.exists():
        half.write_text("21", encoding="utf-8")
        raise KeyboardInterrupt
    return {"value": 2.0 * int(half.read_text(encoding="utf-8"))}


def leaving(config: Config, folder: Path, inputs: Inputs) -> dict[str, float]:
    sys.exit("nothing to do here")


def killed(config: Config, folder: Path, inputs: Inputs) -> dict[str, float]:
    """As the kernel kills one that takes too much memory; not when the switch is on."""
    note(folder)
    if not (folder.parent / "switch").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return {"value": 1.0}


def orphaning(config: Config, folder: Path, inputs: Inputs) -> dict[str, float]:
    """Killed while a process that it has started lives on, with its pipe."""
    child = os.fork()
    if child == 0:
        time.sleep(config["seconds"])
        os._exit(0)
    (folder / "child.txt").write_text(str(child), encoding="utf-8")
    return killed(config, folder, inputs)


def sleeping(config: Config, folder: Path, inputs: Inputs) -> dict[str, float]:
    note(folder)
    time.sleep(config["seconds"])
    return {"value": 1.0}


def threads(config: Config, folder: Path, inputs: Inputs) -> dict[str, float]:
    return {"threads": torch.get_num_threads()}


def nothing(config: Config, folder: Path, inputs: Inputs) -> None:
    """Forgets its figures."""


def words(config: Config, folder: Path, inputs: Inputs) -> dict[str, Any]:
    return {"value": "high"}


def on_node(config: Config, folder: Path, inputs: Inputs) -> dict[str, float]:
    """Notes the node of the Ray cluster that it runs on."""
    with (folder / "nodes.txt").open("a", encoding="utf-8") as file:
        file.write(f"{_ray_context().get_node_id()}\n")
    return sleeping(config, folder, inputs)


def nodes_of(root: Path, name: str) -> list[str]:
    file = root / name / "nodes.txt"
    return file.read_text(encoding="utf-8").split() if file.exists() else []


def gpus(config: Config, folder: Path, inputs: Inputs) -> dict[str, float]:
    """The share that Ray has reserved for it, and how many it sees."""
    seen = len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")) if os.environ["CUDA_VISIBLE_DEVICES"] else 0
    return {"share": _ray_context().get_assigned_resources().get("GPU", 0.0), "seen": seen}


def _ray_context() -> Any:
    return importlib.import_module("ray").get_runtime_context()


def sleepers(root: Path, n: int, seconds: float) -> Grid:
    return Grid(root, [cell(f"s/{i}", "sleeping", seconds=seconds) for i in range(n)])


def main(root: str, n: str, seconds: str, jobs: str) -> None:
    """A process of its own that runs `sleepers`."""
    # Whoever started the tests in the background has switched it off, for this process too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    workers._serve = serve
    sleepers(Path(root), int(n), float(seconds)).run(jobs=int(jobs))
