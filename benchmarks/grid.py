"""A benchmark's grid of runs: what is done, what failed, what is left; and going on from there.

Cells are small and many, need one another (a judge before the masks that come from it), and run in this process, in
processes beside it or on a Ray cluster. Nothing but the folders says how far the grid is: going on is running it again,
and several machines that share the folder can run one grid together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal

from maskaug.benchmarks.cluster import Cluster
from maskaug.benchmarks.grid_cell import ERROR, RESULTS, Cell, Figures, Outcome, read_figures, run_cell
from maskaug.benchmarks.workers import Here, Processes, Workers
from maskaug.envs.errors import ConfigurationError

__all__ = ["Cell", "Grid", "run_cell"]
State = Literal["done", "failed", "left"]
# How often to look after a cell that another process is running, in seconds.
_AGAIN = 1.0


class Grid:
    """Cells and the folder that their folders are in.

    Args:
        root: the folder; made when the first cell runs. Machines that run one grid together share it.
        cells: in the order in which they are to run, as far as their needs allow.

    Raises:
        ConfigurationError: two cells have one name, one's folder would lie in another's, a need is no cell of the grid,
            or cells need one another in a circle.
    """

    def __init__(self, root: str | os.PathLike[str], cells: Iterable[Cell]) -> None:
        self.root = Path(root)
        self.cells: dict[str, Cell] = {}
        for cell in cells:
            if cell.name in self.cells:
                raise ConfigurationError(f"two cells are called {cell.name}; a name is a folder, and one cell's only")
            self.cells[cell.name] = cell
        for cell in self.cells.values():
            for i, letter in enumerate(cell.name):
                if letter == "/" and cell.name[:i] in self.cells:
                    raise ConfigurationError(f"cell {cell.name} would lie in the folder of cell {cell.name[:i]}")
            for name in cell.needs:
                if name not in self.cells:
                    raise ConfigurationError(f"cell {cell.name} needs {name}, which is no cell of the grid")
        try:
            TopologicalSorter({name: cell.needs for name, cell in self.cells.items()}).prepare()
        except CycleError as error:
            raise ConfigurationError(
                f"cells need one another in a circle: {' needs '.join(reversed(error.args[1]))}"
            ) from None

    def status(self) -> dict[str, State]:
        """Name → "done", "failed" (the last attempt left an error.json) or "left".

        Raises:
            ConfigurationError: a folder holds a cell with another config, work or needs.
        """
        return {name: self._state(cell) for name, cell in self.cells.items()}

    def say(self) -> str:
        """One line, such as "412 of 750 cells done, 2 failed, 336 left"."""
        states = list(self.status().values())
        done, failed, left = (states.count(state) for state in ("done", "failed", "left"))
        return f"{done} of {len(states)} cells done, {failed} failed, {left} left"

    def results(self) -> dict[str, Figures]:
        """Name → figures of the cells that are done, each once, in the grid's order.

        Raises:
            ConfigurationError: a folder holds a cell with another config, work or needs.
        """
        found = {name: read_figures(self.root, cell) for name, cell in self.cells.items()}
        return {name: figures for name, figures in found.items() if figures is not None}

    def others(self) -> list[str]:
        """Names of finished cells that its folder holds besides its own: of another call with more arms or seeds."""
        found = (path.parent.relative_to(self.root).as_posix() for path in self.root.rglob(RESULTS))
        return sorted(name for name in found if name not in self.cells)

    def besides(self) -> str:
        """A sentence about `others` for the notes of tables, with a space before it; "" where there are none."""
        count = len(self.others())
        return f" Without {count} more runs in {self.root.name}/, which this call did not ask for." if count else ""

    def run(
        self,
        jobs: int = 1,
        say: Callable[[str], object] = print,
        cluster: bool = False,
        retries: int = 0,
        gpus: float = 0.0,
    ) -> dict[str, State]:
        """Run what is not done, failed cells of an earlier call among it; to go on, call it again.

        A cell that fails stops only those that need it. One that another process is running is left to that, and looked
        after at the end.

        Args:
            jobs: cells at a time on this machine. 1: in this process. More: in processes that share the cores, so that
                figures whose last bits depend on the number of threads can differ from those of `jobs=1`.
            say: gets one line for each cell that ends, and what failed and what is left at the end.
            cluster: run the cells as tasks of a Ray cluster, as many at a time as it has room for.
            retries: how many more times to try a cell that fails.
            gpus: a cell's share of a GPU, on a cluster.

        Returns:
            The status at the end.

        Raises:
            ConfigurationError: an argument that cannot be, Ray is not installed, or a folder holds another cell.
        """
        for name, value in (("jobs", jobs), ("retries", retries)):
            least = int(name == "jobs")
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigurationError(f"{name}={value!r} must be a whole number of at least {least}")
        if cluster and jobs != 1:
            raise ConfigurationError(f"jobs={jobs} is for this machine; a cluster runs as many as it has room for")
        if gpus and not cluster:
            raise ConfigurationError(f"gpus={gpus} is for a cluster; on one machine the cells' device decides")
        _Run(self, say, retries).go(self._workers(jobs, cluster, gpus))
        return self.status()

    def _workers(self, jobs: int, cluster: bool, gpus: float) -> Workers:
        if cluster:
            return Cluster(self.root, gpus)
        return Here(self.root) if jobs == 1 else Processes(self.root, jobs)

    def _state(self, cell: Cell) -> State:
        if read_figures(self.root, cell) is not None:
            return "done"
        return "failed" if (self.root / cell.name / ERROR).is_file() else "left"


class _Run:
    """One call of `Grid.run`: which cells are done, under way, to be looked after again, and failed."""

    def __init__(self, grid: Grid, say: Callable[[str], object], retries: int) -> None:
        self._grid = grid
        self._say = say
        self._done = {name for name, state in grid.status().items() if state == "done"}
        self._queue = [name for name in grid.cells if name not in self._done]
        self._tries = dict.fromkeys(self._queue, retries + 1)
        self._running: set[str] = set()
        self._elsewhere: list[str] = []
        self._look = 0.0
        self._failed: dict[str, str] = {}

    def go(self, workers: Workers) -> None:
        """Run what can be run, and say what became of it."""
        try:
            while True:
                while workers.free() and (name := self._next()):
                    self._queue.remove(name)
                    self._running.add(name)
                    workers.start(self._grid.cells[name])
                if self._running:
                    for outcome in workers.finished(_AGAIN if self._elsewhere else None):
                        self._take(outcome)
                elif self._elsewhere:
                    time.sleep(_AGAIN)
                else:
                    break
        finally:
            workers.close()
        for name, message in self._failed.items():
            self._say(f"failed: {name}: {message}")
        for name in self._queue:
            need = next(need for need in self._grid.cells[name].needs if need not in self._done)
            self._say(f"left: {name} needs {need}, which {'failed' if need in self._failed else 'is left'}")
        self._say(self._grid.say())

    def _next(self) -> str | None:
        """The first cell that can begin; once there is none, those that other processes were running."""
        ready = next((name for name in self._queue if self._done.issuperset(self._grid.cells[name].needs)), None)
        if ready is None and self._elsewhere and time.monotonic() >= self._look:
            self._look = time.monotonic() + _AGAIN
            self._queue, self._elsewhere = self._elsewhere + self._queue, []
            return self._next()
        return ready

    def _take(self, outcome: Outcome) -> None:
        name = outcome.name
        self._running.remove(name)
        if outcome.state == "busy":
            self._elsewhere.append(name)
        elif outcome.state == "done":
            self._done.add(name)
            self._say(f"{name}: {outcome.seconds:.1f} s, {len(self._done)} of {len(self._grid.cells)}")
        else:
            self._tries[name] -= 1
            if self._tries[name]:
                self._queue.append(name)
            else:
                self._failed[name] = outcome.message
            then = ", to be tried again" if self._tries[name] else ""
            self._say(f"{name} failed after {outcome.seconds:.1f} s{then}: {outcome.message}")
