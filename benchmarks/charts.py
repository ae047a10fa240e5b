"""Lines as pictures, drawn with Pillow: no plotting library is needed for two kinds of figure.

`line_chart` shows every run of a share over time, `band_chart` means and their intervals of anything over anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from maskaug.benchmarks.chart_parts import (
    BOTTOM,
    HEADING,
    HEIGHT,
    INK,
    LEFT,
    LEGEND,
    OVER,
    PAPER,
    RIGHT,
    ROW,
    RULE,
    TOP,
    WIDTH,
    Colour,
    Entry,
    dashes,
    fitting,
    legend,
    legend_rows,
    line,
    text,
    upwards,
)
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.rendering import Picture


@dataclasses.dataclass(frozen=True)
class Curves:
    """Runs that belong together: each a thin line, their mean a thick one.

    Attributes:
        name: in the legend.
        colour: red, green and blue, 0 to 255.
        values: (runs, T), from 0 to 1; T at least 2.
    """

    name: str
    colour: Colour
    values: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: above it.
        y_label: beside it.
        curves: of one length; every panel of a figure has the same names.
    """

    title: str
    y_label: str
    curves: Sequence[Curves]


def line_chart(panels: Sequence[Panel], x_label: str, heading: str, target: tuple[str, float]) -> Picture:
    """Panels side by side under one heading and one legend, y from 0 to 1, x from 0 to T − 1: (h, w, 3) uint8.

    Args:
        panels: at least one.
        x_label: below each.
        heading: above all.
        target: name and height of a dashed line.
    """
    each = LEFT + WIDTH + RIGHT
    size = (each * len(panels), HEADING + LEGEND + TOP + HEIGHT + BOTTOM)
    canvas = Image.new("RGB", (size[0] * OVER, size[1] * OVER), PAPER)
    draw = ImageDraw.Draw(canvas)
    text(draw, (LEFT, HEADING / 2 + 4), heading, fitting(draw, heading, size[0] - LEFT - RIGHT), "lm")
    rows = legend_rows(draw, [*((c.name, c.colour) for c in panels[0].curves), (target[0], None)], math.inf)
    legend(draw, rows, HEADING + LEGEND / 2)
    for i, panel in enumerate(panels):
        _panel(canvas, draw, panel, x_label, target[1], i * each + LEFT, HEADING + LEGEND + TOP)
    return np.asarray(canvas.reduce(OVER), np.uint8)


def _panel(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, x_label: str, target: float, left: int, top: int
) -> None:
    last = panel.curves[0].values.shape[1] - 1
    text(draw, (left, top - 14), panel.title, 14, "lm")
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _down(top, level)
        line(draw, [(left, y), (left + WIDTH, y)], RULE, 1)
        text(draw, (left - 8, y), f"{level:.0%}", 12, "rm")
    for update in _ticks(last):
        x = left + update / last * WIDTH
        line(draw, [(x, top + HEIGHT), (x, top + HEIGHT + 5)], INK, 1)
        text(draw, (x, top + HEIGHT + 16), str(update), 12, "mm")
    line(draw, [(left, top), (left, top + HEIGHT), (left + WIDTH, top + HEIGHT)], INK, 1.3)
    text(draw, (left + WIDTH / 2, top + HEIGHT + 38), x_label, 13, "mm")
    upwards(canvas, panel.y_label, left - 56, top + HEIGHT / 2)
    dashes(draw, left, left + WIDTH, _down(top, target))
    for mean in (False, True):
        # Means after all single runs, so that none is covered.
        for curves in panel.curves:
            shown = curves.values.mean(0, keepdims=True) if mean else curves.values
            for values in shown:
                at = np.stack([left + np.arange(last + 1) / last * WIDTH, _down(top, values)], 1)
                line(
                    draw,
                    [(x, y) for x, y in at.tolist()],
                    curves.colour if mean else _pale(curves.colour),
                    3 if mean else 1,
                )


