"""The cell `region` of a manifest's row → masks and boxes."""

from __future__ import annotations

import contextlib
import re

from maskaug.envs.errors import DatasetError
from maskaug.envs.listing import Box

_SEPARATORS = re.compile(r"[\s,]+", re.ASCII)
_NOTHING = re.compile(r"\b(nan|inf)\b", re.IGNORECASE)
# What boxes are made of, also wrong ones; with a bracket or a separator in it this is no file's name.
_APART = frozenset(" \t\n\r\v\f,;[](){}")
_NUMERIC = _APART | frozenset("0123456789.:+-")
#: What tables write where there is nothing. It might as well mean "unknown", so that it is not taken for either.
_NULLS = frozenset({"nan", "-nan", "none", "null", "nil", "na", "n/a", "<na>", "#n/a", "#na", "#n/a n/a", "nat"})
#: No picture is that large.
_FAR = 1e9


def parse_region(region: str) -> tuple[list[str], list[Box]]:
    """The masks' paths, as they are written, and the boxes of a cell that is not blank.

    Raises:
        DatasetError: a part is neither; the message begins with what is wrong.
    """
    masks: list[str] = []
    boxes: list[Box] = []
    for piece in region.split("|"):
        piece = piece.strip()
        if not piece:
            raise DatasetError(f"the region {short(region)} has an empty part; put one | between two of them")
        if piece.casefold() in _NULLS:
            raise DatasetError(
                f"the region {short(piece)} says nothing; leave the cell blank where nothing is there (a mask of this "
                f"name is written ./{piece})",
            )
        numbers = _numbers(piece)
        if numbers is None:
            masks.append(piece)
            continue
        if len(numbers) != 4 or not all(abs(number) < _FAR for number in numbers):
            named = f" (a mask of this name is written ./{piece})" if len(numbers) == 1 and len(piece) < 120 else ""
            raise DatasetError(f"the region {short(piece)} is no box; write x0 y0 x1 y1, in pixels{named}")
        x0, y0, x1, y1 = numbers
        # A box that was drawn by hand may overlap the border by a pixel.
        if not (-1 <= x0 < x1 and -1 <= y0 < y1):
            raise DatasetError(
                f"the box {short(piece)} is empty or begins outside; x0 y0 is its upper left corner, x1 y1 the lower "
                "right one, in pixels from 0",
            )
        boxes.append((x0, y0, x1, y1))
    return masks, boxes


def _numbers(piece: str) -> list[float] | None:
    """The numbers that a region is made of, in any notation; [] if they cannot be read; None: it is a path.

    Not one regular expression for all: of a very long cell it would try every way to divide it, for half a minute.
    """
    # Python would also take 1_000, and digits of other scripts.
    if not piece.isascii() or "_" in piece:
        return None
    with contextlib.suppress(ValueError):
        return [float(word) for word in _SEPARATORS.split(piece)]
    letters = set(_NOTHING.sub("0", piece))
    return [] if letters <= _NUMERIC and letters & _APART else None


def short(text: str) -> str:
    """A cell as errors show it."""
    return repr(text if len(text) <= 120 else text[:120] + "…")
