"""Lines over time as a picture, drawn with Pillow: no plotting library is needed for one kind of figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from maskaug.envs.rendering import Picture

Colour = tuple[int, int, int]
_PAPER, _INK, _RULE, _TARGET = (255, 255, 255), (40, 40, 44), (226, 226, 230), (90, 90, 96)
#: drawn so much larger and then reduced, which smooths the lines.
_OVER = 3
#: pixels of the finished picture: a panel's plot, and what is kept free around it.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM, _LEGEND, _HEADING = 440, 300, 70, 20, 30, 56, 34, 34


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
    each = _LEFT + _WIDTH + _RIGHT
    size = (each * len(panels), _HEADING + _LEGEND + _TOP + _HEIGHT + _BOTTOM)
    canvas = Image.new("RGB", (size[0] * _OVER, size[1] * _OVER), _PAPER)
    draw = ImageDraw.Draw(canvas)
    _text(draw, (_LEFT, _HEADING / 2 + 4), heading, _fitting(draw, heading, size[0] - _LEFT - _RIGHT), "lm")
    _legend(draw, panels[0].curves, target[0])
    for i, panel in enumerate(panels):
        _panel(canvas, draw, panel, x_label, target[1], i * each + _LEFT, _HEADING + _LEGEND + _TOP)
    return np.asarray(canvas.reduce(_OVER), np.uint8)


def _panel(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, x_label: str, target: float, left: int, top: int
) -> None:
    last = panel.curves[0].values.shape[1] - 1
    _text(draw, (left, top - 14), panel.title, 14, "lm")
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _down(top, level)
        _line(draw, [(left, y), (left + _WIDTH, y)], _RULE, 1)
        _text(draw, (left - 8, y), f"{level:.0%}", 12, "rm")
    for update in _ticks(last):
        x = left + update / last * _WIDTH
        _line(draw, [(x, top + _HEIGHT), (x, top + _HEIGHT + 5)], _INK, 1)
        _text(draw, (x, top + _HEIGHT + 16), str(update), 12, "mm")
    _line(draw, [(left, top), (left, top + _HEIGHT), (left + _WIDTH, top + _HEIGHT)], _INK, 1.3)
    _text(draw, (left + _WIDTH / 2, top + _HEIGHT + 38), x_label, 13, "mm")
    _upwards(canvas, panel.y_label, left - 56, top + _HEIGHT / 2)
    _dashes(draw, left, left + _WIDTH, _down(top, target))
    for mean in (False, True):
        # Means after all single runs, so that none is covered.
        for curves in panel.curves:
            shown = curves.values.mean(0, keepdims=True) if mean else curves.values
            for values in shown:
                at = np.stack([left + np.arange(last + 1) / last * _WIDTH, _down(top, values)], 1)
                _line(
                    draw,
                    [(x, y) for x, y in at.tolist()],
                    curves.colour if mean else _pale(curves.colour),
                    3 if mean else 1,
                )


def _down(top: float, level: Any) -> Any:
    # A little room below nothing and above everything: a line that lies there is not the axis.
    return top + (1.03 - level) / 1.06 * _HEIGHT


def _legend(draw: ImageDraw.ImageDraw, curves: Sequence[Curves], target: str) -> None:
    x, y = float(_LEFT), _HEADING + _LEGEND / 2
    for name, colour in [*((c.name, c.colour) for c in curves), (target, None)]:
        if colour is None:
            _dashes(draw, x, x + 28, y)
        else:
            _line(draw, [(x, y), (x + 28, y)], colour, 3)
        _text(draw, (x + 36, y), name, 13, "lm")
        x += 36 + draw.textlength(name, _font(13)) / _OVER + 26


def _ticks(last: int) -> list[int]:
    """Round numbers from 0 to `last`, four to eight of them where there are so many.

    >>> _ticks(80), _ticks(2)
    ([0, 20, 40, 60, 80], [0, 1, 2])
    """
    step = next(s for k in range(9) for s in (10**k, 2 * 10**k, 5 * 10**k) if last / s <= 7)
    return list(range(0, last + 1, step))


def _pale(colour: Colour) -> Colour:
    return tuple(round(0.5 * c + 0.5 * 255) for c in colour)  # type: ignore[return-value]


def _line(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
    draw.line([(x * _OVER, y * _OVER) for x, y in points], colour, round(width * _OVER), joint="curve")


def _dashes(draw: ImageDraw.ImageDraw, left: float, right: float, y: float) -> None:
    for x in np.arange(left, right, 9).tolist():
        _line(draw, [(x, y), (min(x + 5, right), y)], _TARGET, 1.7)


def _text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, anchor: str) -> None:
    draw.text((at[0] * _OVER, at[1] * _OVER), text, fill=_INK, font=_font(size), anchor=anchor)


def _upwards(canvas: Image.Image, text: str, x: float, y: float) -> None:
    strip = Image.new("RGB", (_HEIGHT * _OVER, 20 * _OVER), _PAPER)
    ImageDraw.Draw(strip).text((strip.width / 2, strip.height / 2), text, fill=_INK, font=_font(13), anchor="mm")
    turned = strip.transpose(Image.Transpose.ROTATE_90)
    canvas.paste(turned, (round(x * _OVER - turned.width / 2), round(y * _OVER - turned.height / 2)))


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int) -> int:
    sizes = [size for size in range(17, 9, -1) if draw.textlength(text, _font(size)) <= width * _OVER]
    return sizes[0] if sizes else 9


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * _OVER)
