"""What every figure of `maskaug.benchmarks.charts` is drawn with: lines, texts and legends on a Pillow canvas.

Places and lengths are pixels of the finished picture; the canvas is `OVER` times as large, and is then reduced.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
PAPER, INK, RULE, TARGET = (255, 255, 255), (40, 40, 44), (226, 226, 230), (90, 90, 96)
#: drawn so much larger and then reduced, which smooths the lines.
OVER = 3
#: pixels of the finished picture: a panel's plot, and what is kept free around it.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, LEGEND, HEADING = 440, 300, 70, 20, 30, 56, 34, 34
#: and from one row of a legend to the next.
ROW = 22
#: name and colour in a legend; None is a dashed line.
Entry = tuple[str, Colour | None]


def legend_rows(draw: ImageDraw.ImageDraw, entries: Sequence[Entry], width: float) -> list[list[Entry]]:
    """As many entries in a row as fit into `width` pixels."""
    rows: list[list[Entry]] = [[]]
    x = 0.0
    for entry in entries:
        needed = _entry_width(draw, entry[0])
        if rows[-1] and x + needed > width:
            rows.append([])
            x = 0.0
        rows[-1].append(entry)
        x += needed
    return rows


def _entry_width(draw: ImageDraw.ImageDraw, name: str) -> float:
    return 36 + draw.textlength(drawable(name), _font(13)) / OVER + 26


def legend(draw: ImageDraw.ImageDraw, rows: Sequence[Sequence[Entry]], y: float) -> None:
    """A line and a name for each entry, row by row, the first at height `y`."""
    for i, row in enumerate(rows):
        x, middle = float(LEFT), y + i * ROW
        for name, colour in row:
            if colour is None:
                dashes(draw, x, x + 28, middle)
            else:
                line(draw, [(x, middle), (x + 28, middle)], colour, 3)
            text(draw, (x + 36, middle), name, 13, "lm")
            x += _entry_width(draw, name)


def line(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
    """Straight from point to point."""
    draw.line([(x * OVER, y * OVER) for x, y in points], colour, round(width * OVER), joint="curve")


def dashes(draw: ImageDraw.ImageDraw, left: float, right: float, y: float) -> None:
    """A level dashed line."""
    for x in np.arange(left, right, 9).tolist():
        line(draw, [(x, y), (min(x + 5, right), y)], TARGET, 1.7)


def text(draw: ImageDraw.ImageDraw, at: tuple[float, float], words: str, size: int, anchor: str) -> None:
    """Words, placed by Pillow's two letters of `anchor`."""
    draw.text((at[0] * OVER, at[1] * OVER), drawable(words), fill=INK, font=_font(size), anchor=anchor)


def drawable(words: str) -> str:
    """Words in letters that Pillow's own font has: it draws a box for a minus sign.

    >>> drawable("−.5 to 2 × 3")
    '-.5 to 2 x 3'
    """
    return words.translate({ord("−"): "-", ord("–"): "-", ord("×"): "x", ord("÷"): "/"})


def upwards(canvas: Image.Image, words: str, x: float, y: float) -> None:
    """Words that read from below, around (x, y)."""
    strip = Image.new("RGB", (HEIGHT * OVER, 20 * OVER), PAPER)
    ImageDraw.Draw(strip).text(
        (strip.width / 2, strip.height / 2), drawable(words), fill=INK, font=_font(13), anchor="mm"
    )
    turned = strip.transpose(Image.Transpose.ROTATE_90)
    canvas.paste(turned, (round(x * OVER - turned.width / 2), round(y * OVER - turned.height / 2)))


def fitting(draw: ImageDraw.ImageDraw, words: str, width: int) -> int:
    """The size, of 17 or less, in which words fit into `width` pixels; 9 where none does."""
    sizes = [size for size in range(17, 9, -1) if draw.textlength(drawable(words), _font(size)) <= width * OVER]
    return sizes[0] if sizes else 9


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * OVER)
