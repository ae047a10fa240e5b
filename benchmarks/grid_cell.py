"""One run of a grid = one folder: config.json, what the work itself writes, and last of all results.json."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from maskaug.benchmarks.run import LOCK, differences, read_json, versions
from maskaug.envs.errors import ConfigurationError, MaskAugError
from maskaug.envs.files import write_json

CONFIG, RESULTS, ERROR = "config.json", "results.json", "error.json"
Figures = dict[str, float]
Work = Callable[[Mapping[str, Any], Path, Mapping[str, Path]], Mapping[str, float]]
# How long a process that is given up for lost, on another node perhaps, may still hold its lock, in seconds.
_PATIENCE = 10.0
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+@%-]*")
_WORK = re.compile(r"maskaug(\.[A-Za-z]\w*)+:[A-Za-z]\w*")


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Args:
        name: its folder below the grid's root, such as "wrist/apga/seed3".
        work: the function that does it, "maskaug.….module:function". It is called with the config, the cell's folder
            and the folders of what it needs, by name; it writes its files into its folder, may go on from those that a
            killed attempt has left there, and returns flat figures, which become results.json.
        config: all that decides the result, JSON; of images in a folder only where they lie: the work leaves their
            digests in data.json (`maskaug.benchmarks.tasks.write_data`), and `check_data` compares them.
        needs: names of cells that must be done first.
    """

    name: str
    work: str
    config: Mapping[str, Any]
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        if not all(_PART.fullmatch(part) and len(part) < 256 for part in parts):
            raise ConfigurationError(
                f"{self.name!r} cannot be a cell's name: it is a relative path of letters, digits and _.,=+@%-, and no "
                "part of it begins with a dot"
            )
        if not _WORK.fullmatch(self.work):
            raise ConfigurationError(
                f"cell {self.name}: the work {self.work!r} is no 'maskaug.….module:function'; only MaskAug's own "
                "functions are run"
            )
        for wrong in _not_json(self.config, "config"):
            raise ConfigurationError(f"cell {self.name}: {wrong}")
        # A copy with lists for tuples: the same before and after it was written, whatever the caller does with its own.
        object.__setattr__(self, "config", json.loads(json.dumps(self.config, default=dict)))
        object.__setattr__(self, "needs", tuple(self.needs))


class BusyError(MaskAugError, RuntimeError):
    """Another process is running this cell."""


def run_cell(root: Path, cell: Cell) -> Figures:
    """Do one cell, or read what it has come to.

    config.json is there from the beginning and results.json at the end; a cell that has results is done and never run
    again. A failure leaves error.json {"type", "message", "traceback"}, and the exception goes on.

    Args:
        root: the grid's folder; the cell's is `root / cell.name`.
        cell: what to do.

    Returns:
        Its figures, without those that are not finite.

    Raises:
        ConfigurationError: the folder holds a cell with another config, work or needs; or a needed one is not done.
        BusyError: another process is running it.
        Exception: whatever the work raises.
    """
    folder = Path(root) / cell.name
    if (figures := read_figures(root, cell)) is not None:
        return figures
    inputs = {name: Path(root) / name for name in cell.needs}
    for name, needed in inputs.items():
        if not (needed / RESULTS).is_file():
            raise ConfigurationError(f"cell {cell.name} needs {name}, which is not done; run that one first")
    with _locked(folder):
        if (figures := read_figures(root, cell)) is not None:
            return figures
        (folder / ERROR).unlink(missing_ok=True)
        write_json(folder / CONFIG, {**_asked(cell), "versions": _versions()})
        try:
            figures = _figures(cell, _function(cell)(cell.config, folder, inputs))
        except (Exception, SystemExit) as error:
            _write_error(folder, type(error).__name__, str(error), traceback.format_exc())
            raise
        write_json(folder / RESULTS, figures)
        return figures


