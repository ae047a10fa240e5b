"""A grid's cells as tasks of a Ray cluster whose nodes share the grid's folder (`pip install maskaug[cluster]`).

Ray says where and when, the folders say what is done: a task that Ray begins anew, because its node was lost, goes on
from what is there.
"""

from __future__ import annotations

import importlib
import os
import secrets
import socket
import warnings
from pathlib import Path
from typing import Any

import torch

from maskaug.benchmarks.grid_cell import Cell, Outcome, attempt, lost
from maskaug.envs.errors import ConfigurationError

# How often a cell may lose its node or its process: no fault of its own, so not counted among `retries`.
_LOSSES = 3


class Cluster:
    """Hands cells to Ray, all at once: it starts them where there is room.

    The cluster is the one that this process is connected to, that RAY_ADDRESS names or that runs on this machine; if
    there is none, Ray is started here for as long as this lives.

    Args:
        root: the grid's folder, which every node sees under the same path.
        gpus: a cell's share of a GPU: 0.25 puts four on one, 2 gives each two. With 0 they see none.

    Raises:
        ConfigurationError: Ray is not installed, no such cluster is there, or `gpus` is no such share.
    """

    def __init__(self, root: Path, gpus: float) -> None:
        # Ray counts in ten thousandths, and more than one GPU in whole ones.
        if not (gpus == 0 or 1e-4 <= gpus <= 1 or (gpus > 1 and float(gpus).is_integer())):
            raise ConfigurationError(f"gpus={gpus} must be a share between 0 and 1, or a whole number of GPUs")
        self._gpus = gpus
        self._ray = _ray()
        self._own = not self._ray.is_initialized()
        if self._own:
            try:
                _knock(os.environ.get("RAY_ADDRESS", ""))
                self._ray.init(include_dashboard=False, logging_level="WARNING")
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"there is no Ray cluster to connect to ({error}); start one, or correct or unset RAY_ADDRESS"
                ) from error
        if gpus and not self._ray.cluster_resources().get("GPU"):
            warnings.warn("no node of the Ray cluster has a GPU: cells wait until one joins", stacklevel=4)
        # Only this file can tell a folder that nodes share from two folders of the same name.
        self._root = root.resolve()
        self._root.mkdir(parents=True, exist_ok=True)
        self._token = self._root / f".cluster-{secrets.token_hex(8)}"
        self._token.touch()
        self._task = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_LOSSES)(run_task)
        self._cells: dict[Any, Cell] = {}

    def free(self) -> bool:
        """Ray keeps what waits."""
        return True

    def start(self, cell: Cell) -> None:
        """Hand over a cell."""
        self._cells[self._task.remote(self._root, self._token, self._gpus, cell)] = cell

    def finished(self, seconds: float | None) -> list[Outcome]:
        """Outcomes, those of cells whose nodes were lost too often among them."""
        ready, _ = self._ray.wait(list(self._cells), timeout=seconds)
        return [self._outcome(reference, self._cells.pop(reference)) for reference in ready]

    def close(self) -> None:
        """Cancel what is under way."""
        for reference in self._cells:
            self._ray.cancel(reference, force=True)
        self._cells.clear()
        self._token.unlink(missing_ok=True)
        if self._own:
            self._ray.shutdown()

    def _outcome(self, reference: Any, cell: Cell) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            # `attempt` lets nothing through, so this is the node's: no MaskAug there, or another folder.
            raise ConfigurationError(f"a node of the cluster cannot run cells: {error.cause}") from error
        except self._ray.exceptions.RayError as error:
            return lost(self._root, cell, f"Ray lost it ({type(error).__name__}): {error}")
        return outcome


def run_task(root: Path, token: Path, gpus: float, cell: Cell) -> Outcome:
    """One cell on some node, on the one core and the share of a GPU that it was given.

    Raises:
        ConfigurationError: the node does not see the grid's folder.
    """
    if not token.exists():
        raise ConfigurationError(f"{root} is not the grid's folder there; put it on storage that all nodes share")
    torch.set_num_threads(1)
    if not gpus:
        # Ray names a cell's GPUs here, and leaves all in sight of one that asked for none.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return attempt(root, cell)


def _knock(address: str) -> None:
    """Ray itself tries for minutes to connect where nobody is."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigurationError(f"a cluster needs Ray ({error}); run `pip install 'maskaug[cluster]'`") from error