@dataclasses.dataclass(frozen=True)
class Band:
    """One line with its interval.

    Attributes:
        name: in the legend.
        colour: red, green and blue, 0 to 255.
        x: (T,), rising; above 0 where the axis is logarithmic.
        middle: (T,).
        low: (T,) lower end of the interval; NaN where there is none.
        high: (T,) upper end.
    """

    name: str
    colour: Colour
    x: npt.NDArray[np.float64]
    middle: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class BandPanel:
    """One pair of axes, whose ranges follow from what is drawn.

    Attributes:
        title: above it.
        x_label: below it.
        y_label: beside it.
        bands: whatever their lengths; every panel of a figure has the same names.
        log_x: whether the horizontal axis is logarithmic.
    """

    title: str
    x_label: str
    y_label: str
    bands: Sequence[Band]
    log_x: bool = True


def band_chart(panels: Sequence[BandPanel], heading: str, marks: Sequence[tuple[str, float]] = ()) -> Picture:
    """Panels side by side under one heading and one legend of as many rows as it takes: (h, w, 3) uint8.

    The vertical axis has room for all middles and marks; an interval that is far wider is cut off at its end.

    Args:
        panels: at least one, each with at least one band.
        heading: above all; several lines where it has line breaks.
        marks: names and heights of dashed lines in every panel.

    Raises:
        ConfigurationError: there is nothing to draw, or a point that a logarithmic axis does not have.
    """
    if not panels or any(not panel.bands or any(not len(b.x) for b in panel.bands) for panel in panels):
        raise ConfigurationError("there is nothing to draw: every panel needs a band, and every band a point")
    if any(panel.log_x and min(float(b.x.min()) for b in panel.bands) <= 0 for panel in panels):
        raise ConfigurationError("a logarithmic axis has no room for 0: leave such points out, or use log_x=False")
    each, lines = LEFT + WIDTH + RIGHT, heading.split("\n")
    width = each * len(panels)
    entries: list[Entry] = [(b.name, b.colour) for b in panels[0].bands]
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    rows = legend_rows(ruler, entries, width - LEFT - RIGHT)
    above = HEADING * len(lines) + LEGEND + ROW * (len(rows) - 1)
    canvas = Image.new("RGB", (width * OVER, (above + TOP + HEIGHT + BOTTOM) * OVER), PAPER)
    draw = ImageDraw.Draw(canvas, "RGBA")
    for i, words in enumerate(lines):
        text(draw, (LEFT, HEADING * (i + 0.5) + 4), words, fitting(draw, words, width - LEFT - RIGHT), "lm")
    legend(draw, rows, HEADING * len(lines) + LEGEND / 2)
    for i, panel in enumerate(panels):
        _band_panel(canvas, draw, panel, marks, i * each + LEFT, above + TOP)
    return np.asarray(canvas.reduce(OVER), np.uint8)


