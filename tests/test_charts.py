"""Pictures of lines with intervals: where things lie, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from maskaug.benchmarks.charts import Band, BandPanel, band_chart, y_range
from maskaug.envs.errors import ConfigurationError

BLUE, RED = (0, 0, 255), (255, 0, 0)
#: pixels of a picture with one line of heading and one row of names: axes 70 from the left, 440 wide, 300 high.
LEFT, TOP, WIDTH, HEIGHT = 70, 98, 440, 300


def band(middle: Any, reach: float = 0.0, colour: Any = BLUE, x: Any = (1.0, 10.0, 100.0), name: str = "a") -> Band:
    values = np.array(middle, np.float64)
    return Band(name, colour, np.array(x), values, values - reach, values + reach)


def panel(*bands: Band, log_x: bool = True) -> BandPanel:
    return BandPanel("title", "x", "y", bands, log_x)


def height_of(bands: Any, y: float) -> int:
    low, high = y_range(bands, [])
    return round(TOP + (high - y) / (high - low) * HEIGHT)


def columns(picture: Any, colour: Any) -> Any:
    """x of all pixels that are nearly of a colour, inside the axes."""
    inside = picture[TOP : TOP + HEIGHT, LEFT:].astype(int)
    return np.flatnonzero((np.abs(inside - colour).max(2) < 40).any(0)) + LEFT


def rows(picture: Any, x: int, colour: Any) -> Any:
    return np.flatnonzero(np.abs(picture[TOP : TOP + HEIGHT, x].astype(int) - colour).max(1) < 60) + TOP


def test_a_line_lies_where_its_values_are() -> None:
    flat, rising = band([1.0, 1.0, 1.0]), band([0.0, 0.0, 2.0], colour=RED)
    picture = band_chart([panel(flat, rising)], "heading")
    assert picture.shape == (454, 530, 3)
    for x in (LEFT + 20, LEFT + WIDTH - 100):
        assert abs(rows(picture, x, BLUE).mean() - height_of([flat, rising], 1.0)) < 2
    assert abs(rows(picture, LEFT + 100, RED).mean() - height_of([flat, rising], 0.0)) < 2
    # A logarithmic axis puts 10 in the middle between 1 and 100; an even one puts it at its tenth.
    middle = LEFT + WIDTH // 2
    assert abs(rows(picture, middle - 10, RED).mean() - height_of([flat, rising], 0.0)) < 2
    even = band_chart([panel(flat, rising, log_x=False)], "heading")
    risen = height_of([flat, rising], 2 * (0.5 - 9 / 99) / (1 - 9 / 99))
    assert abs(rows(even, middle, RED).mean() - risen) < 3


def test_the_interval_is_shaded_and_as_wide_as_it_is() -> None:
    wide = band([1.0, 1.0, 1.0], 0.5)
    picture = band_chart([panel(wide)], "heading")
    shaded = picture[TOP : TOP + HEIGHT, LEFT + 100].astype(int)
    rows_of_band = np.flatnonzero(shaded[:, 2] - shaded[:, 0] > 15) + TOP
    assert abs(rows_of_band.min() - height_of([wide], 1.5)) < 3
    assert abs(rows_of_band.max() - height_of([wide], 0.5)) < 3
    # Paler than the line, so that both are seen.
    assert 15 < (shaded[:, 2] - shaded[:, 0])[height_of([wide], 1.25) - TOP] < 120
    without = dataclasses.replace(wide, low=np.full(3, np.nan), high=np.full(3, np.nan))
    plain = band_chart([panel(without)], "heading")[TOP : TOP + HEIGHT, LEFT + 100].astype(int)
    assert (plain[:, 2] - plain[:, 0] > 15).sum() < 6


def test_one_axis_holds_all_middles_and_no_interval_flattens_them() -> None:
    assert y_range([band([0.0, 1.0, 1.0], 0.1)], []) == pytest.approx((-0.136, 1.136))
    assert y_range([band([0.0, 1.0, 1.0], 100.0)], []) == pytest.approx((-0.56, 1.56))
    assert y_range([band([0.0, 1.0, 1.0])], [2.0])[1] == pytest.approx(2.06)
    assert y_range([band([3.0, 3.0, 3.0])], []) == (2.5, 3.5)


def test_marks_headings_and_names_take_their_room() -> None:
    one = panel(band([0.0, 0.5, 1.0]))
    plain = band_chart([one], "heading")
    marked = band_chart([one], "heading", [("best", 1.0)])
    assert marked.shape == plain.shape
    assert (marked != plain).any()
    assert band_chart([one], "heading\nUNFINISHED").shape[0] == plain.shape[0] + 34
    assert band_chart([one, one], "heading").shape[1] == 2 * plain.shape[1]
    many = panel(*(band([0.0, 0.5, 1.0], name=f"a long name, number {i}") for i in range(4)))
    assert band_chart([many], "heading").shape[0] > plain.shape[0]
    # A single point is drawn too.
    dot = band_chart([panel(band([1.0], x=(5.0,)))], "heading")
    assert len(columns(dot, BLUE))


@pytest.mark.parametrize(
    ("panels", "cause"),
    [
        ([], "nothing to draw"),
        ([panel()], "nothing to draw"),
        ([panel(band([], x=()))], "nothing to draw"),
        ([panel(band([1.0, 2.0], x=(0.0, 1.0)))], "no room for 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(panels: Any, cause: str) -> None:
    with pytest.raises(ConfigurationError, match=cause):
        band_chart(panels, "heading")
