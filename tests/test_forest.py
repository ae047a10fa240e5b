"""Forest plots and maps of differences: where things lie, which colours they have, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskaug.benchmarks.forest import COLOURS, Compared, difference_map, forest
from maskaug.benchmarks.statistics import Interval
from maskaug.envs.errors import ConfigurationError

BETTER, WORSE, OPEN = Interval(0.05, 0.02, 0.08), Interval(-0.05, -0.08, -0.02), Interval(0.01, -0.03, 0.05)
#: pixels: names on the left, panels of one width with a gap, a heading, rows of one height.
NAMES, PANEL, GAP, HEAD, ROW = 250, 330, 44, 74, 24


def places(picture: Any, colour: Any) -> Any:
    """(rows, columns) of all pixels that are nearly of a colour."""
    return np.nonzero(np.abs(picture.astype(int) - colour).max(2) < 12)


def plot(*rows: Any, panels: tuple[str, ...] = ("AUROC − none",)) -> Any:
    return forest([Compared(f"arm {i}", row) for i, row in enumerate(rows)], panels, "heading")


# ---- forest ----------------------------------------------------------------------------------------------------------


def test_every_interval_lies_in_its_row_at_its_values_in_the_colour_of_its_verdict() -> None:
    picture = plot([BETTER], [WORSE], [OPEN])
    assert picture.shape == (HEAD + 3 * ROW + 44, NAMES + PANEL + GAP, 3)
    # The scale runs from −.1 to .1 here, in steps of .05.
    for i, (interval, verdict) in enumerate(((BETTER, "better"), (WORSE, "worse"), (OPEN, "not established"))):
        band = picture[HEAD + ROW * i : HEAD + ROW * (i + 1), NAMES:]
        rows, columns = places(band, COLOURS[verdict])
        rows, columns = rows + HEAD + ROW * i, columns + NAMES
        middle = HEAD + ROW * (i + 0.5)
        assert abs((rows.min() + rows.max()) / 2 - middle) <= 1.5
        ends = [NAMES + (x + 0.1) / 0.2 * PANEL for x in (interval.low, interval.high)]
        assert [columns.min(), columns.max()] == pytest.approx(ends, abs=2)
        # The dot is where the rows are most.
        high = np.bincount(columns).argmax()
        assert high == pytest.approx(NAMES + (interval.value + 0.1) / 0.2 * PANEL, abs=5)


def test_an_interval_that_ends_at_0_is_not_coloured() -> None:
    picture = plot([Interval(0.02, 0.0, 0.04)])
    assert not len(places(picture, COLOURS["better"])[0])
    assert len(places(picture, COLOURS["not established"])[0])


def test_panels_share_one_scale_and_what_is_missing_is_left_out() -> None:
    picture = plot([BETTER, None], [None, BETTER], panels=("one", "two"))
    assert picture.shape[1] == NAMES + 2 * (PANEL + GAP)
    rows, columns = places(picture, COLOURS["better"])
    first = columns < NAMES + PANEL + GAP / 2
    assert rows[first].max() < HEAD + ROW < rows[~first].min()
    assert columns[~first].min() - columns[first].min() == PANEL + GAP


def test_the_scale_reaches_to_the_widest_interval_and_always_holds_0() -> None:
    for wide in (Interval(30.0, 12.0, 47.0), Interval(-0.0003, -0.0004, -0.0002), Interval(0.0, 0.0, 0.0)):
        picture = plot([wide])
        # Above the dot, which may cover the line.
        inside = picture[HEAD + 1 : HEAD + 6].max(2) < 130
        zero = np.flatnonzero(inside[:, NAMES - 2 :].all(0)) + NAMES - 2
        assert len(zero)
        assert NAMES - 2 <= zero[0] <= NAMES + PANEL + 2


def test_names_and_headings_are_drawn_without_signs_that_the_font_lacks() -> None:
    # A box is drawn for a sign without a picture: the same for every one of them.
    strange, plain = (
        forest([Compared(name, [OPEN])], [panel], "a")
        for name, panel in (("|input × gradient|", "AUROC − none"), ("|input x gradient|", "AUROC - none"))
    )
    assert np.array_equal(strange, plain)


@pytest.mark.parametrize("rows", [[], [[None]], [[BETTER, BETTER]]])
def test_nothing_to_show_or_other_panels_are_refused(rows: Any) -> None:
    with pytest.raises(ConfigurationError, match="at least one interval"):
        plot(*rows)


# ---- map -------------------------------------------------------------------------------------------------------------


def grid(**fields: Any) -> Any:
    return difference_map(fields, ["5%", "60%"], ["25", "all"], ("hidden", "labels"), "heading")


#: of the first field of the first grid, its size, and how far down the first row begins.
LEFT, UPPER, FIELD = 120, 102, (86, 34)


def corner(picture: Any, row: int, column: int) -> Any:
    """The colour of a field, next to its lower left corner."""
    return picture[UPPER + FIELD[1] * (row + 1) - 5, LEFT + FIELD[0] * column + 5].astype(int)


def dotted(picture: Any, row: int, column: int) -> bool:
    x, y = LEFT + FIELD[0] * (column + 1) - 9, UPPER + FIELD[1] * row + 9
    return bool(picture[y, x].max() < 90)


def test_fields_fade_to_the_colour_of_their_sign_and_a_dot_marks_what_excludes_0() -> None:
    picture = grid(apga=[[BETTER, Interval(0.025, -0.01, 0.06)], [WORSE, None]])
    full = np.array([255 + 0.7 * (c - 255) for c in COLOURS["better"]])
    half = np.array([255 + 0.35 * (c - 255) for c in COLOURS["better"]])
    against = np.array([255 + 0.7 * (c - 255) for c in COLOURS["worse"]])
    assert corner(picture, 0, 0) == pytest.approx(full, abs=2)
    assert corner(picture, 0, 1) == pytest.approx(half, abs=2)
    assert corner(picture, 1, 0) == pytest.approx(against, abs=2)
    assert corner(picture, 1, 1).tolist() == [255, 255, 255]
    assert [dotted(picture, r, c) for r in (0, 1) for c in (0, 1)] == [True, False, True, False]


def test_all_grids_of_a_map_have_one_scale_three_in_a_row() -> None:
    small = Interval(0.025, 0.02, 0.03)
    one = grid(a=[[small, None], [None, None]])
    two = grid(a=[[small, None], [None, None]], b=[[BETTER, None], [None, None]])
    assert corner(two, 0, 0).tolist() != corner(one, 0, 0).tolist()
    names = ("a", "b", "c", "d")
    four = grid(**{name: [[BETTER, None], [None, None]] for name in names})
    three = grid(**{name: [[BETTER, None], [None, None]] for name in names[:3]})
    assert four.shape[1] == three.shape[1]
    assert four.shape[0] > three.shape[0]


def test_a_map_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one difference"):
        grid(apga=[[None, None], [None, None]])