def read_figures(root: Path, cell: Cell) -> Figures | None:
    """What a cell has come to, or None if it is not done.

    Raises:
        ConfigurationError: its folder holds a cell with another config, work or needs.
    """
    folder = Path(root) / cell.name
    # Looked for first: a cell that is finished between the two looks is read as not done, and never as no cell.
    done = (folder / RESULTS).is_file()
    if not (folder / CONFIG).is_file():
        if done:
            raise ConfigurationError(f"{folder} has results and no {CONFIG}, so it is no cell of a grid; remove it")
        return None
    asked = _asked(cell)
    before = read_json(folder / CONFIG)
    if changed := differences({name: before.get(name) for name in asked}, asked):
        names = ", ".join(name.removeprefix("asked.") for name in changed)
        raise ConfigurationError(
            f"{folder} holds a run with another {names}; remove that folder, or choose another one for the grid"
        )
    return _figures(cell, read_json(folder / RESULTS)) if done else None


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt at a cell.

    Attributes:
        name: the cell's.
        state: "busy": another process is running it.
        seconds: how long it took.
        message: one line: why it failed.
    """

    name: str
    state: Literal["done", "failed", "busy"]
    seconds: float = 0.0
    message: str = ""


def attempt(root: Path, cell: Cell) -> Outcome:
    """`run_cell` for those who cannot let an exception through."""
    began = time.monotonic()
    try:
        run_cell(root, cell)
    except BusyError:
        return Outcome(cell.name, "busy")
    except (Exception, SystemExit) as error:
        line = next(iter(str(error).splitlines()), "")
        return Outcome(cell.name, "failed", time.monotonic() - began, f"{type(error).__name__}: {line}")
    return Outcome(cell.name, "done", time.monotonic() - began)


def lost(root: Path, cell: Cell, reason: str) -> Outcome:
    """What to make of a cell whose process has ended without a word: failed, for `reason`, unless it is done."""
    folder = Path(root) / cell.name
    # Without the lock no error.json: somebody else has begun with the cell.
    with contextlib.suppress(BusyError), _locked(folder, _PATIENCE):
        if read_figures(root, cell) is not None:
            return Outcome(cell.name, "done")
        _write_error(folder, "Killed", reason, "")
    return Outcome(cell.name, "failed", message=reason.partition("\n")[0])


@contextlib.contextmanager
def _locked(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=seconds)
    except Timeout:
        raise BusyError(f"another process is running {folder}") from None
    with lock:
        yield


def _write_error(folder: Path, kind: str, message: str, trace: str) -> None:
    write_json(folder / ERROR, {"type": kind, "message": message, "traceback": trace})


# What runs is the code that was imported: a commit during a long grid changes nothing about it.
_versions = functools.cache(versions)


def _asked(cell: Cell) -> dict[str, Any]:
    return {"asked": cell.config, "work": cell.work, "needs": list(cell.needs)}


def _function(cell: Cell) -> Work:
    module, _, name = cell.work.partition(":")
    try:
        function: Work = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"cell {cell.name}: there is no {cell.work} ({error})") from error
    return function


def _figures(cell: Cell, values: object) -> Figures:
    """Checked and finite."""
    if not isinstance(values, Mapping):
        raise ConfigurationError(
            f"{cell.work} returned a {type(values).__name__} for {cell.name}; a cell's result is name → number"
        )
    found: Figures = {}
    for name, value in values.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ConfigurationError(f"{cell.name}: the figure {name!r} is {value!r}, which is no number") from None
        if math.isfinite(number):
            found[str(name)] = number
    return found


def _not_json(value: object, where: str) -> Iterator[str]:
    """What of a config cannot be written as JSON and read back as the same."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                yield f"{where} has the key {key!r}; keys are strings"
            yield from _not_json(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _not_json(inner, f"{where}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where} is {value}; JSON knows finite numbers only"
    elif value is not None and not isinstance(value, str | bool | int | float):
        yield f"{where} is a {type(value).__name__}; JSON knows numbers, strings, true, false, null, lists and objects"
