"""Who runs a grid's cells on this machine: the process itself, or processes beside it that stay from cell to cell."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

import torch

from maskaug.benchmarks.grid_cell import Cell, Outcome, attempt, lost
from maskaug.envs.errors import MaskAugError
from maskaug.envs.sources import check_workers

_LOOK = 1.0


class Workers(Protocol):
    """Whoever runs cells."""

    def free(self) -> bool:
        """Whether another cell can be started."""

    def start(self, cell: Cell) -> None:
        """Begin with a cell."""

    def finished(self, seconds: float | None) -> list[Outcome]:
        """What has ended, after waiting for something to end, but no longer than `seconds`: it can be nothing."""

    def close(self) -> None:
        """End all; what was under way is left as it is."""


class Here:
    """The process itself, one cell at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cell: Cell | None = None

    def free(self) -> bool:
        """Whether no cell waits."""
        return self._cell is None

    def start(self, cell: Cell) -> None:
        """Take a cell; `finished` runs it."""
        self._cell = cell

    def finished(self, seconds: float | None) -> list[Outcome]:
        """Run it to its end, however long that takes."""
        cell, self._cell = self._cell, None
        return [attempt(self._root, cell)] if cell else []

    def close(self) -> None:
        """Nothing to end."""


class Processes:
    """`jobs` spawned processes with a share of the cores each.

    Each has a pipe of its own and not a common queue: so one that is killed takes nobody else's cell with it, and when
    this one is killed they see their pipe's end, finish their cell and go.
    """

    def __init__(self, root: Path, jobs: int) -> None:
        self._root = root
        self._jobs = jobs
        self._threads = max(1, check_workers(None) // jobs)
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []

    def free(self) -> bool:
        """Whether a process has nothing to do, or can be started."""
        return len(self._busy) < self._jobs

    def start(self, cell: Cell) -> None:
        """Give it to an idle process, or to a new one."""
        # Some may have been killed while they were idle.
        self._idle = [worker for worker in self._idle if worker.process.is_alive()]
        worker = self._idle.pop() if self._idle else _Worker(self._root, self._threads)
        self._busy.append(worker)
        worker.cell = cell
        # Killed just now, or at its start: `finished` notices.
        with contextlib.suppress(ConnectionError):
            worker.connection.send(cell)

    def finished(self, seconds: float | None) -> list[Outcome]:
        """Outcomes, those of killed processes among them."""
        # Looked after each second: while a child of its own lives, nothing else tells that a process has died.
        wait([worker.connection for worker in self._busy], _LOOK if seconds is None else min(seconds, _LOOK))
        outcomes = []
        for worker in list(self._busy):
            if (outcome := worker.outcome()) is None:
                continue
            self._busy.remove(worker)
            if not worker.connection.closed:
                self._idle.append(worker)
            outcomes.append(outcome)
        return outcomes

    def close(self) -> None:
        """End the processes at once: what they were doing is left, and can be gone on with."""
        for worker in self._idle:
            # It goes when its pipe ends, and gives back what it holds.
            worker.connection.close()
            worker.process.join(10)
        for worker in [*self._busy, *self._idle]:
            worker.end()
        self._busy.clear()
        self._idle.clear()


class _Worker:
    """One process, this side of the pipe."""

    def __init__(self, root: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._root = root
        self.cell: Cell | None = None
        self._ready = False
        self.connection, theirs = context.Pipe()
        # No daemon: a cell may start processes of its own.
        self.process = context.Process(target=_serve, args=(theirs, root, threads))
        self.process.start()
        theirs.close()

    def outcome(self) -> Outcome | None:
        """What it has sent, or what its end means; None while there is no more than that it has started."""
        assert self.cell is not None
        # Before the look into the pipe, which holds all that a process has sent before it died.
        alive = self.process.is_alive()
        try:
            if not self.connection.poll():
                if alive:
                    return None
                raise EOFError
            said: Outcome | None = self.connection.recv()
        except (EOFError, ConnectionError):
            # Its pipe ends a moment before it does, and only its own end says why.
            self.process.join(10)
            self.end()
            code = self.process.exitcode or 0
            if not self._ready and code >= 0:
                raise MaskAugError(
                    f"a process for the cells could not start (exit code {code}); its message is above. A script that "
                    'runs a grid needs `if __name__ == "__main__":`'
                ) from None
            return lost(self._root, self.cell, f"its process died ({_reason(code)})")
        self._ready = True
        return said

    def end(self) -> None:
        """Kill what is left of it."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, root: Path, threads: int) -> None:
    """The other side: cell after cell until the pipe ends."""
    # A terminal's Ctrl-C goes to all of its processes; the one that has started these ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # No more than OMP_NUM_THREADS asks for.
    torch.set_num_threads(min(torch.get_num_threads(), threads))
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send(None)
        while True:
            connection.send(attempt(root, connection.recv()))


def _reason(code: int) -> str:
    if code == -signal.SIGKILL:
        return "SIGKILL: somebody killed it, or the machine ran out of memory"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
