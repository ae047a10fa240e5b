"""Reading what lies in a folder of runs without trusting it: nothing is executed, nothing blocks, nothing is huge."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.envs.errors import ConfigurationError

#: bytes; larger files are passed over with a word.
LARGEST = 64 * 2**20
Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def printable(text: str) -> str:
    r"""`text` with what cannot be shown (control characters, halves of surrogates, reversals of direction) escaped.

    >>> printable("a b\x00")
    'a b\\x00'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t\u00a0\u2009\u202f" else ascii(c)[1:-1] for c in text)


def read_bytes(path: Path) -> bytes:
    """The whole of a plain file of at most `LARGEST` bytes.

    Raises:
        ConfigurationError: it is missing, no plain file, or too large.
    """
    try:
        # A pipe that somebody calls config.json would be waited for otherwise.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror})") from None
    with open(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise ConfigurationError(f"{path} is no plain file")
        if about.st_size > LARGEST:
            raise ConfigurationError(f"{path} has {about.st_size >> 20} MB; at most {LARGEST >> 20} are read")
        return file.read(LARGEST)


def read_json(path: Path) -> Any:
    """A JSON file's value.

    Raises:
        ConfigurationError: it cannot be read, or holds no JSON.
    """
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{path} is not readable as JSON ({error})") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ConfigurationError: it cannot be read, or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} holds a {type(value).__name__} where an object was expected")
    return value


def figures(value: Any, prefix: str = "") -> dict[str, float]:
    """The finite numbers of nested objects and lists, their names with dots between.

    >>> figures({"a": 1, "b": {"c": 0.5, "d": "no"}, "e": [True, 2]})
    {'a': 1.0, 'b.c': 0.5, 'e.1': 2.0}
    """
    if isinstance(value, bool):
        return {}
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            return {}
        return {prefix: number} if math.isfinite(number) else {}
    items: dict[str, float] = {}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        items |= figures(inner, f"{prefix}.{name}" if prefix else str(name))
    return items


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """What a configuration says, as words: nested objects with dots between their names, nulls left out.

    >>> flat({"env": {"n": 60, "root": None}, "seeds": [0, 1]})
    {'env.n': '60', 'seeds': '[0, 1]'}
    """
    if isinstance(value, dict):
        items: dict[str, str] = {}
        for name, inner in value.items():
            items |= flat(inner, f"{prefix}.{name}" if prefix else str(name))
        return items
    if value is None or not prefix:
        return {}
    return {prefix: value if isinstance(value, str) else json.dumps(value)}


def read_curves(path: Path, step: str, most: int = 40) -> dict[str, Curve]:
    """The columns of a run's metrics.csv: name → (steps, values), (T,) both, where both are finite numbers.

    Args:
        path: the file; its first column is `step`. A last row that a kill cut short is passed over.
        step: the name of the column that the others are drawn over.
        most: columns after so many are passed over.

    Raises:
        ConfigurationError: it cannot be read, or has no such column.
    """
    text = io.StringIO(read_bytes(path).decode("utf-8", "replace"), newline="")
    try:
        rows = csv.reader(text)
        names = next(rows, [])
        if names[:1] != [step]:
            raise ConfigurationError(f"{path} has no column {step!r} to begin with")
        table = [[_number(cell) for cell in row[: most + 1]] for row in rows if len(row) == len(names)]
    except csv.Error as error:
        raise ConfigurationError(f"{path} is not readable as CSV ({error})") from None
    values = np.array(table, np.float64).reshape(len(table), -1)
    found = {}
    for column, name in enumerate(names[1 : most + 1], start=1):
        if len(values):
            known = np.isfinite(values[:, [0, column]]).all(1)
            if known.any():
                found[name] = (values[known, 0], values[known, column])
    return found


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
