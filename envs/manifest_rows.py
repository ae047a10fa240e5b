"""The CSV file of a manifest → its rows, with the line that each begins on."""

from __future__ import annotations

import codecs
import csv
import difflib
import operator
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, TextIO

from maskaug.envs.errors import DatasetError

#: All columns there are. A row's cells come in this order, whatever the file's own.
COLUMNS = ("path", "label", "patient", "study", "split", "region", "sha256")

_DELIMITERS = (",", ";", "\t")
#: No row is that long; what is, is no CSV file, and would fill the memory.
_LINE = 1_000_000

#: The cells of one row in the order of `COLUMNS`, trimmed, "" where there is no such column; or what is wrong with it.
Cells = tuple[str, ...] | str


def read_rows(file: Path, name: str) -> Iterator[tuple[int, Cells]]:
    """The rows below the header, each with the line that it begins on, as an editor counts from 1.

    The delimiter (`,`, `;` or tab) is found from the header. Blank rows are left out. Errors call the file `name`.

    Raises:
        DatasetError: no file, not UTF-8, no header, an unknown column, one that is there twice, or none called path.
    """
    try:
        # A pipe would be waited for, a device read without end.
        if not stat.S_ISREG(file.stat().st_mode):
            raise DatasetError(f"{name} is no ordinary file; give the name of a CSV file")
        with file.open(encoding="utf-8-sig", newline="") as opened:
            yield from _rows(name, opened)
    except OSError as error:
        raise DatasetError(f"{name} cannot be read ({error.strerror}); may you read it?") from error
    except UnicodeDecodeError:
        _blame_encoding(file, name)


def _rows(file: str, opened: TextIO) -> Iterator[tuple[int, Cells]]:
    lines = _lines(file, opened)
    before, first = 0, ""
    for first in lines:
        if first.strip():
            break
        before += 1
    where = f"{file}, row {before + 1}"
    if not first.strip():
        raise DatasetError(f"{file} is empty; its first row must name the columns: {', '.join(COLUMNS)}")
    if "\0" in first:
        raise DatasetError(f"{where}: {_ENCODING}")
    delimiter, header = _header(first)
    count = len(header)
    while header and not header[-1]:
        # Excel ends rows with delimiters where a column was emptied.
        header.pop()
    _check_header(header, where)
    places = [header.index(column) if column in header else -1 for column in COLUMNS]
    pick = operator.itemgetter(*places)
    # Not rows but lines: a row in quotation marks may go over several.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = before + 2 + reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"is no row of a CSV file ({error}); is a quotation mark left open?"
            continue
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if len(cells) < len(header) or any(cells[len(header) :]):
            yield (
                line,
                (
                    f"has {len(cells)} cells where the header has {count}; put quotation marks around a cell "
                    f"that holds a {_NAMES[delimiter]}"
                ),
            )
            continue
        cells.append("")
        yield line, pick(cells)


_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def _lines(file: str, opened: TextIO) -> Iterator[str]:
    while line := opened.readline(_LINE):
        if len(line) == _LINE:
            raise DatasetError(f"{file} has a line of more than {_LINE} characters; is it a CSV file?")
        yield line


def _header(line: str) -> tuple[str, list[str]]:
    def cells(delimiter: str) -> list[str]:
        try:
            row = next(csv.reader([line], delimiter=delimiter))
        except csv.Error:
            return []
        return [cell.strip().casefold() for cell in row]

    # Most columns that are known, then most columns; of equals the first, a comma.
    def worth(delimiter: str) -> tuple[int, int]:
        row = cells(delimiter)
        return len(set(row) & set(COLUMNS)), len(row)

    delimiter = max(_DELIMITERS, key=worth)
    return delimiter, cells(delimiter)


def _check_header(header: list[str], where: str) -> None:
    known = f"known are {', '.join(COLUMNS)}"
    if not set(header) & set(COLUMNS):
        raise DatasetError(f"{where}: {', '.join(header)[:80]!r} is no header; the first row names columns: {known}")
    for column in header:
        if column not in COLUMNS:
            close = difflib.get_close_matches(column[:40], COLUMNS, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise DatasetError(
                f"{where}: {column[:80]!r} is no column of a manifest; {hint}{known}; remove what is not to be read"
            )
        if header.count(column) > 1:
            raise DatasetError(f"{where}: the column {column!r} is there {header.count(column)} times; keep one")
    if "path" not in header:
        raise DatasetError(f"{where}: there is no column 'path'; {known}")


_ENCODING = "is not UTF-8; save the file as 'CSV UTF-8' (in a text editor: encoding UTF-8)"


def _blame_encoding(file: Path, name: str) -> NoReturn:
    # Found by going through the file once more: what was decoded in blocks does not tell the line.
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with file.open("rb") as opened:
        while True:
            block = opened.read(1 << 20)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                break
            if not block:
                break
    raise DatasetError(f"{name}, row {line}: {_ENCODING}")