def _band_panel(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    panel: BandPanel,
    marks: Sequence[tuple[str, float]],
    left: int,
    top: int,
) -> None:
    def scale(x: Any) -> Any:
        return np.log10(x) if panel.log_x else x

    first = float(min(scale(b.x.min()) for b in panel.bands))
    last = float(max(scale(b.x.max()) for b in panel.bands))
    last = last if last > first else first + 1
    bottom, ceiling = y_range(panel.bands, [height for _, height in marks])

    def at(x: Any, y: Any) -> list[tuple[float, float]]:
        across = left + (scale(np.asarray(x)) - first) / (last - first) * WIDTH
        down = top + (ceiling - np.clip(y, bottom, ceiling)) / (ceiling - bottom) * HEIGHT
        return list(zip(across.tolist(), down.tolist(), strict=True))

    start = 10**first if panel.log_x else first
    end = 10**last if panel.log_x else last
    text(draw, (left, top - 14), panel.title, 14, "lm")
    levels = _even_ticks(bottom, ceiling)
    for level in levels:
        ((_, y),) = at([start], [level])
        line(draw, [(left, y), (left + WIDTH, y)], RULE, 1)
        text(draw, (left - 8, y), _number(level), 12, "rm")
    for value in _log_ticks(start, end) if panel.log_x else _even_ticks(start, end):
        ((x, _),) = at([value], [bottom])
        line(draw, [(x, top + HEIGHT), (x, top + HEIGHT + 5)], INK, 1)
        text(draw, (x, top + HEIGHT + 16), _number(value), 12, "mm")
    line(draw, [(left, top), (left, top + HEIGHT), (left + WIDTH, top + HEIGHT)], INK, 1.3)
    text(draw, (left + WIDTH / 2, top + HEIGHT + 38), panel.x_label, 13, "mm")
    upwards(canvas, panel.y_label, left - 56, top + HEIGHT / 2)
    for name, height in marks:
        ((_, y),) = at([start], [height])
        dashes(draw, left, left + WIDTH, y)
        text(draw, (left + 6, y - 8), name, 11, "lm")
    # Bands first, so that none covers a line.
    for band in panel.bands:
        known = np.isfinite(band.low) & np.isfinite(band.high)
        if known.sum() > 1:
            outline = at(band.x[known], band.high[known]) + at(band.x[known], band.low[known])[::-1]
            draw.polygon([(x * OVER, y * OVER) for x, y in outline], (*band.colour, 36))
    for band in panel.bands:
        points = at(band.x, band.middle)
        if len(points) > 1:
            line(draw, points, band.colour, 2.4)
        for x, y in points:
            dot = [((x - 2.6) * OVER, (y - 2.6) * OVER), ((x + 2.6) * OVER, (y + 2.6) * OVER)]
            draw.ellipse(dot, band.colour)


def y_range(bands: Sequence[Band], marks: Sequence[float]) -> tuple[float, float]:
    """(lowest, highest) of an axis: all middles and marks, and of the intervals at most half as much again."""
    middles = np.concatenate([*(b.middle for b in bands), np.asarray(marks, np.float64)])
    low, high = float(middles.min()), float(middles.max())
    room = 0.5 * (high - low) or 0.5
    ends = np.concatenate([np.concatenate([b.low, b.high]) for b in bands])
    ends = ends[np.isfinite(ends)]
    if len(ends):
        low, high = min(low, max(float(ends.min()), low - room)), max(high, min(float(ends.max()), high + room))
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin


def _even_ticks(first: float, last: float) -> list[float]:
    """Round numbers between two ends, four to eight of them.

    >>> _even_ticks(-0.1, 1.03)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = last - first
    step = next(s * 10.0**k for k in range(-12, 13) for s in (1, 2, 5) if span / (s * 10.0**k) <= 8)
    low, high = math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(low, high + 1)]


def _log_ticks(first: float, last: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two ends; the powers alone where that is many.

    >>> _log_ticks(256, 8192)
    [500.0, 1000.0, 2000.0, 5000.0]
    """
    powers = range(math.floor(math.log10(first)) - 1, math.ceil(math.log10(last)) + 1)
    ticks = [s * 10.0**k for k in powers for s in (1, 2, 5)]
    inside = [t for t in ticks if first * (1 - 1e-9) <= t <= last * (1 + 1e-9)]
    return inside if len(inside) <= 10 else [t for t in inside if f"{t:e}".startswith("1.0")]


def _number(value: float) -> str:
    """A tick's label.

    >>> [_number(v) for v in (0.2, 1.0, 50.0, 20000.0, 3e6)]
    ['0.2', '1', '50', '20k', '3M']
    """
    for size, sign in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"


def _down(top: float, level: Any) -> Any:
    # A little room below nothing and above everything: a line that lies there is not the axis.
    return top + (1.03 - level) / 1.06 * HEIGHT


def _ticks(last: int) -> list[int]:
    """Round numbers from 0 to `last`, four to eight of them where there are so many.

    >>> _ticks(80), _ticks(2)
    ([0, 20, 40, 60, 80], [0, 1, 2])
    """
    step = next(s for k in range(9) for s in (10**k, 2 * 10**k, 5 * 10**k) if last / s <= 7)
    return list(range(0, last + 1, step))


def _pale(colour: Colour) -> Colour:
    return tuple(round(0.5 * c + 0.5 * 255) for c in colour)  # type: ignore[return-value]
