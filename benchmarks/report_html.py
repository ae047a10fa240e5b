"""Pieces of the report's page: everything that comes from a file is escaped here, and nowhere else."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import re
from collections.abc import Iterable, Sequence

from maskaug.benchmarks.report_charts import number
from maskaug.benchmarks.report_files import printable
from maskaug.benchmarks.report_style import SCRIPT, STYLE

#: what says that a file is a page of ours, and may be written over.
GENERATOR = '<meta name="generator" content="maskaug report">'
#: a number, and then nothing that makes it the beginning of a word or a date.
_LEADING = re.compile(
    r"([+\-−]?(?:\d{1,3}(?:\u202f\d{3})+|\d{1,15})(?:\.\d{1,15})?(?:[eE][+-]?\d{1,2})?)(?=$|[\s%±\[(×/])"
)


class Budget:
    """How many bytes the page may still take, and what was left out for want of them.

    Args:
        size: bytes in all.

    Attributes:
        left: bytes that are still free.
        dropped: what was left out, and how many of it.
        notes: what else was done to save room.
    """

    def __init__(self, size: int) -> None:
        self.size = self.left = size
        self.dropped: dict[str, int] = {}
        self.notes: list[str] = []

    def take(self, what: str, piece: str, keep: int = 0) -> str:
        """`piece` if it fits and `keep` bytes are left after it; otherwise "", and one more of `what` is left out."""
        cost = len(piece.encode("utf-8"))
        if cost > self.left - keep:
            self.drop(what)
            return ""
        self.left -= cost
        return piece

    def drop(self, what: str, count: int = 1) -> None:
        """Say that `count` of `what` are left out."""
        self.dropped[what] = self.dropped.get(what, 0) + count


@dataclasses.dataclass(frozen=True)
class Column:
    """A heading; `number` columns are set to the right."""

    title: str
    number: bool = False


def escaped(text: object) -> str:
    """Text for a page: no tag, no attribute and no entity comes of it, and nothing that cannot be shown."""
    return html.escape(printable(str(text)), quote=True)


def sort_value(text: str) -> float | None:
    """The number that `text` begins with, for sorting; None where it does not.

    >>> sort_value("0.861 [0.842, 0.880]"), sort_value("−2 %"), sort_value("2024-01-31"), sort_value("U-Net")
    (0.861, -2.0, None, None)
    """
    match = _LEADING.match(text.strip())
    return float(match[1].replace("−", "-").replace("\u202f", "")) if match else None


def cell(value: float | str | None) -> str:
    """One <td>: numbers to the right, and sorted by their value; an en dash where there is nothing."""
    if value is None or value == "":
        return "<td>–</td>"
    if isinstance(value, str):
        key = sort_value(value)
        return f"<td>{escaped(value)}</td>" if key is None else f'<td class="n" data-v="{key!r}">{escaped(value)}</td>'
    try:
        key = float(value)
    except OverflowError:
        return f'<td class="n">{escaped(format(value, "d")[:12])}…</td>'
    return f'<td class="n" data-v="{key!r}">{number(key)}</td>'


def table(name: str, label: str, columns: Sequence[Column], rows: Iterable[str], kind: str = "") -> str:
    """A table whose headings sort it.

    Args:
        name: its id.
        label: what it is, for those who hear the page.
        columns: the headings.
        rows: <tr>…</tr> each.
        kind: a class for the style.
    """
    heads = "".join(
        f'<th scope="col" aria-sort="none"{" class=" + chr(34) + "n" + chr(34) if column.number else ""}>'
        f'<button type="button">{escaped(column.title[:80])}</button></th>'
        for column in columns
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escaped(label[:200])}">'
        f'<table id="{name}" class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def badge(text: str, kind: str) -> str:
    """A word with a border; `kind`: done, failed, unfinished or standin."""
    return f'<span class="badge {kind}">{escaped(text)}</span>'


def box(kind: str, heading: str, lines: Sequence[str], most: int = 25) -> str:
    """A box that says something, with a list of lines that are HTML already; after `most` the rest is counted.

    Args:
        kind: "", "warn" or "bad".
        heading: in bold.
        lines: HTML.
        most: lines that are shown.
    """
    items = [f"<li>{line}</li>" for line in lines[:most]]
    if len(lines) > most:
        items.append(f"<li>and {len(lines) - most} more</li>")
    listed = f"<ul>{''.join(items)}</ul>" if items else ""
    return f'<div class="box {kind}"><strong>{escaped(heading)}</strong>{listed}</div>'


def details(name: str, summary: str, inside: str, *, is_open: bool = False) -> str:
    """What can be folded away; `summary` and `inside` are HTML. `name` "" has no id."""
    identity = f' id="{name}"' if name else ""
    return f"<details{identity}{' open' if is_open else ''}><summary>{summary}</summary>{inside}</details>"


def pre(text: str, most: int = 20_000) -> str:
    """Text as it is; of more than `most` characters the last ones, where an error's cause stands."""
    cut = f"… {len(text) - most} characters before this are left out\n" if len(text) > most else ""
    return f'<pre tabindex="0">{escaped(cut + text[-most:])}</pre>'


def page(title: str, body: str, style: str = "") -> str:
    """The whole document. Its policy lets it fetch nothing, and run and draw nothing but what stands here.

    Args:
        title: of the window.
        body: HTML.
        style: rules beside the page's own.
    """

    def fingerprint(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"

    styles = [text for text in (STYLE, style) if text]
    policy = (
        f"default-src 'none'; img-src data:; style-src {' '.join(map(fingerprint, styles))}; "
        f"script-src {fingerprint(SCRIPT)}; base-uri 'none'; form-action 'none'"
    )
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">', GENERATOR,
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">', '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">', f"<title>{escaped(title)}</title>",
        *(f"<style>{text}</style>" for text in styles), "</head>", "<body>", body, f"<script>{SCRIPT}</script>",
        "</body>", "</html>", "",
    ])  # fmt: skip
