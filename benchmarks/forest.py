"""Two pictures of differences: a forest plot, an interval a line; and a map, a coloured field for each setting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from maskaug.benchmarks.chart_parts import INK, OVER, PAPER, RULE, Colour, fitting, line, text
from maskaug.benchmarks.statistics import Interval, verdict
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.rendering import Picture

#: of an interval, by its verdict; a map's fields fade from white to these.
COLOURS: dict[str, Colour] = {
    "better": (0, 114, 128),
    "worse": (186, 73, 32),
    "not established": (120, 120, 126),
}
_NAMES, _PANEL, _ROW, _HEAD, _FOOT, _GAP = 250, 330, 24, 74, 44, 44
_FIELD, _LEVEL = (86, 34), 120


@dataclasses.dataclass(frozen=True)
class Compared:
    """One line of a forest plot.

    Attributes:
        name: what is compared.
        intervals: one for each panel; None leaves the line out there.
    """

    name: str
    intervals: Sequence[Interval | None]


def forest(rows: Sequence[Compared], panels: Sequence[str], heading: str) -> Picture:
    """Differences with their intervals, (h, w, 3) uint8: what excludes 0 is coloured, all else grey.

    Args:
        rows: from top to bottom; at least one interval among them.
        panels: the title of each column of intervals; all have one scale.
        heading: above all.
    """
    ends = [x for row in rows for i in row.intervals if i is not None for x in (i.low, i.high, i.value)]
    if not ends or any(len(row.intervals) != len(panels) for row in rows):
        raise ConfigurationError("a forest plot needs at least one interval, and one place a panel in every row")
    least, most = min([*ends, 0.0]), max([*ends, 0.0])
    step = _step(most - least)
    low, high = step * math.floor(least / step), step * math.ceil(most / step)
    if low == high:
        low, high = -step, step
    size = (_NAMES + (_PANEL + _GAP) * len(panels), _HEAD + _ROW * len(rows) + _FOOT)
    canvas, draw = _canvas(size)
    text(draw, (16, 22), heading, fitting(draw, heading, size[0] - 32), "lm")
    bottom = _HEAD + _ROW * len(rows)
    for i, row in enumerate(rows):
        y = _HEAD + _ROW * (i + 0.5)
        text(draw, (_NAMES - 14, y), row.name, fitting(draw, row.name, _NAMES - 24), "rm")
    for k, title in enumerate(panels):
        left = _NAMES + k * (_PANEL + _GAP)

        def at(x: float, left: float = left) -> float:
            return left + (x - low) / (high - low) * _PANEL

        text(draw, (left + _PANEL / 2, _HEAD - 18), title, 14, "mm")
        for n in range(round((high - low) / step) + 1):
            x = low + n * step
            line(draw, [(at(x), _HEAD), (at(x), bottom)], INK if abs(x) < step / 2 else RULE, 1.3)
            text(draw, (at(x), bottom + 16), _tick(x, step), 11, "mm")
        for i, row in enumerate(rows):
            interval = row.intervals[k]
            if interval is None:
                continue
            y, colour = _HEAD + _ROW * (i + 0.5), COLOURS[verdict(interval)]
            line(draw, [(at(interval.low), y), (at(interval.high), y)], colour, 2.4)
            x, r = at(interval.value), 4.5
            draw.ellipse([(x - r) * OVER, (y - r) * OVER, (x + r) * OVER, (y + r) * OVER], fill=colour)
    return np.asarray(canvas.reduce(OVER), np.uint8)


def difference_map(
    fields: Mapping[str, Sequence[Sequence[Interval | None]]],
    columns: Sequence[str],
    rows: Sequence[str],
    axes: tuple[str, str],
    heading: str,
) -> Picture:
    """One grid of coloured fields for each name, (h, w, 3) uint8; a dot marks an interval that excludes 0.

    Args:
        fields: name → [row][column] of differences; None where there is nothing.
        columns: their titles.
        rows: theirs.
        axes: what columns and rows are.
        heading: above all.
    """
    values = [abs(i.value) for grid in fields.values() for row in grid for i in row if i is not None]
    if not values:
        raise ConfigurationError("a map needs at least one difference")
    top = max(max(values), 1e-9)
    across = min(3, len(fields))
    width = _LEVEL + _FIELD[0] * len(columns) + 24
    height = 54 + _FIELD[1] * len(rows) + 34
    size = (max(width * across, 520), 48 + height * math.ceil(len(fields) / across) + 12)
    canvas, draw = _canvas(size)
    text(draw, (16, 22), heading, fitting(draw, heading, size[0] - 32), "lm")
    for place, (name, grid) in enumerate(fields.items()):
        left, upper = place % across * width + _LEVEL, 48 + place // across * height + 54
        text(draw, (left, upper - 36), name, 14, "lm")
        text(draw, (left - 10, upper - 13), axes[1], 11, "rm")
        for c, column in enumerate(columns):
            text(draw, (left + _FIELD[0] * (c + 0.5), upper - 13), column, 11, "mm")
        text(draw, (left + _FIELD[0] * len(columns) / 2, upper + _FIELD[1] * len(rows) + 14), axes[0], 11, "mm")
        for r, title in enumerate(rows):
            text(draw, (left - 10, upper + _FIELD[1] * (r + 0.5)), title, 11, "rm")
            for c, interval in enumerate(grid[r]):
                _field(draw, interval, (left + _FIELD[0] * c, upper + _FIELD[1] * r), top)
    return np.asarray(canvas.reduce(OVER), np.uint8)


def _field(draw: ImageDraw.ImageDraw, interval: Interval | None, corner: tuple[float, float], top: float) -> None:
    (x, y), (w, h) = corner, _FIELD
    box = [(x + 1) * OVER, (y + 1) * OVER, (x + w - 1) * OVER, (y + h - 1) * OVER]
    if interval is None:
        draw.rectangle(box, outline=RULE)
        return
    share = 0.7 * min(1.0, abs(interval.value) / top)
    full = COLOURS["better" if interval.value > 0 else "worse"]
    draw.rectangle(box, fill=tuple(round(255 + share * (c - 255)) for c in full))
    text(draw, (x + w / 2, y + h / 2), interval.text().split(" ")[0], 12, "mm")
    if interval.excludes(0.0):
        draw.ellipse([(x + w - 12) * OVER, (y + 6) * OVER, (x + w - 6) * OVER, (y + 12) * OVER], fill=INK)


def _canvas(size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (size[0] * OVER, size[1] * OVER), PAPER)
    return canvas, ImageDraw.Draw(canvas)


def _step(reach: float) -> float:
    """A round number, of which `reach` has at most six.

    >>> _step(0.31), _step(0.04)
    (0.1, 0.01)
    """
    sizes = (m * 10.0**k for k in range(-4, 6) for m in (1, 2, 5))
    return next((round(s, 9) for s in sizes if reach / s <= 6), 10.0**6)


def _tick(x: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return "0" if abs(x) < step / 2 else f"{x:+.{digits}f}"
