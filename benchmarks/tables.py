"""`tables.json`: tables that an analysis leaves for `maskaug report` to show.

A list of objects, one a table:

    {"title": "AUROC by arm", "note": "95 % intervals by patient", "columns": ["arm", "AUROC"],
     "rows": [["none", 0.812], ["apga", "0.861 [0.842, 0.880]"]], "unfinished": "3 of 20 runs are left",
     "stand_in": false}

A cell is a number, a string or null (nothing to say). A string that begins with a number is sorted by that number.
"note", "unfinished" and "stand_in" may be left out.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskaug.benchmarks.report_files import read_json
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_json

TABLES = "tables.json"
Cell = float | int | str | None


@dataclasses.dataclass(frozen=True)
class Table:
    """One table, whoever draws it.

    Attributes:
        title: above it.
        columns: their headings, at least one.
        rows: each with a cell for every column: a finite number, a string, or None.
        note: a sentence below the title: units, what an interval is of.
        unfinished: what is missing, in words; shown as a warning. Empty: nothing is.
        stand_in: the figures come from made-up images in place of real ones; shown as a warning.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    unfinished: str = ""
    stand_in: bool = False

    def markdown(self) -> str:
        """The table for people; what is unfinished or a stand-in is said before it."""
        lines = [f"### {self.title}", ""]
        lines += [f"**UNFINISHED: {self.unfinished}**", ""] if self.unfinished else []
        lines += ["**Made-up images stand in for the real ones.**", ""] if self.stand_in else []
        lines += [self.note, ""] if self.note else []
        shown = [list(self.columns), *([_shown(cell) for cell in row] for row in self.rows)]
        bars = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in shown]
        return "\n".join([*lines, bars[0], "|" + "---|" * len(self.columns), *bars[1:]])


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:.3f}".replace("-", "−") if isinstance(cell, float) else str(cell)


def write_tables(path: str | os.PathLike[str], tables: Sequence[Table]) -> None:
    """Write `tables` to `path`, which must be called tables.json, atomically.

    Raises:
        ConfigurationError: another name, or a table that is not as `Table` says; nothing is written.
    """
    if Path(path).name != TABLES:
        raise ConfigurationError(f"{os.fspath(path)} must be called {TABLES}: that is what `maskaug report` looks for")
    plain = [
        {**dataclasses.asdict(t), "columns": list(t.columns), "rows": [[_plain(c) for c in row] for row in t.rows]}
        for t in tables
    ]
    for i, value in enumerate(plain):
        _table(value, f"table {i + 1}")
    write_json(path, plain)


def read_tables(path: str | os.PathLike[str]) -> list[Table]:
    """What `write_tables` wrote, or anybody else in its format.

    Raises:
        ConfigurationError: the file is missing or not as it should be.
    """
    value = read_json(Path(path))
    if not isinstance(value, list):
        raise ConfigurationError(f"{os.fspath(path)} must be a list of tables")
    return [_table(one, f"{os.fspath(path)}, table {i + 1}") for i, one in enumerate(value)]


def _plain(cell: Any) -> Any:
    return cell.item() if isinstance(cell, np.generic) else cell


def _table(value: Any, where: str) -> Table:
    fields = {field.name for field in dataclasses.fields(Table)}
    if not isinstance(value, dict) or not {"title", "columns", "rows"} <= set(value) <= fields:
        raise ConfigurationError(f"{where} must be an object of title, columns, rows and, if need be, "
                                 f"{', '.join(sorted(fields - {'title', 'columns', 'rows'}))}")  # fmt: skip
    table = Table(**value)
    for name in ("title", "note", "unfinished"):
        if not isinstance(getattr(table, name), str):
            raise ConfigurationError(f"{where}: {name} must be a string")
    if not isinstance(table.stand_in, bool):
        raise ConfigurationError(f"{where}: stand_in must be true or false")
    columns, rows = table.columns, table.rows
    if not (isinstance(columns, list) and columns and all(isinstance(c, str) for c in columns)):
        raise ConfigurationError(f"{where}: columns must be a list of strings, at least one")
    if not isinstance(rows, list):
        raise ConfigurationError(f"{where}: rows must be a list of lists")
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(columns):
            raise ConfigurationError(f"{where}: row {i + 1} must be a list of {len(columns)} cells, one a column")
        for cell in row:
            number = isinstance(cell, int | float) and not isinstance(cell, bool) and bool(np.isfinite(cell))
            if not (cell is None or isinstance(cell, str) or number):
                raise ConfigurationError(
                    f"{where}: row {i + 1} holds {cell!r}; a cell is a finite number, a string, or null where there is "
                    "nothing to say"
                )
    return table
