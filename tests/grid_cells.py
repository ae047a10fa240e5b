"""What the grid's tests run, under a name that begins with maskaug; spawned processes come by it through `serve`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from maskaug.benchmarks import workers
from maskaug.benchmarks.grid import Cell

sys.modules["maskaug.grid_cells"] = sys.modules[__name__]
_serve = workers._serve


def serve(connection: Connection, root: Path, threads: int) -> None:
    """Unpickled by a spawned process, which imports this module for it."""
    _serve(connection, root, threads)


def cell(name: str, work: str = "double", needs: tuple[str, ...] = (), **config: Any) -> Cell:
    return Cell(name, f"maskaug.grid_cells:{work}", config, needs)


def double(config: Mapping[str, Any], folder: Path, inputs: Mapping[str, Path]) -> Mapping[str, float]:
    note(folder)
    return {"value": 2.0 * config.get("x", 1), "pid": os.getpid()}


def note(folder: Path) -> None:
    """One line for each time that the cell is begun."""
    with (folder / "begun.txt").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
