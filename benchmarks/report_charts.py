"""Lines over time as SVG: small, sharp, and in the page's own colours, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskaug.benchmarks.report_files import Curve, printable

#: colours that the page's style has, s0, s1, …; further ones are dashed.
COLOURS = 8
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 190, 58, 12, 26, 34


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
        name: what a pointer over it shows.
        colour: its number; lines of one kind share it.
        curve: steps and values, (T,) both, T at least 1.
    """

    name: str
    colour: int
    curve: Curve


def chart(title: str, lines: Sequence[Line], x_label: str, buckets: int = 80) -> str:
    """One pair of axes with all `lines` as an <svg>.

    Args:
        title: above it.
        lines: at least one.
        x_label: below it.
        buckets: a line with more points than twice as many keeps the lowest and the highest of each bucket, so that
            no spike is lost.
    """
    # Far beyond what anything measures; keeps the differences finite.
    thin = [thinned((x.clip(-1e300, 1e300), y.clip(-1e300, 1e300)), buckets) for _, _, (x, y) in lines]
    x_ticks, x_low, x_high = axis(np.concatenate([x for x, _ in thin]), tight=True)
    y_ticks, y_low, y_high = axis(np.concatenate([y for _, y in thin]))
    plot_w, plot_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(_LEFT + (x - x_low) / (x_high - x_low) * plot_w)

    def down(y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(_TOP + plot_h - (y - y_low) / (y_high - y_low) * plot_h)

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_escaped(title)}">',
        f'<text class="t" x="{_LEFT}" y="15">{_escaped(title, 52)}</text>',
    ]
    for value, label in zip(y_ticks, labels(y_ticks), strict=True):
        y = down(np.array([value]))[0]
        parts.append(f'<path class="g" d="M{_LEFT} {y:.1f}h{plot_w}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    for value, label in zip(x_ticks, labels(x_ticks), strict=True):
        x = across(np.array([value]))[0]
        parts.append(f'<path class="g" d="M{x:.1f} {_TOP + plot_h}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 19}" text-anchor="middle">{label}</text>')
    parts.append(f'<path class="a" d="M{_LEFT} {_TOP}v{plot_h}h{plot_w}"/>')
    parts.append(
        f'<text x="{_LEFT + plot_w / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">{_escaped(x_label)}</text>'
    )
    for line, (x, y) in zip(lines, thin, strict=True):
        style = f"s{line.colour % COLOURS}" + (" d" if line.colour % (2 * COLOURS) >= COLOURS else "")
        told = f"<title>{_escaped(line.name)}</title>" if line.name else ""
        left, top = across(x), down(y)
        if len(x) == 1:
            parts.append(f'<circle class="{style}" cx="{left[0]:.1f}" cy="{top[0]:.1f}" r="3">{told}</circle>')
        else:
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(left, top, strict=True))
            parts.append(f'<polyline class="{style}" points="{points}">{told}</polyline>')
    return "".join([*parts, "</svg>"])


def thinned(curve: Curve, buckets: int) -> Curve:
    """At most 2 · `buckets` points of a curve: of each bucket the lowest and the highest, in their order."""
    x, y = curve
    if len(x) <= 2 * buckets:
        return curve
    kept: list[int] = []
    for part in np.array_split(np.arange(len(x)), buckets):
        kept += sorted({int(part[y[part].argmin()]), int(part[y[part].argmax()])})
    return x[kept], y[kept]


def axis(values: npt.NDArray[np.float64], *, tight: bool = False) -> tuple[list[float], float, float]:
    """Round ticks and the ends of an axis that holds all `values`.

    Args:
        values: (T,), finite and far from the largest numbers that there are.
        tight: the ends are the values' own; otherwise there is a little room.

    Returns:
        The ticks, 2 to 7 of them as a rule; low and high, which differ.

    >>> axis(np.array([0.0, 10.0]), tight=True)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], 0.0, 10.0)
    """
    low, high = float(values.min()), float(values.max())
    # Values that differ in their last bits alone would be ticks of one and the same label.
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.5 * abs(low) or 1.0
        low, high = low - room, high + room
    elif not tight:
        room = 0.04 * (high - low)
        low, high = low - room, high + room
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 2.5, 5, 10, 20) if factor * unit >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)], low, high


def labels(ticks: Sequence[float]) -> list[str]:
    """What stands at each tick, with as many decimals as tell neighbours apart.

    >>> labels([0.0, 0.25, 0.5]), labels([1000.001, 1000.002])
    (['0.00', '0.25', '0.50'], ['1000.001', '1000.002'])
    """
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0.0
    if not 1e-6 <= step <= 1e6:
        return [number(tick) for tick in ticks]
    decimals = next(d for d in range(8) if abs(round(step, d) - step) < 1e-3 * step)
    return [number(tick) if decimals == 0 else f"{tick:.{decimals}f}" for tick in ticks]


def number(value: float) -> str:
    """A figure as short as it may be: four digits that count, thousands apart.

    >>> [number(v) for v in (0.77428, 480.0, 1234.5, 0.00001, -2.5)]
    ['0.7743', '480', '1234', '1e-05', '-2.5']
    """
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}" if abs(value) >= 1e4 else str(int(value))
    elif 1e3 <= abs(value) < 1e15:
        text = f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.0f}"
    else:
        text = f"{value:.4g}"
    return text.replace(",", "\u202f")


def _escaped(text: str, most: int = 200) -> str:
    short = text if len(text) <= most else text[: most - 1] + "…"
    return html.escape(printable(short))
