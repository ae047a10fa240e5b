"""A run's folder: config.json, metrics.csv, tensorboard/, checkpoints/, results.json, masks.png.

A killed run continues from its last checkpoint as if nothing had happened: rows that were written after it are dropped
and written again.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from torch.utils.tensorboard import SummaryWriter

from maskaug.agents.checkpoint import keep_last, newest
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import atomic_write, write_json

STEP = "timesteps"
LOCK = ".lock"


class RunFolder:
    """One run's files.

    Args:
        path: the folder; made if it does not exist.
        config: what the run was asked for, JSON.
        resume: continue in a folder that holds a run. Without it such a folder is an error: nothing is overwritten.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any], *, resume: bool) -> None:
        self.path = Path(path)
        file = self.path / "config.json"
        asked = json.loads(json.dumps(config))
        if file.is_file():
            if not resume:
                raise ConfigurationError(
                    f"{self.path} holds a run already; add --resume to continue it, or choose another --out"
                )
            changed = differences(read_config(self.path)["asked"], asked)
            if changed:
                raise ConfigurationError(
                    f"{self.path} holds a run with another {', '.join(changed)}; --resume continues a run with the "
                    "same arguments (only --total-timesteps or --epochs may grow)"
                )
        elif self.path.exists() and any(not _half_written(p) and p.name != LOCK for p in self.path.iterdir()):
            raise ConfigurationError(f"{self.path} is not empty and holds no run; choose another --out")
        self.asked = asked
        self._csv = self.path / "metrics.csv"
        self._writer: SummaryWriter | None = None
        self._columns: list[str] = []
        self._lock = FileLock(self.path / LOCK)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    def newest_checkpoint(self) -> Path | None:
        """The last checkpoint, or None."""
        return newest(self.checkpoints)

    def start(self, resolved: Mapping[str, Any], step: int) -> None:
        """Write config.json and open the logs at `step`; rows of later steps are dropped.

        Args:
            resolved: everything that was resolved from what was asked for (data digest, device, settings).
            step: the number of timesteps of the checkpoint that the run continues from; 0 at the beginning.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise ConfigurationError(
                f"another process is writing to {self.path}; wait for it, or choose another --out"
            ) from None
        # config.json comes first: it is what makes the folder a run's, should a kill follow.
        write_json(self.path / "config.json", {"asked": self.asked, "resolved": dict(resolved), "versions": versions()})
        self.checkpoints.mkdir(exist_ok=True)
        for half in filter(_half_written, self.path.iterdir()):
            half.unlink()
        self.tidy()
        rows: list[dict[str, str]] = []
        if self._csv.exists():
            with self._csv.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                # A row that a kill cut short has no line end and too few fields; it is later than the checkpoint.
                self._columns = list(reader.fieldnames or [])
                if self._columns[:1] != [STEP]:
                    raise ConfigurationError(f"{self._csv} has no column {STEP!r}; was it edited? Delete it to go on")
                rows = [r for r in reader if None not in r.values() and r[STEP].isdigit() and int(r[STEP]) <= step]
        if self._columns:
            atomic_write(self._csv, lambda path: self._write_rows(path, rows))
        self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, metrics: Mapping[str, float], *, csv_row: bool = True) -> None:
        """One row of metrics.csv, and the same to TensorBoard. time/… goes to TensorBoard alone: it never repeats."""
        assert self._writer is not None
        for name, value in metrics.items():
            if np.isfinite(value):
                self._writer.add_scalar(name, value, step)
        if not csv_row:
            return
        row = {STEP: step, **{k: v for k, v in metrics.items() if not k.startswith("time/")}}
        if not self._columns:
            self._columns = list(row)
            atomic_write(self._csv, lambda path: self._write_rows(path, []))
        with self._csv.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    def image(self, name: str, picture: npt.NDArray[np.uint8], step: int) -> None:
        """(h, w, 3) uint8 to TensorBoard."""
        assert self._writer is not None
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def checkpoint_path(self, step: int) -> Path:
        """The file of the checkpoint at `step`; names sort by step."""
        return self.checkpoints / f"{step:012d}.safetensors"

    def tidy(self) -> None:
        """Keep the last two checkpoints."""
        keep_last(self.checkpoints, 2)

    def results(self, values: Mapping[str, float]) -> None:
        """Merge flat metric → number into results.json; what is not finite is left out."""
        file = self.path / "results.json"
        known = read_json(file) if file.exists() else {}
        write_json(file, {**known, **{k: v for k, v in values.items() if np.isfinite(v)}})

    def close(self) -> None:
        """Flush the logs and let others in."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._lock.release()

    def _write_rows(self, path: Path, rows: list[dict[str, str]]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a run's folder."""
    file = Path(path) / "config.json"
    if not file.is_file():
        raise ConfigurationError(
            f"{path} is not a run's folder (it has no config.json); give the --out of a `maskaug train`"
        )
    config = read_json(file)
    if not {"asked", "resolved"} <= set(config):
        raise ConfigurationError(f"{file} was not written by `maskaug train`; choose another folder")
    return config


def versions() -> dict[str, str]:
    """The versions that a result depends on, and the commit where there is one."""
    found = {"python": platform.python_version()}
    for name in ("maskaug", "torch", "gymnasium", "numpy", "stable-baselines3", "opencv-python-headless", "pillow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    here = Path(__file__).resolve()
    try:
        # An installed copy may lie inside somebody else's checkout, whose commit says nothing about this code.
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        found["commit"] = _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        found["commit"] = "not a checkout"
    return found


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _half_written(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".part"


def read_json(file: Path) -> dict[str, Any]:
    """A file's JSON object. What is none raises ConfigurationError."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(
            f"{file} is not readable as JSON ({error}); delete it, or choose another folder"
        ) from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{file} holds a {type(value).__name__} where an object was expected; delete it")
    return value


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The names of what differs, those inside a nested object with a dot."""
    names: list[str] = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            names.append(prefix + key)
    return names
